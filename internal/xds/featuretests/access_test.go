package featuretests

import (
	"crypto/tls"
	"strings"
	"testing"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/latchkey-dev/latchkey/internal/certs"
	"github.com/latchkey-dev/latchkey/internal/keyset"
	"github.com/latchkey-dev/latchkey/internal/xds"
)

func TestWhoMayHaveWhat(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	p := start(t, a, newApp())
	none := a.client(certs.EnforcerURI)
	none.Certificates = nil
	stranger := newAuthority(t).client(certs.EnforcerURI)
	stranger.RootCAs = none.RootCAs
	old := a.client(certs.EnforcerURI)
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	for name, tc := range map[string]struct {
		cfg     *tls.Config
		typeURL string
		code    codes.Code
		want    string // empty where the connection may break before the client has read why
	}{
		"an Envoy gets no keys":                         {a.client(certs.EnvoyURI), keyset.TypeURL, codes.PermissionDenied, "role envoy"},
		"an enforcer gets no provider's credential":     {a.client(certs.EnforcerURI), resource.SecretType, codes.PermissionDenied, "role enforcer"},
		"an enforcer gets no cluster":                   {a.client(certs.EnforcerURI), resource.ClusterType, codes.PermissionDenied, "role enforcer"},
		"an Envoy gets no type that is not Envoy's":     {a.client(certs.EnvoyURI), "type.googleapis.com/x.Y", codes.PermissionDenied, "role envoy"},
		"a request must say its type":                   {a.client(certs.EnvoyURI), "", codes.PermissionDenied, "role envoy"},
		"a certificate of another role gets nothing":    {a.client("spiffe://latchkey.dev/manager"), keyset.TypeURL, codes.PermissionDenied, "URI"},
		"a role of another trust domain is none":        {a.client("spiffe://other.dev/enforcer"), keyset.TypeURL, codes.PermissionDenied, "URI"},
		"a client without a certificate is not let in":  {none, keyset.TypeURL, codes.Unavailable, ""},
		"a certificate of another authority is refused": {stranger, keyset.TypeURL, codes.Unavailable, ""},
		"TLS 1.2 is refused":                            {old, keyset.TypeURL, codes.Unavailable, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client, ctx, _ := dial(t, p, tc.cfg)
			stream, err := client.DeltaAggregatedResources(ctx)
			if err == nil {
				// An error of this is what Recv says.
				_ = stream.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: tc.typeURL, ResourceNamesSubscribe: []string{"*"}})
				_, err = stream.Recv()
			}
			if status.Code(err) != tc.code || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("error %v, want %v with %q", err, tc.code, tc.want)
			}
		})
	}
}

func TestOneTypeTooManyEndsTheStream(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	p := start(t, a, newApp())
	f := follow(t, p, a.client(certs.EnforcerURI), keyset.TypeURL, nil)
	f.sync()
	f.typeURL = resource.SecretType
	f.send(&discovery.DeltaDiscoveryRequest{})
	if _, err := f.stream.Recv(); status.Code(err) != codes.PermissionDenied {
		t.Fatalf("error %v, want permission denied", err)
	}
}

func TestStateOfTheWorldIsNotServed(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	p := start(t, a)
	client, ctx, _ := dial(t, p, a.client(certs.EnvoyURI))
	stream, err := client.StreamAggregatedResources(ctx)
	if err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.Unimplemented || !strings.Contains(err.Error(), "DELTA_GRPC") {
		t.Fatalf("error %v, want unimplemented, with what to use", err)
	}
}

func TestSingleKeysCannotBeAskedFor(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	p := start(t, a, newKey("u1"))
	client, ctx, _ := dial(t, p, a.client(certs.EnforcerURI))
	stream, err := client.DeltaAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: keyset.TypeURL, ResourceNamesSubscribe: []string{"key/u1"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err == nil || !strings.Contains(err.Error(), "subscribe to everything") {
		t.Fatalf("error %v", err)
	}
}

func TestEveryEnvoyGetsTheOneConfiguration(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	p := start(t, a, newKey("u1"))
	set := func(version string, names ...string) {
		t.Helper()
		var list []types.Resource
		for _, name := range names {
			list = append(list, &cluster.Cluster{Name: name})
		}
		snapshot, err := cache.NewSnapshot(version, map[resource.Type][]types.Resource{resource.ClusterType: list})
		if err != nil {
			t.Fatal(err)
		}
		if err := p.envoy.SetSnapshot(t.Context(), xds.EnvoyNodeGroup, snapshot); err != nil {
			t.Fatal(err)
		}
	}
	set("1", "provider/one")
	f := follow(t, p, a.client(certs.EnvoyURI), resource.ClusterType, nil)
	other := follow(t, p, a.client(certs.EnvoyURI), resource.ClusterType, nil)
	f.want("provider/one")
	other.want("provider/one")
	set("2", "provider/one", "provider/two")
	other.want("provider/two")

	f.receive()
	f.send(&discovery.DeltaDiscoveryRequest{
		Node: &core.Node{Id: "envoy-1"}, ResponseNonce: f.last.GetNonce(), ErrorDetail: status.New(codes.InvalidArgument, "no such thing").Proto(),
	})
	acks := p.acks("the refusal is known", func(a xds.Acks) bool { return len(a.Rejections) == 1 })
	r := acks.Rejections[0]
	if r.Node != "envoy-1" || r.TypeURL != resource.ClusterType || r.Detail != "no such thing" || len(r.Resources) != 1 || acks.Enforcers != 0 {
		t.Fatalf("the tracker says %+v", acks)
	}
	set("3", "provider/one", "provider/three")
	f.want("-provider/two", "provider/three")
	p.acks("the refusal is forgotten", func(a xds.Acks) bool { return len(a.Rejections) == 0 })
}

func TestStopEndsOpenStreams(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	p := start(t, a, newApp())
	f := follow(t, p, a.client(certs.EnforcerURI), keyset.TypeURL, nil)
	f.sync()
	p.acked(p.keys.Position())
	p.stop()
	if _, err := f.stream.Recv(); err == nil {
		t.Fatal("the stream is still open")
	}
	if acks := p.tracker.Snapshot(); acks.Enforcers != 0 {
		t.Fatalf("the tracker says %+v after the stop", acks)
	}
}

func TestStopRightAfterTheStart(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	for range 50 {
		start(t, a).stop()
	}
}
