package chart

import (
	"bytes"
	"errors"
	"flag"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "write the golden files anew")

// The sets of values that are rendered, and kept as golden files.
func valueSets(t *testing.T) []string {
	t.Helper()
	paths, err := filepath.Glob("testdata/values/*.yaml")
	if err != nil || len(paths) < 4 {
		t.Fatal(paths, err)
	}
	return paths
}

func nameOf(path string) string { return strings.TrimSuffix(filepath.Base(path), ".yaml") }

func render(t *testing.T, which, values string) []*unstructured.Unstructured {
	t.Helper()
	out, err := helm(t.Context(), which, "template", release, chartDir(), "-n", namespace, "-f", values)
	return parse(t, must(t, out, err))
}

func parse(t *testing.T, text string) (objects []*unstructured.Unstructured) {
	t.Helper()
	decoder := utilyaml.NewYAMLOrJSONDecoder(bytes.NewBufferString(text), 4096)
	for {
		u := &unstructured.Unstructured{}
		err := decoder.Decode(&u.Object)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(u.Object) > 0 {
			objects = append(objects, u)
		}
	}
	slices.SortFunc(objects, func(a, b *unstructured.Unstructured) int { return strings.Compare(id(a), id(b)) })
	return objects
}

func id(u *unstructured.Unstructured) string {
	return u.GetKind() + " " + u.GetNamespace() + "/" + u.GetName()
}

func TestGolden(t *testing.T) {
	for _, values := range valueSets(t) {
		t.Run(nameOf(values), func(t *testing.T) {
			var all bytes.Buffer
			objects := render(t, "helm4", values)
			for _, u := range objects {
				if u.GetKind() == "CustomResourceDefinition" { // config/crd/bases has them
					u.Object = map[string]any{"kind": u.GetKind(), "metadata": map[string]any{"name": u.GetName(), "annotations": u.GetAnnotations(), "labels": u.GetLabels()}}
				}
				raw, err := yaml.Marshal(u.Object)
				if err != nil {
					t.Fatal(err)
				}
				all.WriteString("---\n")
				all.Write(raw)
			}
			golden := filepath.Join("testdata", "golden", filepath.Base(values))
			if *update {
				if err := os.WriteFile(golden, all.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), all.String()); diff != "" {
				t.Errorf("%s differs; if it should, run the test with -update (-want +got):\n%s", golden, diff)
			}
		})
	}
}

func TestBothHelmsRenderAlike(t *testing.T) {
	for _, values := range valueSets(t) {
		if diff := cmp.Diff(render(t, "helm3", values), render(t, "helm4", values)); diff != "" {
			t.Errorf("%s (-helm3 +helm4):\n%s", values, diff)
		}
	}
}

func TestLint(t *testing.T) {
	for _, which := range helms {
		for _, values := range valueSets(t) {
			out, err := helm(t.Context(), which, "lint", "--strict", chartDir(), "-f", values)
			if err != nil || strings.Contains(out, "WARNING") || strings.Contains(out, "ERROR") {
				t.Errorf("%s, %s: %v\n%s", which, values, err, out)
			}
		}
	}
}

// TestTheAPIServerTakesEveryObject applies each without effect, its Pods as Pods too: admission holds them to the restricted standard.
func TestTheAPIServerTakesEveryObject(t *testing.T) {
	if _, err := kubectl(t.Context(), "apply", "--server-side", "-f", filepath.Join(server.root, "config", "crd", "bases")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dropCRDs(t) })
	for _, values := range valueSets(t) {
		t.Run(nameOf(values), func(t *testing.T) {
			for _, u := range render(t, "helm4", values) {
				if u.GetNamespace() != "" && u.GetNamespace() != namespace {
					ensureNamespace(t, u.GetNamespace())
				}
				config := client.ApplyConfigurationFromUnstructured(u.DeepCopy())
				if err := server.client.Apply(t.Context(), config, client.FieldOwner("test"), client.DryRunAll, client.ForceOwnership); err != nil {
					t.Errorf("%s: %v", id(u), err)
				}
				if pod := podOf(t, u); pod != nil {
					pod.Namespace, pod.Name = namespace, "rendered"
					if err := server.client.Create(t.Context(), pod, client.DryRunAll); err != nil {
						t.Errorf("the Pod of %s: %v", id(u), err)
					}
				}
			}
		})
	}
}

func ensureNamespace(t *testing.T, name string) {
	t.Helper()
	err := server.client.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}})
	if err != nil && !strings.Contains(err.Error(), "already exists") {
		t.Fatal(err)
	}
}

// podOf is the Pod that a Deployment or StatefulSet makes; nil: it is neither.
func podOf(t *testing.T, u *unstructured.Unstructured) *corev1.Pod {
	t.Helper()
	var template corev1.PodTemplateSpec
	switch u.GetKind() {
	case "Deployment":
		var d appsv1.Deployment
		convert(t, u, &d)
		template = d.Spec.Template
	case "StatefulSet":
		var s appsv1.StatefulSet
		convert(t, u, &s)
		template = s.Spec.Template
		for _, claim := range s.Spec.VolumeClaimTemplates {
			template.Spec.Volumes = append(template.Spec.Volumes, corev1.Volume{Name: claim.Name, VolumeSource: corev1.VolumeSource{
				PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim.Name},
			}})
		}
	default:
		return nil
	}
	pod := &corev1.Pod{ObjectMeta: template.ObjectMeta, Spec: template.Spec}
	pod.Spec.ServiceAccountName = "default" // its own does not exist yet
	return pod
}

// convert is strict: a field that Kubernetes does not know fails the test.
func convert(t *testing.T, u *unstructured.Unstructured, into any) {
	t.Helper()
	if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(u.Object, into, true); err != nil {
		t.Fatalf("%s: %v", id(u), err)
	}
}

func TestValuesThatAreRefused(t *testing.T) {
	for name, tc := range map[string]struct{ set, says string }{
		"a typo":                      {"gateway.replcas=1", "replcas"},
		"a typo at the top":           {"gatway.replicas=1", "gatway"},
		"a variable of nobody's":      {"telemetry.env.OTLE_SERVICE_NAME=x", "OTLE_SERVICE_NAME"},
		"several gateways":            {"gateway.replicas=2", "/gateway/replicas"},
		"a ledger that is not there":  {"ledger.type=valkey", "/ledger/type"},
		"no manager":                  {"manager.replicas=0", "/manager/replicas"},
		"a log level of Envoy's":      {"manager.logLevel=warning", "/manager/logLevel"},
		"a port that root has":        {"gateway.port=80", "/gateway/port"},
		"a number as text":            {"manager.replicas=two", "/manager/replicas"},
		"certificates from elsewhere": {"certificates.type=vault", "/certificates/type"},
		"an access log of some":       {"gateway.enforcer.accessLog=some", "/gateway/enforcer/accessLog"},
		"debug pages for everybody":   {"debug.address=0.0.0.0:6060", "address"},
		"a digest without its kind":   {"manager.image.digest=abc", "/manager/image/digest"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, which := range helms {
				_, err := helm(t.Context(), which, "template", release, chartDir(), "-n", namespace, "--set", tc.set)
				if err == nil || !strings.Contains(err.Error(), tc.says) {
					t.Errorf("%s: %v; want it refused by the name %q", which, err, tc.says)
				}
			}
		})
	}
}

// TestSecretsAreTouchedWhereAskedOnly looks at what the manager may do where its namespaces are chosen.
func TestSecretsAreTouchedWhereAskedOnly(t *testing.T) {
	bound := map[string]bool{}
	for _, u := range render(t, "helm4", "testdata/values/least-privilege.yaml") {
		switch u.GetKind() {
		case "ClusterRole":
			var role rbacv1.ClusterRole
			convert(t, u, &role)
			for _, rule := range role.Rules {
				if slices.Contains(rule.Resources, "secrets") && role.Name == "latchkey-manager" {
					t.Errorf("%s reaches Secrets everywhere: %+v", role.Name, rule)
				}
			}
		case "ClusterRoleBinding":
			var b rbacv1.ClusterRoleBinding
			convert(t, u, &b)
			if b.RoleRef.Name != "latchkey-manager" {
				t.Errorf("%s binds %s in the whole cluster", b.Name, b.RoleRef.Name)
			}
		case "RoleBinding":
			var b rbacv1.RoleBinding
			convert(t, u, &b)
			if b.RoleRef.Name == "latchkey-manager-secrets" {
				bound[b.Namespace] = true
			}
		}
	}
	if got := slices.Sorted(maps.Keys(bound)); !slices.Equal(got, []string{namespace, "team-a", "team-b"}) {
		t.Errorf("Secrets are touched in %v", got)
	}
}
