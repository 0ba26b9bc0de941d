package enforce

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/latchkey-dev/latchkey/internal/key"
	"github.com/latchkey-dev/latchkey/internal/llm"
	"github.com/latchkey-dev/latchkey/internal/policy"
)

// FuzzDecide tries to get a request forwarded without a good key, a key forwarded with a request, and an answer that is none.
func FuzzDecide(f *testing.F) {
	for _, seed := range []struct{ method, path, headers, body string }{
		{"POST", "/v1/chat/completions", "authorization: Bearer {good}\ncontent-type: application/json", chat("gpt")},
		{"POST", "/chat/completions?x={good}", "x-api-key: {good}", chat("same")},
		{"POST", "/v1/messages", "x-api-key: {text}\napi-key: {good}", chat("claude")},
		{"POST", "/v1/messages", "x-api-key: {good}\nanthropic-version: 1\nx-other: a{good}", chat("claude")},
		{"POST", "/v1/chat/completions", "authorization: Basic {good}\nx-request-id: {good}", chat("{good}")},
		{"POST", "/v1/chat/completions", "api-key: {good}\nhost: {good}", `{"model":"same","user":"{good}"}`},
		{"POST", "/v1/audio/transcriptions", "api-key: {good}\ncontent-type: multipart/form-data; boundary=b", "--b\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nears\r\n--b--\r\n"},
		{"POST", "/v1/images/edits", "api-key: {good}\ncontent-type: multipart/form-data; boundary={good}", "--{good}\nContent-Disposition: form-data; name=model\n\npaint\n--{good}--"},
		{"GET", "/v1/models/org/odd%20name:1?limit=1", "api-key: {good}", ""},
		{"HEAD", "/models?after_id=a&limit=2", "api-key: {good}\nanthropic-version: 1", ""},
		{"POST", "/v1/responses", "api-key: {bounded}", `{"model":"gpt","tools":[{"type":"web_search"}]}`},
		{"POST", "/v1/embeddings", "api-key: {expired}", chat("embed")},
	} {
		f.Add(seed.method, seed.path, seed.headers, []byte(seed.body))
	}
	w := newWorld(f)
	inForce := []string{keyGood, keyText, keyBounded}
	f.Fuzz(func(t *testing.T, method, path, headers string, body []byte) {
		head := Head{Method: w.expand(method), Path: w.expand(path), EndStream: len(body) == 0}
		for line := range strings.Lines(headers) {
			name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
			head.Headers = append(head.Headers, Header{strings.ToLower(w.expand(name)), strings.TrimSpace(w.expand(value))})
		}
		body = []byte(w.expand(string(body)))
		before := bytes.Clone(body)
		x, answer := w.engine.Begin(head)
		if (x == nil) == (answer == nil) {
			t.Fatalf("Begin gave exchange %v and answer %v", x, answer)
		}
		var forward *Forward
		if answer == nil {
			if forward, answer = x.Body(t.Context(), body); (forward == nil) == (answer == nil) {
				t.Fatalf("Body gave forward %v and answer %v", forward, answer)
			}
		}
		if !bytes.Equal(before, body) {
			t.Fatalf("the body was changed from %q to %q", before, body)
		}
		if answer != nil {
			w.checkFuzzedAnswer(t, head, answer)
			return
		}
		sentBy := ""
		for _, name := range inForce {
			if sentOnly(head, w.keys[name]) {
				sentBy = name
			}
		}
		if sentBy == "" {
			t.Fatalf("forwarded without a key in force: %+v", head)
		}
		w.checkForward(t, head, forward, body, w.keys[sentBy])
		answer, _ = x.ResponseHead(401, nil, false)
		if answer == nil || answer.Status != 502 {
			t.Fatalf("a provider's 401 became %+v", answer)
		}
		w.checkFuzzedAnswer(t, head, answer)
	})
}

// sentOnly reports whether the key is the one credential of a request, in whichever of the headers.
func sentOnly(head Head, plaintext string) bool {
	sent := false
	for _, h := range head.Headers {
		value := strings.TrimSpace(h.Value)
		switch h.Name {
		case "authorization":
			scheme, credential, _ := strings.Cut(value, " ")
			if value != "" && !strings.EqualFold(scheme, "bearer") {
				return false
			}
			value = strings.TrimSpace(credential)
		case "x-api-key", "api-key":
		default:
			continue
		}
		if value != "" && value != plaintext {
			return false
		}
		sent = sent || value == plaintext
	}
	return sent
}

// checkFuzzedAnswer checks an answer for what it quotes of the caller's own key. Others it may be shown, for it sent them; and a caller that
// sends its key in pieces gets the pieces back.
func (w *world) checkFuzzedAnswer(t *testing.T, head Head, a *Answer) {
	t.Helper()
	only := *w
	only.keys = map[string]string{}
	credential, refused := (&Exchange{head: head}).presented()
	if refused == nil {
		if plaintext, err := key.Parse(credential); err == nil && !strings.Contains(head.Method+head.Path, credential[key.PrefixLength:]) {
			only.keys["presented"] = plaintext.Reveal()
		}
	}
	only.checkAnswer(t, a)
	if a.Status < 200 || a.Status > 599 || a.Reason == "" {
		t.Fatalf("status %d, reason %q", a.Status, a.Reason)
	}
}

// checkForward plays the adapter, and looks for the key in what a provider would get.
func (w *world) checkForward(t *testing.T, head Head, forward *Forward, body []byte, plaintext string) {
	t.Helper()
	plaintext = plaintext[key.PrefixLength:]
	for _, h := range head.Headers {
		if slices.Contains(forward.Remove, h.Name) {
			continue
		}
		if strings.Contains(h.Value, plaintext) {
			t.Fatalf("the key stays in header %s", h.Name)
		}
		if strings.HasPrefix(h.Name, "x-latchkey-") || h.Name == "authorization" {
			t.Fatalf("header %s stays", h.Name)
		}
	}
	for _, h := range forward.Set {
		if strings.Contains(h.Value, plaintext) {
			t.Fatalf("the key is put into header %s", h.Name)
		}
	}
	if forward.Body != nil {
		body = forward.Body
	}
	if strings.Contains(forward.Path, plaintext) || bytes.Contains(body, []byte(plaintext)) {
		t.Fatalf("the key stays in %q or %q", forward.Path, body)
	}
	path, _, _ := strings.Cut(forward.Path, "?")
	if route, err := llm.Match("POST", path); err != nil || route.Path != path {
		t.Fatalf("forwarded to %q: %v", forward.Path, err)
	}
	if strings.ContainsAny(forward.Path, " \r\n\x00#") || (forward.Provider != "openai-eu" && forward.Provider != "anthropic-eu") {
		t.Fatalf("forwarded to %q of %q", forward.Path, forward.Provider)
	}
}

// quiet is an Observer that costs nothing.
type quiet struct{}

func (quiet) Decided(Decision)   {}
func (quiet) Metered(Metering)   {}
func (quiet) LedgerFailed(error) {}

// crowded is an engine with 100,000 keys in its table besides the world's.
func crowded(b *testing.B, w *world) *Engine {
	b.Helper()
	const keys = 100_000
	random := rand.New(rand.NewPCG(1, 2))
	many := &policy.Delta{}
	for i := range keys {
		var h policy.KeyHash
		for j := range h {
			h[j] = byte(random.Uint32())
		}
		many.Keys = append(many.Keys, &policy.Key{UID: strconv.Itoa(i), Namespace: "team", Application: "shop", Credentials: []policy.Credential{{Hash: h}}})
	}
	if err := w.table.Apply(many); err != nil {
		b.Fatal(err)
	}
	if got, _, _ := w.table.Counts(); got < keys {
		b.Fatalf("the table holds %d keys", got)
	}
	engine, err := New(Options{Table: w.table, Ledger: newLedger(b, noon), Observer: quiet{}, Now: noon})
	if err != nil {
		b.Fatal(err)
	}
	return engine
}

// benchmarkHead is the head of a chat request as an SDK sends it: 12 headers.
func benchmarkHead(w *world, name string) Head {
	return w.head(call{key: name, headers: []string{
		"host", "gateway.example.com", "user-agent", "OpenAI/Python 2.0.0", "accept", "application/json", "accept-encoding", "gzip, deflate", "connection", "keep-alive",
		"content-length", "1024", "x-stainless-lang", "python", "x-stainless-os", "Linux", "x-stainless-runtime", "CPython",
	}, body: " "})
}

// BenchmarkDecide is a chat request of 1 KiB, whose model has another name at the provider.
func BenchmarkDecide(b *testing.B) {
	w := newWorld(b)
	engine, head := crowded(b, w), benchmarkHead(w, keyGood)
	text := strings.Repeat("lorem ipsum dolor sit amet ", 36)
	body := []byte(`{"messages":[{"role":"user","content":"` + text + `"}],"model":"gpt","stream":false,"temperature":0.5}`)
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		x, answer := engine.Begin(head)
		if answer != nil {
			b.Fatalf("refused: %s", answer.Body)
		}
		if _, answer := x.Body(b.Context(), body); answer != nil {
			b.Fatalf("refused: %s", answer.Body)
		}
	}
}

// BenchmarkRefuseUnknownKey is what whoever guesses keys can cost: the key has the right form, so that it is looked up.
func BenchmarkRefuseUnknownKey(b *testing.B) {
	w := newWorld(b)
	engine, head := crowded(b, w), benchmarkHead(w, keyUnknown)
	b.ReportAllocs()
	for b.Loop() {
		if _, answer := engine.Begin(head); answer == nil || answer.Reason != "key_unknown" {
			b.Fatalf("got %+v", answer)
		}
	}
}
