package gateways

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"sigs.k8s.io/yaml"
)

const (
	istioGolden = "testdata/istio.yaml"
	istioRoots  = "file-root:system" // by which Istio's agent gives Envoy the system's authorities
)

// istio runs what Istio's own translator has made of config/gateways/istio, sent over ADS as istiod does. The resources are as they are,
// but for what is of the machine, and for the filters that only Istio's own build of Envoy has.
func istio(_ context.Context, port int) ([]string, error) {
	text, err := os.ReadFile(istioGolden)
	if err != nil {
		return nil, fmt.Errorf("read translation: %w", err)
	}
	resources, err := istioTranslation(text)
	if err != nil {
		return nil, err
	}
	if err := localise(resources, port); err != nil {
		return nil, err
	}
	for _, r := range resources[resourcev3.ClusterType] {
		if err := rootsOverADS(r.(*clusterv3.Cluster)); err != nil {
			return nil, err
		}
	}
	resources[resourcev3.SecretType] = []types.Resource{frontAuthority(istioRoots)}
	return serveADS("istio", resources)
}

// istioTranslation reads the resources by Envoy's own types: what they do not know is an error.
func istioTranslation(text []byte) (map[resourcev3.Type][]types.Resource, error) {
	var file map[string][]json.RawMessage
	if err := yaml.Unmarshal(text, &file); err != nil {
		return nil, fmt.Errorf("read translation: %w", err)
	}
	resources := map[resourcev3.Type][]types.Resource{}
	var errs []error
	for _, kind := range []struct {
		key     string
		typeURL resourcev3.Type
		empty   proto.Message
	}{
		{"listeners", resourcev3.ListenerType, &listenerv3.Listener{}},
		{"routes", resourcev3.RouteType, &routev3.RouteConfiguration{}},
		{"clusters", resourcev3.ClusterType, &clusterv3.Cluster{}},
	} {
		for _, one := range file[kind.key] {
			message := proto.Clone(kind.empty)
			errs = append(errs, protojson.Unmarshal(one, message))
			resources[kind.typeURL] = append(resources[kind.typeURL], message)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("read translation: %w", err)
	}
	return resources, nil
}

// rootsOverADS has a cluster get the authorities it trusts over ADS, where Istio's agent gives them by a socket of its own.
func rootsOverADS(c *clusterv3.Cluster) error {
	if c.GetTransportSocket() == nil {
		return nil
	}
	tls := &tlsv3.UpstreamTlsContext{}
	if err := c.GetTransportSocket().GetTypedConfig().UnmarshalTo(tls); err != nil {
		return fmt.Errorf("read TLS of %s: %w", c.Name, err)
	}
	roots := tls.GetCommonTlsContext().GetCombinedValidationContext().GetValidationContextSdsSecretConfig()
	if roots.GetName() != istioRoots {
		return fmt.Errorf("read TLS of %s: it trusts %q, expected %q", c.Name, roots.GetName(), istioRoots)
	}
	roots.SdsConfig = &corev3.ConfigSource{
		ResourceApiVersion:    corev3.ApiVersion_V3,
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
	}
	packed, err := anypb.New(tls)
	if err != nil {
		return fmt.Errorf("write TLS of %s: %w", c.Name, err)
	}
	c.TransportSocket.ConfigType = &corev3.TransportSocket_TypedConfig{TypedConfig: packed}
	return nil
}

// frontAuthority is the front's authority, under the name by which a gateway asks for the system's.
func frontAuthority(name string) *tlsv3.Secret {
	return &tlsv3.Secret{
		Name: name,
		Type: &tlsv3.Secret_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{
			TrustedCa: &corev3.DataSource{Specifier: &corev3.DataSource_Filename{Filename: theFront.caFile}},
		}},
	}
}

// TestIstioCredentialsComeWithTheEnforcer: an EnvoyFilter that is not there takes the enforcer along without a word, and what keeps callers
// from naming a provider. The routes alone must be worth nothing then.
func TestIstioCredentialsComeWithTheEnforcer(t *testing.T) {
	for file, want := range map[string]int{"enforcer.yaml": 2, "routes.yaml": 0} {
		text, err := os.ReadFile(samplePath("istio", file))
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Count(string(text), "%ENVIRONMENT("); got != want {
			t.Errorf("%s has %d credentials, want %d", file, got, want)
		}
	}
}
