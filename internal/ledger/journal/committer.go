package journal

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"path/filepath"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// Options are how a journal is opened.
type Options struct {
	Log *slog.Logger     // nil: none
	Now func() time.Time // says what is old, and names what is set aside; nil: time.Now
	// LockTimeout bounds the wait for an enforcer that is still ending. 0: 5 s.
	LockTimeout time.Duration
	// NoSync leaves it to the system when to write to the disk: what was waited for survives the process, but not a loss of power.
	NoSync bool
	// OnCommit, if there is one, is called after each commit with the number of changes in it, those among them that a later one made
	// void, and how long the commit took.
	OnCommit func(changes int, took time.Duration)
	// OnFailure, if there is one, is called after each try to commit that failed.
	OnFailure func(error)

	commit func(*bolt.Tx) error // nil: the transaction's own
}

// maxID is the greatest length of an account's ID, in bytes.
const maxID = 64

// Tickets that are handed out for changes which are not taken.
const (
	ticketClosed  = math.MaxUint64
	ticketInvalid = math.MaxUint64 - 1
)

// ErrClosed is wrapped by the errors about changes that came after Close, or that Close could not write.
var ErrClosed = errors.New("the journal is closed")

var errInvalid = fmt.Errorf("the change is not valid: a reservation has an ID from 1 to 2⁶⁴-2, and an account's ID 1 to %d bytes", maxID)

// While nothing can be written, it is tried again with the next change, but not more often than every retryPause; and without one after
// a wait that doubles from retryPause to retryMax.
const (
	retryPause = 100 * time.Millisecond
	retryMax   = 5 * time.Second
)

// outcome is what became of a batch.
type outcome struct {
	done chan struct{} // closed when err is set
	err  error
}

// Journal keeps a ledger's state on disk. It is safe for concurrent use.
type Journal struct {
	opts Options
	db   *bolt.DB

	durable atomic.Uint64 // the latest ticket of what is known to be on disk
	wake    chan struct{} // holds one
	ended   chan struct{} // closed when the committer has ended

	mu       sync.Mutex
	last     uint64   // ticket that was handed out
	queue    *batch   // not nil
	awaited  *outcome // of the queue; nil: nobody waits
	flight   uint64   // the latest ticket of the batch that is being committed
	flying   *outcome // of that batch; nil: nobody waits, or there is none
	asleep   bool     // the committer waits for wake
	closed   bool
	over     bool // the committer has ended, or is about to
	closeErr error
	broken   error // bbolt cannot be used any more: it may hold its locks for ever

	closing sync.Once

	// The committer's.
	write writer
	spare *batch
}

// OpenDir opens the journal in the directory, which is created if need be, and returns what it holds. The Journal has to be closed.
//
// A file that is damaged is set aside, with a line in the log, and the journal starts afresh. A file that is in use, that the system does
// not let us read or write, or that a newer version wrote, is an error that names it, and stays as it is.
func OpenDir(dir string, o Options) (*Journal, State, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.commit == nil {
		o.commit = (*bolt.Tx).Commit
	}
	if o.LockTimeout == 0 {
		o.LockTimeout = defaultLockTimeout
	}
	opening := opener{path: filepath.Join(dir, storeFile), timeout: o.LockTimeout, noSync: o.NoSync, log: o.Log, now: o.Now()}
	db, state, err := opening.open()
	if err != nil {
		return nil, State{}, err
	}
	j := &Journal{
		opts: o, db: db, wake: make(chan struct{}, 1), ended: make(chan struct{}), queue: newBatch(), spare: newBatch(),
	}
	j.queue.floor = state.NextID - 1
	go j.run()
	return j, state, nil
}

// Append queues a change and returns its ticket. It does not wait for the disk. Changes are written in the order of their tickets.
func (j *Journal) Append(c *Change) uint64 {
	if !valid(c) {
		return ticketInvalid
	}
	j.mu.Lock()
	if j.closed {
		j.mu.Unlock()
		return ticketClosed
	}
	j.last++
	ticket := j.last
	j.queue.change(c)
	wake := j.asleep
	j.asleep = false
	j.mu.Unlock()
	if wake {
		j.wakeUp()
	}
	return ticket
}

func valid(c *Change) bool {
	for _, a := range [...]*Account{c.Key, c.Application} {
		if a != nil && (a.ID == "" || len(a.ID) > maxID) {
			return false
		}
	}
	return (c.Put == nil || c.Put.ID != 0 && c.Put.ID != math.MaxUint64) && c.Close != math.MaxUint64
}

func (j *Journal) wakeUp() {
	select {
	case j.wake <- struct{}{}:
	default:
	}
}

// Wait returns once the change is on disk, with nil. With an error of the disk's it is not known to be there yet, but is not forgotten:
// it is written as soon as that is possible. If the context ends first, Wait returns its error.
func (j *Journal) Wait(ctx context.Context, ticket uint64) error {
	switch {
	case ticket <= j.durable.Load():
		return nil
	case ticket == ticketClosed:
		return fmt.Errorf("append to the ledger's journal: %w", ErrClosed)
	case ticket == ticketInvalid:
		return fmt.Errorf("append to the ledger's journal: %w", errInvalid)
	}
	j.mu.Lock()
	out, err := j.outcomeOf(ticket)
	j.mu.Unlock()
	if out == nil {
		return err
	}
	select {
	case <-out.done:
		return out.err
	case <-ctx.Done():
		return fmt.Errorf("wait for the ledger's journal: %w", ctx.Err())
	}
}

// outcomeOf returns what will become of a ticket, or what has. It needs mu.
func (j *Journal) outcomeOf(ticket uint64) (*outcome, error) {
	var of **outcome
	switch {
	case ticket <= j.durable.Load():
		return nil, nil //nolint:nilnil // it is on disk: there is nothing to wait for
	case ticket > j.last:
		return nil, fmt.Errorf("wait for the ledger's journal: there is no ticket %d yet", ticket)
	case j.over:
		return nil, fmt.Errorf("the ledger cannot write: %w", ErrClosed)
	case ticket <= j.flight:
		of = &j.flying
	default:
		of = &j.awaited
	}
	if *of == nil {
		*of = &outcome{done: make(chan struct{})}
	}
	return *of, nil
}

func resolve(out *outcome, err error) {
	if out != nil {
		out.err = err
		close(out.done)
	}
}

// Close writes what is queued, and closes the file. Its error says that not all could be written.
func (j *Journal) Close() error {
	j.mu.Lock()
	j.closed = true
	j.mu.Unlock()
	j.wakeUp()
	<-j.ended
	j.closing.Do(func() {
		if j.usable() == nil {
			if err := guarded(j.db.Close); err != nil {
				j.closeErr = errors.Join(j.closeErr, fmt.Errorf("close the ledger's journal: %w", err))
			}
		}
	})
	return j.closeErr
}

// failure is a state of the committer: nothing can be written.
type failure struct {
	err   error // nil: all is well
	since time.Time
	tried time.Time
	pause time.Duration
	timer *time.Timer
	due   bool // it is to be tried again
}

// run is the committer.
func (j *Journal) run() {
	defer close(j.ended)
	f := failure{timer: time.NewTimer(time.Hour)}
	defer f.timer.Stop()
	for {
		j.mu.Lock()
		closed := j.closed
		idle := j.queue.changes == 0
		if f.err != nil {
			idle = !f.due
		}
		if idle && !closed {
			j.asleep = true
			j.mu.Unlock()
			j.sleep(&f)
			continue
		}
		if closed && idle && f.err == nil {
			j.over = true
			j.mu.Unlock()
			return
		}
		b, last := j.queue, j.last
		j.flight, j.flying = last, j.awaited
		j.queue, j.awaited = j.spare, nil
		j.queue.floor = max(b.floor, b.maxID)
		j.asleep = false
		j.mu.Unlock()

		start := time.Now()
		landed, err := j.commit(b)
		if err != nil {
			err = fmt.Errorf("the ledger cannot write: %w", err)
			// First it is said, then those who wait are told: what they do next may be to look for it.
			f.fail(err, j.opts.Log)
			if j.opts.OnFailure != nil {
				j.opts.OnFailure(err)
			}
			j.failed(b, landed, closed, err)
		} else {
			j.durable.Store(last)
			changes := b.changes
			b = b.emptied()
			j.mu.Lock()
			j.spare = b
			out := j.flying
			j.flying = nil
			j.mu.Unlock()
			f.succeed(j.opts.Log)
			resolve(out, nil)
			if j.opts.OnCommit != nil {
				j.opts.OnCommit(changes, time.Since(start))
			}
		}
		if closed {
			j.mu.Lock()
			j.over = true
			if err != nil {
				j.closeErr = err
			}
			j.mu.Unlock()
			return
		}
	}
}

// sleep waits until there is something to do.
func (j *Journal) sleep(f *failure) {
	if f.err == nil {
		<-j.wake
		return
	}
	select {
	case <-f.timer.C:
		f.due = true
	case <-j.wake:
		if time.Since(f.tried) >= retryPause {
			f.due = true
			return
		}
		// Who came between two tries is told at once: the next try may be far.
		j.mu.Lock()
		out := j.awaited
		j.awaited = nil
		j.mu.Unlock()
		resolve(out, f.err)
	}
}

// failed puts a batch that was not written back before what came since, and tells who waited for it.
func (j *Journal) failed(b *batch, landed, last bool, err error) {
	j.mu.Lock()
	if landed {
		// It is in the file, but not known to be on the disk: the next commit, if it holds nothing else, tells.
		j.spare = b.emptied()
	} else {
		b.follow(j.queue)
		j.spare = j.queue.emptied()
		j.queue = b
	}
	out := j.flying
	j.flying, j.flight = nil, 0
	j.over = j.over || last
	j.mu.Unlock()
	resolve(out, err)
}

func (f *failure) fail(err error, log *slog.Logger) {
	now := time.Now()
	if f.err == nil {
		f.since, f.pause = now, retryPause
		log.Error("the ledger cannot write; it keeps what it is told in memory, and tries again",
			slog.String("error", err.Error()))
	} else {
		f.pause = min(2*f.pause, retryMax)
	}
	f.err, f.tried, f.due = err, now, false
	f.timer.Reset(f.pause)
}

func (f *failure) succeed(log *slog.Logger) {
	if f.err == nil {
		return
	}
	f.err = nil
	f.timer.Stop()
	log.Info("the ledger can write again; nothing was lost", slog.Duration("after", time.Since(f.since)))
}

// commit writes a batch in one transaction. With an error, landed says that the batch is in the file nevertheless, though perhaps not
// on the disk.
func (j *Journal) commit(b *batch) (landed bool, err error) {
	if err := j.usable(); err != nil {
		return false, err
	}
	var commit uint64
	before := j.write.prune.clone()
	var tx *bolt.Tx
	err = guarded(func() error {
		if tx, err = j.db.Begin(true); err != nil {
			return fmt.Errorf("begin: %w", err)
		}
		if commit, err = j.write.write(tx, b, j.opts.Now()); err != nil {
			return err
		}
		return j.opts.commit(tx)
	})
	if err == nil {
		return false, nil
	}
	j.write.prune = before
	after := guarded(func() error {
		if tx != nil {
			if err := tx.Rollback(); err != nil && !errors.Is(err, berrors.ErrTxClosed) {
				return err
			}
		}
		return nil
	})
	_, panicked := errors.AsType[*fault](err)
	switch {
	case after != nil:
		return false, j.breakOff(errors.Join(err, after))
	case tx == nil && panicked:
		return false, j.breakOff(err)
	case commit == 0:
		return false, err
	}
	after = j.view(func(tx *bolt.Tx) error {
		var t tables
		if err := t.begin(tx); err != nil {
			return err
		}
		landed = t.head.commit == commit
		return nil
	})
	if after != nil {
		return false, j.breakOff(errors.Join(err, after))
	}
	return landed, err
}

// view reads the file.
func (j *Journal) view(f func(*bolt.Tx) error) error {
	if err := j.usable(); err != nil {
		return err
	}
	began := false
	err := guarded(func() error {
		return j.db.View(func(tx *bolt.Tx) error {
			began = true
			return f(tx)
		})
	})
	if _, panicked := errors.AsType[*fault](err); panicked && !began {
		return j.breakOff(err)
	}
	return err
}

// breakOff leaves bbolt alone from now on.
func (j *Journal) breakOff(err error) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.broken == nil {
		j.broken = fmt.Errorf("the file cannot be used until the next start: %w", err)
	}
	return j.broken
}

func (j *Journal) usable() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.broken
}

// fault is a panic of bbolt's.
type fault struct{ reason any }

func (f *fault) Error() string { return fmt.Sprintf("the file cannot be used: %v", f.reason) }

// guarded turns a panic of bbolt's about a damaged page, or a page that the system cannot read, into an error.
func guarded(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = &fault{r}
		}
	}()
	return f()
}
