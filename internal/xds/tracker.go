package xds

import (
	"cmp"
	"slices"
	"strconv"
	"sync"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/latchkey-dev/latchkey/internal/keyset"
)

const (
	// maxNamed bounds how many resources a Rejection names.
	maxNamed = 20
	// maxPending bounds how many responses of a type are remembered while their acknowledgement is awaited.
	maxPending = 16
	// maxLogged bounds how many refusals of a stream are logged.
	maxLogged = 50
)

// Acks is what the connected enforcers have acknowledged.
type Acks struct {
	Enforcers  int    // connected
	Synced     int    // of those, how many have finished their first synchronisation
	Position   uint64 // of the key set, that all of them have acknowledged; 0 while one is in its first synchronisation, or if there is none
	Rejections []Rejection
}

// Rejection is a client's refusal of a response. One of an Envoy's resource stands until that client acknowledges a later response of
// the type; one of the key set's until the client has acknowledged everything, what it refused included.
type Rejection struct {
	Node      string
	TypeURL   string
	Detail    string
	Resources []string // those that the client named, else those of the response that it refused; at most 20
}

// Tracker follows what clients acknowledge and refuse. It is safe for concurrent use.
type Tracker struct {
	log     logr.Logger
	changed chan struct{}
	metrics trackerMetrics

	mu      sync.Mutex
	streams map[int64]*clientStream
}

type trackerMetrics struct {
	rejections *prometheus.CounterVec
	acks       *prometheus.CounterVec
	responses  *prometheus.CounterVec
	clients    *prometheus.GaugeVec
}

// clientStream is one client's stream.
type clientStream struct {
	role     role
	node     string
	peer     string
	acked    uint64                    // position of the key set
	pending  map[string][]sentResponse // by type, oldest first
	rejected map[string]Rejection      // by type
	logged   map[loggedRefusal]struct{}
}

type loggedRefusal struct{ typeURL, detail string }

type sentResponse struct {
	nonce    string
	position uint64
	names    []string
}

func newTracker(log logr.Logger, reg prometheus.Registerer) (*Tracker, error) {
	byType := []string{"type"}
	m := trackerMetrics{
		rejections: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "latchkey_xds_rejections_total", Help: "Responses that clients refused (NACK), by resource type.",
		}, byType),
		acks: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "latchkey_xds_acknowledgements_total", Help: "Responses that clients took over (ACK), by resource type.",
		}, byType),
		responses: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "latchkey_xds_responses_total", Help: "Responses sent to clients, by resource type.",
		}, byType),
		clients: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "latchkey_xds_connected_clients", Help: "Connected clients, by role.",
		}, []string{"role"}),
	}
	for _, r := range []role{roleEnforcer, roleEnvoy} {
		m.clients.WithLabelValues(r.String()).Set(0)
	}
	// From the start, so that an alert sees the first refusal as a rise from 0.
	for _, typeURL := range []string{keyset.TypeURL, resource.ClusterType, resource.ListenerType, resource.RouteType, resource.SecretType} {
		m.rejections.WithLabelValues(typeURL)
	}
	for _, c := range []prometheus.Collector{m.rejections, m.acks, m.responses, m.clients} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return &Tracker{log: log, metrics: m, changed: make(chan struct{}, 1), streams: map[int64]*clientStream{}}, nil
}

// Changed is sent to whenever a Snapshot may differ from the one before. Several changes may be one signal. It is for one reader.
func (t *Tracker) Changed() <-chan struct{} { return t.changed }

func (t *Tracker) signal() {
	select {
	case t.changed <- struct{}{}:
	default:
	}
}

// Snapshot puts all streams together.
func (t *Tracker) Snapshot() Acks {
	t.mu.Lock()
	defer t.mu.Unlock()
	var acks Acks
	for _, s := range t.streams {
		for _, r := range s.rejected {
			acks.Rejections = append(acks.Rejections, r)
		}
		if s.role != roleEnforcer {
			continue
		}
		acks.Enforcers++
		if s.acked > 0 {
			acks.Synced++
		}
		if acks.Enforcers == 1 || s.acked < acks.Position {
			acks.Position = s.acked
		}
	}
	slices.SortFunc(acks.Rejections, func(a, b Rejection) int {
		return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.TypeURL, b.TypeURL))
	})
	return acks
}

func (t *Tracker) opened(id int64, r role, peer string) {
	t.mu.Lock()
	t.streams[id] = &clientStream{
		role: r, peer: peer, pending: map[string][]sentResponse{}, rejected: map[string]Rejection{}, logged: map[loggedRefusal]struct{}{},
	}
	t.mu.Unlock()
	t.metrics.clients.WithLabelValues(r.String()).Inc()
	t.log.Info("client connected", "role", r.String(), "peer", peer)
	t.signal()
}

func (t *Tracker) closed(id int64) {
	t.mu.Lock()
	s := t.streams[id]
	delete(t.streams, id)
	t.mu.Unlock()
	if s == nil {
		return
	}
	t.metrics.clients.WithLabelValues(s.role.String()).Dec()
	t.log.Info("client disconnected", "role", s.role.String(), "node", s.node, "peer", s.peer)
	t.signal()
}

// roleOf is the role of a stream.
func (t *Tracker) roleOf(id int64) role {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := t.streams[id]; s != nil {
		return s.role
	}
	return roleNone
}

func (t *Tracker) sent(id int64, resp *discovery.DeltaDiscoveryResponse) {
	t.metrics.responses.WithLabelValues(resp.GetTypeUrl()).Inc()
	p := sentResponse{nonce: resp.GetNonce()}
	if resp.GetTypeUrl() == keyset.TypeURL {
		p.position, _ = strconv.ParseUint(resp.GetSystemVersionInfo(), 10, 64) // the cache's own number
	}
	for _, r := range resp.GetResources()[:min(maxNamed, len(resp.GetResources()))] {
		p.names = append(p.names, r.GetName())
	}
	removed := resp.GetRemovedResources()
	p.names = append(p.names, removed[:min(maxNamed-len(p.names), len(removed))]...)
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := t.streams[id]; s != nil {
		pending := append(s.pending[resp.GetTypeUrl()], p)
		s.pending[resp.GetTypeUrl()] = pending[max(0, len(pending)-maxPending):]
	}
}

func (t *Tracker) requested(id int64, req *discovery.DeltaDiscoveryRequest) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.streams[id]
	if s == nil {
		return
	}
	if n := req.GetNode().GetId(); n != "" {
		s.node = n
	}
	typeURL := req.GetTypeUrl()
	i := slices.IndexFunc(s.pending[typeURL], func(p sentResponse) bool { return p.nonce == req.GetResponseNonce() })
	if i < 0 { // a change of the subscription
		return
	}
	p := s.pending[typeURL][i]
	s.pending[typeURL] = s.pending[typeURL][i+1:]
	if req.GetErrorDetail() != nil {
		t.rejected(s, p, req)
	} else {
		t.metrics.acks.WithLabelValues(typeURL).Inc()
		// The key set's position stands still until what was refused has been taken.
		if typeURL != keyset.TypeURL || p.position > s.acked {
			delete(s.rejected, typeURL)
		}
		s.acked = max(s.acked, p.position)
	}
	t.signal()
}

// rejected takes in a refusal. It holds mu.
func (t *Tracker) rejected(s *clientStream, p sentResponse, req *discovery.DeltaDiscoveryRequest) {
	refusal := req.GetErrorDetail()
	r := Rejection{Node: s.node, TypeURL: req.GetTypeUrl(), Detail: refusal.GetMessage(), Resources: p.names}
	if named := keyset.RefusedNames(refusal.GetDetails()); len(named) > 0 {
		r.Resources = named[:min(maxNamed, len(named))]
	}
	s.rejected[r.TypeURL] = r
	t.metrics.rejections.WithLabelValues(r.TypeURL).Inc()
	// It is sent again and refused again until somebody mends it: that is one line, not one a minute.
	line := loggedRefusal{r.TypeURL, r.Detail}
	if _, said := s.logged[line]; said || len(s.logged) >= maxLogged {
		return
	}
	s.logged[line] = struct{}{}
	t.log.Info("client refused its configuration", "node", r.Node, "type", r.TypeURL, "detail", r.Detail, "resources", r.Resources)
}
