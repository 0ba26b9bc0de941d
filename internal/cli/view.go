package cli

import (
	"context"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	"github.com/latchkey-dev/latchkey/internal/compile"
	"github.com/latchkey-dev/latchkey/internal/money"
	"github.com/latchkey-dev/latchkey/internal/policy"
)

// calendar is the day and the month that budgets count in now.
type calendar struct {
	now      time.Time
	zone     *time.Location
	currency string
	system   *policy.System
}

// newCalendar reads the SystemPolicy; nil: there is none that may be read, and the defaults apply.
func newCalendar(sys *v1alpha1.SystemPolicy, now time.Time) calendar {
	system, _ := compile.System(sys)
	zone, err := time.LoadLocation(system.TimeZone)
	if err != nil { // a machine without a time zone database
		zone = time.UTC
	}
	return calendar{now: now, zone: zone, currency: system.Currency, system: system}
}

func (c calendar) day() string   { return c.now.In(c.zone).Format(time.DateOnly) }
func (c calendar) month() string { return c.now.In(c.zone).Format("2006-01") }

// at is the calendar as of now: a command can take a while.
func (p *plugin) at(c calendar) calendar {
	c.now = p.now()
	return c
}

// dayEnds is when the day's budget begins anew.
func (c calendar) dayEnds() time.Time {
	y, m, d := c.now.In(c.zone).Date()
	return time.Date(y, m, d+1, 0, 0, 0, 0, c.zone)
}

// monthEnds is when the month's budget begins anew.
func (c calendar) monthEnds() time.Time {
	y, m, _ := c.now.In(c.zone).Date()
	return time.Date(y, m+1, 1, 0, 0, 0, 0, c.zone)
}

// today is what status.usage says of the current day. A day that has passed counts nothing today.
func (c calendar) today(u *v1alpha1.Usage) v1alpha1.UsageTotals {
	if u == nil || u.Day == nil || u.Day.Period != c.day() {
		return v1alpha1.UsageTotals{Period: c.day()}
	}
	return *u.Day
}

// thisMonth is what status.usage says of the current month.
func (c calendar) thisMonth(u *v1alpha1.Usage) v1alpha1.UsageTotals {
	if u == nil || u.Month == nil || u.Month.Period != c.month() {
		return v1alpha1.UsageTotals{Period: c.month()}
	}
	return *u.Month
}

// money writes an amount with its currency.
func (c calendar) money(a money.Amount) string { return a.String() + " " + c.currency }

// readCalendar reads the SystemPolicy. Whoever may not, as a user of one namespace, gets the defaults and a word about it.
func (p *plugin) readCalendar(ctx context.Context, c client.Reader) (calendar, error) {
	sys := &v1alpha1.SystemPolicy{}
	err := c.Get(ctx, client.ObjectKey{Name: v1alpha1.SystemPolicyName}, sys)
	switch {
	case apierrors.IsForbidden(err):
		p.say("Note: you may not read the SystemPolicy; days and months are taken to begin in UTC, and amounts to be in USD.")
		sys = nil
	case apierrors.IsNotFound(err):
		sys = nil
	case err != nil:
		return calendar{}, fmt.Errorf("get systempolicy %s: %w", v1alpha1.SystemPolicyName, err)
	}
	return newCalendar(sys, p.now()), nil
}

// usedLast is when something was last used; nil: never, as far as is known.
func usedLast(u *v1alpha1.Usage) *metav1.Time {
	if u == nil {
		return nil
	}
	return u.LastUsedTime
}

// budgetsOf are the caps of a spec; negative: none.
func budgetsOf(b *v1alpha1.Budgets) (daily, monthly money.Amount) {
	if b == nil {
		return -1, -1
	}
	return budget(b.Daily), budget(b.Monthly)
}

// keyState is what a caller of the key meets, in a word, and how it looks.
func keyState(k *v1alpha1.APIKey, cal calendar) cell {
	daily, monthly := budgetsOf(k.Spec.Budgets)
	usable := meta.FindStatusCondition(k.Status.Conditions, v1alpha1.ConditionUsable)
	switch {
	case !k.DeletionTimestamp.IsZero():
		return cell{v1alpha1.ReasonDeleting, bad}
	case k.Spec.State == v1alpha1.StateDisabled:
		return cell{v1alpha1.ReasonDisabled, bad}
	case k.Spec.ExpirationTime != nil && !cal.now.Before(k.Spec.ExpirationTime.Time):
		return cell{v1alpha1.ReasonExpired, bad}
	case usable == nil:
		return cell{v1alpha1.ReasonPending, warn}
	// Of the reasons below, the status can be of before an edit that has changed them: they are told from the spec above.
	case usable.Status != metav1.ConditionTrue && usable.Reason != v1alpha1.ReasonDisabled && usable.Reason != v1alpha1.ReasonExpired:
		return cell{usable.Reason, bad}
	case exhausted(daily, cal.today(k.Status.Usage)), exhausted(monthly, cal.thisMonth(k.Status.Usage)):
		return cell{v1alpha1.ReasonBudgetExhausted, bad}
	case usable.Status != metav1.ConditionTrue:
		return cell{v1alpha1.ReasonPending, warn}
	case !meta.IsStatusConditionTrue(k.Status.Conditions, v1alpha1.ConditionEnforced):
		return cell{v1alpha1.ReasonActive, warn}
	}
	return cell{v1alpha1.ReasonActive, good}
}

func exhausted(limit money.Amount, t v1alpha1.UsageTotals) bool {
	return limit >= 0 && spend(t.Spent) >= limit
}

// appState is what callers of the application's keys meet, in a word.
func appState(a *v1alpha1.Application, cal calendar) cell {
	daily, monthly := budgetsOf(a.Spec.Budgets)
	usable := meta.FindStatusCondition(a.Status.Conditions, v1alpha1.ConditionUsable)
	switch {
	case !a.DeletionTimestamp.IsZero():
		return cell{v1alpha1.ReasonDeleting, bad}
	case a.Spec.State == v1alpha1.StateDisabled:
		return cell{v1alpha1.ReasonDisabled, bad}
	case exhausted(daily, cal.today(a.Status.Usage)), exhausted(monthly, cal.thisMonth(a.Status.Usage)):
		return cell{v1alpha1.ReasonBudgetExhausted, bad}
	case usable != nil && usable.Status != metav1.ConditionTrue && usable.Reason != v1alpha1.ReasonDisabled:
		return cell{usable.Reason, bad}
	case usable == nil || usable.Status != metav1.ConditionTrue:
		return cell{v1alpha1.ReasonPending, warn}
	}
	return cell{v1alpha1.ReasonActive, good}
}

// conditionCell is a condition's status; absent: Unknown.
func conditionCell(conditions []metav1.Condition, which string) cell {
	found := meta.FindStatusCondition(conditions, which)
	switch {
	case found == nil:
		return cell{"Unknown", warn}
	case found.Status == metav1.ConditionTrue:
		return cell{"True", good}
	}
	return cell{string(found.Status), bad}
}

// reasonOf is a condition's reason; absent: empty.
func reasonOf(conditions []metav1.Condition, which string) string {
	if found := meta.FindStatusCondition(conditions, which); found != nil {
		return found.Reason
	}
	return ""
}
