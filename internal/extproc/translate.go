package extproc

import (
	"strconv"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"

	"github.com/latchkey-dev/latchkey/internal/enforce"
	"github.com/latchkey-dev/latchkey/internal/policy"
)

// The pseudo-headers that Envoy puts among the others.
const (
	pseudoMethod = ":method"
	pseudoPath   = ":path"
	pseudoStatus = ":status"
)

// contentLength is the header that must tell a changed body's exact length: Envoy refuses the mutation (500) when the caller's own
// stands, and sends chunks when there is none.
const contentLength = "content-length"

// headOf is the request's head as the engine wants it: header values stand one by one, in Envoy's order.
func headOf(msg *extprocv3.HttpHeaders) enforce.Head {
	envoyHeaders := msg.GetHeaders().GetHeaders()
	head := enforce.Head{Headers: make([]enforce.Header, 0, len(envoyHeaders)), EndStream: msg.GetEndOfStream()}
	for _, h := range envoyHeaders {
		switch name := h.GetKey(); {
		case name == pseudoMethod:
			head.Method = valueOf(h)
		case name == pseudoPath:
			head.Path = valueOf(h)
		case strings.HasPrefix(name, ":"):
			// :authority and :scheme decide nothing.
		default:
			head.Headers = append(head.Headers, enforce.Header{Name: strings.ToLower(name), Value: valueOf(h)})
		}
	}
	return head
}

// responseHead is the response's status and headers.
func responseHead(msg *extprocv3.HttpHeaders) (int, []enforce.Header, error) {
	code := 0
	envoyHeaders := msg.GetHeaders().GetHeaders()
	headers := make([]enforce.Header, 0, len(envoyHeaders))
	for _, h := range envoyHeaders {
		switch name := h.GetKey(); {
		case name == pseudoStatus:
			var err error
			if code, err = strconv.Atoi(valueOf(h)); err != nil {
				return 0, nil, errProtocol("a response status that is no number")
			}
		case strings.HasPrefix(name, ":"):
		default:
			headers = append(headers, enforce.Header{Name: strings.ToLower(name), Value: valueOf(h)})
		}
	}
	if code == 0 {
		return 0, nil, errProtocol("response headers without a status")
	}
	return code, headers, nil
}

// valueOf is a header's value, which Envoy puts into one field or the other by its configuration.
func valueOf(h *corev3.HeaderValue) string {
	if raw := h.GetRawValue(); len(raw) > 0 {
		return string(raw)
	}
	return h.GetValue()
}

// forwarded makes Envoy's mutation of what the engine wants sent to the provider. Envoy chooses the route anew, by the headers set.
func forwarded(f *enforce.Forward) *extprocv3.CommonResponse {
	mutation := &extprocv3.HeaderMutation{
		SetHeaders:    make([]*corev3.HeaderValueOption, 0, len(f.Set)+3),
		RemoveHeaders: f.Remove,
	}
	set := func(name, value string) {
		mutation.SetHeaders = append(mutation.SetHeaders, overwrite(name, value))
	}
	for _, h := range f.Set {
		set(h.Name, h.Value)
	}
	set(policy.ProviderHeader, f.Provider)
	set(pseudoPath, f.Path)
	resp := &extprocv3.CommonResponse{HeaderMutation: mutation, ClearRouteCache: true}
	if f.Body != nil {
		set(contentLength, strconv.Itoa(len(f.Body)))
		resp.BodyMutation = bodyMutation(f.Body)
	}
	return resp
}

// bodyMutation puts a body, or a piece of one, in the place of what Envoy sent. An empty piece has to be said in another way.
func bodyMutation(body []byte) *extprocv3.BodyMutation {
	if len(body) == 0 {
		return &extprocv3.BodyMutation{Mutation: &extprocv3.BodyMutation_ClearBody{ClearBody: true}}
	}
	return &extprocv3.BodyMutation{Mutation: &extprocv3.BodyMutation_Body{Body: body}}
}

func overwrite(name, value string) *corev3.HeaderValueOption {
	return &corev3.HeaderValueOption{
		Header:       &corev3.HeaderValue{Key: name, RawValue: []byte(value)},
		AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
	}
}

func overwriteAll(headers []enforce.Header) []*corev3.HeaderValueOption {
	options := make([]*corev3.HeaderValueOption, 0, len(headers))
	for _, h := range headers {
		options = append(options, overwrite(h.Name, h.Value))
	}
	return options
}

func requestHeadersResponse(resp *extprocv3.CommonResponse) *extprocv3.ProcessingResponse {
	if resp.BodyMutation != nil {
		// Envoy takes a body mutation from an answer to headers with this status only.
		resp.Status = extprocv3.CommonResponse_CONTINUE_AND_REPLACE
	}
	return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestHeaders{
		RequestHeaders: &extprocv3.HeadersResponse{Response: resp},
	}}
}

// responseHeadersResponse lets the provider's response pass, changed as the engine wants it. nil: as it is.
func responseHeadersResponse(change *enforce.ResponseChange) *extprocv3.ProcessingResponse {
	resp := &extprocv3.CommonResponse{}
	if change != nil {
		resp.HeaderMutation = &extprocv3.HeaderMutation{SetHeaders: overwriteAll(change.Set), RemoveHeaders: change.Remove}
	}
	return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ResponseHeaders{
		ResponseHeaders: &extprocv3.HeadersResponse{Response: resp},
	}}
}

// immediate makes Envoy give the answer itself, in place of the provider.
func immediate(answer *enforce.Answer) *extprocv3.ProcessingResponse {
	return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ImmediateResponse{
		ImmediateResponse: &extprocv3.ImmediateResponse{
			Status:  &typev3.HttpStatus{Code: typev3.StatusCode(answer.Status)},
			Headers: &extprocv3.HeaderMutation{SetHeaders: overwriteAll(answer.Headers)},
			Body:    answer.Body,
			Details: policy.AnswerDetails,
		},
	}}
}
