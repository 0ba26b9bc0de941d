package journal

import (
	"time"

	"github.com/latchkey-dev/latchkey/internal/money"
)

// Totals are what an account used in one day or month.
type Totals struct {
	Requests  int64
	Tokens    int64
	Spent     money.Amount
	Estimated money.Amount // part of Spent
}

// Account is the state of one account. Writing it again replaces it.
type Account struct {
	ID           string // at most 64 bytes
	Day          int32  // 20261123: the day that DayUsage is of
	Month        int32  // 202611
	DayUsage     Totals
	MonthUsage   Totals
	LastUsed     time.Time // zero: never
	BlockedSince time.Time // zero: not
}

// Open is a reservation that is neither settled nor released. Writing it again replaces it.
type Open struct {
	ID          uint64
	Key         string // account
	Application string // account
	Model       string
	Tokens      int64
	Cost        money.Amount
	Day         int32 // in which it was made
	Month       int32
	Time        time.Time
}

// Change is what one call to the ledger changes. All of it survives, or nothing.
type Change struct {
	Put         *Open    // copied by Append
	Close       uint64   // ID of a reservation that is no longer open; 0: none
	Key         *Account // copied by Append; nil: unchanged
	Application *Account // the same
}

// State is what a file held when it was opened.
type State struct {
	// Fresh: there was no file, or it was damaged and has been set aside.
	Fresh    bool
	Accounts []Account // the latest state of each
	Open     []Open    // of the process before, by ID
	NextID   uint64    // greater than any ID that was ever written
}
