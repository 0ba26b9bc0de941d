package enforce

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dop251/goja"
	"github.com/google/go-cmp/cmp"

	"github.com/latchkey-dev/latchkey/internal/ledger"
	"github.com/latchkey-dev/latchkey/internal/money"
	"github.com/latchkey-dev/latchkey/internal/policy"
)

func TestDoorAt(t *testing.T) {
	t.Parallel()
	for path, want := range map[string]int{
		"/v1/key": int(doorKey), "/api/v1/key": int(doorKey), "/some/base/v1/key": int(doorKey),
		"/user/balance": int(doorBalance), "/v1/user/balance": int(doorBalance), "/api/user/self": int(doorSelf),
		"/dashboard/billing/subscription": int(doorSubscription), "/v1/dashboard/billing/usage": int(doorUsage),
		"/dashboard/billing/credit_grants": int(doorGrants), "/api/usage/token": int(doorToken), "/api/usage/token/": int(doorToken),
		"/key": -1, "/v1/key/": -1, "/v1/keys": -1, "/xv1/key": -1, "/v1/models/org/v1/key": -1, "/models/user/balance": -1,
		"/v1/chat/completions": -1, "/v1/models": -1, "/": -1, "": -1,
	} {
		d, is := doorAt(path)
		got := int(d)
		if !is {
			got = -1
		}
		if got != want {
			t.Errorf("%s is %d, not %d", path, got, want)
		}
	}
}

// standings are keys that stand in various ways.
func standings() map[string]struct {
	key policy.Budgets
	app policy.Budgets
	// Spent by the key and by its application, in the day and the month.
	keyDay, keyMonth, appDay, appMonth money.Amount
	expired                            bool
} {
	unit := money.Unit
	none := policy.NoBudgets()
	both := policy.Budgets{Daily: 5 * unit, Monthly: 100 * unit}
	return map[string]struct {
		key, app                           policy.Budgets
		keyDay, keyMonth, appDay, appMonth money.Amount
		expired                            bool
	}{
		"unlimited":                  {none, none, unit / 4, unit * 3 / 2, unit, 7 * unit, false},
		"daily":                      {policy.Budgets{Daily: 5 * unit, Monthly: policy.NoBudget}, none, unit * 5 / 4, 30 * unit, 0, 0, false},
		"monthly":                    {policy.Budgets{Daily: policy.NoBudget, Monthly: 10 * unit}, none, unit, 123_456_789, 0, 0, false},
		"both":                       {both, none, unit, 98 * unit, 0, 0, false},
		"the application is tighter": {both, policy.Budgets{Daily: policy.NoBudget, Monthly: 200 * unit}, unit, 2 * unit, 50 * unit, 199*unit + unit/2, false},
		"exhausted":                  {both, none, 5*unit + 1, 6 * unit, 0, 0, false},
		"a budget of nothing":        {policy.Budgets{Daily: 0, Monthly: policy.NoBudget}, none, 0, 0, 0, 0, false},
		"the largest budget":         {policy.Budgets{Daily: policy.NoBudget, Monthly: 999_999_999*unit + 999_999_999}, none, 0, 1, 0, 0, false},
		"expired":                    {both, none, unit, unit, 0, 0, true},
	}
}

func balance(day, month money.Amount) ledger.Balance {
	return ledger.Balance{
		RequestsInMinute: 2, RequestsReset: 30 * time.Second, TokensInMinute: 300, TokensReserved: 50, TokensReset: 61 * time.Second, ConcurrentRequests: 1,
		Day: ledger.Period{Start: noon().Add(-12 * time.Hour), End: noon().Add(12 * time.Hour), Requests: 7, Tokens: 900, Spent: day, Estimated: day / 5, Reserved: 1000},
		Month: ledger.Period{Start: noon().AddDate(0, 0, -3).Add(-12 * time.Hour), End: noon().AddDate(0, 0, 28).Add(-12 * time.Hour), Requests: 70, Tokens: 9_000,
			Spent: month, Reserved: 1000},
		LastUsed: noon().Add(-time.Minute),
	}
}

// TestStatements compares all that is said at the doors with golden files.
func TestStatements(t *testing.T) {
	t.Parallel()
	doors := []struct {
		name  string
		door  door
		query string
	}{
		{"/v1/key", doorKey, ""}, {"/user/balance", doorBalance, ""}, {"/api/user/self", doorSelf, ""},
		{"/dashboard/billing/subscription", doorSubscription, ""}, {"/dashboard/billing/usage", doorUsage, "?start_date=2026-01-01&end_date=2026-05-05"},
		{"/dashboard/billing/usage of today", doorUsage, "?start_date=2026-05-04&end_date=2026-05-04"},
		{"/dashboard/billing/credit_grants", doorGrants, ""}, {"/api/usage/token", doorToken, ""},
	}
	system := policy.DefaultSystem()
	for name, tc := range standings() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			app := &policy.Application{UID: "a", Namespace: "team", Name: "shop", DisplayName: "Shop", State: policy.StateEnabled,
				Capabilities: policy.AllCapabilities, Models: policy.ModelScope{All: true}, Limits: policy.NoRateLimits(), Budgets: tc.app}
			k := &policy.Key{UID: "k", Namespace: "team", Name: "backend", DisplayName: "Backend", Application: "shop", State: policy.StateEnabled,
				Credentials:  []policy.Credential{{Prefix: "lk_abcdef"}},
				Capabilities: policy.CapabilitiesOf(policy.TextGeneration, policy.Embeddings), Models: policy.ScopeOf("gpt"), Limits: policy.NoRateLimits(), Budgets: tc.key}
			if tc.expired {
				k.Expires = noon().Add(-time.Hour)
			}
			s := newStatement(k, &k.Credentials[0], app, &system, []string{"gpt"}, balance(tc.keyDay, tc.keyMonth), balance(tc.appDay, tc.appMonth), noon())
			var golden strings.Builder
			for _, d := range doors {
				body, refused := s.body(d.door, d.query, time.UTC)
				if refused != nil {
					t.Fatalf("%s: %s", d.name, refused.message)
				}
				text, err := json.MarshalIndent(body, "", "  ")
				if err != nil {
					t.Fatal(err)
				}
				golden.WriteString("# " + d.name + "\n" + string(text) + "\n")
			}
			path := filepath.Join("testdata", "doors", strings.ReplaceAll(name, " ", "-")+".golden")
			if *update {
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
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
		})
	}
}

func TestDatesOfUsage(t *testing.T) {
	t.Parallel()
	s := statement{now: noon(), system: &policy.System{}}
	for _, query := range []string{"?start_date=yesterday", "?start_date=2026-05-04&end_date=04.05.2026", "?%zz"} {
		if _, refused := s.usedBetween(query, time.UTC); refused == nil || refused.status != http.StatusBadRequest {
			t.Errorf("%s: %+v", query, refused)
		}
	}
}

// TestDoorsAsk goes through the engine: who is answered, and how often.
func TestDoorsAsk(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for name, tc := range map[string]struct {
		key, method string
		status      int
		reason      string
	}{
		"a key in force":                         {keyGood, "GET", 200, "state_told"},
		"by HEAD":                                {keyGood, "HEAD", 200, "state_told"},
		"by POST":                                {keyGood, "POST", 405, "method_not_allowed"},
		"an expired one":                         {keyExpired, "GET", 200, "state_told"},
		"a disabled one":                         {keyDisabled, "GET", 401, "api_key_disabled"},
		"one of an application that is disabled": {keyClosed, "GET", 401, "application_disabled"},
		"one of an application that is not there": {keyOrphan, "GET", 401, "application_disabled"},
		"one that is unknown":                     {keyUnknown, "GET", 401, "key_unknown"},
	} {
		for _, path := range []string{"/v1/key", "/user/balance", "/prefix/api/user/self", "/api/usage/token/"} {
			x, answer := w.engine.Begin(w.head(call{key: tc.key, method: tc.method, path: path}))
			if x != nil || answer.Status != tc.status || answer.Reason != tc.reason {
				t.Errorf("%s at %s: %+v", name, path, answer)
			}
			if answer.Status == 200 && strings.Contains(string(answer.Body), w.keys[tc.key]) {
				t.Errorf("%s at %s quotes the key", name, path)
			}
		}
	}
	for i := range doorsAMinute + 1 {
		_, answer := w.engine.Begin(w.head(call{key: keyText, method: "GET", path: "/v1/key"}))
		want := 200
		if i == doorsAMinute {
			want = 429
		}
		if answer.Status != want {
			t.Fatalf("at the %dth time: %d %s", i+1, answer.Status, answer.Body)
		}
	}
}

func TestDoorLimiterForgets(t *testing.T) {
	t.Parallel()
	var l doorLimiter
	now := noon()
	for i := range 3 * maxDoorCounts {
		if l.wait(strings.Repeat("k", i%7)+time.Duration(i).String(), now) != 0 {
			t.Fatal("the first time has to wait")
		}
		if len(l.counts) > maxDoorCounts {
			t.Fatalf("%d counts are kept", len(l.counts))
		}
	}
	for range doorsAMinute {
		l.wait("busy", now)
	}
	if wait := l.wait("busy", now.Add(10*time.Second)); wait != 50*time.Second {
		t.Errorf("waits %v", wait)
	}
	if wait := l.wait("busy", now.Add(time.Minute)); wait != 0 {
		t.Errorf("after a minute it waits %v", wait)
	}
}

// TestCCSwitch runs the scripts of CC Switch's templates as they come, in a JavaScript engine: it fills in base URL and key, sends the request
// that the script asks for, and hands the answer to its extractor.
func TestCCSwitch(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		head := Head{Method: r.Method, Path: r.RequestURI, EndStream: true}
		for name, values := range r.Header {
			for _, v := range values {
				head.Headers = append(head.Headers, Header{strings.ToLower(name), v})
			}
		}
		_, answer := w.engine.Begin(head)
		for _, h := range answer.Headers {
			rw.Header().Set(h.Name, h.Value)
		}
		rw.WriteHeader(answer.Status)
		_, _ = rw.Write(answer.Body)
	}))
	defer server.Close()
	k, app, _ := w.table.find(policy.KeyHash(mint(t, keyGood).Hash()))
	budgeted := *k
	budgeted.Budgets = policy.Budgets{Daily: 5 * money.Unit, Monthly: policy.NoBudget}
	if err := w.table.Apply(&policy.Delta{Keys: []*policy.Key{&budgeted}}); err != nil {
		t.Fatal(err)
	}
	r, refusal, err := w.engine.ledger.Reserve(t.Context(), &ledger.Ask{
		Key: ledger.Account{ID: k.UID, Limits: limitsOf(policy.NoRateLimits(), budgeted.Budgets)}, Application: ledger.Account{ID: app.UID, Limits: limitsOf(app.Limits, app.Budgets)},
	})
	if err != nil || refusal != nil {
		t.Fatal(refusal, err)
	}
	if err := w.engine.ledger.Settle(&r, ledger.Settlement{Amounts: ledger.Amounts{Cost: 1_250_000_000}}); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		script, base, key string
		want              map[string]any
	}{
		"General":             {"general.js", "", keyGood, map[string]any{"isValid": true, "remaining": 3.75, "unit": "USD"}},
		"General below /v1":   {"general.js", "/v1", keyGood, map[string]any{"isValid": true, "remaining": 3.75, "unit": "USD"}},
		"General, expired":    {"general.js", "", keyExpired, map[string]any{"isValid": true, "remaining": float64(unlimited), "unit": "USD"}},
		"New API":             {"newapi.js", "", keyGood, map[string]any{"planName": "Shop", "remaining": 3.75, "used": 1.25, "total": 5.0, "unit": "USD"}},
		"New API, of no good": {"newapi.js", "", keyDisabled, map[string]any{"isValid": false, "invalidMessage": "查询失败"}},
	} {
		t.Run(name, func(t *testing.T) {
			got := runUsageScript(t, tc.script, server.URL+tc.base, w.keys[tc.key])
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("the card shows (-want +got):\n%s", diff)
			}
		})
	}
}

// runUsageScript is what CC Switch does with a usage script.
func runUsageScript(t *testing.T, name, base, key string) map[string]any {
	t.Helper()
	source, err := os.ReadFile(filepath.Join("testdata", "ccswitch", name))
	if err != nil {
		t.Fatal(err)
	}
	script := strings.NewReplacer("{{baseUrl}}", base, "{{apiKey}}", key, "{{accessToken}}", key, "{{userId}}", "1").Replace(string(source))
	vm := goja.New()
	config, err := vm.RunString(script)
	if err != nil {
		t.Fatal(err)
	}
	var request struct {
		Request struct {
			URL     string            `json:"url"`
			Method  string            `json:"method"`
			Headers map[string]string `json:"headers"`
		} `json:"request"`
	}
	object := config.ToObject(vm)
	text, err := object.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &request); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(request.Request.URL, base) {
		t.Fatalf("the script asks %s, which its sandbox forbids", request.Request.URL)
	}
	req, err := http.NewRequestWithContext(t.Context(), request.Request.Method, request.Request.URL, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range request.Request.Headers {
		req.Header.Set(name, value)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	extract, ok := goja.AssertFunction(object.Get("extractor"))
	if !ok {
		t.Fatal("the script has no extractor")
	}
	parsed, err := vm.RunString("(" + string(body) + ")")
	if err != nil {
		t.Fatal(err)
	}
	result, err := extract(goja.Undefined(), parsed)
	if err != nil {
		t.Fatal(err)
	}
	out, err := result.ToObject(vm).MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	var card map[string]any
	if err := json.Unmarshal(out, &card); err != nil {
		t.Fatal(err)
	}
	return card
}
