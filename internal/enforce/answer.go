package enforce

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"

	"github.com/latchkey-dev/latchkey/internal/llm"
	"github.com/latchkey-dev/latchkey/internal/policy"
)

// kind is what an error is about; the dialects name it differently.
type kind uint8

const (
	kindRequest kind = iota // by status: invalid, not found, too large, not permitted
	kindAuthentication
	kindServer
)

// refusal is an error before it is put into words of a dialect.
type refusal struct {
	status  int
	kind    kind
	code    string // OpenAI's code; empty: null
	param   string // OpenAI's param; empty: null
	reason  string // for metrics and logs
	message string
	allow   string // of 405
}

func capabilityRefusal(whose string, missing policy.Capabilities) *refusal {
	return &refusal{status: http.StatusForbidden, code: "capability_not_allowed", reason: "capability_not_allowed",
		message: whose + " is not allowed " + missing.String() + ": whoever manages it can add that to its capabilities"}
}

func modelNotFound(name string) *refusal {
	return &refusal{status: http.StatusNotFound, code: "model_not_found", param: "model", reason: "model_not_found",
		message: "the model " + shown(name) + " does not exist, or this API key has no access to it: GET /v1/models lists those it has"}
}

func pathRefusal(err error) *refusal {
	var method *llm.MethodError
	if errors.As(err, &method) {
		return &refusal{status: http.StatusMethodNotAllowed, reason: "method_not_allowed", message: err.Error(), allow: method.Allow}
	}
	return &refusal{status: http.StatusNotFound, reason: "unknown_path", message: err.Error()}
}

func formRefusal(err error) *refusal {
	r := &refusal{status: http.StatusBadRequest, reason: "bad_request", message: err.Error()}
	var form *llm.FormError
	if errors.As(err, &form) {
		r.param = form.Param
	}
	return r
}

type openAIError struct {
	Message string  `json:"message"`
	Type    string  `json:"type"`
	Param   *string `json:"param"`
	Code    *string `json:"code"`
}

type anthropicError struct {
	Type    string `json:"type"`
	Message string `json:"message"`
}

// refuse puts a refusal into the caller's dialect.
func (x *Exchange) refuse(r *refusal) *Answer {
	var body any
	if x.dialect == llm.Anthropic {
		body = struct {
			Type      string         `json:"type"`
			Error     anthropicError `json:"error"`
			RequestID string         `json:"request_id"`
		}{"error", anthropicError{r.anthropicType(), r.message}, x.requestID}
	} else {
		body = struct {
			Error openAIError `json:"error"`
		}{openAIError{r.message, r.openAIType(), optional(r.param), optional(r.code)}}
	}
	answer := x.reply(r.status, body)
	answer.Reason = r.reason
	if r.allow != "" {
		answer.Headers = append(answer.Headers, Header{"allow", r.allow})
	}
	return answer
}

func (r *refusal) openAIType() string {
	if r.kind == kindServer {
		return "server_error"
	}
	return "invalid_request_error"
}

func (r *refusal) anthropicType() string {
	switch r.kind {
	case kindServer:
		return "api_error"
	case kindAuthentication:
		return "authentication_error"
	case kindRequest:
	}
	switch r.status {
	case http.StatusForbidden:
		return "permission_error"
	case http.StatusNotFound:
		return "not_found_error"
	case http.StatusRequestEntityTooLarge:
		return "request_too_large"
	}
	return "invalid_request_error"
}

// reply makes an answer of a body.
func (x *Exchange) reply(status int, body any) *Answer {
	encoded, err := json.Marshal(body)
	if err != nil {
		encoded = nil // strings and numbers always marshal
	}
	answer := &Answer{Status: status, Headers: []Header{{"content-type", "application/json"}}, Body: encoded}
	if x.requestID != "" {
		answer.Headers = append(answer.Headers, Header{"x-request-id", x.requestID})
	}
	return answer
}

func optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// shown quotes a name, cut off where it gets long, for the first 200 bytes of a message carry its meaning.
func shown(s string) string {
	const most = 100
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return `"` + s + `"`
}
