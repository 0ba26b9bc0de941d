package gitops

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
)

func contextOf(t *testing.T) context.Context { return context.WithoutCancel(t.Context()) }

// TestDiffIsSilent applies the samples, lets the controllers do their work, and finds nothing to differ; nor after a rotation that somebody
// else has asked for.
func TestDiffIsSilent(t *testing.T) {
	dir := samples(t)
	// The namespace stays: nothing here would empty and end it.
	t.Cleanup(func() {
		for _, args := range [][]string{{"lkkey,lkapp", "--all", "-n", "demo"}, {"lkmodel,lkprov,lkpolicy", "--all"}} {
			if _, err := system.Kubectl(contextOf(t), append([]string{"delete"}, args...)...); err != nil {
				t.Error(err)
			}
		}
	})
	for _, way := range [][]string{{}, {"--server-side"}} {
		kubectl(t, append([]string{"apply", "-k", dir}, way...)...)
		kubectl(t, "wait", "--for=condition=Enforced", "--timeout=60s", "lkkey", "--all", "-n", "demo")
		kubectl(t, append([]string{"diff", "-k", dir}, way...)...)
		k := &v1alpha1.APIKey{ObjectMeta: metav1.ObjectMeta{Namespace: "demo", Name: "shop-backend"}}
		if err := system.Client.Get(t.Context(), client.ObjectKeyFromObject(k), k); err != nil {
			t.Fatal(err)
		}
		patch(t, k, fmt.Sprintf(`{"spec":{"rotation":{"generation":%d}}}`, k.RotationGeneration()+1))
		kubectl(t, "wait", "--for=condition=Rotating", "--timeout=60s", "lkkey/shop-backend", "-n", "demo")
		kubectl(t, append([]string{"diff", "-k", dir}, way...)...)
		kubectl(t, append([]string{"apply", "-k", dir}, way...)...)
		if err := system.Client.Get(t.Context(), client.ObjectKeyFromObject(k), k); err != nil || k.RotationGeneration() == 0 {
			t.Errorf("%v: the rotation was taken back: %+v", err, k.Spec.Rotation)
		}
	}
}

// TestTwoOwners lets a platform team own the limits and a product team the rest.
func TestTwoOwners(t *testing.T) {
	ns := newNamespace(t)
	create(t, appOf(ns, "shop"))
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	head := "apiVersion: latchkey.dev/v1alpha1\nkind: APIKey\nmetadata: {name: shared, namespace: " + ns + "}\nspec:\n"
	product := file("product.yaml", head+"  applicationRef: {name: shop}\n  displayName: Shared\n  capabilities: [TextGeneration]\n  models: {access: All}\n")
	platform := file("platform.yaml", head+"  budgets: {daily: \"5\"}\n  rateLimits: {requestsPerMinute: 30}\n")
	apply := func(owner, path string) (string, error) {
		return system.Kubectl(t.Context(), "apply", "--server-side", "--field-manager="+owner, "-f", path)
	}
	for range 2 { // again, in the other's presence
		for owner, path := range map[string]string{"product": product, "platform": platform} {
			if owner == "platform" {
				if _, err := apply("product", product); err != nil { // the required fields come first
					t.Fatal(err)
				}
			}
			if _, err := apply(owner, path); err != nil {
				t.Fatal(err)
			}
		}
	}
	k := &v1alpha1.APIKey{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "shared"}}
	if err := system.Client.Get(t.Context(), client.ObjectKeyFromObject(k), k); err != nil {
		t.Fatal(err)
	}
	if k.Spec.DisplayName != "Shared" || k.Spec.Budgets == nil || *k.Spec.Budgets.Daily != "5" || *k.Spec.RateLimits.RequestsPerMinute != 30 {
		t.Errorf("spec %+v", k.Spec)
	}
	greedy := file("greedy.yaml", head+"  applicationRef: {name: shop}\n  displayName: Shared\n  capabilities: [TextGeneration]\n  models: {access: All}\n  budgets: {daily: \"500\"}\n")
	if _, err := apply("product", greedy); err == nil || !strings.Contains(err.Error(), `conflict with "platform"`) || !strings.Contains(err.Error(), ".spec.budgets.daily") {
		t.Errorf("the other's field was taken: %v", err)
	}
}

// TestAWorkloadMountsItsKey reads the sample's environment as a kubelet does, and makes a call with it.
func TestAWorkloadMountsItsKey(t *testing.T) {
	create(t, &v1alpha1.SystemPolicy{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.SystemPolicyName}, Spec: v1alpha1.SystemPolicySpec{
		Reveal: &v1alpha1.RevealPolicy{Retain: v1alpha1.RetainAllowed},
	}})
	t.Cleanup(func() { deleteSystemPolicy(t) })
	ns := newNamespace(t)
	rendered := kubectl(t, "kustomize", filepath.Join(system.Root, "config", "gitops", "workload"))
	rendered = strings.ReplaceAll(rendered, "namespace: demo", "namespace: "+ns)
	path := filepath.Join(t.TempDir(), "workload.yaml")
	if err := os.WriteFile(path, []byte(rendered), 0o600); err != nil {
		t.Fatal(err)
	}
	kubectl(t, "apply", "--server-side", "-f", path)
	kubectl(t, "wait", "--for=condition=Enforced", "--timeout=60s", "lkkey/assistant", "-n", ns)

	var deployment appsv1.Deployment
	if err := system.Client.Get(t.Context(), client.ObjectKey{Namespace: ns, Name: "assistant"}, &deployment); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{}
	for _, e := range deployment.Spec.Template.Spec.Containers[0].Env {
		env[e.Name] = e.Value
		if e.ValueFrom != nil {
			ref := e.ValueFrom.SecretKeyRef
			var secret corev1.Secret
			if err := system.Client.Get(t.Context(), client.ObjectKey{Namespace: ns, Name: ref.Name}, &secret); err != nil {
				t.Fatal(err)
			}
			env[e.Name] = string(secret.Data[ref.Key])
		}
	}
	url, inCluster := strings.CutPrefix(env["OPENAI_BASE_URL"], "http://latchkey-gateway.latchkey-system.svc")
	if !inCluster {
		t.Fatalf("OPENAI_BASE_URL is %q", env["OPENAI_BASE_URL"])
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, system.GatewayURL()+url+"/models", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+env["OPENAI_API_KEY"])
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("the workload's key is answered %s", resp.Status)
	}
}

// TestOthersAcceptTheirSamples asks the API server, by the CRDs that Flux and Argo CD publish.
func TestOthersAcceptTheirSamples(t *testing.T) {
	crds := os.Getenv("LATCHKEY_GITOPS_CRDS")
	if crds == "" {
		t.Fatal("LATCHKEY_GITOPS_CRDS is not set: run this through `make test`, or set it to what hack/gitops.sh prints")
	}
	kubectl(t, "apply", "--server-side", "-f", crds)
	kubectl(t, "wait", "--for=condition=Established", "--timeout=60s", "crd", "kustomizations.kustomize.toolkit.fluxcd.io",
		"gitrepositories.source.toolkit.fluxcd.io", "applications.argoproj.io")
	for _, ns := range []string{"flux-system", "argocd"} {
		if err := client.IgnoreAlreadyExists(system.Client.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}})); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{"flux/keys.yaml", "argocd/application.yaml", "argocd/health.yaml"} {
		file := filepath.Join(system.Root, "config", "gitops", filepath.FromSlash(path))
		kubectl(t, "apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", file)
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		bad := filepath.Join(t.TempDir(), "bad.yaml")
		if err := os.WriteFile(bad, []byte(strings.ReplaceAll(string(raw), "\nspec:\n", "\nspec:\n  wiat: true\n")), 0o600); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(raw), "\nspec:\n") {
			if _, err := system.Kubectl(t.Context(), "apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", bad); err == nil || !strings.Contains(err.Error(), "wiat") {
				t.Errorf("%s: a misspelt field is taken: %v", path, err)
			}
		}
	}
}
