package keyset

import (
	"slices"
	"strconv"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
)

const (
	// What was refused is sent again after firstRetry, then after twice as long, and so on up to longestRetry.
	firstRetry   = time.Second
	longestRetry = time.Minute
	// fullChannelPause is the wait for room in a channel. The server's never lacks it.
	fullChannelPause = 10 * time.Millisecond
)

// session is what is known of one client's stream. The cache's mu guards it.
//
// Its queues hold names, and what is sent is what the name stands for by then. A name that is in two queues is sent twice, which does
// no harm.
type session struct {
	out      chan cache.DeltaResponse
	mark     map[string]string // what the server keeps for us; the session's own, since the server may write to it
	position uint64            // changes up to here are sent or in a queue
	complete uint64            // everything up to here has been acknowledged; 0 in the first synchronisation

	urgent  []string // revocations, and what shared a page with something refused: first
	changed []string // what changed since the synchronisation began
	backlog []string // the rest of the synchronisation, with its marker at the end
	refused map[string]refusal

	unacknowledged *page
	watch          uint64              // number of the newest watch
	request        *cache.DeltaRequest // of the watch that waits; nil: none does
	stop           func() bool         // of the timer that wakes the watch; nil: none
	left           time.Time           // since when there is no watch; zero: there is one
}

// refusal is an entry that the client has refused, and that stays so until it changes or is taken after all.
type refusal struct {
	times int
	until time.Time
}

// page is a response, and what becomes of the session with it.
type page struct {
	names    []string
	response *discovery.DeltaDiscoveryResponse // its nonce is the server's to set
	complete uint64                            // the session's, once the page is acknowledged

	urgent, changed, backlog int // how many names were taken from each queue
}

func (s *session) stopTimer() {
	if s.stop != nil {
		s.stop()
		s.stop = nil
	}
}

// settle takes in what the request says of the page that was sent last.
func (s *session) settle(request *cache.DeltaRequest, now time.Time) {
	p := s.unacknowledged
	if p == nil || request.GetResponseNonce() != p.response.GetNonce() {
		return
	}
	s.unacknowledged = nil
	detail := request.GetErrorDetail()
	if detail == nil {
		s.complete = p.complete
		for _, name := range p.names {
			delete(s.refused, name)
		}
		return
	}
	// A client that names the culprits gets the others again at once. Else all of the page pauses.
	culprits := make(map[string]struct{})
	for _, name := range RefusedNames(detail.GetDetails()) {
		culprits[name] = struct{}{}
	}
	var others []string
	for _, name := range p.names {
		if _, is := culprits[name]; !is {
			others = append(others, name)
		}
	}
	if len(others) == len(p.names) {
		others = nil
		for _, name := range p.names {
			culprits[name] = struct{}{}
		}
	}
	for _, name := range p.names {
		if _, is := culprits[name]; is {
			times := s.refused[name].times + 1
			s.refused[name] = refusal{times, now.Add(min(firstRetry<<min(times-1, 10), longestRetry))}
		}
	}
	s.urgent = slices.Concat(others, s.urgent)
}

// untilRetry is how long it takes until something refused is sent again; false if nothing was refused.
func (s *session) untilRetry(now time.Time) (time.Duration, bool) {
	var next time.Time
	for _, r := range s.refused {
		if next.IsZero() || r.until.Before(next) {
			next = r.until
		}
	}
	return next.Sub(now), !next.IsZero()
}

// due are the refused names whose pause is over.
func (s *session) due(now time.Time) []string {
	var names []string
	for name, r := range s.refused {
		if !now.Before(r.until) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// sent takes the page's names out of the queues.
func (s *session) sent(p *page) {
	s.urgent = cut(s.urgent, p.urgent)
	s.changed = cut(s.changed, p.changed)
	s.backlog = cut(s.backlog, p.backlog)
	s.unacknowledged, s.request = p, nil
}

func cut(queue []string, n int) []string {
	if n == len(queue) {
		return nil // and not an empty rest that keeps the memory
	}
	return queue[n:]
}

// build makes the session's next page, or nil if there is nothing to send. What was refused goes out by itself, when nothing else is
// waiting: a revocation must not share a page with what is likely to be refused again. It holds mu.
func (c *Cache) build(s *session, now time.Time) *page {
	p := &page{complete: s.complete, response: &discovery.DeltaDiscoveryResponse{TypeUrl: TypeURL}}
	var seen map[string]struct{}
	if len(s.urgent)+len(s.changed)+len(s.backlog) > 1 {
		seen = map[string]struct{}{}
	}
	size, retried := 0, 0
	add := func(name string) bool {
		if _, twice := seen[name]; twice {
			return true
		}
		e, there := c.entries[name]
		if name == SyncName {
			e, there = newEntry(encodeSync(s.position)), true
		}
		cost := len(name) + 4
		if there {
			cost = e.size
		}
		if size > 0 && size+cost > pageBytes {
			return false
		}
		size += cost
		if seen != nil {
			seen[name] = struct{}{}
		}
		if _, was := s.refused[name]; was {
			retried++
		}
		p.names = append(p.names, name)
		if there {
			p.response.Resources = append(p.response.Resources, e.resource)
		} else {
			p.response.RemovedResources = append(p.response.RemovedResources, name)
		}
		return true
	}
	fill := func(queue []string) (taken int, all bool) {
		for i, name := range queue {
			if !add(name) {
				return i, false
			}
		}
		return len(queue), true
	}
	var all bool
	if p.urgent, all = fill(s.urgent); all {
		if p.changed, all = fill(s.changed); all {
			p.backlog, all = fill(s.backlog)
		}
	}
	if len(p.names) == 0 {
		_, all = fill(s.due(now))
	}
	if len(p.names) == 0 {
		return nil
	}
	if all && retried == len(s.refused) {
		p.complete = s.position
	}
	p.response.SystemVersionInfo = strconv.FormatUint(p.complete, 10)
	return p
}
