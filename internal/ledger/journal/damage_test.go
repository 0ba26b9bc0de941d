package journal

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
)

// fill makes a journal with so many accounts, each with a reservation and with a day and a month before, and returns its state.
func fill(t testing.TB, dir string, accounts int) State {
	t.Helper()
	j, _ := mustOpen(t, dir, Options{NoSync: true})
	for i := range accounts {
		id := fmt.Sprintf("0b1b6f0e-5d9b-4c1d-8f0a-%012x", i)
		before := account(id, int64(i)+1)
		before.Day, before.Month = 20261031, 202610
		j.Append(&Change{Key: before})
		j.Append(&Change{Put: reservation(uint64(i) + 1), Key: account(id, int64(i)+1)})
	}
	mustClose(t, j)
	return contents(t, dir)
}

func edit(t *testing.T, dir string, change func(tx *bolt.Tx) error) {
	t.Helper()
	db, err := bolt.Open(filepath.Join(dir, storeFile), 0o600, &bolt.Options{NoSync: true})
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

func TestFileThatCannotBeUsedIsSetAside(t *testing.T) {
	t.Parallel()
	write := func(content string) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			t.Helper()
			if err := os.WriteFile(filepath.Join(dir, storeFile), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	truncate := func(size func(full int64) int64) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			t.Helper()
			path := filepath.Join(dir, storeFile)
			var pages int64 // that are in use: a file is longer than that
			edit(t, dir, func(tx *bolt.Tx) error { pages = tx.Size(); return nil })
			if err := os.Truncate(path, size(pages)); err != nil {
				t.Fatal(err)
			}
		}
	}
	put := func(bucket, key, value []byte) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			t.Helper()
			edit(t, dir, func(tx *bolt.Tx) error { return tx.Bucket(bucket).Put(key, value) })
		}
	}
	accountKey := []byte("0b1b6f0e-5d9b-4c1d-8f0a-000000000007")
	for name, tc := range map[string]struct {
		damage func(*testing.T, string)
		want   string
	}{
		"an empty file":                    {write(""), "it is empty"},
		"a file that is something else":    {write(strings.Repeat("nonsense ", 5_000)), "invalid database"},
		"a file of zeros":                  {write(strings.Repeat("\x00", 40_000)), "invalid database"},
		"a file of one byte":               {write("x"), "invalid database"},
		"a file cut to a few bytes":        {truncate(func(int64) int64 { return 100 }), "invalid database"},
		"a file cut to two pages":          {truncate(func(int64) int64 { return 8192 }), "it is cut"},
		"a file without its second half":   {truncate(func(n int64) int64 { return n / 2 }), "it is cut"},
		"a file without its last byte":     {truncate(func(n int64) int64 { return n - 1 }), "it is cut"},
		"a value that is cut":              {put(accountsBucket, accountKey, []byte("abc")), "too short"},
		"a value with a wrong checksum":    {put(accountsBucket, accountKey, []byte("abcdefgh")), "checksum"},
		"a format that is none":            {put(metaBucket, formatKey, []byte("x")), "format"},
		"a format that never was":          {put(metaBucket, formatKey, []byte("0")), "format"},
		"a head that is damaged":           {put(metaBucket, headKey, []byte("0123456789")), "head"},
		"a reservation with a short key":   {put(openBucket, []byte("short"), []byte("0123456789")), "8 bytes"},
		"a day with a short key":           {put(daysBucket, []byte("a"), []byte("0123456789")), "short"},
		"a value that says too little":     {put(accountsBucket, accountKey, seal(nil, tagAccounts, accountKey, func(b []byte) []byte { return append(b, 2) })), "cannot be read"},
		"an account more than there were":  {put(accountsBucket, []byte("more"), seal(nil, tagAccounts, []byte("more"), func(b []byte) []byte { return appendAccount(b, &Account{}) })), "accounts are 201"},
		"a reservation beyond the next ID": {put(openBucket, binary.BigEndian.AppendUint64(nil, 5000), seal(nil, tagOpen, binary.BigEndian.AppendUint64(nil, 5000), func(b []byte) []byte { return appendOpen(b, &Open{}) })), "below the next"},
		"an account that is missing": {func(t *testing.T, dir string) {
			edit(t, dir, func(tx *bolt.Tx) error { return tx.Bucket(accountsBucket).Delete(accountKey) })
		}, "accounts are 199 and should be 200"},
		"an account as it was before": {func(t *testing.T, dir string) {
			old := seal(nil, tagAccounts, accountKey, func(b []byte) []byte { return appendAccount(b, account(string(accountKey), 1)) })
			edit(t, dir, func(tx *bolt.Tx) error { return tx.Bucket(accountsBucket).Put(accountKey, old) })
		}, "not all are the latest"},
		"a day in a month's place": {func(t *testing.T, dir string) {
			edit(t, dir, func(tx *bolt.Tx) error {
				key, value := tx.Bucket(daysBucket).Cursor().First()
				return tx.Bucket(monthsBucket).Put(bytes.Clone(key), bytes.Clone(value))
			})
		}, "checksum"},
		"a bucket that is missing": {func(t *testing.T, dir string) {
			edit(t, dir, func(tx *bolt.Tx) error { return tx.DeleteBucket(monthsBucket) })
		}, "lacks a bucket"},
		"another program's database": {func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, storeFile)); err != nil {
				t.Fatal(err)
			}
			edit(t, dir, func(tx *bolt.Tx) error { _, err := tx.CreateBucket([]byte("other")); return err })
		}, "not a ledger"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			fill(t, dir, 200)
			tc.damage(t, dir)
			// One that was set aside in the same second stays.
			aside := filepath.Join(dir, fmt.Sprintf("%s.damaged-%d", storeFile, testTime.Unix()))
			if err := os.WriteFile(aside, []byte("earlier"), 0o600); err != nil {
				t.Fatal(err)
			}
			var out logs
			j, state := mustOpen(t, dir, Options{Log: out.logger()})
			if d := diff(State{Fresh: true, NextID: 1}, state); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
			if log := out.String(); strings.Count(log, "\n") != 1 || !strings.Contains(log, tc.want) || !strings.Contains(log, ".damaged-") ||
				!strings.Contains(log, `"level":"ERROR"`) || !strings.Contains(log, "what the control plane last knew") {
				t.Errorf("the log does not say %q, what follows and where the file is: %s", tc.want, log)
			}
			mustWait(t, j, j.Append(&Change{Key: account("a", 1)}))
			mustClose(t, j)
			if d := diff(State{Accounts: []Account{*account("a", 1)}, NextID: 1}, contents(t, dir)); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
			if content, err := os.ReadFile(aside); err != nil || string(content) != "earlier" {
				t.Errorf("what was set aside before is %q, %v", content, err)
			}
			entries, err := os.ReadDir(dir)
			if err != nil || len(entries) != 3 {
				t.Errorf("the directory has %v, %v", entries, err)
			}
		})
	}
}

// Whatever befalls the file, the journal is what it was, or starts afresh and says so, or is an error. It never takes the process down.
func TestAnyDamageIsNoticed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	want := fill(t, dir, 300)
	j, _ := mustOpen(t, dir, Options{NoSync: true})
	for i := range uint64(40) { // so that there are free pages, and pages of several commits
		mustWait(t, j, j.Append(&Change{Close: 1 + i*7, Key: account(want.Accounts[i*5].ID, int64(i))}))
	}
	before := contentsOfCopy(t, dir)
	mustWait(t, j, j.Append(&Change{Close: 2, Key: account(want.Accounts[3].ID, 99)}))
	mustClose(t, j)
	want = contents(t, dir)
	sound, err := os.ReadFile(filepath.Join(dir, storeFile))
	if err != nil {
		t.Fatal(err)
	}
	const page = 4096
	pages := len(sound) / page
	rng := rand.New(rand.NewPCG(1, 1))
	aside, intact, halved, refused := 0, 0, 0, 0
	rounds := 600
	if testing.Short() {
		rounds = 200
	}
	for round := range rounds {
		hurt := bytes.Clone(sound)
		at := page * rng.IntN(pages)
		switch rng.IntN(6) {
		case 0: // a bit, anywhere
			hurt[rng.IntN(len(hurt))] ^= 1 << rng.IntN(8)
		case 1: // a bit in the head of a page or in its first entries: what it is and what it points to
			hurt[at+rng.IntN(48)] ^= 1 << rng.IntN(8)
		case 2: // a few bytes there
			for range 1 + rng.IntN(8) {
				hurt[at+rng.IntN(256)] = byte(rng.Uint32())
			}
		case 3: // a page that was not written
			clear(hurt[at : at+page])
		case 4: // one that was written elsewhere
			copy(hurt[at:at+page], hurt[page*rng.IntN(pages):])
		case 5: // one that points to itself, or to a page that others point to
			for from := at + 16; from < at+16+16*8; from += 8 {
				binary.NativeEndian.PutUint64(hurt[from:], uint64(rng.IntN(pages)))
			}
		}
		here := filepath.Join(t.TempDir(), "state")
		if err := os.MkdirAll(here, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(here, storeFile), hurt, 0o600); err != nil {
			t.Fatal(err)
		}
		var out logs
		j, got, err := OpenDir(here, Options{Log: out.logger(), NoSync: true, Now: func() time.Time { return testTime }})
		if err != nil {
			refused++
			if !strings.Contains(err.Error(), "newer version") {
				t.Fatalf("round %d: %v", round, err)
			}
			continue
		}
		log := out.String()
		switch {
		case got.Fresh:
			aside++
			if !strings.Contains(log, ".damaged-") || len(got.Accounts) > 0 {
				t.Fatalf("round %d: it is fresh, but has %d accounts; log: %s", round, len(got.Accounts), log)
			}
		case diff(want, got) == "":
			intact++
		case diff(before, got) == "" && strings.Contains(log, "latest commit"):
			halved++
		default:
			t.Fatalf("round %d: the damage went unnoticed; log: %s\n%s", round, log, diff(want, got))
		}
		mustWait(t, j, j.Append(&Change{Put: reservation(5000), Key: account("a", 1)}))
		mustClose(t, j)
	}
	t.Logf("set aside %d, intact %d, without the latest commit %d, refused %d", aside, intact, halved, refused)
	if aside == 0 || intact == 0 || halved == 0 {
		t.Fatalf("%d were set aside, %d intact, %d without the latest commit: the damage is too great or too small to tell", aside, intact, halved)
	}
}

// contentsOfCopy returns what a file holds that is in use.
func contentsOfCopy(t *testing.T, dir string) State {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(dir, storeFile))
	if err != nil {
		t.Fatal(err)
	}
	other := t.TempDir()
	if err := os.WriteFile(filepath.Join(other, storeFile), content, 0o600); err != nil {
		t.Fatal(err)
	}
	return contents(t, other)
}

func TestNewerFileIsRefusedAndKept(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(tx *bolt.Tx) error{
		"a newer format": func(tx *bolt.Tx) error { return tx.Bucket(metaBucket).Put(formatKey, []byte("2")) },
		"a newer head, in a format that we know": func(tx *bolt.Tx) error {
			value := append([]byte{0, 0, 0, 0, valueVersion + 1}, "more"...)
			binary.BigEndian.PutUint32(value, checksum(tagHead, headKey, value[checksumSize:]))
			return tx.Bucket(metaBucket).Put(headKey, value)
		},
		"a format of many digits, without what we know": func(tx *bolt.Tx) error {
			if err := tx.DeleteBucket(accountsBucket); err != nil {
				return err
			}
			return tx.Bucket(metaBucket).Put(formatKey, []byte("1234567"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			path := filepath.Join(dir, storeFile)
			fill(t, dir, 10)
			edit(t, dir, change)
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			var out logs
			_, _, err = OpenDir(dir, Options{Log: out.logger()})
			if err == nil || !strings.Contains(err.Error(), "written by a newer version") || !strings.Contains(err.Error(), path) {
				t.Errorf("error %v", err)
			}
			if got, err := os.ReadFile(path); err != nil || !bytes.Equal(want, got) || out.String() != "" {
				t.Errorf("the file has changed, or %v; log: %s", err, out.String())
			}
		})
	}
}

// A file of a newer bbolt, which ours calls invalid.
func TestNewerPagesAreRefusedAndKept(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, storeFile)
	fill(t, dir, 10)
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []int{0, os.Getpagesize()} {
		m := content[at+pageHeadSize:][:metaSize]
		binary.NativeEndian.PutUint32(m[4:], metaVersion+1)
		h := fnv.New64a()
		_, _ = h.Write(m[:56])
		binary.NativeEndian.PutUint64(m[56:], h.Sum64())
	}
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	_, _, err = OpenDir(dir, Options{})
	if err == nil || !strings.Contains(err.Error(), "written by a newer version") {
		t.Errorf("error %v", err)
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(content, got) {
		t.Errorf("the file has changed, or %v", err)
	}
}

func TestFileInUseIsAnErrorThatNamesIt(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	want := fill(t, dir, 3)
	j, _ := mustOpen(t, dir, Options{})
	_, _, err := OpenDir(dir, Options{LockTimeout: 10 * time.Millisecond})
	if err == nil || !strings.Contains(err.Error(), filepath.Join(dir, storeFile)) || !strings.Contains(err.Error(), "another enforcer") {
		t.Fatalf("error %v", err)
	}
	mustClose(t, j)
	if d := diff(want, contents(t, dir)); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// Who waits for the lock of a file that is replaced meanwhile must not go on with the old one.
func TestFileReplacedWhileItIsWaitedForIsNotUsed(t *testing.T) {
	t.Parallel()
	dir, other := t.TempDir(), t.TempDir()
	fill(t, dir, 3)
	want := fill(t, other, 5)
	path := filepath.Join(dir, storeFile)
	j, _ := mustOpen(t, dir, Options{})
	type result struct {
		j     *Journal
		state State
		err   error
	}
	results := make(chan result, 1)
	go func() {
		j, state, err := OpenDir(dir, Options{LockTimeout: time.Minute})
		results <- result{j, state, err}
	}()
	// It waits once it has the file open, which the system tells.
	for deadline := time.Now().Add(20 * time.Second); opened(t, path) < 2; {
		if time.Now().After(deadline) {
			t.Fatal("the file is not opened")
		}
	}
	if err := os.Rename(filepath.Join(other, storeFile), path); err != nil {
		t.Fatal(err)
	}
	mustClose(t, j)
	r := <-results
	if r.err != nil {
		t.Fatal(r.err)
	}
	if d := diff(want, r.state); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	mustClose(t, r.j)
}

// opened returns how often this process has the file open.
func opened(t *testing.T, path string) int {
	t.Helper()
	links, err := filepath.Glob("/proc/self/fd/*")
	if err != nil || len(links) == 0 {
		t.Skip("the system does not tell which files are open")
	}
	n := 0
	for _, link := range links {
		if target, err := os.Readlink(link); err == nil && target == path {
			n++
		}
	}
	return n
}

func TestFileThatTheSystemRefusesStaysWhereItIs(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, storeFile)
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	var out logs
	if _, _, err := OpenDir(dir, Options{Log: out.logger()}); err == nil || !strings.Contains(err.Error(), path) {
		t.Fatalf("a directory in its place: error %v", err)
	}
	if info, err := os.Stat(path); err != nil || !info.IsDir() || out.String() != "" {
		t.Fatalf("it was moved: %v; log: %s", err, out.String())
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := OpenDir(file, Options{}); err == nil {
		t.Fatal("a file in the directory's place is no error")
	}
	if os.Geteuid() == 0 {
		return // may read and write everything
	}
	dir = t.TempDir()
	fill(t, dir, 1)
	if err := os.Chmod(filepath.Join(dir, storeFile), 0o400); err != nil {
		t.Fatal(err)
	}
	if _, _, err := OpenDir(dir, Options{}); err == nil || !strings.Contains(err.Error(), "permission denied") {
		t.Fatalf("a file that cannot be written: error %v", err)
	}
}

// A start that was cut short while it made a new file leaves nothing that hinders the next.
func TestNewFileThatWasNotFinishedIsRemoved(t *testing.T) {
	t.Parallel()
	for _, accounts := range []int{0, 3} {
		dir := t.TempDir()
		want := State{NextID: 1, Fresh: true}
		if accounts > 0 {
			want = fill(t, dir, accounts)
		}
		if err := os.WriteFile(filepath.Join(dir, storeFile+newSuffix), []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
		j, state := mustOpen(t, dir, Options{})
		mustClose(t, j)
		if d := diff(want, state); d != "" {
			t.Errorf("(-want +got):\n%s", d)
		}
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
			t.Errorf("the directory has %v, %v", entries, err)
		}
	}
}
