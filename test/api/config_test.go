package api

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/yaml"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	"github.com/latchkey-dev/latchkey/test/controlplane"
)

const (
	installationNamespace = "latchkey-system"
	managerAccount        = "latchkey-manager"
)

func TestDefaultConfiguration(t *testing.T) {
	path := configPath(t, "default")
	mustKubectl(t, "apply", "--server-side", "--force-conflicts", "-k", path)
	objects := decode(t, mustKubectl(t, "kustomize", path))

	t.Run("it installs every CRD there is", func(t *testing.T) {
		var installed, generated []string
		for _, obj := range objects {
			if obj.GetKind() == "CustomResourceDefinition" {
				installed = append(installed, obj.GetName())
			}
		}
		for _, schema := range schemas(t) {
			generated = append(generated, schema.name)
		}
		slices.Sort(installed)
		slices.Sort(generated)
		if diff := cmp.Diff(generated, installed); diff != "" {
			t.Errorf("CRDs (-generated +installed):\n%s", diff)
		}
	})

	t.Run("every binding names a role and an account that come along, and every role but people's is bound", func(t *testing.T) {
		roles, bound := map[string]bool{}, map[string]bool{}
		for _, obj := range objects {
			switch obj.GetKind() {
			case "Role", "ClusterRole":
				if obj.GetLabels()["app.kubernetes.io/component"] == "access" { // for people, whom nobody knows beforehand
					continue
				}
				roles[obj.GetKind()+"/"+obj.GetName()] = true
			case "RoleBinding", "ClusterRoleBinding":
				kind, _, _ := unstructured.NestedString(obj.Object, "roleRef", "kind")
				name, _, _ := unstructured.NestedString(obj.Object, "roleRef", "name")
				bound[kind+"/"+name] = true
				subjects, _, _ := unstructured.NestedSlice(obj.Object, "subjects")
				want := []any{map[string]any{"kind": "ServiceAccount", "name": managerAccount, "namespace": installationNamespace}}
				if diff := cmp.Diff(want, subjects); diff != "" {
					t.Errorf("subjects of %s %s (-want +got):\n%s", obj.GetKind(), obj.GetName(), diff)
				}
			}
		}
		if diff := cmp.Diff(roles, bound); diff != "" || len(roles) == 0 {
			t.Errorf("roles (-there +bound):\n%s", diff)
		}
	})

	t.Run("the manager may do its work, and no more", func(t *testing.T) {
		config, _, err := server.ServiceAccountConfig(t.Context(), installationNamespace, managerAccount)
		if err != nil {
			t.Fatal(err)
		}
		client, err := kubernetes.NewForConfig(config)
		if err != nil {
			t.Fatal(err)
		}
		for name, tc := range map[string]struct {
			attributes authorizationv1.ResourceAttributes
			want       bool
		}{
			"it takes the lead":                        {want: true, attributes: authorizationv1.ResourceAttributes{Verb: "update", Group: "coordination.k8s.io", Resource: "leases", Namespace: installationNamespace}},
			"it takes no lead elsewhere":               {want: false, attributes: authorizationv1.ResourceAttributes{Verb: "update", Group: "coordination.k8s.io", Resource: "leases", Namespace: "kube-system"}},
			"it watches keys everywhere":               {want: true, attributes: authorizationv1.ResourceAttributes{Verb: "watch", Group: v1alpha1.GroupName, Resource: "apikeys"}},
			"it writes the status of keys":             {want: true, attributes: authorizationv1.ResourceAttributes{Verb: "patch", Group: v1alpha1.GroupName, Resource: "apikeys", Subresource: "status"}},
			"it creates no keys":                       {want: false, attributes: authorizationv1.ResourceAttributes{Verb: "create", Group: v1alpha1.GroupName, Resource: "apikeys"}},
			"it creates the Secrets of keys":           {want: true, attributes: authorizationv1.ResourceAttributes{Verb: "create", Resource: "secrets", Namespace: "default"}},
			"it creates no pods":                       {want: false, attributes: authorizationv1.ResourceAttributes{Verb: "create", Resource: "pods", Namespace: "default"}},
			"it gives itself no further rights":        {want: false, attributes: authorizationv1.ResourceAttributes{Verb: "create", Group: "rbac.authorization.k8s.io", Resource: "clusterrolebindings"}},
			"it has no tokens made for other accounts": {want: false, attributes: authorizationv1.ResourceAttributes{Verb: "create", Resource: "serviceaccounts", Subresource: "token", Namespace: "default"}},
		} {
			t.Run(name, func(t *testing.T) {
				review, err := client.AuthorizationV1().SelfSubjectAccessReviews().Create(t.Context(), &authorizationv1.SelfSubjectAccessReview{
					Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &tc.attributes},
				}, metav1.CreateOptions{})
				if err != nil {
					t.Fatal(err)
				}
				if review.Status.Allowed != tc.want {
					t.Errorf("may %s %s: got %t (%s), want %t", tc.attributes.Verb, tc.attributes.Resource, review.Status.Allowed, review.Status.Reason, tc.want)
				}
			})
		}
	})
}

func TestSamples(t *testing.T) {
	path := configPath(t, "samples")
	// config/default, which the samples are applied on, brings this namespace.
	mustKubectl(t, "apply", "--server-side", "-f", filepath.Join(configPath(t, "default"), "namespace.yaml"))
	for _, mode := range []string{"--server-side=false", "--server-side=true"} {
		stdout, stderr, err := kubectl(t, "apply", mode, "--force-conflicts="+strings.TrimPrefix(mode, "--server-side="), "-k", path)
		if err != nil {
			t.Fatalf("kubectl apply %s -k config/samples: %v\n%s", mode, err, stderr)
		}
		if stderr != "" {
			t.Errorf("kubectl apply %s -k config/samples warns: %s\n%s", mode, stderr, stdout)
		}
	}
	objects := decode(t, mustKubectl(t, "kustomize", path))
	deleteAfterwards(t, objects)

	t.Run("every file takes part", func(t *testing.T) {
		var kustomization struct{ Resources []string }
		if err := yaml.Unmarshal([]byte(mustRead(t, filepath.Join(path, "kustomization.yaml"))), &kustomization); err != nil {
			t.Fatal(err)
		}
		var there []string
		for _, file := range files(t, path) {
			if name := filepath.Base(file); name != "kustomization.yaml" {
				there = append(there, name)
			}
		}
		slices.Sort(kustomization.Resources)
		if diff := cmp.Diff(there, kustomization.Resources); diff != "" {
			t.Errorf("files of config/samples (-there +applied):\n%s", diff)
		}
	})

	t.Run("everything that they refer to is there", func(t *testing.T) {
		names := map[string]bool{}
		for _, obj := range objects {
			names[obj.GetKind()+" "+obj.GetNamespace()+"/"+obj.GetName()] = true
		}
		for _, obj := range objects {
			var needs []string
			at := func(prefix string, fields ...string) {
				if name, found, _ := unstructured.NestedString(obj.Object, fields...); found {
					needs = append(needs, prefix+"/"+name)
				}
			}
			switch obj.GetKind() {
			case "APIKey":
				at("Application "+obj.GetNamespace(), "spec", "applicationRef", "name")
				models, _, _ := unstructured.NestedStringSlice(obj.Object, "spec", "models", "names")
				for _, model := range models {
					needs = append(needs, "Model /"+model)
				}
			case "Model":
				at("Provider ", "spec", "providerRef", "name")
			case "Provider":
				at("Secret "+installationNamespace, "spec", "credential", "secretRef", "name")
			}
			for _, need := range needs {
				if !names[need] {
					t.Errorf("%s %s refers to %s, which is not among the samples", obj.GetKind(), obj.GetName(), need)
				}
			}
		}
	})
}

// deleteAfterwards deletes objects at the end of the test, so that no other test meets them. Namespaces stay: nothing ends their
// deletion here.
func deleteAfterwards(t *testing.T, objects []*unstructured.Unstructured) {
	t.Helper()
	for _, obj := range objects {
		if obj.GetKind() == "Namespace" {
			continue
		}
		client, _ := resourceOf(t, obj.GetNamespace(), obj)
		t.Cleanup(func() {
			if err := client.Delete(context.WithoutCancel(t.Context()), obj.GetName(), metav1.DeleteOptions{}); err != nil {
				t.Errorf("delete %s %s: %v", obj.GetKind(), obj.GetName(), err)
			}
		})
	}
}

func configPath(t *testing.T, name string) string {
	t.Helper()
	root, err := controlplane.Root()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(root, "config", name)
	if _, err := os.Stat(path); err != nil {
		t.Fatal(err)
	}
	return path
}
