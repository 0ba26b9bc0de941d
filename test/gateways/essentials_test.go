package gateways

import (
	"errors"
	"fmt"
	"os"
	"testing"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	earlyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/early_header_mutation/header_mutation/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"sigs.k8s.io/yaml"
)

// listeners are those that have a connection manager with an external processor, of each of the configurations.
func listeners(t *testing.T) map[string][]types.Resource {
	t.Helper()
	read := func(path string) []byte {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	ofEnvoyGateway, err := translation(read(envoyGatewayGolden))
	if err != nil {
		t.Fatal(err)
	}
	ofIstio, err := istioTranslation(read(istioGolden))
	if err != nil {
		t.Fatal(err)
	}
	text, err := yaml.YAMLToJSON(read(samplePath("envoy", "envoy.yaml")))
	if err != nil {
		t.Fatal(err)
	}
	bootstrap := &bootstrapv3.Bootstrap{}
	if err := protojson.Unmarshal(text, bootstrap); err != nil {
		t.Fatal(err)
	}
	plain := make([]types.Resource, 0, 1)
	for _, l := range bootstrap.GetStaticResources().GetListeners() {
		plain = append(plain, l)
	}
	return map[string][]types.Resource{
		"envoy":         plain,
		"envoy-gateway": ofEnvoyGateway[resourcev3.ListenerType],
		"istio":         ofIstio[resourcev3.ListenerType],
	}
}

// connectionManagers are those of a listener, with its filter chain for whatever no other is for.
func connectionManagers(l *listenerv3.Listener) (found []*hcmv3.HttpConnectionManager, err error) {
	for _, chain := range append([]*listenerv3.FilterChain{l.GetDefaultFilterChain()}, l.GetFilterChains()...) {
		for _, filter := range chain.GetFilters() {
			hcm := &hcmv3.HttpConnectionManager{}
			if !filter.GetTypedConfig().MessageIs(hcm) {
				continue
			}
			err = errors.Join(err, filter.GetTypedConfig().UnmarshalTo(hcm))
			found = append(found, hcm)
		}
	}
	return found, err
}

// TestEssentials looks at what stands behind something else, so that no single request shows that it is missing: with failure_mode_allow,
// say, a request that was half decided on passes, but one that was not still ends at the last route.
func TestEssentials(t *testing.T) {
	for name, all := range listeners(t) {
		t.Run(name, func(t *testing.T) {
			seen := 0
			for _, r := range all {
				managers, err := connectionManagers(r.(*listenerv3.Listener))
				if err != nil {
					t.Fatal(err)
				}
				for _, hcm := range managers {
					at := len(hcm.HttpFilters) - 2
					if at < 0 || !hcm.HttpFilters[at].GetTypedConfig().MessageIs((*extprocv3.ExternalProcessor)(nil)) {
						// Envoy Gateway's own listeners, for readiness and metrics, have none.
						continue
					}
					seen++
					processor := &extprocv3.ExternalProcessor{}
					if err := hcm.HttpFilters[at].GetTypedConfig().UnmarshalTo(processor); err != nil {
						t.Fatal(err)
					}
					if err := errors.Join(essentials(hcm), checkProcessor(processor, name != "envoy-gateway")); err != nil {
						t.Error(err)
					}
				}
			}
			if seen != 1 {
				t.Errorf("%d connection managers have the enforcer just before the router, want 1", seen)
			}
		})
	}
}

func essentials(hcm *hcmv3.HttpConnectionManager) error {
	var errs []error
	for _, prefix := range []string{"x-latchkey-", "x-envoy-"} {
		if !removesEarly(hcm, prefix) {
			errs = append(errs, fmt.Errorf("callers can say %s", prefix))
		}
	}
	if !hcm.GetUseRemoteAddress().GetValue() {
		errs = append(errs, errors.New("callers can say where they are"))
	}
	return errors.Join(errs...)
}

func removesEarly(hcm *hcmv3.HttpConnectionManager, prefix string) bool {
	for _, extension := range hcm.EarlyHeaderMutationExtensions {
		early := &earlyv3.HeaderMutation{}
		if extension.GetTypedConfig().UnmarshalTo(early) != nil {
			continue
		}
		for _, m := range early.Mutations {
			if m.GetRemoveOnMatch().GetKeyMatcher().GetPrefix() == prefix {
				return true
			}
		}
	}
	return false
}

// checkProcessor checks how the enforcer is asked. Envoy Gateway has no say in some of it.
func checkProcessor(p *extprocv3.ExternalProcessor, whole bool) error {
	var errs []error
	expect := func(what string, met bool) {
		if !met {
			errs = append(errs, fmt.Errorf("the processor does not have %s", what))
		}
	}
	mode := p.GetProcessingMode()
	expect("failure_mode_allow false", !p.FailureModeAllow && !p.ObservabilityMode && !p.DisableImmediateResponse)
	expect("request headers and body", mode.RequestHeaderMode == extprocv3.ProcessingMode_SEND && mode.RequestBodyMode == extprocv3.ProcessingMode_BUFFERED)
	expect("response headers and body", mode.ResponseHeaderMode == extprocv3.ProcessingMode_SEND && mode.ResponseBodyMode == extprocv3.ProcessingMode_STREAMED)
	expect("no override of modes", !p.AllowModeOverride)
	expect("10 s for a message", p.GetMessageTimeout().GetSeconds() == 10)
	expect("503 for errors", p.GetStatusOnError().GetCode() == 503)
	if whole {
		expect("response trailers", mode.ResponseTrailerMode == extprocv3.ProcessingMode_SEND)
		expect("errors for mutations that are not permitted", p.GetMutationRules().GetDisallowIsError().GetValue())
		expect("content lengths", p.AllowContentLengthHeader)
	}
	return errors.Join(errs...)
}
