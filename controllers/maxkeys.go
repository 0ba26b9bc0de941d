package controllers

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
)

// standing tells keys apart that were created within one second.
type standing int

const (
	standingNew    standing = iota
	standingIssued          // its key is out, or about to be, and status does not say so yet
	standingMinted          // status names its Secret
)

// place is what decides whether a key is among those that its application's maxKeys lets be in force.
type place struct {
	name     string
	created  time.Time // in whole seconds, as the API server sets it
	standing standing
}

// comparePlaces is the order in which keys have places: the oldest first. It is the order of older but for one thing. Creation times have
// whole seconds, so that older goes by the name among keys of one second, and a key that has been handed out would lose its place to one
// created some moments after it that has a smaller name. So of one second those that have been minted come first. Only keys of one second
// that all wait are ordered by name, whichever of them came first.
func comparePlaces(a, b place) int {
	return cmp.Or(a.created.Compare(b.created), cmp.Compare(b.standing, a.standing), strings.Compare(a.name, b.name))
}

// hasPlace reports whether fewer than most of the others come before own. It is of no matter whether own is among them.
func hasPlace(own place, others []place, most int32) bool {
	var before int32
	for _, other := range others {
		if other.name != own.name && comparePlaces(other, own) < 0 {
			before++
		}
	}
	return before < most
}

// without names the keys beyond the first most. It sorts the places.
func without(places []place, most int32) map[string]struct{} {
	if len(places) <= int(most) {
		return nil
	}
	slices.SortFunc(places, comparePlaces)
	names := make(map[string]struct{}, len(places)-int(most))
	for _, p := range places[most:] {
		names[p.name] = struct{}{}
	}
	return names
}

// keysInLine lists the keys of an application that take part: those that are not being deleted. They are read only.
func keysInLine(ctx context.Context, c client.Reader, app types.NamespacedName) ([]v1alpha1.APIKey, error) {
	var keys v1alpha1.APIKeyList
	if err := c.List(ctx, &keys, client.InNamespace(app.Namespace), client.MatchingFields{indexApplication: app.Name}, client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("list keys of application %s: %w", app, err)
	}
	return slices.DeleteFunc(keys.Items, func(k v1alpha1.APIKey) bool { return !k.DeletionTimestamp.IsZero() }), nil
}

// places makes places of keys. issued adds to what their status says of those that have no Secret by it.
func places(keys []v1alpha1.APIKey, issued func(k *v1alpha1.APIKey) bool) []place {
	all := make([]place, 0, len(keys))
	for i := range keys {
		k := &keys[i]
		p := place{name: k.Name, created: k.CreationTimestamp.Time}
		switch {
		case k.Status.SecretName != "":
			p.standing = standingMinted
		case issued(k):
			p.standing = standingIssued
		}
		all = append(all, p)
	}
	return all
}

// claims are the keys for which a place was found and whose status, as the cache has it, does not name a Secret yet. Without them two keys
// of one second could each find a place that there is but once, since neither sees that the other is being minted.
type claims struct {
	mu  sync.Mutex
	set map[types.UID]struct{}
}

// holds reports whether the key is claimed. The lock is held.
func (c *claims) holds(k *v1alpha1.APIKey) bool {
	_, held := c.set[k.UID]
	return held
}

// settle forgets claims of keys whose status has caught up. The lock is held.
func (c *claims) settle(keys []v1alpha1.APIKey) {
	for i := range keys {
		if keys[i].Status.SecretName != "" {
			delete(c.set, keys[i].UID)
		}
	}
}

func (c *claims) forget(uid types.UID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.set, uid)
}

// issue mints the key or takes over its Secret, unless as many keys of the application as may be in force come before it.
func (r *APIKeyReconciler) issue(ctx context.Context, s *keyScope) error {
	if err := r.findPlace(ctx, s); err != nil {
		return err
	}
	if s.crowdedOut && s.status.SecretName == "" {
		return nil
	}
	if err := r.mint(ctx, s); err != nil {
		return err
	}
	return r.adopt(ctx, s)
}

// findPlace finds out whether the key is crowded out, and claims its place otherwise. What the cache knows is enough: it takes in keys in
// the order in which they came to be, so that all which came before this one are in it. One that it does not know yet comes later, and
// finds this one claimed.
func (r *APIKeyReconciler) findPlace(ctx context.Context, s *keyScope) error {
	if s.app == nil || s.app.Spec.MaxKeys == nil {
		return nil
	}
	most := *s.app.Spec.MaxKeys
	keys, err := keysInLine(ctx, r.Client, client.ObjectKeyFromObject(s.app))
	if err != nil {
		return err
	}
	left, err := r.leftBehind(ctx, s, keys, most)
	if err != nil {
		return err
	}
	r.claims.mu.Lock()
	defer r.claims.mu.Unlock()
	r.claims.settle(keys)
	all := places(keys, func(k *v1alpha1.APIKey) bool { return left[k.UID] || r.claims.holds(k) })
	own := place{name: s.key.Name, created: s.key.CreationTimestamp.Time}
	switch {
	case s.status.SecretName != "":
		own.standing = standingMinted
	case left[s.key.UID] || r.claims.holds(s.key):
		own.standing = standingIssued
	}
	s.crowdedOut = !hasPlace(own, all, most)
	if !s.crowdedOut && s.status.SecretName == "" {
		if r.claims.set == nil {
			r.claims.set = map[types.UID]struct{}{}
		}
		r.claims.set[s.key.UID] = struct{}{}
	}
	return nil
}

// leftBehind finds, where places are short, keys of the same second that were minted by a manager which did not live to say so.
func (r *APIKeyReconciler) leftBehind(ctx context.Context, s *keyScope, keys []v1alpha1.APIKey, most int32) (map[types.UID]bool, error) {
	if s.status.SecretName != "" || len(keys) <= int(most) {
		return nil, nil
	}
	left := map[types.UID]bool{}
	for i := range keys {
		k := &keys[i]
		if k.Status.SecretName != "" || !k.CreationTimestamp.Equal(&s.key.CreationTimestamp) {
			continue
		}
		secret := &corev1.Secret{}
		if err := r.Client.Get(ctx, types.NamespacedName{Namespace: k.Namespace, Name: k.SecretName()}, secret); err != nil {
			if client.IgnoreNotFound(err) != nil {
				return nil, fmt.Errorf("get secret of apikey %s/%s: %w", k.Namespace, k.Name, err)
			}
			continue
		}
		left[k.UID] = ownedBy(secret, k)
	}
	return left, nil
}

// crowdedOutMessage says what keeps the key from being in force, and how to mend it. It does not say which place the key has, which would
// change with each key that comes and goes.
func crowdedOutMessage(s *keyScope) string {
	most := *s.app.Spec.MaxKeys
	next := "and this key is minted by itself"
	if s.status.SecretName != "" {
		next = "and this key is in force again, with the same secret"
	}
	switch most {
	case 0:
		return fmt.Sprintf("Application %s lets no APIKey be in force (spec.maxKeys is 0): raise spec.maxKeys, %s", s.app.Name, next)
	case 1:
		return fmt.Sprintf("Application %s lets 1 APIKey be in force (spec.maxKeys), and an older one is: raise spec.maxKeys or delete that APIKey, %s", s.app.Name, next)
	}
	return fmt.Sprintf("Application %s lets %d APIKeys be in force (spec.maxKeys), and as many older ones are: raise spec.maxKeys or delete an older APIKey, %s",
		s.app.Name, most, next)
}

// lineAfter is how long the line of an application's keys waits for more changes before it is looked over.
const lineAfter = 50 * time.Millisecond

// lineReconciler wakes the keys of an application whose place has changed because of others. It looks at what they say, not at what has
// happened: so no change is missed, however many come at once.
type lineReconciler struct {
	client client.Client
	keys   chan<- event.GenericEvent
}

// Reconcile looks over the keys of one application.
func (r *lineReconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	app := &v1alpha1.Application{}
	if err := r.client.Get(ctx, req.NamespacedName, app); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	if app.Spec.MaxKeys == nil {
		return ctrl.Result{}, nil // the keys that waited hear of it from the application's own event
	}
	keys, err := keysInLine(ctx, r.client, req.NamespacedName)
	if err != nil {
		return ctrl.Result{}, err
	}
	out := without(places(keys, func(*v1alpha1.APIKey) bool { return false }), *app.Spec.MaxKeys)
	for i := range keys {
		if _, isOut := out[keys[i].Name]; isOut == saysCrowdedOut(&keys[i]) {
			continue
		}
		select {
		case r.keys <- event.GenericEvent{Object: keys[i].DeepCopy()}:
		case <-ctx.Done():
			return ctrl.Result{}, nil
		}
	}
	return ctrl.Result{}, nil
}

// saysCrowdedOut reports whether the key's status says that it is.
func saysCrowdedOut(k *v1alpha1.APIKey) bool {
	c := meta.FindStatusCondition(k.Status.Conditions, v1alpha1.ConditionReady)
	return c != nil && c.Reason == v1alpha1.ReasonMaxKeysReached
}

// setup watches what the line of an application's keys depends on.
func (r *lineReconciler) setup(mgr ctrl.Manager) error {
	look := func(o client.Object, q workqueue.TypedRateLimitingInterface[reconcile.Request]) {
		if k, ok := o.(*v1alpha1.APIKey); ok {
			q.AddAfter(request(k.Namespace, k.Spec.ApplicationRef.Name), lineAfter)
		}
	}
	return ctrl.NewControllerManagedBy(mgr).
		Named("apikey-line").
		Watches(&v1alpha1.APIKey{}, handler.Funcs{
			CreateFunc: func(_ context.Context, e event.CreateEvent, q workqueue.TypedRateLimitingInterface[reconcile.Request]) {
				look(e.Object, q)
			},
			UpdateFunc: func(_ context.Context, e event.UpdateEvent, q workqueue.TypedRateLimitingInterface[reconcile.Request]) {
				before, isKey := e.ObjectOld.(*v1alpha1.APIKey)
				after, stillIs := e.ObjectNew.(*v1alpha1.APIKey)
				if isKey && stillIs && (movesInLine(before, after) || saysCrowdedOut(before) != saysCrowdedOut(after)) {
					look(after, q)
				}
			},
			DeleteFunc: func(_ context.Context, e event.DeleteEvent, q workqueue.TypedRateLimitingInterface[reconcile.Request]) {
				look(e.Object, q)
			},
		}).
		Complete(r)
}

// movesInLine reports whether a change of a key can change who has a place.
func movesInLine(before, after *v1alpha1.APIKey) bool {
	return before.UID != after.UID || before.DeletionTimestamp.IsZero() != after.DeletionTimestamp.IsZero() ||
		(before.Status.SecretName == "") != (after.Status.SecretName == "")
}
