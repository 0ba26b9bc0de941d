package ledger

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"time"

	"github.com/latchkey-dev/latchkey/internal/ledger/journal"
	"github.com/latchkey-dev/latchkey/internal/money"
)

// Journal is where a Memory writes what must survive it. *journal.Journal is the one in use.
type Journal interface {
	// Append takes a change and returns its ticket. It does not wait for the disk.
	Append(c *journal.Change) uint64
	// Wait returns once the change of the ticket is known to survive.
	Wait(ctx context.Context, ticket uint64) error
	Close() error
}

// Options are how a Memory is opened.
type Options struct {
	Now     func() time.Time // required
	Journal Journal          // nil: nothing survives
	State   journal.State    // what the journal held
	// HoldFor is how long Reserve waits where only what is under way stands in the way of a budget. 0: not at all.
	HoldFor time.Duration
	// OnOverrun, if there is one, is told by how much a settlement has passed a budget, or passed it further.
	OnOverrun func(money.Amount)
	Log       *slog.Logger // nil: none
}

// keepIdle is how long an account that nobody uses stays in memory.
const keepIdle = 62 * 24 * time.Hour

// Each sweepEvery reservations, so many accounts are looked at, for what they no longer need.
const (
	sweepEvery = 1024
	sweepMost  = 256
)

// Memory is the embedded ledger: it counts in memory, and writes to a journal. It starts no goroutines.
type Memory struct {
	o Options

	mu       sync.Mutex
	accounts map[string]*account
	open     map[uint64]open
	nextID   uint64
	reserves uint64
	calendar calendar
	latest   time.Time  // the latest time that was seen
	changed  []*account // those that are marked changed
	closed   bool
}

var _ Ledger = (*Memory)(nil)

// open is a reservation that is neither settled nor released.
type open struct {
	key, app         *account
	model            string
	input            Amounts
	tokens           int64
	keyCost, appCost money.Amount // held by each, by its own enforcement
}

// Open starts a ledger from what its journal held. Reservations that were open when the process before ended are charged: it may have
// ended while the provider was at work.
func Open(o Options) (*Memory, error) {
	if o.Now == nil {
		return nil, errors.New("open the ledger: a clock is required")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	l := &Memory{o: o, accounts: make(map[string]*account, len(o.State.Accounts)), open: map[uint64]open{}, nextID: max(o.State.NextID, 1)}
	for i := range o.State.Accounts {
		a := &account{Account: o.State.Accounts[i]}
		l.accounts[a.ID] = a
		l.mark(a)
	}
	for i := range o.State.Open {
		if err := l.chargeOpen(&o.State.Open[i]); err != nil {
			return nil, fmt.Errorf("charge a reservation that was open: %w", err)
		}
	}
	if n := len(o.State.Open); n > 0 {
		o.Log.Warn("reservations were open when the ledger ended, and are charged", slog.Int("count", n))
	}
	return l, nil
}

func (l *Memory) chargeOpen(was *journal.Open) error {
	l.nextID = max(l.nextID, was.ID+1)
	change := journal.Change{Close: was.ID}
	for _, of := range []struct {
		id string
		to **journal.Account
	}{{was.Key, &change.Key}, {was.Application, &change.Application}} {
		if of.id == "" {
			continue
		}
		a := l.account(of.id)
		a.roll(was.Day, was.Month)
		used := Totals{Requests: 1, Tokens: max(was.Tokens, 0), Spent: max(was.Cost, 0), Estimated: max(was.Cost, 0)}
		if a.Day == was.Day {
			add(&a.DayUsage, &used)
		}
		if a.Month == was.Month {
			add(&a.MonthUsage, &used)
		}
		if was.Time.After(a.LastUsed) {
			a.LastUsed = was.Time
		}
		l.mark(a)
		*of.to = &a.Account
	}
	if l.o.Journal == nil {
		return nil
	}
	return l.o.Journal.Wait(context.Background(), l.o.Journal.Append(&change))
}

// account finds an account, or makes one that has used nothing. It holds mu.
func (l *Memory) account(id string) *account {
	a := l.accounts[id]
	if a == nil {
		a = &account{Account: journal.Account{ID: id}}
		l.accounts[id] = a
	}
	return a
}

// forward is now by a clock that never goes back: time itself does not, and limits per minute are by it. It holds mu.
func (l *Memory) forward(now time.Time) time.Time {
	if now.After(l.latest) {
		l.latest = now
	}
	return l.latest
}

// pair finds the accounts of a request. It holds mu.
func (l *Memory) pair(ask *Ask) (key, app *account) {
	key = l.account(ask.Key.ID)
	if app = key.app; app == nil || app.ID != ask.Application.ID || app.gone {
		app = l.account(ask.Application.ID)
		key.app = app
	}
	return key, app
}

// mark notes that an account is to be handed out. It holds mu.
func (l *Memory) mark(a *account) {
	if !a.marked {
		a.marked = true
		l.changed = append(l.changed, a)
	}
}

// append writes a change. It holds mu, so that changes of an account are written in their order.
func (l *Memory) append(c *journal.Change) (ticket uint64) {
	if l.o.Journal == nil {
		return 0
	}
	return l.o.Journal.Append(c)
}

func (l *Memory) wait(ctx context.Context, ticket uint64) error {
	if l.o.Journal == nil {
		return nil
	}
	return l.o.Journal.Wait(ctx, ticket)
}

// Grow implements Ledger.
func (l *Memory) Grow(r *Reservation, used Amounts) {
	l.mu.Lock()
	defer l.mu.Unlock()
	o, found := l.open[r.ID]
	if !found {
		return
	}
	grown := false
	raise := func(held *int64, of *int64, to int64) {
		if to > *held {
			*of = saturated(*of, to-*held)
			*held, grown = to, true
		}
	}
	before := o.tokens
	raise(&o.tokens, &o.key.reservedTokens, used.Tokens)
	o.app.reservedTokens = saturated(o.app.reservedTokens, o.tokens-before)
	raise((*int64)(&o.keyCost), (*int64)(&o.key.reservedCost), int64(used.Cost))
	raise((*int64)(&o.appCost), (*int64)(&o.app.reservedCost), int64(used.Cost))
	if !grown {
		return
	}
	l.open[r.ID] = o
	r.Reserved = Amounts{Tokens: o.tokens, Cost: max(o.keyCost, o.appCost)}
	l.append(&journal.Change{Put: l.record(r.ID, &o)})
}

// record is an open reservation as the journal keeps it. It holds mu.
func (l *Memory) record(id uint64, o *open) *journal.Open {
	return &journal.Open{
		ID: id, Key: o.key.ID, Application: o.app.ID, Model: o.model, Tokens: o.tokens, Cost: max(o.keyCost, o.appCost),
		Day: o.key.Day, Month: o.key.Month, Time: l.calendar.now,
	}
}

// close takes a reservation off the accounts that hold it. It holds mu.
func (l *Memory) close(r *Reservation) (open, bool) {
	o, found := l.open[r.ID]
	if !found {
		return open{}, false
	}
	delete(l.open, r.ID)
	for _, side := range [...]struct {
		a    *account
		cost money.Amount
	}{{o.key, o.keyCost}, {o.app, o.appCost}} {
		side.a.open--
		side.a.reservedTokens -= o.tokens
		side.a.reservedCost -= side.cost
		side.a.free()
	}
	return o, true
}

// Settle implements Ledger. A reservation that is not open, or not any more, is left alone.
func (l *Memory) Settle(r *Reservation, s Settlement) error {
	now := l.o.Now()
	s.Tokens, s.Cost = max(s.Tokens, 0), max(s.Cost, 0)
	l.mu.Lock()
	o, found := l.close(r)
	if !found {
		l.mu.Unlock()
		return nil
	}
	id := r.ID
	r.ID = 0
	l.calendar.set(now, l.calendar.zone)
	latest := l.forward(now)
	overrun := money.Amount(0)
	for _, a := range [...]*account{o.key, o.app} {
		a.roll(l.calendar.day, l.calendar.month)
		overrun = max(overrun, a.use(now, latest, &s))
		l.mark(a)
	}
	if s.Learn {
		o.key.learn(o.model, s.Tokens-o.input.Tokens, s.Cost-o.input.Cost)
	}
	ticket := uint64(0)
	if l.o.Journal != nil {
		ticket = l.append(&journal.Change{Close: id, Key: &o.key.Account, Application: &o.app.Account})
	}
	l.mu.Unlock()
	if overrun > 0 && l.o.OnOverrun != nil {
		l.o.OnOverrun(overrun)
	}
	return l.wait(context.Background(), ticket)
}

// Release implements Ledger. It does not wait for the disk: should the process be killed before that, the reservation is charged.
func (l *Memory) Release(r *Reservation) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, found := l.close(r); found {
		l.append(&journal.Change{Close: r.ID})
	}
	r.ID = 0
	return nil
}

// Balance implements Ledger.
func (l *Memory) Balance(id string, zone *time.Location) Balance {
	now := l.o.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.calendar.set(now, zone)
	c := &l.calendar
	b := Balance{Day: Period{Start: c.dayStart, End: c.dayEnd}, Month: Period{Start: c.monthStart, End: c.monthEnd}}
	a := l.accounts[id]
	if a == nil {
		return b
	}
	if a.window != nil {
		latest := l.forward(now)
		a.window.advance(latest)
		b.RequestsInMinute, b.TokensInMinute = a.window.requests, a.window.tokens
		b.RequestsReset, b.TokensReset = a.window.empty(requestsIn, latest), a.window.empty(tokensIn, latest)
	}
	b.TokensReserved, b.ConcurrentRequests = a.reservedTokens, a.open
	b.Day.Reserved, b.Month.Reserved = a.reservedCost, a.reservedCost
	if a.Day >= c.day {
		b.Day.fill(&a.DayUsage)
	}
	if a.Month >= c.month {
		b.Month.fill(&a.MonthUsage)
	}
	b.LastUsed, b.BlockedSince = a.LastUsed, a.BlockedSince
	return b
}

func (p *Period) fill(t *Totals) {
	p.Requests, p.Tokens, p.Spent, p.Estimated = t.Requests, t.Tokens, t.Spent, t.Estimated
}

// Changed implements Ledger.
func (l *Memory) Changed(most int) []Row {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := min(max(most, 0), len(l.changed))
	rows := make([]Row, 0, n)
	for i, a := range l.changed[:n] {
		a.marked = false
		rows = append(rows, a.Account)
		l.changed[i] = nil
	}
	l.changed = l.changed[n:]
	if len(l.changed) == 0 {
		l.changed = nil // lets go of the array
	}
	return rows
}

// ChangedAll implements Ledger.
func (l *Memory) ChangedAll() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range l.accounts {
		if !a.LastUsed.IsZero() {
			l.mark(a)
		}
	}
}

// Seed implements Ledger.
func (l *Memory) Seed(rows []Row) error {
	l.mu.Lock()
	ticket := uint64(0)
	for i := range rows {
		row := &rows[i]
		a := l.account(row.ID)
		before := a.Account
		a.roll(row.Day, row.Month)
		if a.Day == row.Day {
			raise(&a.DayUsage, &row.DayUsage)
		}
		if a.Month == row.Month {
			raise(&a.MonthUsage, &row.MonthUsage)
		}
		if row.LastUsed.After(a.LastUsed) {
			a.LastUsed = row.LastUsed
		}
		if a.Account != before {
			l.mark(a)
			ticket = l.append(&journal.Change{Key: &a.Account})
		}
	}
	l.mu.Unlock()
	if ticket == 0 {
		return nil
	}
	return l.wait(context.Background(), ticket)
}

// Empty implements Ledger.
func (l *Memory) Empty() bool { return l.o.State.Fresh }

// Close implements Ledger.
func (l *Memory) Close() error {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	if l.o.Journal == nil {
		return nil
	}
	return l.o.Journal.Close()
}

// sweep looks at some accounts, and lets go of what they no longer need. It holds mu.
func (l *Memory) sweep(now time.Time) {
	looked := 0
	for id, a := range l.accounts { // begins anywhere
		if looked++; looked > sweepMost {
			return
		}
		if a.open > 0 {
			continue
		}
		if a.window != nil && a.window.idle(now) {
			a.window = nil
		}
		if a.window == nil && !a.marked && a.waiting == 0 && now.Sub(a.LastUsed) > keepIdle {
			a.gone = true
			delete(l.accounts, id)
		}
	}
}

// saturated is a sum that stays at the largest value once it is too large.
func saturated(a, b int64) int64 {
	if b > 0 && a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}

func add(t, more *Totals) {
	t.Requests = saturated(t.Requests, more.Requests)
	t.Tokens = saturated(t.Tokens, more.Tokens)
	t.Spent = money.Amount(saturated(int64(t.Spent), int64(more.Spent)))
	t.Estimated = money.Amount(saturated(int64(t.Estimated), int64(more.Estimated)))
}

func raise(t, known *Totals) {
	t.Requests, t.Tokens = max(t.Requests, known.Requests), max(t.Tokens, known.Tokens)
	t.Spent, t.Estimated = max(t.Spent, known.Spent), max(t.Estimated, known.Estimated)
}
