package envoyconf

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"path"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"sigs.k8s.io/yaml"
)

const (
	xdsCluster     = "xds"
	gatewayCluster = "latchkey-gateway" // the node's, by which Envoy introduces itself

	// Envoy comes back to a control plane that was away within seconds; its own default waits for up to 30.
	xdsBackOffBase = 500 * time.Millisecond
	xdsBackOffMax  = 5 * time.Second

	certificateName = "xds_certificate"
	authorityName   = "xds_authority"
)

// The files of SDSFiles.
const (
	CertificateFile = "xds-certificate.yaml"
	AuthorityFile   = "xds-authority.yaml"
)

// BootstrapConfig is what Envoy has to know to find the control plane.
type BootstrapConfig struct {
	NodeID     string // names this Envoy among all that the control plane serves
	XDSHost    string // name or address of the control plane
	XDSPort    uint32
	ServerName string // the name in the control plane's certificate

	// CertDir is the directory, on Envoy's machine, of ca.crt, tls.crt and tls.key.
	CertDir string
	// SDSDir is the directory, on Envoy's machine, of the files that SDSFiles gives. With them Envoy reads renewed certificates when
	// CertDir changes by a move, as that of a Kubernetes volume does. Empty: it reads the certificates once, when it starts.
	SDSDir string

	AdminAddress string // an IP address; empty: 127.0.0.1
	AdminPort    uint32 // 0: the system picks one
}

// Bootstrap is the file that Envoy is started with, in YAML. All else comes from the control plane.
func Bootstrap(cfg BootstrapConfig) ([]byte, error) {
	if cfg.AdminAddress == "" {
		cfg.AdminAddress = "127.0.0.1"
	}
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("check bootstrap configuration: %w", err)
	}
	var b builder
	bootstrap := &bootstrapv3.Bootstrap{
		Node:  &corev3.Node{Id: cfg.NodeID, Cluster: gatewayCluster},
		Admin: &bootstrapv3.Admin{Address: socketAddress(cfg.AdminAddress, cfg.AdminPort)},
		DynamicResources: &bootstrapv3.Bootstrap_DynamicResources{
			LdsConfig: adsSource(),
			CdsConfig: adsSource(),
			AdsConfig: &corev3.ApiConfigSource{
				ApiType:                   corev3.ApiConfigSource_DELTA_GRPC,
				TransportApiVersion:       corev3.ApiVersion_V3,
				SetNodeOnFirstMessageOnly: true,
				GrpcServices: []*corev3.GrpcService{{
					TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{
						ClusterName: xdsCluster,
						RetryPolicy: &corev3.RetryPolicy{RetryBackOff: &corev3.BackoffStrategy{
							BaseInterval: durationpb.New(xdsBackOffBase),
							MaxInterval:  durationpb.New(xdsBackOffMax),
						}},
					}},
				}},
			},
		},
		StaticResources: &bootstrapv3.Bootstrap_StaticResources{Clusters: []*clusterv3.Cluster{b.controlPlane(cfg)}},
	}
	if b.err != nil {
		return nil, b.err
	}
	if err := bootstrap.ValidateAll(); err != nil {
		return nil, fmt.Errorf("check bootstrap: %w", err)
	}
	return toYAML(bootstrap)
}

func (cfg BootstrapConfig) check() error {
	var errs []error
	for name, value := range map[string]string{
		"node id": cfg.NodeID, "xDS host": cfg.XDSHost, "server name": cfg.ServerName, "certificate directory": cfg.CertDir,
	} {
		if value == "" {
			errs = append(errs, fmt.Errorf("the %s is empty", name))
		}
	}
	if cfg.XDSPort == 0 || cfg.XDSPort > math.MaxUint16 || cfg.AdminPort > math.MaxUint16 {
		errs = append(errs, fmt.Errorf("xDS port %d or admin port %d is not a port", cfg.XDSPort, cfg.AdminPort))
	}
	if _, err := netip.ParseAddr(cfg.AdminAddress); err != nil {
		errs = append(errs, fmt.Errorf("parse admin address: %w", err))
	}
	return errors.Join(errs...)
}

func (b *builder) controlPlane(cfg BootstrapConfig) *clusterv3.Cluster {
	c := &clusterv3.Cluster{
		Name:           xdsCluster,
		ConnectTimeout: durationpb.New(defaultConnectTimeout),
		LoadAssignment: loadAssignment(xdsCluster, socketAddress(cfg.XDSHost, cfg.XDSPort)),
		TypedExtensionProtocolOptions: map[string]*anypb.Any{
			// The stream is quiet for hours: without pings a control plane that vanished would not be noticed.
			httpOptionsName: b.pack(explicitHTTP2(http2Keepalive())),
		},
		TransportSocket: tlsSocket(b.pack(&tlsv3.UpstreamTlsContext{
			Sni:              cfg.ServerName,
			CommonTlsContext: controlPlaneTLS(cfg),
		})),
	}
	b.discover(c, cfg.XDSHost)
	return c
}

func controlPlaneTLS(cfg BootstrapConfig) *tlsv3.CommonTlsContext {
	context := &tlsv3.CommonTlsContext{TlsParams: &tlsv3.TlsParameters{
		TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_3,
		TlsMaximumProtocolVersion: tlsv3.TlsParameters_TLSv1_3,
	}}
	if cfg.SDSDir == "" {
		context.TlsCertificates = []*tlsv3.TlsCertificate{certificate(cfg.CertDir)}
		context.ValidationContextType = &tlsv3.CommonTlsContext_ValidationContext{
			ValidationContext: validation(file(cfg.CertDir, "ca.crt"), cfg.ServerName),
		}
		return context
	}
	context.TlsCertificateSdsSecretConfigs = []*tlsv3.SdsSecretConfig{
		{Name: certificateName, SdsConfig: fileSource(path.Join(cfg.SDSDir, CertificateFile))},
	}
	context.ValidationContextType = &tlsv3.CommonTlsContext_ValidationContextSdsSecretConfig{
		ValidationContextSdsSecretConfig: &tlsv3.SdsSecretConfig{
			Name: authorityName, SdsConfig: fileSource(path.Join(cfg.SDSDir, AuthorityFile)),
		},
	}
	return context
}

// SDSFiles are the files that BootstrapConfig.SDSDir has to hold, by name. They hold paths only, no certificates, and so stay as they are
// when certificates are renewed.
func SDSFiles(cfg BootstrapConfig) (map[string][]byte, error) {
	watched := &corev3.WatchedDirectory{Path: cfg.CertDir}
	own := certificate(cfg.CertDir)
	own.WatchedDirectory = watched
	authority := validation(file(cfg.CertDir, "ca.crt"), cfg.ServerName)
	authority.WatchedDirectory = watched

	files := make(map[string][]byte)
	for name, secret := range map[string]*tlsv3.Secret{
		CertificateFile: {Name: certificateName, Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: own}},
		AuthorityFile:   {Name: authorityName, Type: &tlsv3.Secret_ValidationContext{ValidationContext: authority}},
	} {
		var b builder
		response := &discoveryv3.DiscoveryResponse{Resources: []*anypb.Any{b.pack(secret)}}
		if b.err != nil {
			return nil, b.err
		}
		content, err := toYAML(response)
		if err != nil {
			return nil, err
		}
		files[name] = content
	}
	return files, nil
}

func certificate(dir string) *tlsv3.TlsCertificate {
	return &tlsv3.TlsCertificate{CertificateChain: file(dir, "tls.crt"), PrivateKey: file(dir, "tls.key")}
}

func file(dir, name string) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_Filename{Filename: path.Join(dir, name)}}
}

func fileSource(name string) *corev3.ConfigSource {
	return &corev3.ConfigSource{
		ResourceApiVersion:    corev3.ApiVersion_V3,
		ConfigSourceSpecifier: &corev3.ConfigSource_PathConfigSource{PathConfigSource: &corev3.PathConfigSource{Path: name}},
	}
}

func toYAML(msg proto.Message) ([]byte, error) {
	content, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(msg)
	if err != nil {
		return nil, fmt.Errorf("marshal %s: %w", msg.ProtoReflect().Descriptor().FullName(), err)
	}
	content, err = yaml.JSONToYAML(content)
	if err != nil {
		return nil, fmt.Errorf("convert %s to YAML: %w", msg.ProtoReflect().Descriptor().FullName(), err)
	}
	return content, nil
}
