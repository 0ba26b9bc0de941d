package extproc

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/latchkey-dev/latchkey/internal/enforce"
	"github.com/latchkey-dev/latchkey/internal/key"
	"github.com/latchkey-dev/latchkey/internal/ledger"
	"github.com/latchkey-dev/latchkey/internal/money"
	"github.com/latchkey-dev/latchkey/internal/policy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 30 * time.Second

// fixture is a real engine with a real table, served on a unix socket.
type fixture struct {
	table     *enforce.Table
	engine    *enforce.Engine
	ledger    ledger.Ledger
	plaintext string // of a key that may do all
	socket    string
	faults    *countedFaults
	decisions *decisions
	log       *lockedBuffer
	client    extprocv3.ExternalProcessorClient
	stop      context.CancelFunc // begins the graceful stop
	stopped   <-chan error
}

type countedFaults struct{ panics, violations atomic.Int64 }

func (f *countedFaults) Panicked() { f.panics.Add(1) }
func (f *countedFaults) Violated() { f.violations.Add(1) }

type decisions struct {
	mu        sync.Mutex
	list      []enforce.Decision
	meterings []enforce.Metering
}

func (d *decisions) Metered(m enforce.Metering) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.meterings = append(d.meterings, m)
}

func (d *decisions) LedgerFailed(error) {}

func (d *decisions) Decided(decision enforce.Decision) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.list = append(d.list, decision)
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

type fixtureOptions struct {
	engine    Engine // nil: the real one
	stopGrace time.Duration
	watch     time.Duration
	max       int
}

func newFixture(t *testing.T, opts fixtureOptions) *fixture {
	t.Helper()
	if opts.stopGrace == 0 {
		opts.stopGrace = patience
	}
	if opts.max == 0 {
		opts.max = policy.DefaultMaxRequestBytes
	}
	plaintext, err := key.Mint(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{
		table: enforce.NewTable(), plaintext: plaintext.Reveal(), faults: &countedFaults{}, decisions: &decisions{}, log: &lockedBuffer{},
		socket: filepath.Join(socketDir(t), "s"),
	}
	if err := f.table.Replace(policySet(plaintext)); err != nil {
		t.Fatal(err)
	}
	counts, err := ledger.Open(ledger.Options{Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := counts.Close(); err != nil {
			t.Error(err)
		}
	})
	f.ledger = counts
	f.engine, err = enforce.New(enforce.Options{Table: f.table, Ledger: counts, Observer: f.decisions, Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	if opts.engine == nil {
		opts.engine = f.engine
	}
	adapter := NewAdapter(opts.engine, f.faults, slog.New(slog.NewJSONHandler(f.log, nil)))
	f.stop, f.stopped = serve(t, f.socket, adapter, ServeOptions{MaxRequestBytes: opts.max, StopGrace: opts.stopGrace, WatchGrace: opts.watch})

	conn, err := grpc.NewClient("unix://"+f.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	f.client = extprocv3.NewExternalProcessorClient(conn)
	return f
}

// serve runs Serve until stop is called or the test ends.
func serve(t *testing.T, socket string, adapter *Adapter, opts ServeOptions) (stop context.CancelFunc, stopped <-chan error) {
	t.Helper()
	ln, err := Listen(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	result := make(chan error, 1)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		result <- Serve(ctx, ln, adapter, opts)
	}()
	t.Cleanup(func() { cancel(); <-ended })
	return cancel, result
}

// policySet lets the key do all, with a model that has another name at the provider, and one that has the same.
func policySet(plaintext key.Plaintext) *policy.Delta {
	system := policy.DefaultSystem()
	system.RequestsPerMinute.Default, system.RequestsPerMinute.Max = 1_000_000, 1_000_000
	system.TokensPerMinute.Default, system.TokensPerMinute.Max = 1_000_000_000, 1_000_000_000
	return &policy.Delta{
		System: &system,
		Applications: []*policy.Application{{
			UID: "app-1", Namespace: "team", Name: "shop", DisplayName: "Shop", State: policy.StateEnabled,
			Capabilities: policy.AllCapabilities, Models: policy.ModelScope{All: true},
			Limits: policy.NoRateLimits(), Budgets: policy.NoBudgets(),
		}},
		Keys: []*policy.Key{{
			UID: "key-1", Namespace: "team", Name: "shop-key", DisplayName: "Shop's key", Application: "shop", State: policy.StateEnabled,
			Credentials:  []policy.Credential{{Hash: plaintext.Hash(), Prefix: plaintext.Prefix()}},
			Capabilities: policy.AllCapabilities, Models: policy.ModelScope{All: true},
			Limits: policy.NoRateLimits(), Budgets: policy.NoBudgets(),
		}},
		Models: []*policy.Model{
			{Name: "gpt", UpstreamName: "gpt-upstream-2026", Provider: "alpha", Format: policy.FormatOpenAI, Capabilities: policy.AllCapabilities},
			{Name: "same", UpstreamName: "same", Provider: "alpha", Format: policy.FormatOpenAI, Capabilities: policy.AllCapabilities, Prices: testPrices()},
			{Name: "nowhere", UpstreamName: "x", Provider: "unheard-of", Format: policy.FormatOpenAI, Capabilities: policy.AllCapabilities, Prices: testPrices()},
			{Name: "claude", UpstreamName: "claude", Provider: "beta", Format: policy.FormatAnthropic, Capabilities: policy.AllCapabilities},
		},
	}
}

// testPrices are 1,000 nano-units an input token, and 10,000 an output token.
func testPrices() *policy.Prices {
	p := policy.NoPrices()
	p.Input, p.Output = money.Unit, 10*money.Unit
	return &p
}

// dialogue is one stream, as Envoy holds it: a message, its answer, the next message.
type dialogue struct {
	t      *testing.T
	stream extprocv3.ExternalProcessor_ProcessClient
}

func (f *fixture) begin(t *testing.T) dialogue {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	stream, err := f.client.Process(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return dialogue{t, stream}
}

func (d dialogue) ask(req *extprocv3.ProcessingRequest) *extprocv3.ProcessingResponse {
	d.t.Helper()
	if err := d.stream.Send(req); err != nil {
		d.t.Fatalf("send: %v", err)
	}
	resp, err := d.stream.Recv()
	if err != nil {
		d.t.Fatalf("receive: %v", err)
	}
	return resp
}

// ended fails the test unless the server has ended the stream in good order.
func (d dialogue) ended() {
	d.t.Helper()
	if resp, err := d.stream.Recv(); !errors.Is(err, io.EOF) {
		d.t.Fatalf("the stream goes on: %v, %v", resp, err)
	}
}

func headerMap(pairs ...string) *corev3.HeaderMap {
	m := &corev3.HeaderMap{}
	for i := 0; i < len(pairs); i += 2 {
		m.Headers = append(m.Headers, &corev3.HeaderValue{Key: pairs[i], RawValue: []byte(pairs[i+1])})
	}
	return m
}

func requestHeaders(endStream bool, pairs ...string) *extprocv3.ProcessingRequest {
	return &extprocv3.ProcessingRequest{
		Request: &extprocv3.ProcessingRequest_RequestHeaders{
			RequestHeaders: &extprocv3.HttpHeaders{Headers: headerMap(pairs...), EndOfStream: endStream},
		},
		ProtocolConfig: &extprocv3.ProtocolConfiguration{RequestBodyMode: buffered, ResponseBodyMode: streamed},
	}
}

func (f *fixture) post(path string, pairs ...string) *extprocv3.ProcessingRequest {
	return requestHeaders(false, append([]string{
		":method", "POST", ":path", path, ":authority", "gw", ":scheme", "http",
		"authorization", "Bearer " + f.plaintext, "content-type", "application/json", "x-request-id", "req-1",
	}, pairs...)...)
}

func requestBody(body string) *extprocv3.ProcessingRequest {
	return &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_RequestBody{
		RequestBody: &extprocv3.HttpBody{Body: []byte(body), EndOfStream: true},
	}}
}

func responseHeaders(pairs ...string) *extprocv3.ProcessingRequest {
	return &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_ResponseHeaders{
		ResponseHeaders: &extprocv3.HttpHeaders{Headers: headerMap(pairs...)},
	}}
}
