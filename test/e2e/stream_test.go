package e2e

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/latchkey-dev/latchkey/internal/certs"
)

const (
	keysetType  = "type.googleapis.com/latchkey.keyset.v1.Entry"
	secretType  = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
	clusterType = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	routeType   = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
)

// stream reads a type's first synchronisation as one of the manager's clients would, and returns everything as bytes.
func stream(t *testing.T, as, typeURL, until string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	tlsConfig, err := certs.Client(certs.Dir(filepath.Join(theStack.Dir, "certs", as)), certs.ServerName)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient(theStack.XDSAddress(0), grpc.WithTransportCredentials(credentials.NewTLS(tlsConfig)))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	s, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		return "", err
	}
	if err := s.Send(&discoveryv3.DeltaDiscoveryRequest{Node: &corev3.Node{Id: "test"}, TypeUrl: typeURL, ResourceNamesSubscribe: []string{"*"}}); err != nil {
		return "", err
	}
	var all strings.Builder
	for {
		resp, err := s.Recv()
		if err != nil {
			return all.String(), err
		}
		for _, r := range resp.Resources {
			fmt.Fprintf(&all, "%s %s %s\n", r.Name, r.Version, r.Resource.GetValue())
			if strings.HasPrefix(r.Name, until) {
				until = ""
			}
		}
		if until == "" {
			return all.String(), nil
		}
		if err := s.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: typeURL, ResponseNonce: resp.Nonce}); err != nil {
			return all.String(), err
		}
	}
}

// TestTheStreamGivesEachItsOwn: enforcers get the key set without a plaintext or a credential, Envoys get theirs, and neither the other's.
func TestTheStreamGivesEachItsOwn(t *testing.T) {
	k, key := newTenant(t).newKey("streamed")
	keyset, err := stream(t, "enforcer", keysetType, "sync")
	if err != nil || !strings.Contains(keyset, k.Namespace) {
		t.Fatalf("the key set: %d bytes, %v", len(keyset), err)
	}
	if strings.Contains(keyset, key[len(k.Status.KeyPrefix):]) {
		t.Error("the key set holds the plaintext")
	}
	for name, credential := range map[string]string{"OpenAI": "sim-openai-credential", "Anthropic": "sim-anthropic-credential"} {
		if strings.Contains(keyset, credential) {
			t.Errorf("the key set holds the credential of %s", name)
		}
	}
	for _, typeURL := range []string{clusterType, routeType} {
		resources, err := stream(t, "envoy", typeURL, "")
		if err != nil || resources == "" || strings.Contains(resources, key) || strings.Contains(resources, "sim-openai-credential") {
			t.Errorf("%s: %d bytes, %v", typeURL, len(resources), err)
		}
	}
	for as, typeURL := range map[string]string{"enforcer": secretType, "envoy": keysetType} {
		if got, err := stream(t, as, typeURL, ""); status.Code(err) != codes.PermissionDenied || got != "" {
			t.Errorf("%s asked for %s and got %d bytes, %v", as, typeURL, len(got), err)
		}
	}
}
