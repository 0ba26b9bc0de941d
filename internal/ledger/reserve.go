package ledger

import (
	"context"
	"errors"
	"time"

	"github.com/latchkey-dev/latchkey/internal/ledger/journal"
	"github.com/latchkey-dev/latchkey/internal/money"
	"github.com/latchkey-dev/latchkey/internal/policy"
)

var errClosed = errors.New("the ledger is closed")

// retryHeld is when a request that was refused for what is under way is told to come again.
const retryHeld = time.Second

// maxWaiting bounds the requests that wait for one account: who has more than that under way had better be told at once.
const maxWaiting = 512

// Reserve implements Ledger.
func (l *Memory) Reserve(ctx context.Context, ask *Ask) (Reservation, *Refusal, error) {
	r, refusal, held, err := l.try(ctx, ask)
	if held.by == nil {
		return r, refusal, err
	}
	deadline := time.NewTimer(l.o.HoldFor)
	defer deadline.Stop()
	for held.by != nil {
		ended := false
		select {
		case <-held.freed:
		case <-deadline.C:
			ended = true
		case <-ctx.Done():
			ended, refusal, err = true, nil, ctx.Err()
		}
		l.mu.Lock()
		held.by.waiting--
		l.mu.Unlock()
		if ended {
			return Reservation{}, refusal, err
		}
		r, refusal, held, err = l.try(ctx, ask)
	}
	return r, refusal, err
}

// hold is what a request waits for: that a reservation of the account ends.
type hold struct {
	by    *account // nil: it does not wait
	freed <-chan struct{}
}

// try reserves, or says why not, and what to wait for.
func (l *Memory) try(ctx context.Context, ask *Ask) (r Reservation, refusal *Refusal, held hold, err error) {
	now := l.o.Now()
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return Reservation{}, nil, hold{}, errClosed
	}
	if l.reserves++; l.reserves%sweepEvery == 0 {
		l.sweep(now)
	}
	l.calendar.set(now, ask.Zone)
	key, app := l.pair(ask)
	latest := l.forward(now)
	key.limits, app.limits = ask.Key.Limits, ask.Application.Limits
	for _, a := range [...]*account{key, app} {
		a.roll(l.calendar.day, l.calendar.month)
		a.minute(latest)
	}
	expected := key.expect(ask)
	if refused, whose := l.check(key, app, ask, expected, latest); whose != nil {
		if refused.Held && refused.Limit >= Daily && l.o.HoldFor > 0 && whose.waiting < maxWaiting {
			whose.waiting++
			held = hold{whose, whose.awaitFree()}
		}
		l.mu.Unlock()
		told := refused // only here, so that nothing is allocated for those that pass
		return Reservation{}, &told, held, nil
	}
	o := open{key: key, app: app, model: ask.Model, input: ask.Input, tokens: max(expected.Tokens, 0),
		keyCost: key.hold(ask, expected), appCost: app.hold(ask, expected)}
	id := l.nextID
	l.nextID++
	l.open[id] = o
	for _, side := range [...]struct {
		a    *account
		cost money.Amount
	}{{key, o.keyCost}, {app, o.appCost}} {
		side.a.open++
		side.a.reservedTokens += o.tokens
		side.a.reservedCost += side.cost
		side.a.window.request()
		if !side.a.BlockedSince.IsZero() {
			side.a.BlockedSince = time.Time{}
			l.mark(side.a)
		}
	}
	r = Reservation{
		ID: id, Reserved: Amounts{Tokens: o.tokens, Cost: max(o.keyCost, o.appCost)},
		Requests: tighter(requestsOf(key, ScopeKey, latest), requestsOf(app, ScopeApplication, latest)),
		Tokens:   tighter(tokensOf(key, ScopeKey, latest), tokensOf(app, ScopeApplication, latest)),
	}
	var ticket uint64
	if l.o.Journal != nil {
		ticket = l.append(&journal.Change{Put: l.record(id, &o)})
	}
	l.mu.Unlock()
	if err := l.wait(ctx, ticket); err != nil && (!ask.Volatile || ctx.Err() != nil) {
		return Reservation{}, nil, hold{}, errors.Join(err, l.Release(&r))
	}
	return r, nil, hold{}, nil
}

// check is the first limit that refuses, and the account whose it is; nil: none. It holds mu.
func (l *Memory) check(key, app *account, ask *Ask, expected Amounts, now time.Time) (Refusal, *account) {
	sides := [...]*account{ScopeKey: key, ScopeApplication: app}
	for limit := RequestsPerMinute; limit <= Monthly; limit++ {
		for scope, a := range sides {
			if r, refused := l.meets(limit, a, ask, expected, now); refused {
				r.Limit, r.Scope = limit, Scope(scope)
				if limit >= Daily && !r.Held && a.BlockedSince.IsZero() {
					a.BlockedSince = now
					l.mark(a)
				}
				return r, a
			}
		}
	}
	return Refusal{}, nil
}

// meets reports whether one limit of an account refuses. It holds mu.
func (l *Memory) meets(limit Limit, a *account, ask *Ask, expected Amounts, now time.Time) (Refusal, bool) {
	switch limit {
	case RequestsPerMinute:
		most, used := int64(a.limits.RequestsPerMinute), a.window.requests
		if most < 0 || used < most {
			return Refusal{}, false
		}
		return Refusal{Max: most, Used: used, Needed: 1, Reset: a.window.below(most, used, requestsIn, now)}, true
	case TokensPerMinute:
		most, used := int64(a.limits.TokensPerMinute), a.window.tokens
		if most < 0 || saturated(used, a.reservedTokens) < most {
			return Refusal{}, false
		}
		r := Refusal{Max: most, Used: used, Reserved: a.reservedTokens, Needed: expected.Tokens}
		if r.Reset = a.window.below(most-a.reservedTokens, used, tokensIn, now); used < most {
			r.Held, r.Reset = true, now.Add(retryHeld)
		}
		return r, true
	case ConcurrentRequests:
		most := int64(a.limits.ConcurrentRequests)
		if most < 0 || a.open < most {
			return Refusal{}, false
		}
		return Refusal{Max: most, Reserved: a.open, Needed: 1, Held: most > 0, Reset: now.Add(retryHeld)}, true
	case Daily:
		return l.budget(a, a.limits.Daily, a.DayUsage.Spent, l.calendar.dayEnd, ask, expected)
	case Monthly:
	}
	return l.budget(a, a.limits.Monthly, a.MonthUsage.Spent, l.calendar.monthEnd, ask, expected)
}

func (l *Memory) budget(a *account, most, spent money.Amount, end time.Time, ask *Ask, expected Amounts) (Refusal, bool) {
	if most < 0 {
		return Refusal{}, false
	}
	needed := a.hold(ask, expected)
	r := Refusal{Max: int64(most), Used: int64(spent), Reserved: int64(a.reservedCost), Needed: int64(needed), Reset: end}
	var refused bool
	if a.limits.Enforcement == policy.Strict {
		alone := saturated(int64(spent), int64(needed))
		refused = most == 0 || saturated(alone, int64(a.reservedCost)) > int64(most)
		r.Held = most > 0 && alone <= int64(most)
	} else {
		refused = saturated(int64(spent), int64(a.reservedCost)) >= int64(most)
		r.Held = spent < most
	}
	if r.Held {
		r.Reset = l.calendar.now.Add(retryHeld)
	}
	return r, refused
}

func requestsOf(a *account, scope Scope, now time.Time) Window {
	return Window{
		Max: a.limits.RequestsPerMinute, Scope: scope, Reset: a.window.empty(requestsIn, now),
		Remaining: max(int64(a.limits.RequestsPerMinute)-a.window.requests, 0),
	}
}

func tokensOf(a *account, scope Scope, now time.Time) Window {
	reset := slots * time.Second // what is reserved is counted for that long once it is settled
	if a.reservedTokens == 0 {
		reset = a.window.empty(tokensIn, now)
	}
	return Window{
		Max: a.limits.TokensPerMinute, Scope: scope, Reset: reset,
		Remaining: max(int64(a.limits.TokensPerMinute)-saturated(a.window.tokens, a.reservedTokens), 0),
	}
}

// tighter is the window in which less remains, where one without a limit does not count.
func tighter(key, app Window) Window {
	switch {
	case !app.Max.IsSet():
		return key
	case !key.Max.IsSet() || app.Remaining < key.Remaining:
		return app
	}
	return key
}
