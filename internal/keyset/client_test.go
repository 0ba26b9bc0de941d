package keyset

import (
	"maps"
	"slices"
	"strconv"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/stream/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/proto"
)

// testClient is a client with what the delta server does for it: it subscribes, keeps the "returned resources" between requests, cancels
// a watch before it opens the next, and gives each response a nonce. Everything happens in the test's goroutine.
type testClient struct {
	t      testing.TB
	cache  cache.Cache
	out    chan cache.DeltaResponse
	sub    stream.Subscription
	cancel func()
	nonce  int

	last *discovery.DeltaDiscoveryResponse
	held map[string]string // versions by name, of what was acknowledged
}

// connect opens a stream that begins with the versions held.
func connect(t testing.TB, c cache.Cache, held map[string]string) *testClient {
	t.Helper()
	k := &testClient{t: t, cache: c, out: make(chan cache.DeltaResponse, 2), held: maps.Clone(held)}
	if k.held == nil {
		k.held = map[string]string{}
	}
	k.sub = stream.NewDeltaSubscription([]string{"*"}, nil, maps.Clone(held), true)
	if err := k.request(&discovery.DeltaDiscoveryRequest{InitialResourceVersions: held}); err != nil {
		t.Fatalf("open a watch: %v", err)
	}
	return k
}

func (k *testClient) request(r *discovery.DeltaDiscoveryRequest) error {
	r.TypeUrl = TypeURL
	if k.cancel != nil {
		k.cancel()
	}
	cancel, err := k.cache.CreateDeltaWatch(r, k.sub, k.out)
	if err == nil {
		k.cancel = cancel
	}
	return err
}

// receive takes the next response, or fails the test if there is none.
func (k *testClient) receive() *discovery.DeltaDiscoveryResponse {
	k.t.Helper()
	select {
	case r := <-k.out:
		resp, err := r.GetDeltaDiscoveryResponse()
		if err != nil {
			k.t.Fatal(err)
		}
		k.sub.SetReturnedResources(r.GetNextVersionMap())
		k.nonce++
		resp.Nonce = strconv.Itoa(k.nonce)
		k.last = resp
		return resp
	default:
		k.t.Fatal("nothing was sent")
		return nil
	}
}

// quiet fails the test if anything was sent.
func (k *testClient) quiet() {
	k.t.Helper()
	if len(k.out) > 0 {
		k.t.Fatalf("sent %v, want nothing", namesOf(k.receive()))
	}
}

// ack takes the last response over and acknowledges it.
func (k *testClient) ack() error {
	for _, r := range k.last.GetResources() {
		if r.GetName() != SyncName {
			k.held[r.GetName()] = r.GetVersion()
		}
	}
	for _, name := range k.last.GetRemovedResources() {
		delete(k.held, name)
	}
	return k.request(&discovery.DeltaDiscoveryRequest{ResponseNonce: k.last.GetNonce()})
}

func (k *testClient) mustAck() {
	k.t.Helper()
	if err := k.ack(); err != nil {
		k.t.Fatalf("acknowledge: %v", err)
	}
}

// nack refuses the last response, for the named resources if there are any.
func (k *testClient) nack(names ...string) {
	k.t.Helper()
	detail := &status.Status{Message: "no"}
	if len(names) > 0 {
		var err error
		if detail.Details, err = RefusalDetails(names); err != nil {
			k.t.Fatal(err)
		}
	}
	if err := k.request(&discovery.DeltaDiscoveryRequest{ResponseNonce: k.last.GetNonce(), ErrorDetail: detail}); err != nil {
		k.t.Fatalf("refuse: %v", err)
	}
}

// sync takes everything until nothing more comes.
func (k *testClient) sync() (pages int) {
	k.t.Helper()
	for len(k.out) > 0 {
		k.receive()
		k.mustAck()
		pages++
	}
	return pages
}

// close ends the stream as the server does.
func (k *testClient) close() {
	k.cancel()
	close(k.out)
}

// namesOf lists what a response holds, removed names with a minus.
func namesOf(r *discovery.DeltaDiscoveryResponse) []string {
	var names []string
	for _, res := range r.GetResources() {
		names = append(names, res.GetName())
	}
	for _, name := range r.GetRemovedResources() {
		names = append(names, "-"+name)
	}
	slices.Sort(names)
	return names
}

func sizeOf(r *discovery.DeltaDiscoveryResponse) int { return proto.Size(r) }
