package llm

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/latchkey-dev/latchkey/internal/policy"
)

func TestMatchFindsEveryEndpoint(t *testing.T) {
	t.Parallel()
	for path, want := range map[string]Endpoint{
		"/v1/chat/completions":      {Method: "POST", Dialect: OpenAI, Capability: policy.TextGeneration, Body: BodyJSON},
		"/v1/completions":           {Method: "POST", Dialect: OpenAI, Capability: policy.TextGeneration, Body: BodyJSON},
		"/v1/responses":             {Method: "POST", Dialect: OpenAI, Capability: policy.TextGeneration, Body: BodyJSON},
		"/v1/moderations":           {Method: "POST", Dialect: OpenAI, Capability: policy.TextGeneration, Body: BodyJSON},
		"/v1/embeddings":            {Method: "POST", Dialect: OpenAI, Capability: policy.Embeddings, Body: BodyJSON},
		"/v1/images/generations":    {Method: "POST", Dialect: OpenAI, Capability: policy.ImageGeneration, Body: BodyJSON},
		"/v1/images/edits":          {Method: "POST", Dialect: OpenAI, Capability: policy.ImageGeneration, Body: BodyEither},
		"/v1/images/variations":     {Method: "POST", Dialect: OpenAI, Capability: policy.ImageGeneration, Body: BodyMultipart},
		"/v1/audio/speech":          {Method: "POST", Dialect: OpenAI, Capability: policy.TextToSpeech, Body: BodyJSON},
		"/v1/audio/transcriptions":  {Method: "POST", Dialect: OpenAI, Capability: policy.SpeechToText, Body: BodyMultipart},
		"/v1/audio/translations":    {Method: "POST", Dialect: OpenAI, Capability: policy.SpeechToText, Body: BodyMultipart},
		"/v1/messages":              {Method: "POST", Dialect: Anthropic, Capability: policy.TextGeneration, Body: BodyJSON},
		"/v1/messages/count_tokens": {Method: "POST", Dialect: Anthropic, Capability: policy.TextGeneration, Body: BodyJSON},
		"/v1/models":                {Method: "GET", Dialect: OpenAI, Body: BodyNone, Listing: true},
	} {
		t.Run(path, func(t *testing.T) {
			t.Parallel()
			want.Path = path
			for _, asked := range []string{path, strings.TrimPrefix(path, "/v1")} {
				got, err := Match(want.Method, asked)
				if err != nil {
					t.Fatalf("%s %s: %v", want.Method, asked, err)
				}
				if diff := cmp.Diff(Route{Endpoint: want}, got); diff != "" {
					t.Errorf("%s %s (-want +got):\n%s", want.Method, asked, diff)
				}
				if (got.Dialect == Anthropic) != IsAnthropicPath(asked) {
					t.Errorf("%s: IsAnthropicPath = %v", asked, IsAnthropicPath(asked))
				}
			}
		})
	}
}

func TestMatchOfOneModel(t *testing.T) {
	t.Parallel()
	for path, want := range map[string]string{
		"/v1/models/gpt-5":              "gpt-5",
		"/models/gpt-5":                 "gpt-5",
		"/v1/models/org/name":           "org/name",
		"/v1/models/org%2Fname":         "org/name",
		"/v1/models/a%20b:c":            "a b:c",
		"/v1/models/models/":            "models/",
		"/v1/models/ft:gpt-5:org::id%3": "",
	} {
		route, err := Match(http.MethodGet, path)
		if route.ModelID != want || (err == nil) != (want != "") {
			t.Errorf("%s: got model %q, error %v; want %q", path, route.ModelID, err, want)
		}
	}
}

func TestMatchRefuses(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		method, path string
		allow        string // empty: unknown path
	}{
		"an unknown path":                       {"POST", "/v1/nonsense", ""},
		"an empty path":                         {"POST", "", ""},
		"the root":                              {"GET", "/", ""},
		"the version alone":                     {"GET", "/v1", ""},
		"the version with a slash":              {"GET", "/v1/", ""},
		"a slash at the end":                    {"POST", "/v1/chat/completions/", ""},
		"a slash at the end of models":          {"GET", "/v1/models/", ""},
		"a prefix of the caller's":              {"POST", "/api/v1/chat/completions", ""},
		"the version twice":                     {"POST", "/v1/v1/chat/completions", ""},
		"another version":                       {"POST", "/v2/chat/completions", ""},
		"two slashes":                           {"POST", "//v1/chat/completions", ""},
		"two slashes within":                    {"POST", "/v1//chat/completions", ""},
		"dots":                                  {"POST", "/v1/./chat/completions", ""},
		"capitals":                              {"POST", "/v1/Chat/Completions", ""},
		"percent-encoding":                      {"POST", "/v1/chat%2fcompletions", ""},
		"a parameter in the path":               {"POST", "/v1/chat/completions;x=1", ""},
		"without a slash at the beginning":      {"POST", "v1/chat/completions", ""},
		"an absolute URL":                       {"POST", "http://host/v1/chat/completions", ""},
		"batches, which are not offered":        {"POST", "/v1/messages/batches", ""},
		"GET of what is posted":                 {"GET", "/v1/chat/completions", "POST"},
		"HEAD of what is posted":                {"HEAD", "/v1/chat/completions", "POST"},
		"a method in small letters":             {"post", "/v1/messages", "POST"},
		"POST of the models":                    {"POST", "/v1/models", "GET, HEAD"},
		"DELETE of one model":                   {"DELETE", "/v1/models/gpt-5", "GET, HEAD"},
		"a method that is none, without a word": {"", "/v1/models", "GET, HEAD"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := Match(tc.method, tc.path)
			var method *MethodError
			var path *UnknownPathError
			switch {
			case tc.allow == "" && !errors.As(err, &path):
				t.Errorf("got %v; want an unknown path", err)
			case tc.allow == "" && !strings.Contains(err.Error(), "chat/completions, completions, responses"):
				t.Errorf("%q does not say what there is", err)
			case tc.allow != "" && (!errors.As(err, &method) || method.Allow != tc.allow):
				t.Errorf("got %v; want that %s is allowed", err, tc.allow)
			}
		})
	}
}

func TestMatchHead(t *testing.T) {
	t.Parallel()
	if route, err := Match(http.MethodHead, "/v1/models"); err != nil || !route.Listing {
		t.Errorf("got %v, %v", route, err)
	}
}

func TestMessagesStayShort(t *testing.T) {
	t.Parallel()
	_, err := Match("GET", "/"+strings.Repeat("ä", 10_000)+"\n")
	if got := err.Error(); len(got) > 400 || strings.ContainsAny(got, "\n�") {
		t.Errorf("%d bytes: %q", len(got), got)
	}
}
