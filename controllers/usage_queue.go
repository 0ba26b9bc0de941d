package controllers

import (
	"cmp"
	"container/heap"
	"time"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	"github.com/latchkey-dev/latchkey/internal/usage"
)

const (
	// applicationWeight is how much more the wait of an Application counts than a key's: it stands for all its keys, and there are few.
	// It is a factor and no strict order, so that many busy Applications do not keep keys from being written for good.
	applicationWeight = 100
	// rememberWrites is how long a write is remembered, to know whose was the longest ago.
	rememberWrites = time.Hour
)

// urgency is which of the rows that wait are written first.
type urgency uint8

const (
	urgentBudget      urgency = iota // a budget or 80 % of it reached, or freed: somebody has to know
	urgentFirst                      // the first use ever
	urgentApplication                // weighed against urgentKey by how long they have waited
	urgentKey
	urgencyCount
)

// usageEntry is the latest row of an account that is to be written, and what was written last.
type usageEntry struct {
	row     usage.Row
	final   func() bool // reports whether the row's reporter is still there
	urgency urgency
	queued  bool      // in one of the queue's heaps
	index   int       // in that heap
	order   uint64    // of arrival
	since   time.Time // of the last write, or else of the first report: who waits the longest is the next
	written *usage.Row
	missing time.Time     // since when no object is known of this UID; zero: one is, or it was not looked for
	backoff time.Duration // of the next failure
	due     time.Time     // of the next try, in the heap of those that wait for it

	// Owned by the goroutine that writes.
	tried bool            // a write has failed since the last one that did not
	base  *v1alpha1.Usage // what was known before that
}

// usageHeap orders entries.
type usageHeap struct {
	entries []*usageEntry
	less    func(a, b *usageEntry) bool
}

var _ heap.Interface = (*usageHeap)(nil)

// Len is how many entries there are.
func (h *usageHeap) Len() int { return len(h.entries) }

// Less is the order.
func (h *usageHeap) Less(i, j int) bool { return h.less(h.entries[i], h.entries[j]) }

// Swap keeps the entries' indexes right.
func (h *usageHeap) Swap(i, j int) {
	h.entries[i], h.entries[j] = h.entries[j], h.entries[i]
	h.entries[i].index, h.entries[j].index = i, j
}

// Push adds an entry at the end.
func (h *usageHeap) Push(x any) {
	e := x.(*usageEntry)
	e.index = len(h.entries)
	h.entries = append(h.entries, e)
}

// Pop takes the last entry.
func (h *usageHeap) Pop() any {
	last := len(h.entries) - 1
	e := h.entries[last]
	h.entries[last] = nil
	h.entries = h.entries[:last]
	return e
}

// usageQueue holds one entry an account, however often it is reported. It is not safe for concurrent use.
type usageQueue struct {
	all   map[string]*usageEntry // by UID
	ready [urgencyCount]*usageHeap
	later *usageHeap
	order uint64
	swept time.Time
}

func newUsageQueue() *usageQueue {
	q := &usageQueue{
		all:   map[string]*usageEntry{},
		later: &usageHeap{less: func(a, b *usageEntry) bool { return a.due.Before(b.due) }},
	}
	for i := range q.ready {
		q.ready[i] = &usageHeap{less: func(a, b *usageEntry) bool {
			return cmp.Or(a.since.Compare(b.since), cmp.Compare(a.order, b.order)) < 0
		}}
	}
	return q
}

// put takes a row in the place of the account's former one. An entry that has become more urgent moves forward; one that waits for its
// next try goes on waiting.
func (q *usageQueue) put(row usage.Row, u urgency, final func() bool, now time.Time) {
	e := q.all[row.ID]
	if e == nil {
		e = &usageEntry{since: now, urgency: u}
		q.all[row.ID] = e
	}
	e.row, e.final = row, final
	switch {
	case !e.due.IsZero(): // in later
		e.urgency = min(e.urgency, u)
	case !e.queued:
		e.urgency = u
		q.push(e)
	case u < e.urgency:
		heap.Remove(q.ready[e.urgency], e.index)
		e.urgency = u
		heap.Push(q.ready[u], e)
	}
}

func (q *usageQueue) push(e *usageEntry) {
	q.order++
	e.order, e.queued = q.order, true
	heap.Push(q.ready[e.urgency], e)
}

// pop takes the entry out that is to be written next; nil: none is ready. It has to be followed by done, retry or drop.
func (q *usageQueue) pop(now time.Time) *usageEntry {
	for q.later.Len() > 0 && !q.later.entries[0].due.After(now) {
		e := heap.Pop(q.later).(*usageEntry)
		e.due = time.Time{}
		q.push(e)
	}
	from := q.next(now)
	if from == nil {
		return nil
	}
	e := heap.Pop(from).(*usageEntry)
	e.queued = false
	return e
}

// next is the heap whose first entry is to be written next.
func (q *usageQueue) next(now time.Time) *usageHeap {
	for _, u := range []urgency{urgentBudget, urgentFirst} {
		if q.ready[u].Len() > 0 {
			return q.ready[u]
		}
	}
	apps, keys := q.ready[urgentApplication], q.ready[urgentKey]
	switch {
	case apps.Len() == 0 && keys.Len() == 0:
		return nil
	case apps.Len() == 0:
		return keys
	case keys.Len() == 0:
		return apps
	case now.Sub(apps.entries[0].since).Seconds()*applicationWeight >= now.Sub(keys.entries[0].since).Seconds():
		return apps
	}
	return keys
}

// done notes that an entry was written, or needs no write.
func (q *usageQueue) done(e *usageEntry, now time.Time) {
	e.since, e.backoff, e.missing = now, 0, time.Time{}
	if e.queued { // a newer row has come meanwhile
		heap.Fix(q.ready[e.urgency], e.index)
	}
}

// retry sets an entry aside for a while.
func (q *usageQueue) retry(e *usageEntry, due time.Time) {
	if e.queued { // a newer row has come meanwhile
		heap.Remove(q.ready[e.urgency], e.index)
		e.queued = false
	}
	e.due = due
	heap.Push(q.later, e)
}

// drop forgets an account.
func (q *usageQueue) drop(e *usageEntry) {
	if e.queued {
		heap.Remove(q.ready[e.urgency], e.index)
		e.queued = false
	}
	delete(q.all, e.row.ID)
}

// sweep forgets the writes of long ago, now and then, so that what is remembered of accounts that are gone is bounded.
func (q *usageQueue) sweep(now time.Time) {
	if now.Sub(q.swept) < rememberWrites/4 {
		return
	}
	q.swept = now
	for id, e := range q.all {
		if !e.queued && e.due.IsZero() && now.Sub(e.since) > rememberWrites {
			delete(q.all, id)
		}
	}
}

// wait is how long until an entry is ready; false: there is none.
func (q *usageQueue) wait(now time.Time) (time.Duration, bool) {
	for _, h := range q.ready {
		if h.Len() > 0 {
			return 0, true
		}
	}
	if q.later.Len() > 0 {
		return max(0, q.later.entries[0].due.Sub(now)), true
	}
	return 0, false
}

// pending is how many rows are to be written.
func (q *usageQueue) pending() int {
	n := q.later.Len()
	for _, h := range q.ready {
		n += h.Len()
	}
	return n
}
