package controllers

import (
	"math"
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	"github.com/latchkey-dev/latchkey/internal/money"
	"github.com/latchkey-dev/latchkey/internal/usage"
)

// usageOf writes an account as the API shows it. nil: nothing was used.
func usageOf(row *usage.Row) *v1alpha1.Usage {
	out := &v1alpha1.Usage{LastUsedTime: timeOf(row.LastUsed), BlockedTime: timeOf(row.BlockedSince)}
	if name, ok := usage.DayString(row.Day); ok {
		out.Day = totalsOf(name, &row.DayUsage)
	}
	if name, ok := usage.MonthString(row.Month); ok {
		out.Month = totalsOf(name, &row.MonthUsage)
	}
	if *out == (v1alpha1.Usage{}) {
		return nil
	}
	return out
}

func totalsOf(period string, t *usage.Totals) *v1alpha1.UsageTotals {
	out := &v1alpha1.UsageTotals{Period: period, Requests: t.Requests, Tokens: t.Tokens, Spent: v1alpha1.Spend(t.Spent.String())}
	if t.Estimated > 0 {
		out.Estimated = v1alpha1.Spend(t.Estimated.String())
	}
	return out
}

// timeOf is exact to the second, as the API is: it is compared with what the API has returned.
func timeOf(t time.Time) *metav1.Time {
	if t.IsZero() {
		return nil
	}
	return &metav1.Time{Time: t.Truncate(time.Second)}
}

// rowOf is the inverse of usageOf, but for the fractions of seconds.
func rowOf(id string, u *v1alpha1.Usage) usage.Row {
	row := usage.Row{ID: id}
	if u == nil {
		return row
	}
	if u.Day != nil {
		if day, ok := usage.ParseDay(u.Day.Period); ok {
			row.Day, row.DayUsage = day, rowTotals(u.Day)
		}
	}
	if u.Month != nil {
		if month, ok := usage.ParseMonth(u.Month.Period); ok {
			row.Month, row.MonthUsage = month, rowTotals(u.Month)
		}
	}
	if u.LastUsedTime != nil {
		row.LastUsed = u.LastUsedTime.Time
	}
	if u.BlockedTime != nil {
		row.BlockedSince = u.BlockedTime.Time
	}
	return row
}

func rowTotals(t *v1alpha1.UsageTotals) usage.Totals {
	return usage.Totals{Requests: t.Requests, Tokens: t.Tokens, Spent: parseSpend(t.Spent), Estimated: parseSpend(t.Estimated)}
}

// parseSpend reads an amount that was spent. It can have one digit more than the amounts that money.Parse reads, which are those that
// people write. What the schema forbids is taken for nothing.
func parseSpend(s v1alpha1.Spend) money.Amount {
	whole, frac, _ := strings.Cut(string(s), ".")
	if len(frac) > 9 {
		return 0
	}
	n, err := strconv.ParseInt(whole+frac+strings.Repeat("0", 9-len(frac)), 10, 64)
	switch {
	case n == math.MaxInt64: // with an error: the amount is larger than what can be counted
		return math.MaxInt64
	case err != nil || n < 0:
		return 0
	}
	return money.Amount(n)
}

// latest puts a row on top of what was known of the account. Within a day or a month nothing that was used becomes unused: a ledger
// that knows less has lost its memory and has not got it back yet, or the row has been waiting here while its successor went through
// another replica. final says that the row's reporter is still there, so that it speaks for the present. nil: nothing is known, nor used.
func latest(known *v1alpha1.Usage, row *usage.Row, final bool) *v1alpha1.Usage {
	is := usageOf(row)
	switch {
	case known == nil:
		return is
	case is == nil && final && known.BlockedTime != nil: // a budget of 0 was raised before anything was used
		freed := *known
		if freed.BlockedTime = nil; freed == (v1alpha1.Usage{}) {
			return nil
		}
		return &freed
	case is == nil:
		return known
	}
	stale := earlier(is.LastUsedTime, known.LastUsedTime)
	out := &v1alpha1.Usage{
		Day: laterTotals(known.Day, is.Day, stale), Month: laterTotals(known.Month, is.Month, stale),
		LastUsedTime: is.LastUsedTime, BlockedTime: is.BlockedTime,
	}
	if stale {
		out.LastUsedTime = known.LastUsedTime
	}
	if !final && (stale || is.BlockedTime == nil) {
		out.BlockedTime = known.BlockedTime
	}
	return out
}

// laterTotals is the row's period, or the greater of what is known of the same period. A stale row's counts only for the same.
func laterTotals(known, is *v1alpha1.UsageTotals, stale bool) *v1alpha1.UsageTotals {
	switch {
	case known == nil:
		return is
	case is == nil:
		return known
	case known.Period != is.Period && stale:
		return known
	case known.Period != is.Period:
		return is
	}
	a, b := rowTotals(known), rowTotals(is)
	return totalsOf(is.Period, &usage.Totals{
		Requests: max(a.Requests, b.Requests), Tokens: max(a.Tokens, b.Tokens),
		Spent: max(a.Spent, b.Spent), Estimated: max(a.Estimated, b.Estimated),
	})
}

// earlier compares two times, of which nil is the earliest.
func earlier(a, b *metav1.Time) bool { return b != nil && (a == nil || a.Before(b)) }
