package controllers

import (
	"context"
	"slices"
	"testing"

	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	"github.com/latchkey-dev/latchkey/internal/keyset"
)

// staticCache is a cache that reads from a client.
type staticCache struct {
	cache.Cache
	reader client.Reader
}

func (c staticCache) Get(ctx context.Context, name client.ObjectKey, into client.Object, opts ...client.GetOption) error {
	return c.reader.Get(ctx, name, into, opts...)
}

func (c staticCache) List(ctx context.Context, into client.ObjectList, opts ...client.ListOption) error {
	return c.reader.List(ctx, into, opts...)
}

// publishing is a Publisher that is told of each change as its watch would tell it.
type publishing struct {
	*Publisher
	t    *testing.T
	kube client.Client
}

func newPublishing(t *testing.T) *publishing {
	t.Helper()
	c := kube(t)
	p := &Publisher{Cache: staticCache{reader: c}, KeySet: keyset.NewCache(keyset.SystemClock{}), Namespace: "latchkey-system", Log: logr.Discard()}
	p.Init()
	return &publishing{p, t, c}
}

func (p *publishing) tell(obj client.Object, deleted bool) {
	if k, isKey := obj.(*v1alpha1.APIKey); isKey {
		p.observeLine(k)
	}
	p.observe(obj, deleted)
}

func (p *publishing) add(objects ...client.Object) {
	p.t.Helper()
	for _, obj := range objects {
		if err := p.kube.Create(p.t.Context(), obj); err != nil {
			p.t.Fatal(err)
		}
		p.tell(obj, false)
	}
}

// mint adds a key with its Secret, whose status says so.
func (p *publishing) mint(second int64, name string) *v1alpha1.APIKey {
	p.t.Helper()
	k := newKeyOf(second, name, minted)
	p.add(k, secretOfKey(k))
	return k
}

func (p *publishing) cap(most *int32) {
	p.t.Helper()
	app := &v1alpha1.Application{}
	if err := p.kube.Get(p.t.Context(), types.NamespacedName{Namespace: "demo", Name: "shop"}, app); err != nil {
		p.t.Fatal(err)
	}
	app.Spec.MaxKeys = most
	if err := p.kube.Update(p.t.Context(), app); err != nil {
		p.t.Fatal(err)
	}
	p.tell(app, false)
}

func (p *publishing) remove(obj client.Object) {
	p.t.Helper()
	if err := p.kube.Delete(p.t.Context(), obj); err != nil {
		p.t.Fatal(err)
	}
	p.tell(obj, true)
}

// wants flushes, and compares what is published with the names.
func (p *publishing) wants(what string, names ...string) {
	p.t.Helper()
	p.flush(p.t.Context())
	got := []string{}
	for name := range p.published {
		got = append(got, name.Name)
	}
	slices.Sort(got)
	if diff := cmp.Diff(append([]string{}, names...), got); diff != "" {
		p.t.Fatalf("%s: published, -want +got:\n%s", what, diff)
	}
	others := 1 // the application; the first flush has not been asked for the system policy
	if want := len(names) + others; p.KeySet.Len() != want {
		p.t.Fatalf("%s: the key set has %d entries, want %d", what, p.KeySet.Len(), want)
	}
}

func TestThePublisherKeepsToMaxKeys(t *testing.T) {
	t.Parallel()
	p := newPublishing(t)
	p.add(shop(2))
	p.mint(3, "c")
	p.mint(1, "a")
	p.mint(2, "b")
	p.wants("of three at once, the two oldest", "a", "b")
	p.cap(new(int32(1)))
	p.wants("the cap is lowered", "a")
	p.cap(new(int32(0)))
	p.wants("none may be in force")
	p.cap(new(int32(3)))
	p.wants("the cap is raised", "a", "b", "c")
	d := p.mint(4, "d")
	p.wants("one more than allowed", "a", "b", "c")
	p.remove(newKeyOf(2, "b"))
	p.wants("one has gone, and the next in line steps forward", "a", "c", "d")
	p.mint(5, "e")
	p.remove(d)
	p.remove(newKeyOf(1, "a"))
	p.wants("two have gone, and one has come", "c", "e")
	p.mint(6, "f")
	p.mint(7, "g")
	p.wants("there is room for one of two", "c", "e", "f")
	p.cap(nil)
	p.wants("without a cap", "c", "e", "f", "g")
	if len(p.crowdedOut) != 0 {
		t.Fatalf("left over: %v", p.crowdedOut)
	}
}

func TestThePublisherDoesNotDisplaceWithinASecond(t *testing.T) {
	t.Parallel()
	p := newPublishing(t)
	first := newKeyOf(1, "z")
	p.add(shop(1), first, secretOfKey(first))
	p.wants("a key whose status does not say yet that it is minted", "z")
	late := newKeyOf(1, "a")
	p.add(late)
	p.wants("one of the same second with a smaller name", "z")
	p.add(secretOfKey(late))
	p.wants("its Secret is put there by somebody", "z")
	minted(first)
	if err := p.kube.Status().Update(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	p.tell(first, false)
	p.wants("the status of the first has come", "z")
	// Another replica may have taken the wrong one: what status says puts it right.
	p.published = map[types.NamespacedName]string{{Namespace: "demo", Name: "a"}: "key/uid-a"}
	p.tell(late, false)
	p.flush(t.Context())
	if _, still := p.published[types.NamespacedName{Namespace: "demo", Name: "a"}]; still {
		t.Fatal("the one that was never minted is still published")
	}
}

func TestALoweredCapIsARevocation(t *testing.T) {
	t.Parallel()
	p := newPending()
	p.add(shop(1), false, "latchkey-system")
	select {
	case <-p.urgent:
	default:
		t.Fatal("an application with a cap waits for others")
	}
	open := shop(1)
	open.Spec.MaxKeys = nil
	p.add(open, false, "latchkey-system")
	select {
	case <-p.urgent:
		t.Fatal("an application without a cap does not wait for others")
	default:
	}
}
