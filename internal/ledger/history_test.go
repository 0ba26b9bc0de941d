package ledger

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/latchkey-dev/latchkey/internal/ledger/journal"
	"github.com/latchkey-dev/latchkey/internal/money"
	"github.com/latchkey-dev/latchkey/internal/policy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// modelAccount is an account as simple as it can be said: sums of what was settled since a period began, and what is held.
type modelAccount struct {
	limits  Limits
	lowered bool // a cap was lowered, so that what is spent may be above it
	modelSums
	onDisk modelSums // as of the last settlement: that a period has begun is not written by itself
}

type modelSums struct {
	day, month string
	daySpent   money.Amount
	monthSpent money.Amount
	estimated  money.Amount // of the month
	requests   int64        // of the month
	dayExcess  money.Amount // by how much settlements were above what was held for them, in all
	monExcess  money.Amount
}

// touch begins the periods of a moment, unless later ones have begun.
func (a *modelAccount) touch(now time.Time) { a.begin(now.Format("20060102"), now.Format("200601")) }

func (a *modelAccount) begin(day, month string) {
	if day > a.day {
		a.day, a.daySpent, a.dayExcess = day, 0, 0
	}
	if month > a.month {
		a.month, a.monthSpent, a.estimated, a.requests, a.monExcess = month, 0, 0, 0, 0
	}
}

func (a *modelAccount) spend(cost, held money.Amount, estimated bool) {
	a.daySpent += cost
	a.monthSpent += cost
	a.requests++
	a.dayExcess += max(cost-held, 0)
	a.monExcess += max(cost-held, 0)
	if estimated {
		a.estimated += cost
	}
	a.onDisk = a.modelSums
}

// modelOpen is a reservation that is under way.
type modelOpen struct {
	r          Reservation
	key        string
	held       map[string]money.Amount // by account
	worst      money.Amount
	day, month string // of the key's account when it was made
}

// history drives a ledger and the model side by side.
type history struct {
	t        *testing.T
	random   *rand.Rand
	clock    *clock
	dir      string
	crashes  int
	ledger   *Memory
	accounts map[string]*modelAccount
	open     []*modelOpen
	dearest  money.Amount // of all requests
	passed   int
	refused  int
}

// appOf is the application of a key.
func appOf(key string) string { return "app-" + key[len(key)-1:] }

func (h *history) start() {
	books, state, err := journal.OpenDir(h.dir, journal.Options{NoSync: true, Now: h.clock.Now})
	if err != nil {
		h.t.Fatal(err)
	}
	if h.ledger, err = Open(Options{Now: h.clock.Now, Journal: books, State: state}); err != nil {
		h.t.Fatal(err)
	}
}

// heldIn is what the model's open reservations hold of an account.
func (h *history) heldIn(id string) (sum money.Amount) {
	for _, o := range h.open {
		sum += o.held[id]
	}
	return sum
}

// mayPass is what the rules say of a budget.
func (h *history) mayPass(id string, needed money.Amount) bool {
	a := h.accounts[id]
	for _, b := range []struct{ cap, spent money.Amount }{{a.limits.Daily, a.daySpent}, {a.limits.Monthly, a.monthSpent}} {
		switch held := h.heldIn(id); {
		case b.cap < 0:
		case b.cap == 0:
			return false
		case a.limits.Enforcement == policy.Strict && b.spent+held+needed > b.cap:
			return false
		case a.limits.Enforcement == policy.UntilReached && b.spent+held >= b.cap:
			return false
		}
	}
	return true
}

func (h *history) reserve() {
	key := fmt.Sprintf("key-%d-%d", h.random.IntN(3), h.random.IntN(2))
	app := appOf(key)
	worst := money.Amount(1 + h.random.Int64N(1_000))
	ask := &Ask{
		Key: Account{ID: key, Limits: h.accounts[key].limits}, Application: Account{ID: app, Limits: h.accounts[app].limits},
		Model: fmt.Sprint("m", h.random.IntN(2)), Zone: time.UTC,
		Input: Amounts{Cost: money.Amount(h.random.Int64N(int64(worst)))}, Worst: Amounts{Tokens: 10, Cost: worst},
	}
	now := h.clock.Now()
	before := map[string]money.Amount{}
	for _, id := range []string{key, app} {
		h.accounts[id].touch(now)
		before[id] = h.ledger.Balance(id, time.UTC).Day.Reserved
		if held := h.heldIn(id); before[id] != held {
			h.t.Fatalf("%s holds %d, and should %d", id, before[id], held)
		}
	}
	r, refusal, err := h.ledger.Reserve(h.t.Context(), ask)
	if err != nil {
		h.t.Fatal(err)
	}
	if refusal != nil {
		h.refused++
		whose := key
		if refusal.Scope == ScopeApplication {
			whose = app
		}
		if h.mayPass(whose, worst) {
			h.t.Fatalf("%s refuses %+v, with %+v and %d held", whose, refusal, h.accounts[whose], h.heldIn(whose))
		}
		return
	}
	for _, id := range []string{key, app} {
		if !h.mayPass(id, worst) {
			h.t.Fatalf("%s lets through, with %+v and %d held", id, h.accounts[id], h.heldIn(id))
		}
	}
	h.passed++
	h.dearest = max(h.dearest, worst)
	o := &modelOpen{r: r, key: key, worst: worst, held: map[string]money.Amount{}, day: h.accounts[key].day, month: h.accounts[key].month}
	for _, id := range []string{key, app} {
		o.held[id] = h.ledger.Balance(id, time.UTC).Day.Reserved - before[id]
		if o.held[id] < 0 || o.held[id] > worst || h.accounts[id].limits.Enforcement == policy.Strict && o.held[id] != worst {
			h.t.Fatalf("%s holds %d of at most %d for a request", id, o.held[id], worst)
		}
	}
	h.open = append(h.open, o)
}

// take picks an open reservation; nil: there is none.
func (h *history) take(remove bool) *modelOpen {
	if len(h.open) == 0 {
		return nil
	}
	i := h.random.IntN(len(h.open))
	o := h.open[i]
	if remove {
		h.open = slices.Delete(h.open, i, i+1)
	}
	return o
}

func (h *history) settle() {
	o := h.take(true)
	if o == nil {
		return
	}
	cost := money.Amount(h.random.Int64N(int64(o.worst) + 1))
	s := Settlement{Amounts: Amounts{Tokens: 1, Cost: cost}, Estimated: h.random.IntN(4) == 0, Learn: h.random.IntN(2) == 0}
	again := o.r
	if err := h.ledger.Settle(&o.r, s); err != nil {
		h.t.Fatal(err)
	}
	if err := h.ledger.Settle(&again, s); err != nil { // must count nothing
		h.t.Fatal(err)
	}
	for _, id := range []string{o.key, appOf(o.key)} {
		h.accounts[id].touch(h.clock.Now())
		h.accounts[id].spend(cost, o.held[id], s.Estimated)
	}
}

func (h *history) release() {
	if o := h.take(true); o != nil {
		if err := h.ledger.Release(&o.r); err != nil {
			h.t.Fatal(err)
		}
	}
}

func (h *history) grow() {
	o := h.take(false)
	if o == nil {
		return
	}
	to := money.Amount(h.random.Int64N(int64(o.worst) + 1))
	h.ledger.Grow(&o.r, Amounts{Cost: to})
	for id := range o.held {
		o.held[id] = max(o.held[id], to)
	}
}

func (h *history) edit() {
	ids := slices.Sorted(maps.Keys(h.accounts))
	a := h.accounts[ids[h.random.IntN(len(ids))]]
	cap := money.Amount(h.random.Int64N(20_000))
	if h.random.IntN(8) == 0 {
		cap = policy.NoBudget
	}
	of := &a.limits.Daily
	if h.random.IntN(2) == 0 {
		of = &a.limits.Monthly
	}
	a.lowered = a.lowered || cap >= 0 && (*of < 0 || cap < *of)
	*of = cap
}

func (h *history) clockMoves() {
	switch h.random.IntN(5) {
	case 0:
		h.clock.pass(-time.Duration(h.random.Int64N(int64(30 * time.Hour))))
	case 1:
		h.clock.pass(time.Duration(h.random.Int64N(int64(40 * time.Hour))))
	default:
		h.clock.pass(time.Duration(h.random.Int64N(int64(time.Hour))))
	}
}

// crash takes the file as it is, without an end in good order, and starts from it.
func (h *history) crash() {
	// What nobody waited for may be on its way.
	if err := h.ledger.o.Journal.Wait(context.Background(), h.ledger.o.Journal.Append(&journal.Change{Close: 1 << 60})); err != nil {
		h.t.Fatal(err)
	}
	content, err := os.ReadFile(filepath.Join(h.dir, "ledger.db"))
	if err != nil {
		h.t.Fatal(err)
	}
	if err := h.ledger.Close(); err != nil {
		h.t.Fatal(err)
	}
	h.crashes++
	h.dir = filepath.Join(h.t.TempDir(), fmt.Sprint("crash-", h.crashes))
	if err := os.MkdirAll(h.dir, 0o700); err != nil {
		h.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(h.dir, "ledger.db"), content, 0o600); err != nil {
		h.t.Fatal(err)
	}
	// Whatever was under way is charged, in the period in which it was let through.
	for _, a := range h.accounts {
		a.modelSums = a.onDisk
	}
	slices.SortFunc(h.open, func(a, b *modelOpen) int { return int(a.r.ID) - int(b.r.ID) })
	for _, o := range h.open {
		charged := money.Amount(0)
		for _, held := range o.held {
			charged = max(charged, held)
		}
		for id, held := range o.held {
			a := h.accounts[id]
			excess := max(charged-held, 0)
			a.begin(o.day, o.month)
			if a.day == o.day {
				a.daySpent += charged
				a.dayExcess += excess
			}
			if a.month == o.month {
				a.monthSpent += charged
				a.estimated += charged
				a.requests++
				a.monExcess += excess
			}
			a.onDisk = a.modelSums
		}
	}
	h.open = nil
	h.start()
}

// check compares the ledger with the model, and both with what is promised.
func (h *history) check() {
	now := h.clock.Now()
	for id, a := range h.accounts {
		b := h.ledger.Balance(id, time.UTC)
		daySpent, monthSpent, estimated, requests := a.daySpent, a.monthSpent, a.estimated, a.requests
		if a.day < now.Format("20060102") {
			daySpent = 0
		}
		if a.month < now.Format("200601") {
			monthSpent, estimated, requests = 0, 0, 0
		}
		if b.Day.Spent != daySpent || b.Month.Spent != monthSpent || b.Month.Estimated != estimated || b.Month.Requests != requests || b.Day.Reserved != h.heldIn(id) {
			h.t.Fatalf("%s: the ledger says %+v, the model %+v, with %d held", id, b, a, h.heldIn(id))
		}
		if a.lowered {
			continue
		}
		for _, p := range []struct{ cap, spent, excess money.Amount }{{a.limits.Daily, a.daySpent, a.dayExcess}, {a.limits.Monthly, a.monthSpent, a.monExcess}} {
			switch {
			case p.cap < 0:
			case a.limits.Enforcement == policy.Strict && p.spent > p.cap:
				h.t.Fatalf("%s has spent %d of %d, and is Strict", id, p.spent, p.cap)
			case p.spent > p.cap+h.dearest+p.excess:
				h.t.Fatalf("%s has spent %d of %d, with requests of at most %d, and %d above what was held", id, p.spent, p.cap, h.dearest, p.excess)
			}
		}
	}
}

// TestHistories drives random histories of requests, edits, clocks that jump, and crashes, against the model.
func TestHistories(t *testing.T) {
	t.Parallel()
	steps := 1_500
	if testing.Short() {
		steps = 300
	}
	for seed := range uint64(24) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			h := &history{t: t, random: rand.New(rand.NewPCG(seed, 9)), clock: newClock(), dir: t.TempDir(), accounts: map[string]*modelAccount{}}
			for _, id := range []string{"key-0-0", "key-1-0", "key-2-0", "key-0-1", "key-1-1", "key-2-1", "app-0", "app-1"} {
				a := &modelAccount{limits: noLimits()}
				a.limits.Enforcement = policy.Enforcement(h.random.IntN(2))
				a.limits.Daily, a.limits.Monthly = money.Amount(h.random.Int64N(20_000)), money.Amount(h.random.Int64N(60_000))
				h.accounts[id] = a
			}
			h.start()
			edits := seed%2 == 0 // in the other half the caps stand, and so does the promise
			for range steps {
				switch n := h.random.IntN(100); {
				case n < 50:
					h.reserve()
				case n < 80:
					h.settle()
				case n < 85:
					h.release()
				case n < 92:
					h.grow()
				case n < 95:
					h.clockMoves()
				case n < 97 && edits:
					h.edit()
				case n == 99 && h.random.IntN(4) == 0:
					h.crash()
				}
				h.check()
			}
			if err := h.ledger.Close(); err != nil {
				t.Fatal(err)
			}
			if _, _, err := h.ledger.Reserve(t.Context(), ask(noLimits(), noLimits())); !errors.Is(err, errClosed) {
				t.Errorf("after Close: %v", err)
			}
			if h.passed < steps/30 || h.refused == 0 {
				t.Errorf("%d passed and %d were refused: the history says little", h.passed, h.refused)
			}
		})
	}
}

// failing is a journal whose disk is full.
type failing struct{ full bool }

var errFull = errors.New("no space left on device")

func (f *failing) Append(*journal.Change) uint64 { return 1 }

func (f *failing) Wait(context.Context, uint64) error {
	if f.full {
		return errFull
	}
	return nil
}

func (f *failing) Close() error { return nil }

// TestAFullDisk refuses, or goes on by what is in memory where that is asked for.
func TestAFullDisk(t *testing.T) {
	t.Parallel()
	disk := &failing{full: true}
	l := newMemory(t, Options{Now: newClock().Now, Journal: disk})
	a := ask(limited(func(l *Limits) { l.Daily = 1_500 }), noLimits())
	if _, refusal, err := l.Reserve(t.Context(), a); !errors.Is(err, errFull) || refusal != nil {
		t.Fatalf("%+v, %v", refusal, err)
	}
	if b := l.Balance("key", time.UTC); b.Day.Reserved != 0 || b.ConcurrentRequests != 0 {
		t.Errorf("after a refusal for want of a disk: %+v", b)
	}
	a.Volatile = true
	for range 2 {
		r := pass(t, l, a)
		if err := l.Settle(r, Settlement{Amounts: used, Learn: true}); !errors.Is(err, errFull) {
			t.Errorf("settled: %v", err)
		}
	}
	if r := refused(t, l, a); r.Used != 2_000 {
		t.Errorf("by what is in memory: %+v", r)
	}
}
