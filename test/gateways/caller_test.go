package gateways

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/latchkey-dev/latchkey/internal/cli"
	"github.com/latchkey-dev/latchkey/test/provider"
)

// manifest is an application and a key, as a product team writes them.
const manifest = `apiVersion: v1
kind: Namespace
metadata:
  name: NAMESPACE
---
apiVersion: latchkey.dev/v1alpha1
kind: Application
metadata:
  name: shop
  namespace: NAMESPACE
spec:
  displayName: Shop
---
apiVersion: latchkey.dev/v1alpha1
kind: APIKey
metadata:
  name: backend
  namespace: NAMESPACE
spec:
  applicationRef:
    name: shop
  displayName: Shop backend
  capabilities: [TextGeneration]
  models:
    access: List
    names: [gpt-5-mini, claude-sonnet-4-5]
  budgets:
    daily: "DAILY"
  rateLimits:
    requestsPerMinute: 6000
    tokensPerMinute: 10000000
`

// caller is the holder of a key at a gateway.
type caller struct {
	t         *testing.T
	gateway   *gateway
	namespace string // one of its own: it also marks the caller's requests for the provider's record
	key       string
}

// callers counts those there have been, so that each has a name of its own.
var callers atomic.Int64

// newCaller applies a key with kubectl, in a namespace of its own, waits until it is enforced, and takes it.
func newCaller(t *testing.T, g *gateway, purpose, dailyBudget string) *caller {
	t.Helper()
	c := &caller{t: t, gateway: g, namespace: fmt.Sprintf("%s-%s-%d", g.name, purpose, callers.Add(1))}
	path := filepath.Join(t.TempDir(), "key.yaml")
	text := strings.NewReplacer("NAMESPACE", c.namespace, "DAILY", dailyBudget).Replace(manifest)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c.kubectl("apply", "-f", path)
	c.kubectl("wait", "--for=condition=Enforced", "--timeout=60s", "-n", c.namespace, "lkkey/backend")
	plaintext, err := cli.Claim(t.Context(), theStack.Client, types.NamespacedName{Namespace: c.namespace, Name: "backend"})
	if err != nil {
		t.Fatal(err)
	}
	c.key = plaintext.Reveal()
	return c
}

func (c *caller) kubectl(args ...string) {
	c.t.Helper()
	if _, err := theStack.Kubectl(c.t.Context(), args...); err != nil {
		c.t.Fatal(err)
	}
}

// answer is what the gateway gave.
type answer struct {
	status int
	header http.Header
	body   string
}

func (a answer) String() string { return fmt.Sprintf("%d %s", a.status, a.body) }

// code is error.code of an OpenAI error, or error.type without one.
func (a answer) code() string {
	var e struct {
		Error struct {
			Type string  `json:"type"`
			Code *string `json:"code"`
		} `json:"error"`
	}
	if json.Unmarshal([]byte(a.body), &e) != nil {
		return "not JSON"
	}
	if e.Error.Code != nil {
		return *e.Error.Code
	}
	return e.Error.Type
}

// request is one call of a gateway. The zero value is a small chat with gpt-5-mini.
type request struct {
	method  string
	path    string
	body    string
	headers map[string]string
}

func chat(model, text string) string {
	body, err := json.Marshal(map[string]any{"model": model, "max_tokens": 2000, "messages": []map[string]string{{"role": "user", "content": text}}})
	if err != nil {
		panic(err) // strings always marshal
	}
	return string(body)
}

func streamed(model, text string) string {
	return strings.TrimSuffix(chat(model, text), "}") + `,"stream":true}`
}

// open sends the request, and returns as soon as the answer has begun. An empty key: none.
func (c *caller) open(key string, r request) *http.Response {
	c.t.Helper()
	resp, err := c.try(key, r)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = resp.Body.Close() })
	return resp
}

func (c *caller) try(key string, r request) (*http.Response, error) {
	c.t.Helper()
	method, path, body := r.method, r.path, r.body
	if method == "" {
		method = http.MethodPost
	}
	if path == "" {
		path = "/v1/chat/completions"
	}
	if body == "" && method == http.MethodPost {
		body = chat("gpt-5-mini", "sim:reply=ok")
	}
	req, err := http.NewRequestWithContext(c.t.Context(), method, c.gateway.url+path, strings.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	if key != "" {
		req.Header.Set("Authorization", "Bearer "+key)
	}
	for name, value := range r.headers {
		req.Header.Set(name, value)
	}
	return http.DefaultClient.Do(req)
}

// call sends the request and reads the whole answer.
func (c *caller) call(key string, r request) answer {
	c.t.Helper()
	resp := c.open(key, r) //nolint:bodyclose // open closes it when the test ends
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, string(body)}
}

// eventually polls until the check passes, and fails the test with its last complaint otherwise.
func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	var last error
	err := wait.PollUntilContextTimeout(t.Context(), 20*time.Millisecond, patience, true, func(context.Context) (bool, error) {
		last = check()
		return last == nil, nil
	})
	if err != nil {
		t.Fatalf("%s: %v", what, last)
	}
}

// spent is what the key's holder is told at GET /v1/key of what was used this day.
func (c *caller) spent() (string, error) {
	c.t.Helper()
	a := c.call(c.key, request{method: http.MethodGet, path: "/v1/key"})
	if a.status != http.StatusOK {
		return "", fmt.Errorf("GET /v1/key: got %v", a)
	}
	var state struct {
		Data struct {
			Daily json.Number `json:"usage_daily"`
		} `json:"data"`
	}
	if err := json.Unmarshal([]byte(a.body), &state); err != nil {
		return "", fmt.Errorf("GET /v1/key: %w: %v", err, a)
	}
	return state.Data.Daily.String(), nil
}

// awaitSpent waits until the key has spent the amount. It is told as soon as an answer is, but for answers that were broken off.
func (c *caller) awaitSpent(want string) {
	c.t.Helper()
	eventually(c.t, "the spend at GET /v1/key", func() error {
		got, err := c.spent()
		if err != nil {
			return err
		}
		if got != want {
			return fmt.Errorf("got %s, want %s", got, want)
		}
		return nil
	})
}

// control asks the simulated provider's control API.
func control(t *testing.T, method, path string, into any) error {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, theStack.ProviderControl+path, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s: %s", method, path, resp.Status)
	}
	if into != nil {
		return json.NewDecoder(resp.Body).Decode(into)
	}
	return nil
}

// received is what the provider got of requests whose body holds the mark.
func received(t *testing.T, mark string) []provider.Record {
	t.Helper()
	var all struct {
		Requests []provider.Record `json:"requests"`
	}
	if err := control(t, http.MethodGet, "/_sim/requests", &all); err != nil {
		t.Fatal(err)
	}
	var found []provider.Record
	for _, r := range all.Requests {
		if strings.Contains(r.Body, mark) {
			found = append(found, r)
		}
	}
	return found
}
