package usage

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"google.golang.org/grpc"

	"github.com/latchkey-dev/latchkey/internal/certs"
	"github.com/latchkey-dev/latchkey/internal/keyset"
	"github.com/latchkey-dev/latchkey/internal/xds"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// deadline is how long a test waits for what must happen.
const deadline = 60 * time.Second

// authority issues the certificates of one test.
type authority struct {
	t  *testing.T
	ca certs.Bundle
}

func newAuthority(t *testing.T) authority {
	t.Helper()
	ca, err := certs.NewAuthority(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return authority{t, ca}
}

func (a authority) issue(id certs.Identity) certs.Source {
	a.t.Helper()
	b, err := certs.Issue(a.ca, id, time.Now())
	if err != nil {
		a.t.Fatal(err)
	}
	return func() (certs.Bundle, error) { return b, nil }
}

// client is the TLS configuration of a client with that URI in its certificate.
func (a authority) client(uri string) func() (*tls.Config, error) {
	source := a.issue(certs.Identity{CommonName: "client", URI: uri})
	return func() (*tls.Config, error) { return certs.Client(source, certs.ServerName) }
}

// plane is a control plane's port with a sink behind it.
type plane struct {
	t       *testing.T
	sink    *sink
	metrics *prometheus.Registry
	ledgers func() (int, string)
	addr    string
	stop    func()
}

func start(t *testing.T, a authority, s *sink, addr string) *plane {
	t.Helper()
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	p := &plane{t: t, sink: s, metrics: prometheus.NewRegistry(), addr: ln.Addr().String()}
	receiver, err := NewReceiver(s, p.metrics)
	if err != nil {
		t.Fatal(err)
	}
	p.ledgers = receiver.Ledgers
	server, _, _ := certs.Identities()
	x, err := xds.New(xds.Config{
		TLS: certs.Server(a.issue(server)), KeySet: keyset.NewCache(keyset.SystemClock{}), Envoy: cache.NewSnapshotCache(true, xds.EnvoyGroup{}, nil),
		Log: logr.Discard(), Metrics: p.metrics, Services: []func(grpc.ServiceRegistrar){receiver.Register},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- x.Run(ctx, ln) }()
	p.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	t.Cleanup(p.stop)
	return p
}

// metric is a metric's value.
func (p *plane) metric(name string) float64 {
	p.t.Helper()
	families, err := p.metrics.Gather()
	if err != nil {
		p.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetCounter().GetValue() + f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	p.t.Fatalf("there is no metric %s", name)
	return 0
}

var errSink = errors.New("the sink is full")

// sink keeps the latest row of each account.
type sink struct {
	mu      sync.Mutex
	changed chan struct{}
	rows    map[string]Row
	batches []int
	refuse  int           // how many reports are refused
	hold    chan struct{} // where not nil, a report waits until it is closed, or its connection ends
}

func newSink() *sink { return &sink{changed: make(chan struct{}, 1), rows: map[string]Row{}} }

func (s *sink) Report(ctx context.Context, rows []Row) error {
	s.mu.Lock()
	hold := s.hold
	s.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	defer func() {
		select {
		case s.changed <- struct{}{}:
		default:
		}
	}()
	if s.refuse > 0 {
		s.refuse--
		return errSink
	}
	for _, r := range rows {
		s.rows[r.ID] = r
	}
	s.batches = append(s.batches, len(rows))
	return nil
}

func (s *sink) Recall(_ context.Context, send func([]Row) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refuse > 0 {
		s.refuse--
		return errSink
	}
	var rows []Row
	for _, id := range slices.Sorted(maps.Keys(s.rows)) {
		rows = append(rows, s.rows[id])
	}
	return send(rows)
}

// wait waits until the rows are as asked.
func (s *sink) wait(t *testing.T, what string, ok func(map[string]Row) bool) {
	t.Helper()
	timeout := time.After(deadline)
	for {
		s.mu.Lock()
		good, have := ok(s.rows), len(s.rows)
		s.mu.Unlock()
		if good {
			return
		}
		select {
		case <-s.changed:
		case <-timeout:
			t.Fatalf("waited in vain until %s; there are %d rows", what, have)
		}
	}
}

// book is a ledger's part that reports.
type book struct {
	mu    sync.Mutex
	rows  map[string]Row
	dirty map[string]bool
	alls  int
}

func newBook() *book { return &book{rows: map[string]Row{}, dirty: map[string]bool{}} }

func (b *book) put(rows ...Row) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, r := range rows {
		b.rows[r.ID], b.dirty[r.ID] = r, true
	}
}

func (b *book) Changed(most int) []Row {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []Row
	for id := range b.dirty {
		if len(out) == most {
			break
		}
		out = append(out, b.rows[id])
		delete(b.dirty, id)
	}
	return out
}

func (b *book) ChangedAll() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.alls++
	for id := range b.rows {
		b.dirty[id] = true
	}
}

// report runs a reporter until the test ends.
func report(t *testing.T, b *book, cfg ReporterConfig) *Reporter {
	t.Helper()
	cfg.Source, cfg.Log = b, slog.New(slog.DiscardHandler)
	if cfg.Interval == 0 {
		cfg.Interval = time.Millisecond
	}
	r := NewReporter(cfg)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return r
}

// until polls for what no channel tells.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	timeout := time.After(deadline)
	for !ok() {
		select {
		case <-tick.C:
		case <-timeout:
			t.Fatalf("waited in vain until %s", what)
		}
	}
}
