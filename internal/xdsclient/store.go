package xdsclient

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
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
	entriesBucket = []byte("entries") // resource name → version, 0, body
	metaBucket    = []byte("meta")
	formatKey     = []byte("format")
	completeKey   = []byte("complete")
)

// Store keeps the last good key set on disk. It holds hashes and policy, no plaintext.
type Store struct {
	db *bolt.DB
}

// OpenStore opens the store in the directory, which is created if need be. A file that is damaged, or of another format, is set aside
// with a log line that says so: the enforcer then refuses everybody until the control plane has told it all.
func OpenStore(dir string, log *slog.Logger, now time.Time) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create state directory: %w", err)
	}
	path := filepath.Join(dir, storeFile)
	s, err := open(path)
	if err == nil || errors.Is(err, berrors.ErrTimeout) || errors.Is(err, os.ErrPermission) {
		return s, err
	}
	aside := path + ".damaged-" + strconv.FormatInt(now.Unix(), 10)
	if renameErr := os.Rename(path, aside); renameErr != nil {
		return nil, errors.Join(err, fmt.Errorf("set the damaged file aside: %w", renameErr))
	}
	log.Error("the key set's copy on disk cannot be used and was set aside; everybody is refused until the control plane has been reached",
		"error", err, "aside", aside)
	return open(path)
}

func open(path string) (_ *Store, err error) {
	defer func() {
		if r := recover(); r != nil { // bbolt panics on some damage
			err = fmt.Errorf("open %s: damaged: %v", path, r)
		}
	}()
	db, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: lockTimeout, FreelistType: bolt.FreelistMapType})
	if errors.Is(err, berrors.ErrTimeout) {
		return nil, fmt.Errorf("open %s: another enforcer has it open; give each its own --state-dir: %w", path, err)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	err = db.Update(func(tx *bolt.Tx) error {
		if _, err := tx.CreateBucketIfNotExists(entriesBucket); err != nil {
			return err
		}
		meta, err := tx.CreateBucketIfNotExists(metaBucket)
		if err != nil {
			return err
		}
		switch format := meta.Get(formatKey); {
		case format == nil:
			return meta.Put(formatKey, []byte(storeFormat))
		case string(format) != storeFormat:
			return fmt.Errorf("it has format %s; this version reads %s", format, storeFormat)
		}
		return nil
	})
	if err == nil {
		err = check(db)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open %s: %w", path, err), db.Close())
	}
	return &Store{db: db}, nil
}

// check walks all pages, and turns what it finds into one error.
func check(db *bolt.DB) error {
	return db.View(func(tx *bolt.Tx) error {
		var first error
		for err := range tx.Check() { // must be read to its end
			if first == nil {
				first = fmt.Errorf("damaged: %w", err)
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
			version, body, err := split(value)
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
			value := make([]byte, 0, len(r.Version)+1+len(r.Body))
			value = append(value, r.Version...)
			value = append(value, 0)
			value = append(value, r.Body...)
			if err := entries.Put([]byte(r.Name), value); err != nil {
				return err
			}
		}
		for _, name := range removed {
			if err := entries.Delete([]byte(name)); err != nil {
				return err
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

func split(value []byte) (version string, body []byte, err error) {
	for i, b := range value {
		if b == 0 {
			return string(value[:i]), value[i+1:], nil
		}
	}
	return "", nil, errors.New("no version before its body")
}
