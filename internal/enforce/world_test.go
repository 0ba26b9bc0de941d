package enforce

import (
	"bytes"
	"encoding/json"
	"flag"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/latchkey-dev/latchkey/internal/key"
	"github.com/latchkey-dev/latchkey/internal/ledger"
	"github.com/latchkey-dev/latchkey/internal/policy"
)

var update = flag.Bool("update", false, "write the golden files anew")

// noon is the time of all tests.
func noon() time.Time { return time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC) }

// mint makes the one key that belongs to a name.
func mint(t testing.TB, name string) key.Plaintext {
	t.Helper()
	seed := [32]byte{31: byte(len(name))}
	copy(seed[:], name)
	plaintext, err := key.Mint(bytes.NewReader(seed[:]))
	if err != nil {
		t.Fatal(err)
	}
	return plaintext
}

// newLedger is a ledger that forgets.
func newLedger(t testing.TB, now func() time.Time) ledger.Ledger {
	t.Helper()
	l, err := ledger.Open(ledger.Options{Now: now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// decisions is an Observer that keeps what it is told.
type decisions struct {
	mu        sync.Mutex
	list      []Decision
	meterings []Metering
	failures  []error
}

func (d *decisions) Metered(m Metering) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.meterings = append(d.meterings, m)
}

func (d *decisions) LedgerFailed(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failures = append(d.failures, err)
}

func (d *decisions) Decided(decision Decision) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.list = append(d.list, decision)
}

// lastMetered is the latest request that has ended.
func (d *decisions) lastMetered(t testing.TB) Metering {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.meterings) == 0 {
		t.Fatal("no request has ended")
	}
	return d.meterings[len(d.meterings)-1]
}

// last is the latest decision.
func (d *decisions) last(t testing.TB) Decision {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.list) == 0 {
		t.Fatal("nothing was observed")
	}
	return d.list[len(d.list)-1]
}

// world is an engine with a table, and the keys in it by their names.
type world struct {
	table    *Table
	engine   *Engine
	observed *decisions
	keys     map[string]string
}

// The keys' names say what is the matter with them.
const (
	keyGood     = "good"     // may do all
	keyDisabled = "disabled" // by its own state
	keyExpired  = "expired"
	keyClosed   = "closed"  // its application is disabled
	keyOrphan   = "orphan"  // its application is not there
	keyText     = "text"    // text only, of two models
	keyBounded  = "bounded" // may do all, but its application may do text only, of two other models
	keyUnknown  = "unknown" // not in the table
)

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{table: NewTable(), observed: &decisions{}, keys: map[string]string{}}
	text := policy.CapabilitiesOf(policy.TextGeneration)
	all := policy.ModelScope{All: true}
	system := policy.DefaultSystem()
	system.RequestsPerMinute.Default, system.RequestsPerMinute.Max = 1_000_000, 1_000_000
	system.TokensPerMinute.Default, system.TokensPerMinute.Max = 1_000_000_000, 1_000_000_000
	set := &policy.Delta{
		System: &system,
		Applications: []*policy.Application{
			{UID: "a1", Namespace: "team", Name: "shop", DisplayName: "Shop", State: policy.StateEnabled, Capabilities: policy.AllCapabilities, Models: all, Limits: policy.NoRateLimits(), Budgets: policy.NoBudgets()},
			{UID: "a2", Namespace: "team", Name: "closed", DisplayName: "Closed", State: policy.StateDisabled, Capabilities: policy.AllCapabilities, Models: all, Limits: policy.NoRateLimits(), Budgets: policy.NoBudgets()},
			{UID: "a3", Namespace: "team", Name: "bounded", DisplayName: "Bounded", State: policy.StateEnabled, Capabilities: text, Models: policy.ScopeOf("claude", "gpt"), Limits: policy.NoRateLimits(), Budgets: policy.NoBudgets()},
			{UID: "a4", Namespace: "other", Name: "gone", DisplayName: "Of another namespace", State: policy.StateEnabled, Capabilities: policy.AllCapabilities, Models: all, Limits: policy.NoRateLimits(), Budgets: policy.NoBudgets()},
		},
		Models: []*policy.Model{
			model("gpt", policy.FormatOpenAI, "gpt-upstream", policy.TextGeneration, policy.WebSearch),
			model("same", policy.FormatOpenAI, "same", policy.TextGeneration),
			model("embed", policy.FormatOpenAI, "embed-upstream", policy.Embeddings),
			model("paint", policy.FormatOpenAI, "paint-upstream", policy.ImageGeneration),
			model("ears", policy.FormatOpenAI, "ears-upstream", policy.SpeechToText),
			model("voice", policy.FormatOpenAI, "voice-upstream", policy.TextToSpeech),
			model("claude", policy.FormatAnthropic, "claude-upstream", policy.TextGeneration, policy.WebSearch),
			model("org/odd name:1", policy.FormatOpenAI, "odd", policy.TextGeneration),
			model("formless", policy.FormatUnknown, "formless", policy.TextGeneration),
		},
	}
	for _, name := range []string{keyGood, keyDisabled, keyExpired, keyClosed, keyOrphan, keyText, keyBounded, keyUnknown} {
		plaintext := mint(t, name)
		w.keys[name] = plaintext.Reveal()
		k := &policy.Key{
			UID: "uid-" + name, Namespace: "team", Name: name, Application: "shop", State: policy.StateEnabled,
			Credentials:  []policy.Credential{{Hash: plaintext.Hash(), Prefix: plaintext.Prefix()}},
			Capabilities: policy.AllCapabilities, Models: all,
			Limits: policy.NoRateLimits(), Budgets: policy.NoBudgets(),
		}
		switch name {
		case keyUnknown:
			continue
		case keyDisabled:
			k.State = policy.StateDisabled
		case keyExpired:
			k.Expires = noon()
		case keyClosed:
			k.Application = "closed"
		case keyOrphan:
			k.Application = "gone"
		case keyText:
			k.Capabilities, k.Models = text, policy.ScopeOf("gpt", "embed")
		case keyBounded:
			k.Application, k.Models = "bounded", policy.ScopeOf("gpt", "same")
		}
		set.Keys = append(set.Keys, k)
	}
	if err := w.table.Replace(set); err != nil {
		t.Fatal(err)
	}
	var err error
	if w.engine, err = New(Options{Table: w.table, Ledger: newLedger(t, noon), Observer: w.observed, Now: noon}); err != nil {
		t.Fatal(err)
	}
	return w
}

func model(name string, format policy.Format, upstream string, capabilities ...policy.Capability) *policy.Model {
	provider := "openai-eu"
	if format == policy.FormatAnthropic {
		provider = "anthropic-eu"
	}
	return &policy.Model{
		Name: name, Format: format, UpstreamName: upstream, Provider: provider, Capabilities: policy.CapabilitiesOf(capabilities...),
		Created: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
	}
}

// call is a request in short.
type call struct {
	key     string   // by its name, sent as a bearer; empty: none
	method  string   // empty: POST
	path    string   // empty: /v1/chat/completions
	headers []string // name, value, …; {name} stands for the key of that name, here and below
	body    string   // empty: the request ends with its head
}

// expand puts keys in the place of their names.
func (w *world) expand(s string) string {
	for name, plaintext := range w.keys {
		s = strings.ReplaceAll(s, "{"+name+"}", plaintext)
	}
	return s
}

func (w *world) head(c call) Head {
	h := Head{Method: c.method, Path: w.expand(c.path), EndStream: c.body == ""}
	if h.Method == "" {
		h.Method = "POST"
	}
	if h.Path == "" {
		h.Path = "/v1/chat/completions"
	}
	if c.key != "" {
		h.Headers = append(h.Headers, Header{"authorization", "Bearer " + w.keys[c.key]})
	}
	typed := false
	for i := 0; i < len(c.headers); i += 2 {
		h.Headers = append(h.Headers, Header{c.headers[i], w.expand(c.headers[i+1])})
		typed = typed || c.headers[i] == "content-type"
	}
	if c.body != "" && !typed {
		h.Headers = append(h.Headers, Header{"content-type", "application/json"})
	}
	h.Headers = append(h.Headers, Header{"x-request-id", "req-1"})
	return h
}

// do takes a call through the engine. Exactly one of the results is nil.
func (w *world) do(t testing.TB, c call) (*Exchange, *Forward, *Answer) {
	t.Helper()
	head := w.head(c)
	x, answer := w.engine.Begin(head)
	if (x == nil) == (answer == nil) {
		t.Fatalf("Begin gave exchange %v and answer %v", x, answer)
	}
	if answer != nil {
		return nil, nil, answer
	}
	if head.EndStream {
		t.Fatal("Begin waits for a body that does not come")
	}
	forward, answer := x.Body(t.Context(), []byte(w.expand(c.body)))
	if (forward == nil) == (answer == nil) {
		t.Fatalf("Body gave forward %v and answer %v", forward, answer)
	}
	return x, forward, answer
}

// refused takes a call through the engine that must be refused, and checks what holds for all refusals.
func (w *world) refused(t testing.TB, c call) *Answer {
	t.Helper()
	_, forward, answer := w.do(t, c)
	if forward != nil {
		t.Fatalf("forwarded: %+v", forward)
	}
	w.checkAnswer(t, answer)
	if answer.Status < 400 || answer.Reason == "" {
		t.Errorf("status %d, reason %q", answer.Status, answer.Reason)
	}
	d := w.observed.last(t)
	if d.Outcome != OutcomeRefused || d.Status != answer.Status || d.Reason != answer.Reason {
		t.Errorf("observed %+v of %d %s", d, answer.Status, answer.Reason)
	}
	return answer
}

// checkAnswer checks what holds for all answers: JSON, of that type, without any key.
func (w *world) checkAnswer(t testing.TB, a *Answer) {
	t.Helper()
	if got := valueOf(a.Headers, "content-type"); got != "application/json" {
		t.Errorf("content-type %q", got)
	}
	if !json.Valid(a.Body) {
		t.Errorf("the body is not JSON: %q", a.Body)
	}
	shown := string(a.Body)
	for _, h := range a.Headers {
		shown += h.Value
	}
	for name, plaintext := range w.keys {
		if strings.Contains(shown, plaintext[:key.PrefixLength+1]) || strings.Contains(shown, plaintext[key.PrefixLength:]) {
			t.Errorf("the answer quotes the key %s: %s", name, shown)
		}
	}
}

// messageOf is the message of an error in either dialect.
func messageOf(t testing.TB, a *Answer) string {
	t.Helper()
	var body struct{ Error struct{ Message string } }
	if err := json.Unmarshal(a.Body, &body); err != nil || body.Error.Message == "" {
		t.Fatalf("no message in %s: %v", a.Body, err)
	}
	return body.Error.Message
}

func valueOf(headers []Header, name string) string {
	for _, h := range headers {
		if h.Name == name {
			return h.Value
		}
	}
	return ""
}

func chat(model string) string {
	return `{"model":"` + model + `","messages":[{"role":"user","content":"hi"}]}`
}
