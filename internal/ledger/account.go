package ledger

import (
	"time"

	"github.com/latchkey-dev/latchkey/internal/ledger/journal"
	"github.com/latchkey-dev/latchkey/internal/money"
	"github.com/latchkey-dev/latchkey/internal/policy"
)

// account is one key's or one application's. The ledger's mu guards it.
type account struct {
	journal.Account

	app            *account // of a key, the application that its latest request came with
	limits         Limits   // by the latest request
	open           int64    // requests under way
	reservedTokens int64
	reservedCost   money.Amount
	window         *window  // nil: nothing in the last minute
	lessons        []lesson // of a key's models, the latest used first
	freed          chan struct{}
	waiting        int // requests that wait for reservations to end
	marked         bool
	gone           bool // it is not in the ledger any more
}

// roll begins a later day or month. To go back frees nothing: what was counted stays counted until a period comes that is later still.
func (a *account) roll(day, month int32) {
	if day > a.Day {
		a.Day, a.DayUsage, a.BlockedSince = day, Totals{}, time.Time{}
	}
	if month > a.Month {
		a.Month, a.MonthUsage, a.BlockedSince = month, Totals{}, time.Time{}
	}
}

// use counts a settlement at now, and returns by how much a budget was passed by it. latest is the time by a clock that never goes back.
func (a *account) use(now, latest time.Time, s *Settlement) (overrun money.Amount) {
	used := Totals{Requests: 1, Tokens: s.Tokens, Spent: s.Cost}
	if s.Estimated {
		used.Estimated = s.Cost
	}
	add(&a.DayUsage, &used)
	add(&a.MonthUsage, &used)
	a.LastUsed = now
	a.minute(latest).use(s.Tokens)
	reached := false
	for _, b := range [...]struct{ spent, cap money.Amount }{{a.DayUsage.Spent, a.limits.Daily}, {a.MonthUsage.Spent, a.limits.Monthly}} {
		if b.cap < 0 {
			continue
		}
		reached = reached || b.spent >= b.cap
		overrun = max(overrun, min(s.Cost, b.spent-b.cap))
	}
	if reached && a.BlockedSince.IsZero() {
		a.BlockedSince = now
	}
	return overrun
}

// minute is the account's window, at now.
func (a *account) minute(now time.Time) *window {
	if a.window == nil {
		a.window = &window{last: now.Unix()}
	}
	a.window.advance(now)
	return a.window
}

// free wakes those who wait for reservations of the account to end.
func (a *account) free() {
	if a.freed != nil {
		close(a.freed)
		a.freed = nil
	}
}

// awaitFree is closed at the next end of a reservation.
func (a *account) awaitFree() <-chan struct{} {
	if a.freed == nil {
		a.freed = make(chan struct{})
	}
	return a.freed
}

// maxLessons bounds the models that are remembered of a key.
const maxLessons = 16

// lesson is what requests of one model were found to use beyond their input, of late: the mean, and the mean deviation from it.
type lesson struct {
	model          string
	tokens, tokenD int64
	cost, costD    int64
}

// The weight of a new sample is 1 in so many, once there is one.
const lessonWeight = 8

// learn takes in a sample.
func (a *account) learn(model string, tokens int64, cost money.Amount) {
	i := a.lessonOf(model)
	if i < 0 {
		if len(a.lessons) < maxLessons {
			a.lessons = append(a.lessons, lesson{})
		}
		i = len(a.lessons) - 1
		a.lessons[i] = lesson{model: model, tokens: tokens, cost: int64(cost)}
	} else {
		approach(&a.lessons[i].tokens, &a.lessons[i].tokenD, tokens)
		approach(&a.lessons[i].cost, &a.lessons[i].costD, int64(cost))
	}
	latest := a.lessons[i]
	copy(a.lessons[1:i+1], a.lessons[:i])
	a.lessons[0] = latest
}

func approach(mean, deviation *int64, sample int64) {
	off := sample - *mean
	*mean += off / lessonWeight
	if off < 0 {
		off = -off
	}
	*deviation += (off - *deviation) / lessonWeight
}

func (a *account) lessonOf(model string) int {
	for i := range a.lessons {
		if a.lessons[i].model == model {
			return i
		}
	}
	return -1
}

// coldTokens are reserved beside the input while nothing was learned. Tokens per minute can be passed by a little, whereas their worst case
// would let a cold key make one request at a time.
const coldTokens = 1_024

// expect is what a request is thought to use, by what was learned; while nothing was, it costs its worst case.
func (a *account) expect(ask *Ask) Amounts {
	i := a.lessonOf(ask.Model)
	if i < 0 {
		return Amounts{Tokens: min(saturated(ask.Input.Tokens, coldTokens), ask.Worst.Tokens), Cost: ask.Worst.Cost}
	}
	known := &a.lessons[i]
	within := func(input, mean, deviation, worst int64) int64 {
		return min(max(saturated(input, saturated(mean, deviation)), 0), worst)
	}
	return Amounts{
		Tokens: within(ask.Input.Tokens, known.tokens, known.tokenD, ask.Worst.Tokens),
		Cost:   money.Amount(within(int64(ask.Input.Cost), known.cost, known.costD, int64(ask.Worst.Cost))),
	}
}

// hold is what the account reserves for a request, by its enforcement.
func (a *account) hold(ask *Ask, expected Amounts) money.Amount {
	if a.limits.Enforcement == policy.Strict {
		return ask.Worst.Cost
	}
	return expected.Cost
}
