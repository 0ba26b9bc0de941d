package envoyconf

import (
	"fmt"
	"strings"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	celv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/filters/cel/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/latchkey-dev/latchkey/internal/policy"
)

// reply is an error of Envoy's own as callers are told of it.
type reply struct {
	when      string // CEL; empty: always
	status    uint32 // 0: as Envoy has it
	message   string // with Envoy's format operators
	openAI    string // the error's type
	anthropic string
	provider  bool // it comes of the provider, which was not reached, or did not answer
}

// inAnthropicDialect holds for requests whose errors are to be in Anthropic's form. The path is the caller's until a route is found; after
// that it is the provider's, and the route's name has the dialect.
var inAnthropicDialect = strings.Join([]string{
	`'anthropic-version' in request.headers`,
	`request.url_path == '/v1/messages'`,
	`request.url_path.startsWith('/v1/messages/')`,
	`request.url_path == '/messages'`,
	`request.url_path.startsWith('/messages/')`,
	`xds.route_name.startsWith('` + policy.FormatAnthropic.String() + `/')`,
}, " || ")

// replies are in order: the first that fits is taken.
func (b *builder) replies() []reply {
	const serverError, apiError = "server_error", "api_error"
	undecided := reply{
		status:    503,
		message:   "The gateway cannot decide on the request at the moment.",
		openAI:    serverError,
		anthropic: apiError,
	}
	// Envoy answers 504 for an enforcer that is silent, and 503 for one that is away.
	silent := undecided
	silent.when = `response.code_details.startsWith('ext_proc_')`
	return []reply{
		silent,
		{
			when:      `response.code == 413`,
			message:   fmt.Sprintf("The request body is too large: the gateway accepts at most %d bytes.", b.cfg.MaxRequestBytes),
			openAI:    "invalid_request_error",
			anthropic: "request_too_large",
		},
		{
			// The injector answers 401, which would tell callers that their own key is wrong.
			when:      `response.code_details == 'failed_to_inject_credential'`,
			status:    503,
			message:   "The gateway has no credential for the model's provider at the moment.",
			openAI:    serverError,
			anthropic: apiError,
			provider:  true,
		},
		{
			// The route of last resort: the request was let through to a provider that is not, or no longer, set up.
			when:      `response.code_details == 'direct_response'`,
			message:   "The model's provider is not set up at the moment.",
			openAI:    serverError,
			anthropic: apiError,
			provider:  true,
		},
		{
			when:      `response.code == 504`,
			message:   "The model's provider did not answer in time.",
			openAI:    serverError,
			anthropic: apiError,
			provider:  true,
		},
		{
			when:      `response.code_details.startsWith('upstream_') || response.code_details in ['no_healthy_upstream', 'cluster_not_found']`,
			message:   "The model's provider cannot be reached.",
			openAI:    serverError,
			anthropic: apiError,
			provider:  true,
		},
		{
			when:      `response.code >= 400 && response.code < 500 || response.code == 501`,
			message:   "The gateway cannot accept the request (%RESPONSE_CODE_DETAILS%).",
			openAI:    "invalid_request_error",
			anthropic: "invalid_request_error",
		},
		undecided,
	}
}

// localReplies puts Envoy's own errors into the caller's dialect, and leaves the enforcer's answers as they are.
func (b *builder) localReplies() *hcmv3.LocalReplyConfig {
	mappers := []*hcmv3.ResponseMapper{{
		Filter: b.celFilter(`response.code_details == '` + policy.AnswerDetails + `'`),
		BodyFormatOverride: &corev3.SubstitutionFormatString{
			Format: &corev3.SubstitutionFormatString_TextFormatSource{TextFormatSource: &corev3.DataSource{
				Specifier: &corev3.DataSource_InlineString{InlineString: "%LOCAL_REPLY_BODY%"},
			}},
			OmitEmptyValues: true,
		},
	}}
	for _, r := range b.replies() {
		when := inAnthropicDialect
		if r.when != "" {
			when = "(" + r.when + ") && (" + inAnthropicDialect + ")"
		}
		mappers = append(mappers, b.mapper(when, r, anthropicError(r)))
	}
	for _, r := range b.replies() {
		when := r.when
		if when == "" {
			when = "true"
		}
		mappers = append(mappers, b.mapper(when, r, openAIError(r)))
	}
	return &hcmv3.LocalReplyConfig{Mappers: mappers}
}

func openAIError(r reply) map[string]*structpb.Value {
	return map[string]*structpb.Value{
		"error": object(map[string]*structpb.Value{
			"message": structpb.NewStringValue(r.message),
			"type":    structpb.NewStringValue(r.openAI),
			"param":   structpb.NewNullValue(),
			"code":    structpb.NewNullValue(),
		}),
	}
}

func anthropicError(r reply) map[string]*structpb.Value {
	return map[string]*structpb.Value{
		"type": structpb.NewStringValue("error"),
		"error": object(map[string]*structpb.Value{
			"type":    structpb.NewStringValue(r.anthropic),
			"message": structpb.NewStringValue(r.message),
		}),
		"request_id": structpb.NewStringValue(requestID),
	}
}

func object(fields map[string]*structpb.Value) *structpb.Value {
	return structpb.NewStructValue(&structpb.Struct{Fields: fields})
}

// policy.GatewayErrorHeader is in the responses that are Envoy's own errors, and in no other: callers can tell them from the provider's.
// The enforcer is shown those that come of the provider, so that a request that was let through is not billed.
const gatewayError = "true"

const requestID = "%REQ(X-REQUEST-ID)%"

func (b *builder) mapper(when string, r reply, body map[string]*structpb.Value) *hcmv3.ResponseMapper {
	blame := gatewayError
	if r.provider {
		blame = policy.GatewayErrorOfProvider
	}
	m := &hcmv3.ResponseMapper{
		Filter: b.celFilter(when),
		BodyFormatOverride: &corev3.SubstitutionFormatString{
			Format: &corev3.SubstitutionFormatString_JsonFormat{JsonFormat: &structpb.Struct{Fields: body}},
		},
		HeadersToAdd: []*corev3.HeaderValueOption{
			{
				Header:       &corev3.HeaderValue{Key: "x-request-id", Value: requestID},
				AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
			},
			{
				Header:       &corev3.HeaderValue{Key: policy.GatewayErrorHeader, Value: blame},
				AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
			},
		},
	}
	if r.status != 0 {
		m.StatusCode = wrapperspb.UInt32(r.status)
	}
	return m
}

func (b *builder) celFilter(expression string) *accesslogv3.AccessLogFilter {
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_ExtensionFilter{
		ExtensionFilter: &accesslogv3.ExtensionFilter{
			Name:       "envoy.access_loggers.extension_filters.cel",
			ConfigType: &accesslogv3.ExtensionFilter_TypedConfig{TypedConfig: b.pack(&celv3.ExpressionFilter{Expression: expression})},
		},
	}}
}
