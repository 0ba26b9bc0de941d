package keyset

import (
	"context"
	"errors"
	"fmt"
	"strconv"
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
	// A refused response is sent again after retryMin, then after twice as long, and so on up to retryMax.
	retryMin = time.Second
	retryMax = time.Minute
	// sessionKey is the one entry of the "returned resources" that the server keeps for us between requests.
	sessionKey = "session"
	// idleSessions are forgotten after that time; their streams are long gone.
	idleSessions = 10 * time.Minute
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
	log      []change // oldest first
	sessions map[string]*session
	watches  map[*watch]struct{}
	lastID   uint64
}

type entry struct {
	version  string
	resource *discovery.Resource // shared by all responses; never changed
	size     int
}

type change struct {
	position uint64
	name     string
}

// session is what is known of one client's stream.
type session struct {
	id       string
	position uint64   // changes up to here are sent, or in queue
	complete uint64   // position up to which everything has been sent; 0 in the first synchronisation
	queue    []string // names still to be sent, in that order
	queued   map[string]struct{}
	marked   bool // the marker that ends the synchronisation has been sent
	sent     []page
	refusals int
	used     time.Time
}

// page is a response that has not been acknowledged yet.
type page struct {
	names  []string
	marker bool
}

// watch waits for something to send to a session.
type watch struct {
	session *session
	request *cache.DeltaRequest
	out     chan cache.DeltaResponse
	notTill time.Time   // after a refusal
	stop    func() bool // of the pause's timer
}

var _ cache.Cache = (*Cache)(nil)

// NewCache makes an empty cache. The clock times the sending again of what was refused.
func NewCache(c Clock) *Cache {
	return &Cache{
		clock: c, position: 1,
		entries: map[string]entry{}, sessions: map[string]*session{}, watches: map[*watch]struct{}{},
	}
}

// Update puts the upserts in and takes the removed names out, and returns the position that a client must have acknowledged to have it all.
// What is as it was changes nothing.
func (c *Cache) Update(upserts []Resource, removed []string) uint64 {
	c.mu.Lock()
	next := c.position + 1
	changed := false
	for _, r := range upserts {
		if c.entries[r.Name].version == r.Version {
			continue
		}
		c.entries[r.Name] = newEntry(r)
		c.log = append(c.log, change{next, r.Name})
		changed = true
	}
	for _, name := range removed {
		if _, there := c.entries[name]; !there {
			continue
		}
		delete(c.entries, name)
		c.log = append(c.log, change{next, name})
		changed = true
	}
	if !changed {
		defer c.mu.Unlock()
		return c.position
	}
	c.position = next
	if len(c.log) > 2*logLength { // halving it at once keeps the cost of an update constant on average
		c.log = append([]change(nil), c.log[len(c.log)-logLength:]...)
	}
	ready := c.wake()
	c.mu.Unlock()
	for _, r := range ready {
		r.send()
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
		size:    len(r.Name) + len(r.Version) + len(r.Body) + len(TypeURL) + 16,
		resource: &discovery.Resource{
			Name: r.Name, Version: r.Version, Resource: &anypb.Any{TypeUrl: TypeURL, Value: r.Body},
		},
	}
}

// response is one that is ready to go out. It is sent without the lock, since the channel is the server's.
type response struct {
	out  chan cache.DeltaResponse
	what cache.DeltaResponse
}

func (r response) send() { r.out <- r.what }

// wake builds the responses of all watches that have something to be sent, and ends those watches. It holds mu.
func (c *Cache) wake() []response {
	var ready []response
	for w := range c.watches {
		if r, ok := c.respond(w); ok {
			ready = append(ready, r)
		}
	}
	return ready
}

// CreateDeltaWatch answers a client's request as soon as there is something to say. A request that acknowledges moves the client on; one
// that refuses makes the refused page go out again, after a pause.
func (c *Cache) CreateDeltaWatch(request *cache.DeltaRequest, sub cache.Subscription, out chan cache.DeltaResponse) (func(), error) {
	if request.GetTypeUrl() != TypeURL {
		return nil, fmt.Errorf("watch %s: this cache serves %s", request.GetTypeUrl(), TypeURL)
	}
	if !sub.IsWildcard() || len(sub.SubscribedResources()) > 0 {
		return nil, errors.New("watch the key set: subscribe to everything (\"*\"), it cannot be had in parts")
	}
	c.mu.Lock()
	s, err := c.session(sub.ReturnedResources())
	if err != nil {
		c.mu.Unlock()
		return nil, err
	}
	w := &watch{session: s, request: request, out: out}
	if request.GetResponseNonce() != "" && len(s.sent) > 0 {
		s.settle(request.GetErrorDetail() != nil)
		if s.refusals > 0 {
			w.notTill = c.clock.Now().Add(min(retryMin<<min(s.refusals-1, 10), retryMax))
		}
	}
	if c.behind(s) {
		delete(c.sessions, s.id)
		c.mu.Unlock()
		return nil, errors.New("watch the key set: too far behind; connect again and say what you have")
	}
	c.watches[w] = struct{}{}
	r, ready := c.respond(w)
	if !ready && !w.notTill.IsZero() {
		w.stop = c.clock.AfterFunc(w.notTill.Sub(c.clock.Now()), func() { c.again(w) })
	}
	c.mu.Unlock()
	if ready {
		r.send()
	}
	return func() { c.cancel(w) }, nil
}

// again looks at a watch once its pause is over.
func (c *Cache) again(w *watch) {
	c.mu.Lock()
	if _, waiting := c.watches[w]; !waiting {
		c.mu.Unlock()
		return
	}
	w.notTill = time.Time{}
	r, ready := c.respond(w)
	c.mu.Unlock()
	if ready {
		r.send()
	}
}

func (c *Cache) cancel(w *watch) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.watches, w)
	if w.stop != nil {
		w.stop()
	}
}

// behind reports whether the log does not reach back to what the session has been sent. It holds mu.
func (c *Cache) behind(s *session) bool {
	return len(c.log) > 0 && s.position+1 < c.log[0].position
}

// session finds the stream's, or begins one by comparing what the client says that it has with what there is. It holds mu.
func (c *Cache) session(returned map[string]string) (*session, error) {
	now := c.clock.Now()
	if id, ok := returned[sessionKey]; ok && len(returned) == 1 {
		s := c.sessions[id]
		if s == nil {
			return nil, errors.New("watch the key set: the session was forgotten; connect again")
		}
		s.used = now
		return s, nil
	}
	for id, s := range c.sessions {
		if now.Sub(s.used) > idleSessions && !c.watched(s) {
			delete(c.sessions, id)
		}
	}
	c.lastID++
	s := &session{id: strconv.FormatUint(c.lastID, 10), position: c.position, queued: map[string]struct{}{}, used: now}
	for name := range returned {
		if _, there := c.entries[name]; !there && name != SyncName {
			s.push(name)
		}
	}
	for name, e := range c.entries {
		if returned[name] != e.version {
			s.push(name)
		}
	}
	c.sessions[s.id] = s
	return s, nil
}

func (c *Cache) watched(s *session) bool {
	for w := range c.watches {
		if w.session == s {
			return true
		}
	}
	return false
}

func (s *session) push(name string) {
	if _, there := s.queued[name]; !there {
		s.queued[name] = struct{}{}
		s.queue = append(s.queue, name)
	}
}

// settle takes in that the oldest page was acknowledged or refused.
func (s *session) settle(refused bool) {
	p := s.sent[0]
	s.sent = s.sent[1:]
	if !refused {
		s.refusals = 0
		return
	}
	s.refusals++
	s.marked = s.marked && !p.marker
	s.first(p.names)
}

// first puts names before everything else that is still to be sent.
func (s *session) first(names []string) {
	front := make([]string, 0, len(names)+len(s.queue))
	for _, name := range names {
		if _, there := s.queued[name]; !there {
			s.queued[name] = struct{}{}
			front = append(front, name)
		}
	}
	s.queue = append(front, s.queue...)
}

// catchUp queues what has changed since the session's position: before the rest of a synchronisation, so that no revocation waits for it.
// It holds mu.
func (c *Cache) catchUp(s *session) {
	if s.position == c.position {
		return
	}
	from := len(c.log)
	for from > 0 && c.log[from-1].position > s.position {
		from--
	}
	names := make([]string, 0, len(c.log)-from)
	for _, ch := range c.log[from:] {
		names = append(names, ch.name)
	}
	s.first(names)
	s.position = c.position
}

// respond builds the watch's next response and ends the watch, if there is something to send. It holds mu.
func (c *Cache) respond(w *watch) (response, bool) {
	s := w.session
	if !w.notTill.IsZero() && c.clock.Now().Before(w.notTill) {
		return response{}, false
	}
	if c.behind(s) {
		return response{}, false // its next request is told so
	}
	c.catchUp(s)
	if len(s.queue) == 0 && s.marked {
		return response{}, false
	}
	out := &discovery.DeltaDiscoveryResponse{TypeUrl: TypeURL}
	var p page
	size := 0
	for len(s.queue) > 0 {
		name := s.queue[0]
		e, there := c.entries[name]
		cost := len(name)
		if there {
			cost = e.size
		}
		if size > 0 && size+cost > pageBytes {
			break
		}
		size += cost
		s.queue = s.queue[1:]
		delete(s.queued, name)
		p.names = append(p.names, name)
		if there {
			out.Resources = append(out.Resources, e.resource)
		} else {
			out.RemovedResources = append(out.RemovedResources, name)
		}
	}
	if len(s.queue) == 0 {
		s.complete = s.position
		if !s.marked {
			s.marked, p.marker = true, true
			out.Resources = append(out.Resources, newEntry(encodeSync(s.position)).resource)
		}
	}
	out.SystemVersionInfo = strconv.FormatUint(s.complete, 10)
	s.sent = append(s.sent, p)
	delete(c.watches, w)
	if w.stop != nil {
		w.stop()
	}
	return response{w.out, &cache.DeltaPassthroughResponse{
		DeltaRequest: w.request, NextVersionMap: map[string]string{sessionKey: s.id}, DeltaDiscoveryResponse: out,
	}}, true
}

// CreateWatch refuses: the key set is served by delta xDS only.
func (*Cache) CreateWatch(*cache.Request, cache.Subscription, chan cache.Response) (func(), error) {
	return nil, errors.New("watch the key set: it is served by delta xDS only")
}

// Fetch refuses: the key set is served by streams only.
func (*Cache) Fetch(context.Context, *cache.Request) (cache.Response, error) {
	return nil, errors.New("fetch the key set: it is served by streams only")
}
