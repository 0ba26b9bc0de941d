package llm

import (
	"net/http"
	"net/url"
	"strings"
	"unicode"
	"unicode/utf8"

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

// The canonical paths.
const (
	ChatCompletions     = "/v1/chat/completions"
	Completions         = "/v1/completions"
	Responses           = "/v1/responses"
	Embeddings          = "/v1/embeddings"
	Moderations         = "/v1/moderations"
	ImagesGenerations   = "/v1/images/generations"
	ImagesEdits         = "/v1/images/edits"
	ImagesVariations    = "/v1/images/variations"
	AudioSpeech         = "/v1/audio/speech"
	AudioTranscriptions = "/v1/audio/transcriptions"
	AudioTranslations   = "/v1/audio/translations"
	Messages            = "/v1/messages"
	CountTokens         = "/v1/messages/count_tokens"
	Models              = "/v1/models"
)

const versionPrefix = "/v1/"

// Endpoint is one of the APIs' operations.
type Endpoint struct {
	// Path is the canonical path, one of the constants. A models/{id} has Models here, and the id in Route.ModelID.
	Path       string
	Method     string
	Dialect    Dialect
	Capability policy.Capability // what a key needs for it; of no meaning for Listing
	Body       BodyKind
	Listing    bool // lists models; every key may
}

// endpointAt finds what is at a canonical path.
func endpointAt(path string) (Endpoint, bool) {
	post := func(d Dialect, c policy.Capability, b BodyKind) (Endpoint, bool) {
		return Endpoint{Path: path, Method: http.MethodPost, Dialect: d, Capability: c, Body: b}, true
	}
	switch path {
	case ChatCompletions, Completions, Responses, Moderations:
		return post(OpenAI, policy.TextGeneration, BodyJSON)
	case Embeddings:
		return post(OpenAI, policy.Embeddings, BodyJSON)
	case ImagesGenerations:
		return post(OpenAI, policy.ImageGeneration, BodyJSON)
	case ImagesEdits:
		return post(OpenAI, policy.ImageGeneration, BodyEither)
	case ImagesVariations:
		return post(OpenAI, policy.ImageGeneration, BodyMultipart)
	case AudioSpeech:
		return post(OpenAI, policy.TextToSpeech, BodyJSON)
	case AudioTranscriptions, AudioTranslations:
		return post(OpenAI, policy.SpeechToText, BodyMultipart)
	case Messages, CountTokens:
		return post(Anthropic, policy.TextGeneration, BodyJSON)
	case Models:
		return Endpoint{Path: path, Method: http.MethodGet, Dialect: OpenAI, Body: BodyNone, Listing: true}, true
	}
	return Endpoint{}, false
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
		"models, and Anthropic's messages and messages/count_tokens, each below /v1 and without a slash at the end"
}

// MethodError says that the path is there, but not for this method.
type MethodError struct {
	Method string
	Path   string // canonical
	Allow  string // the methods that are allowed, as the header of that name wants them
}

// Error says which method is.
func (e *MethodError) Error() string {
	return "method " + quote(e.Method) + " is not allowed on " + e.Path + ": use " + e.Allow
}

// Match finds the route of a request. The path has no query; it is accepted with and without /v1 before it, since base URLs differ in
// that, but not with a slash at its end, as the real APIs refuse that too. HEAD goes where GET does. Its errors are *UnknownPathError and
// *MethodError.
func Match(method, path string) (Route, error) {
	canonical := path
	if !strings.HasPrefix(path, versionPrefix) {
		rest, ok := strings.CutPrefix(path, "/")
		if !ok {
			return Route{}, &UnknownPathError{path}
		}
		canonical = versionPrefix + rest
	}
	route := Route{}
	if id, isModel := strings.CutPrefix(canonical, Models+"/"); isModel && id != "" {
		unescaped, err := url.PathUnescape(id)
		if err != nil {
			return Route{}, &UnknownPathError{path}
		}
		route.Endpoint, _ = endpointAt(Models)
		route.ModelID = unescaped
	} else {
		var known bool
		if route.Endpoint, known = endpointAt(canonical); !known {
			return Route{}, &UnknownPathError{path}
		}
	}
	if method != route.Method && (method != http.MethodHead || route.Method != http.MethodGet) {
		allow := route.Method
		if allow == http.MethodGet {
			allow = "GET, HEAD"
		}
		return Route{}, &MethodError{Method: method, Path: route.Path, Allow: allow}
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

// quote shows what a caller sent, cut off where it gets long, on one line.
func quote(s string) string { return `"` + clip(s, 80) + `"` }

func clip(s string, most int) string {
	cut := len(s) > most
	if cut {
		for most > 0 && !utf8.RuneStart(s[most]) {
			most--
		}
		s = s[:most]
	}
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return '?'
		}
		return r // what is not UTF-8 becomes U+FFFD
	}, s)
	if cut {
		s += "…"
	}
	return s
}
