package enforce

import (
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/latchkey-dev/latchkey/internal/llm"
	"github.com/latchkey-dev/latchkey/internal/policy"
)

// kind is what an error is about; the dialects name it differently.
type kind uint8

const (
	kindRequest kind = iota // by status: invalid, not found, too large, not permitted
	kindAuthentication
	kindServer
	kindRequests // of a limit that counts requests
	kindTokens   // of a limit that counts tokens
	kindQuota    // of a budget
)

// retry says what a refusal tells the SDKs, which try 408, 409, 429 and 5xx again if nothing else is said.
type retry uint8

const (
	retryByStatus retry = iota
	retryNever
)

// refusal is an error before it is put into words of a dialect.
type refusal struct {
	status  int
	kind    kind
	retry   retry
	code    string // OpenAI's code; empty: null
	param   string // OpenAI's param; empty: null
	reason  string // for metrics and logs
	message string // its first 200 bytes carry the meaning
	allow   string // of 405
	headers []Header
	after   int64 // seconds after which to try again; 0: not said
}

func badRequest(reason, param, message string) *refusal {
	return &refusal{status: http.StatusBadRequest, reason: reason, param: param, message: message}
}

// capabilityRefusal says whose grant is missing.
func capabilityRefusal(whose string, missing policy.Capabilities) *refusal {
	return &refusal{status: http.StatusForbidden, code: "capability_not_allowed", reason: "capability_not_allowed",
		message: whose + " is not allowed " + missing.String() + ": whoever manages it can add that to its capabilities"}
}

func modelNotFound(name string) *refusal {
	return &refusal{status: http.StatusNotFound, code: "model_not_found", param: "model", reason: "model_not_found",
		message: "the model " + shown(name) + " does not exist, or this API key has no access to it: GET /v1/models lists those it has"}
}

func pathRefusal(err error) *refusal {
	if method, ok := errors.AsType[*llm.MethodError](err); ok {
		return &refusal{status: http.StatusMethodNotAllowed, reason: "method_not_allowed", message: err.Error(), allow: method.Allow}
	}
	return &refusal{status: http.StatusNotFound, reason: "unknown_path", message: err.Error()}
}

func formRefusal(err error) *refusal {
	r := &refusal{status: http.StatusBadRequest, reason: "bad_request", message: err.Error()}
	if form, ok := errors.AsType[*llm.FormError](err); ok {
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

// refuse puts a refusal into the caller's dialect. Whatever it quotes of the request, it does not quote the key.
func (x *Exchange) refuse(r *refusal) *Answer {
	message, param := x.redact(r.message), x.redact(r.param)
	var body any
	if x.dialect == llm.Anthropic {
		body = struct {
			Type      string         `json:"type"`
			Error     anthropicError `json:"error"`
			RequestID string         `json:"request_id"`
		}{"error", anthropicError{r.anthropicType(), message}, x.requestID}
	} else {
		body = struct {
			Error openAIError `json:"error"`
		}{openAIError{message, r.openAIType(), optional(param), optional(r.code)}}
	}
	answer := x.reply(r.status, body)
	answer.Reason = r.reason
	if r.allow != "" {
		answer.Headers = append(answer.Headers, Header{"allow", r.allow})
	}
	answer.Headers = append(answer.Headers, r.headers...)
	if r.after > 0 {
		answer.Headers = append(answer.Headers, Header{"retry-after", strconv.FormatInt(r.after, 10)})
	}
	if r.retry == retryNever {
		answer.Headers = append(answer.Headers, Header{"x-should-retry", "false"})
	}
	return answer
}

// redact shortens the key to its prefix wherever it stands, also where it has been cut off, and takes out what it has behind the prefix.
func (x *Exchange) redact(s string) string {
	plaintext := x.plaintext.Reveal()
	if plaintext == "" {
		return s
	}
	s = strings.ReplaceAll(s, x.secret(), "…")
	prefix := x.plaintext.Prefix()
	for from := 0; ; {
		i := strings.Index(s[from:], prefix)
		if i < 0 {
			return s
		}
		begin := from + i
		end := begin + len(prefix)
		for end < len(s) && end-begin < len(plaintext) && s[end] == plaintext[end-begin] {
			end++
		}
		from = begin + len(prefix)
		s = s[:from] + s[end:]
	}
}

func (r *refusal) openAIType() string {
	switch r.kind {
	case kindServer:
		return "server_error"
	case kindRequests:
		return "requests"
	case kindTokens:
		return "tokens"
	case kindQuota:
		return "insufficient_quota"
	case kindRequest, kindAuthentication:
	}
	return "invalid_request_error"
}

func (r *refusal) anthropicType() string {
	switch r.kind {
	case kindServer:
		return "api_error"
	case kindAuthentication:
		return "authentication_error"
	case kindRequests, kindTokens, kindQuota:
		return "rate_limit_error"
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
		cut := most
		for cut > 0 && !utf8.RuneStart(s[cut]) {
			cut--
		}
		s = s[:cut] + "…"
	}
	return `"` + s + `"`
}
