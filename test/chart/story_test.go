package chart

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	"github.com/latchkey-dev/latchkey/test/ports"
	"github.com/latchkey-dev/latchkey/test/stack"
)

const (
	openAICredential    = "sim-openai-of-the-chart"
	anthropicCredential = "sim-anthropic-of-the-chart"
)

// TestTheRenderedPodsRun installs the chart, runs what its Pods say, and lives through the basic story.
func TestTheRenderedPodsRun(t *testing.T) {
	for name, tc := range map[string]struct {
		managers int
		set      []string
		kill     bool // one of the managers, in the middle
		foreign  bool // Envoy has a configuration of its own, config/gateways/envoy
	}{
		"one manager, of chosen namespaces":   {managers: 1, set: []string{"manager.watchNamespaces={demo-one}"}},
		"two managers, one of them killed":    {managers: 2, kill: true},
		"the enforcer beside another's Envoy": {managers: 1, foreign: true},
	} {
		t.Run(name, func(t *testing.T) {
			c := installed(t, tc.managers, tc.foreign, tc.set...)
			demo := "demo-one"
			if tc.managers == 2 {
				demo = "demo-two"
			} else if tc.foreign {
				demo = "demo-three"
			}
			key := c.newKey(demo, "backend")
			c.decided(key, http.StatusOK)
			c.decided("lk_nobody", http.StatusUnauthorized)
			if tc.kill {
				// The one that the Service prefers: enforcer and Envoy have to find the other.
				if err := c.managers[0].processes[0].Kill(); err != nil {
					t.Fatal(err)
				}
				c.decided(key, http.StatusOK)
				fresh := c.newKey(demo, "after-the-kill")
				c.decided(fresh, http.StatusOK)
			}
			if _, err := kubectl(t.Context(), "patch", "lkkey", "backend", "-n", demo, "--type=merge", "-p", `{"spec":{"state":"Disabled"}}`); err != nil {
				t.Fatal(err)
			}
			c.decided(key, http.StatusUnauthorized)
		})
	}
}

// installation is a chart that runs.
type installation struct {
	t        *testing.T
	node     *node
	managers []*pod
	gateway  *pod
	url      string
}

func installed(t *testing.T, managers int, foreign bool, set ...string) *installation {
	t.Helper()
	freePorts := make([]int, 4)
	for i := range freePorts {
		var err error
		if freePorts[i], err = ports.Free(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { dropCRDs(t) })
	args := []string{"install", release, chartDir(), "-n", namespace, "--set", fmt.Sprintf("manager.replicas=%d,gateway.address=127.0.0.1,gateway.port=%d,gateway.envoy.adminPort=%d,gateway.envoy.concurrency=1", managers, freePorts[0], freePorts[1])}
	if foreign {
		args = append(args, "--set", "gateway.replicas=0")
	}
	for _, s := range set {
		args = append(args, "--set", s)
	}
	ensureNamespace(t, "demo-one")
	ensureNamespace(t, "demo-two")
	ensureNamespace(t, "demo-three")
	out, err := helm(t.Context(), "helm4", args...)
	must(t, out, err)
	t.Cleanup(func() {
		if _, err := helm(context.WithoutCancel(t.Context()), "helm4", "uninstall", release, "-n", namespace); err != nil {
			t.Error(err)
		}
	})

	n := newNode(t)
	provider := &stack.Process{
		Name: "provider", Path: filepath.Join(server.root, "bin", "provider-sim"), Log: filepath.Join(n.dir, "provider.log"),
		Args: []string{"-listen", "127.0.0.1:" + strconv.Itoa(freePorts[2]), "-control-listen", "127.0.0.1:" + strconv.Itoa(freePorts[3]),
			"-credential", openAICredential, "-anthropic-credential", anthropicCredential},
	}
	if err := provider.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := provider.Stop(); err != nil {
			t.Error(err)
		}
	})

	var services corev1.ServiceList
	if err := server.client.List(t.Context(), &services, client.InNamespace(namespace)); err != nil {
		t.Fatal(err)
	}
	for i := range services.Items {
		n.serve(&services.Items[i])
	}
	c := &installation{t: t, node: n, url: "http://127.0.0.1:" + strconv.Itoa(freePorts[0])}
	var deployment appsv1.Deployment
	var set1 appsv1.StatefulSet
	for name, into := range map[string]client.Object{"latchkey-manager": &deployment, "latchkey-gateway": &set1} {
		if err := server.client.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: name}, into); err != nil {
			t.Fatal(err)
		}
	}
	gateway := instance(&set1.Spec.Template, "latchkey-gateway-0")
	for _, claim := range set1.Spec.VolumeClaimTemplates {
		gateway.Spec.Volumes = append(gateway.Spec.Volumes, corev1.Volume{Name: claim.Name, VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim.Name},
		}})
	}
	// The gateway's Pod waits for its certificates, which the manager issues; its folders are known before, since the manager names one.
	for i := range *deployment.Spec.Replicas {
		c.managers = append(c.managers, n.admit(instance(&deployment.Spec.Template, "latchkey-manager-"+strconv.Itoa(int(i)))))
	}
	run := filepath.Join(n.dir, gateway.Name, "run")
	for _, p := range c.managers {
		p.folders["/run/latchkey"] = run // so that it is named alike
		n.start(p)
	}
	for _, p := range c.managers {
		delete(p.folders, "/run/latchkey")
		n.awaitReady(p)
	}
	c.gateway = n.admit(gateway)
	c.gateway.ports["http"] = freePorts[0]
	if foreign {
		n.replaceEnvoy(c.gateway, freePorts[0], freePorts[2])
	}
	n.start(c.gateway)
	n.awaitReady(c.gateway)
	c.seed("http://127.0.0.1:" + strconv.Itoa(freePorts[2]) + "/v1")
	return c
}

func instance(template *corev1.PodTemplateSpec, name string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: *template.ObjectMeta.DeepCopy(), Spec: *template.Spec.DeepCopy()}
	p.Name, p.Namespace = name, namespace
	return p
}

// seed makes a provider with its credential, and a model.
func (c *installation) seed(url string) {
	c.t.Helper()
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "openai"}, StringData: map[string]string{"apiKey": openAICredential}}
	provider := &v1alpha1.Provider{ObjectMeta: metav1.ObjectMeta{Name: "openai"}, Spec: v1alpha1.ProviderSpec{
		Format: v1alpha1.ProviderFormatOpenAI, URL: url, Credential: &v1alpha1.ProviderCredential{SecretRef: v1alpha1.SecretKeyReference{Name: "openai", Key: "apiKey"}},
	}}
	model := &v1alpha1.Model{ObjectMeta: metav1.ObjectMeta{Name: "gpt-5-mini"}, Spec: v1alpha1.ModelSpec{
		ProviderRef: v1alpha1.ProviderReference{Name: "openai"}, Capabilities: []v1alpha1.Capability{v1alpha1.CapabilityTextGeneration},
	}}
	for _, obj := range []client.Object{secret, provider, model} {
		if err := server.client.Create(c.t.Context(), obj); err != nil {
			c.t.Fatal(err)
		}
	}
	ctx := context.WithoutCancel(c.t.Context())
	c.t.Cleanup(func() {
		if err := server.client.Delete(ctx, secret); err != nil {
			c.t.Error(err)
		}
	})
}

// newKey makes an application and a key with the plugin, and returns the key.
func (c *installation) newKey(ns, name string) string {
	c.t.Helper()
	out, err := run(c.t.Context(), nil, filepath.Join(server.root, "bin", "kubectl-latchkey"), "create", "key", name, "-n", ns, "--app", "shop", "--create-app", "--timeout", "60s")
	return strings.TrimSpace(must(c.t, out, err))
}

func (c *installation) decided(key string, status int) {
	c.t.Helper()
	until(c.t, fmt.Sprintf("a call is answered %d", status), func(ctx context.Context) error {
		body := strings.NewReader(`{"model":"gpt-5-mini","messages":[{"role":"user","content":"Say hello."}]}`)
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url+"/v1/chat/completions", body)
		if err != nil {
			return err
		}
		req.Header.Set("Authorization", "Bearer "+key)
		req.Header.Set("Content-Type", "application/json")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		defer func() { _ = resp.Body.Close() }()
		if resp.StatusCode != status {
			return fmt.Errorf("got %s", resp.Status)
		}
		return nil
	})
}
