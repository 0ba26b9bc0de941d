package controllers

import (
	"context"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	applyv1alpha1 "github.com/latchkey-dev/latchkey/api/v1alpha1/applyconfiguration/api/v1alpha1"
	"github.com/latchkey-dev/latchkey/internal/compile"
)

// +kubebuilder:rbac:groups=latchkey.dev,resources=systempolicies,verbs=get;list;watch
// +kubebuilder:rbac:groups=latchkey.dev,resources=systempolicies/status,verbs=patch

const systemPolicyManager = client.FieldOwner("latchkey-systempolicy")

// SystemPolicyReconciler reports on the SystemPolicy.
type SystemPolicyReconciler struct {
	Client client.Client
	Clock  clock.PassiveClock
	Acks   Acks
}

// Reconcile reports on the SystemPolicy.
func (r *SystemPolicyReconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	system := &v1alpha1.SystemPolicy{}
	if err := r.Client.Get(ctx, req.NamespacedName, system); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	_, problems := compile.System(system)
	status := system.Status.DeepCopy()
	status.ObservedGeneration = system.Generation
	list := conditionList{&status.Conditions, system.Generation, r.Clock.Now()}
	list.setReady(ready(problems))
	list.set(v1alpha1.ConditionEnforced, enforced(system.Status.Conditions, system.Generation, r.Acks.Check(system)))
	if equality.Semantic.DeepEqual(status, &system.Status) {
		return ctrl.Result{}, nil
	}
	config, err := convert[applyv1alpha1.SystemPolicyStatusApplyConfiguration](status)
	if err != nil {
		return ctrl.Result{}, err
	}
	return retryOnRace(r.Client.Status().Apply(ctx, applyv1alpha1.SystemPolicy(system.Name).WithUID(system.UID).WithResourceVersion(system.ResourceVersion).WithStatus(config), systemPolicyManager, client.ForceOwnership))
}

// SetupWithManager watches the SystemPolicy.
func (r *SystemPolicyReconciler) SetupWithManager(mgr ctrl.Manager) error {
	return ctrl.NewControllerManagedBy(mgr).
		For(&v1alpha1.SystemPolicy{}, builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		WatchesRawSource(source.Channel(r.Acks.Events(&v1alpha1.SystemPolicy{}), &handler.EnqueueRequestForObject{})).
		Complete(r)
}
