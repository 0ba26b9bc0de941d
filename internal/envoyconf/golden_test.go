package envoyconf

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"sigs.k8s.io/yaml"

	"github.com/latchkey-dev/latchkey/internal/policy"
)

var update = flag.Bool("update", false, "write the golden files anew")

func testConfig() Config {
	return Config{GatewayAddress: "127.0.0.1", GatewayPort: 8080, EnforcerSocket: "/run/latchkey/enforcer.sock"}
}

func openAI() policy.Provider {
	return policy.Provider{
		Name: "openai", Format: policy.FormatOpenAI, Scheme: "https", Host: "api.openai.com", Port: 443, BasePath: "/v1",
		CredentialHeader: "authorization", CredentialPrefix: "Bearer ", Credential: "provider-credential",
		ServerName: "api.openai.com", ConnectTimeout: 3 * time.Second, RequestTimeout: 10 * time.Minute, IdleTimeout: 5 * time.Minute,
	}
}

func anthropic() policy.Provider {
	return policy.Provider{
		Name: "anthropic", Format: policy.FormatAnthropic, Scheme: "https", Host: "api.anthropic.com", Port: 443, BasePath: "/v1",
		CredentialHeader: "x-api-key", Credential: "provider-credential", ServerName: "api.anthropic.com",
	}
}

// with changes a provider.
func with(p policy.Provider, change func(*policy.Provider)) policy.Provider {
	change(&p)
	return p
}

type goldenCase struct {
	file      string
	config    Config
	providers []policy.Provider
}

func goldenCases(t *testing.T) map[string]goldenCase {
	t.Helper()
	bundle, err := os.ReadFile("testdata/ca.pem")
	if err != nil {
		t.Fatal(err)
	}
	logged := testConfig()
	logged.AccessLog = true
	logged.MaxRequestBytes = 1 << 20
	logged.SystemRoots = "/etc/pki/tls/cert.pem"
	return map[string]goldenCase{
		"without a provider everything is refused":                       {"no-providers", testConfig(), nil},
		"OpenAI over TLS":                                                {"openai", testConfig(), []policy.Provider{openAI()}},
		"Anthropic has its key in a header of its own, without a prefix": {"anthropic", testConfig(), []policy.Provider{anthropic()}},
		"a cleartext server without a base path and without a credential": {"cleartext", testConfig(), []policy.Provider{{
			Name: "local", Format: policy.FormatOpenAI, Scheme: "http", Host: "models.internal", Port: 8000,
		}}},
		"an IPv6 address over TLS is verified as an address": {"ipv6", testConfig(), []policy.Provider{
			with(openAI(), func(p *policy.Provider) { p.Host, p.ServerName, p.Port = "2001:db8::1", "2001:db8::1", 8443 }),
		}},
		"a bundle takes the place of the system's roots": {"custom-ca", testConfig(), []policy.Provider{
			with(openAI(), func(p *policy.Provider) {
				p.CABundle, p.Host, p.ServerName = string(bundle), "10.0.0.7", "models.example"
			}),
		}},
		"retries are for what the provider has not worked on": {"retries", testConfig(), []policy.Provider{
			with(openAI(), func(p *policy.Provider) { p.RetryAttempts, p.BasePath = 2, "/openai/v1" }),
		}},
		"several providers, an access log, another limit and other roots": {"several", logged, []policy.Provider{anthropic(), openAI()}},
	}
}

func TestGolden(t *testing.T) {
	t.Parallel()
	for name, tc := range goldenCases(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			res, err := Build(tc.config, tc.providers)
			if err != nil {
				t.Fatal(err)
			}
			if len(tc.providers) > 0 && tc.config == testConfig() {
				res.Listeners = nil // as without providers, which a test of its own checks
			}
			compareGolden(t, tc.file, render(t, res))
		})
	}
}

func TestBootstrapGolden(t *testing.T) {
	t.Parallel()
	plain := BootstrapConfig{
		NodeID: "gateway-0", XDSHost: "latchkey-manager.latchkey-system.svc", XDSPort: 18000, ServerName: "latchkey-xds",
		CertDir: "/etc/latchkey/certs", AdminPort: 9901,
	}
	renewed := plain
	renewed.SDSDir = "/etc/latchkey/sds"
	for name, tc := range map[string]struct {
		file   string
		config BootstrapConfig
	}{
		"certificates are read once":                      {"bootstrap", plain},
		"certificates are read again when they are moved": {"bootstrap-sds", renewed},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			content, err := Bootstrap(tc.config)
			if err != nil {
				t.Fatal(err)
			}
			if tc.config.SDSDir != "" {
				files, err := SDSFiles(tc.config)
				if err != nil {
					t.Fatal(err)
				}
				for _, file := range []string{AuthorityFile, CertificateFile} {
					content = append(content, "--- # "+file+"\n"...)
					content = append(content, files[file]...)
				}
			}
			compareGolden(t, tc.file, content)
		})
	}
}

func compareGolden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden.yaml")
	if *update {
		if err := os.WriteFile(path, got, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Fatalf("%s differs; if it should, run the test with -update (-want +got):\n%s", path, diff)
	}
}

// render is what Envoy gets, as one document for each resource.
func render(t *testing.T, res Resources) []byte {
	t.Helper()
	var out bytes.Buffer
	for _, group := range res.groups() {
		for _, item := range group.items {
			content, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(item)
			if err != nil {
				t.Fatal(err)
			}
			var value map[string]any
			if err := json.Unmarshal(content, &value); err != nil {
				t.Fatal(err)
			}
			content, err = yaml.Marshal(map[string]any{string(item.ProtoReflect().Descriptor().Name()): value})
			if err != nil {
				t.Fatal(err)
			}
			out.WriteString("---\n")
			out.Write(content)
		}
	}
	return out.Bytes()
}
