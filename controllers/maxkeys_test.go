package controllers

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/event"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	"github.com/latchkey-dev/latchkey/internal/policy"
)

func placeAt(second int64, name string, s standing) place {
	return place{name: name, created: time.Unix(second, 0), standing: s}
}

func TestPlaces(t *testing.T) {
	t.Parallel()
	const n, i, m = standingNew, standingIssued, standingMinted
	for name, tc := range map[string]struct {
		places []place
		most   int32
		out    []string
	}{
		"nobody in line":                                     {nil, 2, nil},
		"room for all":                                       {[]place{placeAt(1, "a", m), placeAt(2, "b", n)}, 2, nil},
		"the youngest waits":                                 {[]place{placeAt(3, "a", n), placeAt(1, "b", m), placeAt(2, "c", m)}, 2, []string{"a"}},
		"no room at all":                                     {[]place{placeAt(1, "a", m), placeAt(2, "b", n)}, 0, []string{"a", "b"}},
		"one room is the oldest's":                           {[]place{placeAt(2, "a", m), placeAt(1, "b", m), placeAt(3, "c", m)}, 1, []string{"a", "c"}},
		"of one second, the name decides":                    {[]place{placeAt(1, "c", n), placeAt(1, "a", n), placeAt(1, "b", n)}, 2, []string{"c"}},
		"of one second, one that is minted stays":            {[]place{placeAt(1, "a", n), placeAt(1, "b", m)}, 1, []string{"a"}},
		"of one second, one that is about to be stays":       {[]place{placeAt(1, "a", n), placeAt(1, "b", i)}, 1, []string{"a"}},
		"of one second, status counts more than what is out": {[]place{placeAt(1, "a", i), placeAt(1, "b", m)}, 1, []string{"a"}},
		"of one second and all minted, the name decides":     {[]place{placeAt(1, "b", m), placeAt(1, "a", m)}, 1, []string{"b"}},
		"an older one comes first, minted or not":            {[]place{placeAt(1, "b", n), placeAt(2, "a", m)}, 1, []string{"a"}},
		"a name that is the beginning of another":            {[]place{placeAt(1, "a-b", n), placeAt(1, "a", n)}, 1, []string{"a-b"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var alone []string
			for _, own := range tc.places {
				if !hasPlace(own, tc.places, tc.most) {
					alone = append(alone, own.name)
				}
			}
			slices.Sort(alone)
			all := slices.Sorted(maps.Keys(without(slices.Clone(tc.places), tc.most)))
			if diff := cmp.Diff([][]string{tc.out, tc.out}, [][]string{alone, all}); diff != "" {
				t.Fatalf("each for itself, and all at once, -want +got:\n%s", diff)
			}
		})
	}
}

// TestPlacesAgree holds the two ways to ask against each other and against the order by which the Publisher settles duplicates.
func TestPlacesAgree(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(5, 6))
	for range 2_000 {
		line := make([]place, r.IntN(12))
		for i := range line {
			line[i] = placeAt(r.Int64N(4), fmt.Sprintf("%c%d", 'a'+rune(r.IntN(26)), i), standing(r.IntN(3)))
		}
		most := int32(r.IntN(14))
		out := without(slices.Clone(line), most)
		if want := max(len(line)-int(most), 0); len(out) != want {
			t.Fatalf("%d of %d are out under a cap of %d", len(out), len(line), most)
		}
		for _, own := range line {
			if _, isOut := out[own.name]; isOut == hasPlace(own, line, most) {
				t.Fatalf("%+v: out %v, has a place as well; cap %d\n%+v", own, isOut, most, line)
			}
			for _, other := range line {
				a := &v1alpha1.APIKey{ObjectMeta: metav1.ObjectMeta{Namespace: "demo", Name: own.name, CreationTimestamp: metav1.NewTime(own.created)}}
				b := &v1alpha1.APIKey{ObjectMeta: metav1.ObjectMeta{Namespace: "demo", Name: other.name, CreationTimestamp: metav1.NewTime(other.created)}}
				if own.standing == other.standing && (comparePlaces(own, other) < 0) != older(a, b) {
					t.Fatalf("%+v and %+v: another order than that of older", own, other)
				}
			}
		}
	}
}

// newKeyOf is a key of demo/shop that was created in that second.
func newKeyOf(second int64, name string, change ...func(*v1alpha1.APIKey)) *v1alpha1.APIKey {
	k := &v1alpha1.APIKey{
		ObjectMeta: metav1.ObjectMeta{Namespace: "demo", Name: name, UID: types.UID("uid-" + name), CreationTimestamp: metav1.Unix(second, 0)},
		Spec:       v1alpha1.APIKeySpec{ApplicationRef: v1alpha1.ApplicationReference{Name: "shop"}, State: v1alpha1.StateEnabled},
	}
	for _, c := range change {
		c(k)
	}
	return k
}

func minted(k *v1alpha1.APIKey) { k.Status.SecretName = k.SecretName() }

// secretOfKey is the Secret that was minted for a key. Its hash follows from the name.
func secretOfKey(k *v1alpha1.APIKey) *corev1.Secret {
	var hash policy.KeyHash
	copy(hash[:], k.Name)
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: k.Namespace, Name: k.SecretName(), Labels: map[string]string{v1alpha1.LabelAPIKey: k.Name},
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(k, v1alpha1.GroupVersion.WithKind("APIKey"))},
		},
		Data: map[string][]byte{v1alpha1.SecretDataKeyHash: []byte(hash.String())},
	}
}

func shop(most int32) *v1alpha1.Application {
	return &v1alpha1.Application{
		ObjectMeta: metav1.ObjectMeta{Namespace: "demo", Name: "shop"},
		Spec:       v1alpha1.ApplicationSpec{State: v1alpha1.StateEnabled, MaxKeys: new(most)},
	}
}

// kube is an API without a server, with the index that the line is read by.
func kube(t *testing.T, objects ...client.Object) client.Client {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	return fake.NewClientBuilder().WithScheme(scheme).WithObjects(objects...).WithStatusSubresource(&v1alpha1.APIKey{}).
		WithIndex(&v1alpha1.APIKey{}, indexApplication, func(o client.Object) []string {
			return []string{o.(*v1alpha1.APIKey).Spec.ApplicationRef.Name}
		}).Build()
}

func TestFindPlace(t *testing.T) {
	t.Parallel()
	deleting := func(k *v1alpha1.APIKey) {
		k.DeletionTimestamp, k.Finalizers = &metav1.Time{Time: now}, []string{v1alpha1.FinalizerAPIKey}
	}
	elsewhere := func(k *v1alpha1.APIKey) { k.Spec.ApplicationRef.Name = "market" }
	foreign := func(k *v1alpha1.APIKey) { k.Namespace = "other" }
	leftBehind := newKeyOf(5, "z")
	for name, tc := range map[string]struct {
		app     *v1alpha1.Application
		own     *v1alpha1.APIKey
		others  []client.Object
		crowded bool
	}{
		"no application":                       {nil, newKeyOf(5, "own"), nil, false},
		"an application without maxKeys":       {&v1alpha1.Application{ObjectMeta: metav1.ObjectMeta{Namespace: "demo", Name: "shop"}}, newKeyOf(5, "own"), []client.Object{newKeyOf(1, "a", minted)}, false},
		"alone":                                {shop(1), newKeyOf(5, "own"), nil, false},
		"a cap of zero":                        {shop(0), newKeyOf(5, "own"), nil, true},
		"an older one has the place":           {shop(1), newKeyOf(5, "own"), []client.Object{newKeyOf(1, "z", minted)}, true},
		"an older one that is not minted too":  {shop(1), newKeyOf(5, "own"), []client.Object{newKeyOf(1, "z")}, true},
		"an older one that goes":               {shop(1), newKeyOf(5, "own"), []client.Object{newKeyOf(1, "z", minted, deleting)}, false},
		"an older one of another application":  {shop(1), newKeyOf(5, "own"), []client.Object{newKeyOf(1, "z", minted, elsewhere)}, false},
		"an older one of another namespace":    {shop(1), newKeyOf(5, "own"), []client.Object{newKeyOf(1, "z", minted, foreign)}, false},
		"a younger one":                        {shop(1), newKeyOf(5, "own"), []client.Object{newKeyOf(6, "a", minted)}, false},
		"a minted one of the same second":      {shop(1), newKeyOf(5, "own"), []client.Object{newKeyOf(5, "z", minted)}, true},
		"minted, beside one of the second":     {shop(1), newKeyOf(5, "own", minted), []client.Object{newKeyOf(5, "a")}, false},
		"minted, under a cap that was lowered": {shop(1), newKeyOf(5, "own", minted), []client.Object{newKeyOf(4, "z", minted)}, true},
		"one of the second, whose manager died before it could say that it had minted it": {shop(1), newKeyOf(5, "own"), []client.Object{leftBehind, secretOfKey(leftBehind)}, true},
		"one of the second, with somebody else's Secret":                                  {shop(1), newKeyOf(5, "own"), []client.Object{newKeyOf(5, "z"), secretOfKey(newKeyOf(5, "z", func(k *v1alpha1.APIKey) { k.UID = "former" }))}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := &APIKeyReconciler{Client: kube(t, append(tc.others, tc.own)...)}
			s := &keyScope{key: tc.own, status: tc.own.Status.DeepCopy(), app: tc.app}
			for _, turn := range []string{"first", "second"} { // its own claim is not held against it
				if err := r.findPlace(t.Context(), s); err != nil || s.crowdedOut != tc.crowded {
					t.Fatalf("the %s time: crowded out %v, %v; want %v", turn, s.crowdedOut, err, tc.crowded)
				}
			}
		})
	}
}

// TestPlacesUnderARace creates keys of one second in every order, with a cache that is behind with their status, and now and then a manager
// that ends before it could write one. No more keys are issued than the cap allows, and none loses its place to one that comes later.
func TestPlacesUnderARace(t *testing.T) {
	t.Parallel()
	for seed := range uint64(150) {
		r := rand.New(rand.NewPCG(seed, 7))
		c, most := kube(t), int32(1+r.IntN(3))
		reconciler := &APIKeyReconciler{Client: c}
		var created []*v1alpha1.APIKey
		issued := map[string]bool{}
		unsaid := map[string]*v1alpha1.APIKey{} // issued, and the status is not in the cache
		order := r.Perm(8)
		for step := range 60 {
			switch {
			case len(order) > 0 && r.IntN(3) == 0:
				k := newKeyOf(int64(5+step/40), fmt.Sprintf("key-%d", order[0]))
				order = order[1:]
				if err := c.Create(t.Context(), k); err != nil {
					t.Fatal(err)
				}
				created = append(created, k)
			case len(unsaid) > 0 && r.IntN(4) == 0:
				for name, k := range unsaid { // any of them
					delete(unsaid, name)
					minted(k)
					if err := c.Status().Update(t.Context(), k); err != nil {
						t.Fatal(err)
					}
					break
				}
			case r.IntN(12) == 0:
				reconciler = &APIKeyReconciler{Client: c}
			case len(created) > 0:
				name := created[r.IntN(len(created))].Name
				k := &v1alpha1.APIKey{}
				if err := c.Get(t.Context(), types.NamespacedName{Namespace: "demo", Name: name}, k); err != nil {
					t.Fatal(err)
				}
				s := &keyScope{key: k, status: k.Status.DeepCopy(), app: shop(most)}
				if err := reconciler.findPlace(t.Context(), s); err != nil {
					t.Fatal(err)
				}
				if issued[name] && s.crowdedOut {
					t.Fatalf("seed %d: %s was issued and has lost its place", seed, name)
				}
				if !issued[name] && !s.crowdedOut {
					if err := c.Create(t.Context(), secretOfKey(k)); err != nil {
						t.Fatal(err)
					}
					issued[name], unsaid[name] = true, k
				}
			}
			if len(issued) > int(most) {
				t.Fatalf("seed %d: %d are issued under a cap of %d: %v", seed, len(issued), most, issued)
			}
		}
	}
}

func TestClaimsAreForgotten(t *testing.T) {
	t.Parallel()
	k, other := newKeyOf(5, "own"), newKeyOf(5, "other")
	c := kube(t, k, other)
	r := &APIKeyReconciler{Client: c}
	for _, k := range []*v1alpha1.APIKey{k, other} {
		if err := r.findPlace(t.Context(), &keyScope{key: k, status: &v1alpha1.APIKeyStatus{}, app: shop(5)}); err != nil {
			t.Fatal(err)
		}
	}
	if len(r.claims.set) != 2 {
		t.Fatalf("claims %v", r.claims.set)
	}
	minted(k)
	if err := c.Status().Update(t.Context(), k); err != nil {
		t.Fatal(err)
	}
	if err := r.findPlace(t.Context(), &keyScope{key: k, status: &k.Status, app: shop(5)}); err != nil {
		t.Fatal(err)
	}
	r.claims.forget(other.UID) // as its deletion does
	if len(r.claims.set) != 0 {
		t.Fatalf("claims %v", r.claims.set)
	}
}

func TestWhatACrowdedOutKeySays(t *testing.T) {
	t.Parallel()
	crowded := func(most int32) func(*keyScope) {
		return func(s *keyScope) { s.crowdedOut, s.app = true, shop(most) }
	}
	unminted := func(s *keyScope) { s.status, s.secret = &v1alpha1.APIKeyStatus{}, nil }
	for name, tc := range map[string]struct {
		scope  *keyScope
		reason string
		says   []string
	}{
		"one that was never minted":      {scope(crowded(2), unminted), v1alpha1.ReasonMaxKeysReached, []string{"Application shop lets 2 APIKeys", "spec.maxKeys", "as many older ones", "delete an older APIKey", "minted by itself"}},
		"one that was in force before":   {scope(crowded(1)), v1alpha1.ReasonMaxKeysReached, []string{"lets 1 APIKey be in force", "an older one is", "with the same secret"}},
		"under a cap of zero":            {scope(crowded(0)), v1alpha1.ReasonMaxKeysReached, []string{"lets no APIKey be in force (spec.maxKeys is 0)", "raise spec.maxKeys"}},
		"a disabled one, all the same":   {scope(crowded(1), func(s *keyScope) { s.key.Spec.State = v1alpha1.StateDisabled }), v1alpha1.ReasonMaxKeysReached, []string{"spec.maxKeys"}},
		"one that has an elder twin":     {scope(crowded(1), func(s *keyScope) { s.elder = "demo/other" }), v1alpha1.ReasonMaxKeysReached, []string{"spec.maxKeys"}},
		"one whose Secret is gone":       {scope(crowded(1), func(s *keyScope) { s.secret = nil }), v1alpha1.ReasonSecretLost, []string{"backend-api-key"}},
		"one that asks to be retained":   {scope(crowded(1), unminted, retaining(false)), v1alpha1.ReasonMaxKeysReached, []string{"spec.maxKeys"}},
		"one that was never crowded out": {scope(func(s *keyScope) { s.app = shop(1) }), "", nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ready, stalled := readyOf(tc.scope, nil)
			usable := usableOf(tc.scope, now)
			if tc.reason == "" {
				if ready.status != metav1.ConditionTrue || usable.status != metav1.ConditionTrue || stalled {
					t.Fatalf("Ready %+v, Usable %+v, stalled %v", ready, usable, stalled)
				}
				return
			}
			if ready.reason != tc.reason || usable.reason != tc.reason || ready.status != metav1.ConditionFalse || usable.status != metav1.ConditionFalse || !stalled {
				t.Fatalf("Ready %+v, Usable %+v, stalled %v; want %s", ready, usable, stalled, tc.reason)
			}
			for _, want := range tc.says {
				if !strings.Contains(ready.message, want) || !strings.Contains(usable.message, want) {
					t.Errorf("Ready says %q and Usable %q; want both to say %q", ready.message, usable.message, want)
				}
			}
		})
	}
}

// TestTheLineWakesWhoseStatusIsWrong looks at who is woken, whatever the events were.
func TestTheLineWakesWhoseStatusIsWrong(t *testing.T) {
	t.Parallel()
	says := func(k *v1alpha1.APIKey) {
		k.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse, Reason: v1alpha1.ReasonMaxKeysReached}}
	}
	deleting := func(k *v1alpha1.APIKey) {
		k.DeletionTimestamp, k.Finalizers = &metav1.Time{Time: now}, []string{v1alpha1.FinalizerAPIKey}
	}
	uncapped := shop(0)
	uncapped.Spec.MaxKeys = nil
	for name, tc := range map[string]struct {
		objects []client.Object
		want    []string
	}{
		"no application any more":             {[]client.Object{newKeyOf(1, "a", says)}, nil},
		"an application without a cap":        {[]client.Object{uncapped, newKeyOf(1, "a", says)}, nil},
		"all as it should be":                 {[]client.Object{shop(1), newKeyOf(1, "a", minted), newKeyOf(2, "b", says)}, nil},
		"room has come for one":               {[]client.Object{shop(2), newKeyOf(1, "a", minted), newKeyOf(2, "b", says), newKeyOf(3, "c", says)}, []string{"b"}},
		"one that goes has made room":         {[]client.Object{shop(1), newKeyOf(1, "a", minted, deleting), newKeyOf(2, "b", says), newKeyOf(3, "c", says)}, []string{"b"}},
		"two have gone at once":               {[]client.Object{shop(2), newKeyOf(2, "b", says), newKeyOf(3, "c", says), newKeyOf(4, "d", says)}, []string{"b", "c"}},
		"one has lost its place":              {[]client.Object{shop(1), newKeyOf(1, "a"), newKeyOf(2, "b", minted)}, []string{"b"}},
		"one of a second has been minted":     {[]client.Object{shop(1), newKeyOf(1, "a"), newKeyOf(1, "b", minted)}, []string{"a"}},
		"a cap of zero, and nobody has heard": {[]client.Object{shop(0), newKeyOf(1, "a", minted), newKeyOf(2, "b", says)}, []string{"a"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			woken := make(chan event.GenericEvent, 8)
			r := &lineReconciler{client: kube(t, tc.objects...), keys: woken}
			if _, err := r.Reconcile(t.Context(), ctrl.Request{NamespacedName: types.NamespacedName{Namespace: "demo", Name: "shop"}}); err != nil {
				t.Fatal(err)
			}
			close(woken)
			var got []string
			for e := range woken {
				got = append(got, e.Object.GetName())
			}
			slices.Sort(got)
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Fatalf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestMovesInLine(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		change func(*v1alpha1.APIKey)
		want   bool
	}{
		"another limit":        {func(k *v1alpha1.APIKey) { k.Spec.RateLimits = &v1alpha1.RateLimits{} }, false},
		"what it has used":     {func(k *v1alpha1.APIKey) { k.Status.Usage = &v1alpha1.Usage{} }, false},
		"it is minted":         {minted, true},
		"it goes":              {func(k *v1alpha1.APIKey) { k.DeletionTimestamp = &metav1.Time{Time: now} }, true},
		"it is another by now": {func(k *v1alpha1.APIKey) { k.UID = "other" }, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := movesInLine(newKeyOf(1, "a"), newKeyOf(1, "a", tc.change)); got != tc.want {
				t.Fatalf("movesInLine = %v", got)
			}
		})
	}
}
