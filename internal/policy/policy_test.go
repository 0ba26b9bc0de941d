package policy

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/latchkey-dev/latchkey/internal/money"
)

func TestRangeApply(t *testing.T) {
	t.Parallel()
	r := Range{Default: 60, Max: 600}
	for name, tc := range map[string]struct {
		r       Range
		own     Limit
		want    Limit
		clamped bool
	}{
		"unset takes the default":                         {r, Unset, 60, false},
		"below the maximum stands":                        {r, 599, 599, false},
		"the maximum itself is not clamped":               {r, 600, 600, false},
		"above the maximum is clamped":                    {r, 601, 600, true},
		"zero stands, since it means refuse":              {r, 0, 0, false},
		"a maximum of zero refuses all":                   {Range{Default: 0, Max: 0}, 5, 0, true},
		"a default above the maximum never passes it":     {Range{Default: 10, Max: 3}, Unset, 3, false},
		"a clamped limit under a maximum of zero is zero": {Range{}, Unset, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, clamped := tc.r.Apply(tc.own)
			if got != tc.want || clamped != tc.clamped {
				t.Fatalf("Apply(%d) = %d, %v; want %d, %v", tc.own, got, clamped, tc.want, tc.clamped)
			}
		})
	}
}

func TestEffectiveFor(t *testing.T) {
	t.Parallel()
	sys := DefaultSystem()
	key := Key{
		Capabilities: CapabilitiesOf(TextGeneration, WebSearch),
		Models:       ScopeOf("b", "a"),
		Limits:       RateLimits{RequestsPerMinute: 9_000, TokensPerMinute: Unset, ConcurrentRequests: 8},
		Budgets:      Budgets{Daily: 5 * money.Unit, Monthly: NoBudget},
	}
	app := Application{
		Capabilities: CapabilitiesOf(TextGeneration, Embeddings),
		Models:       ScopeOf("b", "c"),
		Limits:       RateLimits{RequestsPerMinute: Unset, TokensPerMinute: 50, ConcurrentRequests: 4},
		Budgets:      Budgets{Daily: 9 * money.Unit, Monthly: 0},
	}
	clamps := []Clamp{{"requestsPerMinute", 9_000, 6_000}}
	for name, tc := range map[string]struct {
		app  *Application
		want Effective
	}{
		"without an application the key's own counts": {nil, Effective{
			Limits: RateLimits{6_000, 100_000, 8}, Daily: 5 * money.Unit, Monthly: NoBudget,
			Capabilities: key.Capabilities, Models: ScopeOf("a", "b"), Clamps: clamps,
		}},
		"with one the strictest of both counts": {&app, Effective{
			Limits: RateLimits{6_000, 50, 4}, Daily: 5 * money.Unit, Monthly: 0,
			Capabilities: CapabilitiesOf(TextGeneration), Models: ScopeOf("b"), Clamps: clamps,
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if diff := cmp.Diff(tc.want, EffectiveFor(&key, tc.app, &sys)); diff != "" {
				t.Fatalf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestEffectiveConcurrentRequests(t *testing.T) {
	t.Parallel()
	sys := DefaultSystem()
	for name, tc := range map[string]struct {
		key  Limit
		app  *Application
		want Limit
	}{
		"unset on both is no cap, since the system has no default": {Unset, &Application{Limits: NoRateLimits()}, Unset},
		"unset, without an application":                            {Unset, nil, Unset},
		"the key's own, without an application":                    {8, nil, 8},
		"the key's own, under an application without":              {8, &Application{Limits: NoRateLimits()}, 8},
		"the application's, for a key without":                     {Unset, &Application{Limits: RateLimits{ConcurrentRequests: 4}}, 4},
		"the application's, where it is the stricter":              {8, &Application{Limits: RateLimits{ConcurrentRequests: 4}}, 4},
		"the key's own, where it is the stricter":                  {2, &Application{Limits: RateLimits{ConcurrentRequests: 4}}, 2},
		"a key's zero refuses":                                     {0, &Application{Limits: RateLimits{ConcurrentRequests: 4}}, 0},
		"an application's zero refuses":                            {8, &Application{Limits: RateLimits{ConcurrentRequests: 0}}, 0},
		"the largest is not clamped":                               {1_000_000, nil, 1_000_000},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			key := Key{Limits: RateLimits{RequestsPerMinute: Unset, TokensPerMinute: Unset, ConcurrentRequests: tc.key}}
			got := EffectiveFor(&key, tc.app, &sys)
			if got.Limits.ConcurrentRequests != tc.want || len(got.Clamps) > 0 {
				t.Fatalf("concurrentRequests = %d, clamps %v; want %d and none", got.Limits.ConcurrentRequests, got.Clamps, tc.want)
			}
			if own := KeyLimits(&key, &sys).ConcurrentRequests; own != tc.key {
				t.Fatalf("on the key's own account %d, want %d", own, tc.key)
			}
		})
	}
}

func TestModelScope(t *testing.T) {
	t.Parallel()
	all, none := ModelScope{All: true}, ModelScope{}
	ab := ScopeOf("b", "a", "b")
	if !all.Allows("x") || none.Allows("") || none.Allows("x") || !ab.Allows("a") || ab.Allows("c") {
		t.Fatal("Allows is wrong")
	}
	if diff := cmp.Diff(ab, all.Intersect(ab)); diff != "" {
		t.Fatal(diff)
	}
	if got := ScopeOf("a").Intersect(ScopeOf("b")); got.All || len(got.Names) != 0 {
		t.Fatalf("scopes that share nothing intersect to %v", got)
	}
}

func TestCapabilitiesRoundTrip(t *testing.T) {
	t.Parallel()
	for _, c := range AllCapabilities.List() {
		back, ok := ParseCapability(c.String())
		if !ok || back != c {
			t.Errorf("%v does not come back", c)
		}
	}
	if _, ok := ParseCapability("textgeneration"); ok {
		t.Error("an unknown name was accepted")
	}
	if got := CapabilitiesOf(Embeddings).Missing(CapabilitiesOf(Embeddings, WebSearch)).String(); got != "WebSearch" {
		t.Errorf("missing = %q", got)
	}
}

func TestExpiredAt(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	k := Key{Expires: at}
	if k.ExpiredAt(at.Add(-1)) || !k.ExpiredAt(at) || (&Key{}).ExpiredAt(at) {
		t.Fatal("a key is refused from its expiration time on, to the nanosecond, and never without one")
	}
}

func TestSensitiveHidesItself(t *testing.T) {
	t.Parallel()
	p := Provider{Credential: "hunter2"}
	b, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	for _, shown := range []string{fmt.Sprintf("%v %+v %#v %s %q", p, p, p, p.Credential, p.Credential), string(b)} {
		if strings.Contains(shown, "hunter2") {
			t.Fatalf("the credential shows in %s", shown)
		}
	}
}
