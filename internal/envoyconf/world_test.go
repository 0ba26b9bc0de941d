package envoyconf

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/latchkey-dev/latchkey/internal/policy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	callersKey        = "lk_the-callers-own-key"
	providerSecret    = "the-credential-of-the-provider"
	testRequestLimit  = 3 << 20
	openAICompletions = "/v1/chat/completions"
	twin              = "-anthropic"
)

// world is an Envoy between callers, an enforcer and a provider, all of them real.
type world struct {
	*envoy
	owner    *testing.T // whose end is the world's, whichever subtest restarts a part
	enforcer *enforcer
	socket   string
	stop     func() // of the enforcer
	upstream *upstream
}

func newWorld(t *testing.T, change ...func(*Config)) *world {
	t.Helper()
	w := &world{owner: t, enforcer: &enforcer{}, socket: filepath.Join(shortDir(t), "enforcer.sock"), upstream: &upstream{}}
	w.stop = w.enforcer.serve(t, w.socket)
	config := Config{
		GatewayAddress: "127.0.0.1", EnforcerSocket: w.socket, EnforcerTimeout: patience, MaxRequestBytes: testRequestLimit, AccessLog: true,
	}
	for _, c := range change {
		c(&config)
	}
	w.envoy = startEnvoy(t, config)
	return w
}

// restart brings the enforcer back, and returns once Envoy has found it.
func (w *world) restart(t *testing.T) {
	t.Helper()
	before := w.enforcer.planned()
	w.stop = w.enforcer.serve(w.owner, w.socket)
	w.enforcer.follow(plan{answer: &answer{200, "application/json", "{}"}})
	eventually(t, "Envoy to find the enforcer again", func() error {
		if res := w.post(t, openAICompletions, "{}", nil); res.status != http.StatusOK {
			return fmt.Errorf("%+v", res)
		}
		return nil
	})
	w.enforcer.follow(before)
}

// upstream is a provider's API that remembers what reached it.
type upstream struct {
	mu      sync.Mutex
	handler http.HandlerFunc
	seen    []arrived
}

type arrived struct {
	uri, host string
	major     int
	chunked   bool
	headers   http.Header
	body      string
}

// ServeHTTP implements http.Handler.
func (u *upstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	u.mu.Lock()
	u.seen = append(u.seen, arrived{r.RequestURI, r.Host, r.ProtoMajor, len(r.TransferEncoding) > 0, r.Header.Clone(), string(body)})
	handler := u.handler
	u.mu.Unlock()
	if handler == nil {
		handler = func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "fine") }
	}
	handler(w, r)
}

func (u *upstream) follow(handler http.HandlerFunc) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.handler, u.seen = handler, nil
}

func (u *upstream) arrivals() []arrived {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.Clone(u.seen)
}

func (u *upstream) only(t *testing.T) arrived {
	t.Helper()
	all := u.arrivals()
	if len(all) != 1 {
		t.Fatalf("%d requests reached the provider instead of one", len(all))
	}
	return all[0]
}

// provider is the upstream as the policy knows it.
func provider(t *testing.T, name, rawURL string) policy.Provider {
	t.Helper()
	u, err := url.Parse(rawURL)
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.ParseUint(u.Port(), 10, 16)
	if err != nil {
		t.Fatal(err)
	}
	return policy.Provider{
		Name: name, Format: policy.FormatOpenAI, Scheme: u.Scheme, Host: u.Hostname(), Port: uint16(port), BasePath: u.Path,
		CredentialHeader: "authorization", CredentialPrefix: "Bearer ", Credential: providerSecret,
	}
}

func (w *world) request(t *testing.T, method, path string, body io.Reader, headers map[string]string) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://"+w.gateway, body)
	if err != nil {
		t.Fatal(err)
	}
	req.URL.Opaque = "//" + w.gateway + path // as it is, not as net/url would spell it
	if strings.Contains(path, "//") {
		req.URL.Opaque = path
	}
	req.Header.Set("Authorization", "Bearer "+callersKey)
	for name, value := range headers {
		req.Header.Set(name, value)
	}
	return req
}

// raw sends what no client of net/http's would.
func (w *world) raw(t *testing.T, request string) response {
	t.Helper()
	conn, err := net.Dial("tcp", w.gateway)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response{res.StatusCode, res.Header, string(body)}
}

type response struct {
	status  int
	headers http.Header
	body    string
}

func (w *world) post(t *testing.T, path, body string, headers map[string]string) response {
	t.Helper()
	return do(t, newClient(t, nil), w.request(t, http.MethodPost, path, strings.NewReader(body), headers))
}

func do(t *testing.T, client *http.Client, req *http.Request) response {
	t.Helper()
	res, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response{res.StatusCode, res.Header, string(body)}
}

// wantError checks for an error of the gateway's in the dialect, and returns its message.
func wantError(t *testing.T, res response, status int, dialect policy.Format, kind string) string {
	t.Helper()
	if res.status != status || res.headers.Get("Content-Type") != "application/json" {
		t.Fatalf("status %d and content type %q instead of %d and JSON: %s", res.status, res.headers.Get("Content-Type"), status, res.body)
	}
	if got := res.headers.Get("Content-Length"); got != strconv.Itoa(len(res.body)) {
		t.Errorf("content length %q for %d bytes", got, len(res.body))
	}
	blame := "true"
	if strings.Contains(res.body, "provider") {
		blame = policy.GatewayErrorOfProvider
	}
	if diff := cmp.Diff([]string{blame}, res.headers.Values(policy.GatewayErrorHeader)); diff != "" {
		t.Errorf("%s: %s", policy.GatewayErrorHeader, diff)
	}
	var got map[string]any
	if err := json.Unmarshal([]byte(res.body), &got); err != nil {
		t.Fatalf("%v: %s", err, res.body)
	}
	object, _ := got["error"].(map[string]any)
	message, _ := object["message"].(string)
	want := map[string]any{"error": map[string]any{"message": message, "type": kind, "param": nil, "code": nil}}
	if dialect == policy.FormatAnthropic {
		id := any(nil)
		if header := res.headers.Get("X-Request-Id"); header != "" {
			id = header
		}
		want = map[string]any{"type": "error", "error": map[string]any{"message": message, "type": kind}, "request_id": id}
	}
	if diff := cmp.Diff(want, got); diff != "" || message == "" {
		t.Fatalf("not an error of %v's: %s\n%s", dialect, res.body, diff)
	}
	return message
}

func (r response) wantRequestID(t *testing.T) {
	t.Helper()
	if len(r.headers["X-Request-Id"]) != 1 || len(r.headers.Get("X-Request-Id")) != 36 {
		t.Errorf("x-request-id is %q", r.headers["X-Request-Id"])
	}
}
