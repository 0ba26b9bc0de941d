package featuretests

import (
	"context"
	"crypto/tls"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/go-logr/logr/testr"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/latchkey-dev/latchkey/internal/certs"
	"github.com/latchkey-dev/latchkey/internal/keyset"
	"github.com/latchkey-dev/latchkey/internal/xds"
)

// echoService is a further service on the port: one method of each kind. Its stream ends with its context only.
func echoService(ended chan<- struct{}) func(grpc.ServiceRegistrar) {
	return func(r grpc.ServiceRegistrar) {
		r.RegisterService(&grpc.ServiceDesc{
			ServiceName: "test.Echo",
			HandlerType: (*any)(nil),
			Methods: []grpc.MethodDesc{{MethodName: "Unary", Handler: func(srv any, ctx context.Context, decode func(any) error, interceptor grpc.UnaryServerInterceptor) (any, error) {
				in := &emptypb.Empty{}
				if err := decode(in); err != nil {
					return nil, err
				}
				handler := func(context.Context, any) (any, error) { return in, nil }
				return interceptor(ctx, in, &grpc.UnaryServerInfo{Server: srv, FullMethod: "/test.Echo/Unary"}, handler)
			}}},
			Streams: []grpc.StreamDesc{{StreamName: "Stream", ServerStreams: true, ClientStreams: true, Handler: func(_ any, stream grpc.ServerStream) error {
				if err := stream.SendMsg(&emptypb.Empty{}); err != nil {
					return err
				}
				<-stream.Context().Done()
				ended <- struct{}{}
				return stream.Context().Err()
			}}},
		}, struct{}{})
	}
}

// startEcho serves the echo service beside xDS.
func startEcho(t *testing.T, serverTLS *tls.Config, ended chan<- struct{}) (addr string, stop func()) {
	t.Helper()
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s, err := xds.New(xds.Config{
		TLS: serverTLS, KeySet: keyset.NewCache(fastClock{time.Now()}), Envoy: cache.NewSnapshotCache(true, xds.EnvoyGroup{}, nil),
		Log: testr.New(t), Metrics: prometheus.NewRegistry(), Services: []func(grpc.ServiceRegistrar){echoService(ended)},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, ln) }()
	return ln.Addr().String(), func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	}
}

func connect(t *testing.T, addr string, cfg *tls.Config) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(credentials.NewTLS(cfg)), grpc.WithNoProxy())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func TestFurtherServicesAreForEnforcersOnly(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	server, _, _ := certs.Identities()
	strict := certs.Server(a.issue(server))
	// What a port without a demand for certificates would let through.
	lax, err := strict.GetConfigForClient(nil)
	if err != nil {
		t.Fatal(err)
	}
	lax.ClientAuth = tls.VerifyClientCertIfGiven
	none := a.client(certs.EnforcerURI)
	none.Certificates = nil
	for name, tc := range map[string]struct {
		server, client *tls.Config
		code           codes.Code
		want           string
	}{
		"an enforcer may call":                             {strict, a.client(certs.EnforcerURI), codes.OK, ""},
		"an Envoy may not":                                 {strict, a.client(certs.EnvoyURI), codes.PermissionDenied, "role envoy"},
		"a certificate of another role may not":            {strict, a.client("spiffe://latchkey.dev/manager"), codes.PermissionDenied, "role none"},
		"without a certificate there is no connection":     {strict, none, codes.Unavailable, ""},
		"a client without a certificate may not, let in":   {lax, none, codes.PermissionDenied, "role none"},
		"an enforcer may call where none has to show any":  {lax, a.client(certs.EnforcerURI), codes.OK, ""},
		"an Envoy may not, where none has to show any too": {lax, a.client(certs.EnvoyURI), codes.PermissionDenied, "role envoy"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ended := make(chan struct{}, 1)
			addr, stop := startEcho(t, tc.server, ended)
			defer stop()
			conn := connect(t, addr, tc.client)
			ctx, cancel := context.WithTimeout(t.Context(), deadline)
			defer cancel()
			check := func(what string, err error) {
				if status.Code(err) != tc.code || (err != nil && !strings.Contains(err.Error(), tc.want)) {
					t.Errorf("%s: error %v, want %v with %q", what, err, tc.code, tc.want)
				}
			}
			check("call", conn.Invoke(ctx, "/test.Echo/Unary", &emptypb.Empty{}, &emptypb.Empty{}))
			stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/test.Echo/Stream")
			if err == nil {
				err = stream.RecvMsg(&emptypb.Empty{})
			}
			check("stream", err)
		})
	}
}

func TestStopEndsFurtherServices(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	server, _, _ := certs.Identities()
	ended := make(chan struct{}, 1)
	addr, stop := startEcho(t, certs.Server(a.issue(server)), ended)
	conn := connect(t, addr, a.client(certs.EnforcerURI))
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/test.Echo/Stream")
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.RecvMsg(&emptypb.Empty{}); err != nil {
		t.Fatal(err)
	}
	stop()
	select {
	case <-ended:
	default:
		t.Error("the stream's context did not end with the server")
	}
	if err := stream.RecvMsg(&emptypb.Empty{}); status.Code(err) != codes.Canceled {
		t.Errorf("error %v, want what the service made of its context's end, and no broken connection", err)
	}
}
