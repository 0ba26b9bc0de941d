package cli

import (
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime/schema"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"

	authorizationv1 "k8s.io/api/authorization/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
)

// newMapper knows the kinds that the plugin reads and writes. Asking the API server for them would take several requests before each
// command, which do not end with the command's context.
func newMapper() meta.RESTMapper {
	mapper := meta.NewDefaultRESTMapper(nil)
	for _, k := range []struct {
		group                  schema.GroupVersion
		kind, plural, singular string
		scope                  meta.RESTScope
	}{
		{v1alpha1.GroupVersion, "APIKey", "apikeys", "apikey", meta.RESTScopeNamespace},
		{v1alpha1.GroupVersion, "Application", "applications", "application", meta.RESTScopeNamespace},
		{v1alpha1.GroupVersion, "Model", "models", "model", meta.RESTScopeRoot},
		{v1alpha1.GroupVersion, "Provider", "providers", "provider", meta.RESTScopeRoot},
		{v1alpha1.GroupVersion, "SystemPolicy", "systempolicies", "systempolicy", meta.RESTScopeRoot},
		{corev1.SchemeGroupVersion, "Secret", "secrets", "secret", meta.RESTScopeNamespace},
		{corev1.SchemeGroupVersion, "Event", "events", "event", meta.RESTScopeNamespace},
		{corev1.SchemeGroupVersion, "ServiceAccount", "serviceaccounts", "serviceaccount", meta.RESTScopeNamespace},
		{corev1.SchemeGroupVersion, "Namespace", "namespaces", "namespace", meta.RESTScopeRoot},
		{coordinationv1.SchemeGroupVersion, "Lease", "leases", "lease", meta.RESTScopeNamespace},
		{authorizationv1.SchemeGroupVersion, "SelfSubjectAccessReview", "selfsubjectaccessreviews", "selfsubjectaccessreview", meta.RESTScopeRoot},
		{authorizationv1.SchemeGroupVersion, "SubjectAccessReview", "subjectaccessreviews", "subjectaccessreview", meta.RESTScopeRoot},
		{apiextensionsv1.SchemeGroupVersion, "CustomResourceDefinition", "customresourcedefinitions", "customresourcedefinition", meta.RESTScopeRoot},
	} {
		mapper.AddSpecific(k.group.WithKind(k.kind), k.group.WithResource(k.plural), k.group.WithResource(k.singular), k.scope)
	}
	return mapper
}
