package provider

import (
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestRefusals(t *testing.T) {
	s := start(t, Config{Models: []string{"m"}, MaxBody: 2000})
	openAIError := func(kind, message string, param, code any) object {
		return object{"error": object{"type": kind, "message": message, "param": param, "code": code}}
	}
	anthropicError := func(kind, message string) object {
		return object{"type": "error", "error": object{"type": kind, "message": message}}
	}
	const badJSON = "We could not parse the JSON body of your request. The API expects a JSON object."
	tests := map[string]struct {
		path   string
		body   any
		raw    string // in place of body
		change func(*http.Request)
		status int
		want   object
	}{
		"OpenAI: a wrong key is echoed in part": {
			path: "/v1/chat/completions", body: chat("hi"), status: 401,
			change: func(r *http.Request) { r.Header.Set("Authorization", "Bearer lk_caller_0123456789") },
			want: openAIError("invalid_request_error",
				"Incorrect API key provided: lk_calle********6789. You can find your API key at https://platform.openai.com/account/api-keys.", nil, "invalid_api_key"),
		},
		"OpenAI: no key": {
			path: "/v1/embeddings", body: object{"model": "m", "input": "x"}, status: 401, change: func(r *http.Request) { r.Header.Del("Authorization") },
			want: openAIError("invalid_request_error", "You didn't provide an API key. You need to provide your API key in an Authorization header using Bearer auth (i.e. Authorization: Bearer YOUR_KEY).", nil, nil),
		},
		"Anthropic: a wrong key": {
			path: "/v1/messages", body: message("hi"), status: 401, change: func(r *http.Request) { r.Header.Set("x-api-key", "x") },
			want: anthropicError("authentication_error", "invalid x-api-key"),
		},
		"Anthropic: a bearer token is no key": {
			path: "/v1/messages", body: message("hi"), status: 401,
			change: func(r *http.Request) {
				r.Header.Del("x-api-key")
				r.Header.Set("Authorization", "Bearer "+testAnthropicKey)
			},
			want: anthropicError("authentication_error", "x-api-key header is required"),
		},
		"Anthropic: no version": {
			path: "/v1/messages", body: message("hi"), status: 400, change: func(r *http.Request) { r.Header.Del("anthropic-version") },
			want: anthropicError("invalid_request_error", "anthropic-version: header is required"),
		},
		"OpenAI: an unknown model": {
			path: "/v1/responses", body: object{"model": "other", "input": "x"}, status: 404,
			want: openAIError("invalid_request_error", "The model `other` does not exist or you do not have access to it.", nil, "model_not_found"),
		},
		"OpenAI: of a model given twice the last counts, and case matters": {
			path: "/v1/responses", raw: `{"model":"m","model":"other","MODEL":"m","input":"x"}`, status: 404,
			want: openAIError("invalid_request_error", "The model `other` does not exist or you do not have access to it.", nil, "model_not_found"),
		},
		"Anthropic: an unknown model": {
			path: "/v1/messages/count_tokens", body: message("x", object{"model": "other"}), status: 404, want: anthropicError("not_found_error", "model: other"),
		},
		"OpenAI: no model": {
			path: "/v1/chat/completions", body: chat("x", object{"model": nil}), status: 400,
			want: openAIError("invalid_request_error", "you must provide a model parameter", "model", nil),
		},
		"OpenAI: a model of the wrong type": {
			path: "/v1/chat/completions", body: chat("x", object{"model": 7}), status: 400,
			want: openAIError("invalid_request_error", "Invalid type for 'model'.", "model", "invalid_type"),
		},
		"OpenAI: a body that is no JSON":    {path: "/v1/chat/completions", raw: `{"model":`, status: 400, want: openAIError("invalid_request_error", badJSON, nil, nil)},
		"OpenAI: JSON that is no object":    {path: "/v1/chat/completions", raw: `null`, status: 400, want: openAIError("invalid_request_error", badJSON, nil, nil)},
		"Anthropic: a body that is no JSON": {path: "/v1/messages", raw: `[`, status: 400, want: anthropicError("invalid_request_error", badJSON)},
		"OpenAI: JSON that is called a form": {
			path: "/v1/chat/completions", body: chat("x"), status: 400, change: func(r *http.Request) { r.Header.Set("Content-Type", "application/x-www-form-urlencoded") },
			want: openAIError("invalid_request_error", "Unsupported content type: 'application/x-www-form-urlencoded'. This API method only accepts 'application/json' requests.", nil, "unsupported_content_type"),
		},
		"OpenAI: a broken form": {
			path: "/v1/audio/transcriptions", raw: "--b\r\nno header", status: 400, change: func(r *http.Request) { r.Header.Set("Content-Type", "multipart/form-data; boundary=b") },
			want: openAIError("invalid_request_error", "Could not parse multipart form", nil, nil),
		},
		"Anthropic: no max_tokens": {path: "/v1/messages", body: chat("x"), status: 400, want: anthropicError("invalid_request_error", "max_tokens: Field required")},
		"OpenAI: no messages": {
			path: "/v1/chat/completions", body: object{"model": "m"}, status: 400,
			want: openAIError("invalid_request_error", "Missing required parameter: 'messages'.", "messages", nil),
		},
		"OpenAI: a body too large": {
			path: "/v1/chat/completions", body: chat(strings.Repeat("x", 2000)), status: 413,
			want: openAIError("invalid_request_error", "Request exceeds the maximum size of 2000 bytes", nil, nil),
		},
		"Anthropic: a body too large": {
			path: "/v1/messages", body: message(strings.Repeat("x", 2000)), status: 413, want: anthropicError("request_too_large", "Request exceeds the maximum size of 2000 bytes"),
		},
		"an unknown path": {path: "/v1/chat", body: chat("x"), status: 404, want: openAIError("invalid_request_error", "Invalid URL (POST /v1/chat)", nil, nil)},
		"a path without the base": {
			path: "/chat/completions", body: chat("x"), status: 404, want: openAIError("invalid_request_error", "Invalid URL (POST /chat/completions)", nil, nil),
		},
		"a wrong method": {path: "/v1/models", body: chat("x"), status: 405, want: openAIError("invalid_request_error", "Not allowed to POST on /v1/models.", nil, "method_not_supported")},
		"a mistyped directive": {
			path: "/v1/chat/completions", body: chat("sim:stauts=500"), status: 400,
			want: openAIError("invalid_request_error", `read directive "sim:stauts=500": there is no such directive`, nil, nil),
		},
		"OpenAI: the status asked for": {
			path: "/v1/chat/completions", body: chat("sim:status=500"), status: 500,
			want: openAIError("server_error", "The server had an error while processing your request.", nil, nil),
		},
		"OpenAI: a rate limit": {
			path: "/v1/chat/completions", body: chat("sim:status=429 sim:retry-after=7"), status: 429,
			want: openAIError("requests", "Rate limit reached for m in organization sim-org on requests per min (RPM): Limit 500, Used 500, Requested 1. Please try again in 7s.", nil, "rate_limit_exceeded"),
		},
		"Anthropic: overloaded": {path: "/v1/messages", body: message("sim:status=529"), status: 529, want: anthropicError("overloaded_error", "Overloaded")},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			var body any = rawJSON(tc.raw)
			if tc.raw == "" {
				body = tc.body
			}
			r := s.request(t, tc.path, body)
			if tc.change != nil {
				tc.change(r)
			}
			got := s.do(t, r)
			if got.err != nil {
				t.Fatal(got.err)
			}
			if got.status != tc.status || got.header.Get("Content-Type") != "application/json" {
				t.Errorf("status is %d, type %s: %s", got.status, got.header.Get("Content-Type"), got.body)
			}
			document := decode(t, got.body)
			id := s.last(t).ID
			if tc.want["type"] == "error" {
				if document["request_id"] != id || got.header.Get("Request-Id") != id {
					t.Errorf("request's id is %v and %s, want %s", document["request_id"], got.header.Get("Request-Id"), id)
				}
				delete(document, "request_id")
			} else if got.header.Get("X-Request-Id") != id {
				t.Errorf("request's id is %s, want %s", got.header.Get("X-Request-Id"), id)
			}
			if diff := cmp.Diff(tc.want, document); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			wantRetry := ""
			if tc.status == http.StatusTooManyRequests {
				wantRetry = "7"
			}
			if retry := got.header.Get("Retry-After"); retry != wantRetry {
				t.Errorf("retry-after is %q, want %q", retry, wantRetry)
			}
			if record := s.last(t); record.Status != tc.status || record.Outcome != OutcomeAnswered || record.Reported != nil {
				t.Errorf("record is %+v", record)
			}
		})
	}
}

func TestServerWithoutCredentialRefusesAll(t *testing.T) {
	s := start(t, Config{})
	s.SetCredentials("", "")
	for path, body := range map[string]any{"/v1/chat/completions": chat("hi"), "/v1/messages": message("hi")} {
		r := s.request(t, path, body)
		r.Header.Set("Authorization", "Bearer ")
		r.Header.Set("x-api-key", "")
		if got := s.do(t, r); got.status != http.StatusUnauthorized {
			t.Errorf("%s with an empty key gives %d", path, got.status)
		}
	}
}

func TestSetCredentialsReplacesThem(t *testing.T) {
	s := start(t, Config{})
	s.SetCredentials("sk-rotated", "")
	if got := s.post(t, "/v1/chat/completions", chat("hi")); got.status != http.StatusUnauthorized {
		t.Errorf("the old credential gives %d", got.status)
	}
	r := s.request(t, "/v1/messages", message("hi"))
	r.Header.Set("x-api-key", "sk-rotated")
	if got := s.do(t, r); got.status != http.StatusOK {
		t.Errorf("the new credential gives %d: %s", got.status, got.body)
	}
}

func TestPrefixAndBase(t *testing.T) {
	tests := map[string]struct{ prefix, base, path string }{
		"a prefix stands before the base":    {prefix: "/gateway/", path: "/gateway/v1/chat/completions"},
		"a base replaces v1":                 {base: "api/paas/v4", path: "/api/paas/v4/chat/completions"},
		"a slash is no base":                 {base: "/", path: "/chat/completions"},
		"a prefix and no base":               {prefix: "/x", base: "/", path: "/x/chat/completions"},
		"both, however their slashes stand":  {prefix: "x/", base: "y/", path: "/x/y/chat/completions"},
		"neither leaves the path of the API": {path: "/v1/chat/completions"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			s := start(t, Config{Prefix: tc.prefix, Base: tc.base})
			if got := s.post(t, tc.path, chat("hi")); got.status != http.StatusOK {
				t.Errorf("status is %d: %s", got.status, got.body)
			}
			if got := s.post(t, "/other/v1/chat/completions", chat("hi")); got.status != http.StatusNotFound {
				t.Errorf("another prefix gives %d", got.status)
			}
		})
	}
}
