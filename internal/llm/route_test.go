package llm

import (
	"errors"
	"net/http"
	"net/url"
	"slices"
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
		"/v1/models/a+b":                "a+b", // a blank in queries only
		"/v1/models/a%252Fb":            "a%2Fb",
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

// everyEndpoint are the canonical paths.
var everyEndpoint = []string{
	ChatCompletions, Completions, Responses, Embeddings, Moderations, ImagesGenerations, ImagesEdits, ImagesVariations,
	AudioSpeech, AudioTranscriptions, AudioTranslations, Messages, CountTokens, Models,
}

// Every endpoint takes its own method only, in both spellings of its path, and neither takes a slash at its end.
func TestMatchOfEveryEndpointAndMethod(t *testing.T) {
	t.Parallel()
	for _, path := range everyEndpoint {
		takes := []string{http.MethodPost}
		if path == Models {
			takes = []string{http.MethodGet, http.MethodHead}
		}
		for _, asked := range []string{path, strings.TrimPrefix(path, "/v1")} {
			for _, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "get", "post", "POST ", ""} {
				route, err := Match(method, asked)
				refused := new(MethodError)
				switch {
				case slices.Contains(takes, method):
					if err != nil || route.Path != path || route.ModelID != "" {
						t.Errorf("%q %s: got %+v, %v", method, asked, route, err)
					}
				case !errors.As(err, &refused) || refused.Path != path || refused.Method != method || refused.Allow != strings.Join(takes, ", "):
					t.Errorf("%q %s: got %+v, %v; want that %v are allowed", method, asked, route, err, takes)
				}
			}
			unknown := new(UnknownPathError)
			if _, err := Match(takes[0], asked+"/"); !errors.As(err, &unknown) {
				t.Errorf("%s/: got %v; want an unknown path", asked, err)
			}
		}
	}
}

func FuzzMatch(f *testing.F) {
	for _, path := range everyEndpoint {
		f.Add(http.MethodPost, path)
		f.Add(http.MethodGet, strings.TrimPrefix(path, "/v1"))
	}
	for _, path := range []string{"/v1/models/org%2Fname", "/models/%zz", "/models/a%00b", "/v1/v1/models", "//", "/v1", "", "/v1/models/?x", "/messages/x", "\xff"} {
		f.Add(http.MethodHead, path)
	}
	f.Fuzz(func(t *testing.T, method, path string) {
		route, err := Match(method, path)
		if err != nil {
			unknown, wrong := new(UnknownPathError), new(MethodError)
			switch {
			case errors.As(err, &wrong):
				if again, err := Match(strings.Split(wrong.Allow, ", ")[0], path); err != nil || again.Path != wrong.Path {
					t.Fatalf("%q is said to be allowed on %q: got %+v, %v", wrong.Allow, path, again, err)
				}
			case !errors.As(err, &unknown):
				t.Fatalf("error %#v", err)
			}
			if message := err.Error(); len(message) > 600 || strings.ContainsAny(message, "\r\n\x00") {
				t.Fatalf("%d bytes: %q", len(message), message)
			}
			if diff := cmp.Diff(Route{}, route); diff != "" {
				t.Fatalf("a route beside the error:\n%s", diff)
			}
			return
		}
		if !slices.Contains(everyEndpoint, route.Path) || (route.Listing && method != "GET" && method != "HEAD") || (!route.Listing && method != "POST") {
			t.Fatalf("%q %q goes to %+v", method, path, route)
		}
		if (route.Dialect == Anthropic) != IsAnthropicPath(path) {
			t.Fatalf("%q: dialect %s, IsAnthropicPath %v", path, route.Dialect, IsAnthropicPath(path))
		}
		// What was asked is the canonical path, but for the version before it and the model's ID behind it.
		canonical := route.Path
		if route.ModelID != "" {
			canonical += "/" + url.PathEscape(route.ModelID)
			if again, err := Match(method, canonical); err != nil || again != route {
				t.Fatalf("%q goes to %+v; %q to %+v, %v", path, route, canonical, again, err)
			}
		} else if path != canonical && "/v1"+path != canonical {
			t.Fatalf("%q goes to %s", path, canonical)
		}
	})
}
