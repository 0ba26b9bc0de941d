package extproc

import (
	"encoding/json"
	"net/http"
	"strings"

	"github.com/latchkey-dev/latchkey/internal/enforce"
	"github.com/latchkey-dev/latchkey/internal/llm"
)

// reasonInternal is the reason word of the adapter's own refusals.
const reasonInternal = "internal_error"

// unable refuses a request that the engine could not be asked about, in the dialect of its caller, as far as the head tells. It calls
// nothing of the engine's: that may be what failed.
func unable(head enforce.Head) *enforce.Answer {
	const message = "the gateway could not decide on this request; it was not forwarded"
	path, _, _ := strings.Cut(head.Path, "?")
	anthropic := llm.IsAnthropicPath(path)
	requestID := ""
	for _, h := range head.Headers {
		switch h.Name {
		case "anthropic-version":
			anthropic = true
		case "x-request-id":
			requestID = h.Value
		}
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
	var body any = struct {
		Error openAIError `json:"error"`
	}{openAIError{Message: message, Type: "server_error"}}
	if anthropic {
		body = struct {
			Type      string         `json:"type"`
			Error     anthropicError `json:"error"`
			RequestID string         `json:"request_id"`
		}{"error", anthropicError{"api_error", message}, requestID}
	}
	encoded, err := json.Marshal(body)
	if err != nil {
		encoded = nil // the status alone refuses
	}
	answer := &enforce.Answer{
		Status:  http.StatusServiceUnavailable,
		Headers: []enforce.Header{{Name: "content-type", Value: "application/json"}},
		Body:    encoded,
		Reason:  reasonInternal,
	}
	if requestID != "" {
		answer.Headers = append(answer.Headers, enforce.Header{Name: "x-request-id", Value: requestID})
	}
	return answer
}
