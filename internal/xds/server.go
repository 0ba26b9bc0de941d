package xds

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/latchkey-dev/latchkey/internal/certs"
	"github.com/latchkey-dev/latchkey/internal/keyset"
)

// EnvoyNodeGroup is the node under which the snapshot cache holds the one configuration that all Envoys get.
const EnvoyNodeGroup = "envoy"

const (
	// A client that comes back says what it has: 100 bytes an entry.
	maxRequestBytes = 256 << 20
	// stopGrace is how long streams may take to end at shutdown. They never end by themselves.
	stopGrace = 2 * time.Second
	// envoyTypes begins the type URLs of Envoy's own resources.
	envoyTypes = "type.googleapis.com/envoy."
)

// EnvoyGroup puts every Envoy into EnvoyNodeGroup.
type EnvoyGroup struct{}

// ID is the same for all.
func (EnvoyGroup) ID(*core.Node) string { return EnvoyNodeGroup }

// Config is what a Server needs.
type Config struct {
	TLS     *tls.Config // must demand client certificates; a client that has shown none gets nothing anyway
	KeySet  *keyset.Cache
	Envoy   cache.SnapshotCache // made with EnvoyGroup
	Log     logr.Logger
	Metrics prometheus.Registerer
	// Services register further gRPC services on the port. Only enforcers may call them. Their streams' contexts end with Run's.
	Services []func(grpc.ServiceRegistrar)
}

// Server is the xDS port.
type Server struct {
	cfg     Config
	tracker *Tracker
}

// New makes a server. It serves from Run on.
func New(cfg Config) (*Server, error) {
	if cfg.TLS == nil {
		return nil, errors.New("make xDS server: it serves with mutual TLS only")
	}
	tracker, err := newTracker(cfg.Log, cfg.Metrics)
	if err != nil {
		return nil, fmt.Errorf("register xDS metrics: %w", err)
	}
	return &Server{cfg: cfg, tracker: tracker}, nil
}

// Tracker knows what clients acknowledged.
func (s *Server) Tracker() *Tracker { return s.tracker }

// Run serves on the listener, which it closes, until the context ends, and takes a few seconds more at most to end its streams. An
// error means that the listener failed.
func (s *Server) Run(ctx context.Context, listener net.Listener) error {
	// The server's context must end before GracefulStop, or streams would go on waiting for changes.
	serverCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	g := grpc.NewServer(
		grpc.StreamInterceptor(streams{serverCtx}.enforcersOnly),
		grpc.UnaryInterceptor(enforcersOnly),
		grpc.Creds(credentials.NewTLS(s.cfg.TLS)),
		grpc.MaxRecvMsgSize(maxRequestBytes),
		grpc.MaxConcurrentStreams(1000),
		// A peer that vanished without a word is noticed in 20 seconds.
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 10 * time.Second, Timeout: 10 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
	)
	mux := &cache.MuxCache{
		Classify:      func(r *cache.Request) string { return cacheOf(r.GetTypeUrl()) },
		ClassifyDelta: func(r *cache.DeltaRequest) string { return cacheOf(r.GetTypeUrl()) },
		Caches:        map[string]cache.Cache{keysetCache: s.cfg.KeySet, envoyCache: s.cfg.Envoy},
	}
	for _, register := range s.cfg.Services {
		register(g)
	}
	discovery.RegisterAggregatedDiscoveryServiceServer(g, deltaOnly{server.NewServer(serverCtx, mux, callbacks{s.tracker})})
	served := make(chan error, 1)
	go func() { served <- g.Serve(listener) }()
	select {
	case err := <-served:
		cancel()
		g.Stop()
		return fmt.Errorf("serve xDS: %w", err)
	case <-ctx.Done():
	}
	cancel()
	stopped := make(chan struct{})
	go func() { g.GracefulStop(); close(stopped) }()
	timer := time.NewTimer(stopGrace)
	defer timer.Stop()
	select {
	case <-stopped:
	case <-timer.C:
		g.Stop()
		<-stopped
	}
	if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) { // that one if it had not even begun
		return fmt.Errorf("serve xDS: %w", err)
	}
	return nil
}

const (
	keysetCache = "keyset"
	envoyCache  = "envoy"
)

func cacheOf(typeURL string) string {
	if typeURL == keyset.TypeURL {
		return keysetCache
	}
	return envoyCache
}

// deltaOnly turns the state-of-the-world protocol away.
type deltaOnly struct{ server.Server }

func (deltaOnly) StreamAggregatedResources(discovery.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	return status.Error(codes.Unimplemented, "this port serves delta ADS only: use api_type DELTA_GRPC")
}

// role says what a client may have.
type role uint8

const (
	roleNone role = iota
	roleEnforcer
	roleEnvoy
)

// String is the role's name in logs and metrics.
func (r role) String() string {
	switch r {
	case roleEnforcer:
		return "enforcer"
	case roleEnvoy:
		return "envoy"
	case roleNone:
	}
	return "none"
}

// mayHave reports whether the role includes a type. Credentials are for Envoys only, the key set for enforcers only.
func (r role) mayHave(typeURL string) bool {
	switch r {
	case roleEnforcer:
		return typeURL == keyset.TypeURL
	case roleEnvoy:
		return strings.HasPrefix(typeURL, envoyTypes)
	case roleNone:
	}
	return false
}

// roleOfPeer reads the role from the certificate that the client showed.
func roleOfPeer(ctx context.Context) (role, string) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return roleNone, ""
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.VerifiedChains) == 0 {
		return roleNone, p.Addr.String()
	}
	for _, uri := range info.State.PeerCertificates[0].URIs {
		switch uri.String() {
		case certs.EnforcerURI:
			return roleEnforcer, p.Addr.String()
		case certs.EnvoyURI:
			return roleEnvoy, p.Addr.String()
		}
	}
	return roleNone, p.Addr.String()
}

// mayCall turns away who calls another service than xDS and is no enforcer. What xDS clients may have is up to the callbacks.
func mayCall(ctx context.Context, method string) error {
	if isXDS(method) {
		return nil
	}
	if r, _ := roleOfPeer(ctx); r != roleEnforcer {
		return status.Errorf(codes.PermissionDenied, "a client with the role %s may not call %s: its certificate must hold %s as a URI", r, method, certs.EnforcerURI)
	}
	return nil
}

func isXDS(method string) bool {
	return strings.HasPrefix(method, "/"+discovery.AggregatedDiscoveryService_ServiceDesc.ServiceName+"/")
}

func enforcersOnly(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	if err := mayCall(ctx, info.FullMethod); err != nil {
		return nil, err
	}
	return handler(ctx, req)
}

// streams looks after the streams of other services than xDS.
type streams struct{ server context.Context }

// enforcersOnly also ends the streams' contexts with the server's, which is what ends those of xDS.
func (s streams) enforcersOnly(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	if err := mayCall(stream.Context(), info.FullMethod); err != nil {
		return err
	}
	if isXDS(info.FullMethod) {
		return handler(srv, stream)
	}
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	defer context.AfterFunc(s.server, cancel)()
	return handler(srv, boundStream{stream, ctx})
}

// boundStream is a stream with a context of its own.
type boundStream struct {
	grpc.ServerStream
	ctx context.Context
}

// Context ends with the stream or with the server.
func (s boundStream) Context() context.Context { return s.ctx }

// callbacks tells the tracker what happens, and turns away who asks for what is not theirs.
type callbacks struct{ tracker *Tracker }

var _ server.Callbacks = callbacks{}

func (c callbacks) OnDeltaStreamOpen(ctx context.Context, id int64, _ string) error {
	r, addr := roleOfPeer(ctx)
	if r == roleNone {
		return status.Errorf(codes.PermissionDenied, "the client certificate holds neither %s nor %s as a URI", certs.EnforcerURI, certs.EnvoyURI)
	}
	c.tracker.opened(id, r, addr)
	return nil
}

func (c callbacks) OnDeltaStreamClosed(id int64, _ *core.Node) { c.tracker.closed(id) }

func (c callbacks) OnStreamDeltaRequest(id int64, req *discovery.DeltaDiscoveryRequest) error {
	if r := c.tracker.roleOf(id); !r.mayHave(req.GetTypeUrl()) {
		return status.Errorf(codes.PermissionDenied, "a client with the role %s may not have %s", r, req.GetTypeUrl())
	}
	c.tracker.requested(id, req)
	return nil
}

func (c callbacks) OnStreamDeltaResponse(id int64, _ *discovery.DeltaDiscoveryRequest, resp *discovery.DeltaDiscoveryResponse) {
	c.tracker.sent(id, resp)
}

func (callbacks) OnStreamOpen(context.Context, int64, string) error { return nil }
func (callbacks) OnStreamClosed(int64, *core.Node)                  {}
func (callbacks) OnStreamRequest(int64, *discovery.DiscoveryRequest) error {
	return nil
}
func (callbacks) OnStreamResponse(context.Context, int64, *discovery.DiscoveryRequest, *discovery.DiscoveryResponse) {
}
func (callbacks) OnFetchRequest(context.Context, *discovery.DiscoveryRequest) error { return nil }
func (callbacks) OnFetchResponse(*discovery.DiscoveryRequest, *discovery.DiscoveryResponse) {
}
