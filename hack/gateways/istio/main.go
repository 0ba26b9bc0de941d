// Command istio writes what Istio makes of config/gateways/istio: the resources that istiod would send to the gateway's Envoy, by Istio's own
// translator. test/gateways runs them.
//
// It is run after a change of the samples, or of Istio's version in go.mod:
//
//	go run .   (in hack/gateways/istio)
package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"istio.io/istio/pilot/pkg/config/kube/crd"
	"istio.io/istio/pilot/pkg/model"
	"istio.io/istio/pilot/pkg/networking/core"
	"istio.io/istio/pkg/log"
	"istio.io/istio/pkg/test"
	"sigs.k8s.io/yaml"
)

const (
	samples = "../../../config/gateways/istio"
	output  = "../../../test/gateways/testdata/istio.yaml"
)

func main() {
	if err := run(); err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "istio:", err)
		os.Exit(1)
	}
}

func run() error {
	var all, configs bytes.Buffer
	for _, name := range []string{"gateway.yaml", "enforcer.yaml", "routes.yaml"} {
		text, err := os.ReadFile(filepath.Join(samples, name))
		if err != nil {
			return fmt.Errorf("read sample: %w", err)
		}
		all.WriteString("---\n")
		all.Write(text)
		for _, document := range strings.Split(string(text), "\n---\n") {
			if strings.Contains(document, "apiVersion: networking.istio.io/") {
				configs.WriteString("---\n" + document + "\n")
			}
		}
	}
	quiet := log.DefaultOptions()
	quiet.SetDefaultOutputLevel("all", log.ErrorLevel)
	if err := log.Configure(quiet); err != nil {
		return fmt.Errorf("silence the log: %w", err)
	}
	// As istiod reads them, with its validation.
	if _, _, err := crd.ParseInputs(configs.String()); err != nil {
		return fmt.Errorf("validate samples: %w", err)
	}
	resources, err := translate(configs.String())
	if err != nil {
		return err
	}
	text, err := yaml.Marshal(resources)
	if err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	sum := sha256.Sum256(all.Bytes())
	header := fmt.Sprintf("# What Istio %s makes of config/gateways/istio, but for the filters that only Istio's own build of Envoy has.\n"+
		"# Written by hack/gateways/istio.\n# input: %s\n", version(), hex.EncodeToString(sum[:]))
	if err := os.WriteFile(output, append([]byte(header), text...), 0o644); err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	return nil
}

// translation is what istiod sends, by kind.
type translation struct {
	Listeners []json.RawMessage `json:"listeners"`
	Routes    []json.RawMessage `json:"routes"`
	Clusters  []json.RawMessage `json:"clusters"`
	LeftOut   []string          `json:"leftOut"`
}

func translate(configs string) (*translation, error) {
	out := &translation{}
	var errs []error
	add := func(to *[]json.RawMessage, message proto.Message) {
		text, err := protojson.Marshal(message)
		errs = append(errs, err)
		*to = append(*to, text)
	}
	err := test.Wrap(func(t test.Failer) {
		generator := core.NewConfigGenTest(t, core.TestOptions{ConfigString: configs})
		proxy := generator.SetupProxy(&model.Proxy{
			Type:            model.Router,
			ConfigNamespace: "latchkey-system",
			Labels:          map[string]string{"istio": "llm"},
			Metadata:        &model.NodeMetadata{Namespace: "latchkey-system", Labels: map[string]string{"istio": "llm"}},
		})
		for _, l := range generator.Listeners(proxy) {
			left, err := leaveOut(l)
			errs = append(errs, err)
			out.LeftOut = append(out.LeftOut, left...)
			add(&out.Listeners, l)
		}
		for _, r := range generator.Routes(proxy) {
			add(&out.Routes, r)
		}
		for _, c := range generator.Clusters(proxy) {
			for _, f := range c.Filters {
				if !strings.HasPrefix(f.Name, "istio") {
					errs = append(errs, fmt.Errorf("cluster %s has the filter %s", c.Name, f.Name))
				}
				out.LeftOut = append(out.LeftOut, f.Name)
			}
			c.Filters = nil
			add(&out.Clusters, c)
		}
	})
	slices.Sort(out.LeftOut)
	out.LeftOut = slices.Compact(out.LeftOut)
	if err := errors.Join(append(errs, err)...); err != nil {
		return nil, fmt.Errorf("translate: %w", err)
	}
	if len(out.Listeners) == 0 || len(out.Routes) == 0 || len(out.Clusters) == 0 {
		return nil, errors.New("translate: Istio makes nothing of the samples")
	}
	return out, nil
}

// leaveOut takes the filters out of a listener that no other Envoy than Istio's has, and names them.
func leaveOut(l *listenerv3.Listener) ([]string, error) {
	var names []string
	for _, chain := range l.FilterChains {
		for _, filter := range chain.Filters {
			hcm := &hcmv3.HttpConnectionManager{}
			if !filter.GetTypedConfig().MessageIs(hcm) {
				continue
			}
			if err := filter.GetTypedConfig().UnmarshalTo(hcm); err != nil {
				return nil, fmt.Errorf("read connection manager: %w", err)
			}
			var kept []*hcmv3.HttpFilter
			for _, f := range hcm.HttpFilters {
				if strings.HasPrefix(f.Name, "istio") {
					names = append(names, f.Name)
				} else {
					kept = append(kept, f)
				}
			}
			hcm.HttpFilters = kept
			packed, err := anypb.New(hcm)
			if err != nil {
				return nil, fmt.Errorf("write connection manager: %w", err)
			}
			filter.ConfigType = &listenerv3.Filter_TypedConfig{TypedConfig: packed}
		}
	}
	return names, nil
}

func version() string {
	info, ok := debug.ReadBuildInfo()
	if ok {
		for _, dep := range info.Deps {
			if dep.Path == "istio.io/istio" {
				return dep.Version
			}
		}
	}
	return "(unknown version)"
}
