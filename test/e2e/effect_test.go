package e2e

import (
	"bufio"
	"bytes"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
)

func TestEditsTakeEffect(t *testing.T) {
	tn := newTenant(t)
	k, key := tn.newKey("edited")
	other, otherKey := tn.newKey("other")
	decided(t, key, request{}, http.StatusOK, "")

	patch(t, k, `{"spec":{"state":"Disabled"}}`)
	decided(t, key, request{}, http.StatusUnauthorized, "api_key_disabled")
	patch(t, k, `{"spec":{"state":"Enabled"}}`)
	decided(t, key, request{}, http.StatusOK, "")

	patch(t, k, `{"spec":{"models":{"access":"List","names":["gpt-5"]}}}`)
	decided(t, key, request{}, http.StatusNotFound, "model_not_found")
	decided(t, key, request{body: chat("gpt-5", "hi")}, http.StatusOK, "")
	patch(t, k, `{"spec":{"models":{"access":"All","names":null}}}`)
	decided(t, key, request{}, http.StatusOK, "")

	patch(t, k, `{"spec":{"capabilities":["Embeddings"]}}`)
	decided(t, key, request{}, http.StatusForbidden, "capability_not_allowed")
	patch(t, k, `{"spec":{"capabilities":["Embeddings","TextGeneration"]}}`)
	decided(t, key, request{}, http.StatusOK, "")
	decided(t, key, request{body: strings.TrimSuffix(chat("gpt-5-mini", "hi"), "}") + `,"web_search_options":{}}`}, http.StatusForbidden, "capability_not_allowed")

	patch(t, k, `{"spec":{"expirationTime":"`+time.Now().Add(-time.Second).UTC().Format(time.RFC3339)+`"}}`)
	decided(t, key, request{}, http.StatusUnauthorized, "api_key_expired")
	patch(t, k, `{"spec":{"expirationTime":null}}`)
	decided(t, key, request{}, http.StatusOK, "")

	// The application's ceilings bound the key, and its state rules all its keys.
	patch(t, tn.application, `{"spec":{"capabilities":["Embeddings"]}}`)
	decided(t, key, request{}, http.StatusForbidden, "capability_not_allowed")
	patch(t, tn.application, `{"spec":{"capabilities":null}}`)
	decided(t, key, request{}, http.StatusOK, "")
	patch(t, tn.application, `{"spec":{"state":"Disabled"}}`)
	decided(t, key, request{}, http.StatusUnauthorized, "application_disabled")
	decided(t, otherKey, request{}, http.StatusUnauthorized, "application_disabled")
	if err := await(t.Context(), other, func() bool { return usable(other) == v1alpha1.ReasonApplicationDisabled }); err != nil {
		t.Fatal(err)
	}
	patch(t, tn.application, `{"spec":{"state":"Enabled"}}`)
	decided(t, key, request{}, http.StatusOK, "")
	decided(t, otherKey, request{}, http.StatusOK, "")

	if err := theStack.Client.Delete(t.Context(), k); err != nil {
		t.Fatal(err)
	}
	decided(t, key, request{}, http.StatusUnauthorized, "invalid_api_key")
	decided(t, otherKey, request{}, http.StatusOK, "")
}

func usable(k *v1alpha1.APIKey) string {
	for _, c := range k.Status.Conditions {
		if c.Type == v1alpha1.ConditionUsable {
			return c.Reason
		}
	}
	return ""
}

func TestAKeyExpiresByItself(t *testing.T) {
	k, key := newTenant(t).newKey("brief", func(s *v1alpha1.APIKeySpec) {
		s.ExpirationTime = &metav1.Time{Time: time.Now().Add(5 * time.Second)}
	})
	decided(t, key, request{}, http.StatusUnauthorized, "api_key_expired")
	if err := await(t.Context(), k, func() bool { return usable(k) == v1alpha1.ReasonExpired }); err != nil {
		t.Fatal(err)
	}
}

func TestModelsComeAndGo(t *testing.T) {
	_, key := newTenant(t).newKey("models")
	m := modelOf("passing-fancy", "openai", "gpt-5-mini", v1alpha1.CapabilityTextGeneration)
	decided(t, key, request{body: chat(m.Name, "hi")}, http.StatusNotFound, "model_not_found")
	if err := theStack.Client.Create(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	decided(t, key, request{body: chat(m.Name, "hi")}, http.StatusOK, "")
	if err := theStack.Client.Delete(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	decided(t, key, request{body: chat(m.Name, "hi")}, http.StatusNotFound, "model_not_found")
}

func TestRotatedProviderCredentialIsTakenOver(t *testing.T) {
	ctx := t.Context()
	_, key := newTenant(t).newKey("credential")
	ask := request{body: chat("broken-credential", "hi")}
	decided(t, key, ask, http.StatusBadGateway, "server_error")
	secret, err := theStack.Kubectl(ctx, "patch", "secret", "wrong", "-n", "latchkey-system", "--type=merge", "-p", `{"stringData":{"apiKey":"sim-openai-credential"}}`)
	if err != nil {
		t.Fatal(secret, err)
	}
	decided(t, key, ask, http.StatusOK, "")
	if _, err := theStack.Kubectl(ctx, "patch", "secret", "wrong", "-n", "latchkey-system", "--type=merge", "-p", `{"stringData":{"apiKey":"sk-wrong-credential-of-the-platform"}}`); err != nil {
		t.Fatal(err)
	}
	decided(t, key, ask, http.StatusBadGateway, "server_error")
}

// TestStreamsPassUnheld proves without a clock that a stream is not held up: the provider sends its first chunk and then nothing,
// until the test, having read that chunk, tells it to go on.
func TestStreamsPassUnheld(t *testing.T) {
	_, key := newTenant(t).newKey("stream")
	mark := fmt.Sprintf("hold-%d", time.Now().UnixNano())
	for name, r := range map[string]request{
		"chat":     {body: streamed("gpt-5-mini", "sim:chunks=3 sim:hold="+mark+"-a")},
		"mapped":   {body: streamed("fast", "sim:chunks=3 sim:hold="+mark+"-b")},
		"messages": {path: "/v1/messages", body: strings.TrimSuffix(streamed("claude-sonnet-4-5", "sim:chunks=3 sim:hold="+mark+"-c"), "}") + `,"max_tokens":99}`, headers: map[string]string{"anthropic-version": "2023-06-01"}},
		"response": {path: "/v1/responses", body: `{"model":"gpt-5-mini","stream":true,"input":"sim:chunks=3 sim:hold=` + mark + `-d"}`},
	} {
		t.Run(name, func(t *testing.T) {
			resp, err := http.DefaultClient.Do(r.build(t, key))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = resp.Body.Close() }()
			if resp.StatusCode != http.StatusOK {
				t.Fatal(resp.Status)
			}
			lines := bufio.NewScanner(resp.Body)
			released := false
			for lines.Scan() {
				first := bytes.Contains(lines.Bytes(), []byte("delta")) && (bytes.Contains(lines.Bytes(), []byte(`"content":"`)) || bytes.Contains(lines.Bytes(), []byte("text")))
				if first && !released {
					_, rest, _ := strings.Cut(r.body, mark)
					name := mark + rest[:2]
					eventually(t, "the stream is held", func() error {
						return control(t, http.MethodPost, "/_sim/release?id="+name, nil)
					})
					released = true
				}
			}
			if err := lines.Err(); err != nil || !released {
				t.Fatalf("the stream ended with released=%v, %v", released, err)
			}
		})
	}
}
