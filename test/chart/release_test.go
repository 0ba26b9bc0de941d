package chart

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
)

const patience = 60 * time.Second

// until polls, and fails the test with the last complaint.
func until(t *testing.T, what string, check func(ctx context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var last error
	if err := wait.PollUntilContextCancel(ctx, 50*time.Millisecond, true, func(ctx context.Context) (bool, error) {
		last = check(ctx)
		return last == nil, nil
	}); err != nil {
		t.Fatalf("%s: %v", what, last)
	}
}

// dropCRDs removes what uninstalling keeps.
func dropCRDs(t *testing.T) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	for _, kind := range []string{"apikeys", "applications", "models", "providers", "systempolicies"} { // nobody is left to finalize them
		out, err := kubectl(ctx, "get", kind+".latchkey.dev", "-A", "-o", `jsonpath={range .items[*]}{.metadata.namespace}/{.metadata.name}{"\n"}{end}`)
		if err != nil {
			continue
		}
		for line := range strings.Lines(out) {
			ns, name, _ := strings.Cut(strings.TrimSpace(line), "/")
			args := []string{"patch", kind + ".latchkey.dev", name, "--type=merge", "-p", `{"metadata":{"finalizers":null}}`}
			if ns != "" {
				args = append(args, "-n", ns)
			}
			_, _ = kubectl(ctx, args...)
		}
	}
	if _, err := kubectl(ctx, "delete", "--ignore-not-found", "--timeout=60s", "-f", filepath.Join(server.root, "config", "crd", "bases")); err != nil {
		t.Error(err)
	}
}

// earlierChart is the chart as it was before keys could be rotated.
func earlierChart(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "latchkey")
	if err := os.CopyFS(dir, os.DirFS(chartDir())); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "files", "crds", "latchkey.dev_apikeys.yaml")
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var crd apiextensionsv1.CustomResourceDefinition
	if err := yaml.Unmarshal(raw, &crd); err != nil {
		t.Fatal(err)
	}
	schema := crd.Spec.Versions[0].Schema.OpenAPIV3Schema
	spec := schema.Properties["spec"]
	delete(spec.Properties, "rotation")
	spec.XValidations = nil
	schema.Properties["spec"] = spec
	if raw, err = yaml.Marshal(&crd); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func replicas(t *testing.T) int32 {
	t.Helper()
	var d appsv1.Deployment
	if err := server.client.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: "latchkey-manager"}, &d); err != nil {
		t.Fatal(err)
	}
	return *d.Spec.Replicas
}

// knowsRotation reports whether the API server takes the field, or leaves it out as one that it does not know.
func knowsRotation(t *testing.T) bool {
	t.Helper()
	out, err := kubectl(t.Context(), "get", "crd", "apikeys.latchkey.dev", "-o", "jsonpath={.spec.versions[0].schema.openAPIV3Schema.properties.spec.properties.rotation.type}")
	return must(t, out, err) == "object"
}

func TestInstallUpgradeRollbackUninstall(t *testing.T) {
	for _, which := range helms {
		t.Run(which, func(t *testing.T) {
			t.Cleanup(func() { dropCRDs(t) })
			run := func(args ...string) string {
				t.Helper()
				out, err := helm(t.Context(), which, args...)
				return must(t, out, err)
			}
			notes := run("install", release, earlierChart(t), "-n", namespace)
			for _, part := range []string{"kubectl latchkey doctor", "kubectl latchkey create key", "http://latchkey-gateway.latchkey-system.svc/v1"} {
				if !strings.Contains(notes, part) {
					t.Errorf("the notes do not say %q:\n%s", part, notes)
				}
			}
			if got := replicas(t); got != 2 || knowsRotation(t) {
				t.Errorf("installed: %d replicas, rotation %v", got, knowsRotation(t))
			}
			k := &v1alpha1.APIKey{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "kept-" + which}, Spec: v1alpha1.APIKeySpec{
				ApplicationRef: v1alpha1.ApplicationReference{Name: "shop"}, DisplayName: "Kept",
				Capabilities: []v1alpha1.Capability{v1alpha1.CapabilityTextGeneration}, Models: v1alpha1.ModelScope{Access: v1alpha1.ModelAccessAll},
			}}
			until(t, "a key can be made", func(ctx context.Context) error { return server.client.Create(ctx, k) })

			run("upgrade", release, chartDir(), "-n", namespace, "--set", "manager.replicas=1", "--set", "gateway.maxRequestBytes=1048576")
			if got := replicas(t); got != 1 || !knowsRotation(t) {
				t.Errorf("upgraded: %d replicas, rotation %v", got, knowsRotation(t))
			}
			var budget policyv1.PodDisruptionBudget
			if err := server.client.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: "latchkey-manager"}, &budget); !apierrors.IsNotFound(err) {
				t.Errorf("one manager has no disruption budget: %v", err)
			}
			var gateway appsv1.StatefulSet
			if err := server.client.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: "latchkey-gateway"}, &gateway); err != nil {
				t.Fatal(err)
			}
			if args := gateway.Spec.Template.Spec.InitContainers[1].Args; !strings.Contains(strings.Join(args, " "), "--max-request-bytes=1048576") {
				t.Errorf("enforcer's arguments %q", args)
			}

			run("rollback", release, "1", "-n", namespace)
			if got := replicas(t); got != 2 {
				t.Errorf("rolled back: %d replicas", got)
			}
			run("upgrade", release, chartDir(), "-n", namespace)

			run("uninstall", release, "-n", namespace)
			until(t, "nothing of the release's is left but the CRDs", func(ctx context.Context) error {
				left, err := remains(ctx)
				if err == nil && left != "" {
					err = fmt.Errorf("left: %s", left)
				}
				return err
			})
			if err := server.client.Get(t.Context(), client.ObjectKeyFromObject(k), k); err != nil {
				t.Errorf("a key is lost: %v", err)
			}
			// What was kept is taken over by the next installation.
			run("install", release, chartDir(), "-n", namespace)
			if err := server.client.Get(t.Context(), client.ObjectKeyFromObject(k), k); err != nil {
				t.Errorf("a key is lost: %v", err)
			}
			run("uninstall", release, "-n", namespace)
		})
	}
}

// remains names what carries the release's label, CRDs aside, and what Helm keeps for itself.
func remains(ctx context.Context) (string, error) {
	kinds, err := kubectl(ctx, "api-resources", "--verbs=list,delete", "-o", "name")
	if err != nil {
		return "", err
	}
	names := strings.Join(strings.Fields(kinds), ",")
	left, err := kubectl(ctx, "get", names, "-A", "-l", "app.kubernetes.io/managed-by=Helm", "-o", "name", "--ignore-not-found")
	if err != nil {
		return "", err
	}
	var out []string
	for line := range strings.Lines(left) {
		if !strings.HasPrefix(line, "customresourcedefinition") {
			out = append(out, strings.TrimSpace(line))
		}
	}
	var secrets corev1.SecretList
	if err := server.client.List(ctx, &secrets, client.InNamespace(namespace), client.MatchingLabels{"owner": "helm"}); err != nil {
		return "", err
	}
	for i := range secrets.Items {
		out = append(out, "secret/"+secrets.Items[i].Name)
	}
	return strings.Join(out, " "), nil
}
