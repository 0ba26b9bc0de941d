package journal

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	bolt "go.etcd.io/bbolt"
)

// table is a bucket of sealed values, and what sums it up.
type table struct {
	bucket *bolt.Bucket
	tag    byte
	sum    *digest
}

func (t *table) put(key, value []byte) error {
	if old := t.bucket.Get(key); len(old) >= checksumSize {
		t.sum.remove(old)
	}
	if err := t.bucket.Put(key, value); err != nil {
		return fmt.Errorf("put %q: %w", key, err)
	}
	t.sum.add(value)
	return nil
}

func (t *table) remove(key []byte) error {
	old := t.bucket.Get(key)
	if len(old) < checksumSize {
		return nil
	}
	t.sum.remove(old)
	if err := t.bucket.Delete(key); err != nil {
		return fmt.Errorf("delete %q: %w", key, err)
	}
	return nil
}

// tables are the buckets of a transaction.
type tables struct {
	head                         head
	meta                         *bolt.Bucket
	accounts, open, days, months table
}

func (t *tables) begin(tx *bolt.Tx) error {
	t.meta = tx.Bucket(metaBucket)
	if t.meta == nil {
		return errors.New("it is not a ledger")
	}
	format := string(t.meta.Get(formatKey))
	if n, err := strconv.ParseUint(format, 10, 64); err == nil && n > storeFormat {
		return fmt.Errorf("it has format %d; this version reads %d: %w", n, storeFormat, errNewer)
	}
	if format != strconv.Itoa(storeFormat) {
		return fmt.Errorf("it has format %q; this version reads %d", format, storeFormat)
	}
	var err error
	if t.head, err = decodeHead(t.meta.Get(headKey)); err != nil {
		return fmt.Errorf("head: %w", err)
	}
	t.accounts = table{tx.Bucket(accountsBucket), tagAccounts, &t.head.accounts}
	t.open = table{tx.Bucket(openBucket), tagOpen, &t.head.open}
	t.days = table{tx.Bucket(daysBucket), tagDays, &t.head.days}
	t.months = table{tx.Bucket(monthsBucket), tagMonths, &t.head.months}
	if t.accounts.bucket == nil || t.open.bucket == nil || t.days.bucket == nil || t.months.bucket == nil {
		return errors.New("it lacks a bucket")
	}
	return nil
}

// writer writes batches. It belongs to the committer.
type writer struct {
	tables

	// What is put has to stay as it is until the commit. A full arena is left to the garbage collector.
	arena []byte
	key   []byte
	prune pruner
}

// write puts a batch into the transaction, which becomes the file's commit of that number.
func (w *writer) write(tx *bolt.Tx, b *batch, now time.Time) (commit uint64, err error) {
	if err := w.begin(tx); err != nil {
		return 0, err
	}
	w.arena = w.arena[:0]
	for _, id := range b.closed {
		if err := w.open.remove(binary.BigEndian.AppendUint64(w.key[:0], id)); err != nil {
			return 0, err
		}
	}
	for i := range b.open {
		o := &b.open[i]
		w.key = binary.BigEndian.AppendUint64(w.key[:0], o.ID)
		if err := w.seal(&w.open, func(dst []byte) []byte { return appendOpen(dst, o) }); err != nil {
			return 0, err
		}
	}
	for i := range b.accounts {
		if err := w.account(&b.accounts[i]); err != nil {
			return 0, err
		}
	}
	if err := w.history(&w.days, b.days); err != nil {
		return 0, err
	}
	if err := w.history(&w.months, b.months); err != nil {
		return 0, err
	}
	if err := w.prune.step(&w.tables, now); err != nil {
		return 0, fmt.Errorf("prune: %w", err)
	}
	w.head.commit++
	if b.maxID >= w.head.nextID {
		w.head.nextID = b.maxID + 1
	}
	return w.head.commit, putHead(w.meta, &w.head, w.arena)
}

// seal puts a value under w.key.
func (w *writer) seal(t *table, body func([]byte) []byte) error {
	start := len(w.arena)
	w.arena = seal(w.arena, t.tag, w.key, body)
	return t.put(w.key, w.arena[start:len(w.arena):len(w.arena)])
}

// account puts an account. What the one before had used in a day or month that has ended goes to the history.
func (w *writer) account(a *Account) error {
	if value := w.accounts.bucket.Get([]byte(a.ID)); value != nil {
		old, err := decodeAccount([]byte(a.ID), value)
		if err != nil {
			return fmt.Errorf("account %q: %w", a.ID, err)
		}
		if old.Day != a.Day {
			if err := w.ended(&w.days, a.ID, old.Day, old.DayUsage); err != nil {
				return err
			}
		}
		if old.Month != a.Month {
			if err := w.ended(&w.months, a.ID, old.Month, old.MonthUsage); err != nil {
				return err
			}
		}
	}
	w.key = append(w.key[:0], a.ID...)
	return w.seal(&w.accounts, func(dst []byte) []byte { return appendAccount(dst, a) })
}

// history puts days or months that ended within a batch.
func (w *writer) history(t *table, all map[period]Totals) error {
	if len(all) == 0 {
		return nil
	}
	for _, p := range slices.SortedFunc(maps.Keys(all), cmpPeriods) {
		if err := w.ended(t, p.id, p.key, all[p]); err != nil {
			return err
		}
	}
	return nil
}

func cmpPeriods(a, b period) int {
	return cmp.Or(cmp.Compare(a.id, b.id), cmp.Compare(a.key, b.key))
}

func (w *writer) ended(t *table, id string, key int32, used Totals) error {
	w.key = appendPeriod(w.key[:0], id, key)
	if used == (Totals{}) { // says no more than nothing
		return t.remove(w.key)
	}
	return w.seal(t, func(dst []byte) []byte { return appendTotals(dst, &used) })
}

// How long things are kept.
const (
	keepDays   = 62
	keepMonths = 14 // of months, and of accounts since they were last used
)

// How much of a commit may go into pruning, in entries.
const (
	pruneVisits  = 256
	pruneRemoves = 64
)

// pruner removes what is old, a little with each commit. It goes through everything, and then rests until the day has changed.
type pruner struct {
	began int32 // the day on which it last began; 0: never
	rests bool
	stage int // in days, months, accounts
	next  []byte
}

func (p *pruner) clone() pruner { return pruner{p.began, p.rests, p.stage, bytes.Clone(p.next)} }

func (p *pruner) step(t *tables, now time.Time) error {
	now = now.UTC()
	today := dayKey(now)
	if p.rests && p.began == today {
		return nil
	}
	if p.rests || p.began == 0 {
		*p = pruner{began: today}
	}
	oldDay, oldMonth, oldUse := dayKey(now.AddDate(0, 0, -keepDays)), monthKey(now.AddDate(0, -keepMonths, 0)), now.AddDate(0, -keepMonths, 0)
	stages := [...]struct {
		table *table
		old   func(key, value []byte) (bool, error)
	}{
		{&t.days, func(key, _ []byte) (bool, error) { return periodOf(key) < oldDay, nil }},
		{&t.months, func(key, _ []byte) (bool, error) { return periodOf(key) < oldMonth, nil }},
		{&t.accounts, func(key, value []byte) (bool, error) {
			a, err := decodeAccount(key, value)
			return a.Month < oldMonth && a.LastUsed.Before(oldUse) && (a.Month > 0 || !a.LastUsed.IsZero()), err
		}},
	}
	visits := pruneVisits
	for ; p.stage < len(stages); p.stage++ {
		s := stages[p.stage]
		var remove [][]byte
		c := s.table.bucket.Cursor()
		key, value := c.Seek(p.next)
		for ; key != nil && visits > 0 && len(remove) < pruneRemoves; key, value = c.Next() {
			visits--
			old, err := s.old(key, value)
			if err != nil {
				return fmt.Errorf("%q: %w", key, err)
			}
			if old {
				remove = append(remove, bytes.Clone(key))
			}
		}
		p.next = append(p.next[:0], key...)
		for _, k := range remove {
			if err := s.table.remove(k); err != nil {
				return err
			}
		}
		if key != nil {
			return nil
		}
	}
	p.rests = true
	return nil
}

func dayKey(t time.Time) int32   { return int32(t.Year()*10_000 + int(t.Month())*100 + t.Day()) }
func monthKey(t time.Time) int32 { return int32(t.Year()*100 + int(t.Month())) }
