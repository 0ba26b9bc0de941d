package controllers

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	"github.com/latchkey-dev/latchkey/internal/usage"
)

const (
	// usageManager is the one field manager of status.usage, of all replicas: an enforcer that moves from one to another goes on
	// with the same fields, and none is left behind that nobody owns any more.
	usageManager = client.FieldOwner("latchkey-usage")
	// usageWriteTimeout bounds one write.
	usageWriteTimeout = 10 * time.Second
	// How long a row waits after a write of it has failed.
	usageFirstRetry   = time.Second
	usageLongestRetry = time.Minute
	// usageMissingGrace is how long a row of an unknown object is kept: an enforcer can have heard of a key from another replica, before
	// this one's cache knows of it.
	usageMissingGrace = 30 * time.Second
	usageMissingRetry = 2 * time.Second
	// usagePage is how many rows are recalled at a time.
	usagePage = 1000
)

// UsageWriter writes what enforcers report into status.usage of APIKeys and Applications, a few writes a second, the most telling first.
// What cannot be written yet is kept, one row an account.
//
// Rows are taken over once they are in memory. If this process goes, its enforcers' connections go with it, and they report everything
// again to another replica.
type UsageWriter struct {
	Client   client.Client // reads from the cache
	Recorder events.EventRecorder
	Clock    clock.WithTicker
	Log      logr.Logger
	Metrics  prometheus.Registerer
	// WritesPerSecond is the most writes that this replica makes in any second; more than 0.
	WritesPerSecond float64

	objects usageObjects
	limiter *rate.Limiter
	changed chan struct{}
	writes  *prometheus.CounterVec

	mu    sync.Mutex
	queue *usageQueue
}

var (
	_ usage.Sink                     = (*UsageWriter)(nil)
	_ manager.Runnable               = (*UsageWriter)(nil)
	_ manager.LeaderElectionRunnable = (*UsageWriter)(nil)
)

// Init makes the writer ready to take rows. It is called once, before Start and Report.
func (w *UsageWriter) Init() error {
	if w.WritesPerSecond <= 0 {
		return errors.New("set up the usage writer: it needs more than 0 writes a second")
	}
	if w.objects == nil {
		w.objects = kubeUsage{w.Client}
	}
	// A bucket of one: no second holds more than the writes of a second.
	w.limiter = rate.NewLimiter(rate.Limit(w.WritesPerSecond), 1)
	w.changed = make(chan struct{}, 1)
	w.queue = newUsageQueue()
	w.writes = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "latchkey_usage_status_writes_total", Help: "Writes of status.usage, by result.",
	}, []string{"result"})
	// There from the start, so that an alert sees the first failure.
	for _, result := range []string{"success", "error"} {
		w.writes.WithLabelValues(result)
	}
	pending := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "latchkey_usage_pending_rows", Help: "Accounts whose usage is not in status yet.",
	}, func() float64 {
		w.mu.Lock()
		defer w.mu.Unlock()
		return float64(w.queue.pending())
	})
	for _, c := range []prometheus.Collector{w.writes, pending} {
		if err := w.Metrics.Register(c); err != nil {
			return fmt.Errorf("register the usage writer's metrics: %w", err)
		}
	}
	return nil
}

// NeedLeaderElection says that every replica writes: an enforcer reports to the one replica that it is connected to, leader or not.
func (*UsageWriter) NeedLeaderElection() bool { return false }

// Report takes rows over.
func (w *UsageWriter) Report(ctx context.Context, rows []usage.Row) error {
	type judged struct {
		row     usage.Row
		urgency urgency
	}
	list := make([]judged, 0, len(rows))
	for _, row := range rows {
		account, err := w.objects.find(ctx, row.ID)
		if err != nil {
			return err
		}
		list = append(list, judged{row, urgencyOf(account, &row)})
	}
	// The context is the reporter's connection.
	final := func() bool { return ctx.Err() == nil }
	w.mu.Lock()
	now := w.Clock.Now()
	for _, j := range list {
		w.queue.put(j.row, j.urgency, final, now)
	}
	w.mu.Unlock()
	select {
	case w.changed <- struct{}{}:
	default:
	}
	return nil
}

// urgencyOf says how soon a row is to be written. An object that is not known yet is a key for all that can be told.
func urgencyOf(a *usageAccount, row *usage.Row) urgency {
	if a == nil {
		return urgentKey
	}
	after := latest(a.usage, row, true)
	stateBefore, stateAfter := budgetStateOf(a.budgets, a.usage), budgetStateOf(a.budgets, after)
	switch {
	case stateBefore != stateAfter, len(marksReached("", a.budgets, a.usage, after, time.Time{}, budgetTerms{zone: time.UTC})) > 0:
		return urgentBudget
	case a.usage == nil:
		return urgentFirst
	case a.isApplication():
		return urgentApplication
	}
	return urgentKey
}

// Recall sends what status says, and what has been reported since.
func (w *UsageWriter) Recall(ctx context.Context, send func([]usage.Row) error) error {
	page := make([]usage.Row, 0, usagePage)
	flush := func() error {
		defer func() { page = page[:0] }()
		return send(page)
	}
	err := w.objects.each(ctx, func(a *usageAccount) error {
		known := a.usage
		w.mu.Lock()
		if e := w.queue.all[a.uid]; e != nil {
			known = latest(known, &e.row, e.final())
		}
		w.mu.Unlock()
		if known == nil {
			return nil
		}
		if page = append(page, rowOf(a.uid, known)); len(page) == usagePage {
			return flush()
		}
		return nil
	})
	if err != nil {
		return err
	}
	return flush()
}

// Start writes until the context ends.
func (w *UsageWriter) Start(ctx context.Context) error {
	for {
		wait, some := w.step(ctx)
		if !w.pause(ctx, wait, some) {
			return nil
		}
	}
}

// pause waits for the next row, however long where the wait is not timed; false: the context has ended.
func (w *UsageWriter) pause(ctx context.Context, wait time.Duration, timed bool) bool {
	var timer <-chan time.Time
	if timed {
		t := w.Clock.NewTimer(wait)
		defer t.Stop()
		timer = t.C()
	}
	select {
	case <-ctx.Done():
		return false
	case <-w.changed:
	case <-timer:
	}
	return ctx.Err() == nil
}

// step writes at most one row, and says how long to wait for the next; false: until something is reported.
func (w *UsageWriter) step(ctx context.Context) (time.Duration, bool) {
	for {
		now := w.Clock.Now()
		w.mu.Lock()
		w.queue.sweep(now)
		wait, some := w.queue.wait(now)
		if !some || wait > 0 {
			w.mu.Unlock()
			return wait, some
		}
		if w.limiter.TokensAt(now) < 1 {
			missing := 1 - w.limiter.TokensAt(now)
			w.mu.Unlock()
			return time.Duration(missing/w.WritesPerSecond*float64(time.Second)) + time.Nanosecond, true
		}
		e := w.queue.pop(now)
		row, final, written := e.row, e.final(), e.written
		w.mu.Unlock()
		if w.write(ctx, e, row, final, written) {
			return 0, true
		}
		if ctx.Err() != nil {
			return 0, false
		}
	}
}

// write brings a row into status, and reports whether that took a write. The entry is not in the queue meanwhile, unless a newer row has
// come; what it holds otherwise is only used here.
func (w *UsageWriter) write(ctx context.Context, e *usageEntry, row usage.Row, final bool, written *usage.Row) bool {
	ctx, cancel := context.WithTimeout(ctx, usageWriteTimeout)
	defer cancel()
	a, err := w.objects.find(ctx, row.ID)
	if err != nil {
		w.retry(e, err)
		return false
	}
	now := w.Clock.Now()
	if a == nil {
		w.notFound(e, now)
		return false
	}
	known := a.usage
	if written != nil { // the cache may be behind this
		known = latest(known, written, false)
	}
	after := latest(known, &row, final)
	since := known
	if e.tried { // a write that seemed to fail may have been carried out, and nothing has been said of it yet
		since = e.base
	}
	// Both are asked, since what the cache says may have been overwritten here.
	wrote := !equality.Semantic.DeepEqual(a.usage, after) || !equality.Semantic.DeepEqual(known, after)
	if wrote {
		w.limiter.AllowN(now, 1)
		if err := w.objects.apply(ctx, a, after); err != nil {
			w.writes.WithLabelValues("error").Inc()
			e.base, e.tried = since, true
			w.retry(e, err)
			return true
		}
		w.writes.WithLabelValues("success").Inc()
		done := rowOf(row.ID, after)
		written = &done
	}
	e.base, e.tried = nil, false
	w.finish(e, written, now)
	w.announce(ctx, a, since, after, now)
	return wrote
}

// announce makes events of the marks that were passed. Status holds what was known before, so that each is passed once, restarts or not.
func (w *UsageWriter) announce(ctx context.Context, a *usageAccount, since, after *v1alpha1.Usage, now time.Time) {
	if a.budgets == nil {
		return
	}
	terms, err := w.objects.terms(ctx)
	if err != nil {
		w.Log.Error(err, "could not read the system policy; events speak of the default currency and time zone")
		terms = termsOf(nil)
	}
	for _, mark := range marksReached(a.title, a.budgets, since, after, now, terms) {
		w.Recorder.Eventf(a.object, nil, corev1.EventTypeWarning, mark.reason, "Spend", "%s", mark.message)
	}
}

// finish notes what status says now.
func (w *UsageWriter) finish(e *usageEntry, written *usage.Row, now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	e.written = written
	w.queue.done(e, now)
}

// notFound keeps the row of an object that may be about to be known, and drops it where it is not: the object is gone.
func (w *UsageWriter) notFound(e *usageEntry, now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if e.missing.IsZero() {
		e.missing = now
	}
	if now.Sub(e.missing) >= usageMissingGrace {
		w.queue.drop(e)
		return
	}
	w.queue.retry(e, now.Add(usageMissingRetry))
}

// retry keeps a row that could not be written for later: soon, where the object has changed or gone meanwhile, which the cache is about
// to know.
func (w *UsageWriter) retry(e *usageEntry, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	first := usageFirstRetry
	if isRace(err) {
		first = raceRetry
	}
	e.backoff = min(max(2*e.backoff, first), usageLongestRetry)
	w.queue.retry(e, w.Clock.Now().Add(e.backoff))
	if !isRace(err) && !errors.Is(err, context.Canceled) {
		w.Log.Error(err, "could not write usage; it is tried again", "uid", e.row.ID, "after", e.backoff.String())
	}
}
