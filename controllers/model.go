package controllers

import (
	"context"
	"fmt"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	applyv1alpha1 "github.com/latchkey-dev/latchkey/api/v1alpha1/applyconfiguration/api/v1alpha1"
	"github.com/latchkey-dev/latchkey/internal/compile"
)

// +kubebuilder:rbac:groups=latchkey.dev,resources=models,verbs=get;list;watch
// +kubebuilder:rbac:groups=latchkey.dev,resources=models/status,verbs=patch

const modelManager = client.FieldOwner("latchkey-model")

// ModelReconciler reports on Models.
type ModelReconciler struct {
	Client client.Client
	Clock  clock.PassiveClock
	Acks   Acks
}

// Reconcile reports on one Model.
func (r *ModelReconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	model := &v1alpha1.Model{}
	if err := r.Client.Get(ctx, req.NamespacedName, model); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	var provider *v1alpha1.Provider
	found := &v1alpha1.Provider{}
	switch err := r.Client.Get(ctx, types.NamespacedName{Name: model.Spec.ProviderRef.Name}, found); {
	case err == nil:
		provider = found
	case !apierrors.IsNotFound(err):
		return ctrl.Result{}, fmt.Errorf("get provider %s: %w", model.Spec.ProviderRef.Name, err)
	}
	var claimants v1alpha1.ModelList
	if err := r.Client.List(ctx, &claimants, client.MatchingFields{indexCallName: model.CallName()}); err != nil {
		return ctrl.Result{}, fmt.Errorf("list models named %s: %w", model.CallName(), err)
	}
	winner := model
	if len(claimants.Items) > 0 {
		all := make([]*v1alpha1.Model, 0, len(claimants.Items))
		for i := range claimants.Items {
			all = append(all, &claimants.Items[i])
		}
		winner = compile.Winner(all)
	}
	status := model.Status.DeepCopy()
	status.ObservedGeneration = model.Generation
	status.Name = model.CallName()
	list := conditionList{&status.Conditions, model.Generation, r.Clock.Now()}
	list.setReady(modelReady(model, winner, provider))
	list.set(v1alpha1.ConditionEnforced, enforced(model.Status.Conditions, model.Generation, r.Acks.Check(model)))
	if equality.Semantic.DeepEqual(status, &model.Status) {
		return ctrl.Result{}, nil
	}
	config, err := convert[applyv1alpha1.ModelStatusApplyConfiguration](status)
	if err != nil {
		return ctrl.Result{}, err
	}
	return retryOnRace(r.Client.Status().Apply(ctx, applyv1alpha1.Model(model.Name).WithUID(model.UID).WithResourceVersion(model.ResourceVersion).WithStatus(config), modelManager, client.ForceOwnership))
}

// SetupWithManager watches what a model's status depends on.
func (r *ModelReconciler) SetupWithManager(mgr ctrl.Manager) error {
	modelsBy := func(ctx context.Context, field, value string) []reconcile.Request {
		return requestsOf(ctx, r.Client, &v1alpha1.ModelList{}, func(l *v1alpha1.ModelList) []v1alpha1.Model { return l.Items },
			func(m *v1alpha1.Model) types.NamespacedName { return client.ObjectKeyFromObject(m) }, client.MatchingFields{field: value})
	}
	return ctrl.NewControllerManagedBy(mgr).
		For(&v1alpha1.Model{}, builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		// Those that claim the same name: one may have to step back, or forward.
		Watches(&v1alpha1.Model{}, handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, o client.Object) []reconcile.Request {
			return modelsBy(ctx, indexCallName, o.(*v1alpha1.Model).CallName())
		}), builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		Watches(&v1alpha1.Provider{}, handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, o client.Object) []reconcile.Request {
			return modelsBy(ctx, indexProvider, o.GetName())
		})).
		WatchesRawSource(source.Channel(r.Acks.Events(&v1alpha1.Model{}), &handler.EnqueueRequestForObject{})).
		Complete(r)
}
