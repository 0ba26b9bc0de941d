package xdsclient

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"sync"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/latchkey-dev/latchkey/internal/certs"
	"github.com/latchkey-dev/latchkey/internal/keyset"
	"github.com/latchkey-dev/latchkey/internal/policy"
	"github.com/latchkey-dev/latchkey/internal/xds"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// deadline is how long a test waits for what must happen.
const deadline = 60 * time.Second

func newKey(uid string) *policy.Key {
	return &policy.Key{
		UID: uid, Namespace: "shop", Name: uid, DisplayName: "Shop backend", Application: "web", State: policy.StateEnabled,
		Credentials:  []policy.Credential{{Hash: sha256.Sum256([]byte(uid)), Prefix: "lk_abcd"}},
		Capabilities: policy.AllCapabilities, Models: policy.ModelScope{All: true}, Limits: policy.NoRateLimits(), Budgets: policy.NoBudgets(),
	}
}

func keyRange(from, to int) []keyset.Resource {
	var list []keyset.Resource
	for i := from; i < to; i++ {
		list = append(list, keyset.EncodeKey(newKey(fmt.Sprintf("u%06d", i))))
	}
	return list
}

func keyResource(uid string, state policy.State) keyset.Resource {
	k := newKey(uid)
	k.State = state
	return keyset.EncodeKey(k)
}

// table is a Sink that keeps what is in force, and everything that ever was.
type table struct {
	mu      sync.Mutex
	changed chan struct{}
	keys    map[string]policy.State // nil: nothing was ever in force
	steps   []step
	fail    error // of the next call
}

// step is one call of the Sink, and the state after it.
type step struct {
	replace bool
	delta   *policy.Delta
	keys    map[string]policy.State
}

func newTable() *table { return &table{changed: make(chan struct{}, 1)} }

func (s *table) Replace(all *policy.Delta) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys = map[string]policy.State{}
	return s.take(all, true)
}

func (s *table) Apply(change *policy.Delta) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.keys == nil {
		return errors.New("a change came before there was a whole set")
	}
	return s.take(change, false)
}

func (s *table) take(d *policy.Delta, replace bool) error {
	if err := s.fail; err != nil {
		s.fail = nil
		return err
	}
	for _, k := range d.Keys {
		s.keys[k.UID] = k.State
	}
	for _, ref := range d.Removed {
		if ref.Kind == policy.KindKey {
			delete(s.keys, ref.Name)
		}
	}
	s.steps = append(s.steps, step{replace, d, maps.Clone(s.keys)})
	select {
	case s.changed <- struct{}{}:
	default:
	}
	return nil
}

func (s *table) history() []step {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.steps
}

// wait waits until what is in force is as asked.
func (s *table) wait(t *testing.T, what string, ok func(keys map[string]policy.State) bool) {
	t.Helper()
	timeout := time.After(deadline)
	for {
		s.mu.Lock()
		done := s.keys != nil && ok(s.keys)
		s.mu.Unlock()
		if done {
			return
		}
		select {
		case <-s.changed:
		case <-timeout:
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

// eventually polls for what gives no sign of itself.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(deadline); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("waited in vain until %s", what)
		}
		<-time.After(time.Millisecond)
	}
}

// gate is an address that stays the same while control planes come and go. Without one, connections are closed at once.
type gate struct {
	ln net.Listener

	mu     sync.Mutex
	to     *side
	turned int // connections turned away
}

// side is the listener that a control plane sees.
type side struct {
	net.Listener
	conns chan net.Conn
	done  chan struct{}
	close func()
}

func (s *side) Accept() (net.Conn, error) {
	select {
	case c := <-s.conns:
		return c, nil
	case <-s.done:
		return nil, net.ErrClosed
	}
}

func (s *side) Close() error { s.close(); return nil }

func newGate(t *testing.T) *gate {
	t.Helper()
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{ln: ln}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			g.mu.Lock()
			to := g.to
			if to == nil {
				g.turned++
			}
			g.mu.Unlock()
			if to == nil {
				_ = conn.Close()
				continue
			}
			select {
			case to.conns <- conn:
			case <-to.done:
				_ = conn.Close()
			}
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		running.Wait()
	})
	return g
}

// open is a listener for the next control plane.
func (g *gate) open() net.Listener {
	s := &side{Listener: g.ln, conns: make(chan net.Conn), done: make(chan struct{})}
	s.close = sync.OnceFunc(func() {
		g.mu.Lock()
		g.to = nil
		g.mu.Unlock()
		close(s.done)
	})
	g.mu.Lock()
	defer g.mu.Unlock()
	g.to = s
	return s
}

func (g *gate) turnedAway() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.turned
}

// world is one enforcer's surroundings: certificates, an address, a state directory.
type world struct {
	t     *testing.T
	ca    certs.Bundle
	gate  *gate
	dir   string
	grace time.Duration
}

func newWorld(t *testing.T) *world {
	t.Helper()
	ca, err := certs.NewAuthority(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return &world{t: t, ca: ca, gate: newGate(t), dir: t.TempDir(), grace: time.Hour}
}

func (w *world) issue(id certs.Identity) certs.Source {
	w.t.Helper()
	b, err := certs.Issue(w.ca, id, time.Now())
	if err != nil {
		w.t.Fatal(err)
	}
	return func() (certs.Bundle, error) { return b, nil }
}

// controlPlane runs the real server over the keys until stop is called.
func (w *world) controlPlane(keys *keyset.Cache) (tracker *xds.Tracker, stop func()) {
	w.t.Helper()
	id, _, _ := certs.Identities()
	server, err := xds.New(xds.Config{
		TLS: certs.Server(w.issue(id)), KeySet: keys, Envoy: cache.NewSnapshotCache(true, xds.EnvoyGroup{}, nil),
		Log: logr.Discard(), Metrics: prometheus.NewRegistry(),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(w.t.Context()))
	ended := make(chan error, 1)
	ln := w.gate.open()
	go func() { ended <- server.Run(ctx, ln) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			w.t.Errorf("control plane: %v", err)
		}
	})
	w.t.Cleanup(stop)
	return server.Tracker(), stop
}

type deltaStream = grpc.BidiStreamingServer[discovery.DeltaDiscoveryRequest, discovery.DeltaDiscoveryResponse]

// script is a control plane that does as it is told.
type script struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer
	handle func(deltaStream) error
}

func (s script) DeltaAggregatedResources(stream deltaStream) error { return s.handle(stream) }

func (w *world) scripted(handle func(deltaStream) error) (stop func()) {
	w.t.Helper()
	id, _, _ := certs.Identities()
	g := grpc.NewServer(grpc.Creds(credentials.NewTLS(certs.Server(w.issue(id)))))
	discovery.RegisterAggregatedDiscoveryServiceServer(g, script{handle: handle})
	ln := w.gate.open()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = g.Serve(ln)
	}()
	stop = sync.OnceFunc(func() { g.Stop(); <-ended })
	w.t.Cleanup(stop)
	return stop
}

// logs keeps what is logged.
type logs struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// enforcer is a client under way.
type enforcer struct {
	*Client
	table *table
	logs  *logs
	stop  func()
}

func (w *world) enforcer(sink *table) *enforcer {
	w.t.Helper()
	e := &enforcer{table: sink, logs: &logs{}}
	log := slog.New(slog.NewJSONHandler(e.logs, nil))
	store, err := OpenStore(w.dir, log, time.Now())
	if err != nil {
		w.t.Fatal(err)
	}
	_, id, _ := certs.Identities()
	source := w.issue(id)
	e.Client = New(Config{
		Address: w.gate.ln.Addr().String(), TLS: func() (*tls.Config, error) { return certs.Client(source, certs.ServerName) },
		NodeID: "enforcer-1", Store: store, Sink: sink, Log: log, StartGrace: w.grace, Now: time.Now,
	})
	ctx, cancel := context.WithCancel(context.WithoutCancel(w.t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- e.Run(ctx) }()
	e.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			w.t.Errorf("run: %v", err)
		}
		if err := store.Close(); err != nil {
			w.t.Error(err)
		}
		if w.t.Failed() {
			w.t.Logf("the client's log:\n%s", e.logs)
		}
	})
	w.t.Cleanup(e.stop)
	return e
}

func (e *enforcer) waitUsable(t *testing.T, want Source) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), deadline)
	defer cancel()
	if got, err := e.WaitUsable(ctx); err != nil || got != want {
		t.Fatalf("usable by %q, %v; want %q", got, err, want)
	}
}

func (e *enforcer) waitSynced(t *testing.T) {
	t.Helper()
	eventually(t, "the client is in sync", func() bool { return e.Status().Synced })
}

func (e *enforcer) isUsable() bool {
	select {
	case <-e.usable:
		return true
	default:
		return false
	}
}
