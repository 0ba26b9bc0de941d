package envoyconf

import (
	xdscorev3 "github.com/cncf/xds/go/xds/core/v3"
	xdsmatcherv3 "github.com/cncf/xds/go/xds/type/matcher/v3"
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	mutationv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	streamv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/stream/v3"
	matchingv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/matching/v3"
	actionv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/matcher/action/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	earlyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/early_header_mutation/header_mutation/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/latchkey-dev/latchkey/internal/policy"
)

const (
	maxConcurrentStreams = 1_000
	minWindowBytes       = 1<<16 - 1 // RFC 9113, section 6.9.2
	maxRequestHeadersKiB = 60
	maxRequestHeaders    = 100

	requestHeadersTimeoutSeconds = 15
	streamIdleTimeoutSeconds     = 300 // until a route is found, which has the provider's own
	connectionIdleTimeoutSeconds = 900

	keepaliveIdleSeconds     = 60
	keepaliveIntervalSeconds = 15
	keepaliveProbes          = 4
)

// listener depends on the configuration only, never on the providers: a change of it drains the callers' connections.
func (b *builder) listener() *listenerv3.Listener {
	return &listenerv3.Listener{
		Name:    ListenerName,
		Address: socketAddress(b.cfg.GatewayAddress, b.cfg.GatewayPort),
		// Bodies of requests are held whole until the enforcer has decided: this is their limit over HTTP/1. The limit of the route
		// table counts for the router only, which is too late.
		PerConnectionBufferLimitBytes: wrapperspb.UInt32(b.cfg.MaxRequestBytes),
		FilterChains: []*listenerv3.FilterChain{{
			Filters: []*listenerv3.Filter{{
				Name:       "envoy.filters.network.http_connection_manager",
				ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: b.pack(b.connectionManager())},
			}},
		}},
	}
}

func (b *builder) connectionManager() *hcmv3.HttpConnectionManager {
	return &hcmv3.HttpConnectionManager{
		StatPrefix: ListenerName,
		CodecType:  hcmv3.HttpConnectionManager_AUTO,
		RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{
			RouteConfigName: RouteTableName,
			ConfigSource:    adsSource(),
		}},
		HttpFilters: []*hcmv3.HttpFilter{
			{
				Name:       "envoy.filters.http.match_delegate",
				ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: b.pack(b.enforcement())},
			},
			{
				Name: "envoy.filters.http.router",
				ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: b.pack(&routerv3.Router{
					// Providers need not learn about the proxy, nor callers about the providers' response times.
					SuppressEnvoyHeaders: true,
				})},
			},
		},
		LocalReplyConfig: b.localReplies(),
		AccessLog:        b.accessLog(),

		// The enforcer and the route table see one spelling of each path.
		NormalizePath:                wrapperspb.Bool(true),
		MergeSlashes:                 true,
		PathWithEscapedSlashesAction: hcmv3.HttpConnectionManager_REJECT_REQUEST,

		// Every caller is untrusted, those with private addresses included: what they say of request ids, retries and addresses is void.
		UseRemoteAddress:      wrapperspb.Bool(true),
		SkipXffAppend:         true,
		InternalAddressConfig: &hcmv3.HttpConnectionManager_InternalAddressConfig{CidrRanges: []*corev3.CidrRange{nobody()}},
		GenerateRequestId:     wrapperspb.Bool(true),
		EarlyHeaderMutationExtensions: []*corev3.TypedExtensionConfig{{
			Name: "envoy.http.early_header_mutation.header_mutation",
			TypedConfig: b.pack(&earlyv3.HeaderMutation{Mutations: []*mutationv3.HeaderMutation{
				removePrefix("x-latchkey-"),
				removePrefix("x-envoy-"),
			}}),
		}},

		ServerName:            "latchkey",
		StreamIdleTimeout:     seconds(streamIdleTimeoutSeconds),
		RequestHeadersTimeout: seconds(requestHeadersTimeoutSeconds),
		MaxRequestHeadersKb:   wrapperspb.UInt32(maxRequestHeadersKiB),
		CommonHttpProtocolOptions: &corev3.HttpProtocolOptions{
			IdleTimeout:                  seconds(connectionIdleTimeoutSeconds),
			MaxHeadersCount:              wrapperspb.UInt32(maxRequestHeaders),
			HeadersWithUnderscoresAction: corev3.HttpProtocolOptions_REJECT_REQUEST,
		},
		// Explicit where the defaults do the same, since bypassing the enforcer by a request that is read in two ways hangs on them:
		// no HTTP/1.0, no content-length beside transfer-encoding.
		HttpProtocolOptions: &corev3.Http1ProtocolOptions{
			AcceptHttp_10:      false,
			AllowChunkedLength: false,
		},
		Http2ProtocolOptions: &corev3.Http2ProtocolOptions{
			MaxConcurrentStreams: wrapperspb.UInt32(maxConcurrentStreams),
			// Over HTTP/2 the window of the stream is the limit of what is held.
			InitialStreamWindowSize:     wrapperspb.UInt32(max(b.cfg.MaxRequestBytes, minWindowBytes)),
			InitialConnectionWindowSize: wrapperspb.UInt32(max(b.cfg.MaxRequestBytes, minWindowBytes)),
		},
	}
}

// enforcement is the external processor, but for the responses that are Envoy's own errors. The enforcer has nothing to say to those, and
// to wait for it would lose them: Envoy closes the connection of a request that it cannot parse before the enforcer has answered.
//
// The condition is on responses only, so that no request can fulfil it: while there is no response, the filter is in force.
func (b *builder) enforcement() *matchingv3.ExtensionWithMatcher {
	return &matchingv3.ExtensionWithMatcher{
		ExtensionConfig: &corev3.TypedExtensionConfig{
			Name:        "envoy.filters.http.ext_proc",
			TypedConfig: b.pack(b.externalProcessor()),
		},
		XdsMatcher: &xdsmatcherv3.Matcher{MatcherType: &xdsmatcherv3.Matcher_MatcherList_{MatcherList: &xdsmatcherv3.Matcher_MatcherList{
			Matchers: []*xdsmatcherv3.Matcher_MatcherList_FieldMatcher{{
				Predicate: &xdsmatcherv3.Matcher_MatcherList_Predicate{
					MatchType: &xdsmatcherv3.Matcher_MatcherList_Predicate_SinglePredicate_{
						SinglePredicate: &xdsmatcherv3.Matcher_MatcherList_Predicate_SinglePredicate{
							Input: &xdscorev3.TypedExtensionConfig{
								Name:        "envoy.matching.inputs.response_headers",
								TypedConfig: b.pack(&matcherv3.HttpResponseHeaderMatchInput{HeaderName: policy.GatewayErrorHeader}),
							},
							Matcher: &xdsmatcherv3.Matcher_MatcherList_Predicate_SinglePredicate_ValueMatch{
								ValueMatch: &xdsmatcherv3.StringMatcher{
									MatchPattern: &xdsmatcherv3.StringMatcher_Exact{Exact: gatewayError},
								},
							},
						},
					},
				},
				OnMatch: &xdsmatcherv3.Matcher_OnMatch{OnMatch: &xdsmatcherv3.Matcher_OnMatch_Action{
					Action: &xdscorev3.TypedExtensionConfig{Name: "skip", TypedConfig: b.pack(&actionv3.SkipFilter{})},
				}},
			}},
		}}},
	}
}

// externalProcessor asks the enforcer, and lets nothing pass when it does not answer.
func (b *builder) externalProcessor() *extprocv3.ExternalProcessor {
	return &extprocv3.ExternalProcessor{
		GrpcService: &corev3.GrpcService{TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{
			ClusterName: EnforcerCluster,
			Authority:   EnforcerCluster,
		}}},
		FailureModeAllow: false,
		StatusOnError:    &typev3.HttpStatus{Code: typev3.StatusCode_ServiceUnavailable},
		// The enforcer takes the header out of the answers whose bodies it may change.
		AllowContentLengthHeader: true,
		MessageTimeout:           durationpb.New(b.cfg.EnforcerTimeout),
		StatPrefix:               EnforcerCluster,
		ProcessingMode: &extprocv3.ProcessingMode{
			RequestHeaderMode:  extprocv3.ProcessingMode_SEND,
			RequestBodyMode:    extprocv3.ProcessingMode_BUFFERED,
			RequestTrailerMode: extprocv3.ProcessingMode_SKIP,
			ResponseHeaderMode: extprocv3.ProcessingMode_SEND,
			// Each piece of an answer goes to the enforcer, which reads what it used, and on to the caller.
			ResponseBodyMode:    extprocv3.ProcessingMode_STREAMED,
			ResponseTrailerMode: extprocv3.ProcessingMode_SEND,
		},
		// The path and all plain headers can be changed; the host, the method, the scheme and x-envoy-* cannot. An attempt is a fault
		// of the enforcer's, and fails the request instead of sending on something else than was decided.
		MutationRules: &mutationv3.HeaderMutationRules{DisallowIsError: wrapperspb.Bool(true)},
	}
}

// accessLog has nothing that a caller could have put a key into: neither headers of credentials nor the path's query.
func (b *builder) accessLog() []*accesslogv3.AccessLog {
	if !b.cfg.AccessLog {
		return nil
	}
	fields := map[string]string{
		"time":             "%START_TIME%",
		"request_id":       "%REQ(X-REQUEST-ID)%",
		"method":           "%REQ(:METHOD)%",
		"path":             "%PATH(NQ)%",
		"protocol":         "%PROTOCOL%",
		"status":           "%RESPONSE_CODE%",
		"details":          "%RESPONSE_CODE_DETAILS%",
		"flags":            "%RESPONSE_FLAGS%",
		"request_bytes":    "%BYTES_RECEIVED%",
		"response_bytes":   "%BYTES_SENT%",
		"duration_ms":      "%DURATION%",
		"upstream_cluster": "%UPSTREAM_CLUSTER_RAW%",
	}
	format := &structpb.Struct{Fields: make(map[string]*structpb.Value, len(fields))}
	for name, value := range fields {
		format.Fields[name] = structpb.NewStringValue(value)
	}
	return []*accesslogv3.AccessLog{{
		Name: "envoy.access_loggers.stdout",
		ConfigType: &accesslogv3.AccessLog_TypedConfig{TypedConfig: b.pack(&streamv3.StdoutAccessLog{
			AccessLogFormat: &streamv3.StdoutAccessLog_LogFormat{LogFormat: &corev3.SubstitutionFormatString{
				Format: &corev3.SubstitutionFormatString_JsonFormat{JsonFormat: format},
			}},
		})},
	}}
}

func removePrefix(prefix string) *mutationv3.HeaderMutation {
	return &mutationv3.HeaderMutation{Action: &mutationv3.HeaderMutation_RemoveOnMatch_{
		RemoveOnMatch: &mutationv3.HeaderMutation_RemoveOnMatch{KeyMatcher: &matcherv3.StringMatcher{
			MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: prefix},
			IgnoreCase:   true,
		}},
	}}
}

// nobody is a range of addresses that no caller has: without any range all private addresses would be trusted.
func nobody() *corev3.CidrRange {
	return &corev3.CidrRange{AddressPrefix: "255.255.255.255", PrefixLen: wrapperspb.UInt32(32)}
}

func adsSource() *corev3.ConfigSource {
	return &corev3.ConfigSource{
		ResourceApiVersion:    corev3.ApiVersion_V3,
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
	}
}

func socketAddress(host string, port uint32) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address:       host,
		PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port},
	}}}
}

func seconds(n int64) *durationpb.Duration { return &durationpb.Duration{Seconds: n} }
