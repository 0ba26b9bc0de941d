// Package v1alpha1 holds Latchkey's Kubernetes kinds: Application, APIKey, Model, Provider and SystemPolicy.
//
// The rules that an object must obey stand here, as schema and CEL markers, and nowhere else: the API server
// enforces them and no admission webhook is needed. The package imports apimachinery only, so that other
// programs can use the types without taking the product along.
//
// +kubebuilder:object:generate=true
// +groupName=latchkey.dev
package v1alpha1
