package journal

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

const (
	// storeFile is the database in the state directory.
	storeFile = "ledger.db"
	// newSuffix is of a file that is to take its place once it is complete.
	newSuffix = ".new"
)

// storeFormat is raised when what is stored changes its meaning. An older format is to be read, a newer one refused.
const storeFormat = 1

const defaultLockTimeout = 5 * time.Second

// A file is made smaller at the start when more than this is free in it, and more than half of it.
const compactFrom = 16 << 20

// compactStep bounds the memory that it takes, in bytes.
const compactStep = 4 << 20

var (
	metaBucket     = []byte("meta")
	accountsBucket = []byte("accounts")
	openBucket     = []byte("open")
	daysBucket     = []byte("days")
	monthsBucket   = []byte("months")
	formatKey      = []byte("format")
	headKey        = []byte("head")
)

// damage is what is wrong with a file's content.
type damage struct{ err error }

func (d *damage) Error() string { return "damaged: " + d.err.Error() }
func (d *damage) Unwrap() error { return d.err }

// errReplaced says that the file was replaced between its being opened and locked.
var errReplaced = errors.New("the file was replaced meanwhile")

// opener opens the file of a journal.
type opener struct {
	path    string
	timeout time.Duration
	noSync  bool
	log     *slog.Logger
	now     time.Time
}

// open opens the file, or a fresh one in its place.
func (o *opener) open() (*bolt.DB, State, error) {
	if err := os.MkdirAll(filepath.Dir(o.path), 0o700); err != nil {
		return nil, State{}, fmt.Errorf("create state directory: %w", err)
	}
	db, state, err := o.attempts()
	if _, damaged := errors.AsType[*damage](err); !damaged {
		return db, state, err
	}
	aside, renameErr := o.setAside()
	if renameErr != nil {
		return nil, State{}, errors.Join(err, fmt.Errorf("set the damaged file aside: %w", renameErr))
	}
	o.log.Error("the ledger's file cannot be used and was set aside; what was spent starts again from what the control plane last knew",
		slog.String("error", err.Error()), slog.String("aside", aside))
	return o.attempts()
}

// setAside never replaces a file that was set aside before.
func (o *opener) setAside() (string, error) {
	for second := o.now.Unix(); ; second++ {
		aside := o.path + ".damaged-" + strconv.FormatInt(second, 10)
		if _, err := os.Lstat(aside); err == nil {
			continue
		} else if !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		if err := os.Rename(o.path, aside); err != nil {
			return "", err
		}
		return aside, syncDir(filepath.Dir(o.path))
	}
}

// attempts opens the file that stands in its place once it is locked: an enforcer that was waited for may have replaced it.
func (o *opener) attempts() (db *bolt.DB, state State, err error) {
	for range 3 {
		db, state, err = o.once()
		if !errors.Is(err, errReplaced) {
			break
		}
	}
	if err != nil {
		return nil, State{}, fmt.Errorf("open %s: %w", o.path, err)
	}
	return db, state, nil
}

func (o *opener) once() (db *bolt.DB, state State, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = &damage{fmt.Errorf("%v", r)}
		}
		if err != nil && db != nil {
			err = errors.Join(err, db.Close())
			db = nil
		}
	}()
	fresh := false
	switch info, statErr := os.Stat(o.path); {
	case errors.Is(statErr, fs.ErrNotExist):
		fresh = true
		if err := o.create(); err != nil {
			return nil, State{}, err
		}
	case statErr != nil:
		return nil, State{}, statErr
	case !info.Mode().IsRegular():
		return nil, State{}, errors.New("it is not a regular file")
	case info.Size() == 0:
		return nil, State{}, &damage{errors.New("it is empty")}
	}
	halved, err := o.inspect()
	if err != nil {
		return nil, State{}, err
	}
	if db, err = o.lock(false); err != nil {
		return db, State{}, err
	}
	if err = os.Remove(o.path + newSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return db, State{}, err // of a start that was cut short
	}
	if state, err = load(db); err != nil {
		return db, State{}, err
	}
	state.Fresh = fresh
	if halved {
		o.log.Error("one of the two heads of the ledger's file was not sound; the latest commit before the start may be missing",
			slog.String("file", o.path))
	}
	db, err = o.compact(db)
	return db, state, err
}

// lock opens the file and locks it. It must be there.
func (o *opener) lock(reading bool) (*bolt.DB, error) {
	db, _, err := o.lockFile(reading)
	return db, err
}

func (o *opener) lockFile(reading bool) (*bolt.DB, *os.File, error) {
	var file *os.File
	db, err := bolt.Open(o.path, 0o600, &bolt.Options{
		Timeout: o.timeout, FreelistType: bolt.FreelistMapType, NoSync: o.noSync, ReadOnly: reading,
		OpenFile: func(name string, flag int, mode os.FileMode) (_ *os.File, err error) {
			file, err = os.OpenFile(name, flag&^os.O_CREATE, mode)
			return file, err
		},
	})
	_, system := errors.AsType[syscall.Errno](err)
	switch {
	case errors.Is(err, berrors.ErrTimeout):
		return nil, nil, fmt.Errorf("another enforcer has it open; give each its own --state-dir: %w", err)
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil, errReplaced
	case system:
		return nil, nil, err
	case err != nil:
		return nil, nil, &damage{err}
	}
	locked, err := file.Stat()
	if err != nil {
		return db, file, err
	}
	if there, err := os.Stat(o.path); err != nil || !os.SameFile(locked, there) {
		return db, file, errReplaced
	}
	return db, file, nil
}

// inspect looks at the pages while nobody writes them.
func (o *opener) inspect() (halved bool, err error) {
	db, file, err := o.lockFile(true)
	if db != nil {
		defer func() { err = errors.Join(err, db.Close()) }()
	}
	if _, damaged := errors.AsType[*damage](err); damaged {
		if newer := o.newer(); newer != nil {
			return false, newer
		}
	}
	if err != nil {
		return false, err
	}
	info, err := file.Stat()
	if err != nil {
		return false, err
	}
	halved, err = soundPages(file, info.Size())
	_, system := errors.AsType[syscall.Errno](err)
	switch {
	case err == nil || errors.Is(err, errNewer):
		return halved, err
	case system:
		return halved, fmt.Errorf("read it: %w", err)
	default:
		return halved, &damage{err}
	}
}

// newer returns an error if bbolt refuses a file because a newer version of bbolt has written it.
func (o *opener) newer() (err error) {
	file, err := os.Open(o.path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if _, _, err := findMeta(file, info.Size()); errors.Is(err, errNewer) {
		return err
	}
	return nil
}

// create makes a fresh file. It appears in its place when it is complete.
func (o *opener) create() (err error) {
	db, err := o.beside()
	if err != nil {
		return fmt.Errorf("create it: %w", err)
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	err = db.Update(func(tx *bolt.Tx) error {
		for _, name := range [][]byte{metaBucket, accountsBucket, openBucket, daysBucket, monthsBucket} {
			if _, err := tx.CreateBucket(name); err != nil {
				return fmt.Errorf("create bucket %s: %w", name, err)
			}
		}
		meta := tx.Bucket(metaBucket)
		if err := meta.Put(formatKey, strconv.AppendInt(nil, storeFormat, 10)); err != nil {
			return fmt.Errorf("put the format: %w", err)
		}
		return putHead(meta, &head{nextID: 1}, nil)
	})
	if err != nil {
		return fmt.Errorf("create it: %w", err)
	}
	return o.replace()
}

// beside opens an empty database beside the file.
func (o *opener) beside() (*bolt.DB, error) {
	if err := os.Remove(o.path + newSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	db, err := bolt.Open(o.path+newSuffix, 0o600, &bolt.Options{Timeout: o.timeout, FreelistType: bolt.FreelistMapType, NoSync: o.noSync})
	if err != nil {
		return nil, err
	}
	return db, nil
}

// replace puts the database beside the file into its place. It is all on disk already.
func (o *opener) replace() error {
	if err := os.Rename(o.path+newSuffix, o.path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(o.path))
}

// compact makes a file smaller that is mostly free.
func (o *opener) compact(db *bolt.DB) (*bolt.DB, error) {
	tx, err := db.Begin(true)
	if err != nil {
		return db, err
	}
	size := tx.Size()
	if err := tx.Rollback(); err != nil { // tells the statistics
		return db, err
	}
	stats := db.Stats()
	free := int64(stats.FreePageN) * int64(db.Info().PageSize)
	if free <= compactFrom || free <= size/2 {
		return db, nil
	}
	if err := o.copySmall(db); err != nil {
		// It can be used as it is.
		o.log.Warn("the ledger's file is mostly free, but could not be made smaller", slog.String("error", err.Error()))
		return db, nil
	}
	// The old file stays locked until the new one is in its place: who waits for the lock then finds that it was replaced.
	if err := errors.Join(o.replace(), db.Close()); err != nil {
		return nil, fmt.Errorf("compact it: %w", err)
	}
	o.log.Info("the ledger's file was made smaller", slog.Int64("bytesBefore", size), slog.Int64("bytesFreed", free))
	return o.lock(false)
}

// copySmall makes a copy beside the file, without what is free in it.
func (o *opener) copySmall(db *bolt.DB) error {
	small, err := o.beside()
	if err != nil {
		return err
	}
	err = bolt.Compact(small, db, compactStep)
	if err == nil {
		_, err = load(small) // compares it with the head, which is the same
	}
	if err = errors.Join(err, small.Close()); err != nil {
		return errors.Join(err, os.Remove(o.path+newSuffix))
	}
	return nil
}

func putHead(b *bolt.Bucket, h *head, arena []byte) error {
	value := seal(arena, tagHead, headKey, func(dst []byte) []byte { return appendHead(dst, h) })
	if err := b.Put(headKey, value[len(arena):]); err != nil {
		return fmt.Errorf("put the head: %w", err)
	}
	return nil
}

// syncDir makes a file's name survive.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
