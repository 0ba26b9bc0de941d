package extproc

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/latchkey-dev/latchkey/internal/certs"
	"github.com/latchkey-dev/latchkey/internal/enforce"
	"github.com/latchkey-dev/latchkey/internal/envoyconf"
	"github.com/latchkey-dev/latchkey/internal/keyset"
	"github.com/latchkey-dev/latchkey/internal/policy"
	"github.com/latchkey-dev/latchkey/internal/xds"
)

// The tests of this file run the adapter and the engine behind the real Envoy, configured as in production.

const credential = "the-provider's-own"

// upstream is a provider that reports what it was sent, and streams until it is told to end.
type upstream struct {
	*httptest.Server
	release chan struct{}
}

// received is what the upstream reports.
type received struct {
	Path          string
	Body          string
	ContentLength int64
	Chunked       bool
	Credential    string
	Leaks         []string // headers that hold what a provider must not see
}

func newUpstream(t *testing.T, secret *string) *upstream {
	t.Helper()
	u := &upstream{release: make(chan struct{})}
	u.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Errorf("upstream: read body: %v", err)
		}
		if r.Header.Get("x-test") == "stream" {
			_, _ = io.WriteString(w, "data: first\n\n")
			w.(http.Flusher).Flush()
			<-u.release
			_, _ = io.WriteString(w, "data: last\n\n")
			return
		}
		if answerAs(w, r, u.release) {
			return
		}
		got := received{
			Path: r.RequestURI, Body: string(body), ContentLength: r.ContentLength, Chunked: len(r.TransferEncoding) > 0,
			Credential: r.Header.Get("authorization"),
		}
		for name, values := range r.Header {
			if strings.Contains(strings.Join(values, " "), *secret) || strings.HasPrefix(strings.ToLower(name), "x-latchkey") {
				got.Leaks = append(got.Leaks, name)
			}
		}
		_ = json.NewEncoder(w).Encode(got)
	}))
	t.Cleanup(u.Close)
	return u
}

// gateway is a running Envoy.
type gateway struct {
	url    string
	client *http.Client // HTTP/1.1
	h2     *http.Client
}

// startGateway runs Envoy before the enforcer's socket, with the upstream as provider alpha.
func startGateway(t *testing.T, socket string, up *upstream) *gateway {
	t.Helper()
	binary := os.Getenv("ENVOY")
	if binary == "" {
		if testing.Short() {
			t.Skip("ENVOY is unset")
		}
		t.Fatal("ENVOY is unset: use make test, which finds Envoy, or -short, which leaves this test out")
	}
	dir := socketDir(t)
	xdsPort := serveEnvoyConfiguration(t, dir, socket, up)
	bootstrap, err := envoyconf.Bootstrap(envoyconf.BootstrapConfig{
		NodeID: "envoy-test", XDSHost: "127.0.0.1", XDSPort: xdsPort, ServerName: certs.ServerName, CertDir: filepath.Join(dir, "certs"),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "bootstrap.yaml"), bootstrap, 0o600); err != nil {
		t.Fatal(err)
	}
	log, admin := &lockedBuffer{}, filepath.Join(dir, "admin")
	cmd := exec.Command(binary, "-c", filepath.Join(dir, "bootstrap.yaml"), "--concurrency", "1", "--disable-hot-restart",
		"--admin-address-path", admin, "--log-level", "warning")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = dieWithParent()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("Envoy's log:\n%s", log.String())
		}
	})
	g := &gateway{client: newClient(t, false), h2: newClient(t, true)}
	waitFor(t, "Envoy's listener", func() bool {
		address, err := os.ReadFile(admin)
		if err != nil || len(address) == 0 {
			return false
		}
		port := g.listenerPort(t, "http://"+string(address))
		// Envoy names the listener before its workers listen.
		gateway := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
		g.url = "http://" + gateway
		conn, err := net.Dial("tcp", gateway)
		if err == nil {
			_ = conn.Close()
		}
		return port != 0 && err == nil
	})
	return g
}

func newClient(t *testing.T, http2 bool) *http.Client {
	t.Helper()
	protocols := new(http.Protocols)
	protocols.SetHTTP1(!http2)
	protocols.SetUnencryptedHTTP2(http2)
	transport := &http.Transport{Protocols: protocols}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: patience}
}

// serveEnvoyConfiguration runs the control plane's xDS server with Envoy's resources.
func serveEnvoyConfiguration(t *testing.T, dir, socket string, up *upstream) (port uint32) {
	t.Helper()
	now := time.Now()
	authority, err := certs.NewAuthority(now)
	if err != nil {
		t.Fatal(err)
	}
	serverID, _, envoyID := certs.Identities()
	own, err := certs.Issue(authority, serverID, now)
	if err != nil {
		t.Fatal(err)
	}
	envoys, err := certs.Issue(authority, envoyID, now)
	if err != nil {
		t.Fatal(err)
	}
	if err := envoys.Write(filepath.Join(dir, "certs")); err != nil {
		t.Fatal(err)
	}
	resources, err := envoyconf.Build(envoyconf.Config{GatewayAddress: "127.0.0.1", EnforcerSocket: socket}, []policy.Provider{{
		Name: "alpha", Format: policy.FormatOpenAI, Scheme: "http", Host: "127.0.0.1",
		Port: uint16(up.Listener.Addr().(*net.TCPAddr).Port), BasePath: "/api/v1",
		CredentialHeader: "authorization", CredentialPrefix: "Bearer ", Credential: credential,
		ConnectTimeout: patience, RequestTimeout: patience,
	}})
	if err != nil {
		t.Fatal(err)
	}
	snapshot, err := resources.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	snapshots := cache.NewSnapshotCache(true, xds.EnvoyGroup{}, nil)
	if err := snapshots.SetSnapshot(t.Context(), xds.EnvoyNodeGroup, snapshot); err != nil {
		t.Fatal(err)
	}
	server, err := xds.New(xds.Config{
		TLS:    certs.Server(func() (certs.Bundle, error) { return own, nil }),
		KeySet: keyset.NewCache(keyset.SystemClock{}), Envoy: snapshots, Log: logr.Discard(), Metrics: prometheus.NewRegistry(),
	})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("xDS server: %v", err)
		}
	})
	return uint32(ln.Addr().(*net.TCPAddr).Port)
}

// listenerPort asks Envoy's admin interface where it listens; 0 while it does not.
func (g *gateway) listenerPort(t *testing.T, admin string) int {
	t.Helper()
	resp, err := g.client.Get(admin + "/listeners?format=json")
	if err != nil {
		return 0
	}
	defer func() { _ = resp.Body.Close() }()
	var page struct {
		Statuses []struct {
			Name    string `json:"name"`
			Address struct {
				Socket struct {
					Port int `json:"port_value"`
				} `json:"socket_address"`
			} `json:"local_address"`
		} `json:"listener_statuses"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&page); err != nil {
		return 0
	}
	for _, l := range page.Statuses {
		if l.Name == envoyconf.ListenerName {
			return l.Address.Socket.Port
		}
	}
	return 0
}

// request is a chat with the key.
func (g *gateway) request(t *testing.T, body io.Reader, plaintext string) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, g.url+"/v1/chat/completions?x=1", body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("authorization", "Bearer "+plaintext)
	req.Header.Set("content-type", "application/json")
	return req
}

// reply is a response that has been read.
type reply struct {
	status int
	header http.Header
	body   string
}

func do(t *testing.T, client *http.Client, req *http.Request) reply {
	t.Helper()
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return reply{resp.StatusCode, resp.Header, string(body)}
}

// unsized hides a body's length, so that it is sent in chunks.
func unsized(s string) io.Reader { return io.MultiReader(strings.NewReader(s)) }

func TestEnvoyForwards(t *testing.T) {
	t.Parallel()
	f := newFixture(t, fixtureOptions{})
	up := newUpstream(t, &f.plaintext)
	g := startGateway(t, f.socket, up)
	rewritten := chat("gpt-upstream-2026")
	for name, tc := range map[string]struct {
		client  *http.Client
		body    io.Reader
		headers map[string]string
		trailer bool
		want    received // Path and Credential are the same for all
	}{
		"a rewritten body has its exact length": {
			client: g.client, body: strings.NewReader(chat("gpt")),
			want: received{Body: rewritten, ContentLength: int64(len(rewritten))},
		},
		"a rewritten body has its exact length over HTTP/2": {
			client: g.h2, body: strings.NewReader(chat("gpt")),
			want: received{Body: rewritten, ContentLength: int64(len(rewritten))},
		},
		"a body that came in chunks has its length once it is rewritten": {
			client: g.client, body: unsized(chat("gpt")),
			want: received{Body: rewritten, ContentLength: int64(len(rewritten))},
		},
		"a body that is not rewritten stays as it came": {
			client: g.client, body: strings.NewReader(chat("same")),
			want: received{Body: chat("same"), ContentLength: int64(len(chat("same")))},
		},
		"a body that came in chunks and is not rewritten goes on in chunks": {
			client: g.client, body: unsized(chat("same")),
			want: received{Body: chat("same"), ContentLength: -1, Chunked: true},
		},
		"a body with trailers is decided whole": {
			client: g.h2, body: unsized(chat("gpt")), trailer: true,
			want: received{Body: rewritten, ContentLength: int64(len(rewritten))},
		},
		"the key in another header does not reach the provider": {
			client: g.client, body: strings.NewReader(chat("same")),
			headers: map[string]string{"x-api-key": f.plaintext, "api-key": f.plaintext, "x-own": "k=" + f.plaintext},
			want:    received{Body: chat("same"), ContentLength: int64(len(chat("same")))},
		},
		"the caller cannot choose the provider": {
			client: g.client, body: strings.NewReader(chat("same")),
			headers: map[string]string{policy.ProviderHeader: "beta"},
			want:    received{Body: chat("same"), ContentLength: int64(len(chat("same")))},
		},
	} {
		t.Run(name, func(t *testing.T) {
			req := g.request(t, tc.body, f.plaintext)
			for name, value := range tc.headers {
				req.Header.Set(name, value)
			}
			if tc.trailer {
				req.Trailer = http.Header{"X-Trailer": {"1"}}
			}
			resp := do(t, tc.client, req)
			if resp.status != http.StatusOK {
				t.Fatalf("status %d: %s", resp.status, resp.body)
			}
			var got received
			if err := json.Unmarshal([]byte(resp.body), &got); err != nil {
				t.Fatal(err)
			}
			tc.want.Path, tc.want.Credential = "/api/v1/chat/completions?x=1", "Bearer "+credential
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("what the provider got (-want +got):\n%s", diff)
			}
		})
	}
	if n := f.faults.violations.Load() + f.faults.panics.Load(); n != 0 {
		t.Errorf("%d faults: %s", n, f.log.String())
	}
}

func TestEnvoyAnswers(t *testing.T) {
	t.Parallel()
	f := newFixture(t, fixtureOptions{})
	g := startGateway(t, f.socket, newUpstream(t, &f.plaintext))
	for name, tc := range map[string]struct {
		plaintext string
		body      string
		status    int
		want      string
	}{
		"an unknown key is refused while the body is still to come": {
			plaintext: "lk_nobody", body: strings.Repeat(" ", 1<<20), status: 401, want: "malformed",
		},
		"an unknown model is refused":              {plaintext: f.plaintext, body: chat("nonsense"), status: 404, want: "model_not_found"},
		"a body that Envoy finds too large is too": {plaintext: f.plaintext, body: strings.Repeat(" ", policy.DefaultMaxRequestBytes+1), status: 413},
	} {
		t.Run(name, func(t *testing.T) {
			resp := do(t, g.h2, g.request(t, strings.NewReader(tc.body), tc.plaintext))
			if resp.status != tc.status || !strings.Contains(resp.body, tc.want) {
				t.Errorf("status %d: %s", resp.status, resp.body)
			}
			if got := resp.header.Get("content-type"); got != "application/json" || !json.Valid([]byte(resp.body)) {
				t.Errorf("content-type %q, body %s", got, resp.body)
			}
			if resp.header.Get("x-request-id") == "" {
				t.Error("no x-request-id")
			}
		})
	}
	if n := f.faults.violations.Load(); n != 0 {
		t.Errorf("%d violations: %s", n, f.log.String())
	}
}

// A body of the maximum passes Envoy's buffer and gRPC's alike.
func TestEnvoyTakesBodiesUpToTheMaximum(t *testing.T) {
	t.Parallel()
	f := newFixture(t, fixtureOptions{})
	g := startGateway(t, f.socket, newUpstream(t, &f.plaintext))
	body := chat("same")
	body += strings.Repeat(" ", policy.DefaultMaxRequestBytes-len(body))
	resp := do(t, g.client, g.request(t, strings.NewReader(body), f.plaintext))
	if resp.status != http.StatusOK {
		t.Fatalf("status %d: %.300s", resp.status, resp.body)
	}
}

func TestEnvoyAsksForManyRequestsAtOnce(t *testing.T) {
	t.Parallel()
	f := newFixture(t, fixtureOptions{})
	up := newUpstream(t, &f.plaintext)
	g := startGateway(t, f.socket, up)
	const many = 300
	results := make(chan error, many)
	var all sync.WaitGroup
	for range many {
		all.Go(func() {
			req := g.request(t, strings.NewReader(chat("gpt")), f.plaintext)
			resp, err := g.client.Do(req)
			if err != nil {
				results <- err
				return
			}
			defer func() { _ = resp.Body.Close() }()
			if body, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK {
				results <- fmt.Errorf("status %d: %s (%w)", resp.StatusCode, body, err)
			}
		})
	}
	all.Wait()
	close(results)
	for err := range results {
		t.Error(err)
	}
}

// An enforcer that ends leaves the responses alone that are under way, lets nobody else through, and is found again when it is back.
func TestEnvoyWithAnEnforcerThatComesAndGoes(t *testing.T) {
	t.Parallel()
	f := newFixture(t, fixtureOptions{})
	up := newUpstream(t, &f.plaintext)
	g := startGateway(t, f.socket, up)

	req := g.request(t, strings.NewReader(chat("same")), f.plaintext)
	req.Header.Set("x-test", "stream")
	streaming, err := g.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = streaming.Body.Close() }()
	lines := bufio.NewReader(streaming.Body)
	if line, err := lines.ReadString('\n'); err != nil || line != "data: first\n" {
		t.Fatalf("the stream began with %q, %v", line, err)
	}

	f.stop()
	if err := <-f.stopped; err != nil { // though the response is still under way
		t.Fatal(err)
	}
	resp := do(t, g.client, g.request(t, strings.NewReader(chat("same")), f.plaintext))
	if resp.status != http.StatusServiceUnavailable || !json.Valid([]byte(resp.body)) {
		t.Errorf("without an enforcer: status %d, %s", resp.status, resp.body)
	}
	close(up.release)
	rest, err := io.ReadAll(lines)
	if err != nil || !strings.HasSuffix(string(rest), "data: last\n\n") {
		t.Errorf("the stream ended with %q, %v", rest, err)
	}

	serve(t, f.socket, NewAdapter(f.engine, f.faults, slog.New(slog.DiscardHandler)),
		ServeOptions{MaxRequestBytes: policy.DefaultMaxRequestBytes, StopGrace: patience})
	waitFor(t, "Envoy to find the enforcer again", func() bool {
		return do(t, g.client, g.request(t, strings.NewReader(chat("same")), f.plaintext)).status == http.StatusOK
	})
}

func TestEnvoyRefusesWhenTheEngineFails(t *testing.T) {
	t.Parallel()
	f := newFixture(t, fixtureOptions{engine: faulty(func() (*enforce.Exchange, *enforce.Answer) { return nil, nil })})
	g := startGateway(t, f.socket, newUpstream(t, &f.plaintext))
	resp := do(t, g.client, g.request(t, strings.NewReader(chat("same")), f.plaintext))
	if resp.status != http.StatusServiceUnavailable || !strings.Contains(resp.body, "server_error") {
		t.Errorf("status %d: %s", resp.status, resp.body)
	}
	if got := f.faults.panics.Load(); got != 1 {
		t.Errorf("%d panics counted", got)
	}
}
