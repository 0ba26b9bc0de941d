package xds

import (
	"cmp"
	"slices"
	"strconv"
	"sync"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/latchkey-dev/latchkey/internal/keyset"
)

// maxNamed bounds how many resources a Rejection names.
const maxNamed = 20

// Acks is what the connected enforcers have acknowledged.
type Acks struct {
	Enforcers  int    // connected
	Synced     int    // of those, how many have finished their first synchronisation
	Position   uint64 // of the key set, that all of them have acknowledged; 0 while one is in its first synchronisation
	Rejections []Rejection
}

// Rejection is a client's refusal of a response. It stands until the client acknowledges a later response of that type.
type Rejection struct {
	Node      string
	TypeURL   string
	Detail    string
	Resources []string // of the response that was refused, at most 20
}

// Tracker follows what clients acknowledge and refuse. It is safe for concurrent use.
type Tracker struct {
	log        logr.Logger
	changed    chan struct{}
	rejections *prometheus.CounterVec
	responses  *prometheus.CounterVec
	clients    *prometheus.GaugeVec

	mu      sync.Mutex
	streams map[int64]*clientStream
}

// clientStream is one client's stream.
type clientStream struct {
	role     role
	node     string
	peer     string
	acked    uint64                  // position of the key set
	pending  map[string]sentResponse // by nonce
	rejected map[string]Rejection    // by type
	said     string                  // detail of the last refusal logged
}

type sentResponse struct {
	typeURL  string
	position uint64
	names    []string
}

func newTracker(log logr.Logger, reg prometheus.Registerer) (*Tracker, error) {
	t := &Tracker{
		log: log, changed: make(chan struct{}, 1), streams: map[int64]*clientStream{},
		rejections: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "latchkey_xds_rejections_total", Help: "Responses that clients refused (NACK), by resource type.",
		}, []string{"type"}),
		responses: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "latchkey_xds_responses_total", Help: "Responses sent to clients, by resource type.",
		}, []string{"type"}),
		clients: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "latchkey_xds_connected_clients", Help: "Connected clients, by role.",
		}, []string{"role"}),
	}
	for _, r := range []role{roleEnforcer, roleEnvoy} {
		t.clients.WithLabelValues(r.String()).Set(0)
	}
	for _, c := range []prometheus.Collector{t.rejections, t.responses, t.clients} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// Changed is sent to whenever a Snapshot may differ from the one before. Several changes may be one signal.
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
	first := true
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
		if first || s.acked < acks.Position {
			acks.Position, first = s.acked, false
		}
	}
	slices.SortFunc(acks.Rejections, func(a, b Rejection) int {
		return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.TypeURL, b.TypeURL))
	})
	return acks
}

func (t *Tracker) opened(id int64, r role, peer string) {
	t.mu.Lock()
	t.streams[id] = &clientStream{role: r, peer: peer, pending: map[string]sentResponse{}, rejected: map[string]Rejection{}}
	t.mu.Unlock()
	t.clients.WithLabelValues(r.String()).Inc()
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
	t.clients.WithLabelValues(s.role.String()).Dec()
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
	t.responses.WithLabelValues(resp.GetTypeUrl()).Inc()
	p := sentResponse{typeURL: resp.GetTypeUrl()}
	if resp.GetTypeUrl() == keyset.TypeURL {
		p.position, _ = strconv.ParseUint(resp.GetSystemVersionInfo(), 10, 64)
	}
	for _, r := range resp.GetResources() {
		if len(p.names) < maxNamed {
			p.names = append(p.names, r.GetName())
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := t.streams[id]; s != nil {
		s.pending[resp.GetNonce()] = p
	}
}

func (t *Tracker) requested(id int64, req *discovery.DeltaDiscoveryRequest) {
	t.mu.Lock()
	s := t.streams[id]
	if s == nil {
		t.mu.Unlock()
		return
	}
	if n := req.GetNode().GetId(); n != "" {
		s.node = n
	}
	p, known := s.pending[req.GetResponseNonce()]
	delete(s.pending, req.GetResponseNonce())
	refusal := req.GetErrorDetail()
	switch {
	case !known:
		t.mu.Unlock()
		return
	case refusal == nil:
		delete(s.rejected, p.typeURL)
		s.said = ""
		s.acked = max(s.acked, p.position)
		t.mu.Unlock()
	default:
		r := Rejection{Node: s.node, TypeURL: p.typeURL, Detail: refusal.GetMessage(), Resources: p.names}
		s.rejected[p.typeURL] = r
		again := s.said == r.Detail
		s.said = r.Detail
		t.mu.Unlock()
		t.rejections.WithLabelValues(p.typeURL).Inc()
		if !again { // it is sent again and refused again until somebody mends it
			t.log.Info("client refused its configuration", "node", r.Node, "type", r.TypeURL, "detail", r.Detail, "resources", r.Resources)
		}
	}
	t.signal()
}
