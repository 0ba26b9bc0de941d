package chart

import (
	"encoding/pem"
	"net"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// replaceEnvoy makes of the gateway's Pod one in which somebody else configures Envoy: by config/gateways/envoy/envoy.yaml, where only the
// addresses of this machine are put in. The enforcer stays as the chart has it.
func (n *node) replaceEnvoy(p *pod, port, providerPort int) {
	n.t.Helper()
	p.Spec.InitContainers = slices.DeleteFunc(p.Spec.InitContainers, func(c corev1.Container) bool { return c.Name == "bootstrap" })
	target := &url.URL{Scheme: "http", Host: net.JoinHostPort("127.0.0.1", strconv.Itoa(providerPort))}
	// The configuration speaks TLS to its providers.
	front := httptest.NewTLSServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) }, FlushInterval: -1})
	n.t.Cleanup(front.Close)
	authority := filepath.Join(n.dir, "front.pem")
	if err := os.WriteFile(authority, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: front.Certificate().Raw}), 0o600); err != nil {
		n.t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(server.root, "config", "gateways", "envoy", "envoy.yaml"))
	if err != nil {
		n.t.Fatal(err)
	}
	config := string(raw)
	at := "{ address: 127.0.0.1, port_value: " + strconv.Itoa(front.Listener.Addr().(*net.TCPAddr).Port) + " }"
	for old, here := range map[string]string{
		"{ address: 0.0.0.0, port_value: 8080 }":            "{ address: 127.0.0.1, port_value: " + strconv.Itoa(port) + " }",
		"/var/run/latchkey/enforcer.sock":                   filepath.Join(p.folders["/run/latchkey"], "enforcer.sock"),
		"{ address: api.openai.com, port_value: 443 }":      at,
		"{ address: api.anthropic.com, port_value: 443 }":   at,
		"/etc/ssl/certs/ca-certificates.crt":                authority,
		"san_type: DNS, matcher: { exact: api.openai.com }": "san_type: DNS, matcher: { exact: " + front.Certificate().DNSNames[0] + " }",
	} {
		if !strings.Contains(config, old) {
			n.t.Fatalf("config/gateways/envoy/envoy.yaml has no %q", old)
		}
		config = strings.ReplaceAll(config, old, here)
	}
	file := filepath.Join(n.dir, "foreign-envoy.yaml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		n.t.Fatal(err)
	}
	envoy := &p.Spec.Containers[slices.IndexFunc(p.Spec.Containers, func(c corev1.Container) bool { return c.Name == "envoy" })]
	envoy.Args = []string{"--config-path", file, "--disable-hot-restart", "--concurrency", "1", "--log-level", "warning"}
	envoy.Env = []corev1.EnvVar{{Name: "OPENAI_API_KEY", Value: openAICredential}, {Name: "ANTHROPIC_API_KEY", Value: anthropicCredential}}
}
