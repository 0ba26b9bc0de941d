package journal

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestWhatIsOldIsRemovedInSmallSteps(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var clock atomic.Int64
	now := func() time.Time { return time.Unix(clock.Load(), 0) }
	clock.Store(testTime.Unix())
	j, _ := mustOpen(t, dir, Options{NoSync: true, Now: now})
	const accounts = 300
	id := func(i int) string { return fmt.Sprintf("account-%03d", i) }
	use := func(i int) *Account {
		a := account(id(i), 1)
		a.LastUsed = now()
		a.Day, a.Month = dayKey(now().UTC()), monthKey(now().UTC())
		return a
	}
	// Everybody uses something on each of 70 days; the file is bounded by what is kept of them.
	for range 70 {
		clock.Add(24 * 3600)
		for i := range accounts {
			j.Append(&Change{Key: use(i)})
		}
		mustWait(t, j, j.Append(&Change{Put: reservation(1)}))
	}
	kept := func(i int) (days, months int) {
		d, err := j.History(id(i), 0, 99999999)
		if err != nil {
			t.Fatal(err)
		}
		m, err := j.Months(id(i), 0, 999999)
		if err != nil {
			t.Fatal(err)
		}
		return len(d), len(m)
	}
	// Commits, until nothing more changes.
	settle := func() {
		t.Helper()
		for range accounts * 80 / pruneRemoves {
			mustWait(t, j, j.Append(&Change{Put: reservation(1)}))
		}
	}
	settle()
	for _, i := range []int{0, 150, accounts - 1} {
		if days, months := kept(i); days != keepDays+1 || months != 4 {
			t.Errorf("account %d has %d days and %d months; want %d and 4", i, days, months, keepDays+1)
		}
	}
	// After 13 months, their days are gone, and two of their months. Only one account is used.
	clock.Store(now().AddDate(1, 1, 0).Unix())
	mustWait(t, j, j.Append(&Change{Key: use(7)}))
	settle()
	if days, months := kept(3); days != 1 || months != 2 {
		t.Errorf("an account that was not used for 13 months has %d days and %d months; want the last and 2", days, months)
	}
	// Two months later, only that one is left.
	clock.Store(now().AddDate(0, 2, 0).Unix())
	settle()
	if days, months := kept(7); days != 1 || months != 1 {
		t.Errorf("an account that was used two months ago has %d days and %d months; want the last of each", days, months)
	}
	mustClose(t, j)
	var names []string
	for _, a := range contents(t, dir).Accounts {
		names = append(names, a.ID)
	}
	if d := cmp.Diff([]string{id(7)}, names); d != "" {
		t.Errorf("accounts (-want +got):\n%s", d)
	}
}

func TestNoCommitPrunesMuch(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	fill(t, dir, 3*pruneRemoves)
	j, _ := mustOpen(t, dir, Options{NoSync: true, Now: func() time.Time { return testTime.AddDate(2, 0, 0) }})
	left := 3 * pruneRemoves
	for left > 0 {
		mustWait(t, j, j.Append(&Change{Close: 1}))
		state := contentsOfCopy(t, dir)
		days := 0
		for _, a := range state.Accounts {
			h, err := j.History(a.ID, 0, 20261122)
			if err != nil {
				t.Fatal(err)
			}
			days += len(h)
		}
		if days < left-pruneRemoves || days >= left {
			t.Fatalf("one commit removed %d of %d days", left-days, left)
		}
		left = days
	}
	mustClose(t, j)
}

func TestFileThatIsMostlyFreeIsMadeSmaller(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, storeFile)
	want := fill(t, dir, 500)
	want.NextID = 9000 // after those that come and go
	size := func() int64 {
		t.Helper()
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	j, _ := mustOpen(t, dir, Options{NoSync: true})
	var last uint64
	for i := range uint64(8000) {
		o := reservation(1000 + i)
		o.Model = strings.Repeat("m", 4000)
		last = j.Append(&Change{Put: o})
	}
	mustWait(t, j, last)
	for i := range uint64(8000) {
		last = j.Append(&Change{Close: 1000 + i})
	}
	mustWait(t, j, last)
	mustClose(t, j)
	before := size()
	if before < 32<<20 {
		t.Fatalf("the file has only %d bytes", before)
	}
	var out logs
	j, state := mustOpen(t, dir, Options{Log: out.logger()})
	if d := diff(want, state); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if after := size(); after > 2<<20 || !strings.Contains(out.String(), "made smaller") {
		t.Errorf("it has %d bytes of %d; log: %s", after, before, out.String())
	}
	id := want.Accounts[9].ID
	if days, err := j.History(id, 0, 99999999); err != nil || len(days) != 2 {
		t.Errorf("of the history there is %v, %v", days, err)
	}
	if _, _, err := OpenDir(dir, Options{LockTimeout: time.Millisecond}); err == nil || !strings.Contains(err.Error(), "another enforcer") {
		t.Errorf("the smaller file is not locked: %v", err)
	}
	mustWait(t, j, j.Append(&Change{Key: account(id, 77)}))
	mustClose(t, j)
	got := contents(t, dir)
	want.Accounts[9] = *account(id, 77)
	if d := diff(want, got); d != "" {
		t.Errorf("after a change (-want +got):\n%s", d)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("the directory has %v, %v", entries, err)
	}
}
