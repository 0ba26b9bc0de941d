package controllers

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
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

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	applyv1alpha1 "github.com/latchkey-dev/latchkey/api/v1alpha1/applyconfiguration/api/v1alpha1"
	"github.com/latchkey-dev/latchkey/internal/compile"
)

// +kubebuilder:rbac:groups=latchkey.dev,resources=providers,verbs=get;list;watch
// +kubebuilder:rbac:groups=latchkey.dev,resources=providers/status,verbs=patch

const providerManager = client.FieldOwner("latchkey-provider")

// ProviderReconciler reports on Providers.
type ProviderReconciler struct {
	Client    client.Client
	Clock     clock.PassiveClock
	Namespace string // the installation's, where credentials are
}

// Reconcile reports on one Provider.
func (r *ProviderReconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	provider := &v1alpha1.Provider{}
	if err := r.Client.Get(ctx, req.NamespacedName, provider); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	var secret *corev1.Secret
	if c := provider.Spec.Credential; c != nil {
		found := &corev1.Secret{}
		switch err := r.Client.Get(ctx, types.NamespacedName{Namespace: r.Namespace, Name: c.SecretRef.Name}, found); {
		case err == nil:
			secret = found
		case !apierrors.IsNotFound(err):
			return ctrl.Result{}, fmt.Errorf("get credential of provider %s: %w", provider.Name, err)
		}
	}
	var models v1alpha1.ModelList
	if err := r.Client.List(ctx, &models, client.MatchingFields{indexProvider: provider.Name}, client.UnsafeDisableDeepCopy); err != nil {
		return ctrl.Result{}, fmt.Errorf("list models of provider %s: %w", provider.Name, err)
	}
	_, problems := compile.Provider(provider, secret)
	status := provider.Status.DeepCopy()
	status.ObservedGeneration = provider.Generation
	status.Models = new(int32(len(models.Items)))
	list := conditionList{&status.Conditions, provider.Generation, r.Clock.Now()}
	list.setReady(ready(problems))
	if equality.Semantic.DeepEqual(status, &provider.Status) {
		return ctrl.Result{}, nil
	}
	config, err := convert[applyv1alpha1.ProviderStatusApplyConfiguration](status)
	if err != nil {
		return ctrl.Result{}, err
	}
	return retryOnRace(r.Client.Status().Apply(ctx, applyv1alpha1.Provider(provider.Name).WithUID(provider.UID).WithResourceVersion(provider.ResourceVersion).WithStatus(config), providerManager, client.ForceOwnership))
}

// SetupWithManager watches what a provider's status depends on.
func (r *ProviderReconciler) SetupWithManager(mgr ctrl.Manager) error {
	return ctrl.NewControllerManagedBy(mgr).
		For(&v1alpha1.Provider{}, builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		Watches(&corev1.Secret{}, handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, o client.Object) []reconcile.Request {
			if o.GetNamespace() != r.Namespace {
				return nil
			}
			return requestsOf(ctx, r.Client, &v1alpha1.ProviderList{}, func(l *v1alpha1.ProviderList) []v1alpha1.Provider { return l.Items },
				func(p *v1alpha1.Provider) types.NamespacedName { return client.ObjectKeyFromObject(p) }, client.MatchingFields{indexCredential: o.GetName()})
		})).
		Watches(&v1alpha1.Model{}, handler.EnqueueRequestsFromMapFunc(func(_ context.Context, o client.Object) []reconcile.Request {
			return []reconcile.Request{request("", o.(*v1alpha1.Model).Spec.ProviderRef.Name)}
		}), builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		Complete(r)
}
