package ledger

import (
	"context"
	"time"

	"github.com/latchkey-dev/latchkey/internal/ledger/journal"
	"github.com/latchkey-dev/latchkey/internal/money"
	"github.com/latchkey-dev/latchkey/internal/policy"
)

// Limits are what one account may use. policy.Unset and policy.NoBudget: no limit of that kind. 0 refuses.
type Limits struct {
	RequestsPerMinute  policy.Limit
	TokensPerMinute    policy.Limit
	ConcurrentRequests policy.Limit
	Daily              money.Amount
	Monthly            money.Amount
	Enforcement        policy.Enforcement
}

// Account is whose limits a request has to pass. It is told anew with every request, so that an edit counts at once, on what is
// already spent.
type Account struct {
	ID     string // UID of the APIKey or of the Application
	Limits Limits
}

// Amounts are what a request uses of the limits that are not counts of requests.
type Amounts struct {
	Tokens int64
	Cost   money.Amount
}

// Ask is a request that wants to pass.
type Ask struct {
	Key         Account
	Application Account
	Model       string
	Zone        *time.Location // of the budgets' day and month
	// Input is what the input is thought to use, and Worst the most that the whole request can. What a request is found to use beyond
	// its Input is what is learned for the requests of the same key and model that follow.
	Input, Worst Amounts
	// Volatile lets the request pass by what is in memory when the ledger cannot write.
	Volatile bool
}

// Scope says whose limit it is.
type Scope uint8

// The scopes.
const (
	ScopeKey Scope = iota
	ScopeApplication
)

// Limit names a limit.
type Limit uint8

// The limits, in the order in which they are checked: at each, the key's before the application's.
const (
	RequestsPerMinute Limit = iota
	TokensPerMinute
	ConcurrentRequests
	Daily
	Monthly
)

// Refusal says which limit of whom a request did not pass. Amounts are requests, tokens or nano-units, by the limit.
type Refusal struct {
	Limit    Limit
	Scope    Scope
	Max      int64
	Used     int64     // within the minute, the day or the month; of ConcurrentRequests: 0
	Reserved int64     // by requests under way; of ConcurrentRequests: how many they are
	Needed   int64     // by this request: its reservation
	Reset    time.Time // when enough is free again; with Held no more than a guess
	// Held says that the limit is not reached, and only what is under way stands in the way: it may be free again at any moment.
	Held bool
}

// Window is how an account stands in a limit per minute once the request is counted.
type Window struct {
	Max       policy.Limit // policy.Unset: there is no limit
	Remaining int64
	Reset     time.Duration // until all of it is free again
	Scope     Scope
}

// Reservation is a request that has passed, until it is settled or released. The zero value is none.
type Reservation struct {
	ID uint64
	// Reserved is what is held for it.
	Reserved Amounts
	// Requests and Tokens are the tighter window of the key's and the application's.
	Requests, Tokens Window
}

// Settlement is what a request used.
type Settlement struct {
	Amounts
	Estimated bool // not, or not all, reported by the provider
	// Learn says that it is typical of its key and model: it came to its end in good order.
	Learn bool
}

// Period is what was used in a day or a month.
type Period struct {
	Start, End time.Time // End is the first moment after it
	Requests   int64     // settled
	Tokens     int64
	Spent      money.Amount
	Estimated  money.Amount // part of Spent that is an estimate
	Reserved   money.Amount // by requests under way, beside Spent
}

// Balance is how an account stands.
type Balance struct {
	RequestsInMinute   int64
	RequestsReset      time.Duration
	TokensInMinute     int64 // settled
	TokensReserved     int64
	TokensReset        time.Duration
	ConcurrentRequests int64
	Day, Month         Period
	LastUsed           time.Time // of the latest settlement; zero: never
	BlockedSince       time.Time // when a budget was first found reached, by the limits of the latest request; zero: none is
}

// Row is an account as it is reported, and as it can be started from again.
type Row = journal.Account

// Totals are what was used in one day or month.
type Totals = journal.Totals

// Ledger counts. It is safe for concurrent use.
type Ledger interface {
	// Reserve lets a request pass, or says which limit refuses it. Where only requests under way stand in a budget's way, it waits a
	// little for them to end. A request that has passed is known to survive the ledger's crash. An error means that the ledger cannot
	// answer: nothing is reserved then.
	// One that is Volatile passes all the same, and is counted in memory.
	Reserve(ctx context.Context, ask *Ask) (Reservation, *Refusal, error)
	// Grow raises a reservation to what is known to have been used already, if that is more.
	Grow(r *Reservation, used Amounts)
	// Settle puts what was used in the reservation's place, and returns once that is known to survive a crash. With an error it counts
	// all the same, and is known to survive as soon as the ledger can write again.
	Settle(r *Reservation, s Settlement) error
	// Release gives the reservation back: the provider never answered. The request stays counted in its minute.
	Release(r *Reservation) error
	// Balance is how an account stands now; one that is not known has used nothing.
	Balance(id string, zone *time.Location) Balance
	// Changed hands out accounts that have changed since they were last handed out, at most so many.
	Changed(most int) []Row
	// ChangedAll makes Changed hand out every account again.
	ChangedAll()
	// Seed raises accounts to what is known of them from elsewhere, where that is more.
	Seed(rows []Row) error
	// Empty reports whether the ledger began with no memory of its own.
	Empty() bool
	// Close writes what is not written yet. Open reservations stay open on disk, and are charged at the next start.
	Close() error
}
