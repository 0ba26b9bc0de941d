package e2e

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"mime/multipart"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	"github.com/latchkey-dev/latchkey/internal/policy"
)

const anthropicVersion = "2023-06-01"

// TestAnswers goes through what a caller can do wrong, with the real Envoy in between. "self" in a header stands for the key.
func TestAnswers(t *testing.T) {
	tn := newTenant(t)
	_, key := tn.newKey("answers", func(s *v1alpha1.APIKeySpec) {
		s.Capabilities = []v1alpha1.Capability{v1alpha1.CapabilityTextGeneration}
		s.Models = v1alpha1.ModelScope{Access: v1alpha1.ModelAccessList, Names: []v1alpha1.ModelName{"gpt-5-mini", "claude-sonnet-4-5", "text-embedding-3-small", "broken-credential", "nowhere"}}
	})
	_, other := tn.newKey("other")
	message := func(text string) string {
		return strings.TrimSuffix(chat("claude-sonnet-4-5", text), "}") + `,"max_tokens":9}`
	}
	big := strings.Repeat("x", policy.DefaultMaxRequestBytes+1)
	for name, tc := range map[string]struct {
		key    string
		r      request
		status int
		code   string
		says   []string
	}{
		"a good call":                        {key, request{}, 200, "", nil},
		"without /v1":                        {key, request{path: "/chat/completions"}, 200, "", nil},
		"a key in x-api-key":                 {"", request{headers: map[string]string{"x-api-key": key}}, 200, "", nil},
		"a key in api-key":                   {"", request{headers: map[string]string{"api-key": key}}, 200, "", nil},
		"the same key twice":                 {key, request{headers: map[string]string{"x-api-key": key}}, 200, "", nil},
		"a bearer in small letters":          {"", request{headers: map[string]string{"authorization": "bearer " + key}}, 200, "", nil},
		"an Anthropic message":               {key, request{path: "/v1/messages", body: message("hi"), headers: map[string]string{"anthropic-version": anthropicVersion}}, 200, "", nil},
		"no key":                             {"", request{}, 401, "invalid_request_error", []string{"Authorization"}},
		"no key, Anthropic":                  {"", request{path: "/v1/messages", body: message("hi")}, 401, "authentication_error", nil},
		"no key on an unknown path":          {"", request{path: "/v1/nonsense"}, 401, "", nil},
		"a malformed key":                    {"sk-live-1234567890", request{}, 401, "invalid_api_key", []string{"lk_"}},
		"an unknown key":                     {"lk_LQNUGZHT5u543eF8cvF8tKdPlcVkNSYQAq1KIqZ6f742wBNO5", request{}, 401, "invalid_api_key", nil},
		"another scheme":                     {"", request{headers: map[string]string{"authorization": "Basic dXNlcjpwYXNz"}}, 401, "", []string{"Bearer"}},
		"two keys that differ":               {key, request{headers: map[string]string{"x-api-key": other}}, 400, "invalid_request_error", nil},
		"a key in the URL":                   {key, request{path: "/v1/chat/completions?key=" + key}, 400, "", []string{"URL"}},
		"a capability not granted":           {key, request{path: "/v1/embeddings", body: `{"model":"text-embedding-3-small","input":"x"}`}, 403, "capability_not_allowed", []string{"Embeddings"}},
		"a model out of scope":               {key, request{body: chat("gpt-5", "hi")}, 404, "model_not_found", []string{"gpt-5"}},
		"a model that is unknown":            {key, request{body: chat("gpt-9", "hi")}, 404, "model_not_found", []string{"gpt-9"}},
		"a model of the other dialect":       {key, request{body: chat("claude-sonnet-4-5", "hi")}, 400, "invalid_request_error", []string{"/v1/messages"}},
		"a model that cannot do it":          {key, request{body: chat("text-embedding-3-small", "hi")}, 400, "invalid_request_error", nil},
		"an unknown path":                    {key, request{path: "/v1/nonsense"}, 404, "invalid_request_error", nil},
		"an unknown path, Anthropic":         {key, request{path: "/v1/messages/nonsense"}, 404, "not_found_error", nil},
		"an escaped slash in the path":       {key, request{path: "/v1/chat%2Fcompletions"}, 400, "", nil},
		"a path that climbs":                 {key, request{path: "/v1/models/../chat/completions"}, 200, "", nil},
		"a body that is not JSON":            {key, request{body: "model=gpt"}, 400, "invalid_request_error", []string{"JSON"}},
		"a body cut off":                     {key, request{body: `{"model":"gpt-5-mini"`}, 400, "invalid_request_error", []string{"JSON"}},
		"an empty body":                      {key, request{body: " "}, 400, "invalid_request_error", nil},
		"no model":                           {key, request{body: `{"messages":[]}`}, 400, "invalid_request_error", []string{"model"}},
		"a model that is no string":          {key, request{body: `{"model":5}`}, 400, "invalid_request_error", []string{"model"}},
		"a field twice":                      {key, request{body: `{"model":"gpt-5-mini","model":"gpt-5","messages":[]}`}, 400, "invalid_request_error", []string{"model"}},
		"a field twice, once escaped":        {key, request{body: `{"model":"gpt-5-mini","mod\u0065l":"gpt-5","messages":[]}`}, 400, "invalid_request_error", []string{"model"}},
		"a field twice, in other letters":    {key, request{body: `{"model":"gpt-5-mini","Model":"gpt-5","messages":[]}`}, 400, "invalid_request_error", []string{"Model"}},
		"a compressed body":                  {key, request{headers: map[string]string{"content-encoding": "gzip"}}, 400, "invalid_request_error", []string{"gzip"}},
		"a body too large":                   {key, request{body: big}, 413, "", []string{"32"}},
		"a body too large, Anthropic":        {key, request{path: "/v1/messages", body: big}, 413, "request_too_large", nil},
		"a method that the path does not do": {key, request{method: "PUT", body: "{}"}, 405, "", nil},
		"the provider refuses us":            {key, request{body: chat("broken-credential", "hi")}, 502, "server_error", []string{"miscredentialed"}},
		"the provider cannot be reached":     {key, request{body: chat("nowhere", "hi")}, 503, "server_error", nil},
		"the provider's own error":           {key, request{body: chat("gpt-5-mini", "sim:status=500")}, 500, "", nil},
		"the provider's own rate limit":      {key, request{body: chat("gpt-5-mini", "sim:status=429")}, 429, "", nil},
		"routing by the caller's header":     {key, request{headers: map[string]string{policy.ProviderHeader: "anthropic"}}, 200, "", nil},
		"routing by header, model refused":   {key, request{body: chat("gpt-5", "x"), headers: map[string]string{policy.ProviderHeader: "openai"}}, 404, "model_not_found", nil},
	} {
		t.Run(name, func(t *testing.T) {
			a := call(t, tc.key, tc.r)
			short := a.body[:min(len(a.body), 600)]
			if a.status != tc.status || (tc.code != "" && a.code() != tc.code) {
				t.Fatalf("got %d %s; want %d %s", a.status, short, tc.status, tc.code)
			}
			for _, part := range tc.says {
				if !strings.Contains(a.body, part) {
					t.Errorf("%s does not say %q", short, part)
				}
			}
			if got := a.header.Get("Content-Type"); !strings.HasPrefix(got, "application/json") {
				t.Errorf("content-type %q", got)
			}
			// Envoy refuses a path with an escaped slash before it gives the request an id.
			if a.header.Get("X-Request-Id") == "" && a.header.Get("Request-Id") == "" && !strings.Contains(tc.r.path, "%2F") {
				t.Error("no x-request-id")
			}
			if tc.key != "" && strings.Contains(a.body, tc.key[min(len(tc.key), 9):]) {
				t.Errorf("the answer quotes the key: %s", short)
			}
			if strings.Contains(a.body, "sk-wrong") {
				t.Errorf("the answer quotes the provider's credential: %s", short)
			}
		})
	}
}

// TestMultipart sends what the SDKs send for audio, and what they would not.
func TestMultipart(t *testing.T) {
	_, key := newTenant(t).newKey("multipart")
	build := func(write func(*multipart.Writer)) request {
		var body bytes.Buffer
		w := multipart.NewWriter(&body)
		file, err := w.CreateFormFile("file", "a.wav")
		if err != nil {
			t.Fatal(err)
		}
		_, _ = file.Write([]byte("RIFF\x00\xff\r\n--not-the-boundary\r\n"))
		write(w)
		_ = w.Close()
		return request{path: "/v1/audio/transcriptions", body: body.String(), headers: map[string]string{"content-type": w.FormDataContentType()}}
	}
	field := func(name, value string) func(*multipart.Writer) {
		return func(w *multipart.Writer) { _ = w.WriteField(name, value) }
	}
	for name, tc := range map[string]struct {
		r      request
		status int
		code   string
	}{
		"a model":              {build(field("model", "gpt-4o-transcribe")), 200, ""},
		"a model to be mapped": {build(field("model", "listener")), 200, ""},
		"an unknown model":     {build(field("model", "whisper-9")), 404, "model_not_found"},
		"no model":             {build(field("language", "de")), 400, "invalid_request_error"},
		"two models": {build(func(w *multipart.Writer) {
			field("model", "gpt-4o-transcribe")(w)
			field("model", "gpt-5")(w)
		}), 400, "invalid_request_error"},
		"JSON in its place": {request{path: "/v1/audio/transcriptions", body: `{"model":"gpt-4o-transcribe"}`}, 400, "invalid_request_error"},
	} {
		t.Run(name, func(t *testing.T) {
			if a := call(t, key, tc.r); a.status != tc.status || (tc.code != "" && a.code() != tc.code) {
				t.Fatalf("got %v; want %d %s", a, tc.status, tc.code)
			}
		})
	}
}

// TestListings asks for models as SDKs and tools do.
func TestListings(t *testing.T) {
	_, key := newTenant(t, func(s *v1alpha1.ApplicationSpec) {
		s.Models = &v1alpha1.ModelScope{Access: v1alpha1.ModelAccessList, Names: []v1alpha1.ModelName{"gpt-5-mini", "fast", "claude-sonnet-4-5"}}
	}).newKey("listing", func(s *v1alpha1.APIKeySpec) {
		s.Models = v1alpha1.ModelScope{Access: v1alpha1.ModelAccessList, Names: []v1alpha1.ModelName{"gpt-5-mini", "claude-sonnet-4-5", "gpt-5"}}
	})
	get := func(path string, headers map[string]string) answer {
		return call(t, key, request{method: http.MethodGet, path: path, headers: headers})
	}
	for _, path := range []string{"/v1/models", "/models"} {
		a := get(path, nil)
		if a.status != 200 || !strings.Contains(a.body, `"object":"list"`) || !strings.Contains(a.body, `"gpt-5-mini"`) ||
			!strings.Contains(a.body, `"claude-sonnet-4-5"`) || strings.Contains(a.body, `"fast"`) || strings.Contains(a.body, `"gpt-5"`) {
			t.Errorf("GET %s: %v", path, a)
		}
	}
	if a := get("/v1/models", map[string]string{"anthropic-version": anthropicVersion}); a.status != 200 || !strings.Contains(a.body, `"has_more":false`) {
		t.Errorf("in Anthropic's dialect: %v", a)
	}
	if a := get("/v1/models/gpt-5-mini", nil); a.status != 200 || !strings.Contains(a.body, `"id":"gpt-5-mini"`) {
		t.Errorf("one model: %v", a)
	}
	hidden, unknown := get("/v1/models/gpt-5", nil), get("/v1/models/gpt-x", nil)
	if hidden.status != 404 || strings.ReplaceAll(hidden.body, "gpt-5", "gpt-x") != unknown.body {
		t.Errorf("a model out of scope answers %v, an unknown one %v", hidden, unknown)
	}
}

// TestSmuggling sends, byte by byte, what HTTP clients do not send.
func TestSmuggling(t *testing.T) {
	tn := newTenant(t)
	_, key := tn.newKey("smuggler", func(s *v1alpha1.APIKeySpec) {
		s.Models = v1alpha1.ModelScope{Access: v1alpha1.ModelAccessList, Names: []v1alpha1.ModelName{"gpt-5-mini"}}
	})
	_, other := tn.newKey("other")
	host := strings.TrimPrefix(theStack.GatewayURL(), "http://")
	good := chat("gpt-5-mini", "hi")
	for name, tc := range map[string]struct {
		head   string
		body   string
		status []int
	}{
		"two Authorization headers":   {fmt.Sprintf("Authorization: Bearer %s\r\nAuthorization: Bearer %s\r\nContent-Length: %d", key, other, len(good)), good, []int{400}},
		"a list in one header":        {fmt.Sprintf("Authorization: Bearer %s, Bearer %s\r\nContent-Length: %d", key, other, len(good)), good, []int{400, 401}},
		"two lengths":                 {fmt.Sprintf("Authorization: Bearer %s\r\nContent-Length: %d\r\nContent-Length: %d", key, len(good), len(good)+5), good, []int{400}},
		"length and chunks":           {fmt.Sprintf("Authorization: Bearer %s\r\nContent-Length: %d\r\nTransfer-Encoding: chunked", key, len(good)), fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(good), good), []int{400}},
		"a header with an underscore": {fmt.Sprintf("Authorization: Bearer %s\r\nx_latchkey_provider: anthropic\r\nContent-Length: %d", key, len(good)), good, []int{400}},
		"a header folded over lines":  {fmt.Sprintf("Authorization: Bearer\r\n %s\r\nContent-Length: %d", key, len(good)), good, []int{200}}, // Envoy unfolds it: one header, one meaning
		"a nul in a header":           {fmt.Sprintf("Authorization: Bearer %s\x00\r\nContent-Length: %d", key, len(good)), good, []int{400}},
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", host)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			if _, err := fmt.Fprintf(conn, "POST /v1/chat/completions HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nConnection: close\r\n%s\r\n\r\n%s", host, tc.head, tc.body); err != nil {
				t.Fatal(err)
			}
			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = resp.Body.Close() }()
			body, _ := io.ReadAll(resp.Body)
			if !slices.Contains(tc.status, resp.StatusCode) {
				t.Fatalf("got %d %s; want one of %v", resp.StatusCode, body, tc.status)
			}
		})
	}
}
