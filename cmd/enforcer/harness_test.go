package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	filterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/latchkey-dev/latchkey/internal/certs"
	"github.com/latchkey-dev/latchkey/internal/key"
	"github.com/latchkey-dev/latchkey/internal/keyset"
	"github.com/latchkey-dev/latchkey/internal/policy"
	"github.com/latchkey-dev/latchkey/internal/usage"
	"github.com/latchkey-dev/latchkey/internal/xds"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 30 * time.Second

// eventually polls until the condition holds.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-ctx.Done():
			t.Fatalf("waited in vain for %s", what)
		case <-tick.C:
		}
	}
}

// world is the certificates, the directories and the policy of a test, which control planes and enforcers share.
type world struct {
	dir       string
	cfg       config
	authority certs.Bundle
	cache     *keyset.Cache
	plaintext key.Plaintext
	port      *port
	known     *knownUsage
	now       time.Time
}

func newWorld(t *testing.T) *world {
	t.Helper()
	dir, err := os.MkdirTemp("", "lk") //nolint:usetesting // the path of t.TempDir can be too long for the socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	w := &world{dir: dir, now: time.Now(), known: &knownUsage{}, cache: keyset.NewCache(keyset.SystemClock{})}
	w.cfg = config{
		xdsServerName: certs.ServerName, certDir: filepath.Join(dir, "certs"), socket: filepath.Join(dir, "run", "s"),
		stateDir: filepath.Join(dir, "state"), nodeID: "enforcer-test", metricsAddress: "127.0.0.1:0",
		maxRequestBytes: policy.DefaultMaxRequestBytes, startGrace: patience, accessLog: accessLogRefused,
	}
	w.port = newPort(t)
	w.cfg.xdsAddress = w.port.Addr().String()
	w.renewCertificates(t)
	if w.plaintext, err = key.Mint(rand.Reader); err != nil {
		t.Fatal(err)
	}
	w.publish(policy.StateEnabled)
	return w
}

// renewCertificates makes a new authority, and the enforcer's certificate by it.
func (w *world) renewCertificates(t *testing.T) {
	t.Helper()
	var err error
	if w.authority, err = certs.NewAuthority(w.now); err != nil {
		t.Fatal(err)
	}
	_, enforcer, _ := certs.Identities()
	bundle, err := certs.Issue(w.authority, enforcer, w.now)
	if err != nil {
		t.Fatal(err)
	}
	if err := bundle.Write(w.cfg.certDir); err != nil {
		t.Fatal(err)
	}
}

// publish puts the policy set into the cache, with the key in the state.
func (w *world) publish(state policy.State) {
	system := policy.DefaultSystem()
	w.cache.Update([]keyset.Resource{
		keyset.EncodeSystem(&system),
		keyset.EncodeApplication(&policy.Application{
			UID: "app-1", Namespace: "team", Name: "shop", DisplayName: "Shop", State: policy.StateEnabled,
			Capabilities: policy.AllCapabilities, Models: policy.ModelScope{All: true},
			Limits: policy.NoRateLimits(), Budgets: policy.NoBudgets(),
		}),
		keyset.EncodeKey(&policy.Key{
			UID: "key-1", Namespace: "team", Name: "shop-key", DisplayName: "Shop's key", Application: "shop", State: state,
			Credentials:  []policy.Credential{{Hash: w.plaintext.Hash(), Prefix: w.plaintext.Prefix()}},
			Capabilities: policy.AllCapabilities, Models: policy.ModelScope{All: true},
			Limits: policy.NoRateLimits(), Budgets: policy.NoBudgets(),
		}),
		keyset.EncodeModel(&policy.Model{
			Name: "gpt", UpstreamName: "gpt", Provider: "alpha", Format: policy.FormatOpenAI, Capabilities: policy.AllCapabilities,
		}),
	}, nil)
}

// serveControlPlane runs the real xDS server until stop is called. It can be called again then.
func (w *world) serveControlPlane(t *testing.T) (stop func()) {
	t.Helper()
	ln := w.port.lease()
	id, _, _ := certs.Identities()
	bundle, err := certs.Issue(w.authority, id, w.now)
	if err != nil {
		t.Fatal(err)
	}
	receiver, err := usage.NewReceiver(w.known, prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	server, err := xds.New(xds.Config{
		Services: []func(grpc.ServiceRegistrar){receiver.Register},
		TLS:      certs.Server(func() (certs.Bundle, error) { return bundle, nil }),
		KeySet:   w.cache,
		Envoy:    cache.NewSnapshotCache(true, xds.EnvoyGroup{}, nil),
		Log:      logr.Discard(),
		Metrics:  prometheus.NewRegistry(),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx, ln) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("control plane: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// knownUsage is what a control plane knows of usage. It implements usage.Sink.
type knownUsage struct {
	mu   sync.Mutex
	rows map[string]usage.Row
}

func (k *knownUsage) Report(_ context.Context, rows []usage.Row) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.rows == nil {
		k.rows = map[string]usage.Row{}
	}
	for _, r := range rows {
		k.rows[r.ID] = r
	}
	return nil
}

func (k *knownUsage) Recall(_ context.Context, send func([]usage.Row) error) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return send(slices.Collect(maps.Values(k.rows)))
}

// running is an enforcer under way.
type running struct {
	pages   string        // base URL
	debug   string        // base URL of the debug pages, where they are asked for
	debugAt chan net.Addr // told when they open
	log     *lockedBuffer
	stop    func() error // asks it to end, and gives what run returned
}

func (w *world) start(t *testing.T) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{log: &lockedBuffer{}, debugAt: make(chan net.Addr, 1)}
	at, ended := make(chan net.Addr, 1), make(chan error, 1)
	go func() {
		ended <- run(ctx, w.cfg, dependencies{
			log:     slog.New(slog.NewJSONHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
			now:     time.Now,
			pagesAt: func(a net.Addr) { at <- a },
			debugAt: func(a net.Addr) { r.debugAt <- a },
		})
	}()
	r.stop = sync.OnceValue(func() error { cancel(); return <-ended })
	t.Cleanup(func() {
		if err := r.stop(); err != nil {
			t.Errorf("run: %v", err)
		}
		if t.Failed() {
			t.Logf("the enforcer's log:\n%s", r.log.String())
		}
	})
	select {
	case a := <-at:
		r.pages = "http://" + a.String()
	case err := <-ended:
		ended <- err
		t.Fatalf("run: %v", err)
	}
	if w.cfg.debugAddress != "" {
		select {
		case a := <-r.debugAt:
			r.debug = "http://" + a.String()
		case err := <-ended:
			ended <- err
			t.Fatalf("run: %v", err)
		}
	}
	return r
}

// get reads a page of the metrics address.
func (r *running) get(t *testing.T, path string) (int, string) {
	t.Helper()
	return read(t, r.pages+path)
}

func read(t *testing.T, url string) (int, string) {
	t.Helper()
	transport := &http.Transport{DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := (&http.Client{Transport: transport, Timeout: patience}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// ready reads the readiness page.
func (r *running) ready(t *testing.T) (int, readiness) {
	t.Helper()
	code, body := r.get(t, "/readyz")
	var page readiness
	if err := json.Unmarshal([]byte(body), &page); err != nil {
		t.Fatalf("readiness page %q: %v", body, err)
	}
	return code, page
}

func (r *running) awaitReady(t *testing.T, source string) readiness {
	t.Helper()
	var page readiness
	eventually(t, "readiness from "+source, func() bool {
		var code int
		code, page = r.ready(t)
		return code == http.StatusOK && page.Source == source
	})
	return page
}

// call asks as Envoy would for a chat with the key, and gives the status of the refusal, or 0 and the provider.
func (w *world) call(t *testing.T, plaintext string) (status int, provider string) {
	t.Helper()
	return w.send(t, `{"model":"gpt","messages":[]}`, [][2]string{
		{":method", "POST"}, {":path", "/v1/chat/completions"}, {"authorization", "Bearer " + plaintext}, {"x-request-id", "req-1"},
	})
}

// send asks as Envoy would, with the method POST if no other is given.
func (w *world) send(t *testing.T, body string, fields [][2]string) (status int, provider string) {
	t.Helper()
	if !slices.ContainsFunc(fields, func(f [2]string) bool { return f[0] == ":method" }) {
		fields = append([][2]string{{":method", "POST"}}, fields...)
	}
	conn, err := grpc.NewClient("unix://"+w.cfg.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	stream, err := extprocv3.NewExternalProcessorClient(conn).Process(ctx)
	if err != nil {
		t.Fatal(err)
	}
	ask := func(req *extprocv3.ProcessingRequest) *extprocv3.ProcessingResponse {
		if err := stream.Send(req); err != nil {
			t.Fatal(err)
		}
		resp, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	headers := &corev3.HeaderMap{}
	for _, h := range fields {
		headers.Headers = append(headers.Headers, &corev3.HeaderValue{Key: h[0], RawValue: []byte(h[1])})
	}
	resp := ask(&extprocv3.ProcessingRequest{
		Request:        &extprocv3.ProcessingRequest_RequestHeaders{RequestHeaders: &extprocv3.HttpHeaders{Headers: headers}},
		ProtocolConfig: &extprocv3.ProtocolConfiguration{RequestBodyMode: filterv3.ProcessingMode_BUFFERED, ResponseBodyMode: filterv3.ProcessingMode_STREAMED},
	})
	if resp.GetImmediateResponse() == nil {
		resp = ask(&extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_RequestBody{
			RequestBody: &extprocv3.HttpBody{Body: []byte(body), EndOfStream: true},
		}})
	}
	if answer := resp.GetImmediateResponse(); answer != nil {
		return int(answer.GetStatus().GetCode()), ""
	}
	for _, h := range resp.GetRequestBody().GetResponse().GetHeaderMutation().GetSetHeaders() {
		if h.GetHeader().GetKey() == policy.ProviderHeader {
			provider = string(h.GetHeader().GetRawValue())
		}
	}
	return 0, provider
}

type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
