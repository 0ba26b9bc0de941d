package metrics

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/latchkey-dev/latchkey/test/ports"
	"github.com/latchkey-dev/latchkey/test/stack"
)

// prometheus is a real one, that scrapes the running system each second and knows the alert rules.
type prometheus struct{ url string }

// prometheusFolder is what hack/prometheus.sh builds into.
func prometheusFolder(t *testing.T) string {
	t.Helper()
	folder := os.Getenv("LATCHKEY_PROMETHEUS")
	if folder == "" {
		t.Fatal("LATCHKEY_PROMETHEUS is not set: run this through `make test`, or set it to what hack/prometheus.sh prints")
	}
	return folder
}

func alertsFile() string {
	return filepath.Join(running.Root, "charts", "latchkey", "alerts", "latchkey.yaml")
}

func startPrometheus(t *testing.T) *prometheus {
	t.Helper()
	port, err := ports.Free(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	config := "global: {scrape_interval: 1s, evaluation_interval: 1s}\nrule_files: [" + strconv.Quote(alertsFile()) + "]\nscrape_configs:\n"
	for job, process := range map[string]string{"latchkey-system/latchkey-manager": manager, "latchkey-system/latchkey-gateway": enforcer} {
		at, err := url.Parse(running.MetricsURL(process))
		if err != nil {
			t.Fatal(err)
		}
		config += fmt.Sprintf("  - {job_name: %q, static_configs: [{targets: [%q]}]}\n", job, at.Host)
	}
	file := filepath.Join(dir, "prometheus.yaml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	process := &stack.Process{
		Name: "prometheus", Path: filepath.Join(prometheusFolder(t), "prometheus"), Log: filepath.Join(dir, "log"),
		Args: []string{"--config.file=" + file, "--storage.tsdb.path=" + filepath.Join(dir, "data"), "--web.listen-address=127.0.0.1:" + strconv.Itoa(port)},
	}
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := process.Stop(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			log, _ := os.ReadFile(process.Log)
			t.Logf("%s", log[:min(len(log), 10_000)])
		}
	})
	p := &prometheus{url: "http://127.0.0.1:" + strconv.Itoa(port)}
	// A rate is known from the third scrape on, at the latest.
	err = until(t.Context(), "Prometheus to have scraped", func(ctx context.Context) error {
		for _, series := range []string{"latchkey_enforcer_build_info", "latchkey_usage_connected_reporters"} {
			values, err := p.query(ctx, "count_over_time("+series+"[1m]) >= 3")
			if err != nil || len(values) == 0 {
				return errors.Join(err, errors.New(series+" is not there"))
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// ask reads a page of Prometheus' API into data.
func (p *prometheus) ask(ctx context.Context, path string, form url.Values, data any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url+path+"?"+form.Encode(), http.NoBody)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	var body struct {
		Status, Error string
		Data          json.RawMessage
	}
	if err := json.NewDecoder(resp.Body).Decode(&body); err != nil {
		return fmt.Errorf("%s: %s: %w", path, resp.Status, err)
	}
	if body.Status != "success" {
		return fmt.Errorf("%s: %s", path, body.Error)
	}
	return json.Unmarshal(body.Data, data)
}

// query is the number of series that an expression gives, as their labels.
func (p *prometheus) query(ctx context.Context, expr string) ([]map[string]string, error) {
	var data struct {
		Result []struct{ Metric map[string]string }
	}
	if err := p.ask(ctx, "/api/v1/query", url.Values{"query": {expr}}, &data); err != nil {
		return nil, fmt.Errorf("%s: %w", expr, err)
	}
	series := make([]map[string]string, 0, len(data.Result))
	for _, r := range data.Result {
		series = append(series, r.Metric)
	}
	return series, nil
}

// matcher is one of a selector's.
type matcher struct{ Name, Type, Value string }

// selectors are those of an expression, as Prometheus itself reads it.
func (p *prometheus) selectors(ctx context.Context, expr string) ([][]matcher, error) {
	var tree any
	if err := p.ask(ctx, "/api/v1/parse_query", url.Values{"query": {expr}}, &tree); err != nil {
		return nil, fmt.Errorf("%s: %w", expr, err)
	}
	var found [][]matcher
	var walk func(node any) error
	walk = func(node any) error {
		switch n := node.(type) {
		case []any:
			for _, child := range n {
				if err := walk(child); err != nil {
					return err
				}
			}
		case map[string]any:
			if kind := n["type"]; kind == "vectorSelector" || kind == "matrixSelector" {
				raw, err := json.Marshal(n["matchers"])
				if err != nil {
					return err
				}
				var matchers []matcher
				if err := json.Unmarshal(raw, &matchers); err != nil {
					return err
				}
				found = append(found, matchers)
			}
			for _, child := range n {
				if err := walk(child); err != nil {
					return err
				}
			}
		}
		return nil
	}
	return found, walk(tree)
}

// judge finds a fault in an expression: a selector that chooses nothing of what was scraped, as one with a misspelt name does. Reasons of
// refusals that cannot be brought about here are looked up in the engine's own words.
func (p *prometheus) judge(ctx context.Context, expr string) error {
	selectors, err := p.selectors(ctx, expr)
	if err != nil {
		return err
	}
	if len(selectors) == 0 {
		return fmt.Errorf("%s: it chooses no series", expr)
	}
	for _, matchers := range selectors {
		var kept []string
		for _, m := range matchers {
			if m.Name == "reason" && m.Type == "=~" {
				for reason := range strings.SplitSeq(m.Value, "|") {
					if err := isReason(reason); err != nil {
						return fmt.Errorf("%s: %w", expr, err)
					}
				}
				m.Type, m.Value = "!=", "" // there is such a label
			}
			kept = append(kept, m.Name+m.Type+strconv.Quote(m.Value))
		}
		selector := "{" + strings.Join(kept, ",") + "}"
		if series, err := p.query(ctx, selector); err != nil || len(series) == 0 {
			return errors.Join(err, fmt.Errorf("%s: nothing that was scraped is %s", expr, selector))
		}
	}
	return nil
}

// isReason looks for a reason in the source of the engine.
func isReason(reason string) error {
	files, err := filepath.Glob(filepath.Join(running.Root, "internal", "enforce", "*.go"))
	if err != nil {
		return err
	}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		content, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if strings.Contains(string(content), `reason: "`+reason+`"`) || strings.Contains(string(content), `reason = "`+reason+`"`) {
			return nil
		}
	}
	return fmt.Errorf("nothing is refused for %q", reason)
}

func promtool(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), filepath.Join(prometheusFolder(t), "promtool"), args...).CombinedOutput(); err != nil {
		t.Fatalf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}
