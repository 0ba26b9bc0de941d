package journal

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
)

const benchAccounts = 100_000

func benchID(i int) string { return fmt.Sprintf("0b1b6f0e-5d9b-4c1d-8f0a-%012x", i) }

// benchFile makes a journal of so many accounts, with a history of so many days each, in random order as in life.
func benchFile(tb testing.TB, dir string, accounts, days int) {
	tb.Helper()
	order := rand.New(rand.NewPCG(1, 1)).Perm(accounts)
	first := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC).AddDate(0, 0, -days)
	j, _ := mustOpen(tb, dir, Options{NoSync: true, Now: func() time.Time { return first }})
	for day := range days + 1 {
		at := first.AddDate(0, 0, day)
		var last uint64
		for n, i := range order {
			a := account(benchID(i), 1_000_000+int64(i))
			a.Day, a.Month, a.LastUsed = dayKey(at), monthKey(at), at
			if last = j.Append(&Change{Key: a}); n%1000 == 0 {
				mustWait(tb, j, last)
			}
		}
		mustWait(tb, j, last)
	}
	mustClose(tb, j)
}

func fileSize(tb testing.TB, dir string) int64 {
	tb.Helper()
	info, err := os.Stat(filepath.Join(dir, storeFile))
	if err != nil {
		tb.Fatal(err)
	}
	return info.Size()
}

// The sizes that the package's documentation names.
func TestSizeOfAnAccount(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("writes 100,000 accounts")
	}
	for name, tc := range map[string]struct{ accounts, days, most int }{
		"its current state":           {benchAccounts, 0, 450},
		"its history, used every day": {2000, keepDays, 14_000},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			benchFile(t, dir, tc.accounts, tc.days)
			var used int64 // the file grows ahead of that, by up to 16 MiB
			edit(t, dir, func(tx *bolt.Tx) error { used = tx.Size(); return nil })
			each := int(used) / tc.accounts
			t.Logf("%d bytes an account", each)
			if each > tc.most {
				t.Errorf("an account takes %d bytes, more than the %d that are promised", each, tc.most)
			}
			if got := len(contents(t, dir).Accounts); got != tc.accounts {
				t.Errorf("there are %d accounts", got)
			}
		})
	}
}

// Each operation is a request's reservation and its settlement, each of them waited for.
func BenchmarkAppendWait(b *testing.B) {
	for _, noSync := range []bool{false, true} {
		for _, callers := range []int{1, 64, 512} {
			b.Run(fmt.Sprintf("callers=%d/fsync=%v", callers, !noSync), func(b *testing.B) {
				dir := b.TempDir()
				benchFile(b, dir, benchAccounts, 0)
				var commits, next atomic.Int64
				j, _ := mustOpen(b, dir, Options{NoSync: noSync, OnCommit: func(int, time.Duration) { commits.Add(1) }})
				ctx := b.Context()
				b.ReportAllocs()
				b.ResetTimer()
				var wg sync.WaitGroup
				for range callers {
					wg.Go(func() {
						var c Change
						var o Open
						var key, app Account
						for {
							n := next.Add(1)
							if n > int64(b.N) {
								return
							}
							o = *reservation(uint64(n))
							key, app = *account(benchID(rand.IntN(benchAccounts)), n), *account(benchID(rand.IntN(100)), n)
							for _, c = range []Change{{Put: &o, Key: &key, Application: &app}, {Close: o.ID, Key: &key, Application: &app}} {
								if err := j.Wait(ctx, j.Append(&c)); err != nil {
									b.Error(err)
									return
								}
							}
						}
					})
				}
				wg.Wait()
				b.StopTimer()
				b.ReportMetric(2*float64(b.N)/b.Elapsed().Seconds(), "changes/s")
				b.ReportMetric(2*float64(b.N)/float64(commits.Load()), "changes/commit")
				mustClose(b, j)
			})
		}
	}
}

// Append alone, while the committer works behind it.
func BenchmarkAppend(b *testing.B) {
	dir := b.TempDir()
	benchFile(b, dir, benchAccounts, 0)
	j, _ := mustOpen(b, dir, Options{NoSync: true})
	ids := make([]string, 1024)
	for i := range ids {
		ids[i] = benchID(i)
	}
	o, key, app := *reservation(1), *account("", 1), *account("app", 1)
	c := Change{Put: &o, Key: &key, Application: &app}
	b.ReportAllocs()
	for b.Loop() {
		key.ID = ids[o.ID%1024]
		j.Append(&c)
		c.Close = o.ID
		o.ID++
	}
	mustClose(b, j)
}

func BenchmarkOpen100k(b *testing.B) {
	dir := b.TempDir()
	benchFile(b, dir, benchAccounts, 0)
	for b.Loop() {
		j, state := mustOpen(b, dir, Options{})
		if len(state.Accounts) != benchAccounts {
			b.Fatal(len(state.Accounts))
		}
		mustClose(b, j)
	}
	b.ReportMetric(float64(fileSize(b, dir))/benchAccounts, "bytes/account")
}
