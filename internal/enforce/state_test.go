package enforce

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/latchkey-dev/latchkey/internal/key"
	"github.com/latchkey-dev/latchkey/internal/policy"
)

// clockedEngine is an engine of the world's table whose time can be set.
func clockedEngine(t testing.TB, w *world, now *time.Time) *Engine {
	t.Helper()
	engine, err := New(Options{Table: w.table, Ledger: newLedger(t, func() time.Time { return *now }), Observer: w.observed, Now: func() time.Time { return *now }})
	if err != nil {
		t.Fatal(err)
	}
	return engine
}

// changed puts a copy of a key into the table, with something else about it.
func (w *world) changed(t testing.TB, name string, change func(k *policy.Key)) {
	t.Helper()
	k, _, _ := w.table.find(policy.KeyHash(mint(t, name).Hash()))
	if k == nil {
		t.Fatalf("the table has no key %s", name)
	}
	other := *k
	change(&other)
	if err := w.table.Apply(&policy.Delta{Keys: []*policy.Key{&other}}); err != nil {
		t.Fatal(err)
	}
}

func TestExpiryToTheNanosecond(t *testing.T) {
	t.Parallel()
	const never, expired = "", "api_key_expired"
	for name, tc := range map[string]struct {
		expires    time.Time
		head, body time.Duration // after noon, when each comes
		want       string        // by which it is refused
		byTheHead  bool
	}{
		"no expiry":                            {time.Time{}, 0, 1 << 62, never, false},
		"a nanosecond before":                  {noon(), -1, -1, never, false},
		"at the moment itself":                 {noon(), 0, 0, expired, true},
		"a nanosecond after":                   {noon(), 1, 1, expired, true},
		"while the body is on its way":         {noon(), -1, 0, expired, false},
		"a moment of another zone":             {noon().In(time.FixedZone("x", 7200)), 0, 0, expired, true},
		"just before, of another zone":         {noon().In(time.FixedZone("x", 7200)), -1, -1, never, false},
		"a fraction of a second, before":       {noon().Add(500), 499, 499, never, false},
		"a fraction of a second, at its start": {noon().Add(500), 500, 500, expired, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			now := noon().Add(tc.head)
			engine := clockedEngine(t, w, &now)
			w.changed(t, keyGood, func(k *policy.Key) { k.Expires = tc.expires })
			x, answer := engine.Begin(w.head(call{key: keyGood, body: chat("gpt")}))
			if (answer != nil) != tc.byTheHead {
				t.Fatalf("by its head: got %+v; want refused %v", answer, tc.byTheHead)
			}
			if answer == nil {
				now = noon().Add(tc.body)
				_, answer = x.Body(t.Context(), []byte(chat("gpt")))
			}
			got := ""
			if answer != nil {
				got = answer.Reason
				w.checkAnswer(t, answer)
			}
			if got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

// Where several things are wrong with a key, the answer names the one that is mended first: the key's own before its application's.
func TestOrderOfStates(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		state       policy.State
		expires     time.Time
		application string
		want        string
	}{
		"all of it":                              {policy.StateDisabled, noon(), "closed", "api_key_disabled"},
		"disabled, of an unknown application":    {policy.StateDisabled, time.Time{}, "gone", "api_key_disabled"},
		"of no state, which is not enabled":      {policy.StateUnknown, time.Time{}, "shop", "api_key_disabled"},
		"of a state that there is not":           {policy.StateDisabled + 1, time.Time{}, "shop", "api_key_disabled"},
		"expired, and its application disabled":  {policy.StateEnabled, noon(), "closed", "api_key_expired"},
		"expired, of an unknown application":     {policy.StateEnabled, noon(), "gone", "api_key_expired"},
		"its application disabled":               {policy.StateEnabled, time.Time{}, "closed", "application_disabled"},
		"of an application of another namespace": {policy.StateEnabled, time.Time{}, "gone", "application_disabled"},
		"of an application without a name":       {policy.StateEnabled, time.Time{}, "", "application_disabled"},
		"of an application that is a path":       {policy.StateEnabled, time.Time{}, "../other/gone", "application_disabled"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.changed(t, keyGood, func(k *policy.Key) { k.State, k.Expires, k.Application = tc.state, tc.expires, tc.application })
			// A wrong path, model and capability do not hide it.
			for _, c := range []call{
				{key: keyGood, body: chat("gpt")}, {key: keyGood, path: "/v1/nonsense", body: chat("gpt")},
				{key: keyGood, path: "/v1/audio/speech", body: chat("nonsense")}, {key: keyGood, method: "GET", path: "/v1/models"},
			} {
				if a := w.refused(t, c); a.Reason != tc.want || a.Status != 401 {
					t.Errorf("%s: got %d %s; want %s", c.path, a.Status, a.Reason, tc.want)
				}
			}
		})
	}
}

// An application of a state that is not known lets nobody through.
func TestApplicationOfNoState(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	_, app, _ := w.table.find(policy.KeyHash(mint(t, keyGood).Hash()))
	other := *app
	other.State = policy.StateUnknown
	if err := w.table.Apply(&policy.Delta{Applications: []*policy.Application{&other}}); err != nil {
		t.Fatal(err)
	}
	if a := w.refused(t, call{key: keyGood, body: chat("gpt")}); a.Reason != "application_disabled" {
		t.Errorf("got %s", a.Reason)
	}
}

// Each request is observed once, and what is observed holds nothing of the key but its prefix.
func TestEachRequestIsObservedOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	calls := []call{
		{key: keyGood, body: chat("gpt")}, {key: keyGood, path: "/v1/messages", body: chat("claude")},
		{key: keyText, method: "GET", path: "/v1/models"}, {key: keyText, method: "HEAD", path: "/v1/models/gpt"},
		{key: keyGood, method: "{good}", body: chat("gpt")}, {key: keyGood, body: chat("{good}")},
		{key: keyGood, headers: []string{"x-request-id", "{good}"}, body: chat("gpt")},
	}
	for _, refusal := range refusals(w.keys[keyGood]) {
		calls = append(calls, refusal.call)
	}
	outcomes := map[Outcome]int{}
	for i, c := range calls {
		c.method = w.expand(c.method)
		_, forward, answer := w.do(t, c)
		w.observed.mu.Lock()
		seen := len(w.observed.list)
		w.observed.mu.Unlock()
		if seen != i+1 {
			t.Fatalf("%+v: %d requests, %d decisions", c, i+1, seen)
		}
		d := w.observed.last(t)
		outcomes[d.Outcome]++
		switch {
		case forward != nil && (d.Outcome != OutcomeForwarded || d.Status != 0 || d.Reason != "" || d.Provider != forward.Provider):
			t.Errorf("%+v: forwarded, but observed %+v", c, d)
		case answer != nil && (d.Status != answer.Status || d.Reason != answer.Reason || (d.Outcome == OutcomeAnswered) != (answer.Status == 200)):
			t.Errorf("%+v: answered %d %s, but observed %+v", c, answer.Status, answer.Reason, d)
		}
		shown := fmt.Sprintf("%+v", d)
		for name, plaintext := range w.keys {
			if strings.Contains(shown, plaintext[:key.PrefixLength+1]) || strings.Contains(shown, plaintext[key.PrefixLength:]) {
				t.Errorf("%+v: observed the key %s: %s", c, name, shown)
			}
		}
		if d.KeyPrefix != "" && len(d.KeyPrefix) != key.PrefixLength {
			t.Errorf("%+v: prefix %q", c, d.KeyPrefix)
		}
	}
	for _, outcome := range []Outcome{OutcomeForwarded, OutcomeAnswered, OutcomeRefused} {
		if outcomes[outcome] == 0 {
			t.Errorf("nothing was %s", outcome)
		}
	}
}

// What the gateway answers for want of a policy or of a provider's credential, in both dialects.
func TestServerErrorsInBothDialects(t *testing.T) {
	t.Parallel()
	w, empty := newWorld(t), newWorld(t)
	empty.table = NewTable()
	now := noon()
	empty.engine = clockedEngine(t, empty, &now)
	var golden strings.Builder
	for _, dialect := range []struct {
		name string
		call call
		body string // of the error but for its message
	}{
		{"openai", call{key: keyGood, body: chat("gpt")}, `"type":"server_error","param":null,"code":null`},
		{"anthropic", call{key: keyGood, path: "/v1/messages", body: chat("claude")}, `"type":"api_error"`},
	} {
		x, _, answer := w.do(t, dialect.call)
		if answer != nil {
			t.Fatalf("refused: %s", answer.Body)
		}
		credential, _ := x.ResponseHead(401, nil, false)
		for _, tc := range []struct {
			name   string
			answer *Answer
			status int
		}{
			{"no policy", empty.refused(t, dialect.call), 503},
			{"provider's credential", credential, 502},
		} {
			w.checkAnswer(t, tc.answer)
			if tc.answer.Status != tc.status || !strings.Contains(string(tc.answer.Body), dialect.body) {
				t.Errorf("%s, %s: %d %s", tc.name, dialect.name, tc.answer.Status, tc.answer.Body)
			}
			fmt.Fprintf(&golden, "# %s, %s: %s\n%s", tc.name, dialect.name, tc.answer.Reason, printed(tc.answer))
		}
	}
	compareGolden(t, "server_errors.golden", golden.String())
}
