package enforce

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/latchkey-dev/latchkey/internal/policy"
)

const keyReplacing = "replacing"

// rotated gives the good key a second secret, and the first an end.
func (w *world) rotated(t testing.TB, ends time.Time) {
	t.Helper()
	replacing := mint(t, keyReplacing)
	w.keys[keyReplacing] = replacing.Reveal()
	w.changed(t, keyGood, func(k *policy.Key) {
		first := k.Credentials[0]
		first.Ends = ends
		k.Credentials = []policy.Credential{{Hash: replacing.Hash(), Prefix: replacing.Prefix()}, first}
	})
}

func TestAnEarlierSecretEndsToTheNanosecond(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		head, body time.Duration // after its end, when each comes
		refused    bool
		byTheHead  bool
	}{
		"a nanosecond before":          {-1, -1, false, false},
		"at the moment itself":         {0, 0, true, true},
		"long after":                   {1 << 61, 1 << 61, true, true},
		"while the body is on its way": {-1, 0, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.rotated(t, noon())
			now := noon().Add(tc.head)
			engine := clockedEngine(t, w, &now)
			x, answer := engine.Begin(w.head(call{key: keyGood, body: chat("gpt")}))
			if (answer != nil) != tc.byTheHead {
				t.Fatalf("by its head: got %+v; want refused %v", answer, tc.byTheHead)
			}
			if answer == nil {
				now = noon().Add(tc.body)
				_, answer = x.Body(t.Context(), []byte(chat("gpt")))
			}
			if (answer != nil) != tc.refused {
				t.Fatalf("answer %+v; want refused %v", answer, tc.refused)
			}
			if answer != nil {
				w.checkAnswer(t, answer)
				if said := messageOf(t, answer); answer.Reason != "key_rotated" || answer.Status != http.StatusUnauthorized ||
					!strings.Contains(said, "2026-05-04T12:00:00Z: use the new one") || !strings.Contains(said, mint(t, keyGood).Prefix()) {
					t.Errorf("refused with %d %s: %s", answer.Status, answer.Reason, said)
				}
			}
			// The one that took its place goes on.
			x, answer = engine.Begin(w.head(call{key: keyReplacing, body: chat("gpt")}))
			if answer == nil {
				_, answer = x.Body(t.Context(), []byte(chat("gpt")))
			}
			if answer != nil {
				t.Errorf("the new secret is refused: %+v", answer)
			}
		})
	}
}

func TestTwoSecretsHaveOneAccount(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.rotated(t, noon().Add(time.Hour))
	w.changed(t, keyGood, func(k *policy.Key) { k.Limits.RequestsPerMinute = 2 })
	for i, tc := range []struct {
		key    string
		status int
	}{{keyGood, 0}, {keyReplacing, 0}, {keyReplacing, http.StatusTooManyRequests}, {keyGood, http.StatusTooManyRequests}} {
		_, _, answer := w.do(t, call{key: tc.key, body: chat("gpt")})
		status := 0
		if answer != nil {
			status = answer.Status
		}
		if status != tc.status {
			t.Errorf("request %d, with %s: got %d, want %d", i+1, tc.key, status, tc.status)
		}
	}
}

func TestWhatTheHolderOfAnEarlierSecretIsTold(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ends := noon().Add(time.Hour)
	w.rotated(t, ends)
	now := noon()
	engine := clockedEngine(t, w, &now)
	ask := func(key string) (*Answer, map[string]any) {
		_, answer := engine.Begin(w.head(call{key: key, method: http.MethodGet, path: "/v1/key"}))
		if answer == nil {
			t.Fatal("no answer")
		}
		var body struct {
			Data map[string]any `json:"data"`
		}
		if err := json.Unmarshal(answer.Body, &body); err != nil {
			t.Fatal(err)
		}
		return answer, body.Data
	}
	for key, want := range map[string]any{keyGood: "2026-05-04T13:00:00Z", keyReplacing: nil} {
		_, data := ask(key)
		if data["expires_at"] != want || data["key_prefix"] != mint(t, key).Prefix() || (data["replaced"] != nil) != (want != nil) {
			t.Errorf("with %s: %v", key, data)
		}
	}
	// An earlier expiry of the key itself counts for both.
	w.changed(t, keyGood, func(k *policy.Key) { k.Expires = noon().Add(time.Minute) })
	for _, key := range []string{keyGood, keyReplacing} {
		if _, data := ask(key); data["expires_at"] != "2026-05-04T12:01:00Z" {
			t.Errorf("with %s: %v", key, data["expires_at"])
		}
	}
	// What has ended is told nothing any more: it may be in the wrong hands.
	now = ends
	if answer, data := ask(keyGood); answer.Status != http.StatusUnauthorized || data != nil {
		t.Errorf("after its end: %d %v", answer.Status, data)
	}
}
