package journal

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"
)

// With childEnv set, the test binary is a process that is killed, or that runs out of disk.
const (
	childEnv = "LATCHKEY_JOURNAL_CHILD"
	dirEnv   = "LATCHKEY_JOURNAL_DIR"
)

func child(t *testing.T, mode, dir string) (*exec.Cmd, io.Reader) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+mode, dirEnv+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, out
}

func dieIf(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// childLoad appends from several goroutines and prints what was confirmed. Each line is one write, so that none is cut.
//
// Goroutine g reserves, for its step n, an ID that tells both, and settles every second reservation in its next step. Its account counts
// its steps. So what a line confirms is known from the line alone.
func childLoad() {
	dir := os.Getenv(dirEnv)
	j, state, err := OpenDir(dir, Options{})
	dieIf(err)
	base := (state.NextID/stepIDs + 1) * stepIDs
	var wg sync.WaitGroup
	for g := range uint64(loadGoroutines) {
		wg.Go(func() {
			for n := uint64(1); ; n++ {
				c := Change{Put: &Open{ID: base + n*loadGoroutines + g, Key: keyOf(g)}, Key: account(keyOf(g), int64(n))}
				c.Key.MonthUsage.Tokens = int64(base)
				if n%2 == 0 {
					c.Close = base + (n-1)*loadGoroutines + g
				}
				dieIf(j.Wait(context.Background(), j.Append(&c)))
				_, err := fmt.Printf("%d %d %d\n", base, g, n)
				dieIf(err)
			}
		})
	}
	wg.Wait()
}

const (
	loadGoroutines = 16
	stepIDs        = 1 << 20
)

func keyOf(g uint64) string { return fmt.Sprintf("key-%02d", g) }

// Whatever was confirmed before a process is killed is there afterwards, and nothing is half there.
func TestConfirmedChangesSurviveAKill(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	rng := rand.New(rand.NewPCG(1, uint64(time.Now().UnixNano())))
	var next uint64
	for round := range 10 {
		confirmed, base := runAndKill(t, dir, 30+rng.IntN(600))
		var out logs
		j, state := mustOpen(t, dir, Options{Log: out.logger()})
		mustClose(t, j)
		if state.Fresh || out.String() != "" {
			t.Fatalf("round %d: fresh: %v; log: %s", round, state.Fresh, out.String())
		}
		if base < next || state.NextID <= base {
			t.Fatalf("round %d: IDs from %d, after %d; next is %d", round, base, next, state.NextID)
		}
		next = state.NextID
		open := map[uint64]bool{}
		for _, o := range state.Open {
			open[o.ID] = true
			if o.ID >= state.NextID {
				t.Fatalf("round %d: reservation %d, and the next ID is %d", round, o.ID, state.NextID)
			}
		}
		steps := map[string]uint64{}
		for _, a := range state.Accounts {
			if a.MonthUsage.Tokens == int64(base) {
				steps[a.ID] = uint64(a.DayUsage.Requests)
			}
		}
		for g, n := range confirmed {
			have := steps[keyOf(g)]
			if have < n || have > n+1 { // one may have been written and not yet confirmed
				t.Fatalf("round %d: account %s is at step %d; %d was confirmed", round, keyOf(g), have, n)
			}
			for i := uint64(1); i <= have; i++ {
				// Steps close the one before if they are even: the odd ones are closed, the last excepted.
				id, want := base+i*loadGoroutines+g, i%2 == 0 || i == have
				if open[id] != want {
					t.Fatalf("round %d: reservation %d of step %d of %d: open %v, want %v", round, id, i, have, open[id], want)
				}
			}
		}
	}
}

// runAndKill runs a process until it has confirmed so many changes, kills it, and returns the last step that it confirmed of each
// goroutine.
func runAndKill(t *testing.T, dir string, lines int) (confirmed map[uint64]uint64, base uint64) {
	t.Helper()
	cmd, out := child(t, "load", dir)
	confirmed = map[uint64]uint64{}
	scanner := bufio.NewScanner(out)
	for i := 0; scanner.Scan(); i++ {
		var g, n uint64
		if _, err := fmt.Sscanf(scanner.Text(), "%d %d %d", &base, &g, &n); err != nil {
			t.Fatalf("line %q: %v", scanner.Text(), err)
		}
		confirmed[g] = max(confirmed[g], n)
		if i == lines {
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Fatalf("it ended with %v", err)
	}
	if len(confirmed) == 0 {
		t.Fatal("it confirmed nothing")
	}
	return confirmed, base
}
