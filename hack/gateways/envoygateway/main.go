// Command envoygateway writes what Envoy Gateway makes of config/gateways/envoy-gateway: the resources that it would send to Envoy, by its own
// translator. test/gateways runs them. It also checks what no CRD covers, the values for Envoy Gateway's chart.
//
// It is run after a change of the samples, or of Envoy Gateway's version in go.mod:
//
//	go run .   (in hack/gateways/envoygateway)
package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"

	egv1a1 "github.com/envoyproxy/gateway/api/v1alpha1"
	"sigs.k8s.io/yaml"
)

const (
	samples = "../../../config/gateways/envoy-gateway"
	output  = "../../../test/gateways/testdata/envoy-gateway.yaml"
)

func main() {
	if err := run(); err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "envoygateway:", err)
		os.Exit(1)
	}
}

func run() error {
	if err := checkValues(); err != nil {
		return err
	}
	var resources bytes.Buffer
	for _, name := range []string{"gateway.yaml", "enforcer.yaml", "routes.yaml"} {
		text, err := os.ReadFile(filepath.Join(samples, name))
		if err != nil {
			return fmt.Errorf("read sample: %w", err)
		}
		resources.WriteString("---\n")
		resources.Write(text)
	}
	in, err := os.CreateTemp("", "envoy-gateway-*.yaml")
	if err != nil {
		return fmt.Errorf("write input: %w", err)
	}
	defer func() { _ = os.Remove(in.Name()) }()
	if _, err := in.Write(resources.Bytes()); err != nil {
		return fmt.Errorf("write input: %w", err)
	}
	if err := in.Close(); err != nil {
		return fmt.Errorf("write input: %w", err)
	}
	status, err := egctl(in.Name(), "gateway-api")
	if err != nil {
		return err
	}
	if err := checkStatus(status); err != nil {
		return err
	}
	xds, err := egctl(in.Name(), "xds")
	if err != nil {
		return err
	}
	sum := sha256.Sum256(resources.Bytes())
	header := fmt.Sprintf("# What Envoy Gateway %s makes of config/gateways/envoy-gateway. Written by hack/gateways/envoygateway.\n# input: %s\n",
		version(), hex.EncodeToString(sum[:]))
	if err := os.WriteFile(output, append([]byte(header), xds...), 0o644); err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	return nil
}

// checkValues reads the values for the chart as Envoy Gateway reads its configuration, where an unknown field is an error.
func checkValues() error {
	text, err := os.ReadFile(filepath.Join(samples, "values.yaml"))
	if err != nil {
		return fmt.Errorf("read values: %w", err)
	}
	var values struct {
		Config struct {
			EnvoyGateway egv1a1.EnvoyGatewaySpec `json:"envoyGateway"`
		} `json:"config"`
	}
	if err := yaml.UnmarshalStrict(text, &values); err != nil {
		return fmt.Errorf("read values: %w", err)
	}
	cfg := egv1a1.EnvoyGateway{EnvoyGatewaySpec: values.Config.EnvoyGateway}
	if !cfg.GatewayNamespaceMode() || cfg.ExtensionAPIs == nil || !cfg.ExtensionAPIs.EnableBackend {
		return errors.New("check values: Envoy Gateway does not take them for what the samples need")
	}
	return nil
}

func egctl(input, to string) ([]byte, error) {
	cmd := exec.Command("go", "tool", "egctl", "experimental", "translate", "--from", "gateway-api", "--to", to, "--file", input)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("translate to %s: %w", to, err)
	}
	return out, nil
}

// checkStatus fails on any condition by which Envoy Gateway would tell that it does not carry an object out.
func checkStatus(text []byte) error {
	var all any
	if err := yaml.Unmarshal(text, &all); err != nil {
		return fmt.Errorf("read status: %w", err)
	}
	bad, seen := conditions(all)
	if seen < 10 {
		return fmt.Errorf("check status: only %d conditions", seen)
	}
	if len(bad) > 0 {
		return fmt.Errorf("check status: %s", strings.Join(bad, "; "))
	}
	return nil
}

// conditions are those that are not as they should be, anywhere in a document, and the number of all.
func conditions(in any) (bad []string, seen int) {
	switch v := in.(type) {
	case []any:
		for _, item := range v {
			b, n := conditions(item)
			bad, seen = append(bad, b...), seen+n
		}
	case map[string]any:
		if status, ok := v["status"].(string); ok && v["reason"] != nil {
			seen++
			if healthy := v["type"] != "Conflicted" && v["type"] != "OverlappingTLSConfig"; (status == "True") != healthy {
				bad = append(bad, fmt.Sprintf("%v=%v: %v: %v", v["type"], status, v["reason"], v["message"]))
			}
		}
		for _, item := range v {
			b, n := conditions(item)
			bad, seen = append(bad, b...), seen+n
		}
	}
	return bad, seen
}

func version() string {
	info, ok := debug.ReadBuildInfo()
	if ok {
		for _, dep := range info.Deps {
			if dep.Path == "github.com/envoyproxy/gateway" {
				return dep.Version
			}
		}
	}
	return "(unknown version)"
}
