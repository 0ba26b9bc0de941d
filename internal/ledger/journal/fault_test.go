package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	bolt "go.etcd.io/bbolt"
)

var errDisk = errors.New("the disk is on fire")

// Random histories in which commits fail: before anything is written, after all is written, and by a panic. What was told of each change
// holds, and when it is over nothing is lost or there twice.
func TestFailedCommitsLoseNothing(t *testing.T) {
	t.Parallel()
	for seed := range uint64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewPCG(seed, 2))
			var kind atomic.Int32
			var commits, failures atomic.Int64
			var out logs
			dir, m, last := t.TempDir(), newModel(), uint64(0)
			o := Options{
				NoSync: true, Log: out.logger(), OnFailure: func(error) { failures.Add(1) }, OnCommit: func(int, time.Duration) { commits.Add(1) },
				commit: func(tx *bolt.Tx) error {
					switch kind.Load() {
					case 1:
						return errDisk
					case 2:
						return errors.Join(tx.Commit(), errDisk)
					case 3:
						panic(errDisk)
					default:
						return tx.Commit()
					}
				},
			}
			j, _ := mustOpen(t, dir, o)
			outages := 0
			for range 12 {
				kind.Store(rng.Int32N(4))
				var tickets []uint64
				told := 0
				for range 40 {
					c := randomChange(rng, &last)
					m.change(c)
					tickets = append(tickets, j.Append(c))
					if rng.IntN(4) > 0 {
						continue
					}
					err := j.Wait(t.Context(), tickets[len(tickets)-1])
					if broken := kind.Load() != 0; broken != (err != nil) {
						// The pause after a failure may not be over yet.
						if broken || !errorHasText(err) {
							t.Fatalf("failing: %v, but: %v", broken, err)
						}
					}
					if err != nil {
						told++
						if !strings.Contains(err.Error(), "the ledger cannot write") || !strings.Contains(err.Error(), errDisk.Error()) {
							t.Fatal(err)
						}
					}
				}
				if kind.Load() != 0 && told > 0 {
					outages++
				}
				kind.Store(0)
				for _, ticket := range tickets {
					if err := waitUntilWritten(j, ticket); err != nil {
						t.Fatal(err)
					}
				}
				if rng.IntN(3) > 0 {
					continue
				}
				mustClose(t, j)
				var state State
				j, state = mustOpen(t, dir, o)
				if d := diff(m.state(), state); d != "" {
					t.Fatalf("(-want +got):\n%s", d)
				}
			}
			for id := range m.accounts {
				days, err := j.History(id, 0, 99999999)
				if d := cmp.Diff(history(m.days, id), days); d != "" || err != nil {
					t.Fatalf("days of %q: %v (-want +got):\n%s", id, err, d)
				}
			}
			mustClose(t, j)
			if d := diff(m.state(), contents(t, dir)); d != "" {
				t.Fatalf("(-want +got):\n%s", d)
			}
			if outages == 0 || failures.Load() < int64(outages) || commits.Load() == 0 {
				t.Fatalf("%d outages, %d failures, %d commits: nothing was tested", outages, failures.Load(), commits.Load())
			}
			if began, ended := strings.Count(out.String(), `"level":"ERROR"`), strings.Count(out.String(), `"level":"INFO"`); began != ended || began > outages+1 {
				t.Errorf("of %d outages, %d were logged, and the end of %d", outages, began, ended)
			}
		})
	}
}

func errorHasText(err error) bool {
	return err != nil && strings.Contains(err.Error(), errDisk.Error())
}

// waitUntilWritten waits as often as it takes.
func waitUntilWritten(j *Journal, ticket uint64) error {
	var err error
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
		if err = j.Wait(context.Background(), ticket); err == nil {
			return nil
		}
	}
	return err
}

// A file that is cut while it is in use, or whose pages cannot be read, makes the journal fail, not the process.
func TestFileThatIsCutWhileInUseIsAnError(t *testing.T) {
	t.Parallel()
	for _, size := range []int64{0, 4096, 8192, 5 * 4096, 1 << 16} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			fill(t, dir, 1000)
			j, _ := mustOpen(t, dir, Options{})
			if err := os.Truncate(filepath.Join(dir, storeFile), size); err != nil {
				t.Fatal(err)
			}
			failed := false
			for i := range 50 {
				_, err := j.History(fmt.Sprintf("0b1b6f0e-5d9b-4c1d-8f0a-%012x", i*20), 0, 99999999)
				failed = failed || err != nil
				err = j.Wait(t.Context(), j.Append(&Change{Key: account(fmt.Sprintf("0b1b6f0e-5d9b-4c1d-8f0a-%012x", i*20), 1)}))
				failed = failed || err != nil
			}
			if !failed {
				t.Error("nothing failed")
			}
			_ = j.Close() // an error or not, but it ends
			content, err := os.ReadFile(filepath.Join(dir, storeFile))
			if err != nil {
				t.Fatal(err)
			}
			dir = t.TempDir() // this process may still hold the lock
			if err := os.WriteFile(filepath.Join(dir, storeFile), content, 0o600); err != nil {
				t.Fatal(err)
			}
			var out logs
			j, state := mustOpen(t, dir, Options{Log: out.logger()})
			if !state.Fresh || !strings.Contains(out.String(), ".damaged-") {
				t.Errorf("fresh: %v; log: %s", state.Fresh, out.String())
			}
			mustClose(t, j)
		})
	}
}

func FuzzValues(f *testing.F) {
	key := []byte("0b1b6f0e-5d9b-4c1d-8f0a-000000000007")
	id := []byte("12345678")
	f.Add(appendAccount(nil, account("a", 1)))
	f.Add(appendOpen(nil, reservation(1)))
	f.Add(appendTotals(nil, new(totals(3))))
	f.Add(appendHead(nil, &head{nextID: 7}))
	f.Fuzz(func(t *testing.T, body []byte) {
		raw := func(tag byte, key []byte) []byte {
			return seal(nil, tag, key, func(dst []byte) []byte { return append(dst, body...) })
		}
		// What can be read is written the same way, but for numbers that were written longer than need be.
		again := func(what string, key []byte, tag byte, read func([]byte) (func([]byte) []byte, error)) {
			write, err := read(raw(tag, key))
			if err != nil {
				return
			}
			first := seal(nil, tag, key, write)
			write, err = read(first)
			if err != nil || !bytes.Equal(first, seal(nil, tag, key, write)) {
				t.Errorf("%s: %x becomes %x, then %v", what, body, first, err)
			}
		}
		again("account", key, tagAccounts, func(v []byte) (func([]byte) []byte, error) {
			a, err := decodeAccount(key, v)
			return func(dst []byte) []byte { return appendAccount(dst, &a) }, err
		})
		again("reservation", id, tagOpen, func(v []byte) (func([]byte) []byte, error) {
			o, err := decodeOpen(id, v)
			return func(dst []byte) []byte { return appendOpen(dst, &o) }, err
		})
		again("day", key, tagDays, func(v []byte) (func([]byte) []byte, error) {
			d, err := decodeTotals(tagDays, key, v)
			return func(dst []byte) []byte { return appendTotals(dst, &d) }, err
		})
		again("head", headKey, tagHead, func(v []byte) (func([]byte) []byte, error) {
			h, err := decodeHead(v)
			return func(dst []byte) []byte { return appendHead(dst, &h) }, err
		})
	})
}
