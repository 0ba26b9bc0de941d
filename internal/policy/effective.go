package policy

import "github.com/latchkey-dev/latchkey/internal/money"

// The limits that apply where no system policy says otherwise. The CRD's texts name the same figures.
const (
	DefaultRequestsPerMinute Limit = 60
	MaxRequestsPerMinute     Limit = 6_000
	DefaultTokensPerMinute   Limit = 100_000
	MaxTokensPerMinute       Limit = 10_000_000
)

// DefaultSystem is what applies where there is no system policy.
func DefaultSystem() System {
	return System{
		Currency:          "USD",
		TimeZone:          "UTC",
		RequestsPerMinute: Range{Default: DefaultRequestsPerMinute, Max: MaxRequestsPerMinute},
		TokensPerMinute:   Range{Default: DefaultTokensPerMinute, Max: MaxTokensPerMinute},
	}
}

// Apply puts a key's own limit and the range together: the default where the limit is unset, the maximum where it is above it.
func (r Range) Apply(own Limit) (effective Limit, clamped bool) {
	if !own.IsSet() {
		own = r.Default
		return min(own, r.Max), false
	}
	return min(own, r.Max), own > r.Max
}

// KeyLimits are the rate limits of the key's own account: its own, defaulted and clamped by the system's. The application's limits
// are enforced on the application's account, beside these.
func KeyLimits(k *Key, sys *System) RateLimits {
	rpm, _ := sys.RequestsPerMinute.Apply(k.Limits.RequestsPerMinute)
	tpm, _ := sys.TokensPerMinute.Apply(k.Limits.TokensPerMinute)
	return RateLimits{RequestsPerMinute: rpm, TokensPerMinute: tpm, ConcurrentRequests: k.Limits.ConcurrentRequests}
}

// Clamp is a limit that the system's maximum has cut.
type Clamp struct {
	Field string // requestsPerMinute or tokensPerMinute
	Asked Limit
	Max   Limit
}

// Effective is what applies to a key once its own policy, its application's and the system's are put together.
type Effective struct {
	Limits       RateLimits
	Daily        money.Amount // NoBudget: none
	Monthly      money.Amount // NoBudget: none
	Capabilities Capabilities
	Models       ModelScope
	Clamps       []Clamp
}

// EffectiveFor puts the three together. Without an application (nil) the key's and the system's count.
func EffectiveFor(k *Key, app *Application, sys *System) Effective {
	eff := Effective{
		Limits:       KeyLimits(k, sys),
		Daily:        k.Budgets.Daily,
		Monthly:      k.Budgets.Monthly,
		Capabilities: k.Capabilities,
		Models:       k.Models,
	}
	if _, clamped := sys.RequestsPerMinute.Apply(k.Limits.RequestsPerMinute); clamped {
		eff.Clamps = append(eff.Clamps, Clamp{"requestsPerMinute", k.Limits.RequestsPerMinute, sys.RequestsPerMinute.Max})
	}
	if _, clamped := sys.TokensPerMinute.Apply(k.Limits.TokensPerMinute); clamped {
		eff.Clamps = append(eff.Clamps, Clamp{"tokensPerMinute", k.Limits.TokensPerMinute, sys.TokensPerMinute.Max})
	}
	if app == nil {
		return eff
	}
	eff.Limits.RequestsPerMinute = eff.Limits.RequestsPerMinute.Tighter(app.Limits.RequestsPerMinute)
	eff.Limits.TokensPerMinute = eff.Limits.TokensPerMinute.Tighter(app.Limits.TokensPerMinute)
	eff.Limits.ConcurrentRequests = eff.Limits.ConcurrentRequests.Tighter(app.Limits.ConcurrentRequests)
	eff.Daily = tighterBudget(eff.Daily, app.Budgets.Daily)
	eff.Monthly = tighterBudget(eff.Monthly, app.Budgets.Monthly)
	eff.Capabilities &= app.Capabilities
	eff.Models = eff.Models.Intersect(app.Models)
	return eff
}

func tighterBudget(a, b money.Amount) money.Amount {
	switch {
	case a < 0:
		return b
	case b < 0:
		return a
	}
	return min(a, b)
}
