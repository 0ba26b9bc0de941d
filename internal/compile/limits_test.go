package compile

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	"github.com/latchkey-dev/latchkey/internal/money"
	"github.com/latchkey-dev/latchkey/internal/policy"
)

func priced(prices *v1alpha1.Prices) *v1alpha1.Model {
	return &v1alpha1.Model{ObjectMeta: metav1.ObjectMeta{Name: "gpt"}, Spec: v1alpha1.ModelSpec{
		ProviderRef: v1alpha1.ProviderReference{Name: "openai"}, Capabilities: []v1alpha1.Capability{v1alpha1.CapabilityTextGeneration}, Prices: prices,
	}}
}

func amount(s string) *v1alpha1.Money { return new(v1alpha1.Money(s)) }

func TestPrices(t *testing.T) {
	t.Parallel()
	const unit = money.Unit
	with := func(set func(*policy.Prices)) *policy.Prices {
		p := policy.NoPrices()
		set(&p)
		return &p
	}
	for name, tc := range map[string]struct {
		in   *v1alpha1.Prices
		want *policy.Prices
	}{
		"none are none": {nil, nil},
		"every kind of token has its place": {&v1alpha1.Prices{PerMillionTokens: &v1alpha1.TokenPrices{
			Input: amount("1"), CachedInput: amount("2"), CacheWrite: amount("3"), CacheWriteOneHour: amount("4"), Output: amount("5"),
			AudioInput: amount("6"), AudioOutput: amount("7"), ImageInput: amount("8"), ImageOutput: amount("9"),
		}}, with(func(p *policy.Prices) {
			p.Input, p.CachedInput, p.CacheWrite, p.CacheWriteOneHour, p.Output = unit, 2*unit, 3*unit, 4*unit, 5*unit
			p.AudioInput, p.AudioOutput, p.ImageInput, p.ImageOutput = 6*unit, 7*unit, 8*unit, 9*unit
		})},
		"what is not set stays unset, and zero is a price": {&v1alpha1.Prices{PerMillionTokens: &v1alpha1.TokenPrices{Input: amount("0"), Output: amount("0.000000001")}},
			with(func(p *policy.Prices) { p.Input, p.Output = 0, 1 })},
		"images keep their order": {&v1alpha1.Prices{PerImage: []v1alpha1.ImagePrice{
			{Size: "1024x1024", Quality: "hd", Price: "0.08"}, {Size: "1024x1024", Price: "0.04"}, {Price: "0.06"},
		}}, with(func(p *policy.Prices) {
			p.Images = []policy.ImagePrice{{Size: "1024x1024", Quality: "hd", Price: 80_000_000}, {Size: "1024x1024", Price: 40_000_000}, {Price: 60_000_000}}
		})},
		"characters, minutes and searches": {&v1alpha1.Prices{PerMillionCharacters: amount("15"), PerMinute: amount("0.006"), PerSearch: amount("0.01")},
			with(func(p *policy.Prices) {
				p.PerMillionCharacters, p.PerMinute, p.PerSearch = 15*unit, 6_000_000, 10_000_000
			})},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, problems := Model(priced(tc.in), &v1alpha1.Provider{})
			if problems != nil {
				t.Fatalf("problems %v", problems)
			}
			if diff := cmp.Diff(tc.want, got.Prices); diff != "" {
				t.Fatalf("-want +got:\n%s", diff)
			}
		})
	}
}

// TestAModelWithAPriceThatCannotBeRead takes objects that have come past the schema: a price that is left out of the sum would make
// requests free.
func TestAModelWithAPriceThatCannotBeRead(t *testing.T) {
	t.Parallel()
	tokens := func(set func(*v1alpha1.TokenPrices)) *v1alpha1.Prices {
		p := v1alpha1.TokenPrices{Input: amount("1"), Output: amount("1")}
		set(&p)
		return &v1alpha1.Prices{PerMillionTokens: &p}
	}
	bad := amount("1e3")
	for field, in := range map[string]*v1alpha1.Prices{
		"spec.prices.perMillionTokens.input":             tokens(func(p *v1alpha1.TokenPrices) { p.Input = bad }),
		"spec.prices.perMillionTokens.cachedInput":       tokens(func(p *v1alpha1.TokenPrices) { p.CachedInput = bad }),
		"spec.prices.perMillionTokens.cacheWrite":        tokens(func(p *v1alpha1.TokenPrices) { p.CacheWrite = bad }),
		"spec.prices.perMillionTokens.cacheWriteOneHour": tokens(func(p *v1alpha1.TokenPrices) { p.CacheWriteOneHour = bad }),
		"spec.prices.perMillionTokens.output":            tokens(func(p *v1alpha1.TokenPrices) { p.Output = bad }),
		"spec.prices.perMillionTokens.audioInput":        tokens(func(p *v1alpha1.TokenPrices) { p.AudioInput = bad }),
		"spec.prices.perMillionTokens.audioOutput":       tokens(func(p *v1alpha1.TokenPrices) { p.AudioOutput = bad }),
		"spec.prices.perMillionTokens.imageInput":        tokens(func(p *v1alpha1.TokenPrices) { p.ImageInput = bad }),
		"spec.prices.perMillionTokens.imageOutput":       tokens(func(p *v1alpha1.TokenPrices) { p.ImageOutput = bad }),
		"spec.prices.perImage[1].price":                  {PerImage: []v1alpha1.ImagePrice{{Size: "a", Price: "1"}, {Price: *bad}}},
		"spec.prices.perMillionCharacters":               {PerMillionCharacters: bad},
		"spec.prices.perMinute":                          {PerMinute: bad},
		"spec.prices.perSearch":                          {PerSearch: bad},
	} {
		t.Run(field, func(t *testing.T) {
			t.Parallel()
			got, problems := Model(priced(in), &v1alpha1.Provider{})
			if got != nil {
				t.Fatalf("published: %+v", got)
			}
			if len(problems) != 1 || problems[0].Reason != v1alpha1.ReasonInvalid || !problems[0].Stalled {
				t.Fatalf("problems %v", problems)
			}
			for _, want := range []string{field + ": ", `"1e3"`, `such as "12.50"`} {
				if !strings.Contains(problems[0].Message, want) {
					t.Errorf("message %q does not say %q", problems[0].Message, want)
				}
			}
		})
	}
	t.Run("all of them are named at once", func(t *testing.T) {
		t.Parallel()
		_, problems := Model(priced(&v1alpha1.Prices{PerMinute: amount("-1"), PerSearch: amount("")}), &v1alpha1.Provider{})
		if len(problems) != 2 || !strings.Contains(problems[0].Message, "perMinute") || !strings.Contains(problems[1].Message, "perSearch") {
			t.Fatalf("problems %v", problems)
		}
	})
}

func TestMaximaOfAModel(t *testing.T) {
	t.Parallel()
	m := priced(nil)
	m.Spec.MaxInputTokens, m.Spec.MaxOutputTokens = new(int64(200_000)), new(int64(8192))
	got, problems := Model(m, &v1alpha1.Provider{})
	if problems != nil || got.MaxInputTokens != 200_000 || got.MaxOutputTokens != 8192 {
		t.Fatalf("Model = %+v, %v", got, problems)
	}
}

func TestConcurrentRequests(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		in   *v1alpha1.RateLimits
		want policy.RateLimits
	}{
		"no limits at all":    {nil, policy.NoRateLimits()},
		"other limits alone":  {&v1alpha1.RateLimits{RequestsPerMinute: new(int64(6))}, policy.RateLimits{RequestsPerMinute: 6, TokensPerMinute: policy.Unset, ConcurrentRequests: policy.Unset}},
		"this one alone":      {&v1alpha1.RateLimits{ConcurrentRequests: new(int64(4))}, policy.RateLimits{RequestsPerMinute: policy.Unset, TokensPerMinute: policy.Unset, ConcurrentRequests: 4}},
		"zero, which refuses": {&v1alpha1.RateLimits{ConcurrentRequests: new(int64(0))}, policy.RateLimits{RequestsPerMinute: policy.Unset, TokensPerMinute: policy.Unset}},
		"beside the other limits": {&v1alpha1.RateLimits{RequestsPerMinute: new(int64(1)), TokensPerMinute: new(int64(2)), ConcurrentRequests: new(int64(3))},
			policy.RateLimits{RequestsPerMinute: 1, TokensPerMinute: 2, ConcurrentRequests: 3}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := apiKey(func(k *v1alpha1.APIKey) { k.Spec.RateLimits = tc.in })
			key, _ := Key(k, keySecret())
			app, _ := Application(&v1alpha1.Application{Spec: v1alpha1.ApplicationSpec{RateLimits: tc.in}})
			for who, got := range map[string]policy.RateLimits{"key": key.Limits, "key without its Secret": Policy(k).Limits, "application": app.Limits} {
				if diff := cmp.Diff(tc.want, got); diff != "" {
					t.Errorf("of the %s, -want +got:\n%s", who, diff)
				}
			}
		})
	}
}

func TestSystemBudgets(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		in       *v1alpha1.BudgetPolicy
		unpriced policy.Unpriced
		failure  policy.OnFailure
	}{
		"none refuses both":                    {nil, policy.UnpricedRefuse, policy.OnFailureRefuse},
		"one that says nothing refuses both":   {&v1alpha1.BudgetPolicy{}, policy.UnpricedRefuse, policy.OnFailureRefuse},
		"one that refuses both":                {&v1alpha1.BudgetPolicy{UnpricedModels: v1alpha1.UnpricedRefuse, OnLedgerFailure: v1alpha1.LedgerFailureRefuse}, policy.UnpricedRefuse, policy.OnFailureRefuse},
		"models without a price may be free":   {&v1alpha1.BudgetPolicy{UnpricedModels: v1alpha1.UnpricedCountAsFree}, policy.UnpricedFree, policy.OnFailureRefuse},
		"a failing ledger may let requests by": {&v1alpha1.BudgetPolicy{OnLedgerFailure: v1alpha1.LedgerFailureAllow}, policy.UnpricedRefuse, policy.OnFailureAllow},
		"what is unknown refuses":              {&v1alpha1.BudgetPolicy{UnpricedModels: "Guess", OnLedgerFailure: "allow"}, policy.UnpricedRefuse, policy.OnFailureRefuse},
		"both at once":                         {&v1alpha1.BudgetPolicy{UnpricedModels: v1alpha1.UnpricedCountAsFree, OnLedgerFailure: v1alpha1.LedgerFailureAllow}, policy.UnpricedFree, policy.OnFailureAllow},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			want := policy.DefaultSystem()
			want.UnpricedModels, want.LedgerFailure = tc.unpriced, tc.failure
			got, problems := System(&v1alpha1.SystemPolicy{Spec: v1alpha1.SystemPolicySpec{Budgets: tc.in}})
			if diff := cmp.Diff(&want, got); diff != "" || problems != nil {
				t.Fatalf("problems %v, -want +got:\n%s", problems, diff)
			}
		})
	}
	t.Run("a time zone that is none leaves the budgets' policy", func(t *testing.T) {
		t.Parallel()
		got, problems := System(&v1alpha1.SystemPolicy{Spec: v1alpha1.SystemPolicySpec{
			TimeZone: "Mars/Olympus", Budgets: &v1alpha1.BudgetPolicy{UnpricedModels: v1alpha1.UnpricedCountAsFree},
		}})
		if got.UnpricedModels != policy.UnpricedFree || len(problems) != 1 {
			t.Fatalf("System = %+v, %v", got, problems)
		}
	})
}
