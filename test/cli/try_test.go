package cli

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	"github.com/latchkey-dev/latchkey/test/provider"
)

// gateway is the simulated provider, which speaks both APIs, behind what Latchkey's gateway adds: it wants a key of ours, and tells what is left.
type gateway struct {
	*httptest.Server
	mu    sync.Mutex
	paths []string
	keys  map[string]bool
}

func newGateway(t *testing.T, accepts func(key string) bool) *gateway {
	t.Helper()
	g := &gateway{keys: map[string]bool{}}
	sim := provider.New(provider.Config{Models: []string{"gpt-5-mini", "claude-sonnet-4-5"}, Credential: "sk-openai", AnthropicCredential: "sk-anthropic"})
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		key := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
		g.mu.Lock()
		g.paths, g.keys[key] = append(g.paths, r.Method+" "+r.URL.Path), true
		g.mu.Unlock()
		switch {
		case !accepts(key):
			w.Header().Set("Retry-After", "30")
			w.WriteHeader(http.StatusTooManyRequests)
			_, _ = io.WriteString(w, `{"error":{"message":"the daily budget of the key is used up","type":"insufficient_quota"}}`)
		case r.URL.Path == "/v1/key":
			_, _ = io.WriteString(w, `{"data":{"limit":5,"limit_remaining":3.25,"limit_reset":"daily","usage_daily":1.75,"usage_monthly":9}}`)
		default:
			r.Header.Set("Authorization", "Bearer sk-openai")
			if r.URL.Path == "/v1/messages" {
				r.Header.Del("Authorization")
				r.Header.Set("X-Api-Key", "sk-anthropic")
			}
			sim.ServeHTTP(w, r)
		}
	})
	g.Server = httptest.NewServer(mux)
	t.Cleanup(g.Close)
	return g
}

func TestTryStreamsTheAnswer(t *testing.T) {
	ns := newNamespace(t)
	g := newGateway(t, func(key string) bool { return key == "lk_given" })
	for model, path := range map[string]string{"gpt-5-mini": "POST /v1/chat/completions", "claude-sonnet-4-5": "POST /v1/messages"} {
		got := latchkey(t, ns, "try", "--gateway", g.URL, "--key", "lk_given", "--model", model, "Say hello.")
		got.want(t, 0)
		if strings.TrimSpace(got.stdout) == "" || strings.Contains(got.stdout, "tokens:") {
			t.Errorf("stdout: %q", got.stdout)
		}
		got.says(t, "tokens: ", " in, ", "all after ", "left: 3.25 of 5, resets daily · spent today: 1.75")
		if !strings.Contains(strings.Join(g.paths, ","), path) {
			t.Errorf("%s was not asked: %v", path, g.paths)
		}
	}
	first := latchkeyWith(t.Context(), "Say hello.", ns, "try", "--gateway", g.URL+"/v1", "--key", "lk_given")
	first.want(t, 0)
	first.says(t, "gpt-5-mini, POST")

	refused := latchkey(t, ns, "try", "--gateway", g.URL, "--key", "lk_other", "--model", "gpt-5-mini", "Say hello.")
	refused.want(t, 1)
	refused.silent(t)
	refused.says(t, "429", "the daily budget of the key is used up", "try again in 30 s")

	t.Setenv("OPENAI_API_KEY", "lk_given")
	t.Setenv("LATCHKEY_GATEWAY", g.URL)
	latchkey(t, ns, "try", "--model", "gpt-5-mini", "Say hello.").want(t, 0)
}

// TestTryIsInterrupted breaks an answer off that is under way.
func TestTryIsInterrupted(t *testing.T) {
	ns := newNamespace(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	g := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "data: {\"choices\":[{\"delta\":{\"content\":\"Once\"}}]}\n\n")
		w.(http.Flusher).Flush()
		cancel()
		<-r.Context().Done() // until the caller has gone
	}))
	t.Cleanup(g.Close)
	got := latchkeyWith(ctx, "", ns, "try", "--gateway", g.URL, "--key", "lk_given", "--model", "m", "Tell me a story.")
	if got.code != 130 || strings.Contains(got.stderr, "error") {
		t.Errorf("exit code %d, want 130 without an error: %s", got.code, got.stderr)
	}
}

func TestTryMakesATemporaryKey(t *testing.T) {
	ns := newNamespace(t)
	m := inPlaceOfManager(t, ns)
	if err := server.client.Create(t.Context(), &v1alpha1.Application{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "shop"}, Spec: v1alpha1.ApplicationSpec{DisplayName: "Shop"},
	}); err != nil {
		t.Fatal(err)
	}
	g := newGateway(t, func(string) bool { return true })
	got := latchkey(t, ns, "try", "--gateway", g.URL, "--app", "shop", "--model", "gpt-5-mini", "Say hello.")
	got.want(t, 0)
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.keys) != 1 {
		t.Fatalf("%d keys were made, want one", len(m.keys))
	}
	for name, plaintext := range m.keys {
		if !g.keys[plaintext] || !strings.HasPrefix(name, "try-") {
			t.Errorf("the key %s was not used", name)
		}
		if strings.Contains(got.stdout+got.stderr, plaintext) {
			t.Error("the temporary key is shown")
		}
	}
	var keys v1alpha1.APIKeyList
	if err := server.client.List(t.Context(), &keys, client.InNamespace(ns)); err != nil {
		t.Fatal(err)
	}
	if len(keys.Items) != 0 {
		t.Errorf("the temporary key is still there: %s", keys.Items[0].Name)
	}
}
