package controllers

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	applyv1alpha1 "github.com/latchkey-dev/latchkey/api/v1alpha1/applyconfiguration/api/v1alpha1"
)

// usageAccount is an APIKey or an Application with what concerns its usage. All of it is read only.
type usageAccount struct {
	object  runtime.Object // *v1alpha1.APIKey or *v1alpha1.Application
	uid     string
	title   string // as messages name it
	budgets *v1alpha1.Budgets
	usage   *v1alpha1.Usage
}

func keyAccount(k *v1alpha1.APIKey) *usageAccount {
	return &usageAccount{k, string(k.UID), thisKey, k.Spec.Budgets, k.Status.Usage}
}

func applicationAccount(a *v1alpha1.Application) *usageAccount {
	return &usageAccount{a, string(a.UID), thisApplication, a.Spec.Budgets, a.Status.Usage}
}

func (a *usageAccount) isApplication() bool {
	_, is := a.object.(*v1alpha1.Application)
	return is
}

// usageObjects is where the writer finds accounts and puts their usage.
type usageObjects interface {
	// find returns nil if there is no such object.
	find(ctx context.Context, uid string) (*usageAccount, error)
	each(ctx context.Context, do func(*usageAccount) error) error
	// apply puts the usage in the place of the one there is; nil: it removes it.
	apply(ctx context.Context, a *usageAccount, u *v1alpha1.Usage) error
	terms(ctx context.Context) (budgetTerms, error)
}

// kubeUsage reads from the manager's cache and writes to the API server.
type kubeUsage struct{ client client.Client }

var _ usageObjects = kubeUsage{}

func (k kubeUsage) find(ctx context.Context, uid string) (*usageAccount, error) {
	var keys v1alpha1.APIKeyList
	if err := k.client.List(ctx, &keys, client.MatchingFields{indexUID: uid}, client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("find the apikey with UID %s: %w", uid, err)
	}
	if len(keys.Items) > 0 {
		return keyAccount(&keys.Items[0]), nil
	}
	var apps v1alpha1.ApplicationList
	if err := k.client.List(ctx, &apps, client.MatchingFields{indexUID: uid}, client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("find the application with UID %s: %w", uid, err)
	}
	if len(apps.Items) > 0 {
		return applicationAccount(&apps.Items[0]), nil
	}
	return nil, nil
}

func (k kubeUsage) each(ctx context.Context, do func(*usageAccount) error) error {
	var apps v1alpha1.ApplicationList
	if err := k.client.List(ctx, &apps, client.UnsafeDisableDeepCopy); err != nil {
		return fmt.Errorf("list applications: %w", err)
	}
	for i := range apps.Items {
		if err := do(applicationAccount(&apps.Items[i])); err != nil {
			return err
		}
	}
	var keys v1alpha1.APIKeyList
	if err := k.client.List(ctx, &keys, client.UnsafeDisableDeepCopy); err != nil {
		return fmt.Errorf("list apikeys: %w", err)
	}
	for i := range keys.Items {
		if err := do(keyAccount(&keys.Items[i])); err != nil {
			return err
		}
	}
	return nil
}

// apply owns status.usage and nothing else. It names the version that was looked at, though the rest of the object does not matter: the
// API server does not compare the UID of a custom resource's status, and a new object of the same name would inherit what another has used.
func (k kubeUsage) apply(ctx context.Context, a *usageAccount, u *v1alpha1.Usage) error {
	var config *applyv1alpha1.UsageApplyConfiguration
	if u != nil {
		var err error
		if config, err = convert[applyv1alpha1.UsageApplyConfiguration](u); err != nil {
			return err
		}
	}
	var object runtime.ApplyConfiguration
	var kind string
	var name types.NamespacedName
	switch o := a.object.(type) {
	case *v1alpha1.APIKey:
		kind, name = "apikey", client.ObjectKeyFromObject(o)
		object = applyv1alpha1.APIKey(o.Name, o.Namespace).WithUID(o.UID).WithResourceVersion(o.ResourceVersion).WithStatus(applyv1alpha1.APIKeyStatus().WithUsage(config))
	case *v1alpha1.Application:
		kind, name = "application", client.ObjectKeyFromObject(o)
		object = applyv1alpha1.Application(o.Name, o.Namespace).WithUID(o.UID).WithResourceVersion(o.ResourceVersion).WithStatus(applyv1alpha1.ApplicationStatus().WithUsage(config))
	}
	if err := k.client.Status().Apply(ctx, object, usageManager, client.ForceOwnership); err != nil {
		return fmt.Errorf("apply usage of %s %s: %w", kind, name, err)
	}
	return nil
}

func (k kubeUsage) terms(ctx context.Context) (budgetTerms, error) {
	p, err := systemPolicy(ctx, k.client)
	if err != nil {
		return budgetTerms{}, err
	}
	return termsOf(p), nil
}

// systemPolicy reads the one there is; nil: there is none.
func systemPolicy(ctx context.Context, c client.Reader) (*v1alpha1.SystemPolicy, error) {
	p := &v1alpha1.SystemPolicy{}
	switch err := c.Get(ctx, types.NamespacedName{Name: v1alpha1.SystemPolicyName}, p); {
	case apierrors.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("get system policy: %w", err)
	}
	return p, nil
}
