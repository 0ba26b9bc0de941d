package envoyconf

import (
	"cmp"
	"net/netip"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	dnscommonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/common/dns/v3"
	dnsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/dns/v3"
	injectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/credential_injector/v3"
	codecv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/upstream_codec/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	genericv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/injected_credentials/generic/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/latchkey-dev/latchkey/internal/policy"
)

const (
	defaultConnectTimeout  = 5 * time.Second
	enforcerConnectTimeout = time.Second

	// Envoy's defaults, 1,024 each, are less than one gateway has under way: every request is also a stream to the enforcer.
	maxProviderRequests = 10_000
	maxEnforcerRequests = 100_000

	// Less than the minute or more after which providers close idle connections, so that requests do not meet a closing one.
	providerIdleTimeout = 50 * time.Second

	credentialFetchTimeout = 2 * time.Second

	keepalivePingInterval = 30 * time.Second
	keepalivePingTimeout  = 10 * time.Second

	dnsFailureRefresh    = time.Second
	dnsFailureRefreshMax = 10 * time.Second
	dnsMinRefresh        = 5 * time.Second

	httpOptionsName = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
)

// enforcerCluster is the enforcer beside Envoy, over its unix socket.
func (b *builder) enforcerCluster() *clusterv3.Cluster {
	return &clusterv3.Cluster{
		Name:                 EnforcerCluster,
		ConnectTimeout:       durationpb.New(enforcerConnectTimeout),
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		LoadAssignment: loadAssignment(EnforcerCluster, &corev3.Address{
			Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: b.cfg.EnforcerSocket}},
		}),
		CircuitBreakers: circuitBreakers(maxEnforcerRequests),
		TypedExtensionProtocolOptions: map[string]*anypb.Any{
			httpOptionsName: b.pack(explicitHTTP2(&corev3.Http2ProtocolOptions{})),
		},
	}
}

func (b *builder) providerCluster(p *policy.Provider) *clusterv3.Cluster {
	name := ProviderCluster(p.Name)
	c := &clusterv3.Cluster{
		Name:            name,
		ConnectTimeout:  durationpb.New(cmp.Or(p.ConnectTimeout, defaultConnectTimeout)),
		LoadAssignment:  loadAssignment(name, socketAddress(p.Host, uint32(p.Port))),
		CircuitBreakers: circuitBreakers(maxProviderRequests),
		UpstreamConnectionOptions: &clusterv3.UpstreamConnectionOptions{TcpKeepalive: &corev3.TcpKeepalive{
			KeepaliveProbes:   wrapperspb.UInt32(keepaliveProbes),
			KeepaliveTime:     wrapperspb.UInt32(keepaliveIdleSeconds),
			KeepaliveInterval: wrapperspb.UInt32(keepaliveIntervalSeconds),
		}},
		TypedExtensionProtocolOptions: map[string]*anypb.Any{httpOptionsName: b.pack(b.httpOptions(p))},
	}
	b.discover(c, p.Host)
	if p.Scheme == schemeHTTPS {
		c.TransportSocket = tlsSocket(b.pack(b.providerTLS(p)))
	}
	return c
}

// discover says how the cluster's host is found: an address as it is, a name by DNS.
func (b *builder) discover(c *clusterv3.Cluster, host string) {
	if _, err := netip.ParseAddr(host); err == nil {
		c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC}
		return
	}
	c.ClusterDiscoveryType = &clusterv3.Cluster_ClusterType{ClusterType: &clusterv3.Cluster_CustomClusterType{
		Name: "envoy.cluster.dns",
		TypedConfig: b.pack(&dnsv3.DnsCluster{
			DnsLookupFamily: dnscommonv3.DnsLookupFamily_ALL,
			// A large service answers with other addresses each time: connections to earlier ones are to stay.
			AllAddressesInSingleEndpoint: true,
			RespectDnsTtl:                true,
			DnsMinRefreshRate:            durationpb.New(dnsMinRefresh),
			DnsFailureRefreshRate: &dnsv3.DnsCluster_RefreshRate{
				BaseInterval: durationpb.New(dnsFailureRefresh),
				MaxInterval:  durationpb.New(dnsFailureRefreshMax),
			},
		}),
	}}
}

func (b *builder) httpOptions(p *policy.Provider) *httpv3.HttpProtocolOptions {
	options := &httpv3.HttpProtocolOptions{
		CommonHttpProtocolOptions: &corev3.HttpProtocolOptions{IdleTimeout: durationpb.New(providerIdleTimeout)},
	}
	if p.Scheme == schemeHTTPS {
		options.UpstreamProtocolOptions = &httpv3.HttpProtocolOptions_AutoConfig{AutoConfig: &httpv3.HttpProtocolOptions_AutoHttpConfig{
			Http2ProtocolOptions: http2Keepalive(),
		}}
	} else {
		options.UpstreamProtocolOptions = &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{
			ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
				ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions{
					HttpProtocolOptions: &corev3.Http1ProtocolOptions{},
				},
			},
		}
	}
	if p.CredentialHeader != "" {
		options.HttpFilters = []*hcmv3.HttpFilter{
			{
				Name:       "envoy.filters.http.credential_injector",
				ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: b.pack(b.credentialInjector(p))},
			},
			{
				Name:       "envoy.filters.http.upstream_codec",
				ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: b.pack(&codecv3.UpstreamCodec{})},
			},
		}
	}
	return options
}

// credentialInjector is part of the cluster, not of the listener: it runs after the router has removed the caller's credentials, and
// once more for each retry.
func (b *builder) credentialInjector(p *policy.Provider) *injectorv3.CredentialInjector {
	// Envoy holds back all routes while a cluster waits for its credential: one that does not come must not hold up the others for long.
	source := adsSource()
	source.InitialFetchTimeout = durationpb.New(credentialFetchTimeout)
	return &injectorv3.CredentialInjector{
		Overwrite:                     true,
		AllowRequestWithoutCredential: false,
		Credential: &corev3.TypedExtensionConfig{
			Name: "envoy.http.injected_credentials.generic",
			TypedConfig: b.pack(&genericv3.Generic{
				Credential:        &tlsv3.SdsSecretConfig{Name: CredentialSecret(p.Name), SdsConfig: source},
				Header:            p.CredentialHeader,
				HeaderValuePrefix: p.CredentialPrefix,
			}),
		},
	}
}

// credential is the secret that the injector subscribes to. Envoy's admin interface shows secrets redacted.
func credential(p *policy.Provider) *tlsv3.Secret {
	return &tlsv3.Secret{
		Name: CredentialSecret(p.Name),
		Type: &tlsv3.Secret_GenericSecret{GenericSecret: &tlsv3.GenericSecret{Secret: &corev3.DataSource{
			Specifier: &corev3.DataSource_InlineString{InlineString: p.Credential.Reveal()},
		}}},
	}
}

func (b *builder) providerTLS(p *policy.Provider) *tlsv3.UpstreamTlsContext {
	roots := &corev3.DataSource{Specifier: &corev3.DataSource_Filename{Filename: b.cfg.SystemRoots}}
	if p.CABundle != "" {
		roots = &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: p.CABundle}}
	}
	serverName := cmp.Or(p.ServerName, p.Host)
	context := &tlsv3.UpstreamTlsContext{
		Sni: serverName,
		CommonTlsContext: &tlsv3.CommonTlsContext{
			ValidationContextType: &tlsv3.CommonTlsContext_ValidationContext{ValidationContext: validation(roots, serverName)},
		},
	}
	if _, err := netip.ParseAddr(serverName); err == nil {
		context.Sni = "" // RFC 6066, section 3: addresses are not permitted
	}
	return context
}

// validation trusts what the roots have signed for the name or address, and nothing else.
func validation(roots *corev3.DataSource, serverName string) *tlsv3.CertificateValidationContext {
	kind := tlsv3.SubjectAltNameMatcher_DNS
	if _, err := netip.ParseAddr(serverName); err == nil {
		kind = tlsv3.SubjectAltNameMatcher_IP_ADDRESS
	}
	return &tlsv3.CertificateValidationContext{
		TrustedCa: roots,
		MatchTypedSubjectAltNames: []*tlsv3.SubjectAltNameMatcher{{
			SanType: kind,
			Matcher: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: serverName}},
		}},
	}
}

func tlsSocket(context *anypb.Any) *corev3.TransportSocket {
	return &corev3.TransportSocket{
		Name:       "envoy.transport_sockets.tls",
		ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: context},
	}
}

func explicitHTTP2(options *corev3.Http2ProtocolOptions) *httpv3.HttpProtocolOptions {
	return &httpv3.HttpProtocolOptions{UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{
		ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
			ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{Http2ProtocolOptions: options},
		},
	}}
}

func http2Keepalive() *corev3.Http2ProtocolOptions {
	return &corev3.Http2ProtocolOptions{ConnectionKeepalive: &corev3.KeepaliveSettings{
		Interval: durationpb.New(keepalivePingInterval),
		Timeout:  durationpb.New(keepalivePingTimeout),
	}}
}

func loadAssignment(cluster string, address *corev3.Address) *endpointv3.ClusterLoadAssignment {
	return &endpointv3.ClusterLoadAssignment{
		ClusterName: cluster,
		Endpoints: []*endpointv3.LocalityLbEndpoints{{
			LbEndpoints: []*endpointv3.LbEndpoint{{
				HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: address}},
			}},
		}},
	}
}

func circuitBreakers(requests uint32) *clusterv3.CircuitBreakers {
	return &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{
		MaxConnections:     wrapperspb.UInt32(requests),
		MaxPendingRequests: wrapperspb.UInt32(requests),
		MaxRequests:        wrapperspb.UInt32(requests),
		MaxRetries:         wrapperspb.UInt32(requests),
	}}}
}
