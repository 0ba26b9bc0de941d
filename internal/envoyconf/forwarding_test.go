package envoyconf

import (
	"bufio"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/latchkey-dev/latchkey/internal/certs"
	"github.com/latchkey-dev/latchkey/internal/policy"
)

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
				w.Header().Set(policy.GatewayErrorHeader, "true") // which would keep the response from the enforcer
				fmt.Fprint(w, "fine")
			})
			unwanted := map[string]string{
				"X-Api-Key": callersKey, "Api-Key": callersKey, "Cookie": "k=" + callersKey, "Proxy-Authorization": "Basic " + callersKey,
				"X-Forwarded-For": "192.0.2.1", "X-Forwarded-Host": "host.example", "X-Real-Ip": "192.0.2.1", "Forwarded": "for=192.0.2.1", "Via": "1.1 p",
				"X-Latchkey-Provider": "x-api-key", "X-Latchkey-Other": "x", "X-Envoy-Retry-On": "5xx", "X-Envoy-Max-Retries": "3",
				"X-Envoy-Upstream-Rq-Timeout-Ms": "1", "OpenAI-Organization": "org-2", "OpenAI-Project": "proj-2", "Expect": "100-continue",
			}
			headers := map[string]string{"Content-Type": "application/json", "X-Stainless-Lang": "go", "Anthropic-Beta": "b", "X-Request-Id": "the-callers"}
			maps.Copy(headers, unwanted)
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
			for _, header := range []string{"Set-Cookie", "Openai-Organization", "Openai-Project", "X-Envoy-Upstream-Service-Time", policy.GatewayErrorHeader} {
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

func TestRenewedCertificatesOfTheControlPlane(t *testing.T) {
	t.Parallel()
	e := startEnvoy(t, testGatewayConfig(t))
	e.stopXDS()
	server := e.renew(t, "second") // of another authority: neither side's former certificate would do
	_, e.stopXDS = e.serve(t, fmt.Sprintf("127.0.0.1:%d", e.xdsPort), server)
	e.publish(t, openAI())
}
