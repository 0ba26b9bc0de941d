package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.uber.org/goleak"

	"github.com/latchkey-dev/latchkey/internal/money"
)

func TestMain(m *testing.M) {
	switch os.Getenv(childEnv) {
	case "load":
		childLoad()
	case "full":
		childFull()
	default:
		goleak.VerifyTestMain(m)
	}
}

var testTime = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// logs is a log that can be read while it is written.
type logs struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func (l *logs) logger() *slog.Logger { return slog.New(slog.NewJSONHandler(l, nil)) }

func mustOpen(t testing.TB, dir string, o Options) (*Journal, State) {
	t.Helper()
	if o.Now == nil {
		o.Now = func() time.Time { return testTime }
	}
	j, state, err := OpenDir(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	return j, state
}

func mustClose(t testing.TB, j *Journal) {
	t.Helper()
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
}

func mustWait(t testing.TB, j *Journal, ticket uint64) {
	t.Helper()
	if err := j.Wait(context.Background(), ticket); err != nil {
		t.Fatal(err)
	}
}

// contents opens a journal, which must be sound and not fresh, for what it holds.
func contents(t testing.TB, dir string) State {
	t.Helper()
	var out logs
	j, state := mustOpen(t, dir, Options{Log: out.logger(), NoSync: true})
	mustClose(t, j)
	if state.Fresh || out.String() != "" {
		t.Fatalf("fresh: %v; log: %s", state.Fresh, out.String())
	}
	return state
}

func totals(n int64) Totals {
	return Totals{Requests: n, Tokens: 100 * n, Spent: money.Amount(1000 * n), Estimated: money.Amount(n)}
}

func account(id string, n int64) *Account {
	return &Account{ID: id, Day: 20261123, Month: 202611, DayUsage: totals(n), MonthUsage: totals(2 * n), LastUsed: testTime}
}

func reservation(id uint64) *Open {
	return &Open{
		ID: id, Key: "key-a", Application: "app-a", Model: "gpt", Tokens: int64(id), Cost: money.Amount(7 * id), Day: 20261123, Month: 202611, Time: testTime,
	}
}

func diff(want, got State) string { return cmp.Diff(want, got, cmpopts.EquateEmpty()) }

func TestStateSurvives(t *testing.T) {
	t.Parallel()
	odd := time.Date(1969, 1, 1, 0, 0, 0, 999_999_999, time.FixedZone("x", 3600))
	for name, tc := range map[string]struct {
		changes []*Change
		want    State
	}{
		"nothing at all": {nil, State{NextID: 1}},
		"a reservation with its accounts": {
			[]*Change{{Put: reservation(1), Key: account("key-a", 1), Application: account("app-a", 2)}},
			State{Accounts: []Account{*account("app-a", 2), *account("key-a", 1)}, Open: []Open{*reservation(1)}, NextID: 2},
		},
		"a later state in an earlier one's place": {
			[]*Change{{Key: account("a", 5)}, {Key: account("a", 4)}, {Application: account("a", 3)}},
			State{Accounts: []Account{*account("a", 3)}, NextID: 1},
		},
		"a reservation that grew": {
			[]*Change{{Put: reservation(3)}, {Put: &Open{ID: 3, Key: "k", Tokens: 9}}},
			State{Open: []Open{{ID: 3, Key: "k", Tokens: 9}}, NextID: 4},
		},
		"the ID of a reservation that is closed": {
			[]*Change{{Put: reservation(8)}, {Put: reservation(9)}, {Close: 9, Key: account("a", 1)}},
			State{Accounts: []Account{*account("a", 1)}, Open: []Open{*reservation(8)}, NextID: 10},
		},
		"a reservation opened again": {
			[]*Change{{Put: reservation(5)}, {Close: 5}, {Put: reservation(5)}},
			State{Open: []Open{*reservation(5)}, NextID: 6},
		},
		"reservations in the order of their IDs": {
			[]*Change{{Put: reservation(300)}, {Put: reservation(2)}, {Put: reservation(1 << 40)}},
			State{Open: []Open{*reservation(2), *reservation(300), *reservation(1 << 40)}, NextID: 1<<40 + 1},
		},
		"the extremes": {
			[]*Change{{
				Put: &Open{ID: 1<<64 - 2, Key: strings.Repeat("k", 300), Model: "mödel\x00", Tokens: -1 << 63, Cost: 1<<63 - 1, Day: -1 << 31, Month: 1<<31 - 1, Time: odd},
				Key: &Account{
					ID: strings.Repeat("\x00", 64), Day: 1<<31 - 1, Month: 1<<31 - 1, DayUsage: Totals{1<<63 - 1, -1 << 63, -1, 1}, LastUsed: odd, BlockedSince: testTime,
				},
			}},
			State{
				Accounts: []Account{{
					ID: strings.Repeat("\x00", 64), Day: 1<<31 - 1, Month: 1<<31 - 1, DayUsage: Totals{1<<63 - 1, -1 << 63, -1, 1}, LastUsed: odd, BlockedSince: testTime,
				}},
				Open: []Open{{
					ID: 1<<64 - 2, Key: strings.Repeat("k", 300), Model: "mödel\x00", Tokens: -1 << 63, Cost: 1<<63 - 1, Day: -1 << 31, Month: 1<<31 - 1, Time: odd,
				}},
				NextID: 1<<64 - 1,
			},
		},
	} {
		for _, each := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, each in a commit of its own %v", name, each), func(t *testing.T) {
				t.Parallel()
				dir := filepath.Join(t.TempDir(), "state")
				j, state := mustOpen(t, dir, Options{})
				if d := diff(State{Fresh: true, NextID: 1}, state); d != "" {
					t.Fatalf("a new journal (-want +got):\n%s", d)
				}
				for _, c := range tc.changes {
					ticket := j.Append(c)
					if each {
						mustWait(t, j, ticket)
					}
				}
				mustClose(t, j)
				if d := diff(tc.want, contents(t, dir)); d != "" {
					t.Errorf("(-want +got):\n%s", d)
				}
			})
		}
	}
}

func TestFilesAreTheirOwnersOnly(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "a", "state")
	j, _ := mustOpen(t, dir, Options{})
	mustClose(t, j)
	for path, want := range map[string]os.FileMode{dir: 0o700, filepath.Join(dir, storeFile): 0o600} {
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%s has mode %v, %v; want %v", path, info.Mode(), err, want)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("the directory has %v, %v; want the one file", entries, err)
	}
}

// What Append is given may be changed as soon as it returns.
func TestAppendCopies(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	j, _ := mustOpen(t, dir, Options{})
	o, a := reservation(1), account("a", 1)
	c := &Change{Put: o, Key: a}
	j.Append(c)
	*o, *a, *c = Open{}, Account{}, Change{}
	mustClose(t, j)
	if d := diff(State{Accounts: []Account{*account("a", 1)}, Open: []Open{*reservation(1)}, NextID: 2}, contents(t, dir)); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// model is what a journal should hold.
type model struct {
	accounts     map[string]Account
	open         map[uint64]Open
	days, months map[period]Totals
	next         uint64
}

func newModel() *model {
	return &model{map[string]Account{}, map[uint64]Open{}, map[period]Totals{}, map[period]Totals{}, 1}
}

func (m *model) change(c *Change) {
	if c.Put != nil {
		m.open[c.Put.ID] = *c.Put
		m.next = max(m.next, c.Put.ID+1)
	}
	delete(m.open, c.Close)
	m.next = max(m.next, c.Close+1)
	for _, a := range []*Account{c.Key, c.Application} {
		if a == nil {
			continue
		}
		m.accounts[a.ID] = *a
		m.days[period{a.ID, a.Day}] = a.DayUsage
		m.months[period{a.ID, a.Month}] = a.MonthUsage
	}
}

func (m *model) state() State {
	s := State{NextID: m.next}
	for _, id := range slices.Sorted(maps.Keys(m.accounts)) {
		s.Accounts = append(s.Accounts, m.accounts[id])
	}
	for _, id := range slices.Sorted(maps.Keys(m.open)) {
		s.Open = append(s.Open, m.open[id])
	}
	return s
}

func history(all map[period]Totals, id string) []DayTotals {
	var list []DayTotals
	for p, t := range all {
		if p.id == id && t != (Totals{}) {
			list = append(list, DayTotals{p.key, t})
		}
	}
	slices.SortFunc(list, func(a, b DayTotals) int { return int(a.Day - b.Day) })
	return list
}

func randomTotals(rng *rand.Rand) Totals {
	if rng.IntN(4) == 0 {
		return Totals{}
	}
	return totals(rng.Int64N(1 << 30))
}

func randomChange(rng *rand.Rand, last *uint64) *Change {
	c := &Change{}
	if rng.IntN(2) == 0 {
		*last += 1 + rng.Uint64N(2)
		c.Put = reservation(*last)
	} else if rng.IntN(8) == 0 && *last > 0 {
		c.Put = reservation(1 + rng.Uint64N(*last)) // grown, or opened again
		c.Put.Tokens = rng.Int64()
	}
	if rng.IntN(2) == 0 && *last > 0 {
		c.Close = *last - min(*last-1, rng.Uint64N(8))
	}
	for _, a := range []**Account{&c.Key, &c.Application} {
		if rng.IntN(4) > 0 {
			at := testTime.AddDate(0, 0, -rng.IntN(50))
			*a = &Account{
				ID: fmt.Sprintf("account\x00%d", rng.IntN(12)), Day: dayKey(at), Month: monthKey(at), DayUsage: randomTotals(rng), MonthUsage: randomTotals(rng),
				LastUsed: testTime.Add(-time.Duration(rng.Int64N(1e15))),
			}
		}
	}
	return c
}

// Random histories, with batches of all sizes, closed and opened again at random, are compared with a simple model.
func TestRandomHistoriesSurvive(t *testing.T) {
	t.Parallel()
	for seed := range uint64(20) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewPCG(seed, 1))
			dir, m, last := t.TempDir(), newModel(), uint64(0)
			j, _ := mustOpen(t, dir, Options{NoSync: true})
			for range 600 {
				c := randomChange(rng, &last)
				m.change(c)
				ticket := j.Append(c)
				if rng.IntN(8) == 0 {
					mustWait(t, j, ticket)
				}
				if rng.IntN(100) > 0 {
					continue
				}
				mustClose(t, j)
				var state State
				j, state = mustOpen(t, dir, Options{NoSync: true})
				if d := diff(m.state(), state); d != "" {
					t.Fatalf("(-want +got):\n%s", d)
				}
				for id := range m.accounts {
					days, err := j.History(id, 0, 99999999)
					if d := cmp.Diff(history(m.days, id), days); d != "" || err != nil {
						t.Fatalf("days of %q: %v (-want +got):\n%s", id, err, d)
					}
					months, err := j.Months(id, 0, 999999)
					if d := cmp.Diff(history(m.months, id), months); d != "" || err != nil {
						t.Fatalf("months of %q: %v (-want +got):\n%s", id, err, d)
					}
				}
			}
			mustClose(t, j)
		})
	}
}

func TestHistoryIsOfOneAccountAndBounded(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	j, _ := mustOpen(t, dir, Options{})
	for _, id := range []string{"a", "a\x00\x01\x34\xf3", "ab", "b"} {
		for day := range int32(5) {
			a := account(id, int64(day)+1)
			a.Day += day - 4
			mustWait(t, j, j.Append(&Change{Key: a}))
		}
	}
	for name, tc := range map[string]struct {
		id       string
		from, to int32
		want     []int32
	}{
		"all days":                {"a", 0, 99999999, []int32{20261119, 20261120, 20261121, 20261122, 20261123}},
		"some, without today":     {"a", 20261120, 20261121, []int32{20261120, 20261121}},
		"today":                   {"b", 20261123, 20261123, []int32{20261123}},
		"before the first":        {"b", 20250101, 20261118, nil},
		"an account there is not": {"c", 0, 99999999, nil},
		"the wrong way round":     {"b", 20261123, 20261119, nil},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := j.History(tc.id, tc.from, tc.to)
			if err != nil {
				t.Fatal(err)
			}
			var want []DayTotals
			for _, day := range tc.want {
				want = append(want, DayTotals{day, totals(int64(day) - 20261118)})
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
	mustClose(t, j)
	if _, err := j.History("a", 0, 99999999); err == nil {
		t.Error("a closed journal has a history")
	}
}

func TestChangesThatAreNotValidAreRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	j, _ := mustOpen(t, dir, Options{})
	for name, c := range map[string]*Change{
		"a reservation without an ID":                  {Put: &Open{}},
		"a reservation whose ID has no next one":       {Put: reservation(1<<64 - 1)},
		"the end of one whose ID has no next one":      {Close: 1<<64 - 1},
		"an account without an ID":                     {Key: &Account{}},
		"an account whose ID is longer than the limit": {Application: account(strings.Repeat("x", 65), 1)},
	} {
		if err := j.Wait(t.Context(), j.Append(c)); err == nil || !strings.Contains(err.Error(), "not valid") {
			t.Errorf("%s: error %v", name, err)
		}
	}
	mustClose(t, j)
	if d := diff(State{NextID: 1}, contents(t, dir)); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestWaitEndsWithItsContext(t *testing.T) {
	t.Parallel()
	hold, held := make(chan struct{}), make(chan struct{})
	once := sync.OnceFunc(func() { close(held); <-hold })
	j, _ := mustOpen(t, t.TempDir(), Options{OnCommit: func(int, time.Duration) { once() }})
	first := j.Append(&Change{Key: account("a", 1)})
	<-held
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := j.Wait(ctx, first); err != nil {
		t.Errorf("what is on disk needs no context, but: %v", err)
	}
	second := j.Append(&Change{Key: account("a", 2)})
	if err := j.Wait(ctx, second); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if err := j.Wait(t.Context(), second+1); err == nil || !strings.Contains(err.Error(), "no ticket") {
		t.Errorf("a ticket that was never handed out: error %v", err)
	}
	close(hold)
	mustWait(t, j, second)
	mustClose(t, j)
}

func TestCloseWritesWhatIsQueuedAndEndsAllWaits(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	hold, held := make(chan struct{}), make(chan struct{})
	once := sync.OnceFunc(func() { close(held); <-hold })
	j, _ := mustOpen(t, dir, Options{OnCommit: func(int, time.Duration) { once() }})
	j.Append(&Change{Put: reservation(1)})
	<-held
	var wg sync.WaitGroup
	for i := range uint64(50) {
		ticket := j.Append(&Change{Put: reservation(2 + i)})
		wg.Go(func() {
			if err := j.Wait(context.Background(), ticket); err != nil {
				t.Error(err)
			}
		})
	}
	for range 2 {
		wg.Go(func() { mustClose(t, j) })
	}
	close(hold)
	wg.Wait()
	mustClose(t, j)
	if err := j.Wait(t.Context(), j.Append(&Change{Put: reservation(99)})); !errors.Is(err, ErrClosed) {
		t.Errorf("a change after the end: error %v", err)
	}
	mustWait(t, j, 51)
	if state := contents(t, dir); len(state.Open) != 51 || state.NextID != 52 {
		t.Errorf("it holds %d reservations, and the next ID is %d", len(state.Open), state.NextID)
	}
}

func TestAppendAndWaitDoNotAllocate(t *testing.T) {
	dir := t.TempDir()
	j, _ := mustOpen(t, dir, Options{NoSync: true})
	c := &Change{Put: reservation(1), Key: account("key-a", 1), Application: account("app-a", 1)}
	b := newBatch()
	if n := testing.AllocsPerRun(1000, func() {
		b.change(c)
		b.change(&Change{Close: c.Put.ID})
		if b.changes%10 == 0 {
			b = b.emptied()
		}
		c.Put.ID++
	}); n > 0 {
		t.Errorf("a change allocates %v times", n)
	}
	ticket := j.Append(c)
	mustWait(t, j, ticket)
	ctx := t.Context()
	if n := testing.AllocsPerRun(1000, func() {
		if err := j.Wait(ctx, ticket); err != nil {
			t.Fatal(err)
		}
	}); n > 0 {
		t.Errorf("waiting for what is on disk allocates %v times", n)
	}
	mustClose(t, j)
}
