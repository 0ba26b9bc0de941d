package ledger

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/latchkey-dev/latchkey/internal/ledger/journal"
	"github.com/latchkey-dev/latchkey/internal/money"
	"github.com/latchkey-dev/latchkey/internal/policy"
)

// clock is one that tests set.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) set(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = t
}

func (c *clock) pass(d time.Duration) { c.set(c.Now().Add(d)) }

func noLimits() Limits {
	return Limits{RequestsPerMinute: policy.Unset, TokensPerMinute: policy.Unset, ConcurrentRequests: policy.Unset, Daily: policy.NoBudget, Monthly: policy.NoBudget}
}

func limited(change func(*Limits)) Limits {
	l := noLimits()
	change(&l)
	return l
}

// ask is a request that can use ten times what it does use: 100 tokens and 1,000 nano-units.
func ask(key, app Limits) *Ask {
	return &Ask{
		Key: Account{ID: "key", Limits: key}, Application: Account{ID: "app", Limits: app}, Model: "m", Zone: time.UTC,
		Input: Amounts{Tokens: 10, Cost: 100}, Worst: Amounts{Tokens: 1000, Cost: 10_000},
	}
}

var used = Amounts{Tokens: 100, Cost: 1_000}

func newMemory(t testing.TB, o Options) *Memory {
	t.Helper()
	l, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// pass reserves, and fails the test if that is refused.
func pass(t testing.TB, l *Memory, a *Ask) *Reservation {
	t.Helper()
	r, refusal, err := l.Reserve(t.Context(), a)
	if err != nil || refusal != nil {
		t.Fatalf("refused: %+v, %v", refusal, err)
	}
	return &r
}

func refused(t testing.TB, l *Memory, a *Ask) *Refusal {
	t.Helper()
	r, refusal, err := l.Reserve(t.Context(), a)
	if err != nil || refusal == nil || r.ID != 0 {
		t.Fatalf("let through: %+v, %v", r, err)
	}
	return refusal
}

func settle(t testing.TB, l *Memory, r *Reservation, u Amounts) {
	t.Helper()
	if err := l.Settle(r, Settlement{Amounts: u, Learn: true}); err != nil {
		t.Fatal(err)
	}
}

func TestEachLimitRefuses(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		limits func(*Limits)
		first  bool // one request is settled before
		open   bool // one is under way
		want   Refusal
	}{
		"requests":                    {limits: func(l *Limits) { l.RequestsPerMinute = 1 }, first: true, want: Refusal{Limit: RequestsPerMinute, Max: 1, Used: 1, Needed: 1}},
		"requests, 0":                 {limits: func(l *Limits) { l.RequestsPerMinute = 0 }, want: Refusal{Limit: RequestsPerMinute, Needed: 1}},
		"tokens":                      {limits: func(l *Limits) { l.TokensPerMinute = 100 }, first: true, want: Refusal{Limit: TokensPerMinute, Max: 100, Used: 100, Needed: 100}},
		"tokens under way":            {limits: func(l *Limits) { l.TokensPerMinute = 1000 }, open: true, want: Refusal{Limit: TokensPerMinute, Max: 1000, Reserved: 1000, Needed: 1000, Held: true}},
		"tokens, 0":                   {limits: func(l *Limits) { l.TokensPerMinute = 0 }, want: Refusal{Limit: TokensPerMinute, Needed: 1000}},
		"concurrent requests":         {limits: func(l *Limits) { l.ConcurrentRequests = 1 }, open: true, want: Refusal{Limit: ConcurrentRequests, Max: 1, Reserved: 1, Needed: 1, Held: true}},
		"concurrent requests, 0":      {limits: func(l *Limits) { l.ConcurrentRequests = 0 }, want: Refusal{Limit: ConcurrentRequests, Needed: 1}},
		"the day":                     {limits: func(l *Limits) { l.Daily = 1_000 }, first: true, want: Refusal{Limit: Daily, Max: 1_000, Used: 1_000, Needed: 1_000}},
		"the day, 0":                  {limits: func(l *Limits) { l.Daily = 0 }, want: Refusal{Limit: Daily, Needed: 10_000}},
		"the day, under way":          {limits: func(l *Limits) { l.Daily = 10_000 }, open: true, want: Refusal{Limit: Daily, Max: 10_000, Reserved: 10_000, Needed: 10_000, Held: true}},
		"the month":                   {limits: func(l *Limits) { l.Monthly = 999 }, first: true, want: Refusal{Limit: Monthly, Max: 999, Used: 1_000, Needed: 1_000}},
		"a strict day":                {limits: func(l *Limits) { l.Daily, l.Enforcement = 10_999, policy.Strict }, first: true, want: Refusal{Limit: Daily, Max: 10_999, Used: 1_000, Needed: 10_000}},
		"a strict day, under way":     {limits: func(l *Limits) { l.Daily, l.Enforcement = 19_999, policy.Strict }, open: true, want: Refusal{Limit: Daily, Max: 19_999, Reserved: 10_000, Needed: 10_000, Held: true}},
		"the first limit is told":     {limits: func(l *Limits) { l.Monthly, l.Daily, l.TokensPerMinute = 0, 0, 0 }, want: Refusal{Limit: TokensPerMinute, Needed: 1000}},
		"the tighter budget of equal": {limits: func(l *Limits) { l.Monthly, l.Daily = 1_000, 1_000 }, first: true, want: Refusal{Limit: Daily, Max: 1_000, Used: 1_000, Needed: 1_000}},
	} {
		for scope, whose := range []string{"key", "application"} {
			t.Run(name+" of the "+whose, func(t *testing.T) {
				t.Parallel()
				l := newMemory(t, Options{Now: newClock().Now})
				sides := [2]Limits{noLimits(), noLimits()}
				open := ask(noLimits(), noLimits())
				if tc.first {
					settle(t, l, pass(t, l, open), used)
				}
				tc.limits(&sides[scope])
				if tc.open {
					// The enforcement decides what is held, so that the one under way is under the limits as well.
					pass(t, l, ask(sides[0], sides[1]))
				}
				got := refused(t, l, ask(sides[0], sides[1]))
				want := tc.want
				want.Scope, want.Reset = Scope(scope), got.Reset
				if diff := cmp.Diff(&want, got); diff != "" {
					t.Errorf("-want +got:\n%s", diff)
				}
				if b := l.Balance("key", time.UTC); b.RequestsInMinute > 1 || tc.want.Limit >= Daily && !tc.want.Held && l.Balance(whose[:3], time.UTC).BlockedSince.IsZero() {
					t.Errorf("after a refusal: %+v", b)
				}
				// Raised, it lets through at once.
				pass(t, l, ask(noLimits(), noLimits()))
			})
		}
	}
}

func TestLearnedReservations(t *testing.T) {
	t.Parallel()
	l := newMemory(t, Options{Now: newClock().Now})
	budget := limited(func(l *Limits) { l.Daily = money.Unit })
	r := pass(t, l, ask(budget, noLimits()))
	if r.Reserved != (Amounts{1000, 10_000}) {
		t.Errorf("nothing learned: %+v is reserved", r.Reserved)
	}
	settle(t, l, r, used)
	if r = pass(t, l, ask(budget, noLimits())); r.Reserved != used {
		t.Errorf("after an equal one: %+v", r.Reserved)
	}
	// A larger input is added to what was learned of the output.
	large := ask(budget, noLimits())
	large.Input = Amounts{Tokens: 510, Cost: 5_100}
	if r := pass(t, l, large); r.Reserved != (Amounts{600, 6_000}) {
		t.Errorf("of a larger input: %+v", r.Reserved)
	}
	large.Worst = Amounts{Tokens: 550, Cost: 5_500}
	if r := pass(t, l, large); r.Reserved != large.Worst {
		t.Errorf("beyond the worst case: %+v", r.Reserved)
	}
	other := ask(budget, noLimits())
	other.Model = "another"
	if r := pass(t, l, other); r.Reserved != other.Worst {
		t.Errorf("of another model: %+v", r.Reserved)
	}
	// What did not come to its end teaches nothing.
	if err := l.Settle(r, Settlement{Amounts: Amounts{Tokens: 900, Cost: 9_000}, Estimated: true}); err != nil {
		t.Fatal(err)
	}
	if r := pass(t, l, ask(budget, noLimits())); r.Reserved != used {
		t.Errorf("after one that was cut off: %+v", r.Reserved)
	}
	for i := range 3 * maxLessons {
		a := ask(budget, noLimits())
		a.Model = fmt.Sprint("m", i)
		settle(t, l, pass(t, l, a), used)
	}
	if n := len(l.accounts["key"].lessons); n != maxLessons {
		t.Errorf("%d lessons are kept", n)
	}
}

func TestGrow(t *testing.T) {
	t.Parallel()
	l := newMemory(t, Options{Now: newClock().Now})
	r := pass(t, l, ask(limited(func(l *Limits) { l.Daily, l.Enforcement = money.Unit, policy.Strict }), noLimits()))
	l.Grow(r, Amounts{Tokens: 500, Cost: 5_000}) // less than what is held
	l.Grow(r, Amounts{Tokens: 3000, Cost: 30_000})
	if r.Reserved != (Amounts{3000, 30_000}) {
		t.Errorf("reserved %+v", r.Reserved)
	}
	for _, id := range []string{"key", "app"} {
		if b := l.Balance(id, time.UTC); b.TokensReserved != 3000 || b.Day.Reserved != 30_000 {
			t.Errorf("%s: %+v", id, b)
		}
	}
	again := *r
	settle(t, l, r, used)
	settle(t, l, &again, used) // a second time
	l.Grow(&again, Amounts{Tokens: 9000, Cost: 90_000})
	if err := l.Release(&again); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"key", "app"} {
		b := l.Balance(id, time.UTC)
		if b.TokensReserved != 0 || b.Day.Reserved != 0 || b.Day.Spent != 1_000 || b.Day.Requests != 1 || b.ConcurrentRequests != 0 {
			t.Errorf("%s: %+v", id, b)
		}
	}
}

func TestReleaseGivesBackAllButTheRequest(t *testing.T) {
	t.Parallel()
	l := newMemory(t, Options{Now: newClock().Now})
	if err := l.Release(pass(t, l, ask(noLimits(), noLimits()))); err != nil {
		t.Fatal(err)
	}
	b := l.Balance("key", time.UTC)
	if b.RequestsInMinute != 1 || b.TokensReserved != 0 || b.ConcurrentRequests != 0 || b.Day.Requests != 0 || !b.LastUsed.IsZero() {
		t.Errorf("%+v", b)
	}
}

// TestNoMinuteHoldsMoreThanTheLimit tries at random moments, dense around the seconds' borders and where room is said to be, and counts what
// passed in every minute, whichever its start.
func TestNoMinuteHoldsMoreThanTheLimit(t *testing.T) {
	t.Parallel()
	for seed := range uint64(20) {
		random := rand.New(rand.NewPCG(seed, 1))
		limit := 1 + random.Int64N(30)
		c := newClock()
		l := newMemory(t, Options{Now: c.Now})
		a := ask(limited(func(l *Limits) { l.RequestsPerMinute = policy.Limit(limit) }), noLimits())
		var passed []time.Time
		var latest time.Time
		for range 3_000 {
			switch random.IntN(6) {
			case 0:
				c.set(c.Now().Truncate(time.Second).Add(time.Second - time.Nanosecond))
			case 1:
				c.set(c.Now().Truncate(time.Second).Add(time.Second))
			case 2:
				c.pass(time.Duration(random.Int64N(int64(2 * time.Second))))
			case 3:
				c.pass(-time.Duration(random.Int64N(int64(3 * time.Second)))) // a clock that goes back
			}
			if c.Now().After(latest) {
				latest = c.Now() // time itself does not go back
			}
			r, refusal, err := l.Reserve(t.Context(), a)
			if err != nil {
				t.Fatal(err)
			}
			if refusal == nil {
				passed = append(passed, latest)
				settle(t, l, &r, Amounts{})
				continue
			}
			if !refusal.Reset.After(latest) || refusal.Reset.After(latest.Add(slots*time.Second)) {
				t.Fatalf("seed %d: at %v it resets at %v", seed, latest, refusal.Reset)
			}
			if random.IntN(10) == 0 {
				c.set(refusal.Reset)
				latest = c.Now()
				r := pass(t, l, a) // as was said
				passed = append(passed, latest)
				settle(t, l, r, Amounts{})
			}
		}
		first := 0
		for i, at := range passed {
			for at.Sub(passed[first]) >= time.Minute {
				first++
			}
			if n := int64(i - first + 1); n > limit {
				t.Fatalf("seed %d: %d requests passed in the minute before %v, and the limit is %d", seed, n, at, limit)
			}
		}
		if len(passed) < int(limit) {
			t.Fatalf("seed %d: only %d passed", seed, len(passed))
		}
	}
}

func TestDaysAndMonths(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		zone, now            string
		day, month           int32
		dayStart, dayEnd     string
		monthStart, monthEnd string
	}{
		"UTC": {"UTC", "2026-11-23T08:00:00Z", 20261123, 202611, "2026-11-23T00:00:00Z", "2026-11-24T00:00:00Z", "2026-11-01T00:00:00Z", "2026-12-01T00:00:00Z"},
		"a day ahead": {"Pacific/Kiritimati", "2026-12-31T10:00:00Z", 20270101, 202701,
			"2026-12-31T10:00:00Z", "2027-01-01T10:00:00Z", "2026-12-31T10:00:00Z", "2027-01-31T10:00:00Z"},
		"a day of 23 hours": {"Europe/Berlin", "2026-03-29T12:00:00Z", 20260329, 202603,
			"2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z", "2026-02-28T23:00:00Z", "2026-03-31T22:00:00Z"},
		"a day of 25 hours": {"Europe/Berlin", "2026-10-25T12:00:00Z", 20261025, 202610,
			"2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z", "2026-09-30T22:00:00Z", "2026-10-31T23:00:00Z"},
		"a day without midnight": {"America/Santiago", "2026-09-06T12:00:00Z", 20260906, 202609,
			"2026-09-06T04:00:00Z", "2026-09-07T03:00:00Z", "2026-09-01T04:00:00Z", "2026-10-01T03:00:00Z"},
		"the last moment of a leap February": {"UTC", "2028-02-29T23:59:59Z", 20280229, 202802,
			"2028-02-29T00:00:00Z", "2028-03-01T00:00:00Z", "2028-02-01T00:00:00Z", "2028-03-01T00:00:00Z"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			zone, err := time.LoadLocation(tc.zone)
			if err != nil {
				t.Fatal(err)
			}
			moment := func(s string) time.Time {
				at, err := time.Parse(time.RFC3339, s)
				if err != nil {
					t.Fatal(err)
				}
				return at
			}
			var c calendar
			c.set(moment(tc.now), zone)
			if c.day != tc.day || c.month != tc.month {
				t.Errorf("day %d, month %d", c.day, c.month)
			}
			for _, bound := range []struct {
				got  time.Time
				want string
			}{{c.dayStart, tc.dayStart}, {c.dayEnd, tc.dayEnd}, {c.monthStart, tc.monthStart}, {c.monthEnd, tc.monthEnd}} {
				if !bound.got.Equal(moment(bound.want)) {
					t.Errorf("%v instead of %s", bound.got.UTC(), bound.want)
				}
			}
			// Every moment of the day is in it, and neither of those beside is.
			for _, at := range []time.Time{c.dayStart, c.dayEnd.Add(-time.Nanosecond)} {
				if y, m, d := at.In(zone).Date(); int32(y)*10_000+int32(m)*100+int32(d) != tc.day {
					t.Errorf("%v is not in the day", at)
				}
			}
			for _, at := range []time.Time{c.dayStart.Add(-time.Nanosecond), c.dayEnd} {
				if y, m, d := at.In(zone).Date(); int32(y)*10_000+int32(m)*100+int32(d) == tc.day {
					t.Errorf("%v is in the day", at)
				}
			}
		})
	}
}

func TestBudgetsBeginAnewWithTheirPeriod(t *testing.T) {
	t.Parallel()
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	c := newClock()
	l := newMemory(t, Options{Now: c.Now})
	a := ask(limited(func(l *Limits) { l.Daily, l.Monthly = 1_000, 2_000 }), noLimits())
	a.Zone = berlin
	c.set(time.Date(2026, 10, 30, 23, 59, 59, 0, berlin))
	settle(t, l, pass(t, l, a), used)
	refusal := refused(t, l, a)
	if want := time.Date(2026, 10, 31, 0, 0, 0, 0, berlin); refusal.Limit != Daily || !refusal.Reset.Equal(want) {
		t.Errorf("%+v", refusal)
	}
	c.set(refusal.Reset.Add(-time.Nanosecond))
	refused(t, l, a)
	c.set(refusal.Reset)
	settle(t, l, pass(t, l, a), used)
	c.set(time.Date(2026, 10, 31, 23, 0, 0, 0, berlin))
	a.Key.Limits.Daily = policy.NoBudget
	if refusal = refused(t, l, a); refusal.Limit != Monthly || !refusal.Reset.Equal(time.Date(2026, 11, 1, 0, 0, 0, 0, berlin)) {
		t.Errorf("%+v", refusal)
	}
	// A clock, or a zone, that goes back frees nothing.
	a.Key.Limits.Daily = 1_000
	c.set(time.Date(2026, 9, 1, 0, 0, 0, 0, berlin))
	refused(t, l, a)
	a.Zone = time.UTC
	refused(t, l, a)
	c.set(time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC))
	pass(t, l, a)
}

func TestWaitingForWhatIsUnderWay(t *testing.T) {
	t.Parallel()
	strict := limited(func(l *Limits) { l.Daily, l.Enforcement = 10_000, policy.Strict })
	for name, tc := range map[string]struct {
		end  func(l *Memory, r *Reservation) error
		pass bool
	}{
		"it is let through once there is room":      {func(l *Memory, r *Reservation) error { return l.Release(r) }, true},
		"it is refused once the budget is used up":  {func(l *Memory, r *Reservation) error { return l.Settle(r, Settlement{Amounts: used}) }, false},
		"it is told to come again if nothing moves": {nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newMemory(t, Options{Now: time.Now, HoldFor: 5 * time.Second})
				first := pass(t, l, ask(strict, noLimits()))
				began := time.Now()
				if tc.end != nil {
					time.AfterFunc(2*time.Second, func() {
						if err := tc.end(l, first); err != nil {
							t.Error(err)
						}
					})
				}
				_, refusal, err := l.Reserve(t.Context(), ask(strict, noLimits()))
				if err != nil || (refusal == nil) != tc.pass {
					t.Fatalf("%+v, %v", refusal, err)
				}
				want := 2 * time.Second
				if tc.end == nil {
					want = 5 * time.Second
				}
				if waited := time.Since(began); waited != want || refusal != nil && refusal.Held != (tc.end == nil) {
					t.Errorf("after %v: %+v", waited, refusal)
				}
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		l := newMemory(t, Options{Now: time.Now, HoldFor: 5 * time.Second})
		pass(t, l, ask(strict, noLimits()))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, refusal, err := l.Reserve(ctx, ask(strict, noLimits())); !errors.Is(err, context.DeadlineExceeded) || refusal != nil {
			t.Errorf("a caller who has gone: %+v, %v", refusal, err)
		}
	})
}

func TestFewWait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newMemory(t, Options{Now: time.Now, HoldFor: 5 * time.Second})
		a := ask(limited(func(l *Limits) { l.Daily = 10_000 }), noLimits())
		first := pass(t, l, a)
		var waiting sync.WaitGroup
		for range maxWaiting {
			waiting.Go(func() {
				if _, refusal, err := l.Reserve(t.Context(), a); err != nil || refusal == nil || !refusal.Held {
					t.Errorf("%+v, %v", refusal, err)
				}
			})
		}
		synctest.Wait()
		began := time.Now()
		if r := refused(t, l, a); !r.Held || time.Since(began) != 0 {
			t.Errorf("one too many waited %v: %+v", time.Since(began), r)
		}
		waiting.Wait()
		settle(t, l, first, used)
		if n := l.accounts["key"].waiting; n != 0 {
			t.Errorf("%d are thought to wait", n)
		}
	})
}

// TestCrowd lets 200 callers loose on a budget that pays for 50, from a cold start.
func TestCrowd(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		enforcement policy.Enforcement
		worst       money.Amount
	}{
		"strict, at the worst case":                      {policy.Strict, 1_000},
		"until reached, far from the worst case":         {policy.UntilReached, 100_000},
		"until reached, where the worst is all there is": {policy.UntilReached, 1_000},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newMemory(t, Options{Now: time.Now, HoldFor: 5 * time.Second})
				a := ask(limited(func(l *Limits) { l.Monthly, l.Enforcement = 50_000, tc.enforcement }), noLimits())
				a.Worst.Cost = tc.worst
				var mu sync.Mutex
				passed, final := 0, 0
				var callers sync.WaitGroup
				for range 200 {
					callers.Go(func() {
						r, refusal, err := l.Reserve(t.Context(), a)
						if err != nil {
							t.Error(err)
							return
						}
						mu.Lock()
						if refusal == nil {
							passed++
						} else if !refusal.Held {
							final++
						}
						mu.Unlock()
						if refusal == nil {
							time.Sleep(100 * time.Millisecond)
							settle(t, l, &r, used)
						}
					})
				}
				callers.Wait()
				if b := l.Balance("key", time.UTC); passed != 50 || final != 150 || b.Month.Spent != 50_000 {
					t.Errorf("%d passed, %d were refused for good, spent %v", passed, final, b.Month.Spent)
				}
			})
		})
	}
}

func TestChanged(t *testing.T) {
	t.Parallel()
	c := newClock()
	l := newMemory(t, Options{Now: c.Now})
	if rows := l.Changed(10); len(rows) != 0 {
		t.Errorf("%+v", rows)
	}
	settle(t, l, pass(t, l, ask(noLimits(), noLimits())), used)
	if err := l.Settle(pass(t, l, ask(noLimits(), noLimits())), Settlement{Amounts: used, Estimated: true}); err != nil {
		t.Fatal(err)
	}
	totals := Totals{Requests: 2, Tokens: 200, Spent: 2_000, Estimated: 1_000}
	want := Row{ID: "key", Day: 20260504, Month: 202605, DayUsage: totals, MonthUsage: totals, LastUsed: c.Now()}
	if diff := cmp.Diff([]Row{want}, l.Changed(1)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	want.ID = "app"
	if diff := cmp.Diff([]Row{want}, l.Changed(10)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if rows := l.Changed(10); len(rows) != 0 {
		t.Errorf("handed out twice: %+v", rows)
	}
	l.ChangedAll()
	if rows := l.Changed(10); len(rows) != 2 {
		t.Errorf("after a loss: %+v", rows)
	}
	refused(t, l, ask(limited(func(l *Limits) { l.Daily = 1 }), noLimits()))
	if rows := l.Changed(10); len(rows) != 1 || rows[0].BlockedSince.IsZero() {
		t.Errorf("blocked: %+v", rows)
	}
	pass(t, l, ask(noLimits(), noLimits()))
	if rows := l.Changed(10); len(rows) != 1 || !rows[0].BlockedSince.IsZero() {
		t.Errorf("free again: %+v", rows)
	}
}

func TestSeed(t *testing.T) {
	t.Parallel()
	c := newClock()
	l := newMemory(t, Options{Now: c.Now, State: journal.State{Fresh: true}})
	if !l.Empty() {
		t.Error("a fresh ledger is not empty")
	}
	settle(t, l, pass(t, l, ask(noLimits(), noLimits())), used)
	totals := Totals{Requests: 7, Tokens: 10, Spent: 9_000, Estimated: 1}
	row := Row{ID: "key", Day: 20260503, Month: 202605, DayUsage: Totals{Spent: 500_000}, MonthUsage: totals, LastUsed: c.Now().Add(-time.Hour)}
	if err := l.Seed([]Row{row, {ID: "unseen", Day: 20260504, Month: 202605, DayUsage: totals, MonthUsage: totals}}); err != nil {
		t.Fatal(err)
	}
	b := l.Balance("key", time.UTC)
	if b.Day.Spent != 1_000 || b.Month.Spent != 9_000 || b.Month.Requests != 7 || b.Month.Tokens != 100 || !b.LastUsed.Equal(c.Now()) {
		t.Errorf("%+v", b)
	}
	if b := l.Balance("unseen", time.UTC); b.Day.Spent != 9_000 {
		t.Errorf("%+v", b)
	}
	if r := refused(t, l, ask(limited(func(l *Limits) { l.Monthly = 9_000 }), noLimits())); r.Used != 9_000 {
		t.Errorf("%+v", r)
	}
}

func TestIdleAccountsAreLetGo(t *testing.T) {
	t.Parallel()
	c := newClock()
	l := newMemory(t, Options{Now: c.Now})
	for i := range 2_000 {
		a := ask(noLimits(), noLimits())
		a.Key.ID = fmt.Sprint("key-", i)
		settle(t, l, pass(t, l, a), used)
	}
	l.Changed(10_000)
	c.pass(keepIdle + time.Hour)
	for range 20 * sweepEvery {
		settle(t, l, pass(t, l, ask(noLimits(), noLimits())), used)
	}
	if n := len(l.accounts); n > 100 {
		t.Errorf("%d accounts are kept", n)
	}
}

func TestCountsSaturate(t *testing.T) {
	t.Parallel()
	const most = 1<<63 - 1
	l := newMemory(t, Options{Now: newClock().Now})
	a := ask(limited(func(l *Limits) { l.Monthly, l.TokensPerMinute = most, most }), noLimits())
	a.Worst, a.Input = Amounts{most, most}, Amounts{most, most}
	first := pass(t, l, a)
	settle(t, l, first, Amounts{most, most})
	second := ask(noLimits(), noLimits())
	second.Worst = Amounts{most, most}
	r := pass(t, l, second)
	l.Grow(r, Amounts{most, most})
	settle(t, l, r, Amounts{most, most})
	if b := l.Balance("key", time.UTC); b.Month.Spent != most || b.TokensInMinute != most || b.Month.Reserved != 0 {
		t.Errorf("%+v", b)
	}
	if r := refused(t, l, a); r.Used != most {
		t.Errorf("%+v", r)
	}
}

// TestReserveAndSettleDoNotAllocate holds for accounts and models that are known.
func TestReserveAndSettleDoNotAllocate(t *testing.T) {
	l := newMemory(t, Options{Now: newClock().Now})
	a := ask(limited(func(l *Limits) { l.Daily = 1 << 60 }), noLimits())
	ctx := t.Context()
	if n := testing.AllocsPerRun(2_000, func() {
		r, _, _ := l.Reserve(ctx, a)
		_ = l.Settle(&r, Settlement{Amounts: used, Learn: true})
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// benchmark reserves and settles among 100,000 keys of 1,000 applications.
func BenchmarkReserveSettle(b *testing.B) {
	for _, keys := range []int{1, 100_000} {
		b.Run(fmt.Sprintf("keys=%d", keys), func(b *testing.B) {
			l := newMemory(b, Options{Now: time.Now})
			asks := make([]*Ask, keys)
			for i := range asks {
				a := ask(limited(func(l *Limits) { l.Daily, l.Monthly, l.RequestsPerMinute = 1<<60, 1<<60, 1<<40 }), limited(func(l *Limits) { l.Monthly = 1 << 60 }))
				a.Key.ID, a.Application.ID = fmt.Sprintf("0f9d4f3a-0000-4000-8000-%012d", i), fmt.Sprintf("7c1b2e4d-0000-4000-8000-%012d", i%1000)
				asks[i] = a
				settle(b, l, pass(b, l, a), used)
			}
			ctx := b.Context()
			b.ReportAllocs()
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for i := rand.IntN(keys); pb.Next(); i = (i + 7919) % keys {
					r, _, _ := l.Reserve(ctx, asks[i])
					_ = l.Settle(&r, Settlement{Amounts: used, Learn: true})
				}
			})
		})
	}
}
