package enforce

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/latchkey-dev/latchkey/internal/ledger"
	"github.com/latchkey-dev/latchkey/internal/money"
	"github.com/latchkey-dev/latchkey/internal/policy"
)

// unlimited is what readers that want a number are told where there is no budget: in units of the currency.
const unlimited = 100_000_000

// The states of a key, as its holder is told.
const (
	stateActive    = "active"
	stateExpired   = "expired"
	stateExhausted = "budget_exhausted"
)

// budgetWindow is one budget, as it stands.
type budgetWindow struct {
	scope   string // key or application
	period  string // daily or monthly
	cap     money.Amount
	used    money.Amount
	held    money.Amount // by requests under way
	resets  time.Time
	planned string // a name for people
}

// remaining is what is left of the budget. What requests under way hold is not taken off: it comes and goes.
func (w *budgetWindow) remaining() money.Amount { return max(w.cap-w.used, 0) }

// statement is what the holder of a key is told of it.
type statement struct {
	key        *policy.Key
	credential policy.Credential // the one that was presented
	app        *policy.Application
	system     *policy.System
	effective  policy.Effective
	models     []string
	state      string
	windows    []budgetWindow // the tightest first
	balance    ledger.Balance // of the key
	requests   [2]int64       // limit per minute (policy.Unset: none), and what remains
	tokens     [2]int64
	now        time.Time
}

// newStatement puts together how a key stands at now.
func newStatement(k *policy.Key, presented *policy.Credential, app *policy.Application, system *policy.System, models []string, ofKey, ofApp ledger.Balance, now time.Time) statement {
	s := statement{
		key: k, app: app, system: system, effective: policy.EffectiveFor(k, app, system), models: models, state: stateActive, balance: ofKey, now: now,
	}
	if presented != nil {
		s.credential = *presented
	}
	for _, side := range [...]struct {
		scope   string
		name    string
		budgets policy.Budgets
		b       *ledger.Balance
	}{{"key", k.DisplayName, k.Budgets, &ofKey}, {"application", app.DisplayName, app.Budgets, &ofApp}} {
		for _, w := range [...]struct {
			period string
			cap    money.Amount
			p      *ledger.Period
		}{{"daily", side.budgets.Daily, &side.b.Day}, {"monthly", side.budgets.Monthly, &side.b.Month}} {
			if w.cap < 0 {
				continue
			}
			s.windows = append(s.windows, budgetWindow{
				scope: side.scope, period: w.period, cap: w.cap, used: w.p.Spent, held: w.p.Reserved, resets: w.p.End,
				planned: fmt.Sprintf("%s (%s, %s)", side.name, side.scope, w.period),
			})
		}
	}
	slices.SortStableFunc(s.windows, func(a, b budgetWindow) int {
		switch ra, rb := a.remaining(), b.remaining(); {
		case ra < rb:
			return -1
		case ra > rb:
			return 1
		}
		return 0
	})
	s.requests = standingIn(policy.KeyLimits(k, system).RequestsPerMinute, ofKey.RequestsInMinute, app.Limits.RequestsPerMinute, ofApp.RequestsInMinute)
	s.tokens = standingIn(policy.KeyLimits(k, system).TokensPerMinute, ofKey.TokensInMinute+ofKey.TokensReserved,
		app.Limits.TokensPerMinute, ofApp.TokensInMinute+ofApp.TokensReserved)
	switch {
	case k.ExpiredAt(now):
		s.state = stateExpired
	case len(s.windows) > 0 && s.windows[0].remaining() == 0:
		s.state = stateExhausted
	}
	return s
}

// standingIn is the tighter of two limits per minute, and what remains of it.
func standingIn(keyLimit policy.Limit, keyUsed int64, appLimit policy.Limit, appUsed int64) [2]int64 {
	tight := [2]int64{int64(policy.Unset), 0}
	for _, l := range [...]struct {
		limit policy.Limit
		used  int64
	}{{keyLimit, keyUsed}, {appLimit, appUsed}} {
		if left := max(int64(l.limit)-l.used, 0); l.limit.IsSet() && (tight[0] < 0 || left < tight[1]) {
			tight = [2]int64{int64(l.limit), left}
		}
	}
	return tight
}

// tightest is the budget of which least is left; nil: there is none.
func (s *statement) tightest() *budgetWindow {
	if len(s.windows) == 0 {
		return nil
	}
	return &s.windows[0]
}

// left, used and total are those of the tightest budget; without one, of this month and an unlimited one.
func (s *statement) left() money.Amount {
	if w := s.tightest(); w != nil {
		return w.remaining()
	}
	return unlimited * money.Unit
}

func (s *statement) used() money.Amount {
	if w := s.tightest(); w != nil {
		return w.used
	}
	return s.balance.Month.Spent
}

// number is an amount as a JSON number, exactly.
func number(a money.Amount) json.Number { return json.Number(a.String()) }

// quotaOf is an amount in New API's units of 1/500000, rounded down.
func quotaOf(a money.Amount) int64 { return int64(a) / 2_000 }

// quotaUsed is the same, rounded up.
func quotaUsed(a money.Amount) int64 { return (int64(a) + 1_999) / 2_000 }

// cents is an amount in hundredths, as a JSON number, exactly.
func cents(a money.Amount) json.Number {
	whole, rest := int64(a)/10_000_000, int64(a)%10_000_000
	if rest == 0 {
		return json.Number(fmt.Sprint(whole))
	}
	return json.Number(strings.TrimRight(fmt.Sprintf("%d.%07d", whole, rest), "0"))
}

// fixed is an amount with two decimals at least, for readers that show it as it is.
func fixed(a money.Amount) string {
	text := a.String()
	whole, fraction, _ := strings.Cut(text, ".")
	for len(fraction) < 2 {
		fraction += "0"
	}
	return whole + "." + fraction
}

// expires is when the secret that was presented is refused: with the key, or earlier if it was replaced by a rotation. Zero: never.
func (s *statement) expires() time.Time {
	at, ends := s.key.Expires, s.credential.Ends
	if at.IsZero() || (!ends.IsZero() && ends.Before(at)) {
		return ends
	}
	return at
}

// expiry is the same in RFC 3339; nil: never.
func (s *statement) expiry() *string {
	at := s.expires()
	if at.IsZero() {
		return nil
	}
	return new(at.UTC().Format(time.RFC3339))
}

// expiryUnix is the same in seconds since 1970; 0: never.
func (s *statement) expiryUnix() int64 {
	at := s.expires()
	if at.IsZero() {
		return 0
	}
	return at.Unix()
}
