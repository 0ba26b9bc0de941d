package llm

import (
	"fmt"
	"mime"
	"strings"

	"github.com/latchkey-dev/latchkey/internal/policy"
)

// maxModelLength is the most bytes that a model's name can have; the API allows no longer ones.
const maxModelLength = 253

// Request is what a body asks for.
type Request struct {
	Model        string
	Capabilities policy.Capabilities // needed: the endpoint's, and what the body asks for besides
	Stream       bool

	start, end int    // where the model's value stands in a JSON body, quotes included
	parts      []part // of a multipart body
	boundary   string
}

// FormError says what is wrong with a body, and how to mend it.
type FormError struct {
	Message string
	Param   string // the field concerned; empty: none
}

// Error is the message.
func (e *FormError) Error() string { return e.Message }

func formError(param, format string, args ...any) *FormError {
	return &FormError{Message: fmt.Sprintf(format, args...), Param: param}
}

// Parse reads a body. contentEncoding must be empty or identity. Its errors are *FormError.
func Parse(route Route, contentType, contentEncoding string, body []byte) (*Request, error) {
	if contentEncoding != "" && !strings.EqualFold(contentEncoding, "identity") {
		return nil, formError("", "the body has content-encoding %s, which this gateway does not read: send it uncompressed", quote(contentEncoding))
	}
	mediaType, params, err := mediaTypeOf(contentType)
	if err != nil {
		return nil, err
	}
	isJSON := mediaType == "application/json" || (strings.HasPrefix(mediaType, "application/") && strings.HasSuffix(mediaType, "+json"))
	isMultipart := mediaType == "multipart/form-data"
	switch route.Body {
	case BodyNone:
		return nil, formError("", "%s takes no body", route.Path)
	case BodyJSON:
		if !isJSON {
			return nil, formError("", "the body must be JSON, with content-type application/json, not %s", quote(mediaType))
		}
	case BodyMultipart:
		if !isMultipart {
			return nil, formError("", "the body must be multipart/form-data, not %s", quote(mediaType))
		}
	case BodyEither:
		if !isJSON && !isMultipart {
			return nil, formError("", "the body must be application/json or multipart/form-data, not %s", quote(mediaType))
		}
	}
	var req *Request
	if isMultipart {
		req, err = parseMultipart(params["boundary"], body)
	} else {
		if charset := params["charset"]; charset != "" && !strings.EqualFold(charset, "utf-8") {
			return nil, formError("", "the body has charset %s: JSON is sent as UTF-8", quote(charset))
		}
		req, err = parseJSON(route, body)
	}
	if err != nil {
		return nil, err
	}
	req.Capabilities |= policy.CapabilitiesOf(route.Capability)
	return req, nil
}

// mediaTypeOf reads a content type. A missing one counts as JSON, as the real APIs count it.
func mediaTypeOf(contentType string) (string, map[string]string, error) {
	if strings.TrimSpace(contentType) == "" {
		return "application/json", nil, nil
	}
	mediaType, params, err := mime.ParseMediaType(contentType)
	if err != nil {
		return "", nil, formError("", "the content-type %s cannot be read: send application/json or multipart/form-data with a boundary", quote(contentType))
	}
	return mediaType, params, nil
}

// checkModel checks a model's name for its form.
func checkModel(model string) error {
	switch {
	case model == "":
		return formError("model", "the model is empty: name one in the field \"model\"; GET /v1/models lists yours")
	case len(model) > maxModelLength:
		return formError("model", "the model's name is longer than %d bytes", maxModelLength)
	}
	return nil
}

var errNoModel = &FormError{Message: "the body names no model: add the field \"model\"; GET /v1/models lists yours", Param: "model"}

// Forwarded is the body as the provider shall get it, with its own name for the model, and its content type where that has changed. A nil
// body is the caller's, unchanged.
func (r *Request) Forwarded(body []byte, upstreamModel string) (changed []byte, contentType string, err error) {
	if r.parts != nil {
		return r.writeMultipart(upstreamModel)
	}
	if upstreamModel == r.Model {
		return nil, "", nil
	}
	return r.replaceModel(body, upstreamModel), "", nil
}
