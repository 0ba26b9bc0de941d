package journal

import "maps"

// period is a day or a month of an account.
type period struct {
	id  string
	key int32
}

// batch is what waits to be written, without what a later change made void. So it is bounded by the number of accounts and of requests
// under way, however long it waits.
type batch struct {
	// floor is the greatest ID of the batches before. A reservation above it that is opened and closed here was never on disk.
	floor, maxID uint64
	changes      int // calls of Append

	accounts []Account
	index    map[string]int // in accounts
	open     []Open
	openAt   map[uint64]int // in open
	closed   []uint64       // closed before what is in open was opened

	// What an account had used in a day or month that ended within the batch.
	days, months map[period]Totals
}

func newBatch() *batch {
	return &batch{index: map[string]int{}, openAt: map[uint64]int{}, days: map[period]Totals{}, months: map[period]Totals{}}
}

// keepEntries is the size up to which an empty batch is used again. Beyond it, emptying its maps would slow down the small batches that
// follow a large one.
const keepEntries = 8192

// emptied returns an empty batch, if it can be the same one.
func (b *batch) emptied() *batch {
	if max(cap(b.accounts), cap(b.open), cap(b.closed), len(b.days), len(b.months)) > keepEntries {
		return newBatch()
	}
	clear(b.accounts) // lets go of the strings
	clear(b.open)
	clear(b.index)
	clear(b.openAt)
	clear(b.days)
	clear(b.months)
	b.accounts, b.open, b.closed = b.accounts[:0], b.open[:0], b.closed[:0]
	b.floor, b.maxID, b.changes = 0, 0, 0
	return b
}

func (b *batch) change(c *Change) {
	b.changes++
	if c.Put != nil {
		b.put(c.Put)
	}
	if c.Close != 0 {
		b.close(c.Close)
	}
	if c.Key != nil {
		b.account(c.Key)
	}
	if c.Application != nil {
		b.account(c.Application)
	}
}

func (b *batch) put(o *Open) {
	b.maxID = max(b.maxID, o.ID)
	if i, found := b.openAt[o.ID]; found {
		b.open[i] = *o
		return
	}
	b.openAt[o.ID] = len(b.open)
	b.open = append(b.open, *o)
}

func (b *batch) close(id uint64) {
	b.maxID = max(b.maxID, id)
	if i, found := b.openAt[id]; found {
		last := len(b.open) - 1
		b.open[i] = b.open[last]
		b.openAt[b.open[i].ID] = i
		b.open[last] = Open{}
		b.open = b.open[:last]
		delete(b.openAt, id)
		if id > b.floor {
			return
		}
	}
	b.closed = append(b.closed, id)
}

func (b *batch) account(a *Account) {
	i, found := b.index[a.ID]
	if !found {
		b.index[a.ID] = len(b.accounts)
		b.accounts = append(b.accounts, *a)
		return
	}
	old := &b.accounts[i]
	if old.Day != a.Day {
		b.days[period{old.ID, old.Day}] = old.DayUsage
	}
	if old.Month != a.Month {
		b.months[period{old.ID, old.Month}] = old.MonthUsage
	}
	*old = *a
}

// follow adds a batch that came later.
func (b *batch) follow(later *batch) {
	b.changes += later.changes
	b.maxID = max(b.maxID, later.maxID)
	for _, id := range later.closed {
		b.close(id)
	}
	for i := range later.open {
		b.put(&later.open[i])
	}
	for i := range later.accounts {
		b.account(&later.accounts[i])
	}
	// What ended within the later batch is known better there.
	maps.Copy(b.days, later.days)
	maps.Copy(b.months, later.months)
}
