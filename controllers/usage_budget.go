package controllers

import (
	"fmt"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/predicate"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	"github.com/latchkey-dev/latchkey/internal/compile"
	"github.com/latchkey-dev/latchkey/internal/money"
	"github.com/latchkey-dev/latchkey/internal/policy"
	"github.com/latchkey-dev/latchkey/internal/usage"
)

// budgetWindow is what a budget is for.
type budgetWindow uint8

const (
	windowDay budgetWindow = iota
	windowMonth
)

// adjective is the window as messages name it.
func (w budgetWindow) adjective() string {
	if w == windowDay {
		return "daily"
	}
	return "monthly"
}

// of is the part of the usage that the window is of; nil: nothing is known of it.
func (w budgetWindow) of(u *v1alpha1.Usage) *v1alpha1.UsageTotals {
	switch {
	case u == nil:
		return nil
	case w == windowDay:
		return u.Day
	}
	return u.Month
}

// cap is the window's budget; policy.NoBudget: none.
func (w budgetWindow) cap(b *v1alpha1.Budgets) money.Amount {
	if b == nil {
		return policy.NoBudget
	}
	said := b.Daily
	if w == windowMonth {
		said = b.Monthly
	}
	if said == nil {
		return policy.NoBudget
	}
	amount, err := money.Parse(string(*said))
	if err != nil {
		return policy.NoBudget // the compiler says so, in Ready
	}
	return amount
}

// spentIn is what the usage says was spent in a period: nothing, where it speaks of another.
func (w budgetWindow) spentIn(u *v1alpha1.Usage, period string) money.Amount {
	if t := w.of(u); t != nil && t.Period == period {
		return parseSpend(t.Spent)
	}
	return 0
}

// period is the one that the moment falls into.
func (w budgetWindow) period(now time.Time, zone *time.Location) usage.Period {
	if w == windowDay {
		return usage.DayOf(now, zone)
	}
	return usage.MonthOf(now, zone)
}

// nearly is the least that is 80 % of a cap.
func nearly(limit money.Amount) money.Amount { return limit - limit/5 }

// budgetTerms are money and time as the SystemPolicy has them.
type budgetTerms struct {
	currency string
	zone     *time.Location
}

// termsOf reads currency and time zone out of the SystemPolicy (nil: there is none).
func termsOf(p *v1alpha1.SystemPolicy) budgetTerms {
	system, _ := compile.System(p)
	zone, err := time.LoadLocation(system.TimeZone)
	if err != nil {
		zone = time.UTC // the compiler has put the default in place of what cannot be
	}
	return budgetTerms{system.Currency, zone}
}

// exhaustion is a budget that is used up.
type exhaustion struct {
	message string
	reset   time.Time // zero: never by itself
}

// How messages on an object name the object itself.
const (
	thisKey         = "this key"
	thisApplication = "this application"
)

// budgetHolder is whose budgets and whose usage.
type budgetHolder struct {
	name    string // as messages name it
	budgets *v1alpha1.Budgets
	usage   *v1alpha1.Usage
}

// exhausted is the first budget found used up, in the order in which the ledger looks: the day before the month, and in each the key's
// before the application's. nil: there is room in all.
func exhausted(now time.Time, terms budgetTerms, holders ...budgetHolder) *exhaustion {
	for _, window := range []budgetWindow{windowDay, windowMonth} {
		for _, h := range holders {
			limit := window.cap(h.budgets)
			if limit < 0 {
				continue
			}
			period := window.period(now, terms.zone)
			spent := window.spentIn(h.usage, period.Name)
			switch {
			case limit == 0:
				return &exhaustion{message: fmt.Sprintf("the %s budget of %s is 0, which refuses everything: raise it", window.adjective(), h.name)}
			case spent >= limit:
				return &exhaustion{fmt.Sprintf("the %s budget of %s is used up: %s of %s %s spent in %s; it begins anew at %s, or raise it",
					window.adjective(), h.name, spent, limit, terms.currency, period.Name, period.End.In(terms.zone).Format(time.RFC3339)), period.End}
			}
		}
	}
	return nil
}

// spentBudget is the budget, the key's or its application's, by which the key's requests are refused; nil: none is.
func spentBudget(s *keyScope, now time.Time) *exhaustion {
	if s.key.Spec.Budgets == nil && (s.app == nil || s.app.Spec.Budgets == nil) {
		return nil // which spares most keys the look-up of a time zone
	}
	holders := []budgetHolder{{thisKey, s.key.Spec.Budgets, s.key.Status.Usage}}
	if s.app != nil {
		holders = append(holders, budgetHolder{"Application " + s.app.Name, s.app.Spec.Budgets, s.app.Status.Usage})
	}
	return exhausted(now, termsOf(s.policy), holders...)
}

// budgetState is what of an object's usage decides on conditions: in which periods budgets are used up, and whether requests are refused
// for it.
type budgetState struct {
	day, month string // the period; empty: there is room
	blocked    bool
}

func budgetStateOf(b *v1alpha1.Budgets, u *v1alpha1.Usage) budgetState {
	full := func(w budgetWindow) string {
		limit, totals := w.cap(b), w.of(u)
		if limit < 0 || totals == nil || parseSpend(totals.Spent) < limit {
			return ""
		}
		return totals.Period
	}
	return budgetState{full(windowDay), full(windowMonth), u != nil && u.BlockedTime != nil}
}

// budgetNews passes the updates of usage that conditions depend on, of which there are few: most updates of usage are of no
// consequence.
func budgetNews() predicate.Predicate {
	return predicate.Funcs{
		CreateFunc:  func(event.CreateEvent) bool { return false },
		DeleteFunc:  func(event.DeleteEvent) bool { return false },
		GenericFunc: func(event.GenericEvent) bool { return false },
		UpdateFunc: func(e event.UpdateEvent) bool {
			switch after := e.ObjectNew.(type) {
			case *v1alpha1.APIKey:
				before, ok := e.ObjectOld.(*v1alpha1.APIKey)
				return ok && budgetStateOf(after.Spec.Budgets, before.Status.Usage) != budgetStateOf(after.Spec.Budgets, after.Status.Usage)
			case *v1alpha1.Application:
				before, ok := e.ObjectOld.(*v1alpha1.Application)
				return ok && budgetStateOf(after.Spec.Budgets, before.Status.Usage) != budgetStateOf(after.Spec.Budgets, after.Status.Usage)
			}
			return false
		},
	}
}

// budgetMark is a part of a budget that has been reached by what was spent.
type budgetMark struct {
	reason  string
	message string
}

// marksReached are those that lie between what was known and what is: each is reached once in a period. Moments are those of now.
func marksReached(name string, b *v1alpha1.Budgets, before, after *v1alpha1.Usage, now time.Time, terms budgetTerms) []budgetMark {
	var marks []budgetMark
	for _, window := range []budgetWindow{windowDay, windowMonth} {
		limit, totals := window.cap(b), window.of(after)
		if limit <= 0 || totals == nil {
			continue // a budget of 0 is not reached by anything: it always was
		}
		was, is := window.spentIn(before, totals.Period), parseSpend(totals.Spent)
		resets := ""
		if p := window.period(now, terms.zone); p.Name == totals.Period {
			resets = "; it begins anew at " + p.End.In(terms.zone).Format(time.RFC3339)
		}
		for _, mark := range []struct {
			at     money.Amount
			reason string
			says   string
		}{
			{nearly(limit), v1alpha1.ReasonBudgetNearlyExhausted, "has reached 80 %"},
			{limit, v1alpha1.ReasonBudgetExhausted, "is used up"},
		} {
			if was < mark.at && is >= mark.at {
				marks = append(marks, budgetMark{mark.reason, fmt.Sprintf("the %s budget of %s %s: %s of %s %s spent in %s%s",
					window.adjective(), name, mark.says, is, limit, terms.currency, totals.Period, resets)})
			}
		}
	}
	return marks
}
