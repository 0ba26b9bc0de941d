package gateways

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

func gatewaysUnderTest() []*gateway {
	return []*gateway{
		{name: "envoy", prepare: plainEnvoy, tellsOwnErrors: true},
		{name: "envoy-gateway", prepare: envoyGateway},
		{name: "istio", prepare: istio, tellsOwnErrors: true},
	}
}

// plainEnvoy is config/gateways/envoy/envoy.yaml as it is, but for what is of the machine: ports, paths, and where the providers are.
func plainEnvoy(_ context.Context, port int) ([]string, error) {
	text, err := os.ReadFile(filepath.Join(theStack.Root, "config/gateways/envoy/envoy.yaml"))
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	local := func(port int) string { return fmt.Sprintf("{ address: 127.0.0.1, port_value: %d }", port) }
	config, err := substitute(string(text), []substitution{
		{"{ address: 0.0.0.0, port_value: 8080 }", local(port), 1},
		{"/var/run/latchkey/enforcer.sock", theStack.EnforcerSocket(), 1},
		{"{ address: " + openAIHost + ", port_value: 443 }", local(theFront.port()), 1},
		{"{ address: " + anthropicHost + ", port_value: 443 }", local(theFront.port()), 1},
		{"/etc/ssl/certs/ca-certificates.crt", theFront.caFile, 2},
	})
	if err != nil {
		return nil, err
	}
	path := filepath.Join(theStack.Dir, "plain-envoy.yaml")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		return nil, fmt.Errorf("write configuration: %w", err)
	}
	return []string{"-c", path}, nil
}

// substitution puts one text in the place of another, which occurs as often as is said.
type substitution struct {
	old, new string
	times    int
}

func substitute(text string, substitutions []substitution) (string, error) {
	for _, s := range substitutions {
		if n := strings.Count(text, s.old); n != s.times {
			return "", fmt.Errorf("substitute %q: it occurs %d times, expected %d", s.old, n, s.times)
		}
		text = strings.ReplaceAll(text, s.old, s.new)
	}
	return text, nil
}
