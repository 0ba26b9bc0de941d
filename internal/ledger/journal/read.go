package journal

import (
	"bytes"
	"errors"
	"fmt"

	bolt "go.etcd.io/bbolt"
)

// DayTotals are what an account used in one day, or in one month.
type DayTotals struct {
	Day int32 // 20261123; of a month: 202611
	Totals
}

// load reads everything, so that nothing which cannot be read is found later, and nothing is missing.
func load(db *bolt.DB) (state State, err error) {
	err = db.View(func(tx *bolt.Tx) error {
		var t tables
		if err := t.begin(tx); err != nil {
			return err
		}
		state = State{NextID: t.head.nextID}
		if n := t.head.accounts.count; n <= 1<<20 {
			state.Accounts = make([]Account, 0, n)
		}
		for _, err := range []error{
			t.accounts.each(func(key, value []byte) error {
				a, err := decodeAccount(key, value)
				state.Accounts = append(state.Accounts, a)
				return err
			}),
			t.open.each(func(key, value []byte) error {
				o, err := decodeOpen(key, value)
				state.Open = append(state.Open, o)
				if err == nil && o.ID >= state.NextID {
					err = errors.New("its ID is not below the next one")
				}
				return err
			}),
			t.days.each(func(key, value []byte) error {
				_, err := decodeTotals(tagDays, key, value)
				return err
			}),
			t.months.each(func(key, value []byte) error {
				_, err := decodeTotals(tagMonths, key, value)
				return err
			}),
		} {
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil && !errors.Is(err, errNewer) {
		err = &damage{err}
	}
	return state, err
}

// each calls f with every entry, and says if any is missing or is not the latest.
func (t *table) each(f func(key, value []byte) error) error {
	var sum digest
	err := t.bucket.ForEach(func(key, value []byte) error {
		if err := f(key, value); err != nil {
			return fmt.Errorf("entry %q of %s: %w", key, t.name(), err)
		}
		sum.add(value)
		return nil
	})
	if err == nil && sum != *t.sum {
		err = fmt.Errorf("%s are %d and should be %d, or not all are the latest", t.name(), sum.count, t.sum.count)
	}
	return err
}

func (t *table) name() string {
	switch t.tag {
	case tagAccounts:
		return "accounts"
	case tagOpen:
		return "reservations"
	case tagDays:
		return "days"
	default:
		return "months"
	}
}

// History returns what an account used in the days from and to, both included, such as 20261123, oldest first: those that are kept, and
// in which it used anything. The current day is among them, as far as it is on disk.
func (j *Journal) History(id string, from, to int32) ([]DayTotals, error) {
	return j.history(id, from, to, func(t *tables) *table { return &t.days }, func(a *Account) (int32, Totals) { return a.Day, a.DayUsage })
}

// Months is as History for months, such as 202611.
func (j *Journal) Months(id string, from, to int32) ([]DayTotals, error) {
	return j.history(id, from, to, func(t *tables) *table { return &t.months }, func(a *Account) (int32, Totals) { return a.Month, a.MonthUsage })
}

func (j *Journal) history(id string, from, to int32, of func(*tables) *table, current func(*Account) (int32, Totals)) (list []DayTotals, err error) {
	from, to = max(from, 0), max(to, 0)
	err = j.view(func(tx *bolt.Tx) error {
		var t tables
		if err := t.begin(tx); err != nil {
			return err
		}
		var now int32
		var used Totals
		if value := t.accounts.bucket.Get([]byte(id)); value != nil {
			a, err := decodeAccount([]byte(id), value)
			if err != nil {
				return fmt.Errorf("account: %w", err)
			}
			now, used = current(&a)
		}
		table := of(&t)
		c := table.bucket.Cursor()
		last := appendPeriod(nil, id, to)
		for key, value := c.Seek(appendPeriod(nil, id, from)); key != nil && bytes.Compare(key, last) <= 0; key, value = c.Next() {
			if len(key) != len(last) || periodOf(key) == now { // another account's; or written before a clock was set back
				continue
			}
			totals, err := decodeTotals(table.tag, key, value)
			if err != nil {
				return fmt.Errorf("period %d: %w", periodOf(key), err)
			}
			list = append(list, DayTotals{periodOf(key), totals})
		}
		if now >= from && now <= to && used != (Totals{}) {
			list = insert(list, DayTotals{now, used})
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the history of account %q: %w", id, err)
	}
	return list, nil
}

func insert(list []DayTotals, d DayTotals) []DayTotals {
	i := len(list)
	for i > 0 && list[i-1].Day > d.Day {
		i--
	}
	return append(list[:i:i], append([]DayTotals{d}, list[i:]...)...)
}
