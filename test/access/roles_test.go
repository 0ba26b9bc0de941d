package access

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
)

// verbs are all that RBAC knows for objects.
var verbs = []string{"create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"}

const (
	read   = "get list watch"
	manage = "create delete get list patch update watch"
	all    = "create delete deletecollection get list patch update watch"
)

// place is a resource in a namespace. An empty namespace: the resource belongs to none, or all namespaces are meant.
type place struct{ resource, namespace string }

// groups are the API groups of the resources that are asked about. Subresources are those of their resource.
var groups = map[string]schema.GroupVersion{
	"apikeys": v1alpha1.GroupVersion, "applications": v1alpha1.GroupVersion,
	"models": v1alpha1.GroupVersion, "providers": v1alpha1.GroupVersion, "systempolicies": v1alpha1.GroupVersion,
	"secrets": corev1.SchemeGroupVersion, "configmaps": corev1.SchemeGroupVersion, "pods": corev1.SchemeGroupVersion,
	"serviceaccounts": corev1.SchemeGroupVersion, "namespaces": corev1.SchemeGroupVersion,
	"roles": rbacv1.SchemeGroupVersion, "rolebindings": rbacv1.SchemeGroupVersion,
	"clusterroles": rbacv1.SchemeGroupVersion, "clusterrolebindings": rbacv1.SchemeGroupVersion,
	"validatingadmissionpolicies": {Group: "admissionregistration.k8s.io", Version: "v1"},
}

// places are all that every subject is asked about, in a namespace of its own, in another's, and in the installation's.
func places(home, other string) []place {
	var all []place
	for _, namespace := range []string{home, other, installationNamespace, ""} {
		for _, resource := range []string{
			"apikeys", "apikeys/status", "apikeys/finalizers", "applications", "applications/status", "applications/finalizers",
			"secrets", "configmaps", "pods", "pods/exec", "serviceaccounts/token", "roles", "rolebindings",
		} {
			all = append(all, place{resource, namespace})
		}
	}
	for _, resource := range []string{
		"models", "models/status", "models/finalizers", "providers", "providers/status", "providers/finalizers",
		"systempolicies", "systempolicies/status", "systempolicies/finalizers",
		"namespaces", "clusterroles", "clusterrolebindings", "validatingadmissionpolicies",
	} {
		all = append(all, place{resource, ""})
	}
	return all
}

// TestRoles asks and tries each verb on each place. What is not listed has to be refused.
func TestRoles(t *testing.T) {
	// What a built-in role brings of its own beside Latchkey's kinds is not looked at.
	ours := []string{"apikeys", "applications", "models", "providers", "systempolicies"}
	for name, tc := range map[string]struct {
		inNamespace string // the role bound in the subject's namespace
		inCluster   string // the role bound everywhere
		credentials bool   // the Role for the providers' credentials as well
		resources   []string
		want        func(home, other string) map[place]string
	}{
		"a user works with the keys of one namespace and gets at its Secrets by name": {
			inNamespace: "latchkey-user",
			want: func(home, _ string) map[place]string {
				return map[place]string{
					{"apikeys", home}: manage, {"applications", home}: read, {"secrets", home}: "get patch",
				}
			},
		},
		"a key editor works with the keys of one namespace and gets at no Secret": {
			inNamespace: "latchkey-key-editor",
			want: func(home, _ string) map[place]string {
				return map[place]string{{"apikeys", home}: manage, {"applications", home}: read}
			},
		},
		"an application editor says what applications may spend, and makes no keys": {
			inNamespace: "latchkey-application-editor",
			want: func(home, _ string) map[place]string {
				return map[place]string{{"applications", home}: manage}
			},
		},
		"a catalog reader sees models and the policy": {
			inCluster: "latchkey-catalog-reader",
			want: func(string, string) map[place]string {
				return map[place]string{{"models", ""}: read, {"systempolicies", ""}: read}
			},
		},
		"an auditor reads all kinds everywhere, and no Secret": {
			inCluster: "latchkey-auditor",
			want: func(home, other string) map[place]string {
				return everywhere(read, home, other)
			},
		},
		"an auditor of one namespace reads its keys and applications": {
			inNamespace: "latchkey-auditor",
			want: func(home, _ string) map[place]string {
				return map[place]string{{"apikeys", home}: read, {"applications", home}: read}
			},
		},
		"an operator manages all kinds everywhere, and of Secrets those beside the manager": {
			inCluster:   "latchkey-operator",
			credentials: true,
			want: func(home, other string) map[place]string {
				want := everywhere(all, home, other)
				want[place{"secrets", installationNamespace}] = "create delete get patch update"
				return want
			},
		},
		"an operator without the credentials' role gets at no Secret": {
			inCluster: "latchkey-operator",
			want: func(home, other string) map[place]string {
				return everywhere(all, home, other)
			},
		},
		"view shows keys and applications": {
			inNamespace: "view", resources: ours,
			want: func(home, _ string) map[place]string {
				return map[place]string{{"apikeys", home}: read, {"applications", home}: read}
			},
		},
		"edit works with keys, and not with what applications may spend": {
			inNamespace: "edit", resources: ours,
			want: func(home, _ string) map[place]string {
				return map[place]string{{"apikeys", home}: manage, {"applications", home}: read}
			},
		},
		"admin works with keys, and not with what applications may spend": {
			inNamespace: "admin", resources: ours,
			want: func(home, _ string) map[place]string {
				return map[place]string{{"apikeys", home}: manage, {"applications", home}: read}
			},
		},
		"somebody without a role does nothing": {
			want: func(string, string) map[place]string { return map[place]string{} },
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			home, other := newPopulated(t), newPopulated(t)
			user := "user-of-" + home
			if tc.inNamespace != "" {
				bind(t, user, tc.inNamespace, home)
			}
			if tc.inCluster != "" {
				bind(t, user, tc.inCluster, "")
			}
			if tc.credentials {
				mustCreate(t, &rbacv1.RoleBinding{
					ObjectMeta: metav1.ObjectMeta{GenerateName: "test-", Namespace: installationNamespace},
					Subjects:   []rbacv1.Subject{{Kind: rbacv1.UserKind, APIGroup: rbacv1.GroupName, Name: user}},
					RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: "latchkey-provider-credentials"},
				})
			}
			want := tc.want(home, other)
			awaitBindings(t, user, want)
			requests, err := dynamic.NewForConfig(as(user))
			if err != nil {
				t.Fatal(err)
			}
			asked, done, wanted := map[place]string{}, map[place]string{}, map[place]string{}
			for _, at := range places(home, other) {
				resource, _, _ := strings.Cut(at.resource, "/")
				if tc.resources != nil && !slices.Contains(tc.resources, resource) {
					continue
				}
				var tried, mayTry []string
				for _, verb := range verbs {
					if !tryable(verb, at) {
						continue
					}
					if slices.Contains(strings.Fields(want[at]), verb) {
						mayTry = append(mayTry, verb)
					}
					switch err := try(t.Context(), requests, verb, at); {
					case err == nil:
						tried = append(tried, verb)
					case !apierrors.IsForbidden(err):
						t.Errorf("%s %s in %q: %v, which is neither done nor refused", verb, at.resource, at.namespace, err)
					}
				}
				if len(tried)+len(mayTry) > 0 {
					done[at], wanted[at] = strings.Join(tried, " "), strings.Join(mayTry, " ")
				}
				if allowed := ask(t, user, at); allowed != "" {
					asked[at] = allowed
				}
			}
			if diff := cmp.Diff(want, asked, cmp.AllowUnexported(place{})); diff != "" {
				t.Errorf("what the API server says the subject may do (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(wanted, done, cmp.AllowUnexported(place{})); diff != "" {
				t.Errorf("what the subject could do (-want +got):\n%s", diff)
			}
		})
	}
}

// everywhere grants verbs on all of Latchkey's kinds.
func everywhere(verbs string, namespaces ...string) map[place]string {
	granted := map[place]string{{"models", ""}: verbs, {"providers", ""}: verbs, {"systempolicies", ""}: verbs}
	for _, namespace := range append(namespaces, installationNamespace, "") {
		granted[place{"apikeys", namespace}] = verbs
		granted[place{"applications", namespace}] = verbs
	}
	return granted
}

// ask asks the API server which verbs a user has.
func ask(t *testing.T, user string, at place) string {
	t.Helper()
	resource, subresource, _ := strings.Cut(at.resource, "/")
	var allowed []string
	for _, verb := range verbs {
		review, err := server.kube.AuthorizationV1().SubjectAccessReviews().Create(t.Context(), &authorizationv1.SubjectAccessReview{
			Spec: authorizationv1.SubjectAccessReviewSpec{
				User: user, Groups: []string{"system:authenticated"},
				ResourceAttributes: &authorizationv1.ResourceAttributes{
					Verb: verb, Group: groups[resource].Group, Resource: resource, Subresource: subresource, Namespace: at.namespace,
				},
			},
		}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if review.Status.Allowed {
			allowed = append(allowed, verb)
		}
	}
	return strings.Join(allowed, " ")
}

// awaitBindings waits until the API server has taken notice of a user's bindings.
func awaitBindings(t *testing.T, user string, want map[place]string) {
	t.Helper()
	for at := range want {
		await(t, "bindings take effect", func() error {
			if ask(t, user, at) == "" {
				return fmt.Errorf("no verb on %s in %q", at.resource, at.namespace)
			}
			return nil
		})
	}
}

// tryable says whether there is such a request at all.
func tryable(verb string, at place) bool {
	resource, subresource, _ := strings.Cut(at.resource, "/")
	switch {
	case subresource == "status":
		return (at.namespace != "" || !namespaced(resource)) && slices.Contains([]string{"get", "patch", "update"}, verb)
	case subresource != "":
		return false
	case at.namespace == "" && namespaced(resource): // across all namespaces one can only look
		return verb == "list" || verb == "watch"
	}
	return resource != "namespaces" || verb != "deletecollection" // namespaces go one by one
}

func namespaced(resource string) bool {
	return slices.Contains([]string{"apikeys", "applications", "secrets", "configmaps", "pods", "serviceaccounts", "roles", "rolebindings"}, resource)
}

// try makes a request. What would change something is a dry run.
func try(ctx context.Context, requests dynamic.Interface, verb string, at place) error {
	name, subresource, _ := strings.Cut(at.resource, "/")
	var resource dynamic.ResourceInterface = requests.Resource(groups[name].WithResource(name))
	if at.namespace != "" {
		resource = requests.Resource(groups[name].WithResource(name)).Namespace(at.namespace)
	}
	var subresources []string
	if subresource != "" {
		subresources = append(subresources, subresource)
	}
	dryRun := []string{metav1.DryRunAll}
	there := sample(name, at.namespace)
	var err error
	switch verb {
	case "create":
		created := there.DeepCopy()
		created.SetName("another")
		if name == "systempolicies" {
			created.SetName("default") // there can be no other: that it exists says that the request was let in
		}
		if _, err = resource.Create(ctx, created, metav1.CreateOptions{DryRun: dryRun}, subresources...); apierrors.IsAlreadyExists(err) {
			err = nil
		}
	case "delete":
		err = resource.Delete(ctx, there.GetName(), metav1.DeleteOptions{DryRun: dryRun}, subresources...)
	case "deletecollection":
		err = resource.DeleteCollection(ctx, metav1.DeleteOptions{DryRun: dryRun}, metav1.ListOptions{})
	case "get":
		_, err = resource.Get(ctx, there.GetName(), metav1.GetOptions{}, subresources...)
	case "list":
		_, err = resource.List(ctx, metav1.ListOptions{})
	case "patch":
		_, err = resource.Patch(ctx, there.GetName(), types.MergePatchType, []byte(`{"metadata":{"annotations":{"latchkey.dev/revealed":"true"}}}`), metav1.PatchOptions{DryRun: dryRun}, subresources...)
	case "update":
		live := there.DeepCopy() // as it is now, which an update has to say
		if err := server.admin.Get(ctx, types.NamespacedName{Namespace: at.namespace, Name: there.GetName()}, live); err != nil {
			live = there // there is none: the request is one that has to be refused
		}
		_, err = resource.Update(ctx, live, metav1.UpdateOptions{DryRun: dryRun}, subresources...)
	case "watch":
		w, watchErr := resource.Watch(ctx, metav1.ListOptions{})
		if err = watchErr; err == nil {
			w.Stop()
		}
	}
	return err
}

// sample is the object of a kind that newPopulated makes, or that is not there and only named in requests that are refused. The guards
// have nothing against what try does to it, so that it does not matter whether another test has turned them on.
func sample(resource, namespace string) *unstructured.Unstructured {
	manifests := map[string]string{
		"apikeys": `{"apiVersion":"latchkey.dev/v1alpha1","kind":"APIKey","metadata":{"name":"sample","annotations":{"latchkey.dev/confirm-deletion":"Sample key"}},"spec":{"applicationRef":{"name":"sample"},
			"displayName":"Sample key","capabilities":["TextGeneration"],"models":{"access":"All"}}}`,
		"applications":   `{"apiVersion":"latchkey.dev/v1alpha1","kind":"Application","metadata":{"name":"sample"},"spec":{"displayName":"Sample"}}`,
		"secrets":        `{"apiVersion":"v1","kind":"Secret","metadata":{"name":"sample","labels":{"latchkey.dev/api-key":"sample"}}}`,
		"models":         `{"apiVersion":"latchkey.dev/v1alpha1","kind":"Model","metadata":{"name":"sample"},"spec":{"providerRef":{"name":"sample"},"capabilities":["TextGeneration"]}}`,
		"providers":      `{"apiVersion":"latchkey.dev/v1alpha1","kind":"Provider","metadata":{"name":"sample"},"spec":{"format":"OpenAI","url":"https://api.openai.com/v1"}}`,
		"systempolicies": `{"apiVersion":"latchkey.dev/v1alpha1","kind":"SystemPolicy","metadata":{"name":"default"},"spec":{"currency":"USD"}}`,
	}
	obj := &unstructured.Unstructured{}
	manifest, ok := manifests[resource]
	if !ok {
		obj.SetGroupVersionKind(groups[resource].WithKind("None"))
		obj.SetName("sample")
		obj.SetNamespace(namespace)
		return obj
	}
	if err := json.Unmarshal([]byte(manifest), &obj.Object); err != nil {
		panic(err)
	}
	obj.SetNamespace(namespace)
	return obj
}

// newPopulated makes a namespace with a sample of each kind in it, and those that belong to no namespace or to the installation's.
func newPopulated(t *testing.T) string {
	t.Helper()
	namespace := newNamespace(t, nil)
	for _, obj := range []*unstructured.Unstructured{
		sample("apikeys", namespace), sample("applications", namespace), sample("secrets", namespace),
		sample("apikeys", installationNamespace), sample("applications", installationNamespace), sample("secrets", installationNamespace),
		sample("models", ""), sample("providers", ""), sample("systempolicies", ""),
	} {
		if err := server.admin.Create(t.Context(), obj); err != nil && !apierrors.IsAlreadyExists(err) {
			t.Fatal(err)
		}
	}
	return namespace
}

// TestRolesAreComplete holds the roles to the kinds that there are.
func TestRolesAreComplete(t *testing.T) {
	crds, err := dynamic.NewForConfig(server.Config())
	if err != nil {
		t.Fatal(err)
	}
	list, err := crds.Resource(schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var kinds []string
	for _, crd := range list.Items {
		plural, _, _ := unstructured.NestedString(crd.Object, "spec", "names", "plural")
		kinds = append(kinds, plural)
	}
	slices.Sort(kinds)
	for _, name := range []string{"latchkey-auditor", "latchkey-operator"} {
		t.Run("every kind is in "+name, func(t *testing.T) {
			role, err := server.kube.RbacV1().ClusterRoles().Get(t.Context(), name, metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(kinds, role.Rules[0].Resources); diff != "" {
				t.Errorf("resources (-kinds +role):\n%s", diff)
			}
		})
	}

	t.Run("only the manager's role writes subresources, and none is open-ended", func(t *testing.T) {
		roles, err := server.kube.RbacV1().ClusterRoles().List(t.Context(), metav1.ListOptions{LabelSelector: "app.kubernetes.io/part-of=latchkey"})
		if err != nil {
			t.Fatal(err)
		}
		writers := map[string]bool{}
		for _, role := range roles.Items {
			for _, rule := range role.Rules {
				for _, word := range slices.Concat(rule.APIGroups, rule.Resources, rule.Verbs) {
					if strings.Contains(word, "*") {
						t.Errorf("role %s holds %q", role.Name, word)
					}
					if strings.Contains(word, "/") {
						writers[role.Name] = true
					}
				}
			}
		}
		if diff := cmp.Diff([]string{managerAccount}, slices.Collect(maps.Keys(writers))); diff != "" {
			t.Errorf("roles with subresources (-want +got):\n%s", diff)
		}
	})

	t.Run("the user's role is the key editor's and the two calls of a reveal", func(t *testing.T) {
		editor, err := server.kube.RbacV1().ClusterRoles().Get(t.Context(), "latchkey-key-editor", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		user, err := server.kube.RbacV1().ClusterRoles().Get(t.Context(), "latchkey-user", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		want := append(editor.Rules, rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"secrets"}, Verbs: []string{"get", "patch"}})
		if diff := cmp.Diff(want, user.Rules); diff != "" {
			t.Errorf("rules (-want +got):\n%s", diff)
		}
	})
}

// TestBindingByNamespaceAdmins: the API server lets nobody grant more than they have.
func TestBindingByNamespaceAdmins(t *testing.T) {
	namespace, other := newNamespace(t, nil), newNamespace(t, nil)
	user := "admin-of-" + namespace
	bind(t, user, "admin", namespace)
	awaitBindings(t, user, map[place]string{{"rolebindings", namespace}: ""})
	c := clientAs(t, user)
	for name, tc := range map[string]struct {
		role, namespace string
		refused         bool
	}{
		"the user's role is theirs to grant":             {role: "latchkey-user", namespace: namespace},
		"the key editor's too":                           {role: "latchkey-key-editor", namespace: namespace},
		"the auditor's too":                              {role: "latchkey-auditor", namespace: namespace},
		"the application editor's is not":                {role: "latchkey-application-editor", namespace: namespace, refused: true},
		"the operator's is not":                          {role: "latchkey-operator", namespace: namespace, refused: true},
		"the manager's is not":                           {role: managerAccount, namespace: namespace, refused: true},
		"the user's role is not theirs to grant outside": {role: "latchkey-user", namespace: other, refused: true},
	} {
		t.Run(name, func(t *testing.T) {
			err := c.Create(t.Context(), &rbacv1.RoleBinding{
				ObjectMeta: metav1.ObjectMeta{GenerateName: "test-", Namespace: tc.namespace},
				Subjects:   []rbacv1.Subject{{Kind: rbacv1.UserKind, APIGroup: rbacv1.GroupName, Name: "colleague"}},
				RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: tc.role},
			})
			if tc.refused != apierrors.IsForbidden(err) || !tc.refused && err != nil {
				t.Errorf("got %v, refused wanted: %t", err, tc.refused)
			}
		})
	}
}
