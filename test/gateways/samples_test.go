package gateways

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"
)

// installCRDs has the API server know the kinds of Gateway API, Envoy Gateway and Istio.
func installCRDs(ctx context.Context) error {
	folder := os.Getenv("LATCHKEY_GATEWAY_CRDS")
	if folder == "" {
		return errors.New("LATCHKEY_GATEWAY_CRDS is not set: run this through `make test`, which fetches them, or set it to what hack/gateways.sh prints")
	}
	if _, err := theStack.Kubectl(ctx, "apply", "--server-side", "--recursive", "-f", folder); err != nil {
		return err
	}
	_, err := theStack.Kubectl(ctx, "wait", "--for=condition=Established", "--timeout=60s", "crd", "--all")
	return err
}

// statusOf is how a GET is answered.
func statusOf(ctx context.Context, url string) (int, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	_ = resp.Body.Close()
	return resp.StatusCode, nil
}

func samplePath(parts ...string) string {
	return filepath.Join(append([]string{theStack.Root, "config", "gateways"}, parts...)...)
}

// dryRun is the API server's word on a file or folder of manifests, by the schemas of the kinds: a field that they do not have is refused.
func dryRun(ctx context.Context, args ...string) (string, error) {
	return theStack.Kubectl(ctx, append([]string{"apply", "--server-side", "--dry-run=server", "--validate=strict",
		"--field-manager=schemas", "--force-conflicts"}, args...)...)
}

func TestSamplesFitTheirSchemas(t *testing.T) {
	for folder, objects := range map[string][]string{
		"envoy-gateway": {
			"gatewayclass.gateway.networking.k8s.io/envoy-gateway", "gateway.gateway.networking.k8s.io/llm", "envoyproxy.gateway.envoyproxy.io/llm",
			"persistentvolumeclaim/llm-enforcer", "clienttrafficpolicy.gateway.envoyproxy.io/llm", "backend.gateway.envoyproxy.io/latchkey-enforcer",
			"envoyextensionpolicy.gateway.envoyproxy.io/latchkey", "httproute.gateway.networking.k8s.io/openai",
			"httproute.gateway.networking.k8s.io/anthropic", "httproute.gateway.networking.k8s.io/undecided",
			"httproutefilter.gateway.envoyproxy.io/provider-host", "httproutefilter.gateway.envoyproxy.io/undecided",
			"backend.gateway.envoyproxy.io/openai", "backend.gateway.envoyproxy.io/anthropic",
		},
		"istio": {
			"gateway.networking.istio.io/llm", "deployment.apps/llm", "serviceaccount/llm", "service/llm", "persistentvolumeclaim/llm-enforcer",
			"envoyfilter.networking.istio.io/latchkey", "virtualservice.networking.istio.io/llm", "serviceentry.networking.istio.io/llm-providers",
			"destinationrule.networking.istio.io/openai", "destinationrule.networking.istio.io/anthropic",
		},
	} {
		t.Run(folder, func(t *testing.T) {
			out, err := dryRun(t.Context(), "-k", samplePath(folder))
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for line := range strings.Lines(out) {
				got = append(got, strings.TrimSuffix(line, " serverside-applied (server dry run)\n"))
			}
			slices.Sort(got)
			slices.Sort(objects)
			if !slices.Equal(got, objects) {
				t.Errorf("taken are %q\nwant %q", got, objects)
			}
		})
	}
}

// TestMisspeltSamplesAreRefused shows that the schemas look at what the samples rest on.
func TestMisspeltSamplesAreRefused(t *testing.T) {
	for name, tc := range map[string]struct{ folder, file, old, new, refusal string }{
		"the Gateway's parameters":            {"envoy-gateway", "gateway.yaml", "parametersRef:", "parameterRef:", ".spec.infrastructure.parameterRef: field not declared in schema"},
		"the enforcer's container":            {"envoy-gateway", "gateway.yaml", "startupProbe:", "startProbe:", "startProbe: field not declared in schema"},
		"headers taken out before all":        {"envoy-gateway", "gateway.yaml", "removeOnMatch:", "removeOnMatches:", ".spec.headers.earlyRequestHeaders.removeOnMatches: field not declared in schema"},
		"failing closed":                      {"envoy-gateway", "enforcer.yaml", "failOpen:", "failOpened:", "failOpened: field not declared in schema"},
		"a mode of bodies that is not there":  {"envoy-gateway", "enforcer.yaml", "body: Buffered", "body: Whole", `Unsupported value: "Whole"`},
		"the Backend's socket":                {"envoy-gateway", "enforcer.yaml", "path: /run", "file: /run", "file: field not declared in schema"},
		"a route's match":                     {"envoy-gateway", "routes.yaml", "headers:\n            - { name: x-latchkey-provider, value: openai }", "header:\n            - { name: x-latchkey-provider, value: openai }", "header: field not declared in schema"},
		"the host that the provider sees":     {"envoy-gateway", "routes.yaml", "hostname:\n", "hostName:\n", ".spec.urlRewrite.hostName: field not declared in schema"},
		"Istio's hosts":                       {"istio", "gateway.yaml", `hosts: ["latchkey-system/*"]`, `host: ["latchkey-system/*"]`, "host: field not declared in schema"},
		"Istio's choice of the workload":      {"istio", "enforcer.yaml", "workloadSelector:", "workloadSelectors:", ".spec.workloadSelectors: field not declared in schema"},
		"Istio's place for the filter":        {"istio", "enforcer.yaml", "operation: INSERT_BEFORE", "operation: INSERT_AHEAD", `Unsupported value: "INSERT_AHEAD"`},
		"Istio's retries":                     {"istio", "routes.yaml", "attempts: 0 #", "attempt: 0 #", "attempt: field not declared in schema"},
		"the certificate that Istio looks at": {"istio", "routes.yaml", "subjectAltNames: [api.openai.com]", "subjectAltName: [api.openai.com]", "subjectAltName: field not declared in schema"},
	} {
		t.Run(name, func(t *testing.T) {
			text, err := os.ReadFile(samplePath(tc.folder, tc.file))
			if err != nil {
				t.Fatal(err)
			}
			misspelt, err := substitute(string(text), []substitution{{tc.old, tc.new, 1}})
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(t.TempDir(), "sample.yaml")
			if err := os.WriteFile(path, []byte(misspelt), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := dryRun(t.Context(), "-f", path); err == nil || !strings.Contains(err.Error(), tc.refusal) {
				t.Errorf("got %v, want a refusal that says %q", err, tc.refusal)
			}
		})
	}
}

// documents decodes what is of one kind in a file of manifests.
func documents[T any](t *testing.T, path, kind string) []T {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var found []T
	for document := range strings.SplitSeq("\n"+string(text), "\n---") {
		if !strings.Contains(document, "\nkind: "+kind+"\n") {
			continue
		}
		var one T
		if err := yaml.Unmarshal([]byte(document), &one); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		found = append(found, one)
	}
	if len(found) == 0 {
		t.Fatalf("%s: no %s", path, kind)
	}
	return found
}

// envoyProxy is the part of Envoy Gateway's kind that makes the Pod.
type envoyProxy struct {
	Spec struct {
		Provider struct {
			Kubernetes struct {
				EnvoyDeployment struct {
					Pod struct {
						SecurityContext *corev1.PodSecurityContext `json:"securityContext"`
						Volumes         []corev1.Volume            `json:"volumes"`
					} `json:"pod"`
					Container struct {
						VolumeMounts []corev1.VolumeMount `json:"volumeMounts"`
						Env          []corev1.EnvVar      `json:"env"`
					} `json:"container"`
					InitContainers []corev1.Container `json:"initContainers"`
				} `json:"envoyDeployment"`
			} `json:"kubernetes"`
		} `json:"provider"`
	} `json:"spec"`
}

// samplePods are the Pods that the samples ask for, without what Envoy Gateway and Istio add of their own.
func samplePods(t *testing.T) map[string]*corev1.PodSpec {
	t.Helper()
	ofIstio := documents[appsv1.Deployment](t, samplePath("istio", "gateway.yaml"), "Deployment")[0].Spec.Template.Spec
	ofIstio.ServiceAccountName = "" // it is not there before the sample is applied
	made := documents[envoyProxy](t, samplePath("envoy-gateway", "gateway.yaml"), "EnvoyProxy")[0].Spec.Provider.Kubernetes.EnvoyDeployment
	return map[string]*corev1.PodSpec{
		"istio": &ofIstio,
		"envoy-gateway": {
			SecurityContext: made.Pod.SecurityContext,
			Volumes:         made.Pod.Volumes,
			InitContainers:  made.InitContainers,
			Containers: []corev1.Container{{
				Name: "envoy", Image: "envoy", VolumeMounts: made.Container.VolumeMounts, Env: made.Container.Env,
				SecurityContext: made.InitContainers[0].SecurityContext, // Envoy Gateway's own is as strict
			}},
		},
	}
}

// TestPodsOfSamples: Latchkey's namespace takes their Pods, the enforcer its arguments, and the probes ask for what it serves.
func TestPodsOfSamples(t *testing.T) {
	rendered := filepath.Join(theStack.Root, "test/chart/testdata/golden/default.yaml")
	manager := documents[appsv1.Deployment](t, rendered, "Deployment")[0]
	ofChart := documents[appsv1.StatefulSet](t, rendered, "StatefulSet")[0].Spec.Template.Spec.InitContainers
	chartEnforcer := ofChart[slices.IndexFunc(ofChart, func(c corev1.Container) bool { return c.Name == "enforcer" })]
	address := chartEnforcer.Args[slices.IndexFunc(chartEnforcer.Args, func(arg string) bool { return strings.HasPrefix(arg, "--xds-address=") })]
	for folder, spec := range samplePods(t) {
		t.Run(folder, func(t *testing.T) {
			enforcer := spec.InitContainers[0]
			create := func(spec *corev1.PodSpec) error {
				pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "sample", Namespace: "latchkey-system"}, Spec: *spec}
				return theStack.Client.Create(t.Context(), pod, client.DryRunAll)
			}
			if err := create(spec); err != nil {
				t.Errorf("the Pod is refused: %v", err)
			}
			lax := spec.DeepCopy()
			lax.InitContainers[0].SecurityContext.AllowPrivilegeEscalation = new(true)
			if err := create(lax); err == nil || !strings.Contains(err.Error(), "allowPrivilegeEscalation") {
				t.Errorf("a Pod that is not as strict as the namespace wants it: got %v", err)
			}
			if out, err := exec.CommandContext(t.Context(), theStack.Binary("enforcer"), append(enforcer.Args, "--version")...).CombinedOutput(); err != nil {
				t.Errorf("the enforcer does not take %q: %v: %s", enforcer.Args, err, out)
			}
			if enforcer.Image != chartEnforcer.Image || !slices.Contains(enforcer.Args, address) {
				t.Errorf("the chart runs %s with %s; here are %s and %q", chartEnforcer.Image, address, enforcer.Image, enforcer.Args)
			}
			for _, probe := range []*corev1.Probe{enforcer.StartupProbe, enforcer.LivenessProbe} {
				url := strings.Replace(theStack.MetricsURL("enforcer"), "/metrics", probe.HTTPGet.Path, 1)
				if status, err := statusOf(t.Context(), url); err != nil || status != http.StatusOK {
					t.Errorf("the enforcer answers %d at %s: %v", status, url, err)
				}
				if want := fmt.Sprintf("--metrics-address=:%d", probe.HTTPGet.Port.IntVal); !slices.Contains(enforcer.Args, want) {
					t.Errorf("the probe asks where nothing listens: no %s", want)
				}
			}
		})
	}
	t.Run("the manager's port is open to them", func(t *testing.T) {
		opened := documents[networkingv1.NetworkPolicy](t, samplePath("networkpolicy.yaml"), "NetworkPolicy")[0].Spec
		selector, err := metav1.LabelSelectorAsSelector(&opened.PodSelector)
		if err != nil {
			t.Fatal(err)
		}
		template := manager.Spec.Template
		if !selector.Matches(labels.Set(template.Labels)) {
			t.Errorf("%v does not choose the chart's manager, which has %v", selector, template.Labels)
		}
		port := opened.Ingress[0].Ports[0].Port.StrVal
		if !slices.ContainsFunc(template.Spec.Containers[0].Ports, func(p corev1.ContainerPort) bool {
			return p.Name == port && strings.HasSuffix(address, fmt.Sprintf(":%d", p.ContainerPort))
		}) {
			t.Errorf("the chart's manager has no port %q, or another number than %s", port, address)
		}
	})
}
