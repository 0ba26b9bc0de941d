package llm

import (
	"fmt"
	"mime"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/latchkey-dev/latchkey/internal/policy"
)

// maxModelLength is the most bytes that a model's name can have; the API allows no longer ones.
const maxModelLength = 253

const (
	mediaJSON      = "application/json"
	mediaMultipart = "multipart/form-data"
)

// Request is what a body asks for.
type Request struct {
	Model        string
	Capabilities policy.Capabilities // needed: the endpoint's, and what the body asks for besides
	Stream       bool
	IncludeUsage bool  // the stream shall end with its usage (stream_options.include_usage)
	MaxTokens    int64 // the most tokens that one answer can hold, by the fields that the endpoint knows; 0: the body sets none
	N            int64 // how many answers or images; 0: the body does not say

	InputCharacters   int64  // of the text to speak
	MediaBytes        int64  // of the files, images and audio that are in the body, as they stand there
	AudioMilliseconds int64  // of a WAV file in a form; 0: there is none
	ImageSize         string // asked for; empty: left open
	ImageQuality      string // asked for; empty: left open

	text      textCount // of what can be prompt
	media     int64     // files, images and audio
	external  bool      // it refers to what is outside of it
	bestOf    int64
	bodyBytes int
	options   optionsAt // where stream_options stand
	asks      bool      // the provider is asked for the usage, though the caller has not asked

	canonicalType bool   // the content type is application/json as it stands
	start, end    int    // where the model's value stands in a JSON body, quotes included
	form          []part // of a multipart body
}

// FormError says what is wrong with a request's form, and how to mend it.
type FormError struct {
	Message string
	Param   string // the field concerned; empty: none
}

// Error is the message.
func (e *FormError) Error() string { return e.Message }

func formError(param, format string, args ...any) *FormError {
	return &FormError{Message: fmt.Sprintf(format, args...), Param: clip(param, 80)}
}

func noModel() *FormError {
	return formError(fieldModel, "the body names no model: add the field \"model\"; GET /v1/models lists yours")
}

// Parser reads bodies. Its zero value is ready, and safe for concurrent use.
type Parser struct {
	readers sync.Pool // of *reader, for what they have allocated
}

// Parse reads a body. It neither changes it nor holds on to it. Its errors are *FormError.
func (p *Parser) Parse(route Route, contentType, contentEncoding string, body []byte) (*Request, error) {
	if contentEncoding != "" && !strings.EqualFold(contentEncoding, "identity") {
		return nil, formError("", "the body has content-encoding %s, which this gateway does not read: send it uncompressed", quote(contentEncoding))
	}
	mediaType, params, err := mediaTypeOf(contentType)
	if err != nil {
		return nil, err
	}
	isJSON := mediaType == mediaJSON || (strings.HasPrefix(mediaType, "application/") && strings.HasSuffix(mediaType, "+json"))
	isMultipart := mediaType == mediaMultipart
	wanted := ""
	switch route.Body {
	case BodyNone:
		return nil, formError("", "%s takes no body", route.Path)
	case BodyJSON:
		if !isJSON {
			wanted = "JSON, with content-type application/json"
		}
	case BodyMultipart:
		if !isMultipart {
			wanted = mediaMultipart
		}
	case BodyEither:
		if !isJSON && !isMultipart {
			wanted = "application/json or multipart/form-data"
		}
	}
	if wanted != "" {
		return nil, formError("", "the body of %s must be %s, not %s", route.Path, wanted, quote(mediaType))
	}
	var req *Request
	if isMultipart {
		req, err = parseMultipart(params["boundary"], body)
	} else {
		if charset := params["charset"]; charset != "" && !strings.EqualFold(charset, "utf-8") && !strings.EqualFold(charset, "utf8") {
			return nil, formError("", "the body has charset %s: JSON is sent as UTF-8", quote(charset))
		}
		req, err = p.parseJSON(route, body)
	}
	if err != nil {
		return nil, err
	}
	req.Capabilities |= policy.CapabilitiesOf(route.Capability)
	req.asks = (route.Path == ChatCompletions || route.Path == Completions) && req.Stream && !req.IncludeUsage && req.options.addable()
	req.bodyBytes = len(body)
	found := contents{}
	if isMultipart {
		found = inspectForm(req.form)
		for i := range req.form {
			if req.form[i].file {
				req.AudioMilliseconds += wavMilliseconds(req.form[i].content)
			}
		}
	} else {
		found = inspectJSON(body)
	}
	req.text, req.media, req.external, req.bestOf = found.text, found.media, found.external, found.bestOf
	req.InputCharacters, req.MediaBytes = found.input, found.bytes
	req.ImageSize, req.ImageQuality = found.size, found.quality
	req.canonicalType = contentType == mediaJSON
	return req, nil
}

// mediaTypeOf reads a content type. A missing one counts as JSON, as the real APIs count it.
func mediaTypeOf(contentType string) (string, map[string]string, error) {
	if contentType == "" || contentType == mediaJSON {
		return mediaJSON, nil, nil
	}
	mediaType, params, err := mime.ParseMediaType(contentType)
	if err != nil {
		return "", nil, formError("", "the content-type %s cannot be read: send application/json, or multipart/form-data with a boundary", quote(contentType))
	}
	return mediaType, params, nil
}

// checkModel checks a model's name for its form.
func checkModel(model string) error {
	switch {
	case model == "":
		return formError(fieldModel, "the model is empty: name one in the field \"model\"; GET /v1/models lists yours")
	case len(model) > maxModelLength:
		return formError(fieldModel, "the model's name is longer than %d bytes: name one that GET /v1/models lists", maxModelLength)
	case !utf8.ValidString(model):
		return formError(fieldModel, "the model's name is not UTF-8: name one that GET /v1/models lists")
	}
	return nil
}

// AsksForUsage reports whether Forwarded asks the provider for the usage of a stream whose caller has not. The chunk that tells it is not
// for the caller then.
func (r *Request) AsksForUsage() bool { return r.asks }

// Forwarded is the body as the provider shall get it, with its own name for the model, asked for its usage, and its content type where
// that has to change (empty: it has not). A nil body is the caller's, unchanged. body is the one that was parsed.
func (r *Request) Forwarded(body []byte, upstreamModel string) (changed []byte, contentType string, err error) {
	if r.form != nil {
		return r.writeMultipart(body, upstreamModel)
	}
	if !r.canonicalType {
		contentType = mediaJSON
	}
	if upstreamModel == r.Model && !r.asks {
		return nil, contentType, nil
	}
	changed, err = r.rewritten(body, upstreamModel)
	return changed, contentType, err
}
