package controllers

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	"github.com/latchkey-dev/latchkey/internal/money"
	"github.com/latchkey-dev/latchkey/internal/usage"
)

func TestTenThousandBusyKeysStayWithinTheWritesOfASecond(t *testing.T) {
	t.Parallel()
	const keys, apps, perSecond = 10_000, 20, 5
	w, store, _ := newUsageWriter(t, perSecond)
	var rows []usage.Row
	add := func(uid string, spent money.Amount) { rows = append(rows, spentRow(uid, spent)) }
	for i := range keys {
		uid := fmt.Sprintf("key-%05d", i)
		store.key(uid, nil, spentUsage(1))
		add(uid, 2)
	}
	for i := range apps {
		uid := fmt.Sprintf("app-%02d", i)
		store.application(uid, nil, spentUsage(1))
		add(uid, 2)
	}
	// All are busy, and reported anew again and again: applications every second.
	const seconds, keysEvery = 4000, 50
	writes := map[string]int{}
	longest := map[string]time.Duration{}
	last := map[string]time.Time{}
	for second := range seconds {
		changed := rows[keys:]
		if second%keysEvery == 0 {
			changed = rows
		}
		for i := range changed {
			changed[i].DayUsage.Requests++
		}
		told(t, w, changed...)
		if second == 0 {
			if n := w.queue.pending(); n != keys+apps {
				t.Fatalf("%d rows wait, want one for each account", n)
			}
		}
		store.run(t, w, time.Second)
		if second == 3 {
			for _, uid := range store.order()[:20] {
				if !strings.HasPrefix(uid, "app-") {
					t.Fatalf("the first writes were %v, want the applications", store.order()[:20])
				}
			}
		}
	}
	if n := len(w.queue.all); n != keys+apps {
		t.Errorf("%d rows are held, want one for each account", n)
	}
	for i, write := range store.writes {
		if i >= perSecond && write.at.Sub(store.writes[i-perSecond].at) < time.Second {
			t.Fatalf("write %d came %v after the %dth before it", i, write.at.Sub(store.writes[i-perSecond].at), perSecond)
		}
		if before, ok := last[write.uid]; ok {
			longest[write.uid[:3]] = max(longest[write.uid[:3]], write.at.Sub(before))
		}
		last[write.uid] = write.at
		writes[write.uid[:3]]++
	}
	if n := len(store.writes); n < seconds*perSecond*99/100 {
		t.Errorf("%d writes in %d seconds: less than allowed", n, seconds)
	}
	if len(last) != keys+apps {
		t.Errorf("%d of %d accounts were written at all", len(last), keys+apps)
	}
	if longest["app"] > time.Minute {
		t.Errorf("an application was behind for %v", longest["app"])
	}
	if longest["key"] > time.Hour {
		t.Errorf("a key was behind for %v", longest["key"])
	}
	t.Logf("writes %v; the longest waits: %v", writes, longest)
}

func TestWhatMattersIsWrittenFirst(t *testing.T) {
	t.Parallel()
	w, store, _ := newUsageWriter(t, 1)
	old, cap10 := spentUsage(1), budgetsOf("10", "")
	store.key("busy-1", nil, old)
	store.key("busy-2", nil, old)
	store.key("new", nil, nil)
	store.key("nearly", cap10, old)
	store.key("full", cap10, old)
	store.key("blocked", nil, old)
	freed := old.DeepCopy()
	freed.BlockedTime = &metav1.Time{Time: now}
	store.key("freed", nil, freed)
	store.key("below", cap10, old)
	store.application("app", nil, old)
	blocked := spentRow("blocked", 1)
	blocked.BlockedSince = now
	told(t, w, spentRow("busy-1", 2), spentRow("busy-2", 2), spentRow("below", 7), spentRow("app", 2), spentRow("new", 1), spentRow("nearly", 8),
		spentRow("full", 10), blocked, spentRow("freed", 1))
	store.run(t, w, 20*time.Second)
	want := []string{"nearly", "full", "blocked", "freed", "new", "app", "busy-1", "busy-2", "below"}
	if diff := cmp.Diff(want, store.order()); diff != "" {
		t.Fatalf("written (-want +got):\n%s", diff)
	}
	// Of the keys, the one that was written the longest ago comes next.
	store.writes = nil
	told(t, w, spentRow("below", 7.0), spentRow("busy-2", 3))
	told(t, w, spentRow("busy-1", 3), spentRow("new", 3))
	store.run(t, w, 20*time.Second)
	if diff := cmp.Diff([]string{"new", "busy-1", "busy-2"}, store.order()); diff != "" {
		t.Fatalf("written (-want +got):\n%s", diff)
	}
	// A row that waits and becomes urgent moves forward.
	store.writes = nil
	told(t, w, spentRow("busy-1", 4), spentRow("busy-2", 4), spentRow("below", 7))
	told(t, w, spentRow("below", 9))
	store.run(t, w, 20*time.Second)
	if diff := cmp.Diff([]string{"below", "busy-1", "busy-2"}, store.order()); diff != "" {
		t.Fatalf("written (-want +got):\n%s", diff)
	}
}

func TestNothingIsWrittenWhereNothingHasChanged(t *testing.T) {
	t.Parallel()
	w, store, _ := newUsageWriter(t, 1)
	for i := range 100 {
		store.key(fmt.Sprint(i), nil, spentUsage(1))
		row := spentRow(fmt.Sprint(i), 1)
		row.LastUsed = row.LastUsed.Add(999 * time.Millisecond) // less than the API tells apart
		told(t, w, row)
	}
	store.key("changed", nil, spentUsage(1))
	told(t, w, spentRow("changed", 2))
	store.run(t, w, time.Second) // which leaves time for one write
	if diff := cmp.Diff([]string{"changed"}, store.order()); diff != "" {
		t.Fatalf("written (-want +got):\n%s", diff)
	}
}

func TestACacheThatIsBehindDoesNotHideAChange(t *testing.T) {
	t.Parallel()
	w, store, _ := newUsageWriter(t, 100)
	store.key("one", nil, spentUsage(1))
	store.behind = true
	blocked := spentRow("one", 1)
	blocked.BlockedSince = now
	told(t, w, blocked)
	store.run(t, w, time.Second)
	told(t, w, spentRow("one", 1)) // which is what the cache still says
	store.run(t, w, time.Second)
	if len(store.writes) != 2 || store.last.BlockedTime != nil {
		t.Fatalf("%d writes, of which the last one says %+v", len(store.writes), store.last)
	}
}

func TestAFailedWriteIsTriedAgainWithTheLatestRow(t *testing.T) {
	t.Parallel()
	w, store, _ := newUsageWriter(t, 100)
	store.key("one", nil, spentUsage(1))
	store.fail = 8
	told(t, w, spentRow("one", 2))
	store.run(t, w, 5*time.Second)
	told(t, w, spentRow("one", 3)) // does not end the wait for the next try
	store.run(t, w, 5*time.Minute)
	var waits []time.Duration
	for i, at := range store.tries[1:] {
		waits = append(waits, at.Sub(store.tries[i]).Round(time.Second))
	}
	want := []time.Duration{1, 2, 4, 8, 16, 32, 60, 60}
	for i := range want {
		want[i] *= time.Second
	}
	if diff := cmp.Diff(want, waits); diff != "" {
		t.Errorf("waits between the tries (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(spentUsage(3), store.accounts["one"].usage); diff != "" {
		t.Errorf("usage (-want +got):\n%s", diff)
	}
	told(t, w, spentRow("one", 4))
	store.fail = 1
	store.tries = nil
	store.run(t, w, 10*time.Second)
	if len(store.tries) != 2 || store.tries[1].Sub(store.tries[0]).Round(time.Second) != time.Second {
		t.Errorf("after a success it is tried at %v, want the shortest wait again", store.tries)
	}
}

func TestAnObjectThatIsGoneIsForgotten(t *testing.T) {
	t.Parallel()
	w, store, _ := newUsageWriter(t, 5)
	told(t, w, spentRow("gone", 1), spentRow("late", 1))
	store.run(t, w, 10*time.Second)
	if len(store.writes) != 0 || w.queue.pending() != 2 {
		t.Fatalf("writes %v, %d wait", store.writes, w.queue.pending())
	}
	store.key("late", nil, nil) // the cache has caught up
	store.run(t, w, usageMissingGrace)
	if diff := cmp.Diff([]string{"late"}, store.order()); diff != "" {
		t.Fatalf("written (-want +got):\n%s", diff)
	}
	if w.queue.pending() != 0 || w.queue.all["gone"] != nil {
		t.Fatalf("%d wait, and what is kept is %v", w.queue.pending(), w.queue.all)
	}
	store.run(t, w, 2*rememberWrites)
	told(t, w, spentRow("late", 2))
	store.key("other", nil, nil)
	told(t, w, spentRow("other", 2))
	store.run(t, w, time.Minute)
	store.run(t, w, 2*rememberWrites)
	told(t, w, spentRow("late", 3))
	store.run(t, w, time.Minute)
	if w.queue.all["other"] != nil {
		t.Errorf("a write of two hours ago is still remembered")
	}
}

func TestEventsOfBudgets(t *testing.T) {
	t.Parallel()
	const nearly, full = "Warning BudgetNearlyExhausted", "Warning BudgetExhausted"
	type step struct {
		rows   []usage.Row
		change func(*usageStore)
		want   []string // each a part of an event
	}
	tomorrow := spentRow("one", 9)
	tomorrow.Day, tomorrow.LastUsed = 20261124, now.Add(24*time.Hour)
	for name, tc := range map[string]struct {
		budgets     *v1alpha1.Budgets
		known       *v1alpha1.Usage
		application bool
		steps       []step
	}{
		"below 80 % there is nothing to say": {budgetsOf("10", ""), nil, false, []step{{rows: []usage.Row{spentRow("one", 7)}}}},
		"80 % and 100 % are told once each": {budgetsOf("10", ""), nil, false, []step{
			{rows: []usage.Row{spentRow("one", 8)}, want: []string{nearly + " the daily budget of this key has reached 80 %: 8 of 10 USD spent in 2026-11-23; it begins anew at 2026-11-24T00:00:00Z"}},
			{rows: []usage.Row{spentRow("one", 9)}},
			{rows: []usage.Row{spentRow("one", 10)}, want: []string{full + " the daily budget of this key is used up: 10 of 10 USD spent in 2026-11-23; it begins anew at"}},
			{rows: []usage.Row{spentRow("one", 11)}},
		}},
		"a leap past both tells both":       {budgetsOf("10", ""), spentUsage(1), false, []step{{rows: []usage.Row{spentRow("one", 12)}, want: []string{nearly, full}}}},
		"what status says was told before":  {budgetsOf("10", ""), spentUsage(9), false, []step{{rows: []usage.Row{spentRow("one", 9)}}, {rows: []usage.Row{spentRow("one", 10)}, want: []string{full}}}},
		"the month has a budget of its own": {budgetsOf("", "20"), nil, false, []step{{rows: []usage.Row{spentRow("one", 6)}, want: []string{nearly + " the monthly budget of this key has reached 80 %: 16 of 20 USD spent in 2026-11; it begins anew at 2026-12-01T00:00:00Z"}}}},
		"the next day is told anew": {budgetsOf("10", ""), spentUsage(9), false, []step{
			{rows: []usage.Row{tomorrow}, want: []string{nearly + " the daily budget of this key has reached 80 %: 9 of 10 USD spent in 2026-11-24"}},
		}},
		"an application's": {budgetsOf("10", "20"), nil, true, []step{
			{rows: []usage.Row{spentRow("one", 10)}, want: []string{nearly + " the daily budget of this application", full, nearly + " the monthly budget of this application", full}},
		}},
		"a budget of 0 is not reached by anything": {budgetsOf("0", ""), nil, false, []step{{rows: []usage.Row{spentRow("one", 1)}}}},
		"without a budget":                         {nil, nil, false, []step{{rows: []usage.Row{spentRow("one", 1000)}}}},
		"a cache that is behind tells nothing twice": {budgetsOf("10", ""), spentUsage(1), false, []step{
			{change: func(s *usageStore) { s.behind = true }, rows: []usage.Row{spentRow("one", 8)}, want: []string{nearly}},
			{rows: []usage.Row{spentRow("one", 9)}},
			{rows: []usage.Row{spentRow("one", 10)}, want: []string{full}},
		}},
		"a write that seemed to fail is told of": {budgetsOf("10", ""), spentUsage(1), false, []step{
			{change: func(s *usageStore) { s.lose = 2 }, rows: []usage.Row{spentRow("one", 8)}, want: []string{nearly}},
			{rows: []usage.Row{spentRow("one", 9)}},
		}},
		"a write that failed is told of once it has not": {budgetsOf("10", ""), spentUsage(1), false, []step{
			{change: func(s *usageStore) { s.fail = 2 }, rows: []usage.Row{spentRow("one", 8)}, want: []string{nearly}},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, store, recorder := newUsageWriter(t, 100)
			if tc.application {
				store.application("one", tc.budgets, tc.known)
			} else {
				store.key("one", tc.budgets, tc.known)
			}
			for i, s := range tc.steps {
				if s.change != nil {
					s.change(store)
				}
				told(t, w, s.rows...)
				store.run(t, w, 10*time.Second)
				got := heard(recorder)
				if len(got) != len(s.want) {
					t.Fatalf("step %d: events %q, want %q", i, got, s.want)
				}
				for j := range got {
					if !strings.Contains(got[j], s.want[j]) {
						t.Errorf("step %d: event %q, want %q", i, got[j], s.want[j])
					}
				}
			}
		})
	}
}

func TestRecallTellsStatusAndWhatWaits(t *testing.T) {
	t.Parallel()
	w, store, _ := newUsageWriter(t, 1)
	store.key("key", nil, spentUsage(3))
	store.key("unused", nil, nil)
	store.key("waiting", nil, spentUsage(1))
	store.application("app", nil, spentUsage(5))
	told(t, w, spentRow("waiting", 2))
	var got []usage.Row
	if err := w.Recall(t.Context(), func(rows []usage.Row) error { got = append(got, rows...); return nil }); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]usage.Row{spentRow("app", 5), spentRow("key", 3), spentRow("waiting", 2)}, got); diff != "" {
		t.Fatalf("rows (-want +got):\n%s", diff)
	}
	for i := range 2500 {
		store.key(fmt.Sprintf("%05d", i), nil, spentUsage(3))
	}
	var pages []int
	if err := w.Recall(t.Context(), func(rows []usage.Row) error { pages = append(pages, len(rows)); return nil }); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]int{1000, 1000, 503}, pages); diff != "" {
		t.Fatalf("pages (-want +got):\n%s", diff)
	}
	if err := w.Recall(t.Context(), func([]usage.Row) error { return errServer }); !errors.Is(err, errServer) {
		t.Fatalf("error %v", err)
	}
}

func TestStartWritesAndEnds(t *testing.T) {
	t.Parallel()
	w, store, _ := newUsageWriter(t, 5)
	store.key("one", nil, nil)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Start(ctx) }()
	told(t, w, spentRow("one", 1))
	written := func() float64 {
		families, err := w.Metrics.(*prometheus.Registry).Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			if f.GetName() == "latchkey_usage_status_writes_total" {
				for _, m := range f.GetMetric() {
					if m.GetLabel()[0].GetValue() == "success" {
						return m.GetCounter().GetValue()
					}
				}
			}
		}
		return 0
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(time.Minute); written() != 1; <-tick.C {
		if time.Now().After(deadline) {
			t.Fatal("nothing was written")
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if w.NeedLeaderElection() {
		t.Error("it would write on the leader only")
	}
}
