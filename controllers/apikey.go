package controllers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	applyv1alpha1 "github.com/latchkey-dev/latchkey/api/v1alpha1/applyconfiguration/api/v1alpha1"
	"github.com/latchkey-dev/latchkey/internal/compile"
	"github.com/latchkey-dev/latchkey/internal/policy"
)

// +kubebuilder:rbac:groups=latchkey.dev,resources=apikeys,verbs=get;list;watch;patch
// +kubebuilder:rbac:groups=latchkey.dev,resources=apikeys/status,verbs=patch
// +kubebuilder:rbac:groups=latchkey.dev,resources=apikeys/finalizers,verbs=update
// +kubebuilder:rbac:groups="",resources=secrets,verbs=get;list;watch;create;patch;delete
// +kubebuilder:rbac:groups=events.k8s.io,resources=events,verbs=create;patch

const (
	apiKeyManager = client.FieldOwner("latchkey-apikey")
	// workers reconcile keys side by side: each spends its time waiting for the API server.
	workers = 8
	// conflictCheckEvery is how often a key looks whether a foreign Secret has made way for its own. No event says so: Secrets that
	// are not ours are not watched.
	conflictCheckEvery = 10 * time.Second
)

// APIKeyReconciler mints keys into Secrets, looks after their one reveal, and reports what a caller meets.
type APIKeyReconciler struct {
	Client    client.Client
	APIReader client.Reader // reads past the cache, where a stale answer would mint a key twice
	Recorder  events.EventRecorder
	Clock     clock.PassiveClock
	Random    io.Reader // cryptographic
	Acks      Acks
	Namespace string // the installation's

	claims claims
}

// keyScope is what one reconcile has gathered.
type keyScope struct {
	key     *v1alpha1.APIKey
	status  *v1alpha1.APIKeyStatus // as it shall be
	app     *v1alpha1.Application  // nil: there is none
	policy  *v1alpha1.SystemPolicy // nil: there is none
	secret  *corev1.Secret         // nil: there is none. The value of its apiKey cannot be relied on, its presence can
	elder   string                 // an older APIKey with the same secret; empty: none
	requeue time.Duration          // 0: no need

	crowdedOut bool // the application has as many older keys as its maxKeys allows
}

// wake asks for another reconcile no later than after d.
func (s *keyScope) wake(d time.Duration) {
	d = max(d, time.Millisecond)
	if s.requeue == 0 || d < s.requeue {
		s.requeue = d
	}
}

// Reconcile carries out one APIKey.
func (r *APIKeyReconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	s := &keyScope{key: &v1alpha1.APIKey{}}
	if err := r.Client.Get(ctx, req.NamespacedName, s.key); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	if !s.key.DeletionTimestamp.IsZero() {
		return retryOnRace(r.finalize(ctx, s.key))
	}
	if err := addFinalizer(ctx, r.Client, s.key, v1alpha1.FinalizerAPIKey); err != nil {
		return retryOnRace(err) // nothing is minted that would not be cleaned up
	}
	s.status = s.key.Status.DeepCopy()
	err := r.carryOut(ctx, s)
	if isRace(err) { // somebody else was quicker; what they did is looked at next
		return retryOnRace(err)
	}
	if err == nil {
		r.conclude(s)
	}
	// The status goes out also after a failed step: what was minted must be known.
	if statusErr := r.applyStatus(ctx, s); statusErr != nil {
		if err == nil {
			return retryOnRace(statusErr)
		}
		return ctrl.Result{}, errors.Join(err, statusErr)
	}
	if err != nil {
		return retryOnRace(err)
	}
	r.announce(s)
	return ctrl.Result{RequeueAfter: s.requeue}, nil
}

// carryOut does what the key asks for, step by step.
func (r *APIKeyReconciler) carryOut(ctx context.Context, s *keyScope) error {
	for _, step := range []func(context.Context, *keyScope) error{r.gather, r.issue, r.rotate, r.reveal, r.findElder} {
		if err := step(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

// gather reads what the key depends on.
func (r *APIKeyReconciler) gather(ctx context.Context, s *keyScope) error {
	app := &v1alpha1.Application{}
	switch err := r.Client.Get(ctx, types.NamespacedName{Namespace: s.key.Namespace, Name: s.key.Spec.ApplicationRef.Name}, app); {
	case err == nil:
		s.app = app
	case !apierrors.IsNotFound(err):
		return fmt.Errorf("get application %s: %w", s.key.Spec.ApplicationRef.Name, err)
	}
	var err error
	if s.policy, err = systemPolicy(ctx, r.Client); err != nil {
		return err
	}
	return r.findSecret(ctx, s)
}

// findElder looks for an older APIKey whose Secret holds the same key.
func (r *APIKeyReconciler) findElder(ctx context.Context, s *keyScope) error {
	if secretProblem(s) != nil {
		return nil
	}
	var twins corev1.SecretList
	if err := r.Client.List(ctx, &twins, client.MatchingFields{indexKeyHash: string(s.secret.Data[v1alpha1.SecretDataKeyHash])}, client.UnsafeDisableDeepCopy); err != nil {
		return fmt.Errorf("list secrets with the same key: %w", err)
	}
	for i := range twins.Items {
		owner := types.NamespacedName{Namespace: twins.Items[i].Namespace, Name: twins.Items[i].Labels[v1alpha1.LabelAPIKey]}
		if owner == client.ObjectKeyFromObject(s.key) {
			continue
		}
		other := &v1alpha1.APIKey{}
		if err := r.Client.Get(ctx, owner, other); err != nil {
			if apierrors.IsNotFound(err) {
				continue
			}
			return fmt.Errorf("get apikey %s: %w", owner, err)
		}
		if credentials, _ := compile.Credentials(other, &twins.Items[i]); len(credentials) > 0 && other.DeletionTimestamp.IsZero() && older(other, s.key) {
			s.elder = owner.String()
			return nil
		}
	}
	return nil
}

// older is the order by which the Publisher decides, too.
func older(a, b *v1alpha1.APIKey) bool {
	if !a.CreationTimestamp.Equal(&b.CreationTimestamp) {
		return a.CreationTimestamp.Before(&b.CreationTimestamp)
	}
	return client.ObjectKeyFromObject(a).String() < client.ObjectKeyFromObject(b).String()
}

// conclude computes status and conditions from what was gathered and done.
func (r *APIKeyReconciler) conclude(s *keyScope) {
	now := r.Clock.Now()
	system, _ := compile.System(s.policy)
	var app *policy.Application
	if s.app != nil {
		app, _ = compile.Application(s.app)
	}
	effective := policy.EffectiveFor(compile.Policy(s.key), app, system)
	s.status.ObservedGeneration = s.key.Generation
	s.status.Effective = effectiveStatus(effective)

	list := conditionList{&s.status.Conditions, s.key.Generation, now}
	list.setReady(readyOf(s, effective.Clamps))
	list.set(v1alpha1.ConditionUsable, usableOf(s, now))
	list.set(v1alpha1.ConditionRevealed, revealedOf(s))
	if v, ok := rotatingOf(s); ok {
		list.set(v1alpha1.ConditionRotating, v)
	}
	problem := secretProblem(s)
	if problem == nil {
		list.set(v1alpha1.ConditionEnforced, enforced(s.key.Status.Conditions, s.key.Generation, r.Acks.Check(s.key), r.Acks.Check(s.secret)))
	} else {
		list.set(v1alpha1.ConditionEnforced, no(v1alpha1.ReasonPending, "there is no key that could be enforced: "+problem.Message))
	}
	if e := s.key.Spec.ExpirationTime; e != nil && now.Before(e.Time) {
		s.wake(e.Sub(now))
	}
	if spent := spentBudget(s, now); spent != nil && !spent.reset.IsZero() {
		s.wake(spent.reset.Sub(now))
	}
	if problem != nil && problem.Reason == v1alpha1.ReasonSecretConflict {
		s.wake(conflictCheckEvery)
	}
}

// announce makes events of what the status says anew. It is called once the status is known to have been written, on top of the very
// version that was read: so nothing is announced twice.
func (r *APIKeyReconciler) announce(s *keyScope) {
	for _, kind := range []string{v1alpha1.ConditionReady, v1alpha1.ConditionEnforced, v1alpha1.ConditionRevealed, v1alpha1.ConditionRotating} {
		c := news(s.key.Status.Conditions, s.status.Conditions, kind)
		if c == nil {
			continue
		}
		switch c.Reason {
		case v1alpha1.ReasonLimitClamped, v1alpha1.ReasonSecretConflict, v1alpha1.ReasonDuplicateKey, v1alpha1.ReasonRetainNotAllowed,
			v1alpha1.ReasonInvalid, v1alpha1.ReasonApplicationNotFound, v1alpha1.ReasonRejected:
			r.Recorder.Eventf(s.key, nil, corev1.EventTypeWarning, c.Reason, "Reconcile", "%s", c.Message)
		case v1alpha1.ReasonMaxKeysReached:
			// Once, however often the limit changes meanwhile.
			if was := meta.FindStatusCondition(s.key.Status.Conditions, kind); was == nil || was.Reason != c.Reason {
				r.Recorder.Eventf(s.key, s.app, corev1.EventTypeWarning, c.Reason, "Reconcile", "%s", c.Message)
			}
		case v1alpha1.ReasonSecretLost:
			if kind == v1alpha1.ConditionReady { // the others repeat it
				r.Recorder.Eventf(s.key, nil, corev1.EventTypeWarning, c.Reason, "Reconcile", "%s", c.Message)
			}
		case v1alpha1.ReasonRevealExpired:
			r.Recorder.Eventf(s.key, s.secret, corev1.EventTypeWarning, c.Reason, "Reveal", "%s", c.Message)
		case v1alpha1.ReasonPreviousKeyEnded:
			r.Recorder.Eventf(s.key, s.secret, corev1.EventTypeNormal, c.Reason, "Rotate", "%s", c.Message)
		case v1alpha1.ReasonClaimed:
			r.Recorder.Eventf(s.key, s.secret, corev1.EventTypeNormal, c.Reason, "Reveal", "%s", c.Message)
		}
	}
}

func (r *APIKeyReconciler) applyStatus(ctx context.Context, s *keyScope) error {
	if equality.Semantic.DeepEqual(s.status, &s.key.Status) {
		return nil
	}
	status, err := convert[applyv1alpha1.APIKeyStatusApplyConfiguration](s.status)
	if err != nil {
		return err
	}
	status.Usage = nil // the UsageWriter's, which has a field manager of its own
	object := applyv1alpha1.APIKey(s.key.Name, s.key.Namespace).WithUID(s.key.UID).WithResourceVersion(s.key.ResourceVersion).WithStatus(status)
	if err := r.Client.Status().Apply(ctx, object, apiKeyManager, client.ForceOwnership); err != nil {
		return fmt.Errorf("apply status of apikey %s/%s: %w", s.key.Namespace, s.key.Name, err)
	}
	if object.ResourceVersion != nil {
		s.key.ResourceVersion = *object.ResourceVersion
	}
	return nil
}

// finalize deletes the Secret, and lets the key go. The key is refused from the moment that it is marked for deletion.
func (r *APIKeyReconciler) finalize(ctx context.Context, k *v1alpha1.APIKey) error {
	r.claims.forget(k.UID)
	if !controllerutil.ContainsFinalizer(k, v1alpha1.FinalizerAPIKey) {
		return nil
	}
	secret := &corev1.Secret{}
	err := r.APIReader.Get(ctx, types.NamespacedName{Namespace: k.Namespace, Name: k.SecretName()}, secret)
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("get secret of apikey %s/%s: %w", k.Namespace, k.Name, err)
	}
	// The owner counts, not the label, which a user may have taken off a moment ago.
	if err == nil && metav1.IsControlledBy(secret, k) {
		// An owner reference alone deletes nothing where no garbage collector runs.
		if err := r.Client.Delete(ctx, secret, client.Preconditions{UID: &secret.UID}); client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("delete secret %s/%s: %w", secret.Namespace, secret.Name, err)
		}
	}
	return removeFinalizer(ctx, r.Client, k, v1alpha1.FinalizerAPIKey)
}

// SetupWithManager watches what a key depends on.
func (r *APIKeyReconciler) SetupWithManager(mgr ctrl.Manager) error {
	// A Secret concerns its key, and those that hold the same one: if it goes, the next in line steps forward.
	toKey := handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, o client.Object) []reconcile.Request {
		secret, ok := o.(*corev1.Secret)
		if !ok || secret.Labels[v1alpha1.LabelAPIKey] == "" {
			return nil
		}
		concerned := []reconcile.Request{request(secret.Namespace, secret.Labels[v1alpha1.LabelAPIKey])}
		for _, hash := range hashesIn(secret) {
			concerned = append(concerned, requestsOf(ctx, r.Client, &corev1.SecretList{}, func(l *corev1.SecretList) []corev1.Secret { return l.Items },
				func(s *corev1.Secret) types.NamespacedName {
					return types.NamespacedName{Namespace: s.Namespace, Name: s.Labels[v1alpha1.LabelAPIKey]}
				}, client.MatchingFields{indexKeyHash: hash})...)
		}
		return concerned
	})
	keysOf := func(ctx context.Context, opts ...client.ListOption) []reconcile.Request {
		return requestsOf(ctx, r.Client, &v1alpha1.APIKeyList{}, func(l *v1alpha1.APIKeyList) []v1alpha1.APIKey { return l.Items },
			func(k *v1alpha1.APIKey) types.NamespacedName { return client.ObjectKeyFromObject(k) }, opts...)
	}
	moved := make(chan event.GenericEvent)
	if err := (&lineReconciler{client: r.Client, keys: moved}).setup(mgr); err != nil {
		return err
	}
	return ctrl.NewControllerManagedBy(mgr).
		For(&v1alpha1.APIKey{}, builder.WithPredicates(predicate.Or(predicate.GenerationChangedPredicate{}, budgetNews()))).
		Watches(&corev1.Secret{}, toKey).
		Watches(&v1alpha1.Application{}, handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, o client.Object) []reconcile.Request {
			return keysOf(ctx, client.InNamespace(o.GetNamespace()), client.MatchingFields{indexApplication: o.GetName()})
		}), builder.WithPredicates(predicate.Or(predicate.GenerationChangedPredicate{}, budgetNews()))).
		Watches(&v1alpha1.SystemPolicy{}, handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, _ client.Object) []reconcile.Request {
			return keysOf(ctx)
		}), builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		WatchesRawSource(source.Channel(r.Acks.Events(&v1alpha1.APIKey{}), &handler.EnqueueRequestForObject{})).
		WatchesRawSource(source.Channel(moved, &handler.EnqueueRequestForObject{})).
		WatchesRawSource(source.Channel(r.Acks.Events(&corev1.Secret{}), toKey)).
		WithOptions(controller.Options{MaxConcurrentReconciles: workers}).
		Complete(r)
}
