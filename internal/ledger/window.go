package ledger

import "time"

// slots are one-second slots: the one that is under way and the sixty before it. Whatever was counted less than a minute ago is in one of
// them, so that no minute holds more than was let through, whichever its start; and nothing counts for more than 61 seconds.
const slots = 61

// window is what an account did in the last minute. What every request looks at stands together.
type window struct {
	last     int64 // the latest second that was seen
	requests int64 // in all slots
	tokens   int64 // in all slots
	slot     [slots]slot
}

// slot is what an account did in one second.
type slot struct{ requests, tokens int64 }

func requestsIn(s *slot) int64 { return s.requests }

func tokensIn(s *slot) int64 { return s.tokens }

// advance empties the slots of seconds that have left the minute. A clock that goes back frees nothing.
func (w *window) advance(now time.Time) {
	second := now.Unix()
	if second <= w.last {
		return
	}
	if second-w.last >= slots {
		*w = window{last: second}
		return
	}
	for s := w.last + 1; s <= second; s++ {
		at := w.at(s)
		w.requests -= at.requests
		w.tokens -= at.tokens
		*at = slot{}
	}
	w.last = second
}

// at is the slot of a second.
func (w *window) at(second int64) *slot { return &w.slot[((second%slots)+slots)%slots] }

// request counts a request, in the latest second.
func (w *window) request() {
	w.at(w.last).requests++
	w.requests++
}

// use counts tokens, in the latest second.
func (w *window) use(tokens int64) {
	at := w.at(w.last)
	before := at.tokens
	at.tokens = saturated(before, tokens)
	w.tokens = saturated(w.tokens, at.tokens-before)
}

// idle reports whether the window has nothing in it.
func (w *window) idle(now time.Time) bool {
	w.advance(now)
	return w.requests == 0 && w.tokens == 0
}

// below is the moment from which less than the limit is left of the sum, if nothing is added; now if that is so already, or never will be.
func (w *window) below(limit, sum int64, of func(*slot) int64, now time.Time) time.Time {
	for s := w.last - slots + 1; s <= w.last && sum >= limit; s++ {
		if sum -= of(w.at(s)); sum < limit {
			return time.Unix(s+slots, 0)
		}
	}
	return now
}

// empty is how long it takes until nothing is counted, if nothing is added.
func (w *window) empty(of func(*slot) int64, now time.Time) time.Duration {
	for s := w.last; s > w.last-slots; s-- {
		if of(w.at(s)) != 0 {
			return max(time.Unix(s+slots, 0).Sub(now), 0)
		}
	}
	return 0
}
