package featuretests

import (
	"crypto/sha256"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"github.com/latchkey-dev/latchkey/internal/certs"
	"github.com/latchkey-dev/latchkey/internal/keyset"
	"github.com/latchkey-dev/latchkey/internal/policy"
	"github.com/latchkey-dev/latchkey/internal/xds"
)

func newKey(uid string) *policy.Key {
	return &policy.Key{
		UID: uid, Namespace: "shop", Name: uid, DisplayName: "Shop backend", Application: "web", State: policy.StateEnabled,
		Credentials:  []policy.Credential{{Hash: sha256.Sum256([]byte(uid)), Prefix: "lk_abcd"}},
		Capabilities: policy.AllCapabilities, Models: policy.ModelScope{All: true}, Limits: policy.NoRateLimits(), Budgets: policy.NoBudgets(),
	}
}

func disabled(k *policy.Key) *policy.Key {
	off := *k
	off.State = policy.StateDisabled
	return &off
}

func newApp() *policy.Application {
	return &policy.Application{
		UID: "a1", Namespace: "shop", Name: "web", DisplayName: "Web", State: policy.StateEnabled, Capabilities: policy.AllCapabilities,
		Models: policy.ModelScope{All: true}, Limits: policy.NoRateLimits(), Budgets: policy.NoBudgets(),
	}
}

func TestAKeysLife(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	p := start(t, a, new(policy.DefaultSystem()), newApp())
	f := follow(t, p, a.client(certs.EnforcerURI), keyset.TypeURL, nil)
	f.want("system", "app/shop/web", "sync")

	k := newKey("u1")
	p.put(k)
	if diff := cmp.Diff(k, key(t, f.receive())); diff != "" {
		t.Fatalf("the new key (-want +got):\n%s", diff)
	}
	f.ack()
	p.acked(p.put(k)) // the same again, so that nothing is sent

	p.put(disabled(k))
	if got := key(t, f.receive()); got.State != policy.StateDisabled {
		t.Fatalf("the key's state is %v, want disabled", got.State)
	}
	f.ack()
	p.put(k)
	if got := key(t, f.receive()); got.State != policy.StateEnabled {
		t.Fatalf("the key's state is %v, want enabled", got.State)
	}
	f.ack()
	position := p.remove(k)
	f.want("-key/u1")
	p.acked(position)
	if got := p.counter("latchkey_xds_responses_total", keyset.TypeURL); got != 5 {
		t.Errorf("%v responses counted, want 5", got)
	}
	if got := p.counter("latchkey_xds_acknowledgements_total", keyset.TypeURL); got != 5 {
		t.Errorf("%v acknowledgements counted, want 5", got)
	}
}

func manyKeys(n int) []any {
	list := make([]any, 0, n)
	for i := range n {
		list = append(list, newKey(fmt.Sprintf("u%06d", i)))
	}
	return list
}

func TestFiftyThousandKeysComeInPages(t *testing.T) {
	t.Parallel()
	const n = 50_000
	a := newAuthority(t)
	p := start(t, a, manyKeys(n)...)
	f := follow(t, p, a.client(certs.EnforcerURI), keyset.TypeURL, nil)
	f.receive()
	acks := p.acks("the enforcer is seen", func(a xds.Acks) bool { return a.Enforcers == 1 })
	if acks.Position != 0 || acks.Synced != 0 {
		t.Fatalf("an enforcer in its first synchronisation counts as %+v", acks)
	}
	revoked := p.remove(newKey("u000000"))
	f.ack()
	second := f.receive()
	if got := second.GetRemovedResources(); !cmp.Equal(got, []string{"key/u000000"}) {
		t.Fatalf("the page after the revocation removes %v", got)
	}
	f.ack()
	pages := append(f.sync(), second)
	for _, page := range pages {
		if size := proto.Size(page); size > 2<<20 {
			t.Errorf("a page has %d bytes", size)
		}
	}
	if _, there := f.held["key/u000000"]; there || len(f.held) != n-1 {
		t.Fatalf("%d keys arrived, want %d without the one removed", len(f.held), n-1)
	}
	p.acked(revoked)
	if acks := p.tracker.Snapshot(); acks.Synced != 1 {
		t.Fatalf("the tracker says %+v", acks)
	}
}

func TestRefusalIsSeenAndMended(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	p := start(t, a, new(policy.DefaultSystem()))
	f := follow(t, p, a.client(certs.EnforcerURI), keyset.TypeURL, nil)
	other := follow(t, p, a.client(certs.EnforcerURI), keyset.TypeURL, nil)
	f.sync()
	other.sync()
	before := p.put(new(policy.DefaultSystem()))
	p.acks("both are in sync", func(a xds.Acks) bool { return a.Synced == 2 && a.Position == before })

	good, bad := newKey("good"), newKey("bad")
	position := p.put(good, bad)
	other.want("key/bad", "key/good")
	f.receive()
	f.nack("key/bad: cannot be read", "key/bad")
	acks := p.acks("the refusal is known", func(a xds.Acks) bool { return len(a.Rejections) == 1 })
	want := []xds.Rejection{{
		Node: "node-" + t.Name(), TypeURL: keyset.TypeURL, Detail: "key/bad: cannot be read", Resources: []string{"key/bad"},
	}}
	if diff := cmp.Diff(want, acks.Rejections); diff != "" {
		t.Fatalf("rejections (-want +got):\n%s", diff)
	}
	f.want("key/good") // at once
	f.receive()        // again, after a pause
	if diff := cmp.Diff([]string{"key/bad"}, names(f.last)); diff != "" {
		t.Fatal(diff)
	}
	if acks := p.tracker.Snapshot(); acks.Position != before || len(acks.Rejections) != 1 {
		t.Fatalf("with an entry refused the tracker says %+v, want position %d", acks, before)
	}
	f.ack()
	p.acked(position)
	p.acks("the refusal is forgotten", func(a xds.Acks) bool { return len(a.Rejections) == 0 })
	if got := p.counter("latchkey_xds_rejections_total", keyset.TypeURL); got != 1 {
		t.Errorf("%v rejections counted, want 1", got)
	}
}

func TestReconnectGetsTheDifferenceFromAnyReplica(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	objects := []any{new(policy.DefaultSystem()), newApp(), newKey("u1"), newKey("u2"), newKey("u3")}
	p := start(t, a, objects...)
	// The other replica has come to the same by another way.
	replica := start(t, a, newKey("gone"), newKey("u3"))
	replica.put(objects...)
	replica.remove(newKey("gone"))

	enforcer := a.client(certs.EnforcerURI)
	f := follow(t, p, enforcer, keyset.TypeURL, nil)
	f.sync()
	f.leave()
	p.acks("the enforcer is gone", func(a xds.Acks) bool { return a.Enforcers == 0 })
	p.put(newKey("u4"), disabled(newKey("u2")))
	p.remove(newKey("u1"))
	again := follow(t, p, enforcer, keyset.TypeURL, f.held)
	again.want("-key/u1", "key/u2", "key/u4", "sync")
	p.acked(p.keys.Position())

	elsewhere := follow(t, replica, enforcer, keyset.TypeURL, f.held)
	elsewhere.want("sync")
	replica.acked(replica.keys.Position())
}

func TestEnforcersComeAndGo(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	p := start(t, a, newApp())
	enforcer := a.client(certs.EnforcerURI)
	first := follow(t, p, enforcer, keyset.TypeURL, nil)
	first.sync()
	p.acked(p.keys.Position())
	second := follow(t, p, enforcer, keyset.TypeURL, nil)
	p.acks("the newcomer holds the position back", func(a xds.Acks) bool { return a.Enforcers == 2 && a.Synced == 1 && a.Position == 0 })
	second.sync()
	p.acks("both are in sync", func(a xds.Acks) bool { return a.Synced == 2 && a.Position == p.keys.Position() })
	if got := p.counter("latchkey_xds_connected_clients", "enforcer"); got != 2 {
		t.Errorf("%v enforcers counted, want 2", got)
	}
	position := p.put(newKey("u1"))
	first.want("key/u1")
	p.acks("one of two does not count", func(a xds.Acks) bool { return a.Position < position })
	second.leave()
	p.acked(position)
	first.leave()
	p.acks("nobody is left", func(a xds.Acks) bool { return a.Enforcers == 0 && a.Position == 0 })
	if got := p.counter("latchkey_xds_connected_clients", "enforcer"); got != 0 {
		t.Errorf("%v enforcers counted, want 0", got)
	}
}
