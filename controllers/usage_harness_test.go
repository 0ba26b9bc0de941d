package controllers

import (
	"context"
	"errors"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	"github.com/latchkey-dev/latchkey/internal/money"
	"github.com/latchkey-dev/latchkey/internal/usage"
)

var errServer = errors.New("the API server is away")

// usageStore is the API server and the cache in front of it, which can be behind.
type usageStore struct {
	clock    *clocktesting.FakeClock
	accounts map[string]*usageAccount
	behind   bool // what is written is not seen
	fail     int  // how many writes fail
	lose     int  // how many writes are carried out and seem to fail
	writes   []usageWrite
	tries    []time.Time
	last     *v1alpha1.Usage // that was written
}

type usageWrite struct {
	uid string
	at  time.Time
}

func (s *usageStore) find(_ context.Context, uid string) (*usageAccount, error) {
	return s.accounts[uid], nil
}

func (s *usageStore) each(_ context.Context, do func(*usageAccount) error) error {
	for _, uid := range slices.Sorted(maps.Keys(s.accounts)) {
		if err := do(s.accounts[uid]); err != nil {
			return err
		}
	}
	return nil
}

func (s *usageStore) apply(_ context.Context, a *usageAccount, u *v1alpha1.Usage) error {
	s.tries = append(s.tries, s.clock.Now())
	if s.fail > 0 {
		s.fail--
		return errServer
	}
	s.writes = append(s.writes, usageWrite{a.uid, s.clock.Now()})
	s.last = u
	if !s.behind {
		next := *a
		next.usage = u.DeepCopy()
		s.accounts[a.uid] = &next
	}
	if s.lose > 0 {
		s.lose--
		return errServer
	}
	return nil
}

func (*usageStore) terms(context.Context) (budgetTerms, error) { return termsOf(nil), nil }

// order lists what was written, in order.
func (s *usageStore) order() []string {
	var uids []string
	for _, w := range s.writes {
		uids = append(uids, w.uid)
	}
	return uids
}

func (s *usageStore) key(uid string, b *v1alpha1.Budgets, u *v1alpha1.Usage) {
	s.accounts[uid] = keyAccount(&v1alpha1.APIKey{
		ObjectMeta: metav1.ObjectMeta{Namespace: "demo", Name: uid, UID: types.UID(uid)},
		Spec:       v1alpha1.APIKeySpec{Budgets: b}, Status: v1alpha1.APIKeyStatus{Usage: u},
	})
}

func (s *usageStore) application(uid string, b *v1alpha1.Budgets, u *v1alpha1.Usage) {
	s.accounts[uid] = applicationAccount(&v1alpha1.Application{
		ObjectMeta: metav1.ObjectMeta{Namespace: "demo", Name: uid, UID: types.UID(uid)},
		Spec:       v1alpha1.ApplicationSpec{Budgets: b}, Status: v1alpha1.ApplicationStatus{Usage: u},
	})
}

// newUsageWriter makes a writer before a store, with a clock that stands still.
func newUsageWriter(t *testing.T, perSecond float64) (*UsageWriter, *usageStore, *events.FakeRecorder) {
	t.Helper()
	fake := clocktesting.NewFakeClock(now)
	store := &usageStore{clock: fake, accounts: map[string]*usageAccount{}}
	recorder := events.NewFakeRecorder(100)
	w := &UsageWriter{
		Recorder: recorder, Clock: fake, Log: logr.Discard(), Metrics: prometheus.NewRegistry(), WritesPerSecond: perSecond, objects: store,
	}
	if err := w.Init(); err != nil {
		t.Fatal(err)
	}
	return w, store, recorder
}

// run lets the writer work for so long, as it would in Start.
func (s *usageStore) run(t *testing.T, w *UsageWriter, d time.Duration) {
	t.Helper()
	end := s.clock.Now().Add(d)
	for {
		wait, some := w.step(t.Context())
		next := s.clock.Now().Add(wait)
		if !some || next.After(end) {
			s.clock.SetTime(end)
			return
		}
		s.clock.SetTime(next)
	}
}

func told(t *testing.T, w *UsageWriter, rows ...usage.Row) {
	t.Helper()
	if err := w.Report(t.Context(), rows); err != nil {
		t.Fatal(err)
	}
}

// spentRow is an account that has spent so many whole units today, and this month as many and 10 more.
func spentRow(uid string, spent money.Amount) usage.Row {
	return usage.Row{
		ID: uid, Day: 20261123, Month: 202611, LastUsed: now,
		DayUsage:   usage.Totals{Requests: 1, Tokens: 100, Spent: spent * money.Unit},
		MonthUsage: usage.Totals{Requests: 2, Tokens: 200, Spent: (spent + 10) * money.Unit},
	}
}

func spentUsage(spent money.Amount) *v1alpha1.Usage {
	row := spentRow("", spent)
	return usageOf(&row)
}

func budgetsOf(daily, monthly v1alpha1.Money) *v1alpha1.Budgets {
	b := &v1alpha1.Budgets{}
	if daily != "" {
		b.Daily = &daily
	}
	if monthly != "" {
		b.Monthly = &monthly
	}
	return b
}

// heard takes the events so far.
func heard(recorder *events.FakeRecorder) []string {
	var list []string
	for {
		select {
		case e := <-recorder.Events:
			list = append(list, e)
		default:
			return list
		}
	}
}
