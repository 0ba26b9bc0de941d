package metrics

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"k8s.io/apimachinery/pkg/types"

	"github.com/latchkey-dev/latchkey/internal/cli"
	"github.com/latchkey-dev/latchkey/test/stack"
)

// patience is how long to wait for something that takes moments.
const patience = 90 * time.Second

// The processes that are scraped, by the names that the stack gives them.
const (
	manager  = "manager-0"
	enforcer = "enforcer"
)

// scraped is what one process showed.
type scraped struct {
	text     []byte
	families map[string]*dto.MetricFamily
}

// value is that of the series with the labels, written "name", "value", …; ok is false where there is none.
func (s *scraped) value(name string, labels ...string) (value float64, ok bool) {
	for _, m := range s.families[name].GetMetric() {
		has := map[string]string{}
		for _, l := range m.GetLabel() {
			has[l.GetName()] = l.GetValue()
		}
		match := true
		for i := 0; i < len(labels); i += 2 {
			match = match && has[labels[i]] == labels[i+1]
		}
		if match {
			return m.GetGauge().GetValue() + m.GetCounter().GetValue() + m.GetUntyped().GetValue(), true
		}
	}
	return 0, false
}

// scrape reads the metrics of a process of the running system, as Prometheus does.
func scrape(t testing.TB, process string) *scraped {
	t.Helper()
	s, err := running.scrape(t.Context(), process)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// system is a stack in which requests of every outcome have been made.
type system struct {
	*stack.Stack
	http     *http.Client
	keys     map[string]string // plaintexts by the name of the APIKey
	stranger string            // a key that nobody knows
	asked    map[string]int    // how many requests were made, by the message of the line that each has in the access log
}

// startSystem starts a stack in the directory, makes requests of every outcome, and returns once the metrics show them.
func startSystem(ctx context.Context, dir string) (_ *system, err error) {
	s := &system{http: &http.Client{Timeout: patience}, keys: map[string]string{}, asked: map[string]int{}, stranger: "lk_" + strings.Repeat("0", 40)}
	s.Stack, err = stack.Start(ctx, stack.Options{Dir: dir, Say: os.Stderr})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Stop())
		}
	}()
	for _, step := range []func(context.Context) error{s.logAll, s.apply, s.takeKeys, s.ask, s.awaitMetrics} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// logAll has the enforcer log every request.
func (s *system) logAll(ctx context.Context) error {
	s.Enforcer.Args = append(s.Enforcer.Args, "--access-log=all")
	if err := s.Enforcer.Restart(); err != nil {
		return err
	}
	return s.AwaitEnforcer(ctx)
}

// apply applies testdata/objects.yaml.
func (s *system) apply(ctx context.Context) error {
	content, err := os.ReadFile(filepath.Join("testdata", "objects.yaml"))
	if err != nil {
		return err
	}
	path := filepath.Join(s.Dir, "objects.yaml")
	if err := os.WriteFile(path, bytes.ReplaceAll(content, []byte("PROVIDER"), []byte(s.ProviderURL())), 0o600); err != nil {
		return err
	}
	_, err = s.Kubectl(ctx, "apply", "--server-side", "-f", path)
	return err
}

// takeKeys takes the plaintexts of the keys that requests are made with.
func (s *system) takeKeys(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for _, name := range []string{"canary-open", "canary-switched-off", "canary-limited", "canary-spent", "canary-of-disabled"} {
		plaintext, err := cli.Claim(ctx, s.Client, types.NamespacedName{Namespace: "canary-namespace", Name: name})
		if err != nil {
			return fmt.Errorf("take key %s: %w", name, err)
		}
		s.keys[name] = plaintext.Reveal()
	}
	_, err := s.Kubectl(ctx, "wait", "-n", "canary-namespace", "--for=condition=Enforced", "--timeout=90s", "apikeys.latchkey.dev/canary-open",
		"apikeys.latchkey.dev/canary-switched-off", "apikeys.latchkey.dev/canary-limited", "apikeys.latchkey.dev/canary-spent")
	if err != nil {
		return err
	}
	_, err = s.Kubectl(ctx, "wait", "--for=condition=Ready", "--timeout=90s", "models.latchkey.dev/gpt-5-mini",
		"models.latchkey.dev/nowhere", "models.latchkey.dev/broken-credential")
	return err
}

// ask makes requests of every outcome: each way to be answered, to be refused and to end.
func (s *system) ask(ctx context.Context) error {
	for what, r := range map[string]struct {
		key, model, text string
		stream           bool
		path             string
		want             int  // the status; 0: any, or none
		ended            bool // it is let through
	}{
		"an answer":                     {key: "canary-open", want: 200, ended: true},
		"a stream":                      {key: "canary-open", stream: true, want: 200, ended: true},
		"a list of models":              {key: "canary-open", path: "/v1/models", want: 200},
		"an error of the provider's":    {key: "canary-open", text: "sim:status=500", want: 500, ended: true},
		"an answer that breaks off":     {key: "canary-open", text: "sim:chunks=9 sim:break-after=3", stream: true, ended: true},
		"a provider out of reach":       {key: "canary-open", model: "nowhere", want: 503, ended: true},
		"a credential that is refused":  {key: "canary-open", model: "broken-credential", want: 502, ended: true},
		"a model that there is not":     {key: "canary-open", model: "no-model", want: 404},
		"a path that there is not":      {key: "canary-open", path: "/v1/nothing", want: 404},
		"no key":                        {want: 401},
		"a key that nobody knows":       {key: "stranger", want: 401},
		"a disabled key":                {key: "canary-switched-off", want: 401},
		"a key of a disabled app":       {key: "canary-of-disabled", want: 401},
		"a key beyond its rate limit":   {key: "canary-limited", want: 429},
		"a key whose budget is used up": {key: "canary-spent", want: 429},
		"usage that is not reported":    {key: "canary-open", text: "sim:no-usage", want: 200, ended: true},
	} {
		status, err := s.chat(ctx, r.key, r.model, r.text, r.path, r.stream)
		switch {
		case r.ended:
			s.asked["request ended"]++
		case r.key != "": // those without a key are the stack's, too
			s.asked["request decided"]++
		}
		if r.want != 0 && (err != nil || status != r.want) {
			return fmt.Errorf("%s: status %d, want %d: %w", what, status, r.want, err)
		}
	}
	return s.hangUp(ctx)
}

func (s *system) chat(ctx context.Context, key, name, text, path string, stream bool) (int, error) {
	if name == "" {
		name = "gpt-5-mini"
	}
	if text == "" {
		text = "sim:reply=ok"
	}
	method, body := http.MethodPost, fmt.Sprintf(`{"model":%q,"stream":%t,"messages":[{"role":"user","content":%q}]}`, name, stream, text)
	if path == "" {
		path = "/v1/chat/completions"
	} else {
		method, body = http.MethodGet, ""
	}
	req, err := http.NewRequestWithContext(ctx, method, s.GatewayURL()+path, strings.NewReader(body))
	if err != nil {
		return 0, err
	}
	req.Header.Set("Content-Type", "application/json")
	switch key {
	case "":
	case "stranger":
		req.Header.Set("Authorization", "Bearer "+s.stranger)
	default:
		req.Header.Set("Authorization", "Bearer "+s.keys[key])
	}
	resp, err := s.http.Do(req)
	if err != nil {
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, err
}

// hangUp asks for an answer, and hangs up before it begins: once the request is at the provider.
func (s *system) hangUp(ctx context.Context) error {
	before, err := s.decided(ctx)
	if err != nil {
		return err
	}
	asking, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = s.chat(asking, "canary-open", "", "sim:delay=5m", "", false)
	}()
	err = until(ctx, "the request to be let through", func(ctx context.Context) error {
		now, err := s.decided(ctx)
		if err == nil && now == before {
			err = errors.New("it is not")
		}
		return err
	})
	cancel()
	<-ended
	s.asked["request ended"]++
	return err
}

// decided is how many requests were let through.
func (s *system) decided(ctx context.Context) (float64, error) {
	page, err := s.scrape(ctx, enforcer)
	if err != nil {
		return 0, err
	}
	n, _ := page.value("latchkey_enforcer_decisions_total", "outcome", "forwarded")
	return n, nil
}

// awaitMetrics waits until what was brought about shows.
func (s *system) awaitMetrics(ctx context.Context) error {
	wants := map[string][][]string{
		enforcer: {
			{"latchkey_enforcer_decisions_total", "outcome", "answered"},
			{"latchkey_enforcer_estimated_answers_total"},
			{"latchkey_enforcer_usage_rows_reported_total"},
		},
		manager: {
			{"latchkey_api_keys", "state", "Active"},
			{"latchkey_api_keys", "state", "Disabled"},
			{"latchkey_api_keys", "state", "BudgetExhausted"},
			{"latchkey_api_keys", "state", "ApplicationDisabled"},
			{"latchkey_api_keys_not_enforced"},
			{"latchkey_applications", "state", "Active"},
			{"latchkey_applications", "state", "Disabled"},
			{"latchkey_models", "ready", "True"},
			{"latchkey_models", "ready", "False"},
			{"latchkey_providers", "ready", "True"},
			{"latchkey_providers", "ready", "False"},
			{"latchkey_usage_status_writes_total", "result", "success"},
			{"latchkey_xds_connected_clients", "role", "enforcer"},
			{"latchkey_xds_connected_clients", "role", "envoy"},
		},
	}
	for _, ending := range []string{"answered", "error", "unanswered", "credential", "cut_off", "hung_up"} {
		wants[enforcer] = append(wants[enforcer], []string{"latchkey_enforcer_requests_ended_total", "ending", ending})
	}
	for process, series := range wants {
		for _, want := range series {
			err := until(ctx, process+" to show "+strings.Join(want, " "), func(ctx context.Context) error {
				page, err := s.scrape(ctx, process)
				if err != nil {
					return err
				}
				if v, ok := page.value(want[0], want[1:]...); !ok || v == 0 {
					return fmt.Errorf("it is %s, there: %t", strconv.FormatFloat(v, 'g', -1, 64), ok)
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// scrape asks for the classic text format, which the parser reads.
func (s *system) scrape(ctx context.Context, process string) (*scraped, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.MetricsURL(process), http.NoBody)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "text/plain;version=0.0.4")
	resp, err := s.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("scrape %s: %w", process, err)
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("scrape %s: %s: %w", process, resp.Status, err)
	}
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(text))
	if err != nil {
		return nil, fmt.Errorf("parse the scrape of %s: %w", process, err)
	}
	return &scraped{text: text, families: families}, nil
}

// until polls until the check passes.
func until(ctx context.Context, what string, check func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for {
		err := check(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", what, err)
		case <-ticker.C:
		}
	}
}
