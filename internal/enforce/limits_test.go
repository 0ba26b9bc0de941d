package enforce

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/latchkey-dev/latchkey/internal/ledger"
	"github.com/latchkey-dev/latchkey/internal/money"
	"github.com/latchkey-dev/latchkey/internal/policy"
)

// saying is a ledger that refuses, or fails, as told.
type saying struct {
	ledger.Ledger
	refusal *ledger.Refusal
	err     error
	asked   *ledger.Ask
}

func (s *saying) Reserve(_ context.Context, ask *ledger.Ask) (ledger.Reservation, *ledger.Refusal, error) {
	copied := *ask
	s.asked = &copied
	if s.refusal != nil || s.err != nil {
		return ledger.Reservation{}, s.refusal, s.err
	}
	return ledger.Reservation{ID: 1}, nil, nil
}

// budgeted changes the good key's budgets, and the models' prices.
func (w *world) budgeted(t testing.TB, b policy.Budgets, prices *policy.Prices, change ...func(*policy.Model)) {
	t.Helper()
	k, _, _ := w.table.find(policy.KeyHash(mint(t, keyGood).Hash()))
	changed := *k
	changed.Budgets = b
	delta := &policy.Delta{Keys: []*policy.Key{&changed}}
	for _, m := range w.table.allModels() {
		priced := *m
		priced.Prices = prices
		for _, c := range change {
			c(&priced)
		}
		delta.Models = append(delta.Models, &priced)
	}
	if err := w.table.Apply(delta); err != nil {
		t.Fatal(err)
	}
}

func (w *world) with(t testing.TB, l ledger.Ledger) {
	t.Helper()
	var err error
	if w.engine, err = New(Options{Table: w.table, Ledger: l, Observer: w.observed, Now: noon}); err != nil {
		t.Fatal(err)
	}
}

// TestLimitRefusals compares what callers are told of each limit with a golden file.
func TestLimitRefusals(t *testing.T) {
	t.Parallel()
	unit := int64(money.Unit)
	refusals := []struct {
		name string
		r    ledger.Refusal
	}{
		{"requests", ledger.Refusal{Limit: ledger.RequestsPerMinute, Max: 60, Used: 60, Needed: 1, Reset: noon().Add(1276 * time.Millisecond)}},
		{"requests of the application", ledger.Refusal{Limit: ledger.RequestsPerMinute, Scope: ledger.ScopeApplication, Max: 600, Used: 600, Needed: 1, Reset: noon().Add(61 * time.Second)}},
		{"requests, 0", ledger.Refusal{Limit: ledger.RequestsPerMinute, Reset: noon()}},
		{"tokens", ledger.Refusal{Limit: ledger.TokensPerMinute, Max: 1000, Used: 900, Reserved: 150, Needed: 20, Held: true, Reset: noon().Add(time.Second)}},
		{"concurrent requests", ledger.Refusal{Limit: ledger.ConcurrentRequests, Max: 4, Reserved: 4, Held: true, Reset: noon().Add(time.Second)}},
		{"the day", ledger.Refusal{Limit: ledger.Daily, Max: 5 * unit, Used: 5*unit + 1, Reset: noon().Add(12 * time.Hour)}},
		{"the month of the application", ledger.Refusal{Limit: ledger.Monthly, Scope: ledger.ScopeApplication, Max: 500 * unit, Used: 500 * unit, Reset: noon().Add(27 * 24 * time.Hour)}},
		{"the day, reserved", ledger.Refusal{Limit: ledger.Daily, Max: 5 * unit, Used: 4 * unit, Reserved: unit, Held: true, Reset: noon().Add(time.Second)}},
		{"a strict day", ledger.Refusal{Limit: ledger.Daily, Max: 5 * unit, Used: 4 * unit, Needed: 2 * unit, Reset: noon().Add(12 * time.Hour)}},
		{"the day, 0", ledger.Refusal{Limit: ledger.Daily, Reset: noon().Add(12 * time.Hour)}},
	}
	var golden strings.Builder
	for _, dialect := range []call{{key: keyGood, body: chat("gpt")}, {key: keyGood, path: "/v1/messages", body: chat("claude")}} {
		for _, tc := range refusals {
			w := newWorld(t)
			w.with(t, &saying{Ledger: newLedger(t, noon), refusal: &tc.r})
			answer := w.refused(t, dialect)
			w.checkAnswer(t, answer)
			body := string(answer.Body)
			if answer.Status != http.StatusTooManyRequests {
				t.Errorf("%s: %d %s", tc.name, answer.Status, body)
			}
			wait, err := strconv.Atoi(valueOf(answer.Headers, "retry-after"))
			if err != nil || wait < 1 || tc.r.Limit < ledger.Daily && wait > 60 {
				t.Errorf("%s: retry-after %q", tc.name, valueOf(answer.Headers, "retry-after"))
			}
			// Who may come again is told when, and who had better not is told so.
			final := valueOf(answer.Headers, "x-should-retry") == "false"
			if again := strings.Contains(body, fmt.Sprintf("try again in %ds", wait)); again == final {
				t.Errorf("%s: final is %v: %s", tc.name, final, body)
			}
			fmt.Fprintf(&golden, "# %s: %s\n%s", tc.name, answer.Reason, printed(answer))
		}
	}
	path := filepath.Join("testdata", "limits.golden")
	if *update {
		if err := os.WriteFile(path, []byte(golden.String()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), golden.String()); diff != "" {
		t.Errorf("%s differs; if it should, run the test with -update (-want +got):\n%s", path, diff)
	}
}

func TestALedgerThatCannotAnswer(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	said := &saying{Ledger: newLedger(t, noon), err: errors.New("no space left on device")}
	w.with(t, said)
	answer := w.refused(t, call{key: keyGood, body: chat("gpt")})
	if answer.Status != 503 || answer.Reason != "ledger_unavailable" || strings.Contains(string(answer.Body), "space") || len(w.observed.failures) != 1 {
		t.Errorf("%d %s %s, %v", answer.Status, answer.Reason, answer.Body, w.observed.failures)
	}
	if said.asked.Volatile {
		t.Error("the ledger may go on without its disk though nobody said so")
	}
	system, _ := w.table.systemPolicy()
	system.LedgerFailure = policy.OnFailureAllow
	if err := w.table.Apply(&policy.Delta{System: &system}); err != nil {
		t.Fatal(err)
	}
	w.refused(t, call{key: keyGood, body: chat("gpt")})
	if !said.asked.Volatile {
		t.Error("the policy's word does not reach the ledger")
	}
}

// TestWhatIsReserved checks the bounds that the ledger is given: in the prices below a token costs 1,000 nano-units, and 10,000 as output.
func TestWhatIsReserved(t *testing.T) {
	t.Parallel()
	prices := policy.NoPrices()
	prices.Input, prices.Output, prices.CacheWrite = money.Unit, 10*money.Unit, 2*money.Unit
	prices.Images, prices.PerMillionCharacters, prices.PerMinute, prices.PerSearch = []policy.ImagePrice{{Size: "1x1", Price: 7}, {Price: 9}}, 15*money.Unit, 6_000, 10
	strict := policy.Budgets{Daily: money.Unit, Monthly: policy.NoBudget, Enforcement: policy.Strict}
	long := strings.Repeat("x", 400)
	for name, tc := range map[string]struct {
		path, body string
		change     func(*policy.Model)
		tokens     int64 // the most, output included; -1: more than 400
		output     int64
		cost       money.Amount // beside that of the tokens
		status     int          // of a refusal
	}{
		"the request's own maximum": {body: `{"model":"gpt","max_tokens":50,"messages":[{"role":"user","content":"` + long + `"}]}`, tokens: -1, output: 50},
		"several answers":           {body: `{"model":"gpt","max_tokens":50,"n":3,"messages":[]}`, output: 150},
		"the model's maximum":       {body: `{"model":"gpt","messages":[]}`, change: func(m *policy.Model) { m.MaxOutputTokens = 70 }, output: 70},
		"the lower of the two":      {body: `{"model":"gpt","max_tokens":500,"messages":[]}`, change: func(m *policy.Model) { m.MaxOutputTokens = 70 }, output: 70},
		"no maximum":                {body: `{"model":"gpt","messages":[]}`, status: 400},
		"what lies outside":         {body: `{"model":"gpt","max_tokens":5,"messages":[{"content":[{"type":"image_url","image_url":{"url":"https://x/y"}}]}]}`, status: 400},
		"what lies outside, bounded by the model": {
			body:   `{"model":"gpt","max_tokens":5,"messages":[{"content":[{"type":"image_url","image_url":{"url":"https://x/y"}}]}]}`,
			change: func(m *policy.Model) { m.MaxInputTokens = 1_000 }, tokens: 1_005, output: 5,
		},
		"a search":           {body: `{"model":"gpt","max_tokens":5,"messages":[],"web_search_options":{}}`, output: 5, cost: 10},
		"searches unbounded": {path: "/v1/responses", body: `{"model":"gpt","max_output_tokens":5,"input":"x","tools":[{"type":"web_search"}]}`, status: 400},
		"embeddings":         {path: "/v1/embeddings", body: `{"model":"embed","input":"x"}`},
		"images":             {path: "/v1/images/generations", body: `{"model":"paint","prompt":"x","n":2,"size":"1x1","quality":"hd"}`, tokens: -1, cost: 14},
		"images left open":   {path: "/v1/images/generations", body: `{"model":"paint","prompt":"x","n":2}`, tokens: -1, cost: 18},
		"speech":             {path: "/v1/audio/speech", body: `{"model":"voice","input":"grüße"}`, tokens: -1, cost: 5 * 15_000},
		"moderation is free": {path: "/v1/moderations", body: `{"model":"gpt","input":"x"}`, tokens: 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			if tc.change == nil {
				tc.change = func(*policy.Model) {}
			}
			w.budgeted(t, strict, &prices, tc.change)
			said := &saying{Ledger: newLedger(t, noon)}
			w.with(t, said)
			_, _, answer := w.do(t, call{key: keyGood, path: tc.path, body: tc.body})
			if tc.status != 0 {
				if answer == nil || answer.Status != tc.status || answer.Reason != "cost_unbounded" {
					t.Fatalf("%+v", answer)
				}
				return
			}
			if answer != nil {
				t.Fatalf("refused: %s", answer.Body)
			}
			worst := said.asked.Worst
			input := worst.Tokens - tc.output
			switch {
			case tc.tokens > 0 && worst.Tokens != tc.tokens, tc.tokens == -1 && worst.Tokens < 400 && tc.path == "":
				t.Errorf("at most %d tokens", worst.Tokens)
			}
			// The dearest price of a kind counts: input may turn out to be written to the cache.
			cost := money.Amount(input)*2_000 + money.Amount(tc.output)*10_000 + tc.cost
			if tc.tokens == -1 && tc.path != "" { // billed by another unit
				cost = tc.cost
			}
			if name == "moderation is free" {
				cost = 0
			}
			if worst.Cost != cost {
				t.Errorf("at most %d, not %d, for %d tokens", worst.Cost, cost, worst.Tokens)
			}
			if in := said.asked.Input; in.Tokens > worst.Tokens || in.Cost > worst.Cost {
				t.Errorf("the input alone is %+v of at most %+v", in, worst)
			}
		})
	}
}

func TestWhatHasNoPrice(t *testing.T) {
	t.Parallel()
	none := policy.NoPrices()
	for name, tc := range map[string]struct {
		path, body string
		prices     func(*policy.Prices)
		missing    string // empty: nothing is
	}{
		"no input price":             {body: chat("gpt"), prices: func(p *policy.Prices) { p.Output = 1 }, missing: "for input and output tokens"},
		"no output price":            {body: chat("gpt"), prices: func(p *policy.Prices) { p.Input = 0 }, missing: "for input and output tokens"},
		"both":                       {body: chat("gpt"), prices: func(p *policy.Prices) { p.Input, p.Output = 0, 0 }},
		"no price of searches":       {body: `{"model":"gpt","messages":[],"web_search_options":{}}`, prices: func(p *policy.Prices) { p.Input, p.Output = 0, 0 }, missing: "per web search"},
		"embeddings":                 {path: "/v1/embeddings", body: `{"model":"embed","input":"x"}`, prices: func(p *policy.Prices) { p.Output = 1 }, missing: "for input tokens"},
		"embeddings by input":        {path: "/v1/embeddings", body: `{"model":"embed","input":"x"}`, prices: func(p *policy.Prices) { p.Input = 1 }},
		"images":                     {path: "/v1/images/generations", body: `{"model":"paint","prompt":"x"}`, prices: func(p *policy.Prices) { p.Input = 1 }, missing: "per image"},
		"images by tokens":           {path: "/v1/images/generations", body: `{"model":"paint","prompt":"x"}`, prices: func(p *policy.Prices) { p.ImageOutput = 1 }},
		"speech":                     {path: "/v1/audio/speech", body: `{"model":"voice","input":"x"}`, prices: func(p *policy.Prices) { p.Input = 1 }, missing: "for characters"},
		"speech by characters":       {path: "/v1/audio/speech", body: `{"model":"voice","input":"x"}`, prices: func(p *policy.Prices) { p.PerMillionCharacters = 1 }},
		"moderations need none":      {path: "/v1/moderations", body: `{"model":"gpt","input":"x"}`, prices: func(*policy.Prices) {}},
		"counting tokens needs none": {path: "/v1/messages/count_tokens", body: `{"model":"claude","messages":[]}`, prices: func(*policy.Prices) {}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			prices := none
			tc.prices(&prices)
			daily := policy.Budgets{Daily: money.Unit, Monthly: policy.NoBudget}
			w.budgeted(t, daily, &prices)
			_, _, answer := w.do(t, call{key: keyGood, path: tc.path, body: tc.body})
			if (answer == nil) != (tc.missing == "") {
				t.Fatalf("%+v", answer)
			}
			if answer == nil {
				return
			}
			if answer.Status != 403 || answer.Reason != "model_unpriced" || !strings.Contains(string(answer.Body), tc.missing) {
				t.Errorf("%d %s", answer.Status, answer.Body)
			}
			// Without a budget, or where the policy says so, it passes.
			system, _ := w.table.systemPolicy()
			system.UnpricedModels = policy.UnpricedFree
			if err := w.table.Apply(&policy.Delta{System: &system}); err != nil {
				t.Fatal(err)
			}
			if _, _, answer := w.do(t, call{key: keyGood, path: tc.path, body: tc.body}); answer != nil {
				t.Errorf("free: %s", answer.Body)
			}
			system.UnpricedModels = policy.UnpricedRefuse
			if err := w.table.Apply(&policy.Delta{System: &system}); err != nil {
				t.Fatal(err)
			}
			w.budgeted(t, policy.NoBudgets(), nil)
			if _, _, answer := w.do(t, call{key: keyGood, path: tc.path, body: tc.body}); answer != nil {
				t.Errorf("without a budget: %s", answer.Body)
			}
		})
	}
}
