package controllers

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	"github.com/latchkey-dev/latchkey/internal/money"
	"github.com/latchkey-dev/latchkey/internal/usage"
)

func keyBudget(b *v1alpha1.Budgets, u *v1alpha1.Usage) func(*keyScope) {
	return func(s *keyScope) { s.key.Spec.Budgets, s.key.Status.Usage = b, u }
}

func appBudget(b *v1alpha1.Budgets, u *v1alpha1.Usage) func(*keyScope) {
	return func(s *keyScope) { s.app.Spec.Budgets, s.app.Status.Usage = b, u }
}

func inZone(zone string) func(*keyScope) {
	return func(s *keyScope) {
		s.policy = &v1alpha1.SystemPolicy{Spec: v1alpha1.SystemPolicySpec{Currency: "EUR", TimeZone: zone}}
	}
}

// at is spentUsage of another day and month.
func at(day, month string, u *v1alpha1.Usage) *v1alpha1.Usage {
	u.Day.Period, u.Month.Period = day, month
	return u
}

func TestBudgetExhausted(t *testing.T) {
	t.Parallel()
	const active = "Active"
	for name, tc := range map[string]struct {
		scope *keyScope
		want  string // reason, or BudgetExhausted's message
		reset string // empty: never by itself
	}{
		"nothing was used":                       {scope(keyBudget(budgetsOf("10", "20"), nil)), active, ""},
		"no budget":                              {scope(keyBudget(nil, spentUsage(1000))), active, ""},
		"a nano below the cap":                   {scope(keyBudget(budgetsOf("5.000000001", ""), spentUsage(5))), active, ""},
		"the cap is reached":                     {scope(keyBudget(budgetsOf("5", ""), spentUsage(5))), "the daily budget of this key is used up: 5 of 5 USD spent in 2026-11-23; it begins anew at 2026-11-24T00:00:00Z", "2026-11-24T00:00:00Z"},
		"the cap is passed":                      {scope(keyBudget(budgetsOf("4.5", ""), spentUsage(5))), "5 of 4.5 USD", "2026-11-24T00:00:00Z"},
		"of yesterday's spend nothing counts":    {scope(keyBudget(budgetsOf("5", ""), at("2026-11-22", "2026-11", spentUsage(5)))), active, ""},
		"of last month's neither":                {scope(keyBudget(budgetsOf("", "5"), at("2026-10-31", "2026-10", spentUsage(5)))), active, ""},
		"the month's is reached":                 {scope(keyBudget(budgetsOf("100", "15"), spentUsage(5))), "the monthly budget of this key is used up: 15 of 15 USD spent in 2026-11; it begins anew at 2026-12-01T00:00:00Z", "2026-12-01T00:00:00Z"},
		"the day's comes before the month's":     {scope(keyBudget(budgetsOf("5", "15"), spentUsage(5))), "the daily budget of this key", "2026-11-24T00:00:00Z"},
		"the application's":                      {scope(appBudget(budgetsOf("5", ""), spentUsage(5))), "the daily budget of Application shop is used up: 5 of 5 USD", "2026-11-24T00:00:00Z"},
		"the key's comes before its application": {scope(appBudget(budgetsOf("5", ""), spentUsage(5)), keyBudget(budgetsOf("3", ""), spentUsage(3))), "the daily budget of this key is used up: 3 of 3", "2026-11-24T00:00:00Z"},
		"its application's day before its month": {scope(appBudget(budgetsOf("5", ""), spentUsage(5)), keyBudget(budgetsOf("", "13"), spentUsage(3))), "the daily budget of Application shop", "2026-11-24T00:00:00Z"},
		"what the key spent is not compared to the application's cap": {scope(appBudget(budgetsOf("5", ""), spentUsage(1)), keyBudget(budgetsOf("10", ""), spentUsage(6))), active, ""},
		"a cap of 0 refuses without any usage":                        {scope(keyBudget(budgetsOf("0", ""), nil)), "the daily budget of this key is 0, which refuses everything", ""},
		"an application's cap of 0":                                   {scope(appBudget(budgetsOf("", "0.00"), nil)), "the monthly budget of Application shop is 0", ""},
		"the day is the time zone's":                                  {scope(inZone("Asia/Tokyo"), keyBudget(budgetsOf("5", ""), spentUsage(5))), "5 of 5 EUR spent in 2026-11-23; it begins anew at 2026-11-24T00:00:00+09:00", "2026-11-23T15:00:00Z"},
		"where the day has ended already":                             {scope(inZone("Pacific/Kiritimati"), keyBudget(budgetsOf("5", ""), spentUsage(5))), active, ""}, // 14 hours ahead
		"disabled comes first":                                        {scope(disabled, keyBudget(budgetsOf("0", ""), nil)), "Disabled", ""},
		"expired comes first":                                         {scope(expiresIn(0), keyBudget(budgetsOf("0", ""), nil)), "Expired", ""},
		"a disabled application comes first":                          {scope(appDisabled, keyBudget(budgetsOf("0", ""), nil)), "ApplicationDisabled", ""},
		"a missing application comes first":                           {scope(withoutApp, keyBudget(budgetsOf("0", ""), nil)), "ApplicationNotFound", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := usableOf(tc.scope, now)
			switch {
			case !strings.Contains(tc.want, " "):
				if v.reason != tc.want {
					t.Errorf("%+v, want the reason %s", v, tc.want)
				}
				return
			case v.status != metav1.ConditionFalse || v.reason != v1alpha1.ReasonBudgetExhausted || !strings.Contains(v.message, tc.want):
				t.Errorf("%+v, want %q", v, tc.want)
			}
			reset := ""
			if spent := spentBudget(tc.scope, now); !spent.reset.IsZero() {
				reset = spent.reset.UTC().Format(time.RFC3339)
				if v := usableOf(tc.scope, spent.reset); v.reason == v1alpha1.ReasonBudgetExhausted && strings.Contains(v.message, tc.want) {
					t.Errorf("at the reset it still is: %+v", v)
				}
			}
			if reset != tc.reset {
				t.Errorf("reset at %q, want %q", reset, tc.reset)
			}
		})
	}
}

func TestUsableOfAnApplication(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		change func(*v1alpha1.Application)
		want   string
		wake   time.Duration
	}{
		"in order": {func(*v1alpha1.Application) {}, "Active", 0},
		"disabled": {func(a *v1alpha1.Application) {
			a.Spec.State = v1alpha1.StateDisabled
			a.Spec.Budgets = budgetsOf("0", "")
		}, "Disabled", 0},
		"used up":       {func(a *v1alpha1.Application) { a.Spec.Budgets = budgetsOf("5", ""); a.Status.Usage = spentUsage(5) }, "BudgetExhausted", 12 * time.Hour},
		"with a 0":      {func(a *v1alpha1.Application) { a.Spec.Budgets = budgetsOf("0", "") }, "BudgetExhausted", 0},
		"with room":     {func(a *v1alpha1.Application) { a.Spec.Budgets = budgetsOf("6", ""); a.Status.Usage = spentUsage(5) }, "Active", 0},
		"up to a month": {func(a *v1alpha1.Application) { a.Spec.Budgets = budgetsOf("", "15"); a.Status.Usage = spentUsage(5) }, "BudgetExhausted", 180 * time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			app := &v1alpha1.Application{}
			tc.change(app)
			if v, wake := applicationUsable(app, now, termsOf(nil)); v.reason != tc.want || wake != tc.wake {
				t.Errorf("%+v, wake %v; want %s, %v", v, wake, tc.want, tc.wake)
			}
		})
	}
}

func TestUpdatesThatConditionsDependOn(t *testing.T) {
	t.Parallel()
	blocked := func(u *v1alpha1.Usage) *v1alpha1.Usage {
		u.BlockedTime = &metav1.Time{Time: now}
		return u
	}
	five := budgetsOf("5", "100")
	for name, tc := range map[string]struct {
		budgets     *v1alpha1.Budgets
		before, now *v1alpha1.Usage
		want        bool
	}{
		"more of the same":               {five, spentUsage(1), spentUsage(2), false},
		"80 % is of no matter":           {five, spentUsage(1), spentUsage(4), false},
		"the first use":                  {five, nil, spentUsage(1), false},
		"the cap is reached":             {five, spentUsage(4), spentUsage(5), true},
		"by the first use":               {five, nil, spentUsage(5), true},
		"beyond the cap":                 {five, spentUsage(5), spentUsage(6), false},
		"the month's cap is reached":     {five, spentUsage(89), spentUsage(90), true},
		"a new day begins with room":     {five, spentUsage(5), at("2026-11-24", "2026-11", spentUsage(1)), true},
		"a new day begins used up":       {five, spentUsage(5), at("2026-11-24", "2026-11", spentUsage(5)), true},
		"requests are refused":           {nil, spentUsage(1), blocked(spentUsage(1)), true},
		"requests are refused no more":   {nil, blocked(spentUsage(1)), spentUsage(1), true},
		"requests are refused as before": {nil, blocked(spentUsage(1)), blocked(spentUsage(2)), false},
		"without a budget":               {nil, spentUsage(1), spentUsage(1000), false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := budgetNews()
			for _, objects := range [][2]client.Object{
				{&v1alpha1.APIKey{Status: v1alpha1.APIKeyStatus{Usage: tc.before}},
					&v1alpha1.APIKey{Spec: v1alpha1.APIKeySpec{Budgets: tc.budgets}, Status: v1alpha1.APIKeyStatus{Usage: tc.now}}},
				{&v1alpha1.Application{Status: v1alpha1.ApplicationStatus{Usage: tc.before}},
					&v1alpha1.Application{Spec: v1alpha1.ApplicationSpec{Budgets: tc.budgets}, Status: v1alpha1.ApplicationStatus{Usage: tc.now}}},
			} {
				if got := p.Update(event.UpdateEvent{ObjectOld: objects[0], ObjectNew: objects[1]}); got != tc.want {
					t.Errorf("%T passes: %v, want %v", objects[1], got, tc.want)
				}
				if p.Create(event.CreateEvent{Object: objects[1]}) || p.Delete(event.DeleteEvent{Object: objects[1]}) || p.Generic(event.GenericEvent{Object: objects[1]}) {
					t.Errorf("%T passes though it was not updated", objects[1])
				}
			}
		})
	}
}

func TestSpendIsReadAsItIsWritten(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		written v1alpha1.Spend
		want    money.Amount
	}{
		"nothing":                    {"0", 0},
		"a nano":                     {"0.000000001", 1},
		"a fraction":                 {"12.5", 12_500_000_000},
		"ten digits":                 {"9223372036.854775806", math.MaxInt64 - 1},
		"the most":                   {"9223372036.854775807", math.MaxInt64},
		"more than can be":           {"9999999999.999999999", math.MaxInt64},
		"none is nothing":            {"", 0},
		"a sign is nothing":          {"-1", 0},
		"too fine is nothing":        {"0.0000000001", 0},
		"what is no number":          {"1e3", 0},
		"two points are no number":   {"1.2.3", 0},
		"a whole number of millions": {"1000000", 1_000_000 * money.Unit},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := parseSpend(tc.written); got != tc.want {
				t.Errorf("parseSpend(%q) = %d, want %d", tc.written, got, tc.want)
			}
		})
	}
}

func TestNearlyIsTheLeastThatIsEightyPercent(t *testing.T) {
	t.Parallel()
	for limit := money.Amount(1); limit < 1000; limit++ {
		got := nearly(limit)
		if got*5 < limit*4 || (got-1)*5 >= limit*4 {
			t.Fatalf("nearly(%d) = %d", limit, got)
		}
	}
}

func TestRowsAndUsage(t *testing.T) {
	t.Parallel()
	full := usage.Row{
		ID: "one", Day: 20261123, Month: 202611, LastUsed: now.Add(123 * time.Millisecond), BlockedSince: now.Add(time.Hour),
		DayUsage: usage.Totals{Requests: 3, Tokens: 4, Spent: 1_500_000_000, Estimated: 1}, MonthUsage: usage.Totals{Requests: 5, Tokens: 6, Spent: 2, Estimated: 0},
	}
	want := &v1alpha1.Usage{
		Day:          &v1alpha1.UsageTotals{Period: "2026-11-23", Requests: 3, Tokens: 4, Spent: "1.5", Estimated: "0.000000001"},
		Month:        &v1alpha1.UsageTotals{Period: "2026-11", Requests: 5, Tokens: 6, Spent: "0.000000002"},
		LastUsedTime: &metav1.Time{Time: now}, BlockedTime: &metav1.Time{Time: now.Add(time.Hour)},
	}
	if diff := cmp.Diff(want, usageOf(&full)); diff != "" {
		t.Errorf("usage (-want +got):\n%s", diff)
	}
	back := full
	back.LastUsed = now // the API is exact to the second
	if diff := cmp.Diff(back, rowOf("one", want)); diff != "" {
		t.Errorf("row (-want +got):\n%s", diff)
	}
	if u := usageOf(&usage.Row{ID: "one"}); u != nil {
		t.Errorf("an account that was never used has the usage %+v", u)
	}
	odd := want.DeepCopy()
	odd.Day.Period, odd.Month.Period = "yesterday", "2026-13"
	if r := rowOf("one", odd); r.Day != 0 || r.Month != 0 || r.DayUsage != (usage.Totals{}) || r.MonthUsage != (usage.Totals{}) {
		t.Errorf("periods that are none give the row %+v", r)
	}
}

func TestLatest(t *testing.T) {
	t.Parallel()
	used := func(r usage.Row, d time.Duration) usage.Row { r.LastUsed = now.Add(d); return r }
	onDay := func(r usage.Row, day, month int32) usage.Row { r.Day, r.Month = day, month; return r }
	blockedRow := func(r usage.Row) usage.Row { r.BlockedSince = now; return r }
	blocked := func(u *v1alpha1.Usage) *v1alpha1.Usage { u.BlockedTime = &metav1.Time{Time: now}; return u }
	atTime := func(u *v1alpha1.Usage, d time.Duration) *v1alpha1.Usage {
		u.LastUsedTime = &metav1.Time{Time: now.Add(d)}
		return u
	}
	const final = true
	for name, tc := range map[string]struct {
		known *v1alpha1.Usage
		row   usage.Row
		final bool
		want  *v1alpha1.Usage
	}{
		"the first row":                          {nil, spentRow("", 1), final, spentUsage(1)},
		"more":                                   {spentUsage(1), spentRow("", 2), final, spentUsage(2)},
		"less, in the same period, is forgotten": {spentUsage(2), used(spentRow("", 1), time.Minute), final, atTime(spentUsage(2), time.Minute)},
		"a new day": {spentUsage(2), used(onDay(spentRow("", 1), 20261124, 202611), 24*time.Hour), final, func() *v1alpha1.Usage {
			u := at("2026-11-24", "2026-11", atTime(spentUsage(1), 24*time.Hour))
			u.Month = spentUsage(2).Month
			return u
		}()},
		"an earlier day, since the time zone was changed": {at("2026-11-24", "2026-11", spentUsage(2)), used(spentRow("", 3), time.Minute), final, atTime(spentUsage(3), time.Minute)},
		"a row that was overtaken":                        {at("2026-12-01", "2026-12", atTime(spentUsage(1), 9*24*time.Hour)), spentRow("", 9), !final, at("2026-12-01", "2026-12", atTime(spentUsage(1), 9*24*time.Hour))},
		"blocked":                                         {spentUsage(1), blockedRow(spentRow("", 1)), final, blocked(spentUsage(1))},
		"freed":                                           {blocked(spentUsage(1)), spentRow("", 1), final, spentUsage(1)},
		"freed, says one who has left":                    {blocked(spentUsage(1)), spentRow("", 1), !final, blocked(spentUsage(1))},
		"blocked, says one who has left":                  {spentUsage(1), blockedRow(spentRow("", 1)), !final, blocked(spentUsage(1))},
		"blocked, says one who was overtaken":             {atTime(spentUsage(1), time.Minute), blockedRow(spentRow("", 1)), !final, atTime(spentUsage(1), time.Minute)},
		"freed before any use":                            {blocked(&v1alpha1.Usage{}), usage.Row{}, final, nil},
		"freed, and not used since":                       {blocked(spentUsage(1)), usage.Row{}, final, spentUsage(1)},
		"freed before any use, says one who has left":     {blocked(&v1alpha1.Usage{}), usage.Row{}, !final, blocked(&v1alpha1.Usage{})},
		"an account that was never used":                  {spentUsage(1), usage.Row{}, final, spentUsage(1)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if diff := cmp.Diff(tc.want, latest(tc.known, &tc.row, tc.final)); diff != "" {
				t.Errorf("usage (-want +got):\n%s", diff)
			}
		})
	}
}
