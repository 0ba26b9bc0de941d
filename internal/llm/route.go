package llm

import (
	"net/http"
	"net/url"
	"strings"

	"github.com/latchkey-dev/latchkey/internal/policy"
)

// Dialect is the API whose shapes a caller expects.
type Dialect uint8

// The dialects.
const (
	OpenAI Dialect = iota
	Anthropic
)

// String is the dialect's name in logs.
func (d Dialect) String() string {
	if d == Anthropic {
		return "anthropic"
	}
	return "openai"
}

// Format is the wire format of the providers that speak the dialect.
func (d Dialect) Format() policy.Format {
	if d == Anthropic {
		return policy.FormatAnthropic
	}
	return policy.FormatOpenAI
}

// BodyKind is the form of an endpoint's request body.
type BodyKind uint8

// The forms.
const (
	BodyNone BodyKind = iota
	BodyJSON
	BodyMultipart
	BodyEither // JSON or multipart
)

// Endpoint is one of the APIs' operations.
type Endpoint struct {
	// Path is the canonical path, from /v1 on. A models/{id} has its prefix here, and the id in Route.ModelID.
	Path       string
	Method     string
	Dialect    Dialect
	Capability policy.Capability // what a key needs for it; of no meaning for Listing
	Body       BodyKind
	Listing    bool // lists models; every key may
}

// The endpoints by their path behind /v1, without a slash before it.
var endpoints = map[string]Endpoint{
	"chat/completions":      {"/v1/chat/completions", http.MethodPost, OpenAI, policy.TextGeneration, BodyJSON, false},
	"completions":           {"/v1/completions", http.MethodPost, OpenAI, policy.TextGeneration, BodyJSON, false},
	"responses":             {"/v1/responses", http.MethodPost, OpenAI, policy.TextGeneration, BodyJSON, false},
	"embeddings":            {"/v1/embeddings", http.MethodPost, OpenAI, policy.Embeddings, BodyJSON, false},
	"moderations":           {"/v1/moderations", http.MethodPost, OpenAI, policy.TextGeneration, BodyJSON, false},
	"images/generations":    {"/v1/images/generations", http.MethodPost, OpenAI, policy.ImageGeneration, BodyJSON, false},
	"images/edits":          {"/v1/images/edits", http.MethodPost, OpenAI, policy.ImageGeneration, BodyEither, false},
	"images/variations":     {"/v1/images/variations", http.MethodPost, OpenAI, policy.ImageGeneration, BodyMultipart, false},
	"audio/speech":          {"/v1/audio/speech", http.MethodPost, OpenAI, policy.TextToSpeech, BodyJSON, false},
	"audio/transcriptions":  {"/v1/audio/transcriptions", http.MethodPost, OpenAI, policy.SpeechToText, BodyMultipart, false},
	"audio/translations":    {"/v1/audio/translations", http.MethodPost, OpenAI, policy.SpeechToText, BodyMultipart, false},
	"messages":              {"/v1/messages", http.MethodPost, Anthropic, policy.TextGeneration, BodyJSON, false},
	"messages/count_tokens": {"/v1/messages/count_tokens", http.MethodPost, Anthropic, policy.TextGeneration, BodyJSON, false},
	"models":                {"/v1/models", http.MethodGet, OpenAI, 0, BodyNone, true},
}

// Route is where a request goes.
type Route struct {
	Endpoint
	ModelID string // of models/{id}; empty: all models
}

// UnknownPathError says that there is nothing at the path.
type UnknownPathError struct{ Path string }

// Error says what there is instead.
func (e *UnknownPathError) Error() string {
	return "unknown path " + quote(e.Path) + ": this gateway has chat/completions, completions, responses, embeddings, moderations, images/*, audio/*, " +
		"models, and Anthropic's messages and messages/count_tokens, each below /v1"
}

// MethodError says that the path is there, but not for this method.
type MethodError struct{ Method, Path, Allow string }

// Error says which method is.
func (e *MethodError) Error() string {
	return "method " + quote(e.Method) + " is not allowed on " + e.Path + ": use " + e.Allow
}

// Match finds the route of a request. The path has no query; it is accepted with and without /v1 before it, since base URLs differ in
// that. Its errors are *UnknownPathError and *MethodError.
func Match(method, path string) (Route, error) {
	rest, ok := strings.CutPrefix(path, "/v1/")
	if !ok {
		rest, ok = strings.CutPrefix(path, "/")
	}
	if !ok {
		return Route{}, &UnknownPathError{path}
	}
	route := Route{}
	if id, isModel := strings.CutPrefix(rest, "models/"); isModel && id != "" {
		unescaped, err := url.PathUnescape(id)
		if err != nil {
			return Route{}, &UnknownPathError{path}
		}
		route.Endpoint, route.ModelID = endpoints["models"], unescaped
	} else if route.Endpoint, ok = endpoints[rest]; !ok {
		return Route{}, &UnknownPathError{path}
	}
	if method != route.Method && (method != http.MethodHead || route.Method != http.MethodGet) {
		allow := route.Method
		if allow == http.MethodGet {
			allow = "GET, HEAD"
		}
		return Route{}, &MethodError{method, route.Path, allow}
	}
	return route, nil
}

// IsAnthropicPath reports whether a path belongs to Anthropic's API, whether or not there is anything at it.
func IsAnthropicPath(path string) bool {
	rest, ok := strings.CutPrefix(path, "/v1")
	if !ok {
		rest = path
	}
	return rest == "/messages" || strings.HasPrefix(rest, "/messages/")
}

// quote shows what a caller sent, cut off where it gets long.
func quote(s string) string {
	const most = 80
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return `"` + strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '?'
		}
		return r
	}, s) + `"`
}
