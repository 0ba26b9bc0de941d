package controllers

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	applyv1alpha1 "github.com/latchkey-dev/latchkey/api/v1alpha1/applyconfiguration/api/v1alpha1"
	"github.com/latchkey-dev/latchkey/internal/compile"
)

// +kubebuilder:rbac:groups=latchkey.dev,resources=applications,verbs=get;list;watch;patch
// +kubebuilder:rbac:groups=latchkey.dev,resources=applications/status,verbs=patch

const (
	applicationManager = client.FieldOwner("latchkey-application")
	// countAfter is how long the counting of keys waits for more of them.
	countAfter = 250 * time.Millisecond
)

// ApplicationReconciler reports on Applications, and holds one back from deletion while it has keys.
type ApplicationReconciler struct {
	Client    client.Client
	APIReader client.Reader // reads past the cache, where a stale answer would orphan a key; nil: the manager's, from SetupWithManager on
	Recorder  events.EventRecorder
	Clock     clock.PassiveClock
	Acks      Acks
}

// Reconcile carries out one Application.
func (r *ApplicationReconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	app := &v1alpha1.Application{}
	if err := r.Client.Get(ctx, req.NamespacedName, app); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	keys, err := r.keysOf(ctx, app)
	if err != nil {
		return ctrl.Result{}, err
	}
	deleting := !app.DeletionTimestamp.IsZero()
	if deleting && len(keys) == 0 {
		return r.release(ctx, app)
	}
	if !deleting {
		if err := addFinalizer(ctx, r.Client, app, v1alpha1.FinalizerApplication); err != nil {
			return retryOnRace(err)
		}
	}
	status := app.Status.DeepCopy()
	status.ObservedGeneration = app.Generation
	status.Keys = new(int32(len(keys)))
	_, problems := compile.Application(app)
	system, err := systemPolicy(ctx, r.Client)
	if err != nil {
		return ctrl.Result{}, err
	}
	now := r.Clock.Now()
	usable, wake := applicationUsable(app, now, termsOf(system))
	list := conditionList{&status.Conditions, app.Generation, now}
	list.setReady(applicationReady(deleting, keys, problems))
	list.set(v1alpha1.ConditionUsable, usable)
	list.set(v1alpha1.ConditionEnforced, enforced(app.Status.Conditions, app.Generation, r.Acks.Check(app)))
	if equality.Semantic.DeepEqual(status, &app.Status) {
		return ctrl.Result{RequeueAfter: wake}, nil
	}
	config, err := convert[applyv1alpha1.ApplicationStatusApplyConfiguration](status)
	if err != nil {
		return ctrl.Result{}, err
	}
	config.Usage = nil // the UsageWriter's, which has a field manager of its own
	object := applyv1alpha1.Application(app.Name, app.Namespace).WithUID(app.UID).WithResourceVersion(app.ResourceVersion).WithStatus(config)
	if err := r.Client.Status().Apply(ctx, object, applicationManager, client.ForceOwnership); err != nil {
		return retryOnRace(fmt.Errorf("apply status of application %s/%s: %w", app.Namespace, app.Name, err))
	}
	r.announce(app, status.Conditions)
	return ctrl.Result{RequeueAfter: wake}, nil
}

// announce makes an event of a deletion that is held back, once, however many keys go meanwhile.
func (r *ApplicationReconciler) announce(app *v1alpha1.Application, after []metav1.Condition) {
	was := meta.FindStatusCondition(app.Status.Conditions, v1alpha1.ConditionReady)
	c := news(app.Status.Conditions, after, v1alpha1.ConditionReady)
	if c != nil && c.Reason == v1alpha1.ReasonKeysRemain && (was == nil || was.Reason != c.Reason) {
		r.Recorder.Eventf(app, nil, corev1.EventTypeWarning, c.Reason, "Delete", "%s", c.Message)
	}
}

// release lets an application go, unless a key has come that the cache does not know of yet: only the API server can tell.
func (r *ApplicationReconciler) release(ctx context.Context, app *v1alpha1.Application) (ctrl.Result, error) {
	if !controllerutil.ContainsFinalizer(app, v1alpha1.FinalizerApplication) {
		return ctrl.Result{}, nil
	}
	var all v1alpha1.APIKeyList
	if err := r.APIReader.List(ctx, &all, client.InNamespace(app.Namespace)); err != nil {
		return ctrl.Result{}, fmt.Errorf("list keys in namespace %s: %w", app.Namespace, err)
	}
	if slices.ContainsFunc(all.Items, func(k v1alpha1.APIKey) bool { return k.Spec.ApplicationRef.Name == app.Name }) {
		return ctrl.Result{RequeueAfter: raceRetry}, nil
	}
	return retryOnRace(removeFinalizer(ctx, r.Client, app, v1alpha1.FinalizerApplication))
}

// keysOf names the APIKeys of an application, sorted.
func (r *ApplicationReconciler) keysOf(ctx context.Context, app *v1alpha1.Application) ([]string, error) {
	var list v1alpha1.APIKeyList
	if err := r.Client.List(ctx, &list, client.InNamespace(app.Namespace), client.MatchingFields{indexApplication: app.Name}, client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("list keys of application %s/%s: %w", app.Namespace, app.Name, err)
	}
	names := make([]string, 0, len(list.Items))
	for i := range list.Items {
		names = append(names, list.Items[i].Name)
	}
	slices.Sort(names)
	return names, nil
}

// SetupWithManager watches what an application's status depends on.
func (r *ApplicationReconciler) SetupWithManager(mgr ctrl.Manager) error {
	if r.Acks == nil {
		return errors.New("set up the application controller: no acks")
	}
	if r.APIReader == nil {
		r.APIReader = mgr.GetAPIReader()
	}
	// A thousand keys that come at once are counted a few times, not a thousand times.
	count := func(k client.Object, q workqueue.TypedRateLimitingInterface[reconcile.Request]) {
		if key, ok := k.(*v1alpha1.APIKey); ok {
			q.AddAfter(reconcile.Request{NamespacedName: types.NamespacedName{Namespace: key.Namespace, Name: key.Spec.ApplicationRef.Name}}, countAfter)
		}
	}
	return ctrl.NewControllerManagedBy(mgr).
		For(&v1alpha1.Application{}, builder.WithPredicates(predicate.Or(predicate.GenerationChangedPredicate{}, budgetNews()))).
		Watches(&v1alpha1.APIKey{}, handler.Funcs{
			CreateFunc: func(_ context.Context, e event.CreateEvent, q workqueue.TypedRateLimitingInterface[reconcile.Request]) {
				count(e.Object, q)
			},
			DeleteFunc: func(_ context.Context, e event.DeleteEvent, q workqueue.TypedRateLimitingInterface[reconcile.Request]) {
				count(e.Object, q)
			},
		}).
		Watches(&v1alpha1.SystemPolicy{}, handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, _ client.Object) []reconcile.Request {
			return requestsOf(ctx, r.Client, &v1alpha1.ApplicationList{}, func(l *v1alpha1.ApplicationList) []v1alpha1.Application { return l.Items },
				func(a *v1alpha1.Application) types.NamespacedName { return client.ObjectKeyFromObject(a) })
		}), builder.WithPredicates(predicate.GenerationChangedPredicate{})). // the day and the month are in its time zone
		WatchesRawSource(source.Channel(r.Acks.Events(&v1alpha1.Application{}), &handler.EnqueueRequestForObject{})).
		Complete(r)
}
