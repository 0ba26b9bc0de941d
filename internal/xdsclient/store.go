package xdsclient

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/latchkey-dev/latchkey/internal/keyset"
	"github.com/latchkey-dev/latchkey/internal/policy"
)

// storeFile is the database in the state directory.
const storeFile = "keyset.db"

// storeFormat is raised when what is stored changes its meaning. A file of another format is set aside and filled anew.
const storeFormat = "1"

// lockTimeout bounds the wait for an enforcer that is still ending.
const lockTimeout = 5 * time.Second

var (
	entriesBucket = []byte("entries") // resource name → checksum (4 bytes) of what follows and of the name, version, 0, body
	metaBucket    = []byte("meta")
	formatKey     = []byte("format")
	completeKey   = []byte("complete")
)

// Store keeps the last good key set on disk. It holds hashes and policy, no plaintext.
type Store struct {
	db *bolt.DB
}

// damage is what is wrong with a file's content.
type damage struct{ err error }

func (d *damage) Error() string { return "damaged: " + d.err.Error() }
func (d *damage) Unwrap() error { return d.err }

// OpenStore opens the store in the directory, which is created if need be. A file that is damaged, or of another format, is set aside
// with a log line that says so: the enforcer then refuses everybody until the control plane has told it all. A file that is in use, or
// that the system does not let us open, is an error that names it.
func OpenStore(dir string, log *slog.Logger, now time.Time) (*Store, error) {
	return openStore(dir, log, now, lockTimeout)
}

func openStore(dir string, log *slog.Logger, now time.Time, timeout time.Duration) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create state directory: %w", err)
	}
	path := filepath.Join(dir, storeFile)
	s, err := open(path, timeout)
	if _, damaged := errors.AsType[*damage](err); !damaged {
		return s, err
	}
	aside := path + ".damaged-" + strconv.FormatInt(now.Unix(), 10)
	if renameErr := os.Rename(path, aside); renameErr != nil {
		return nil, errors.Join(err, fmt.Errorf("set the damaged file aside: %w", renameErr))
	}
	log.Error("the key set's copy on disk cannot be used and was set aside; without the control plane nobody is let through",
		slog.String("error", err.Error()), slog.String("aside", aside))
	return open(path, timeout)
}

func open(path string, timeout time.Duration) (_ *Store, err error) {
	var db *bolt.DB
	// bbolt believes its file: damage makes it panic, or read outside of what is mapped.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = &damage{fmt.Errorf("%v", r)}
		}
		if err != nil {
			err = fmt.Errorf("open %s: %w", path, err)
			if db != nil {
				err = errors.Join(err, db.Close())
			}
		}
	}()
	db, err = bolt.Open(path, 0o600, &bolt.Options{Timeout: timeout, FreelistType: bolt.FreelistMapType})
	_, system := errors.AsType[syscall.Errno](err)
	switch {
	case errors.Is(err, berrors.ErrTimeout):
		return nil, fmt.Errorf("another enforcer has it open; give each its own --state-dir: %w", err)
	case system:
		return nil, err
	case err != nil:
		return nil, &damage{err}
	}
	s := &Store{db: db}
	fresh := false
	err = db.View(func(tx *bolt.Tx) error {
		first, _ := tx.Cursor().First()
		fresh = first == nil
		return nil
	})
	if err == nil && fresh {
		err = s.create()
	}
	if err != nil {
		return nil, err
	}
	if err := s.verify(); err != nil {
		return nil, &damage{err}
	}
	return s, nil
}

func (s *Store) create() error {
	return s.db.Update(func(tx *bolt.Tx) error {
		if _, err := tx.CreateBucket(entriesBucket); err != nil {
			return err
		}
		meta, err := tx.CreateBucket(metaBucket)
		if err != nil {
			return err
		}
		return meta.Put(formatKey, []byte(storeFormat))
	})
}

// verify reads everything, first the entries, so that the walk over all pages finds none that cannot be read: it runs in a goroutine
// of bbolt's, where a fault could not be caught.
func (s *Store) verify() error {
	err := s.db.View(func(tx *bolt.Tx) error {
		entries, meta := tx.Bucket(entriesBucket), tx.Bucket(metaBucket)
		if entries == nil || meta == nil {
			return errors.New("it is not a key set")
		}
		if format := meta.Get(formatKey); string(format) != storeFormat {
			return fmt.Errorf("it has format %q; this version reads %q", format, storeFormat)
		}
		return meta.ForEach(func(_, _ []byte) error { return nil })
	})
	if err != nil {
		return err
	}
	if _, _, _, err := s.Load(); err != nil {
		return err
	}
	return s.db.View(func(tx *bolt.Tx) error {
		var first error
		for err := range tx.Check() { // must be read to its end
			if first == nil {
				first = err
			}
		}
		return first
	})
}

// Close closes the file.
func (s *Store) Close() error { return s.db.Close() }

// Load reads what is stored: the versions by name, the whole as a delta, and whether it is a complete set.
func (s *Store) Load() (versions map[string]string, all *policy.Delta, complete bool, err error) {
	versions, all = map[string]string{}, &policy.Delta{}
	err = s.db.View(func(tx *bolt.Tx) error {
		complete = tx.Bucket(metaBucket).Get(completeKey) != nil
		return tx.Bucket(entriesBucket).ForEach(func(name, value []byte) error {
			version, body, err := unpack(name, value)
			if err != nil {
				return fmt.Errorf("entry %q: %w", name, err)
			}
			versions[string(name)] = version
			return keyset.Decode(string(name), body, all)
		})
	})
	if err != nil {
		return nil, nil, false, fmt.Errorf("load the key set's copy: %w", err)
	}
	return versions, all, complete, nil
}

// Commit stores a page in one transaction. Once it returns, a crash loses nothing of it. A complete set stays complete.
func (s *Store) Commit(upserts []keyset.Resource, removed []string, complete bool) error {
	err := s.db.Update(func(tx *bolt.Tx) error {
		entries := tx.Bucket(entriesBucket)
		for _, r := range upserts {
			if err := entries.Put([]byte(r.Name), pack(r)); err != nil {
				return fmt.Errorf("put %q: %w", r.Name, err)
			}
		}
		for _, name := range removed {
			if err := entries.Delete([]byte(name)); err != nil {
				return fmt.Errorf("delete %q: %w", name, err)
			}
		}
		if complete {
			return tx.Bucket(metaBucket).Put(completeKey, []byte("1"))
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("store the key set: %w", err)
	}
	return nil
}

const checksumSize = 4

func pack(r keyset.Resource) []byte {
	value := make([]byte, checksumSize, checksumSize+len(r.Version)+1+len(r.Body))
	value = append(value, r.Version...)
	value = append(value, 0)
	value = append(value, r.Body...)
	binary.BigEndian.PutUint32(value, checksum([]byte(r.Name), value[checksumSize:]))
	return value
}

func unpack(name, value []byte) (version string, body []byte, err error) {
	if len(value) < checksumSize {
		return "", nil, errors.New("it is too short")
	}
	sum, rest := binary.BigEndian.Uint32(value), value[checksumSize:]
	if sum != checksum(name, rest) {
		return "", nil, errors.New("its checksum is wrong")
	}
	before, after, found := bytes.Cut(rest, []byte{0})
	if !found {
		return "", nil, errors.New("it has no version before its body")
	}
	return string(before), after, nil
}

// checksum finds damage that bbolt, which has no checksums over data, does not.
func checksum(name, rest []byte) uint32 {
	return crc32.Update(crc32.ChecksumIEEE(name), crc32.IEEETable, rest)
}
