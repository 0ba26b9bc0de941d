package controllers

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
)

// The fields by which the cache finds objects.
const (
	indexUID         = "metadata.uid"                   // of APIKeys and Applications
	indexApplication = "spec.applicationRef.name"       // of APIKeys
	indexKeyHash     = "data.keyHash"                   // of Secrets, of the earlier key too
	indexProvider    = "spec.providerRef.name"          // of Models
	indexCallName    = "callName"                       // of Models
	indexCredential  = "spec.credential.secretRef.name" // of Providers
)

// SetupIndexes registers the fields by which the reconcilers look objects up. It is called once, before the manager starts.
func SetupIndexes(ctx context.Context, indexer client.FieldIndexer) error {
	one := func(s string) []string {
		if s == "" {
			return nil
		}
		return []string{s}
	}
	uid := func(o client.Object) []string { return one(string(o.GetUID())) }
	for _, index := range []struct {
		object client.Object
		field  string
		value  func(client.Object) []string
	}{
		{&v1alpha1.APIKey{}, indexUID, uid},
		{&v1alpha1.Application{}, indexUID, uid},
		{&v1alpha1.APIKey{}, indexApplication, func(o client.Object) []string { return one(o.(*v1alpha1.APIKey).Spec.ApplicationRef.Name) }},
		{&corev1.Secret{}, indexKeyHash, func(o client.Object) []string {
			return hashesIn(o.(*corev1.Secret))
		}},
		{&v1alpha1.Model{}, indexProvider, func(o client.Object) []string { return one(o.(*v1alpha1.Model).Spec.ProviderRef.Name) }},
		{&v1alpha1.Model{}, indexCallName, func(o client.Object) []string { return one(o.(*v1alpha1.Model).CallName()) }},
		{&v1alpha1.Provider{}, indexCredential, func(o client.Object) []string {
			if c := o.(*v1alpha1.Provider).Spec.Credential; c != nil {
				return one(c.SecretRef.Name)
			}
			return nil
		}},
	} {
		if err := indexer.IndexField(ctx, index.object, index.field, index.value); err != nil {
			return fmt.Errorf("index %T by %s: %w", index.object, index.field, err)
		}
	}
	return nil
}

// request is the reconcile request for a name.
func request(namespace, name string) reconcile.Request {
	return reconcile.Request{NamespacedName: types.NamespacedName{Namespace: namespace, Name: name}}
}

// requestsOf lists objects and makes a request of each. Items are read only.
func requestsOf[L client.ObjectList, T any](ctx context.Context, c client.Client, list L, items func(L) []T, name func(*T) types.NamespacedName, opts ...client.ListOption) []reconcile.Request {
	if err := c.List(ctx, list, append(opts, client.UnsafeDisableDeepCopy)...); err != nil {
		return nil // the cache fails only while it is being stopped
	}
	all := items(list)
	requests := make([]reconcile.Request, 0, len(all))
	for i := range all {
		requests = append(requests, reconcile.Request{NamespacedName: name(&all[i])})
	}
	return requests
}

// hashesIn are the hashes that a Secret holds: of the key, and of the one before.
func hashesIn(secret *corev1.Secret) []string {
	var hashes []string
	for _, field := range [...]string{v1alpha1.SecretDataKeyHash, v1alpha1.SecretDataPreviousKeyHash} {
		if hash := string(secret.Data[field]); hash != "" {
			hashes = append(hashes, hash)
		}
	}
	return hashes
}
