package envoyconf

import (
	"bufio"
	"bytes"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/latchkey-dev/latchkey/internal/certs"
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

func TestEnvoyTakesEveryGoldenCase(t *testing.T) {
	t.Parallel()
	e := startEnvoy(t, testGatewayConfig(t))
	for name, tc := range goldenCases(t) {
		t.Run(name, func(t *testing.T) {
			cfg := tc.config
			cfg.GatewayPort, cfg.SystemRoots = 0, "" // the port can be taken, and the file missing, on the machine of the test
			res, err := Build(cfg, tc.providers)
			if err != nil {
				t.Fatal(err)
			}
			e.set(t, res)
		})
	}
}

func testGatewayConfig(t *testing.T) Config {
	t.Helper()
	return Config{GatewayAddress: "127.0.0.1", EnforcerSocket: filepath.Join(shortDir(t), "enforcer.sock")}
}

func TestForwarding(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	server := httptest.NewServer(w.upstream)
	t.Cleanup(server.Close)
	w.publish(t,
		with(provider(t, "based", server.URL), func(p *policy.Provider) { p.BasePath = "/openai/v1" }),
		provider(t, "plain", server.URL),
		with(provider(t, "uncredentialed", server.URL), func(p *policy.Provider) { p.CredentialHeader, p.Credential = "", "" }),
		with(provider(t, "x-api-key", server.URL), func(p *policy.Provider) { p.CredentialHeader, p.CredentialPrefix = "x-api-key", "" }),
	)
	long := strings.Repeat("long ", 60_000)
	for name, tc := range map[string]struct {
		plan       plan
		method     string
		body       string
		uri        string
		wantBody   string
		credential http.Header
	}{
		"the base path takes the place of /v1 and the query stays": {
			plan: plan{provider: "based", path: "/v1/chat/completions?a=b%20c"}, body: "{}",
			uri: "/openai/v1/chat/completions?a=b%20c", wantBody: "{}", credential: http.Header{"Authorization": {"Bearer " + providerSecret}},
		},
		"an empty base path leaves nothing of /v1": {
			plan: plan{provider: "plain", path: openAICompletions}, body: "{}",
			uri: "/chat/completions", wantBody: "{}", credential: http.Header{"Authorization": {"Bearer " + providerSecret}},
		},
		"a credential in a header of its own, without a prefix": {
			plan: plan{provider: "x-api-key", path: openAICompletions}, body: "{}",
			uri: "/chat/completions", wantBody: "{}", credential: http.Header{"X-Api-Key": {providerSecret}},
		},
		"without a credential none is sent": {
			plan: plan{provider: "uncredentialed", path: openAICompletions}, body: "{}",
			uri: "/chat/completions", wantBody: "{}", credential: http.Header{},
		},
		"a longer body takes the place of the caller's": {
			plan: plan{provider: "plain", path: openAICompletions, body: []byte(long)}, body: "short",
			uri: "/chat/completions", wantBody: long, credential: http.Header{"Authorization": {"Bearer " + providerSecret}},
		},
		"a shorter body takes the place of the caller's": {
			plan: plan{provider: "plain", path: openAICompletions, body: []byte("short")}, body: long,
			uri: "/chat/completions", wantBody: "short", credential: http.Header{"Authorization": {"Bearer " + providerSecret}},
		},
		"a request without a body": {
			plan: plan{provider: "plain", path: "/v1/models"}, method: http.MethodGet,
			uri: "/models", credential: http.Header{"Authorization": {"Bearer " + providerSecret}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			w.enforcer.follow(tc.plan)
			w.upstream.follow(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Set-Cookie", "a=b")
				w.Header().Set("OpenAI-Organization", "org-1")
				w.Header().Set("OpenAI-Project", "proj-1")
				w.Header().Set("Server", "the provider's")
				fmt.Fprint(w, "fine")
			})
			unwanted := map[string]string{
				"X-Api-Key": callersKey, "Api-Key": callersKey, "Cookie": "k=" + callersKey, "Proxy-Authorization": "Basic " + callersKey,
				"X-Forwarded-For": "192.0.2.1", "X-Forwarded-Host": "host.example", "X-Real-Ip": "192.0.2.1", "Forwarded": "for=192.0.2.1", "Via": "1.1 p",
				"X-Latchkey-Provider": "x-api-key", "X-Latchkey-Other": "x", "X-Envoy-Retry-On": "5xx", "X-Envoy-Max-Retries": "3",
				"X-Envoy-Upstream-Rq-Timeout-Ms": "1", "OpenAI-Organization": "org-2", "OpenAI-Project": "proj-2", "Expect": "100-continue",
			}
			headers := map[string]string{"Content-Type": "application/json", "X-Stainless-Lang": "go", "Anthropic-Beta": "b", "X-Request-Id": "the-callers"}
			for k, v := range unwanted {
				headers[k] = v
			}
			method := http.MethodPost
			if tc.method != "" {
				method = tc.method
			}
			var body io.Reader
			if tc.body != "" {
				body = strings.NewReader(tc.body)
			}
			res := do(t, newClient(t, nil), w.request(t, method, "/some//path/../chat/completions", body, headers))
			if res.status != http.StatusOK || res.body != "fine" {
				t.Fatalf("%+v", res)
			}

			asked := w.enforcer.last(t)
			for header := range asked.head {
				if strings.HasPrefix(header, "x-latchkey-") || strings.HasPrefix(header, "x-envoy-retry") || strings.HasPrefix(header, "x-envoy-upstream") {
					t.Errorf("the caller's %s came as far as the enforcer", header)
				}
			}
			if diff := cmp.Diff([]string{"/some/chat/completions"}, asked.head[":path"]); diff != "" {
				t.Errorf("the enforcer was asked for another path: %s", diff)
			}
			if string(asked.body) != tc.body || asked.endStream != (tc.body == "") {
				t.Errorf("the enforcer saw %d bytes of the body instead of %d, end of stream %v", len(asked.body), len(tc.body), asked.endStream)
			}

			got := w.upstream.only(t)
			if got.uri != tc.uri || got.body != tc.wantBody || got.host != strings.TrimPrefix(server.URL, "http://") {
				t.Errorf("the provider got %s for %s with %d bytes", got.uri, got.host, len(got.body))
			}
			if length := got.headers.Get("Content-Length"); tc.body != "" && (got.chunked || length != strconv.Itoa(len(tc.wantBody))) {
				t.Errorf("the provider was told of %q bytes, chunked %v", length, got.chunked)
			}
			credential := http.Header{}
			for _, name := range []string{"Authorization", "X-Api-Key"} {
				if values := got.headers.Values(name); len(values) > 0 {
					credential[name] = values
				}
			}
			if diff := cmp.Diff(tc.credential, credential); diff != "" {
				t.Errorf("credential (-want +got): %s", diff)
			}
			for header, values := range got.headers {
				if _, bad := unwanted[header]; bad && tc.credential[header] == nil || strings.Contains(strings.Join(values, " "), callersKey) {
					t.Errorf("the provider got %s: %s", header, values)
				}
				if lower := strings.ToLower(header); strings.HasPrefix(lower, "x-envoy-") || strings.HasPrefix(lower, "x-forwarded-") || strings.HasPrefix(lower, "x-latchkey-") {
					t.Errorf("the provider got %s: %s", header, values)
				}
			}
			for _, header := range []string{"Content-Type", "X-Stainless-Lang", "Anthropic-Beta"} {
				if got.headers.Get(header) != headers[header] {
					t.Errorf("the provider did not get %s", header)
				}
			}

			res.wantRequestID(t)
			if id := res.headers.Get("X-Request-Id"); got.headers.Get("X-Request-Id") != id || asked.head["x-request-id"][0] != id {
				t.Error("the request has several ids")
			}
			for _, header := range []string{"Set-Cookie", "Openai-Organization", "Openai-Project", "X-Envoy-Upstream-Service-Time"} {
				if res.headers.Get(header) != "" {
					t.Errorf("the caller got %s", header)
				}
			}
			if got := res.headers.Get("Server"); got != "latchkey" {
				t.Errorf("the server calls itself %q", got)
			}
			if diff := cmp.Diff([]string{"200"}, asked.response[":status"]); diff != "" {
				t.Errorf("the enforcer was not told of the response: %s", diff)
			}
		})
	}
}

func TestAnswersOfTheEnforcerStayAsTheyAre(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	server := httptest.NewServer(w.upstream)
	t.Cleanup(server.Close)
	w.publish(t, provider(t, "plain", server.URL))
	denied := answer{401, "application/json", `{"error":{"message":"100% \"no\" – %REQ(AUTHORIZATION)%"}}` + "\n"}
	for name, tc := range map[string]struct {
		plan     plan
		want     answer
		upstream int
	}{
		"to the head":                         {plan{answer: &denied}, denied, 0},
		"to the body":                         {plan{answerToBody: &denied}, denied, 0},
		"to the response":                     {plan{provider: "plain", path: openAICompletions, onResponse: &answer{502, "application/json", "{}"}}, answer{502, "application/json", "{}"}, 1},
		"with a status that Envoy uses":       {plan{answer: &answer{413, "application/json", "{}"}}, answer{413, "application/json", "{}"}, 0},
		"a success, such as a list of models": {plan{answer: &answer{200, "application/json", `{"data":[]}`}}, answer{200, "application/json", `{"data":[]}`}, 0},
		"without a body":                      {plan{answer: &answer{204, "text/plain", ""}}, answer{204, "", ""}, 0},
	} {
		for _, path := range []string{openAICompletions, "/v1/messages"} {
			t.Run(name+" "+path, func(t *testing.T) {
				w.enforcer.follow(tc.plan)
				w.upstream.follow(nil)
				res := w.post(t, path, "{}", nil)
				if diff := cmp.Diff(tc.want, answer{res.status, res.headers.Get("Content-Type"), res.body}, cmp.AllowUnexported(answer{})); diff != "" {
					t.Errorf("-want +got:\n%s", diff)
				}
				if diff := cmp.Diff([]string{"the-enforcers"}, res.headers["X-Request-Id"]); diff != "" {
					t.Errorf("x-request-id: %s", diff)
				}
				if got := len(w.upstream.arrivals()); got != tc.upstream {
					t.Errorf("%d requests reached the provider", got)
				}
			})
		}
	}
}

func TestErrorsOfEnvoy(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	server := httptest.NewServer(w.upstream)
	t.Cleanup(server.Close)
	hold := make(chan struct{})
	t.Cleanup(func() { close(hold) })
	closed := httptest.NewServer(nil)
	closed.Close()
	var providers []policy.Provider
	for _, p := range []policy.Provider{
		provider(t, "down", closed.URL),
		with(provider(t, "idle", server.URL), func(p *policy.Provider) { p.IdleTimeout = 50 * time.Millisecond }),
		provider(t, "plain", server.URL),
		with(provider(t, "slow", server.URL), func(p *policy.Provider) { p.RequestTimeout = 50 * time.Millisecond }),
		with(provider(t, "unresolvable", closed.URL), func(p *policy.Provider) { p.Host = "does-not-exist.invalid" }),
	} {
		// The base path takes the place of the one by which the dialect could be told.
		p.BasePath = "/elsewhere/v1"
		providers = append(providers, p, with(p, func(p *policy.Provider) { p.Name, p.Format = p.Name+twin, policy.FormatAnthropic }))
	}
	w.publish(t, providers...)
	const messages, completions = "/v1/messages", openAICompletions
	to := func(provider, path string) plan { return plan{provider: provider, path: path} }
	holding := func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-hold:
		case <-r.Context().Done():
		}
	}
	tooLarge := strings.Repeat("x", testRequestLimit+1)
	dialects := map[string]struct {
		format  policy.Format
		path    string
		headers map[string]string
	}{
		"in OpenAI's dialect":                             {policy.FormatOpenAI, completions, nil},
		"in Anthropic's dialect, by the header":           {policy.FormatAnthropic, completions, map[string]string{"anthropic-version": "2023-06-01"}},
		"in Anthropic's dialect, by the path":             {policy.FormatAnthropic, messages, nil},
		"in Anthropic's dialect, by the path without /v1": {policy.FormatAnthropic, "/messages/count_tokens?beta=true", nil},
	}
	for name, tc := range map[string]struct {
		plan      plan
		upstream  http.HandlerFunc
		path      string
		body      string
		status    int
		openAI    string
		anthropic string
		message   string
	}{
		"the body is above the limit": {
			plan: to("plain", completions), body: tooLarge, status: 413, openAI: "invalid_request_error", anthropic: "request_too_large", message: strconv.Itoa(testRequestLimit),
		},
		"the enforcer names no provider": {
			plan: plan{}, status: 503, openAI: "server_error", anthropic: "api_error", message: "cannot decide",
		},
		"the enforcer names a provider that is not there": {
			plan: to("unknown", completions), status: 503, openAI: "server_error", anthropic: "api_error", message: "cannot decide",
		},
		"the enforcer sets a path that is not canonical": {
			plan: to("plain", "/v2"), path: "/v1/embeddings", status: 503, openAI: "server_error", anthropic: "api_error", message: "cannot decide",
		},
		"the enforcer changes what it must not": {
			plan:   plan{provider: "plain", path: completions, set: map[string]string{":authority": "elsewhere.example"}},
			status: 503, openAI: "server_error", anthropic: "api_error", message: "cannot decide",
		},
		"the provider does not answer in time": {
			plan: to("slow", completions), upstream: holding, status: 504, openAI: "server_error", anthropic: "api_error", message: "in time",
		},
		"the provider says nothing for too long": {
			plan: to("idle", completions), upstream: holding, status: 504, openAI: "server_error", anthropic: "api_error", message: "in time",
		},
		"the provider refuses the connection": {
			plan: to("down", completions), status: 503, openAI: "server_error", anthropic: "api_error", message: "cannot be reached",
		},
		"the provider's name does not resolve": {
			plan: to("unresolvable", completions), status: 503, openAI: "server_error", anthropic: "api_error", message: "cannot be reached",
		},
		"the provider closes the connection": {
			plan: to("plain", completions), upstream: func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
			status: 503, openAI: "server_error", anthropic: "api_error", message: "cannot be reached",
		},
		"the path has an encoded slash": {
			plan: to("plain", completions), path: "/v1%2Fchat/completions", status: 400, openAI: "invalid_request_error", anthropic: "invalid_request_error", message: "cannot accept",
		},
	} {
		for dialect, d := range dialects {
			if tc.path != "" && d.path != completions {
				continue // the path is what is wrong, and tells no dialect
			}
			t.Run(name+" "+dialect, func(t *testing.T) {
				p, path := tc.plan, d.path
				if d.path != completions && p.path == completions {
					p.path, p.provider = messages, p.provider+twin
				}
				if tc.path != "" {
					path = tc.path
				}
				w.enforcer.follow(p)
				w.upstream.follow(tc.upstream)
				body := "{}"
				if tc.body != "" {
					body = tc.body
				}
				res := w.post(t, path, body, d.headers)
				kind := tc.openAI
				if d.format == policy.FormatAnthropic {
					kind = tc.anthropic
				}
				if got := wantError(t, res, tc.status, d.format, kind); !strings.Contains(got, tc.message) {
					t.Errorf("the message is %q", got)
				}
				if tc.path == "" {
					res.wantRequestID(t)
				}
				if strings.Contains(res.body, callersKey) || strings.Contains(res.body, "127.0.0.1") {
					t.Errorf("the error says too much: %s", res.body)
				}
			})
		}
	}
	t.Run("while the enforcer is away everything is refused, and once it is back everything goes on", func(t *testing.T) {
		w.upstream.follow(nil)
		w.enforcer.follow(to("plain", completions))
		w.stop()
		for path, dialect := range map[string]policy.Format{completions: policy.FormatOpenAI, messages: policy.FormatAnthropic} {
			kind := map[policy.Format]string{policy.FormatOpenAI: "server_error", policy.FormatAnthropic: "api_error"}[dialect]
			res := w.post(t, path, "{}", nil)
			if got := wantError(t, res, 503, dialect, kind); !strings.Contains(got, "cannot decide") {
				t.Errorf("the message is %q", got)
			}
			res.wantRequestID(t)
		}
		if got := len(w.upstream.arrivals()); got != 0 {
			t.Errorf("%d requests reached the provider", got)
		}
		w.restart(t)
		if res := w.post(t, completions, "{}", nil); res.status != http.StatusOK {
			t.Errorf("%+v", res)
		}
	})
}

func TestAnEnforcerThatIsSilentRefuses(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *Config) { c.EnforcerTimeout = 50 * time.Millisecond })
	w.enforcer.follow(plan{silent: true})
	wantError(t, w.post(t, openAICompletions, "{}", nil), 503, policy.FormatOpenAI, "server_error")
	wantError(t, w.post(t, "/v1/messages", "{}", nil), 503, policy.FormatAnthropic, "api_error")
}

func TestTunnelsAreTheEnforcersToRefuse(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.enforcer.follow(plan{answer: &answer{404, "application/json", "{}"}})
	if got := w.raw(t, "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n"); got.status != 404 || got.body != "{}" {
		t.Errorf("%+v", got)
	}
	if path, ok := w.enforcer.last(t).head[":path"]; ok {
		t.Errorf("the enforcer was told of a path: %q", path)
	}
}

func TestAHeaderOverTwoLinesArrivesAsOne(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.enforcer.follow(plan{answer: &answer{200, "application/json", "{}"}})
	w.raw(t, "GET /v1/x HTTP/1.1\r\nHost: a\r\nx-api-key: b\r\n c\r\n\r\n")
	if diff := cmp.Diff([]string{"b c"}, w.enforcer.last(t).head["x-api-key"]); diff != "" {
		t.Error(diff)
	}
}

func TestLimitOfBodies(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	server := httptest.NewServer(w.upstream)
	t.Cleanup(server.Close)
	w.publish(t, provider(t, "plain", server.URL))
	for name, transport := range map[string]func() *http.Transport{
		"HTTP/1.1": func() *http.Transport { return &http.Transport{} },
		"HTTP/2 in cleartext": func() *http.Transport {
			protocols := new(http.Protocols)
			protocols.SetUnencryptedHTTP2(true)
			return &http.Transport{Protocols: protocols}
		},
	} {
		for size, status := range map[int]int{0: 200, 1 << 20: 200, 2 << 20: 200, testRequestLimit: 200, testRequestLimit + 1: 413, 2 * testRequestLimit: 413} {
			for _, declared := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s, %d bytes, length declared %v", name, size, declared), func(t *testing.T) {
					w.enforcer.follow(plan{provider: "plain", path: openAICompletions})
					w.upstream.follow(nil)
					content := bytes.Repeat([]byte("x"), size)
					var body io.Reader = bytes.NewReader(content)
					if !declared {
						body = io.MultiReader(body)
					}
					res := do(t, newClient(t, transport()), w.request(t, http.MethodPost, openAICompletions, body, nil))
					if status == 413 {
						wantError(t, res, 413, policy.FormatOpenAI, "invalid_request_error")
						return
					}
					if got := w.upstream.only(t); res.status != 200 || got.body != string(content) {
						t.Errorf("status %d, %d bytes reached the provider", res.status, len(got.body))
					}
				})
			}
		}
	}
}

func TestStreamsAreNotHeldUp(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	server := httptest.NewServer(w.upstream)
	t.Cleanup(server.Close)
	w.publish(t, provider(t, "plain", server.URL))
	for name, tc := range map[string]struct{ leave, die bool }{
		"while the enforcer stays":                       {},
		"after the enforcer has ended its part":          {leave: true},
		"after the enforcer has ended its part and died": {leave: true, die: true},
	} {
		t.Run(name, func(t *testing.T) {
			next := make(chan string, 2)
			w.enforcer.follow(plan{provider: "plain", path: openAICompletions, leave: tc.leave})
			w.upstream.follow(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "text/event-stream")
				for chunk := range next {
					fmt.Fprint(w, chunk)
					_ = http.NewResponseController(w).Flush()
				}
			})
			done := sync.OnceFunc(func() { close(next) })
			defer done()
			next <- "data: 1\n"
			res, err := newClient(t, nil).Do(w.request(t, http.MethodPost, openAICompletions, strings.NewReader("{}"), nil))
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			if res.StatusCode != http.StatusOK {
				t.Fatalf("status %d", res.StatusCode)
			}
			lines := bufio.NewReader(res.Body)
			read := func(want string) {
				t.Helper()
				if line, err := lines.ReadString('\n'); line != want || err != nil {
					t.Fatalf("read %q, %v instead of %q", line, err, want)
				}
			}
			read("data: 1\n") // the provider has not ended its response
			if tc.die {
				w.stop()
				defer w.restart(t)
			}
			next <- "data: 2\n"
			read("data: 2\n")
			done()
			if rest, err := io.ReadAll(lines); err != nil || len(rest) != 0 {
				t.Fatalf("%q, %v", rest, err)
			}
		})
	}
}

func TestProvidersOverTLS(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	server := httptest.NewUnstartedServer(w.upstream)
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(server.Close)
	authority := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}))
	strange := strangeAuthority(t)
	base := with(provider(t, "", server.URL), func(p *policy.Provider) { p.CABundle = authority })
	for name, tc := range map[string]struct {
		change func(*policy.Provider)
		pass   bool
	}{
		"the address is in the certificate":       {func(p *policy.Provider) { p.ServerName = "127.0.0.1" }, true},
		"the name is in the certificate":          {func(p *policy.Provider) { p.ServerName = "example.com" }, true},
		"a wildcard in the certificate covers it": {func(p *policy.Provider) { p.ServerName = "api.example.com" }, true},
		"a name that resolves":                    {func(p *policy.Provider) { p.Host, p.ServerName = "localhost", "example.com" }, true},
		"another name than the certificate's":     {func(p *policy.Provider) { p.ServerName = "example.org" }, false},
		"another address than the certificate's":  {func(p *policy.Provider) { p.ServerName = "127.0.0.2" }, false},
		"an authority that did not sign":          {func(p *policy.Provider) { p.ServerName, p.CABundle = "example.com", strange }, false},
		"the system's authorities did not sign":   {func(p *policy.Provider) { p.ServerName, p.CABundle = "example.com", "" }, false},
	} {
		t.Run(name, func(t *testing.T) {
			w.config.SystemRoots = filepath.Join(t.TempDir(), "roots.pem")
			if err := os.WriteFile(w.config.SystemRoots, []byte(strange), 0o600); err != nil {
				t.Fatal(err)
			}
			w.publish(t, with(base, func(p *policy.Provider) {
				p.Name = strings.ReplaceAll(strings.ReplaceAll(name, " ", "-"), "'", "")
				tc.change(p)
				w.enforcer.follow(plan{provider: p.Name, path: openAICompletions})
			}))
			w.upstream.follow(nil)
			if !tc.pass {
				wantError(t, w.post(t, openAICompletions, "{}", nil), 503, policy.FormatOpenAI, "server_error")
				if got := len(w.upstream.arrivals()); got != 0 {
					t.Errorf("%d requests reached the provider", got)
				}
				return
			}
			eventually(t, "the provider to answer", func() error {
				w.upstream.follow(nil)
				if res := w.post(t, openAICompletions, "{}", nil); res.status != 200 {
					return fmt.Errorf("%+v", res)
				}
				return nil
			})
			if got := w.upstream.only(t); got.major != 2 || got.headers.Get("Authorization") != "Bearer "+providerSecret {
				t.Errorf("%+v", got)
			}
		})
	}
}

// strangeAuthority is the certificate, in PEM, of an authority that has signed nothing here.
func strangeAuthority(t *testing.T) string {
	t.Helper()
	authority, err := certs.NewAuthority(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return string(authority.Cert)
}

func TestRetries(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	server := httptest.NewServer(w.upstream)
	t.Cleanup(server.Close)
	w.publish(t,
		with(provider(t, "once", server.URL), func(p *policy.Provider) { p.RetryAttempts = 0 }),
		with(provider(t, "thrice", server.URL), func(p *policy.Provider) { p.RetryAttempts = 2 }),
	)
	for name, tc := range map[string]struct {
		provider string
		statuses []int // one after the other
		want     int
	}{
		"a provider that is overloaded is asked again": {"thrice", []int{503, 502, 200}, 200},
		"the last answer counts":                       {"thrice", []int{503, 503, 504}, 504},
		"what the caller did wrong is not":             {"thrice", []int{400}, 400},
		"nor what the provider failed at":              {"thrice", []int{500}, 500},
		"nor a provider without retries":               {"once", []int{503}, 503},
	} {
		t.Run(name, func(t *testing.T) {
			body := strings.Repeat("body ", 300_000)
			left := slices.Clone(tc.statuses)
			w.enforcer.follow(plan{provider: tc.provider, path: openAICompletions})
			w.upstream.follow(func(w http.ResponseWriter, _ *http.Request) {
				status := 599
				if len(left) > 0 {
					status, left = left[0], left[1:]
				}
				w.WriteHeader(status)
				fmt.Fprintf(w, "the provider's own %d", status)
			})
			res := w.post(t, openAICompletions, body, nil)
			if res.status != tc.want || res.body != fmt.Sprintf("the provider's own %d", tc.want) {
				t.Errorf("%+v", res)
			}
			all := w.upstream.arrivals()
			if len(all) != len(tc.statuses) {
				t.Errorf("the provider was asked %d times instead of %d", len(all), len(tc.statuses))
			}
			for _, got := range all {
				if got.body != body || got.headers.Get("Authorization") != "Bearer "+providerSecret || got.uri != "/chat/completions" {
					t.Errorf("an attempt differs: %s, %d bytes, %v", got.uri, len(got.body), got.headers)
				}
			}
		})
	}
}

func TestAmbiguousRequestsAreRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	server := httptest.NewServer(w.upstream)
	t.Cleanup(server.Close)
	w.publish(t, provider(t, "plain", server.URL))
	for name, tc := range map[string]struct {
		request string
		status  int
		asked   int
	}{
		"content-length beside transfer-encoding": {"POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, 0},
		"two lengths":                   {"POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcde", 400, 0},
		"a length that is not a number": {"POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: +4\r\n\r\nabcd", 400, 0},
		"an unknown transfer-encoding":  {"POST /v1/x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n", 501, 0},
		"a header with an underscore":   {"GET /v1/x HTTP/1.1\r\nHost: a\r\nx_api_key: b\r\n\r\n", 400, 0},
		"a space before the colon":      {"GET /v1/x HTTP/1.1\r\nHost: a\r\nx-api-key : b\r\n\r\n", 400, 0},
		"a nul in a header":             {"GET /v1/x HTTP/1.1\r\nHost: a\r\nx-api-key: b\x00\r\n\r\n", 400, 0},
		"no host":                       {"GET /v1/x HTTP/1.1\r\n\r\n", 400, 0},
		"HTTP/1.0":                      {"GET /v1/x HTTP/1.0\r\nHost: a\r\n\r\n", 426, 0},
		"an encoded slash":              {"GET /v1%2fx HTTP/1.1\r\nHost: a\r\n\r\n", 400, 0},
		"an encoded backslash":          {"GET /v1%5Cx HTTP/1.1\r\nHost: a\r\n\r\n", 400, 0},
		"an upgrade":                    {"GET /v1/x HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", 403, 0},
		"headers that are too long":     {"GET /v1/x HTTP/1.1\r\nHost: a\r\nx-long: " + strings.Repeat("x", 70<<10) + "\r\n\r\n", 431, 0},
		"too many headers":              {"GET /v1/x HTTP/1.1\r\nHost: a\r\n" + strings.Repeat("x-many: y\r\n", 101) + "\r\n", 431, 0},
	} {
		t.Run(name, func(t *testing.T) {
			w.enforcer.follow(plan{provider: "plain", path: openAICompletions})
			w.upstream.follow(nil)
			got := w.raw(t, tc.request)
			if message := wantError(t, got, tc.status, policy.FormatOpenAI, "invalid_request_error"); !strings.Contains(message, "cannot accept") {
				t.Errorf("the message is %q", message)
			}
			if got := len(w.upstream.arrivals()); got != 0 {
				t.Errorf("%d requests reached the provider", got)
			}
			if got := w.enforcer.asked(); got != tc.asked {
				t.Errorf("the enforcer was asked %d times", got)
			}
		})
	}
}

func TestCredentialsDoNotShow(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	server := httptest.NewServer(w.upstream)
	t.Cleanup(server.Close)
	w.publish(t, provider(t, "plain", server.URL))
	w.enforcer.follow(plan{provider: "plain", path: openAICompletions})
	if res := w.post(t, openAICompletions, "{}", nil); res.status != 200 {
		t.Fatalf("%+v", res)
	}
	for _, page := range []string{"/config_dump?include_eds", "/config_dump?resource=dynamic_active_secrets", "/clusters", "/stats", "/listeners", "/init_dump"} {
		content := w.ask(t, page)
		if strings.Contains(content, providerSecret) || strings.Contains(content, callersKey) {
			t.Errorf("%s shows a credential", page)
		}
	}
	if dump := w.ask(t, "/config_dump"); !strings.Contains(dump, CredentialSecret("plain")) || !strings.Contains(dump, "[redacted]") {
		t.Errorf("the dump does not show that there is a credential: %s", dump)
	}
}

func TestACredentialThatIsMissingIsNotTheCallersFault(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	server := httptest.NewServer(w.upstream)
	t.Cleanup(server.Close)
	res, err := Build(w.config, []policy.Provider{provider(t, "plain", server.URL)})
	if err != nil {
		t.Fatal(err)
	}
	res.Secrets = nil
	w.set(t, res)
	w.enforcer.follow(plan{provider: "plain", path: openAICompletions})
	w.upstream.follow(nil)
	if got := wantError(t, w.post(t, openAICompletions, "{}", nil), 503, policy.FormatOpenAI, "server_error"); !strings.Contains(got, "no credential") {
		t.Errorf("the message is %q", got)
	}
	if got := len(w.upstream.arrivals()); got != 0 {
		t.Errorf("%d requests reached the provider", got)
	}
}

func TestRenewedCertificatesOfTheControlPlane(t *testing.T) {
	t.Parallel()
	e := startEnvoy(t, testGatewayConfig(t))
	e.stopXDS()
	server := e.renew(t, "second") // of another authority: neither side's former certificate would do
	_, e.stopXDS = e.serve(t, fmt.Sprintf("127.0.0.1:%d", e.xdsPort), server)
	e.publish(t, openAI())
}
