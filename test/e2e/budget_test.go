package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	"github.com/latchkey-dev/latchkey/test/provider"
)

// busy is a client for many callers at once.
func busy(callers int) *http.Client {
	transport := &http.Transport{MaxIdleConns: callers, MaxIdleConnsPerHost: callers}
	return &http.Client{Transport: transport}
}

// perMillion are the prices of the models that these tests make.
type perMillion struct{ input, cached, output string }

func (p perMillion) spec() *v1alpha1.Prices {
	amount := func(s string) *v1alpha1.Money {
		if s == "" {
			return nil
		}
		return new(v1alpha1.Money(s))
	}
	return &v1alpha1.Prices{PerMillionTokens: &v1alpha1.TokenPrices{Input: amount(p.input), CachedInput: amount(p.cached), Output: amount(p.output)}}
}

// cost is what the tokens cost, rounded up to nano-units: reckoned in another way than the product's.
func (p perMillion) cost(t *testing.T, u provider.Usage) *big.Int {
	t.Helper()
	price := func(s string) *big.Rat {
		r, ok := new(big.Rat).SetString(s)
		if !ok {
			t.Fatalf("price %q", s)
		}
		return r
	}
	cached := p.cached
	if cached == "" {
		cached = p.input
	}
	sum := new(big.Rat)
	for _, part := range []struct {
		tokens int
		price  string
	}{{u.InputTokens - u.CachedTokens, p.input}, {u.CachedTokens, cached}, {u.OutputTokens, p.output}} {
		sum.Add(sum, new(big.Rat).Mul(big.NewRat(int64(part.tokens), 1), price(part.price)))
	}
	sum.Mul(sum, big.NewRat(1_000_000_000, 1_000_000)) // nano-units a token
	quotient, rest := new(big.Int).QuoRem(sum.Num(), sum.Denom(), new(big.Int))
	if rest.Sign() > 0 {
		quotient.Add(quotient, big.NewInt(1))
	}
	return quotient
}

// nanos reads an amount of money.
func nanos(t *testing.T, amount string) *big.Int {
	t.Helper()
	r, ok := new(big.Rat).SetString(amount)
	if !ok {
		t.Fatalf("amount %q", amount)
	}
	r.Mul(r, big.NewRat(1_000_000_000, 1))
	if !r.IsInt() {
		t.Fatalf("amount %q is finer than a nano-unit", amount)
	}
	return r.Num()
}

// pricedModel makes a Model of its own for a test, so that the provider's log tells its requests apart, and waits until it is enforced.
func pricedModel(t *testing.T, prices *v1alpha1.Prices, change ...func(*v1alpha1.ModelSpec)) *v1alpha1.Model {
	t.Helper()
	name := "priced-" + strconv.FormatInt(time.Now().UnixNano(), 36)
	m := modelOf(name, "openai", name, v1alpha1.CapabilityTextGeneration, v1alpha1.CapabilityWebSearch)
	m.Spec.Prices = prices
	for _, c := range change {
		c(&m.Spec)
	}
	if err := theStack.Client.Create(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	ctx := context.WithoutCancel(t.Context()) // the test's own has ended by the time of the clean-up
	t.Cleanup(func() {
		if err := theStack.Client.Delete(ctx, m); err != nil { // other tests list all models
			t.Error(err)
		}
	})
	if err := await(t.Context(), m, func() bool { return isTrue(m.Status.Conditions, v1alpha1.ConditionEnforced) }); err != nil {
		t.Fatal(err)
	}
	return m
}

// statement is what GET /v1/key says.
type statement struct {
	Data struct {
		Label          string       `json:"label"`
		Limit          *json.Number `json:"limit"`
		LimitRemaining *json.Number `json:"limit_remaining"`
		UsageDaily     json.Number  `json:"usage_daily"`
		UsageMonthly   json.Number  `json:"usage_monthly"`
		State          string       `json:"state"`
	} `json:"data"`
}

func state(t *testing.T, key string) statement {
	t.Helper()
	a := call(t, key, request{method: http.MethodGet, path: "/v1/key"})
	if a.status != http.StatusOK {
		t.Fatal(a)
	}
	var s statement
	decoder := json.NewDecoder(strings.NewReader(a.body))
	decoder.UseNumber()
	if err := decoder.Decode(&s); err != nil {
		t.Fatal(err)
	}
	return s
}

// spent is what the ledger says of the key's day.
func spent(t *testing.T, key string) *big.Int {
	return nanos(t, state(t, key).Data.UsageDaily.String())
}

// served are the finished requests that the provider's log has of a model.
func served(t *testing.T, model string) []provider.Record {
	t.Helper()
	f, err := os.Open(filepath.Join(theStack.Dir, "logs", "provider-requests.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	var found []provider.Record
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if !bytes.Contains(lines.Bytes(), []byte(model)) {
			continue
		}
		var r provider.Record
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			t.Fatal(err)
		}
		if r.Model == model {
			found = append(found, r)
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return found
}

// inParallel calls do for each number below n, from so many goroutines.
func inParallel(n, callers int, do func(i int)) {
	var next atomic.Int64
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				do(i)
			}
		})
	}
	wg.Wait()
}

// tally counts what callers were answered.
type tally struct {
	mu     sync.Mutex
	byCode map[string]int
	first  map[string]string
}

func newTally() *tally { return &tally{byCode: map[string]int{}, first: map[string]string{}} }

func (c *tally) add(code, example string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.byCode[code]++
	if c.first[code] == "" {
		c.first[code] = example
	}
}

func (c *tally) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return fmt.Sprintf("%v, for example %v", c.byCode, c.first)
}

// ask sends one request and reads the answer to its end.
func ask(c *http.Client, req *http.Request) (answer, error) {
	resp, err := c.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, string(body)}, err
}

// TestLedgerEqualsTheProvidersLog drives JSON and streamed requests by many callers at once, and has the provider's own log reckoned up.
func TestLedgerEqualsTheProvidersLog(t *testing.T) {
	const requests, callers = 10_000, 64
	prices := perMillion{input: "2.5", cached: "1.25", output: "9.999999999"}
	whole, cut := pricedModel(t, prices.spec()), pricedModel(t, prices.spec())
	tn := newTenant(t)
	unlimited := func(s *v1alpha1.APIKeySpec) { s.Budgets = &v1alpha1.Budgets{Daily: new(v1alpha1.Money("1000000"))} }
	_, key := tn.newKey("whole", unlimited)
	_, cutKey := tn.newKey("cut", unlimited)
	c := busy(callers)
	defer c.CloseIdleConnections()

	seen := newTally()
	var least sync.Mutex
	delivered := new(big.Int) // of the streams cut off, as their callers saw it
	cutOff := 0
	inParallel(requests, callers, func(i int) {
		text := fmt.Sprintf("Nenne %d Städte. sim:input-tokens=%d sim:cached=%d sim:output-tokens=%d sim:chunks=%d", i, 100+i%977, i%89, 10+i%53, 1+i%7)
		switch {
		case i%2 == 0:
			a, err := ask(c, request{body: chat(whole.Name, text)}.build(t, key))
			if err != nil || a.status != http.StatusOK {
				seen.add("bad", fmt.Sprint(a, err))
			}
		case i%20 != 1:
			body := strings.TrimSuffix(streamed(whole.Name, text), "}")
			if i%3 == 0 {
				body += `,"stream_options":{"include_usage":true}`
			}
			a, err := ask(c, request{body: body + "}"}.build(t, key))
			switch shows := strings.Contains(a.body, `"usage":{`); {
			case err != nil || a.status != http.StatusOK || !strings.HasSuffix(a.body, "data: [DONE]\n\n"):
				seen.add("bad", fmt.Sprint(a, err))
			case shows != (i%3 == 0):
				seen.add("usage shown or hidden wrongly", a.body)
			}
		default: // a tenth of the streams
			text := fmt.Sprintf("Zähle bis %d. sim:reply=%s", i, strings.Repeat("Größe und Menge ", 20))
			got, err := cutStream(c, request{body: streamed(cut.Name, "sim:chunks=40 sim:chunk-delay=2ms "+text)}.build(t, cutKey), 3+i%5)
			if err != nil {
				seen.add("bad", err.Error())
				return
			}
			u := provider.Usage{InputTokens: (len(text) + 3) / 4, OutputTokens: (got + 3) / 4}
			least.Lock()
			delivered.Add(delivered, prices.cost(t, u))
			cutOff++
			least.Unlock()
		}
	})
	if len(seen.byCode) > 0 {
		t.Fatal(seen)
	}

	want, answered := new(big.Int), 0
	for _, r := range served(t, whole.Name) {
		if r.Outcome != provider.OutcomeAnswered || r.Status != http.StatusOK || r.Reported == nil {
			t.Fatalf("the provider's log: %+v", r)
		}
		want.Add(want, prices.cost(t, *r.Reported))
		answered++
	}
	if answered != requests-cutOff {
		t.Fatalf("the provider answered %d requests, not %d", answered, requests-cutOff)
	}
	if got := spent(t, key); got.Cmp(want) != 0 {
		t.Errorf("the ledger says %s nano-units, the provider's log %s", got, want)
	}

	// Of the streams cut off the provider counts also what was on its way; so the truth lies between what callers saw and that.
	var got *big.Int
	eventually(t, "the streams cut off are settled", func() error {
		if n := len(served(t, cut.Name)); n != cutOff {
			return fmt.Errorf("%d of %d streams have ended", n, cutOff)
		}
		got = spent(t, cutKey)
		if got.Cmp(delivered) < 0 {
			return fmt.Errorf("the ledger says %s, less than the %s delivered", got, delivered)
		}
		return nil
	})
	most := new(big.Int)
	for _, r := range served(t, cut.Name) {
		most.Add(most, prices.cost(t, r.Consumed))
	}
	most.Mul(most, big.NewInt(2)) // the margin that docs/metering.md states
	if got.Cmp(most) > 0 {
		t.Errorf("of the streams cut off the ledger says %s, more than twice the %s that the provider did", got, new(big.Int).Rsh(most, 1))
	}
	t.Logf("%d answered: %s nano-units in both; %d cut off: %s delivered, %s charged", answered, want, cutOff, delivered, got)
}

// cutStream reads so many pieces of a stream's text, hangs up, and returns how many bytes of text there were.
func cutStream(c *http.Client, req *http.Request, pieces int) (int, error) {
	ctx, cancel := context.WithCancel(req.Context())
	defer cancel()
	resp, err := c.Do(req.WithContext(ctx))
	if err != nil {
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return 0, errors.New(resp.Status)
	}
	lines := bufio.NewScanner(resp.Body)
	text := 0
	for pieces > 0 && lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		var event struct {
			Choices []struct {
				Delta struct {
					Content string `json:"content"`
				} `json:"delta"`
			} `json:"choices"`
		}
		if err := json.Unmarshal([]byte(data), &event); err != nil {
			return 0, err
		}
		if len(event.Choices) == 1 && event.Choices[0].Delta.Content != "" {
			text += len(event.Choices[0].Delta.Content)
			pieces--
		}
	}
	return text, lines.Err()
}

// crowd sends n requests at once, and counts those that pass and the codes of the others.
func crowd(t *testing.T, n int, key, body string) (passed int, refused *tally) {
	t.Helper()
	c := busy(n)
	defer c.CloseIdleConnections()
	refused = newTally()
	var ok atomic.Int64
	inParallel(n, n, func(int) {
		a, err := ask(c, request{body: body}.build(t, key))
		switch {
		case err != nil:
			refused.add("error", err.Error())
		case a.status == http.StatusOK:
			ok.Add(1)
		default:
			refused.add(strconv.Itoa(a.status)+" "+a.code(), a.body)
		}
	})
	return int(ok.Load()), refused
}

// TestStrictIsNeverOverspent lets 200 callers loose at once on a budget that pays for 50, again and again.
func TestStrictIsNeverOverspent(t *testing.T) {
	// A request costs at most 100 output tokens, which is what it does cost: 0.001.
	m := pricedModel(t, perMillion{input: "0", output: "10"}.spec())
	body := strings.TrimSuffix(chat(m.Name, "sim:output-tokens=100"), "}") + `,"max_tokens":100}`
	tn := newTenant(t)
	for run := range 20 {
		_, key := tn.newKey(fmt.Sprintf("strict-%d", run), func(s *v1alpha1.APIKeySpec) {
			s.Budgets = &v1alpha1.Budgets{Monthly: new(v1alpha1.Money("0.05")), Enforcement: v1alpha1.BudgetEnforcementStrict}
		})
		passed, refused := crowd(t, 200, key, body)
		if passed != 50 || refused.byCode["429 insufficient_quota"] != 150 {
			t.Fatalf("run %d: %d passed, refused: %v", run, passed, refused)
		}
		if got := state(t, key).Data.UsageMonthly.String(); got != "0.05" {
			t.Fatalf("run %d: spent %s", run, got)
		}
	}
}

// TestUntilReachedStaysWithinItsBound does the same where the worst case is a hundred times what requests cost, and nothing has been
// learned yet: the cap is passed by less than one request's cost, and nobody is refused before it is reached.
func TestUntilReachedStaysWithinItsBound(t *testing.T) {
	m := pricedModel(t, perMillion{input: "0", output: "10"}.spec(), func(s *v1alpha1.ModelSpec) { s.MaxOutputTokens = new(int64(10_000)) })
	tn := newTenant(t)
	for name, tc := range map[string]struct {
		cap  string
		pass int
		cost string
	}{
		"a cap that is met exactly":     {"0.05", 50, "0.05"},
		"a cap between two requests":    {"0.0495", 50, "0.05"},
		"a cap of less than one":        {"0.0005", 1, "0.001"},
		"a cap that pays for all":       {"1", 200, "0.2"},
		"a cap of nothing pays nothing": {"0", 0, "0"},
	} {
		t.Run(name, func(t *testing.T) {
			_, key := tn.newKey("until-"+strconv.FormatInt(time.Now().UnixNano(), 36), func(s *v1alpha1.APIKeySpec) {
				s.Budgets = &v1alpha1.Budgets{Daily: new(v1alpha1.Money(tc.cap))}
			})
			passed, refused := crowd(t, 200, key, chat(m.Name, "sim:output-tokens=100"))
			if passed != tc.pass || refused.byCode["429 insufficient_quota"] != 200-tc.pass {
				t.Errorf("%d passed, refused: %v", passed, refused)
			}
			if got := state(t, key).Data.UsageDaily.String(); got != tc.cost {
				t.Errorf("spent %s", got)
			}
		})
	}
}

// TestEditsCountOnWhatIsSpent raises and lowers caps of keys and applications.
func TestEditsCountOnWhatIsSpent(t *testing.T) {
	m := pricedModel(t, perMillion{input: "0", output: "10"}.spec())
	tn := newTenant(t)
	k, key := tn.newKey("edited", func(s *v1alpha1.APIKeySpec) { s.Budgets = &v1alpha1.Budgets{Daily: new(v1alpha1.Money("0.002"))} })
	_, sibling := tn.newKey("sibling")
	r := request{body: chat(m.Name, "sim:output-tokens=100")}
	for range 2 {
		if a := call(t, key, r); a.status != http.StatusOK {
			t.Fatal(a)
		}
	}
	blocked := call(t, key, r)
	if blocked.status != http.StatusTooManyRequests || blocked.code() != "insufficient_quota" || blocked.header.Get("x-should-retry") != "false" {
		t.Fatal(blocked, blocked.header)
	}
	if wait, err := strconv.Atoi(blocked.header.Get("retry-after")); err != nil || wait < 1 || wait > 24*3600 {
		t.Errorf("retry-after %q", blocked.header.Get("retry-after"))
	}
	for _, part := range []string{"daily budget", key[:9], "0.002 USD", "resets at"} {
		if head := blocked.body[:min(len(blocked.body), 220)]; !strings.Contains(head, part) {
			t.Errorf("the refusal does not say %q at its beginning: %s", part, blocked.body)
		}
	}
	decided(t, sibling, r, http.StatusOK, "") // hurts no other key
	if s := state(t, key); s.Data.State != "budget_exhausted" || s.Data.LimitRemaining == nil || s.Data.LimitRemaining.String() != "0" {
		t.Errorf("an exhausted key's state: %+v", s.Data)
	}
	patch(t, k, `{"spec":{"budgets":{"daily":"0.01"}}}`)
	decided(t, key, r, http.StatusOK, "")
	patch(t, k, `{"spec":{"budgets":{"daily":"0.001"}}}`)
	decided(t, key, r, http.StatusTooManyRequests, "insufficient_quota")
	patch(t, k, `{"spec":{"budgets":null}}`)
	decided(t, key, r, http.StatusOK, "")
	patch(t, tn.application, `{"spec":{"budgets":{"monthly":"0.001"}}}`)
	decided(t, key, r, http.StatusTooManyRequests, "insufficient_quota")
	decided(t, sibling, r, http.StatusTooManyRequests, "insufficient_quota")
	if a := call(t, sibling, r); !strings.Contains(a.body, `monthly budget of the application`) {
		t.Error(a)
	}
	patch(t, tn.application, `{"spec":{"budgets":null,"rateLimits":{"requestsPerMinute":0}}}`)
	decided(t, sibling, r, http.StatusTooManyRequests, "rate_limit_exceeded")
	patch(t, tn.application, `{"spec":{"rateLimits":null}}`)
	decided(t, sibling, r, http.StatusOK, "")
}

// TestConcurrencyIsCapped holds one request, and has the next refused until the first has ended.
func TestConcurrencyIsCapped(t *testing.T) {
	tn := newTenant(t)
	_, key := tn.newKey("one-at-a-time", func(s *v1alpha1.APIKeySpec) { s.RateLimits = &v1alpha1.RateLimits{ConcurrentRequests: new(int64(1))} })
	mark := "cap-" + strconv.FormatInt(time.Now().UnixNano(), 36)
	resp, err := http.DefaultClient.Do(request{body: streamed("gpt-5-mini", "sim:chunks=2 sim:hold="+mark)}.build(t, key))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	a := call(t, key, request{})
	if a.status != http.StatusTooManyRequests || a.code() != "rate_limit_exceeded" || a.header.Get("retry-after") != "1" || !strings.Contains(a.body, "at one time") {
		t.Error(a, a.header)
	}
	eventually(t, "the stream is held", func() error { return control(t, http.MethodPost, "/_sim/release?id="+mark, nil) })
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		t.Fatal(err)
	}
	if a := call(t, key, request{}); a.status != http.StatusOK {
		t.Errorf("after the first has ended: %v", a)
	}
	// A caller who hangs up makes room, too.
	ctx, cancel := context.WithCancel(t.Context())
	again, err := http.DefaultClient.Do(request{body: streamed("gpt-5-mini", "sim:chunks=2 sim:hold="+mark+"-2")}.build(t, key).WithContext(ctx))
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	_ = again.Body.Close()
	decided(t, key, request{}, http.StatusOK, "")
}

// TestRateLimitsSayWhereCallersStand checks the headers of both dialects, and the refusal.
func TestRateLimitsSayWhereCallersStand(t *testing.T) {
	tn := newTenant(t)
	limited := func(s *v1alpha1.APIKeySpec) {
		s.RateLimits = &v1alpha1.RateLimits{RequestsPerMinute: new(int64(3)), TokensPerMinute: new(int64(1_000))}
	}
	_, key := tn.newKey("openai", limited)
	for i := range 3 {
		a := call(t, key, request{body: chat("gpt-5-mini", "sim:input-tokens=10 sim:output-tokens=5")})
		if a.status != http.StatusOK || a.header.Get("x-ratelimit-limit-requests") != "3" || a.header.Get("x-ratelimit-remaining-requests") != strconv.Itoa(2-i) ||
			a.header.Get("x-ratelimit-limit-tokens") != "1000" {
			t.Fatal(a, a.header)
		}
		if _, err := time.ParseDuration(a.header.Get("x-ratelimit-reset-requests")); err != nil {
			t.Error(err)
		}
	}
	a := call(t, key, request{})
	wait, err := strconv.Atoi(a.header.Get("retry-after"))
	if a.status != http.StatusTooManyRequests || a.code() != "rate_limit_exceeded" || err != nil || wait < 1 || wait > 61 ||
		!strings.Contains(a.body, fmt.Sprintf("try again in %ds", wait)) || !strings.Contains(a.body, `"type":"requests"`) ||
		a.header.Get("x-ratelimit-remaining-requests") != "0" || a.header.Get("x-should-retry") == "false" {
		t.Error(a, a.header)
	}

	_, key = tn.newKey("anthropic", limited)
	r := request{path: "/v1/messages", headers: map[string]string{"anthropic-version": "2023-06-01"},
		body: `{"model":"claude-sonnet-4-5","max_tokens":2000,"messages":[{"role":"user","content":"sim:input-tokens=900 sim:output-tokens=200"}]}`}
	a = call(t, key, r)
	if a.status != http.StatusOK || a.header.Get("anthropic-ratelimit-requests-limit") != "3" || a.header.Get("anthropic-ratelimit-requests-remaining") != "2" {
		t.Fatal(a, a.header)
	}
	if _, err := time.Parse(time.RFC3339, a.header.Get("anthropic-ratelimit-tokens-reset")); err != nil {
		t.Error(err)
	}
	a = call(t, key, r)
	if a.status != http.StatusTooManyRequests || a.code() != "rate_limit_error" || !strings.Contains(a.body, "tokens in any minute") {
		t.Error(a)
	}
}

// TestWhatHasNoPrice is refused under a budget, unless the policy counts it as free.
func TestWhatHasNoPrice(t *testing.T) {
	tn := newTenant(t)
	_, key := tn.newKey("budgeted", func(s *v1alpha1.APIKeySpec) { s.Budgets = &v1alpha1.Budgets{Daily: new(v1alpha1.Money("1"))} })
	r := request{body: chat("gpt-5-mini", "hi")}
	if a := call(t, key, r); a.status != http.StatusForbidden || !strings.Contains(a.body, "no price") {
		t.Error(a)
	}
	_, free := tn.newKey("no-budget")
	if a := call(t, free, r); a.status != http.StatusOK {
		t.Error(a)
	}
	spec := roomy()
	spec.Budgets = &v1alpha1.BudgetPolicy{UnpricedModels: v1alpha1.UnpricedCountAsFree}
	systemPolicy(t, spec)
	if a := call(t, key, r); a.status != http.StatusOK {
		t.Error(a)
	}
}

// TestWhatIsNotBilled are errors of the provider's, and requests that never reached it.
func TestWhatIsNotBilled(t *testing.T) {
	prices := perMillion{input: "1", output: "10"}.spec()
	m := pricedModel(t, prices)
	unreachable := pricedModel(t, prices, func(s *v1alpha1.ModelSpec) { s.ProviderRef.Name = "unreachable" })
	miscredentialed := pricedModel(t, prices, func(s *v1alpha1.ModelSpec) { s.ProviderRef.Name = "miscredentialed" })
	_, key := newTenant(t).newKey("errors", func(s *v1alpha1.APIKeySpec) {
		s.Budgets = &v1alpha1.Budgets{Daily: new(v1alpha1.Money("1")), Enforcement: v1alpha1.BudgetEnforcementStrict}
	})
	bounded := func(model, text string) request {
		return request{body: strings.TrimSuffix(chat(model, text), "}") + `,"max_tokens":50}`}
	}
	for name, tc := range map[string]struct {
		r      request
		status int
	}{
		"the provider's error":          {bounded(m.Name, "sim:status=500"), 500},
		"the provider's rate limit":     {bounded(m.Name, "sim:status=429"), 429},
		"a provider out of reach":       {bounded(unreachable.Name, "hi"), 503},
		"a bad credential of ours":      {bounded(miscredentialed.Name, "hi"), 502},
		"no upper bound under Strict":   {request{body: chat(m.Name, "hi")}, 400},
		"a request that makes no sense": {request{body: "{"}, 400},
	} {
		t.Run(name, func(t *testing.T) {
			if a := call(t, key, tc.r); a.status != tc.status {
				t.Fatal(a)
			}
			if s := state(t, key); s.Data.UsageDaily.String() != "0" || s.Data.LimitRemaining.String() != "1" {
				t.Errorf("billed: %+v", s.Data)
			}
		})
	}
}

// TestNothingIsForgottenByAKill kills the enforcer under load, again and again.
func TestNothingIsForgottenByAKill(t *testing.T) {
	m := pricedModel(t, perMillion{input: "0", output: "10"}.spec())
	k, key := newTenant(t).newKey("killed", func(s *v1alpha1.APIKeySpec) {
		s.Budgets = &v1alpha1.Budgets{Monthly: new(v1alpha1.Money("1")), Enforcement: v1alpha1.BudgetEnforcementStrict}
	})
	// Each costs at most and at least 0.001.
	body := strings.TrimSuffix(chat(m.Name, "sim:output-tokens=100"), "}") + `,"max_tokens":100}`
	c := busy(32)
	defer c.CloseIdleConnections()
	var answered atomic.Int64
	stop := make(chan struct{})
	var callers sync.WaitGroup
	for range 32 {
		callers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if a, err := ask(c, request{body: body}.build(t, key)); err == nil && a.status == http.StatusOK {
					answered.Add(1)
				}
			}
		})
	}
	for range 3 {
		before := answered.Load()
		eventually(t, "the load to flow", func() error {
			if answered.Load() < before+30 {
				return errors.New("too few answers")
			}
			return nil
		})
		if err := theStack.Enforcer.Kill(); err != nil {
			t.Fatal(err)
		}
		told := answered.Load()
		if err := theStack.Enforcer.Start(); err != nil {
			t.Fatal(err)
		}
		if err := theStack.AwaitEnforcer(t.Context()); err != nil {
			t.Fatal(err)
		}
		var got *big.Int
		eventually(t, "the gateway answers again", func() error {
			a, err := ask(c, request{method: http.MethodGet, path: "/v1/key"}.build(t, key))
			if err != nil || a.status != http.StatusOK {
				return fmt.Errorf("%v %w", a, err)
			}
			got = spent(t, key)
			return nil
		})
		if owed := new(big.Int).Mul(big.NewInt(told), big.NewInt(1_000_000)); got.Cmp(owed) < 0 {
			t.Errorf("callers had been answered for %s nano-units, and the ledger knows of %s", owed, got)
		}
	}
	eventually(t, "the budget to be used up", func() error {
		if a := call(t, key, request{body: body}); a.code() != "insufficient_quota" {
			return fmt.Errorf("got %v", a)
		}
		return nil
	})
	close(stop)
	callers.Wait()
	if got := state(t, key).Data.UsageMonthly.String(); got != "1" {
		t.Errorf("spent %s of 1", got)
	}
	if n := len(served(t, m.Name)); n > 1000 || int64(n) < answered.Load() {
		t.Errorf("the provider served %d requests, %d callers were answered, and the budget pays for 1000", n, answered.Load())
	}
	if err := await(t.Context(), k, func() bool { return usable(k) == v1alpha1.ReasonBudgetExhausted }); err != nil {
		t.Error(err)
	}
}

// TestUsageShowsInStatus follows what is spent into the objects, their columns and events, and back after the loss of the enforcer's disk.
func TestUsageShowsInStatus(t *testing.T) {
	ctx := t.Context()
	m := pricedModel(t, perMillion{input: "0", output: "10"}.spec())
	tn := newTenant(t)
	k, key := tn.newKey("watched", func(s *v1alpha1.APIKeySpec) { s.Budgets = &v1alpha1.Budgets{Daily: new(v1alpha1.Money("0.01"))} })
	r := request{body: chat(m.Name, "sim:input-tokens=50 sim:output-tokens=100")}
	for range 8 {
		if a := call(t, key, r); a.status != http.StatusOK {
			t.Fatal(a)
		}
	}
	spends := func(amount v1alpha1.Spend, requests int64) func() bool {
		return func() bool {
			u := k.Status.Usage
			return u != nil && u.Day != nil && u.Month != nil && u.Day.Spent == amount && u.Month.Spent == amount &&
				u.Day.Requests == requests && u.Day.Tokens == 150*requests && u.LastUsedTime != nil
		}
	}
	if err := await(ctx, k, spends("0.008", 8)); err != nil {
		t.Fatalf("%v; usage %+v", err, k.Status.Usage)
	}
	for range 2 {
		if a := call(t, key, r); a.status != http.StatusOK {
			t.Fatal(a)
		}
	}
	if a := call(t, key, r); a.code() != "insufficient_quota" {
		t.Fatal(a)
	}
	if err := await(ctx, k, func() bool {
		return spends("0.01", 10)() && usable(k) == v1alpha1.ReasonBudgetExhausted && k.Status.Usage.BlockedTime != nil
	}); err != nil {
		t.Fatalf("%v; usage %+v", err, k.Status.Usage)
	}
	if !isTrue(k.Status.Conditions, v1alpha1.ConditionReady) || !isTrue(k.Status.Conditions, v1alpha1.ConditionEnforced) {
		t.Errorf("an exhausted key is not ready: %s", describe(k))
	}
	if err := await(ctx, tn.application, func() bool {
		u := tn.application.Status.Usage
		return u != nil && u.Day != nil && u.Day.Spent == "0.01"
	}); err != nil {
		t.Error(err)
	}
	out, err := theStack.Kubectl(ctx, "get", "lkkey", k.Name, "-n", k.Namespace)
	if err != nil || !strings.Contains(out, "DAY SPENT") || !strings.Contains(out, "0.01") || !strings.Contains(out, v1alpha1.ReasonBudgetExhausted) {
		t.Errorf("kubectl get: %s %v", out, err)
	}
	for _, reason := range []string{v1alpha1.ReasonBudgetNearlyExhausted, v1alpha1.ReasonBudgetExhausted} {
		eventually(t, "an event "+reason, func() error {
			out, err := theStack.Kubectl(ctx, "get", "events", "-n", k.Namespace, "--field-selector", "type=Warning,involvedObject.kind=APIKey,reason="+reason, "-o", "name")
			if err == nil && strings.Count(out, "\n") != 1 {
				err = fmt.Errorf("got %q", out)
			}
			return err
		})
	}

	// The enforcer comes back without its disk.
	if err := theStack.Enforcer.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(theStack.Dir, "enforcer")); err != nil {
		t.Fatal(err)
	}
	if err := theStack.Enforcer.Start(); err != nil {
		t.Fatal(err)
	}
	if err := theStack.AwaitEnforcer(ctx); err != nil {
		t.Fatal(err)
	}
	decided(t, key, r, http.StatusTooManyRequests, "insufficient_quota")
	if got := state(t, key).Data.UsageDaily.String(); got != "0.01" {
		t.Errorf("after the loss of the disk the day's spend is %s", got)
	}

	patch(t, k, `{"spec":{"budgets":{"daily":"1"}}}`)
	decided(t, key, r, http.StatusOK, "")
	if err := await(ctx, k, func() bool { return usable(k) == v1alpha1.ReasonActive && k.Status.Usage.BlockedTime == nil }); err != nil {
		t.Errorf("%v; usage %+v", err, k.Status.Usage)
	}
	// Another who applies the object's spec does not take the usage away.
	if err := theStack.Client.Get(ctx, client.ObjectKeyFromObject(k), k); err != nil || k.Status.Usage == nil {
		t.Error(err, k.Status.Usage)
	}
}
