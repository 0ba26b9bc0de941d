package featuretests

import (
	"context"
	"crypto/tls"
	"maps"
	"net"
	"slices"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/go-logr/logr/testr"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
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

// fastClock runs a hundred times as fast as others, for the pauses after refusals.
type fastClock struct{ start time.Time }

func (c fastClock) Now() time.Time { return c.start.Add(100 * time.Since(c.start)) }

func (fastClock) AfterFunc(d time.Duration, f func()) func() bool {
	return time.AfterFunc(d/100, f).Stop
}

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
func (a authority) client(uri string) *tls.Config {
	a.t.Helper()
	cfg, err := certs.Client(a.issue(certs.Identity{CommonName: "client", URI: uri}), certs.ServerName)
	if err != nil {
		a.t.Fatal(err)
	}
	return cfg
}

// plane is a control plane's xDS side.
type plane struct {
	t       *testing.T
	keys    *keyset.Cache
	envoy   cache.SnapshotCache
	metrics *prometheus.Registry
	tracker *xds.Tracker
	addr    string
	stop    func()
}

func start(t *testing.T, a authority, objects ...any) *plane {
	t.Helper()
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &plane{
		t: t, keys: keyset.NewCache(fastClock{time.Now()}), envoy: cache.NewSnapshotCache(true, xds.EnvoyGroup{}, nil),
		metrics: prometheus.NewRegistry(), addr: ln.Addr().String(),
	}
	p.put(objects...)
	server, _, _ := certs.Identities()
	s, err := xds.New(xds.Config{
		TLS: certs.Server(a.issue(server)), KeySet: p.keys, Envoy: p.envoy, Log: testr.New(t), Metrics: p.metrics,
	})
	if err != nil {
		t.Fatal(err)
	}
	p.tracker = s.Tracker()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, ln) }()
	stopped := false
	p.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	}
	t.Cleanup(p.stop)
	return p
}

func encode(object any) keyset.Resource {
	switch o := object.(type) {
	case *policy.System:
		return keyset.EncodeSystem(o)
	case *policy.Application:
		return keyset.EncodeApplication(o)
	case *policy.Key:
		return keyset.EncodeKey(o)
	case *policy.Model:
		return keyset.EncodeModel(o)
	}
	panic("no such object")
}

func (p *plane) put(objects ...any) uint64 {
	upserts := make([]keyset.Resource, 0, len(objects))
	for _, o := range objects {
		upserts = append(upserts, encode(o))
	}
	return p.keys.Update(upserts, nil)
}

func (p *plane) remove(objects ...any) uint64 {
	removed := make([]string, 0, len(objects))
	for _, o := range objects {
		removed = append(removed, encode(o).Name)
	}
	return p.keys.Update(nil, removed)
}

// acks waits until what the tracker knows is as asked.
func (p *plane) acks(what string, ok func(xds.Acks) bool) xds.Acks {
	p.t.Helper()
	timeout := time.After(deadline)
	for {
		acks := p.tracker.Snapshot()
		if ok(acks) {
			return acks
		}
		select {
		case <-p.tracker.Changed():
		case <-timeout:
			p.t.Fatalf("waited in vain until %s; the tracker says %+v", what, acks)
		}
	}
}

// acked waits until every enforcer has acknowledged the position.
func (p *plane) acked(position uint64) {
	p.t.Helper()
	p.acks("the position is acknowledged", func(a xds.Acks) bool { return a.Enforcers > 0 && a.Position >= position })
}

// counter is the value of a metric with that label.
func (p *plane) counter(name, label string) float64 {
	p.t.Helper()
	families, err := p.metrics.Gather()
	if err != nil {
		p.t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name && m.GetLabel()[0].GetValue() == label {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return 0
}

// follower is a client on a real stream that does nothing by itself.
type follower struct {
	t       *testing.T
	stream  grpc.BidiStreamingClient[discovery.DeltaDiscoveryRequest, discovery.DeltaDiscoveryResponse]
	typeURL string
	last    *discovery.DeltaDiscoveryResponse
	held    map[string]string
	leave   func()
}

// dial opens a stream. Without TLS options of its own gRPC's limit of 4 MiB a message holds.
func dial(t *testing.T, p *plane, cfg *tls.Config) (discovery.AggregatedDiscoveryServiceClient, context.Context, func()) {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+p.addr, grpc.WithTransportCredentials(credentials.NewTLS(cfg)), grpc.WithNoProxy())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), deadline)
	leave := func() {
		cancel()
		_ = conn.Close()
	}
	t.Cleanup(leave)
	return discovery.NewAggregatedDiscoveryServiceClient(conn), ctx, leave
}

// follow subscribes to the type, with the versions held.
func follow(t *testing.T, p *plane, cfg *tls.Config, typeURL string, held map[string]string) *follower {
	t.Helper()
	client, ctx, leave := dial(t, p, cfg)
	stream, err := client.DeltaAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	f := &follower{t: t, stream: stream, typeURL: typeURL, held: maps.Clone(held), leave: leave}
	if f.held == nil {
		f.held = map[string]string{}
	}
	f.send(&discovery.DeltaDiscoveryRequest{
		Node: &core.Node{Id: "node-" + t.Name()}, ResourceNamesSubscribe: []string{"*"}, InitialResourceVersions: held,
	})
	return f
}

func (f *follower) send(r *discovery.DeltaDiscoveryRequest) {
	f.t.Helper()
	r.TypeUrl = f.typeURL
	if err := f.stream.Send(r); err != nil {
		_, err = f.stream.Recv()
		f.t.Fatalf("send: %v", err)
	}
}

func (f *follower) receive() *discovery.DeltaDiscoveryResponse {
	f.t.Helper()
	var err error
	if f.last, err = f.stream.Recv(); err != nil {
		f.t.Fatalf("receive: %v", err)
	}
	return f.last
}

func (f *follower) ack() {
	f.t.Helper()
	for _, r := range f.last.GetResources() {
		if r.GetName() != keyset.SyncName {
			f.held[r.GetName()] = r.GetVersion()
		}
	}
	for _, name := range f.last.GetRemovedResources() {
		delete(f.held, name)
	}
	f.send(&discovery.DeltaDiscoveryRequest{ResponseNonce: f.last.GetNonce()})
}

func (f *follower) nack(detail string, names ...string) {
	f.t.Helper()
	details, err := keyset.RefusalDetails(names)
	if err != nil {
		f.t.Fatal(err)
	}
	f.send(&discovery.DeltaDiscoveryRequest{
		ResponseNonce: f.last.GetNonce(), ErrorDetail: &rpcstatus.Status{Code: 3, Message: detail, Details: details},
	})
}

// sync takes everything up to the marker, and returns the pages.
func (f *follower) sync() []*discovery.DeltaDiscoveryResponse {
	f.t.Helper()
	var pages []*discovery.DeltaDiscoveryResponse
	for {
		pages = append(pages, f.receive())
		f.ack()
		if slices.Contains(names(f.last), keyset.SyncName) {
			return pages
		}
	}
}

// want receives, compares the names, and acknowledges.
func (f *follower) want(want ...string) {
	f.t.Helper()
	slices.Sort(want)
	if diff := cmp.Diff(want, names(f.receive())); diff != "" {
		f.t.Fatalf("received (-want +got):\n%s", diff)
	}
	f.ack()
}

// names lists what a response holds, removed names with a minus.
func names(r *discovery.DeltaDiscoveryResponse) []string {
	var list []string
	for _, res := range r.GetResources() {
		list = append(list, res.GetName())
	}
	for _, name := range r.GetRemovedResources() {
		list = append(list, "-"+name)
	}
	slices.Sort(list)
	return list
}

// key reads the one key of a response.
func key(t *testing.T, r *discovery.DeltaDiscoveryResponse) *policy.Key {
	t.Helper()
	var into policy.Delta
	for _, res := range r.GetResources() {
		if err := keyset.Decode(res.GetName(), res.GetResource().GetValue(), &into); err != nil {
			t.Fatal(err)
		}
	}
	if len(into.Keys) != 1 {
		t.Fatalf("received %v, want one key", names(r))
	}
	return into.Keys[0]
}
