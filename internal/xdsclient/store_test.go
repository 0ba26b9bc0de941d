package xdsclient

import (
	"bytes"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	bolt "go.etcd.io/bbolt"

	"github.com/latchkey-dev/latchkey/internal/keyset"
	"github.com/latchkey-dev/latchkey/internal/policy"
)

func mustOpen(t *testing.T, dir string, log *slog.Logger) *Store {
	t.Helper()
	s, err := OpenStore(dir, log, time.Unix(1_800_000_000, 0))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// fill makes a store with that many keys and closes it.
func fill(t *testing.T, dir string, keys int) {
	t.Helper()
	s := mustOpen(t, dir, quiet())
	if err := s.Commit(keyRange(0, keys), nil, true); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// damageFile flips a bit right after the first occurrence of the text.
func damageFile(t *testing.T, dir string, after []byte) {
	t.Helper()
	path := filepath.Join(dir, storeFile)
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	changed := 0
	for from := 0; ; changed++ {
		i := bytes.Index(content[from:], after)
		if i < 0 {
			break
		}
		from += i + len(after)
		content[from] ^= 1
	}
	if changed == 0 {
		t.Fatalf("%q is not in the file", after)
	}
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestStoreKeepsWhatWasCommitted(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "state")
	s := mustOpen(t, dir, quiet())
	if versions, _, complete, err := s.Load(); err != nil || complete || len(versions) != 0 {
		t.Fatalf("a new store has %v, %v, %v", versions, complete, err)
	}
	off := keyResource("u000001", policy.StateDisabled)
	for _, step := range []struct {
		upserts  []keyset.Resource
		removed  []string
		complete bool
	}{
		{keyRange(0, 3), nil, false},
		{nil, []string{"key/u000000", "key/never-there"}, true},
		{[]keyset.Resource{off, keyset.EncodeSystem(new(policy.DefaultSystem()))}, nil, false},
	} {
		if err := s.Commit(step.upserts, step.removed, step.complete); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]os.FileMode{dir: 0o700, filepath.Join(dir, storeFile): 0o600} {
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%s has mode %v, %v; want %v", path, info.Mode(), err, want)
		}
	}
	s = mustOpen(t, dir, quiet())
	versions, all, complete, err := s.Load()
	if err != nil || !complete {
		t.Fatalf("complete %v, %v", complete, err)
	}
	system := policy.DefaultSystem()
	disabled := newKey("u000001")
	disabled.State = policy.StateDisabled
	if diff := cmp.Diff(&policy.Delta{System: &system, Keys: []*policy.Key{disabled, newKey("u000002")}}, all); diff != "" {
		t.Errorf("loaded (-want +got):\n%s", diff)
	}
	want := map[string]string{
		"key/u000001": off.Version, "key/u000002": keyResource("u000002", policy.StateEnabled).Version,
		"system": keyset.EncodeSystem(&system).Version,
	}
	if diff := cmp.Diff(want, versions); diff != "" {
		t.Errorf("versions (-want +got):\n%s", diff)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestStoreThatCannotBeUsedIsSetAside(t *testing.T) {
	t.Parallel()
	edit := func(t *testing.T, dir string, change func(tx *bolt.Tx) error) {
		t.Helper()
		db, err := bolt.Open(filepath.Join(dir, storeFile), 0o600, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := db.Update(change); err != nil {
			t.Fatal(err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
	resize := func(size int64) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			t.Helper()
			if err := os.Truncate(filepath.Join(dir, storeFile), size); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, tc := range map[string]struct {
		damage func(*testing.T, string)
		want   string
	}{
		"a file that is something else": {func(t *testing.T, dir string) {
			if err := os.WriteFile(filepath.Join(dir, storeFile), []byte(strings.Repeat("nonsense ", 5_000)), 0o600); err != nil {
				t.Fatal(err)
			}
		}, "invalid"},
		"a file cut to a few bytes": {resize(100), "damaged"},
		"a file cut to two pages":   {resize(8192), "damaged"},
		"a file cut to three pages": {resize(3 * 4096), "damaged"},
		"a file without its last page": {func(t *testing.T, dir string) {
			info, err := os.Stat(filepath.Join(dir, storeFile))
			if err != nil {
				t.Fatal(err)
			}
			resize(info.Size()/2)(t, dir)
		}, "damaged"},
		"a bit of a name, a version or a body": {func(t *testing.T, dir string) { damageFile(t, dir, []byte("Shop back")) }, "checksum"},
		"another program's database": {func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, storeFile)); err != nil {
				t.Fatal(err)
			}
			edit(t, dir, func(tx *bolt.Tx) error { _, err := tx.CreateBucket([]byte("other")); return err })
		}, "not a key set"},
		"another format": {func(t *testing.T, dir string) {
			edit(t, dir, func(tx *bolt.Tx) error { return tx.Bucket(metaBucket).Put(formatKey, []byte("2")) })
		}, `format \"2\"`},
		"an entry that cannot be read": {func(t *testing.T, dir string) {
			edit(t, dir, func(tx *bolt.Tx) error {
				return tx.Bucket(entriesBucket).Put([]byte("key/x"), pack(keyset.Resource{Name: "key/x", Version: "1", Body: []byte{0xff}}))
			})
		}, "key/x"},
		"an entry under another's name": {func(t *testing.T, dir string) {
			edit(t, dir, func(tx *bolt.Tx) error {
				b := tx.Bucket(entriesBucket)
				return b.Put([]byte("key/u000000"), b.Get([]byte("key/u000001")))
			})
		}, "checksum"},
		"an entry that is cut": {func(t *testing.T, dir string) {
			edit(t, dir, func(tx *bolt.Tx) error { return tx.Bucket(entriesBucket).Put([]byte("key/x"), []byte("abc")) })
		}, "too short"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			fill(t, dir, 500)
			tc.damage(t, dir)
			var out logs
			s := mustOpen(t, dir, slog.New(slog.NewJSONHandler(&out, nil)))
			versions, all, complete, err := s.Load()
			if err != nil || complete || len(versions) != 0 || !all.Empty() {
				t.Errorf("it has %d entries, complete %v, %v", len(versions), complete, err)
			}
			if !strings.Contains(out.String(), tc.want) || !strings.Contains(out.String(), storeFile+".damaged-1800000000") {
				t.Errorf("the log does not say %q and where the file is: %s", tc.want, out.String())
			}
			if err := s.Commit(keyRange(0, 1), nil, true); err != nil {
				t.Error(err)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			if _, err := os.Stat(filepath.Join(dir, storeFile+".damaged-1800000000")); err != nil {
				t.Error(err)
			}
		})
	}
}

// Whatever befalls the file, the store is either what it was or empty; and it never takes the process down.
func TestStoreSurvivesAnyDamage(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	fill(t, dir, 300)
	path := filepath.Join(dir, storeFile)
	sound, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	s := mustOpen(t, dir, quiet())
	want, _, _, err := s.Load()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	aside, intact := 0, 0
	rng := rand.New(rand.NewPCG(1, 1))
	for round := range 300 {
		hurt := bytes.Clone(sound)
		switch page := 4096 * rng.IntN(len(hurt)/4096); rng.IntN(4) {
		case 0: // a few bits, anywhere
			for range 1 + rng.IntN(8) {
				hurt[rng.IntN(len(hurt))] ^= 1 << rng.IntN(8)
			}
		case 1: // the head of a page, where what it is and what it points to stands
			for range 1 + rng.IntN(8) {
				hurt[page+rng.IntN(64)] = byte(rng.Uint32())
			}
		case 2: // a page that was not written
			clear(hurt[page : page+4096])
		case 3: // one that was written elsewhere
			copy(hurt[page:page+4096], hurt[4096*rng.IntN(len(hurt)/4096):])
		}
		here := filepath.Join(t.TempDir(), fmt.Sprint(round))
		if err := os.MkdirAll(here, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(here, storeFile), hurt, 0o600); err != nil {
			t.Fatal(err)
		}
		s := mustOpen(t, here, quiet())
		got, _, complete, err := s.Load()
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case !complete: // set aside, or the state before the one commit there was
			aside++
			if len(got) != 0 {
				t.Fatalf("round %d: %d entries of an incomplete set", round, len(got))
			}
		case cmp.Equal(want, got):
			intact++
		default:
			t.Fatalf("round %d: the damage went unnoticed", round)
		}
		if err := s.Commit(keyRange(0, 10), nil, true); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if aside == 0 || intact == 0 {
		t.Fatalf("%d were set aside and %d intact: the damage is too great or too small to tell", aside, intact)
	}
}

func TestStoreInUseIsAnErrorThatNamesIt(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	fill(t, dir, 1)
	s := mustOpen(t, dir, quiet())
	_, err := openStore(dir, quiet(), time.Now(), 10*time.Millisecond)
	if err == nil || !strings.Contains(err.Error(), filepath.Join(dir, storeFile)) || !strings.Contains(err.Error(), "another enforcer") {
		t.Fatalf("error %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, dir, quiet())
	if versions, _, complete, err := s.Load(); err != nil || !complete || len(versions) != 1 {
		t.Fatalf("after that it has %v, %v, %v", versions, complete, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestStoreThatTheSystemRefusesStaysWhereItIs(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, storeFile)
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenStore(dir, quiet(), time.Now()); err == nil || !strings.Contains(err.Error(), path) {
		t.Fatalf("error %v", err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("it was moved: %v", err)
	}
	if _, err := OpenStore(path+"/x\x00", quiet(), time.Now()); err == nil {
		t.Fatal("a directory that cannot be made is no error")
	}
}

func BenchmarkStoreLoad100k(b *testing.B) {
	dir := b.TempDir()
	s, err := OpenStore(dir, quiet(), time.Now())
	if err != nil {
		b.Fatal(err)
	}
	if err := s.Commit(keyRange(0, 100_000), nil, true); err != nil {
		b.Fatal(err)
	}
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		s, err := OpenStore(dir, quiet(), time.Now())
		if err != nil {
			b.Fatal(err)
		}
		if _, _, _, err := s.Load(); err != nil {
			b.Fatal(err)
		}
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
