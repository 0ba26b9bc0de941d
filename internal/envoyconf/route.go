package envoyconf

import (
	"net"
	"net/netip"
	"strconv"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/latchkey-dev/latchkey/internal/policy"
)

const (
	schemeHTTP  = "http"
	schemeHTTPS = "https"

	canonicalPrefix = "/v1/"

	retryBackOffBase = 100 * time.Millisecond
	retryBackOffMax  = 2 * time.Second
)

// notForProviders is what a provider must not learn of a caller: its keys, its addresses, what it would have the provider charge, and
// what the gateway says to itself. The router removes them before the cluster's filter puts the provider's credential in.
func notForProviders() []string {
	return []string{
		// The caller's key and other credentials.
		"authorization", "x-api-key", "api-key", "x-goog-api-key", "proxy-authorization", "cookie",
		// The choice of the account to be charged is the gateway's.
		"openai-organization", "openai-project", "anthropic-organization-id",
		// Where the caller is.
		"x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-forwarded-port", "x-forwarded-server", "x-forwarded-prefix",
		"x-forwarded-client-cert", "x-original-forwarded-for", "forwarded", "via", "x-real-ip", "x-client-ip", "x-cluster-client-ip",
		"true-client-ip", "cf-connecting-ip", "fastly-client-ip", "origin", "referer",
		// What is between the enforcer and Envoy, and what Envoy adds for itself.
		policy.ProviderHeader, "x-envoy-external-address", "x-envoy-internal", "x-envoy-expected-rq-timeout-ms",
		"x-envoy-attempt-count", "x-envoy-original-path",
	}
}

// notForCallers is what a caller must not learn of a provider's account, and what would bind it to the provider's host.
func notForCallers() []string {
	return []string{
		"openai-organization", "openai-project", "anthropic-organization-id", "set-cookie", "alt-svc", "strict-transport-security",
		"x-envoy-upstream-service-time", policy.GatewayErrorHeader,
	}
}

func (b *builder) routeTable(providers []policy.Provider) *routev3.RouteConfiguration {
	routes := make([]*routev3.Route, 0, len(providers)+1)
	for i := range providers {
		routes = append(routes, providerRoute(&providers[i]))
	}
	// Nothing has named a provider, or it is gone: whatever comes here has not been let through.
	routes = append(routes, &routev3.Route{
		Name:   "undecided",
		Match:  &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
		Action: &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{Status: 503}},
	})
	return &routev3.RouteConfiguration{
		Name: RouteTableName,
		VirtualHosts: []*routev3.VirtualHost{{
			Name:    RouteTableName,
			Domains: []string{"*"},
			Routes:  routes,
			ResponseHeadersToAdd: []*corev3.HeaderValueOption{{
				Header:       &corev3.HeaderValue{Key: "x-request-id", Value: requestID},
				AppendAction: corev3.HeaderValueOption_ADD_IF_ABSENT,
			}},
		}},
	}
}

func providerRoute(p *policy.Provider) *routev3.Route {
	action := &routev3.RouteAction{
		ClusterSpecifier:     &routev3.RouteAction_Cluster{Cluster: ProviderCluster(p.Name)},
		PrefixRewrite:        p.BasePath + "/",
		HostRewriteSpecifier: &routev3.RouteAction_HostRewriteLiteral{HostRewriteLiteral: authority(p)},
		// 0 switches both off; left unset they would be 15 s and the listener's.
		Timeout:     durationpb.New(p.RequestTimeout),
		IdleTimeout: durationpb.New(p.IdleTimeout),
	}
	if p.RetryAttempts > 0 {
		action.RetryPolicy = &routev3.RetryPolicy{
			// Nothing that the provider may have begun to work on, and charge for, is sent again, but what it says it could not do.
			RetryOn:              "connect-failure,reset-before-request,retriable-status-codes",
			RetriableStatusCodes: []uint32{502, 503, 504},
			NumRetries:           wrapperspb.UInt32(uint32(p.RetryAttempts)),
			RetryBackOff: &routev3.RetryPolicy_RetryBackOff{
				BaseInterval: durationpb.New(retryBackOffBase),
				MaxInterval:  durationpb.New(retryBackOffMax),
			},
		}
	}
	return &routev3.Route{
		// The name has the dialect, for the errors that Envoy answers with itself.
		Name: p.Format.String() + "/" + p.Name,
		Match: &routev3.RouteMatch{
			PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: canonicalPrefix},
			Headers: []*routev3.HeaderMatcher{{
				Name: policy.ProviderHeader,
				HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: &matcherv3.StringMatcher{
					MatchPattern: &matcherv3.StringMatcher_Exact{Exact: p.Name},
				}},
			}},
		},
		Action:                  &routev3.Route_Route{Route: action},
		RequestHeadersToRemove:  notForProviders(),
		ResponseHeadersToRemove: notForCallers(),
	}
}

// authority is the provider's host header: with the port where it is not the scheme's, with brackets around an IPv6 address.
func authority(p *policy.Provider) string {
	if p.Scheme == schemeHTTPS && p.Port == 443 || p.Scheme == schemeHTTP && p.Port == 80 {
		if addr, err := netip.ParseAddr(p.Host); err == nil && addr.Is6() {
			return "[" + p.Host + "]"
		}
		return p.Host
	}
	return net.JoinHostPort(p.Host, strconv.Itoa(int(p.Port)))
}
