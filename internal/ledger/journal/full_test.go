package journal

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// childFull is a process whose files may not grow, for a while. It says what it finds wrong, or "ok".
//
// A limit on the size of files stands for a full disk: the system refuses the same calls, with an error of the same kind.
func childFull() {
	signal.Ignore(syscall.SIGXFSZ)
	dir := os.Getenv(dirEnv)
	var out logs
	var mu sync.Mutex
	failures := 0
	j, _, err := OpenDir(dir, Options{
		Log:       slog.New(slog.NewTextHandler(&out, nil)),
		OnFailure: func(error) { mu.Lock(); failures++; mu.Unlock() },
	})
	dieIf(err)
	ctx := context.Background()
	for i := range uint64(100) {
		dieIf(j.Wait(ctx, j.Append(&Change{Put: reservation(i + 1), Key: account(fmt.Sprint("a", i), 1)})))
	}
	info, err := os.Stat(filepath.Join(dir, storeFile))
	dieIf(err)
	limit(uint64(info.Size()))

	// The file grows until it cannot.
	id, failed := uint64(100), []uint64(nil)
	for len(failed) == 0 {
		id++
		o := reservation(id)
		o.Model = strings.Repeat("m", 4000)
		ticket := j.Append(&Change{Put: o})
		if err := j.Wait(ctx, ticket); err != nil {
			check(strings.Contains(err.Error(), "the ledger cannot write") && strings.Contains(err.Error(), syscall.EFBIG.Error()), err)
			failed = append(failed, ticket)
		}
		check(id < 20_000, "the file does not fill up")
	}
	fmt.Println("full at", id)
	// All the while, changes are taken: reservations come and go, and accounts change.
	for i := range uint64(2000) {
		j.Append(&Change{Put: reservation(id + 1 + i)})
		ticket := j.Append(&Change{Close: id + 1 + i, Key: account("during", int64(i))})
		if i%100 == 0 {
			check(j.Wait(ctx, ticket) != nil, "it is said to be written while nothing can be")
			failed = append(failed, ticket)
		}
	}
	id += 2000
	j.mu.Lock()
	check(len(j.queue.open) < 10 && len(j.queue.closed) < 10 && len(j.queue.accounts) < 10, "what waits grows without bound")
	j.mu.Unlock()
	check(strings.Count(out.String(), "level=ERROR") == 1, out.String())
	mu.Lock()
	check(failures > 0, "no failure was told of")
	mu.Unlock()

	limit(1 << 40)
	id++
	deadline := time.Now().Add(20 * time.Second)
	for j.Wait(ctx, j.Append(&Change{Put: reservation(id)})) != nil {
		check(time.Now().Before(deadline), "it does not recover")
		id++
	}
	for _, ticket := range failed {
		dieIf(j.Wait(ctx, ticket))
	}
	check(strings.Count(out.String(), "level=INFO") == 1 && strings.Count(out.String(), "level=ERROR") == 1, out.String())

	// And without anything that comes, it tries again by itself.
	limit(uint64(info.Size()))
	var ticket uint64
	for failing := false; !failing; id++ {
		o := reservation(id + 1)
		o.Model = strings.Repeat("m", 100_000)
		ticket = j.Append(&Change{Put: o})
		failing = j.Wait(ctx, ticket) != nil
		check(time.Now().Before(deadline.Add(20*time.Second)), "the file does not fill up again")
	}
	limit(1 << 40)
	dieIf(j.Wait(ctx, ticket))

	// What cannot be written when the journal ends is said.
	limit(4096)
	ticket = j.Append(&Change{Put: &Open{ID: id + 1, Model: strings.Repeat("m", 40_000_000)}})
	err = j.Close()
	check(err != nil && strings.Contains(err.Error(), "the ledger cannot write"), err)
	check(j.Wait(ctx, ticket) != nil, "it is said to be written, but was not")
	limit(1 << 40)
	fmt.Println("open until", id)
	fmt.Println("ok")
}

func check(holds bool, otherwise any) {
	if !holds {
		dieIf(fmt.Errorf("%v", otherwise))
	}
}

func limit(size uint64) {
	var l syscall.Rlimit
	dieIf(syscall.Getrlimit(syscall.RLIMIT_FSIZE, &l))
	l.Cur = min(size, l.Max)
	dieIf(syscall.Setrlimit(syscall.RLIMIT_FSIZE, &l))
}

func TestFullDiskLosesNothing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cmd, out := child(t, "full", dir)
	var full, until uint64
	done := false
	scanner := bufio.NewScanner(out)
	for scanner.Scan() {
		_, _ = fmt.Sscanf(scanner.Text(), "full at %d", &full)
		_, _ = fmt.Sscanf(scanner.Text(), "open until %d", &until)
		done = done || scanner.Text() == "ok"
	}
	if err := cmd.Wait(); err != nil || !done {
		t.Fatalf("it ended with %v", err)
	}
	state := contents(t, dir)
	open := map[uint64]bool{}
	for _, o := range state.Open {
		open[o.ID] = true
	}
	for id := uint64(1); id <= until; id++ {
		if want := id <= full || id > full+2000; open[id] != want {
			t.Errorf("reservation %d: open %v, want %v", id, open[id], want)
		}
	}
	found := false
	for _, a := range state.Accounts {
		found = found || a.ID == "during" && a.DayUsage == totals(1999)
	}
	if !found || len(state.Accounts) != 101 {
		t.Errorf("of the accounts there are %d; the one that changed meanwhile is as it was last: %v", len(state.Accounts), found)
	}
	if state.NextID <= until {
		t.Errorf("the next ID is %d, after %d", state.NextID, until)
	}
}
