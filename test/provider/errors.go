package provider

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
)

// dialect is the API whose shapes an answer has.
type dialect int

const (
	openAI dialect = iota
	anthropic
)

// statusOverloaded is Anthropic's own status for an overloaded service.
const statusOverloaded = 529

var (
	// errBroken ends a request by breaking its connection.
	errBroken = errors.New("connection broken on purpose")
	// errFailStream ends a stream by the API's own error event.
	errFailStream = errors.New("stream failed on purpose")
	// errGone says that the client has left.
	errGone = errors.New("client went away")
)

// apiError is an error answer in either dialect.
type apiError struct {
	status     int
	message    string
	param      string // OpenAI only
	code       string // OpenAI only
	retryAfter int    // seconds; unset sends none
}

func (e *apiError) Error() string {
	return fmt.Sprintf("answer %d: %s", e.status, e.message)
}

func badRequest(param, format string, args ...any) *apiError {
	return &apiError{status: http.StatusBadRequest, param: param, message: fmt.Sprintf(format, args...), retryAfter: unset}
}

// document is the body of the error answer.
func (e *apiError) document(d dialect, requestID string) object {
	if d == anthropic {
		return object{"type": "error", "error": object{"type": anthropicErrorType(e.status), "message": e.message}, "request_id": requestID}
	}
	return object{"error": object{"message": e.message, "type": openAIErrorType(e.status), "param": orNull(e.param), "code": orNull(e.code)}}
}

func openAIErrorType(status int) string {
	switch {
	case status == http.StatusTooManyRequests:
		return "requests"
	case status >= 500:
		return "server_error"
	default:
		return "invalid_request_error"
	}
}

func anthropicErrorType(status int) string {
	switch status {
	case http.StatusUnauthorized:
		return "authentication_error"
	case http.StatusForbidden:
		return "permission_error"
	case http.StatusNotFound:
		return "not_found_error"
	case http.StatusRequestEntityTooLarge:
		return "request_too_large"
	case http.StatusTooManyRequests:
		return "rate_limit_error"
	case statusOverloaded:
		return "overloaded_error"
	}
	if status >= 500 {
		return "api_error"
	}
	return "invalid_request_error"
}

// statusError is the answer to sim:status.
func statusError(d dialect, status, retryAfter int, model string) *apiError {
	e := &apiError{status: status, retryAfter: retryAfter}
	switch {
	case status == http.StatusTooManyRequests:
		if e.retryAfter == unset {
			e.retryAfter = 1
		}
		e.code = "rate_limit_exceeded"
		e.message = fmt.Sprintf("Rate limit reached for %s in organization sim-org on requests per min (RPM): Limit 500, Used 500, Requested 1. Please try again in %ds.", model, e.retryAfter)
		if d == anthropic {
			e.message = "This request would exceed your organization's rate limit of 500 requests per minute."
		}
	case status == statusOverloaded && d == anthropic:
		e.message = "Overloaded"
	case status >= 500:
		e.message = "The server had an error while processing your request."
		if d == anthropic {
			e.message = "Internal server error"
		}
	default:
		e.message = fmt.Sprintf("The simulated provider was asked for the status %d.", status)
	}
	return e
}

// keyError is the answer to a wrong credential. Like OpenAI's own, it shows the ends of the offered key: what a gateway must not pass on.
func keyError(d dialect, offered string) *apiError {
	e := &apiError{status: http.StatusUnauthorized, retryAfter: unset}
	switch {
	case d == anthropic && offered == "":
		e.message = "x-api-key header is required"
	case d == anthropic:
		e.message = "invalid x-api-key"
	case offered == "":
		e.message = "You didn't provide an API key. You need to provide your API key in an Authorization header using Bearer auth (i.e. Authorization: Bearer YOUR_KEY)."
	default:
		e.code = "invalid_api_key"
		e.message = fmt.Sprintf("Incorrect API key provided: %s. You can find your API key at https://platform.openai.com/account/api-keys.", maskKey(offered))
	}
	return e
}

// maskKey keeps the first 8 and the last 4 characters of a key, as OpenAI's error message does; a short one is only stars.
func maskKey(key string) string {
	if len(key) <= 16 {
		return strings.Repeat("*", len(key))
	}
	return key[:8] + strings.Repeat("*", len(key)-12) + key[len(key)-4:]
}

func modelError(d dialect, model string) *apiError {
	e := &apiError{status: http.StatusNotFound, retryAfter: unset, code: "model_not_found"}
	e.message = fmt.Sprintf("The model `%s` does not exist or you do not have access to it.", model)
	if d == anthropic {
		e.message = "model: " + model
	}
	return e
}

func pathError(d dialect, method, path string) *apiError {
	e := &apiError{status: http.StatusNotFound, retryAfter: unset, message: fmt.Sprintf("Invalid URL (%s %s)", method, path)}
	if d == anthropic {
		e.message = "Not Found"
	}
	return e
}

func methodError(method, path string) *apiError {
	return &apiError{
		status: http.StatusMethodNotAllowed, retryAfter: unset, code: "method_not_supported",
		message: fmt.Sprintf("Not allowed to %s on %s.", method, path),
	}
}
