package envoyconf

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	cachev3 "github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/latchkey-dev/latchkey/internal/policy"
)

// Resources is all that Envoy gets. They are not to be changed once handed over.
type Resources struct {
	Listeners []*listenerv3.Listener
	Clusters  []*clusterv3.Cluster
	Routes    []*routev3.RouteConfiguration
	Secrets   []*tlsv3.Secret
}

// String counts the resources instead of showing them: the secrets hold the providers' credentials.
func (r Resources) String() string {
	return fmt.Sprintf("%d listeners, %d clusters, %d routes, %d secrets", len(r.Listeners), len(r.Clusters), len(r.Routes), len(r.Secrets))
}

// GoString is String, so that %#v does not show the credentials either.
func (r Resources) GoString() string { return r.String() }

// LogValue is String, so that loggers do not show the credentials either.
func (r Resources) LogValue() slog.Value { return slog.StringValue(r.String()) }

// Build makes the resources for the providers, which are sorted by name and unique. An error names every provider that Envoy could not
// take, and comes without resources.
func Build(cfg Config, providers []policy.Provider) (Resources, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return Resources{}, fmt.Errorf("check gateway configuration: %w", err)
	}
	if err := checkAll(providers); err != nil {
		return Resources{}, err
	}
	b := builder{cfg: cfg}
	res := Resources{
		Listeners: []*listenerv3.Listener{b.listener()},
		Clusters:  []*clusterv3.Cluster{b.enforcerCluster()},
		Routes:    []*routev3.RouteConfiguration{b.routeTable(providers)},
	}
	for i := range providers {
		res.Clusters = append(res.Clusters, b.providerCluster(&providers[i]))
		if providers[i].CredentialHeader != "" {
			res.Secrets = append(res.Secrets, credential(&providers[i]))
		}
	}
	if err := errors.Join(b.err, res.validate()); err != nil {
		return Resources{}, fmt.Errorf("build resources: %w", err)
	}
	return res, nil
}

func checkAll(providers []policy.Provider) error {
	var errs []error
	for _, p := range providers {
		if err := Check(p); err != nil {
			errs = append(errs, fmt.Errorf("check provider %q: %w", p.Name, err))
		}
	}
	for i := range max(len(providers)-1, 0) {
		if providers[i].Name >= providers[i+1].Name {
			errs = append(errs, fmt.Errorf("check providers: %q and %q are not sorted by name, or one occurs twice", providers[i].Name, providers[i+1].Name))
		}
	}
	return errors.Join(errs...)
}

func (r Resources) validate() error {
	var errs []error
	for _, group := range r.groups() {
		for _, item := range group.items {
			if v, ok := item.(interface{ ValidateAll() error }); ok {
				errs = append(errs, v.ValidateAll())
			}
		}
	}
	return errors.Join(errs...)
}

type group struct {
	kind  types.ResponseType
	items []types.Resource
}

func (r Resources) groups() []group {
	return []group{
		{types.Cluster, items(r.Clusters)},
		{types.Secret, items(r.Secrets)},
		{types.Listener, items(r.Listeners)},
		{types.Route, items(r.Routes)},
	}
}

func items[T types.Resource](list []T) []types.Resource {
	all := make([]types.Resource, 0, len(list))
	for _, item := range list {
		all = append(all, item)
	}
	return all
}

// Snapshot is the resources as an xDS server's cache takes them. The version of each type is a hash of its resources: the same content
// has the same version, whoever built it.
func (r Resources) Snapshot() (*cachev3.Snapshot, error) {
	snapshot := &cachev3.Snapshot{}
	for kind := range snapshot.Resources {
		// Types of which there is none have a version, too: an empty one would read as "nothing known yet".
		snapshot.Resources[kind] = cachev3.NewResources(hashOf(nil), nil)
	}
	for _, group := range r.groups() {
		var content []byte
		for _, item := range group.items {
			var err error
			if content, err = marshalOptions.MarshalAppend(content, item); err != nil {
				return nil, fmt.Errorf("marshal resource: %w", err)
			}
		}
		snapshot.Resources[group.kind] = cachev3.NewResources(hashOf(content), group.items)
	}
	if err := snapshot.Consistent(); err != nil {
		return nil, fmt.Errorf("check snapshot: %w", err)
	}
	if err := snapshot.ConstructVersionMap(); err != nil {
		return nil, fmt.Errorf("hash resources: %w", err)
	}
	return snapshot, nil
}

var marshalOptions = proto.MarshalOptions{Deterministic: true}

func hashOf(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:16])
}

// builder carries the configuration, and the first error of packing, so that the resources can be written down as literals.
type builder struct {
	cfg Config
	err error
}

// pack wraps an extension's configuration. Its bytes depend on the content alone.
func (b *builder) pack(msg proto.Message) *anypb.Any {
	packed := new(anypb.Any)
	if err := anypb.MarshalFrom(packed, msg, marshalOptions); err != nil {
		b.err = cmp.Or(b.err, fmt.Errorf("pack %s: %w", msg.ProtoReflect().Descriptor().FullName(), err))
	}
	return packed
}
