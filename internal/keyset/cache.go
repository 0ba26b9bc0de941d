package keyset

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"google.golang.org/protobuf/types/known/anypb"
)

const (
	// pageBytes bounds a response, so that none comes near gRPC's limit of 4 MiB and no revocation waits behind a long one.
	pageBytes = 2 << 20
	// logLength bounds the change log. A client that is further behind than that starts over.
	logLength = 1 << 17
	// sessionKey is the one entry of what the server takes for the versions that the client has, and keeps for us between requests:
	// the session knows them, and a map of all versions would cost O(all).
	sessionKey = "session"
	// forgetAfter is how long a session without a watch is kept. Between two watches of a live stream there are microseconds.
	forgetAfter = 10 * time.Second
)

// Clock is the time, and what happens later. AfterFunc calls f in a goroutine of its own, unless stop is called before.
type Clock interface {
	Now() time.Time
	AfterFunc(d time.Duration, f func()) (stop func() bool)
}

// SystemClock is the machine's.
type SystemClock struct{}

// Now is time.Now.
func (SystemClock) Now() time.Time { return time.Now() }

// AfterFunc is time.AfterFunc.
func (SystemClock) AfterFunc(d time.Duration, f func()) func() bool { return time.AfterFunc(d, f).Stop }

// Cache holds the key set and serves it to any number of wildcard delta watches.
//
// It is a map of entries and a log of changes. What a client has been sent is a position in the log, so that an update costs
// each client what has changed and not what there is. Only a client's first request compares everything.
type Cache struct {
	clock Clock

	mu       sync.Mutex
	entries  map[string]entry
	position uint64   // of the newest change; never 0
	log      []change // oldest first; changes of one update share a position
	dropped  uint64   // position of the newest change that the log has lost
	// Streams are known by the channel that the server opens for each. Unlike anything that a client sends, it cannot be another's.
	sessions map[chan cache.DeltaResponse]*session
}

type entry struct {
	version  string
	resource *discovery.Resource // shared by all responses; never changed
	size     int
	revokes  bool
}

type change struct {
	position uint64
	name     string
}

var _ cache.Cache = (*Cache)(nil)

// NewCache makes an empty cache. The clock times the sending again of what was refused.
func NewCache(c Clock) *Cache {
	return &Cache{clock: c, position: 1, entries: map[string]entry{}, sessions: map[chan cache.DeltaResponse]*session{}}
}

// Update puts the upserts in and takes the removed names out, and returns the position that a client must have acknowledged to have it all.
// What is as it was changes nothing.
func (c *Cache) Update(upserts []Resource, removed []string) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	next := c.position + 1
	before := len(c.log)
	for _, r := range upserts {
		if c.entries[r.Name].version == r.Version {
			continue
		}
		c.entries[r.Name] = newEntry(r)
		c.log = append(c.log, change{next, r.Name})
	}
	for _, name := range removed {
		if _, there := c.entries[name]; !there {
			continue
		}
		delete(c.entries, name)
		c.log = append(c.log, change{next, name})
	}
	if len(c.log) == before {
		return c.position
	}
	c.position = next
	// Whoever waits takes the changes over now, and so never falls behind the log, however many they are.
	for _, s := range c.sessions {
		c.respond(s)
	}
	if len(c.log) > 2*logLength { // halving it at once keeps the cost of an update constant on average
		c.dropped = c.log[len(c.log)-logLength-1].position
		c.log = slices.Clone(c.log[len(c.log)-logLength:])
	}
	return next
}

// Position is that of the newest change.
func (c *Cache) Position() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.position
}

// Len is the number of entries.
func (c *Cache) Len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.entries)
}

func newEntry(r Resource) entry {
	return entry{
		version: r.Version,
		// What the resource takes on the wire: its fields, and 16 bytes at most for their tags and lengths.
		size:    len(r.Name) + len(r.Version) + len(r.Body) + len(TypeURL) + 16,
		revokes: r.Revokes,
		resource: &discovery.Resource{
			Name: r.Name, Version: r.Version, Resource: &anypb.Any{TypeUrl: TypeURL, Value: r.Body},
		},
	}
}

// CreateDeltaWatch answers a client's request on out as soon as there is something to say, once. A request that acknowledges moves the
// client on; one that refuses makes what was refused go out again, after a pause, while other changes go on.
//
// An error ends the stream: the client asked for something else than everything, or it is further behind than the log reaches. It then
// comes back and says what it has.
func (c *Cache) CreateDeltaWatch(request *cache.DeltaRequest, sub cache.Subscription, out chan cache.DeltaResponse) (func(), error) {
	if request.GetTypeUrl() != TypeURL {
		return nil, fmt.Errorf("watch %s: this cache serves %s", request.GetTypeUrl(), TypeURL)
	}
	if !sub.IsWildcard() || len(sub.SubscribedResources()) > 0 {
		return nil, errors.New("watch the key set: subscribe to everything (\"*\"), it cannot be had in parts")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.sessions[out]
	if s == nil {
		if _, began := sub.ReturnedResources()[sessionKey]; began {
			return nil, errors.New("watch the key set: the session was forgotten; connect again and say what you have")
		}
		s = c.begin(sub.ReturnedResources(), out)
	}
	s.settle(request, c.clock.Now())
	if s.position < c.dropped {
		delete(c.sessions, out)
		return nil, errors.New("watch the key set: too far behind; connect again and say what you have")
	}
	s.watch++
	s.request, s.left = request, time.Time{}
	c.respond(s)
	watch := s.watch
	return func() { c.cancel(s, watch) }, nil
}

// cancel ends a watch. Nothing is sent to its channel any more once it returns, since the server closes it. It can be called again.
func (c *Cache) cancel(s *session, watch uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.watch != watch {
		return
	}
	s.request = nil
	s.stopTimer()
	if s.left.IsZero() {
		s.left = c.clock.Now()
	}
}

// begin starts a stream's session by comparing what the client says that it has with what there is. It holds mu.
func (c *Cache) begin(held map[string]string, out chan cache.DeltaResponse) *session {
	now := c.clock.Now()
	for other, s := range c.sessions {
		if !s.left.IsZero() && now.Sub(s.left) > forgetAfter {
			delete(c.sessions, other)
		}
	}
	s := &session{out: out, position: c.position, refused: map[string]refusal{}, mark: map[string]string{sessionKey: ""}}
	for name := range held {
		if _, there := c.entries[name]; !there && name != SyncName {
			s.urgent = append(s.urgent, name)
		}
	}
	for name, e := range c.entries {
		switch {
		case held[name] == e.version:
		case e.revokes && held[name] != "":
			s.urgent = append(s.urgent, name)
		default:
			s.backlog = append(s.backlog, name)
		}
	}
	s.backlog = append(s.backlog, SyncName)
	c.sessions[out] = s
	return s
}

// catchUp takes over what has changed since the session's position, before the rest of a synchronisation. It holds mu.
func (c *Cache) catchUp(s *session) {
	from := len(c.log)
	for from > 0 && c.log[from-1].position > s.position {
		from--
	}
	s.position = c.position
	changes := c.log[from:]
	var seen map[string]struct{}
	if len(changes) > 1 {
		seen = make(map[string]struct{}, len(changes))
	}
	var urgent, changed []string
	for _, ch := range changes {
		if seen != nil {
			if _, twice := seen[ch.name]; twice {
				continue
			}
			seen[ch.name] = struct{}{}
		}
		delete(s.refused, ch.name) // it is another content now
		if e, there := c.entries[ch.name]; !there || e.revokes {
			urgent = append(urgent, ch.name)
		} else {
			changed = append(changed, ch.name)
		}
	}
	s.urgent = slices.Concat(urgent, s.urgent)
	s.changed = append(s.changed, changed...)
}

// respond sends the session's next page to its watch, and thereby ends the watch, if it waits and there is something to send. It
// never blocks: the server's channel has room for more than the one response that a watch is good for. It holds mu.
func (c *Cache) respond(s *session) {
	if s.request == nil || s.unacknowledged != nil {
		return
	}
	s.stopTimer()
	c.catchUp(s)
	now := c.clock.Now()
	p := c.build(s, now)
	if p == nil {
		if pause, any := s.untilRetry(now); any {
			c.wakeAfter(s, pause)
		}
		return
	}
	select {
	case s.out <- &cache.DeltaPassthroughResponse{DeltaRequest: s.request, NextVersionMap: s.mark, DeltaDiscoveryResponse: p.response}:
	default:
		c.wakeAfter(s, fullChannelPause)
		return
	}
	s.sent(p)
}

func (c *Cache) wakeAfter(s *session, pause time.Duration) {
	watch := s.watch
	s.stop = c.clock.AfterFunc(pause, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if s.watch == watch {
			c.respond(s)
		}
	})
}

// CreateWatch refuses: the key set is served by delta xDS only.
func (*Cache) CreateWatch(*cache.Request, cache.Subscription, chan cache.Response) (func(), error) {
	return nil, errors.New("watch the key set: it is served by delta xDS only")
}

// Fetch refuses: the key set is served by streams only.
func (*Cache) Fetch(context.Context, *cache.Request) (cache.Response, error) {
	return nil, errors.New("fetch the key set: it is served by streams only")
}
