package gateways

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/latchkey-dev/latchkey/internal/policy"
	"github.com/latchkey-dev/latchkey/test/provider"
	"github.com/latchkey-dev/latchkey/test/stack"
)

// chapters are the story that every gateway goes through.
var chapters = map[string]func(*testing.T, *gateway){
	"a JSON call passes and the provider sees only the platform's credential": jsonCall,
	"an answer is streamed while the provider is still writing it":            streamedCall,
	"Anthropic's API is served in its own dialect":                            anthropicCall,
	"what was used is metered to the last digit":                              metered,
	"a key that is switched off is refused":                                   disabled,
	"a budget that is spent is refused":                                       overBudget,
	"an unknown model and a request without a key are refused":                refused,
	"callers cannot speak for the enforcer or order retries":                  smuggled,
	"a body of more than Envoy's default buffer passes":                       largeBody,
	"a provider that does not answer costs nothing":                           unanswered,
}

func TestStory(t *testing.T) {
	for _, g := range theGateways {
		for name, chapter := range chapters {
			t.Run(g.name+"/"+name, func(t *testing.T) {
				t.Parallel()
				chapter(t, g)
			})
		}
	}
}

func jsonCall(t *testing.T, g *gateway) {
	c := newCaller(t, g, "json", "1")
	mark := c.namespace
	a := c.call(c.key, request{body: chat("gpt-5-mini", mark+"\nsim:reply=hello"), headers: map[string]string{
		"Cookie": "session=secret", "X-Forwarded-For": "203.0.113.7", "X-Copy": "my key is " + c.key,
		"OpenAI-Organization": "another", "OpenAI-Project": "another",
	}})
	if a.status != http.StatusOK || !strings.Contains(a.body, "hello") {
		t.Fatalf("got %v", a)
	}
	if got := a.header.Get("x-request-id"); got == "" {
		t.Error("the answer has no x-request-id")
	}
	if got := a.header.Get(policy.GatewayErrorHeader); got != "" {
		t.Errorf("the answer says %s: %q, which the provider has made up", policy.GatewayErrorHeader, got)
	}
	got := received(t, mark)
	if len(got) != 1 {
		t.Fatalf("the provider got %d requests, want 1", len(got))
	}
	checkForwarded(t, c, &got[0], openAIHost, "/v1/chat/completions")
	if credential := got[0].Headers.Get("Authorization"); credential != "Bearer "+stack.OpenAICredential {
		t.Errorf("the provider got the credential %q", credential)
	}
}

// checkForwarded checks what a provider must see and must not.
func checkForwarded(t *testing.T, c *caller, r *provider.Record, host, path string) {
	t.Helper()
	if r.Host != host || r.Path != path {
		t.Errorf("the provider got %s %s, want %s %s", r.Host, r.Path, host, path)
	}
	for name, values := range r.Headers {
		for _, value := range values {
			if strings.Contains(value, c.key) {
				t.Errorf("the provider got the caller's key in %s", name)
			}
		}
		switch lower := strings.ToLower(name); {
		case strings.HasPrefix(lower, "x-latchkey-"), strings.HasPrefix(lower, "x-forwarded-"), strings.HasPrefix(lower, "x-envoy-"),
			lower == "cookie", lower == "forwarded", lower == "via", lower == "openai-organization", lower == "openai-project":
			t.Errorf("the provider got %s: %q", name, values)
		}
	}
	if strings.Contains(r.Body, c.key) {
		t.Error("the provider got the caller's key in the body")
	}
}

func streamedCall(t *testing.T, g *gateway) {
	c := newCaller(t, g, "stream", "1")
	hold := c.namespace
	resp := c.open(c.key, request{body: streamed("gpt-5-mini", "sim:chunks=6 sim:input-tokens=1000 sim:output-tokens=500 sim:hold="+hold)}) //nolint:bodyclose // open closes it
	if resp.StatusCode != http.StatusOK || !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream") {
		body, _ := io.ReadAll(resp.Body)
		t.Fatalf("got %s %s", resp.Status, body)
	}
	lines := bufio.NewScanner(resp.Body)
	if !lines.Scan() || !strings.HasPrefix(lines.Text(), "data: ") {
		t.Fatalf("got %q first: %v", lines.Text(), lines.Err())
	}
	// The provider writes no more until it is told: what was read came through before the answer's end.
	eventually(t, "the provider holds the stream", func() error {
		return control(t, http.MethodPost, "/_sim/release?id="+hold, nil)
	})
	events, last := 1, ""
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), "data: ") {
			events, last = events+1, lines.Text()
		}
	}
	if lines.Err() != nil || events < 7 || last != "data: [DONE]" {
		t.Errorf("%d events, the last is %q: %v", events, last, lines.Err())
	}
	c.awaitSpent("0.00125")
}

func anthropicCall(t *testing.T, g *gateway) {
	c := newCaller(t, g, "anthropic", "1")
	mark := c.namespace
	a := c.call("", request{
		path: "/v1/messages", body: chat("claude-sonnet-4-5", mark+"\nsim:reply=hello"),
		headers: map[string]string{"x-api-key": c.key, "anthropic-version": "2023-06-01"},
	})
	if a.status != http.StatusOK || !strings.Contains(a.body, "hello") {
		t.Fatalf("got %v", a)
	}
	got := received(t, mark)
	if len(got) != 1 {
		t.Fatalf("the provider got %d requests, want 1", len(got))
	}
	checkForwarded(t, c, &got[0], anthropicHost, "/v1/messages")
	if credential := got[0].Headers.Get("X-Api-Key"); credential != stack.AnthropicCredential {
		t.Errorf("the provider got the credential %q", credential)
	}
	a = c.call("", request{
		path: "/v1/messages", body: chat("claude-unheard-of", "hello"), headers: map[string]string{"x-api-key": c.key, "anthropic-version": "2023-06-01"},
	})
	if a.status != http.StatusNotFound || a.code() != "not_found_error" {
		t.Errorf("an unknown model: got %v", a)
	}
}

func metered(t *testing.T, g *gateway) {
	c := newCaller(t, g, "metered", "1")
	c.awaitSpent("0")
	// 1,000 tokens in at 0.25 and 500 out at 2.00 the million.
	body := chat("gpt-5-mini", "sim:input-tokens=1000 sim:output-tokens=500")
	for i, want := range []string{"0.00125", "0.0025"} {
		if a := c.call(c.key, request{body: body}); a.status != http.StatusOK {
			t.Fatalf("call %d: got %v", i, a)
		}
		// It is there as soon as the answer is: a key cannot outrun its budget by calling again at once.
		if got, err := c.spent(); err != nil || got != want {
			t.Errorf("after call %d: spent %s, want %s: %v", i, got, want, err)
		}
	}
	if a := c.call(c.key, request{body: chat("gpt-5-mini", "sim:status=500")}); a.status != http.StatusInternalServerError {
		t.Errorf("the provider's error: got %v", a)
	}
	c.awaitSpent("0.0025")
	eventually(t, "the spend in the key's status", func() error {
		got, err := theStack.Kubectl(t.Context(), "get", "lkkey/backend", "-n", c.namespace, "-o", "jsonpath={.status.usage}")
		if err != nil {
			return err
		}
		if !strings.Contains(got, "0.0025") {
			return fmt.Errorf("got %s", got)
		}
		return nil
	})
}

func disabled(t *testing.T, g *gateway) {
	c := newCaller(t, g, "disabled", "1")
	if a := c.call(c.key, request{}); a.status != http.StatusOK {
		t.Fatalf("before: got %v", a)
	}
	c.kubectl("patch", "lkkey/backend", "-n", c.namespace, "--type=merge", "-p", `{"spec":{"state":"Disabled"}}`)
	eventually(t, "the key is refused", func() error {
		if a := c.call(c.key, request{}); a.status != http.StatusUnauthorized || a.code() != "api_key_disabled" {
			return fmt.Errorf("got %v", a)
		}
		return nil
	})
}

func overBudget(t *testing.T, g *gateway) {
	c := newCaller(t, g, "budget", "0.001")
	if a := c.call(c.key, request{body: chat("gpt-5-mini", "sim:input-tokens=1000 sim:output-tokens=500")}); a.status != http.StatusOK {
		t.Fatalf("within the budget: got %v", a)
	}
	mark := c.namespace
	a := c.call(c.key, request{body: chat("gpt-5-mini", mark)})
	if a.status != http.StatusTooManyRequests || a.code() != "insufficient_quota" {
		t.Errorf("over the budget: got %v", a)
	}
	if a.header.Get("x-should-retry") != "false" || a.header.Get("retry-after") == "" {
		t.Errorf("over the budget: the headers %v do not tell clients what to do", a.header)
	}
	if got := received(t, mark); len(got) != 0 {
		t.Errorf("the provider got %d requests that were refused", len(got))
	}
}

func refused(t *testing.T, g *gateway) {
	c := newCaller(t, g, "refused", "1")
	mark := c.namespace
	for name, tc := range map[string]struct {
		key    string
		model  string
		status int
		code   string
	}{
		"a model that does not exist":    {c.key, "gpt-unheard-of", http.StatusNotFound, "model_not_found"},
		"a model out of the key's scope": {c.key, "fast", http.StatusNotFound, "model_not_found"},
		"no key":                         {"", "gpt-5-mini", http.StatusUnauthorized, "invalid_request_error"},
		"a key that does not exist":      {"lk_nonsense", "gpt-5-mini", http.StatusUnauthorized, "invalid_api_key"},
	} {
		a := c.call(tc.key, request{body: chat(tc.model, mark)})
		if a.status != tc.status || a.code() != tc.code {
			t.Errorf("%s: got %v, want %d %s", name, a, tc.status, tc.code)
		}
		if got := a.header.Get("Content-Type"); got != "application/json" {
			t.Errorf("%s: content-type %q", name, got)
		}
	}
	if got := received(t, mark); len(got) != 0 {
		t.Errorf("the provider got %d requests that were refused", len(got))
	}
}

func smuggled(t *testing.T, g *gateway) {
	c := newCaller(t, g, "smuggled", "1")
	mark := c.namespace
	for name, headers := range map[string]map[string]string{
		"the provider's name":      {policy.ProviderHeader: "openai"},
		"another provider's name":  {policy.ProviderHeader: "anthropic"},
		"a name that is not there": {policy.ProviderHeader: "nowhere"},
		"an error of Envoy's":      {policy.GatewayErrorHeader: policy.GatewayErrorOfProvider},
		"another path":             {"x-envoy-original-path": "/v1/models", "x-envoy-decorator-operation": "none"},
	} {
		if a := c.call("", request{body: chat("gpt-5-mini", mark+"-keyless"), headers: headers}); a.status != http.StatusUnauthorized {
			t.Errorf("%s, without a key: got %v", name, a)
		}
		one := strings.ReplaceAll(mark+" "+name, " ", "-")
		if a := c.call(c.key, request{body: chat("gpt-5-mini", one), headers: headers}); a.status != http.StatusOK {
			t.Errorf("%s, with a key: got %v", name, a)
		}
		got := received(t, one)
		if len(got) != 1 {
			t.Fatalf("%s: the provider got %d requests, want 1", name, len(got))
		}
		checkForwarded(t, c, &got[0], openAIHost, "/v1/chat/completions")
	}
	if got := received(t, mark+"-keyless"); len(got) != 0 {
		t.Errorf("the provider got %d requests without a key", len(got))
	}
	retried := c.namespace + "-retried"
	a := c.call(c.key, request{body: chat("gpt-5-mini", retried+" sim:status=503"), headers: map[string]string{
		"x-envoy-retry-on": "5xx", "x-envoy-max-retries": "3", "x-envoy-upstream-rq-timeout-ms": "60000",
	}})
	if a.status != http.StatusServiceUnavailable {
		t.Errorf("the provider's error: got %v", a)
	}
	if got := received(t, retried); len(got) != 1 {
		t.Errorf("a caller ordered %d attempts, want 1", len(got))
	}
}

func largeBody(t *testing.T, g *gateway) {
	c := newCaller(t, g, "large", "1")
	const size = 3 << 20
	for name, method := range map[string]string{"HTTP/1": "", "HTTP/2": "h2c"} {
		client := http.DefaultClient
		if method == "h2c" {
			protocols := new(http.Protocols)
			protocols.SetUnencryptedHTTP2(true)
			transport := &http.Transport{Protocols: protocols}
			defer transport.CloseIdleConnections()
			client = &http.Client{Transport: transport}
		}
		mark := c.namespace + "-" + strings.ReplaceAll(name, "/", "-")
		body := chat("gpt-5-mini", mark+"\nsim:input-tokens=10\nsim:reply=ok\n"+strings.Repeat("x", size))
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, g.url+"/v1/chat/completions", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+c.key)
		req.Header.Set("Content-Type", "application/json")
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Errorf("%s: got %s %s: %v", name, resp.Status, text, err)
		}
		if got := received(t, mark); len(got) != 1 || got[0].BodySize < size {
			t.Errorf("%s: the provider got %d requests", name, len(got))
		}
	}
}

func unanswered(t *testing.T, g *gateway) {
	c := newCaller(t, g, "unanswered", "1")
	a := c.call(c.key, request{body: chat("gpt-5-mini", c.namespace+" sim:abort")})
	if a.status != http.StatusServiceUnavailable && a.status != http.StatusBadGateway {
		t.Errorf("got %v", a)
	}
	if got := a.header.Get(policy.GatewayErrorHeader) == policy.GatewayErrorOfProvider; got != g.tellsOwnErrors {
		t.Errorf("the error is told to be Envoy's: %t, want %t", got, g.tellsOwnErrors)
	}
	c.awaitSpent("0")
}

// TestEnforcerKilled: with the enforcer gone every gateway refuses, and what was spent is still spent when it is back.
func TestEnforcerKilled(t *testing.T) {
	holders := map[*gateway]*caller{}
	for _, g := range theGateways {
		c := newCaller(t, g, "killed", "1")
		if a := c.call(c.key, request{body: chat("gpt-5-mini", "sim:input-tokens=1000 sim:output-tokens=500")}); a.status != http.StatusOK {
			t.Fatalf("%s, before: got %v", g.name, a)
		}
		c.awaitSpent("0.00125") // it has ended for the enforcer, too
		holders[g] = c
	}
	if err := theStack.Enforcer.Kill(); err != nil {
		t.Fatal(err)
	}
	// Envoy resets the connection of an answer whose end the enforcer has not let go, though the caller has all of it.
	http.DefaultClient.CloseIdleConnections()
	for g, c := range holders {
		mark := c.namespace + "-killed"
		for _, headers := range []map[string]string{nil, {policy.ProviderHeader: "openai"}} {
			if a := c.call(c.key, request{body: chat("gpt-5-mini", mark), headers: headers}); a.status != http.StatusServiceUnavailable {
				t.Errorf("%s, with the enforcer gone: got %v", g.name, a)
			}
			if a := c.call(c.key, request{method: http.MethodGet, path: "/v1/models", headers: headers}); a.status != http.StatusServiceUnavailable {
				t.Errorf("%s, without a body: got %v", g.name, a)
			}
		}
		if got := received(t, mark); len(got) != 0 {
			t.Errorf("%s: the provider got %d requests that nobody had decided on", g.name, len(got))
		}
	}
	if err := theStack.Enforcer.Start(); err != nil {
		t.Fatal(err)
	}
	if err := theStack.AwaitEnforcer(t.Context()); err != nil {
		t.Fatal(err)
	}
	for g, c := range holders {
		eventually(t, g.name+" lets calls pass again", func() error {
			if a := c.call(c.key, request{body: chat("gpt-5-mini", "sim:input-tokens=1000 sim:output-tokens=500")}); a.status != http.StatusOK {
				return fmt.Errorf("got %v", a)
			}
			return nil
		})
		c.awaitSpent("0.0025")
	}
}
