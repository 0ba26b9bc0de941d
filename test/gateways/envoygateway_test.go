package gateways

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	adminv3 "github.com/envoyproxy/go-control-plane/envoy/admin/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"sigs.k8s.io/yaml"
)

const (
	envoyGatewayGolden = "testdata/envoy-gateway.yaml"
	sidecarSocket      = "/run/latchkey/enforcer.sock" // in the samples whose enforcer is a container of the same Pod
)

// envoyGateway runs what Envoy Gateway's own translator has made of config/gateways/envoy-gateway, sent over ADS as Envoy Gateway does.
// The resources are as they are, but for what is of the machine. Envoy Gateway's own listeners for readiness and metrics are left out.
func envoyGateway(_ context.Context, port int) ([]string, error) {
	text, err := os.ReadFile(envoyGatewayGolden)
	if err != nil {
		return nil, fmt.Errorf("read translation: %w", err)
	}
	resources, err := translation(text)
	if err != nil {
		return nil, err
	}
	if err := localise(resources, port); err != nil {
		return nil, err
	}
	// Envoy Gateway puts the system's authorities under this name.
	resources[resourcev3.SecretType] = []types.Resource{frontAuthority("system_ca_certificates")}
	return serveADS("envoy-gateway", resources)
}

// translation reads the resources out of the configuration dump that the translator writes.
func translation(text []byte) (map[resourcev3.Type][]types.Resource, error) {
	var file struct {
		XDS map[string]struct {
			Configs []map[string]any `json:"configs"`
		} `json:"xds"`
	}
	if err := yaml.Unmarshal(text, &file); err != nil {
		return nil, fmt.Errorf("read translation: %w", err)
	}
	if len(file.XDS) != 1 {
		return nil, fmt.Errorf("read translation: %d gateways, expected one", len(file.XDS))
	}
	resources := map[resourcev3.Type][]types.Resource{}
	add := func(typeURL resourcev3.Type, from *anypb.Any, into proto.Message) error {
		if err := from.UnmarshalTo(into); err != nil {
			return fmt.Errorf("read %s of the translation: %w", typeURL, err)
		}
		resources[typeURL] = append(resources[typeURL], into)
		return nil
	}
	for _, gateway := range file.XDS {
		for _, config := range gateway.Configs {
			var errs []error
			dump, err := configDump(config)
			if err != nil {
				return nil, err
			}
			switch d := dump.(type) {
			case *adminv3.ListenersConfigDump:
				for _, l := range d.DynamicListeners {
					errs = append(errs, add(resourcev3.ListenerType, l.ActiveState.Listener, &listenerv3.Listener{}))
				}
			case *adminv3.RoutesConfigDump:
				for _, r := range d.DynamicRouteConfigs {
					errs = append(errs, add(resourcev3.RouteType, r.RouteConfig, &routev3.RouteConfiguration{}))
				}
			case *adminv3.ClustersConfigDump:
				for _, c := range d.DynamicActiveClusters {
					errs = append(errs, add(resourcev3.ClusterType, c.Cluster, &clusterv3.Cluster{}))
				}
			case *adminv3.EndpointsConfigDump:
				for _, e := range d.DynamicEndpointConfigs {
					errs = append(errs, add(resourcev3.EndpointType, e.EndpointConfig, &endpointv3.ClusterLoadAssignment{}))
				}
			}
			if err := errors.Join(errs...); err != nil {
				return nil, err
			}
		}
	}
	return resources, nil
}

// configDump decodes one part of a dump by Envoy's own types: what they do not know is an error. The bootstrap is not needed: nil.
func configDump(config map[string]any) (proto.Message, error) {
	kind := config["@type"]
	if kind == "type.googleapis.com/envoy.admin.v3.BootstrapConfigDump" {
		return nil, nil
	}
	text, err := yaml.Marshal(config)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", kind, err)
	}
	if text, err = yaml.YAMLToJSON(text); err != nil {
		return nil, fmt.Errorf("read %s: %w", kind, err)
	}
	packed := &anypb.Any{}
	if err := protojson.Unmarshal(text, packed); err != nil {
		return nil, fmt.Errorf("read %s: %w", kind, err)
	}
	return packed.UnmarshalNew()
}

// localise puts what is of the machine into the resources: the port, the enforcer's socket, and where the providers are.
func localise(resources map[resourcev3.Type][]types.Resource, port int) error {
	var listeners []types.Resource
	for _, r := range resources[resourcev3.ListenerType] {
		if l := r.(*listenerv3.Listener); l.GetAddress().GetSocketAddress().GetPortValue() == 8080 {
			l.Address = socketAddress(port)
			listeners = append(listeners, l)
		}
	}
	resources[resourcev3.ListenerType] = listeners
	providers, enforcers := 0, 0
	var assignments []*endpointv3.ClusterLoadAssignment
	for _, r := range resources[resourcev3.ClusterType] {
		assignments = append(assignments, r.(*clusterv3.Cluster).GetLoadAssignment())
	}
	for _, r := range resources[resourcev3.EndpointType] {
		assignments = append(assignments, r.(*endpointv3.ClusterLoadAssignment))
	}
	for _, assignment := range assignments {
		for _, locality := range assignment.GetEndpoints() {
			for _, e := range locality.LbEndpoints {
				endpoint := e.GetEndpoint()
				switch host := endpoint.GetAddress().GetSocketAddress().GetAddress(); {
				case endpoint.GetAddress().GetPipe().GetPath() == sidecarSocket:
					endpoint.Address = &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: theStack.EnforcerSocket()}}}
					enforcers++
				case host == openAIHost, host == anthropicHost:
					endpoint.Address = socketAddress(theFront.port())
					endpoint.Hostname = host // as it was of itself
					providers++
				}
			}
		}
	}
	if len(listeners) != 1 || enforcers != 1 || providers != 2 {
		return fmt.Errorf("find places in the resources: %d listeners, %d enforcers and %d providers", len(listeners), enforcers, providers)
	}
	return nil
}

func socketAddress(port int) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: "127.0.0.1", PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(port)},
	}}}
}

// TestTranslationsAreCurrent: what runs here is what Envoy Gateway and Istio make of the samples as they are, in the versions that are pinned.
func TestTranslationsAreCurrent(t *testing.T) {
	for folder, made := range map[string]struct{ golden, translator, module string }{
		"envoy-gateway": {envoyGatewayGolden, "hack/gateways/envoygateway", "github.com/envoyproxy/gateway"},
		"istio":         {istioGolden, "hack/gateways/istio", "istio.io/istio"},
	} {
		digest := sha256.New()
		for _, name := range []string{"gateway.yaml", "enforcer.yaml", "routes.yaml"} {
			text, err := os.ReadFile(samplePath(folder, name))
			if err != nil {
				t.Fatal(err)
			}
			_, _ = fmt.Fprintf(digest, "---\n%s", text)
		}
		golden, err := os.ReadFile(made.golden)
		if err != nil {
			t.Fatal(err)
		}
		if want := "# input: " + hex.EncodeToString(digest.Sum(nil)) + "\n"; !bytes.Contains(golden, []byte(want)) {
			t.Errorf("config/gateways/%s has changed since %s was written: run `go run .` in %s", folder, made.golden, made.translator)
		}
		if version := pinned(t, made.translator, made.module); !bytes.Contains(golden, []byte(" "+version+" makes of config/gateways/"+folder)) {
			t.Errorf("%s was not written by %s %s: run `go run .` in %s", made.golden, made.module, version, made.translator)
		}
	}
}

// pinned is the version of a module that the go.mod in a folder asks for.
func pinned(t *testing.T, folder, module string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(theStack.Root, folder, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] == module {
			return fields[1]
		}
	}
	t.Fatalf("%s/go.mod does not have %s", folder, module)
	return ""
}
