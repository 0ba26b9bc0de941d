package envoyconf

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/latchkey-dev/latchkey/internal/policy"
)

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
			plan: plan{}, status: 503, openAI: "server_error", anthropic: "api_error", message: "not set up",
		},
		"the enforcer names a provider that is not there": {
			plan: to("unknown", completions), status: 503, openAI: "server_error", anthropic: "api_error", message: "not set up",
		},
		"the enforcer sets a path that is not canonical": {
			plan: to("plain", "/v2"), path: "/v1/embeddings", status: 503, openAI: "server_error", anthropic: "api_error", message: "not set up",
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
