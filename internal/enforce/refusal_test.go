package enforce

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/latchkey-dev/latchkey/internal/policy"
)

// refusals are what can be refused, in the order of a golden file: for each, its status, and OpenAI's code, OpenAI's param and Anthropic's type
// as the table of errors on the wire has them.
func refusals(good string) []struct {
	name                  string
	call                  call
	status                int
	code, param, typeName string
	says                  string // in the message's first 200 bytes
} {
	body := chat("gpt")
	return []struct {
		name                  string
		call                  call
		status                int
		code, param, typeName string
		says                  string
	}{
		{"no key", call{body: body}, 401, "", "", "authentication_error", "Authorization: Bearer KEY"},
		{"no key, unknown path", call{path: "/v1/nonsense", body: body}, 401, "", "", "authentication_error", "no API key"},
		{"no key, bad method", call{method: "PUT", body: body}, 401, "", "", "authentication_error", "no API key"},
		{"another scheme", call{headers: []string{"authorization", "Basic dXNlcjpwYXNz"}, body: body}, 401, "", "", "authentication_error", "Authorization: Bearer KEY"},
		{"a key without its scheme", call{headers: []string{"authorization", "{good}"}, body: body}, 401, "", "", "authentication_error", "without its scheme"},
		{"malformed key", call{headers: []string{"x-api-key", "sk-live-123"}, body: body}, 401, "invalid_api_key", "", "authentication_error", "malformed"},
		{"key of the wrong length", call{headers: []string{"x-api-key", "lk_0123"}, body: body}, 401, "invalid_api_key", "", "authentication_error", "52 letters and digits"},
		{"key with a wrong checksum", call{headers: []string{"x-api-key", "lk_" + strings.Repeat("0", 49)}, body: body}, 401, "invalid_api_key", "", "authentication_error", "checksum"},
		{"unknown or deleted key", call{key: keyUnknown, body: body}, 401, "invalid_api_key", "", "authentication_error", "unknown here, or has been deleted"},
		{"disabled key", call{key: keyDisabled, body: body}, 401, "api_key_disabled", "", "authentication_error", "disabled"},
		{"expired key", call{key: keyExpired, body: body}, 401, "api_key_expired", "", "authentication_error", "2026-05-04T12:00:00Z"},
		{"application disabled", call{key: keyClosed, body: body}, 401, "application_disabled", "", "authentication_error", `"closed"`},
		{"application unknown", call{key: keyOrphan, body: body}, 401, "application_disabled", "", "authentication_error", `"gone"`},
		{"two keys", call{key: keyGood, headers: []string{"x-api-key", "{text}"}, body: body}, 400, "", "", "invalid_request_error", "more than one API key"},
		{"key in the URL", call{key: keyGood, path: "/v1/chat/completions?key={good}", body: body}, 400, "", "", "invalid_request_error", "URLs"},
		{"control characters in the URL", call{key: keyGood, path: "/v1/chat/completions?a=b\r\nx: y", body: body}, 400, "", "", "invalid_request_error", "URL"},
		{"unknown path", call{key: keyGood, path: "/v1/nonsense", body: body}, 404, "", "", "not_found_error", "this gateway has chat/completions"},
		{"method not allowed", call{key: keyGood, method: "DELETE", body: body}, 405, "", "", "invalid_request_error", "use POST"},
		{"capability missing on the key", call{key: keyText, path: "/v1/embeddings", body: chat("embed")}, 403, "capability_not_allowed", "", "permission_error", "is not allowed Embeddings"},
		{"capability missing on the application", call{key: keyBounded, path: "/v1/images/generations", body: chat("paint")}, 403, "capability_not_allowed", "", "permission_error", `the application "Bounded" is not allowed ImageGeneration`},
		{"capability asked for by the body", call{key: keyText, body: `{"model":"gpt","web_search_options":{}}`}, 403, "capability_not_allowed", "", "permission_error", "is not allowed WebSearch"},
		{"two capabilities missing", call{key: keyBounded, body: `{"model":"nonsense","modalities":["audio"],"tools":[{"type":"web_search"}]}`}, 403, "capability_not_allowed", "", "permission_error", "TextToSpeech, WebSearch"},
		{"unknown model", call{key: keyGood, body: chat("gpt-9")}, 404, "model_not_found", "model", "not_found_error", `"gpt-9" does not exist`},
		{"model out of the key's scope", call{key: keyText, body: chat("same")}, 404, "model_not_found", "model", "not_found_error", `"same" does not exist`},
		{"model out of the application's scope", call{key: keyBounded, body: chat("same")}, 404, "model_not_found", "model", "not_found_error", `"same" does not exist`},
		{"model of an unknown format", call{key: keyGood, body: chat("formless")}, 404, "model_not_found", "model", "not_found_error", "does not exist"},
		{"model that cannot do it", call{key: keyGood, body: chat("embed")}, 400, "", "model", "invalid_request_error", "(TextGeneration): it does Embeddings"},
		{"model without web search", call{key: keyGood, body: `{"model":"same","web_search_options":{}}`}, 400, "", "model", "invalid_request_error", "(WebSearch): it does TextGeneration"},
		{"model of the other API", call{key: keyGood, body: chat("claude")}, 400, "", "model", "invalid_request_error", "call /v1/messages instead of /v1/chat/completions"},
		{"model of the other API, messages", call{key: keyGood, path: "/v1/messages", body: chat("gpt")}, 400, "", "model", "invalid_request_error", "call /v1/chat/completions instead of /v1/messages"},
		{"model of the other API, count_tokens", call{key: keyGood, path: "/messages/count_tokens", body: chat("gpt")}, 400, "", "model", "invalid_request_error", "does not count tokens"},
		{"empty body", call{key: keyGood}, 400, "", "", "invalid_request_error", "the body is empty"},
		{"not JSON", call{key: keyGood, body: "model=gpt"}, 400, "", "", "invalid_request_error", "not valid JSON"},
		{"no model", call{key: keyGood, body: `{"messages":[]}`}, 400, "", "model", "invalid_request_error", "names no model"},
		{"duplicated field", call{key: keyGood, body: `{"model":"gpt","model":"same"}`}, 400, "", "model", "invalid_request_error", "twice"},
		{"background response", call{key: keyGood, path: "/v1/responses", body: `{"model":"gpt","background":true}`}, 400, "", "background", "invalid_request_error", "background"},
		{"another content-type", call{key: keyGood, headers: []string{"content-type", "text/plain"}, body: body}, 400, "", "", "invalid_request_error", "application/json"},
		{"two content-types", call{key: keyGood, headers: []string{"content-type", "application/json", "content-type", "text/plain"}, body: body}, 400, "", "", "invalid_request_error", "content-type"},
		{"compressed body", call{key: keyGood, headers: []string{"content-encoding", "gzip"}, body: body}, 400, "", "", "invalid_request_error", "uncompressed"},
		{"key in the body", call{key: keyGood, body: `{"model":"gpt","user":"{good}"}`}, 400, "", "", "invalid_request_error", "take it out"},
		{"key in the body, escaped", call{key: keyGood, body: `{"model":"gpt","user":"\u006ck_` + good[3:] + `"}`}, 400, "", "", "invalid_request_error", "take it out"},
		{"key in the URL, percent-encoded", call{key: keyGood, path: "/v1/chat/completions?key=" + good[:30] + fmt.Sprintf("%%%02x", good[30]) + good[31:], body: body}, 400, "", "", "invalid_request_error", "URLs"},
		{"key in the host", call{key: keyGood, headers: []string{"host", "{good}.example.com"}, body: body}, 400, "", "", "invalid_request_error", "URLs"},
		{"key in the URL, without its beginning", call{key: keyGood, path: "/v1/models/" + good[9:], method: "GET"}, 400, "", "", "invalid_request_error", "URLs"},
		{"key without its beginning for a model", call{key: keyGood, body: chat(good[9:])}, 404, "model_not_found", "model", "not_found_error", `the model "…" does not exist`},
		{"key in a form's encoded file name", call{key: keyGood, path: "/v1/images/edits", headers: []string{"content-type", "multipart/form-data; boundary=b"},
			body: "--b\r\nContent-Disposition: form-data; name=model\r\n\r\npaint\r\n" +
				"--b\r\nContent-Disposition: form-data; name=image; filename*=utf-8''%6ck_" + good[3:] + "\r\n\r\nx\r\n--b--"}, 400, "", "", "invalid_request_error", "take it out"},
		{"form that is cut off", call{key: keyGood, path: "/v1/audio/transcriptions", headers: []string{"content-type", "multipart/form-data; boundary=b"}, body: "--b\r\n"}, 400, "", "", "invalid_request_error", "last boundary"},
	}
}

func TestRefusalsInBothDialects(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var golden strings.Builder
	for _, tc := range refusals(w.keys[keyGood]) {
		for _, dialect := range []string{"openai", "anthropic"} {
			c := tc.call
			if strings.Contains(c.path, "/messages") && dialect == "openai" {
				continue // Anthropic's by its path
			}
			if dialect == "anthropic" {
				c.headers = append(slices.Clone(c.headers), "anthropic-version", "2023-06-01")
			}
			t.Run(tc.name+", "+dialect, func(t *testing.T) {
				a := w.refused(t, c)
				if a.Status != tc.status {
					t.Fatalf("status %d %s; want %d", a.Status, a.Body, tc.status)
				}
				if id := valueOf(a.Headers, "x-request-id"); id != "req-1" {
					t.Errorf("x-request-id %q", id)
				}
				if message := messageOf(t, a); !strings.Contains(message[:min(len(message), 200)], tc.says) {
					t.Errorf("%q does not say %q in its first 200 bytes", message, tc.says)
				}
				checkShape(t, a, dialect, tc.code, tc.param, tc.typeName)
			})
			_, _, a := w.do(t, c)
			fmt.Fprintf(&golden, "# %s, %s: %s\n%s", tc.name, dialect, a.Reason, printed(a))
		}
	}
	compareGolden(t, "refusals.golden", golden.String())
}

// checkShape checks that an error has the fields of its dialect, and no others.
func checkShape(t *testing.T, a *Answer, dialect, code, param, typeName string) {
	t.Helper()
	var got map[string]any
	if err := json.Unmarshal(a.Body, &got); err != nil {
		t.Fatal(err)
	}
	orNull := func(s string) any {
		if s == "" {
			return nil
		}
		return s
	}
	want := map[string]any{
		"error": map[string]any{"message": messageOf(t, a), "type": "invalid_request_error", "param": orNull(param), "code": orNull(code)},
	}
	if dialect == "anthropic" {
		want = map[string]any{
			"type": "error", "request_id": "req-1",
			"error": map[string]any{"message": messageOf(t, a), "type": typeName},
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("body (-want +got):\n%s", diff)
	}
}

// printed is an answer as golden files have it.
func printed(a *Answer) string {
	var out strings.Builder
	fmt.Fprintf(&out, "%d\n", a.Status)
	for _, h := range a.Headers {
		fmt.Fprintf(&out, "%s: %s\n", h.Name, h.Value)
	}
	fmt.Fprintf(&out, "%s\n\n", a.Body)
	return out.String()
}

func compareGolden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got), mend it or run with -update:\n%s", path, diff)
	}
}

func TestMethodsThatAreAllowedAreTold(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for path, want := range map[string]string{"/v1/messages": "POST", "/v1/models/gpt": "GET, HEAD"} {
		if got := valueOf(w.refused(t, call{key: keyGood, method: "PATCH", path: path}).Headers, "allow"); got != want {
			t.Errorf("%s allows %q, want %q", path, got, want)
		}
	}
}

func TestTableThatIsNotFilled(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.table = NewTable()
	if err := w.table.Apply(&policy.Delta{Keys: []*policy.Key{{UID: "x"}}}); err != nil { // a change fills nothing
		t.Fatal(err)
	}
	var err error
	if w.engine, err = New(Options{Table: w.table, Ledger: newLedger(t, noon), Observer: w.observed, Now: noon}); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		call call
		want string
	}{
		"OpenAI":    {call{key: keyGood, body: chat("gpt")}, `"type":"server_error","param":null,"code":null`},
		"Anthropic": {call{key: keyGood, path: "/v1/messages", body: chat("claude")}, `"type":"api_error"`},
	} {
		a := w.refused(t, tc.call)
		// The SDKs shall try again: nothing tells them not to.
		if a.Status != 503 || !strings.Contains(string(a.Body), tc.want) || valueOf(a.Headers, "x-should-retry") != "" {
			t.Errorf("%s: %d %v %s", name, a.Status, a.Headers, a.Body)
		}
	}
}

// Whoever asks for a model that another has must not learn that it exists.
func TestModelOutOfScopeLooksUnknown(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, c := range []call{
		{key: keyText, body: chat("same")},
		{key: keyBounded, body: chat("embed")}, // which could not do it either
		{key: keyText, path: "/v1/messages", body: chat("claude")},
		{key: keyText, method: "GET", path: "/v1/models/claude"},
	} {
		hidden := w.refused(t, c)
		for _, name := range []string{"same", "embed", "claude"} {
			c.body, c.path = strings.ReplaceAll(c.body, name, "none"), strings.ReplaceAll(c.path, name, "none")
			hidden.Body = []byte(strings.ReplaceAll(string(hidden.Body), name, "none"))
		}
		if diff := cmp.Diff(hidden, w.refused(t, c)); diff != "" {
			t.Errorf("%+v: out of scope and unknown differ (-out of scope +unknown):\n%s", c, diff)
		}
	}
}

func TestKeyIsNotQuoted(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for name, c := range map[string]call{
		"as the model":                  {body: chat("{good}")},
		"as a part of the model":        {body: chat("{good}{good}")},
		"as the method":                 {method: "{good}", body: chat("gpt")},
		"as the path":                   {path: "/{good}", body: chat("gpt")},
		"as the path, percent-encoded":  {path: "/v1/%6ck" + w.keys[keyGood][2:], body: chat("gpt")},
		"in a broken percent-encoding":  {path: "/v1/%zz/%6ck" + w.keys[keyGood][2:] + "%", body: chat("gpt")},
		"as a model in the path":        {method: "GET", path: "/v1/models/{good}"},
		"in the query of a list":        {method: "GET", path: "/v1/models?after_id={good}"},
		"as the host":                   {headers: []string{"host", "{good}.example.com"}, body: chat("gpt")},
		"as a field, twice":             {body: `{"model":"gpt","{good}":1,"{good}":2}`},
		"as a field of a form":          {path: "/v1/images/edits", headers: []string{"content-type", "multipart/form-data; boundary=b"}, body: "--b\r\nContent-Disposition: {good}\r\n\r\n--b--"},
		"as a boundary":                 {path: "/v1/images/edits", headers: []string{"content-type", "multipart/form-data; boundary={good}"}, body: "--{good}--"},
		"as the content-type":           {headers: []string{"content-type", "{good}/x"}, body: chat("gpt")},
		"as the encoding":               {headers: []string{"content-encoding", "{good}"}, body: chat("gpt")},
		"as the scheme of another":      {headers: []string{"authorization", "{good} {good}"}, body: chat("gpt")},
		"with a tab behind the scheme":  {headers: []string{"authorization", "Bearer\t{good}"}, body: chat("gpt")},
		"without a scheme":              {headers: []string{"authorization", "{good}"}, body: chat("gpt")},
		"as a body that is not JSON":    {body: "{good}"},
		"in a name that is cut off, 1":  {body: `{"model":"gpt","` + strings.Repeat("x", 30) + `{good}":1,"` + strings.Repeat("x", 30) + `{good}":2}`},
		"in a model that is cut off, 2": {body: chat(strings.Repeat("x", 60) + "{good}")},
	} {
		t.Run(name, func(t *testing.T) {
			if len(c.headers) == 0 || c.headers[0] != "authorization" {
				c.key = keyGood
			}
			c.method = w.expand(c.method)
			w.refused(t, c)
		})
	}
}

func TestRequestIDs(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for name, tc := range map[string]struct{ sent, want string }{
		"a UUID":              {"3f0c9a5e-1111-4222-8333-444455556666", "3f0c9a5e-1111-4222-8333-444455556666"},
		"none":                {"", ""},
		"one that is a key":   {w.keys[keyUnknown], ""},
		"one that holds some": {"a-" + w.keys[keyGood], ""},
		"one of two lines":    {"a\r\nset-cookie: b", ""},
		"one that is long":    {strings.Repeat("a", 129), ""},
	} {
		head := Head{Method: "POST", Path: "/v1/messages", Headers: []Header{{"x-request-id", tc.sent}}}
		_, a := w.engine.Begin(head)
		w.checkAnswer(t, a)
		if got := valueOf(a.Headers, "x-request-id"); got != tc.want {
			t.Errorf("%s: echoed %q", name, got)
		}
		if got := w.observed.last(t).RequestID; got != tc.want {
			t.Errorf("%s: observed %q", name, got)
		}
	}
}
