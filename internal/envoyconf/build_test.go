package envoyconf

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	cachev3 "github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/latchkey-dev/latchkey/internal/policy"
)

func TestSnapshotVersions(t *testing.T) {
	t.Parallel()
	before := snapshotOf(t, testConfig(), openAI())
	const cluster, secret, listener, route = types.Cluster, types.Secret, types.Listener, types.Route
	for name, tc := range map[string]struct {
		config    func(*Config)
		providers []policy.Provider
		changed   []types.ResponseType
	}{
		"the same content has the same versions": {nil, []policy.Provider{openAI()}, nil},
		"a new credential concerns the secrets only": {
			nil, []policy.Provider{with(openAI(), func(p *policy.Provider) { p.Credential = "another" })}, []types.ResponseType{secret},
		},
		"another base path concerns the routes only": {
			nil, []policy.Provider{with(openAI(), func(p *policy.Provider) { p.BasePath = "/v2" })}, []types.ResponseType{route},
		},
		"another server name concerns the clusters only": {
			nil, []policy.Provider{with(openAI(), func(p *policy.Provider) { p.ServerName = "b.example" })}, []types.ResponseType{cluster},
		},
		"another provider does not touch the listener": {
			nil, []policy.Provider{anthropic(), openAI()}, []types.ResponseType{cluster, route, secret},
		},
		"nor does the last provider's end": {nil, nil, []types.ResponseType{cluster, route, secret}},
		"another port concerns the listener only": {
			func(c *Config) { c.GatewayPort++ }, []policy.Provider{openAI()}, []types.ResponseType{listener},
		},
		"another limit concerns the listener only": {
			func(c *Config) { c.MaxRequestBytes = 1 }, []policy.Provider{openAI()}, []types.ResponseType{listener},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := testConfig()
			if tc.config != nil {
				tc.config(&cfg)
			}
			after := snapshotOf(t, cfg, tc.providers...)
			var changed []types.ResponseType
			for kind, resources := range after.Resources {
				if resources.Version == "" {
					t.Errorf("type %d has no version", kind)
				}
				if resources.Version != before.Resources[kind].Version {
					changed = append(changed, types.ResponseType(kind))
				}
			}
			slices.Sort(tc.changed)
			if diff := cmp.Diff(tc.changed, changed); diff != "" {
				t.Errorf("changed types (-want +got):\n%s", diff)
			}
		})
	}
}

func snapshotOf(t *testing.T, cfg Config, providers ...policy.Provider) *cachev3.Snapshot {
	t.Helper()
	res, err := Build(cfg, providers)
	if err != nil {
		t.Fatal(err)
	}
	snapshot, err := res.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	return snapshot
}

func TestListenerDoesNotDependOnProviders(t *testing.T) {
	t.Parallel()
	without, err := Build(testConfig(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range goldenCases(t) {
		res, err := Build(testConfig(), tc.providers)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(without.Listeners, res.Listeners, protocmp.Transform()); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestBuildRefuses(t *testing.T) {
	t.Parallel()
	one := func(change func(*policy.Provider)) []policy.Provider {
		return []policy.Provider{with(openAI(), change)}
	}
	for name, tc := range map[string]struct {
		config    func(*Config)
		providers []policy.Provider
		want      string
	}{
		"a gateway address that is a name":    {func(c *Config) { c.GatewayAddress = "localhost" }, nil, "parse gateway address"},
		"a gateway port that is none":         {func(c *Config) { c.GatewayPort = 65_536 }, nil, "gateway port 65536"},
		"a limit above HTTP/2's":              {func(c *Config) { c.MaxRequestBytes = 1 << 31 }, nil, "largest window"},
		"no enforcer":                         {func(c *Config) { c.EnforcerSocket = "" }, nil, "enforcer socket"},
		"an enforcer that must not take time": {func(c *Config) { c.EnforcerTimeout = -time.Second }, nil, "enforcer timeout"},
		"providers out of order":              {nil, []policy.Provider{openAI(), anthropic()}, "not sorted"},
		"the same provider twice":             {nil, []policy.Provider{openAI(), openAI()}, "occurs twice"},
		"a provider without a name":           {nil, one(func(p *policy.Provider) { p.Name = "" }), "name is empty"},
		"a provider of no known format":       {nil, one(func(p *policy.Provider) { p.Format = policy.FormatUnknown }), "format is unknown"},
		"a scheme that is not HTTP":           {nil, one(func(p *policy.Provider) { p.Scheme = "ftp" }), `scheme "ftp"`},
		"a host in brackets":                  {nil, one(func(p *policy.Provider) { p.Host = "[::1]" }), "host"},
		"a host that holds the user":          {nil, one(func(p *policy.Provider) { p.Host = "a@b" }), "host"},
		"no port":                             {nil, one(func(p *policy.Provider) { p.Port = 0 }), "port is 0"},
		"a base path that ends in a slash":    {nil, one(func(p *policy.Provider) { p.BasePath = "/v1/" }), "base path"},
		"a base path without a slash":         {nil, one(func(p *policy.Provider) { p.BasePath = "v1" }), "base path"},
		"a base path with a query":            {nil, one(func(p *policy.Provider) { p.BasePath = "/v1?a" }), "base path"},
		"a base path with a line break":       {nil, one(func(p *policy.Provider) { p.BasePath = "/v1\n" }), "PrefixRewrite"},
		"a pseudo header for the credential":  {nil, one(func(p *policy.Provider) { p.CredentialHeader = ":path" }), "credential header"},
		"an empty credential":                 {nil, one(func(p *policy.Provider) { p.Credential = "" }), "credential is empty"},
		"a credential with a line break":      {nil, one(func(p *policy.Provider) { p.Credential = "hunter2\n" }), "no header can have"},
		"a negative timeout":                  {nil, one(func(p *policy.Provider) { p.IdleTimeout = -1 }), "negative"},
		"text that is not UTF-8":              {nil, one(func(p *policy.Provider) { p.CABundle = "\xff" }), "UTF-8"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := testConfig()
			if tc.config != nil {
				tc.config(&cfg)
			}
			res, err := Build(cfg, tc.providers)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("%v instead of an error that says %q", err, tc.want)
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Error("the error shows the credential")
			}
			if len(res.Listeners)+len(res.Clusters)+len(res.Routes)+len(res.Secrets) != 0 {
				t.Error("resources came with the error")
			}
		})
	}
}

func TestBootstrapRefuses(t *testing.T) {
	t.Parallel()
	good := BootstrapConfig{NodeID: "n", XDSHost: "h", XDSPort: 1, ServerName: "s", CertDir: "/c"}
	if _, err := Bootstrap(good); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		change func(*BootstrapConfig)
		want   string
	}{
		"no node id":                      {func(c *BootstrapConfig) { c.NodeID = "" }, "node id"},
		"no control plane":                {func(c *BootstrapConfig) { c.XDSHost = "" }, "xDS host"},
		"no port":                         {func(c *BootstrapConfig) { c.XDSPort = 0 }, "port"},
		"a port that is none":             {func(c *BootstrapConfig) { c.AdminPort = 1 << 16 }, "port"},
		"no name of the control plane's":  {func(c *BootstrapConfig) { c.ServerName = "" }, "server name"},
		"no certificates":                 {func(c *BootstrapConfig) { c.CertDir = "" }, "certificate directory"},
		"an admin address that is a name": {func(c *BootstrapConfig) { c.AdminAddress = "localhost" }, "admin address"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := good
			tc.change(&cfg)
			if _, err := Bootstrap(cfg); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("%v instead of an error that says %q", err, tc.want)
			}
		})
	}
}

func TestResourcesHideCredentials(t *testing.T) {
	t.Parallel()
	res, err := Build(testConfig(), []policy.Provider{openAI()})
	if err != nil {
		t.Fatal(err)
	}
	if shown := fmt.Sprintf("%v %+v %#v %s", res, res, res, res); strings.Contains(shown, openAI().Credential.Reveal()) {
		t.Fatalf("the credential shows in %s", shown)
	}
}
