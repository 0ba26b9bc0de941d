package cli

import (
	"context"
	"net"
	"testing"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/latchkey-dev/latchkey/test/controlplane"
)

// TestAServerThatDoesNotAnswer has Ctrl-C end every command at once, whatever it waits for.
func TestAServerThatDoesNotAnswer(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	accepted := make(chan net.Conn, 16)
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				close(accepted)
				return
			}
			accepted <- conn // and nothing is said
		}
	}()
	for _, args := range [][]string{{"get", "keys"}, {"reveal", "k"}, {"why", "k"}, {"doctor"}, {"create", "key", "k", "--app", "a"}} {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		done := make(chan outcome, 1)
		began := time.Now()
		go func() {
			done <- latchkeyWith(ctx, "", "default", append([]string{"--server", "https://" + listener.Addr().String()}, args...)...)
		}()
		conn := <-accepted
		cancel()
		if got := <-done; got.code != 130 || got.stdout != "" || time.Since(began) > patience {
			t.Errorf("%v: exit code %d, stdout %q, stderr %q", args, got.code, got.stdout, got.stderr)
		}
		_ = conn.Close()
	}
}

// TestWithoutTheKinds asks an API server that Latchkey is not installed in.
func TestWithoutTheKinds(t *testing.T) {
	cp, err := controlplane.Start(t.Context(), controlplane.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cp.Stop(); err != nil {
			t.Errorf("stop: %v", err)
		}
	})
	kubeconfig := cp.Dir() + "/kubeconfig"
	if err := cp.WriteKubeconfig(kubeconfig); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) outcome {
		return latchkey(t, "default", append([]string{"--kubeconfig", kubeconfig}, args...)...)
	}
	for _, args := range [][]string{{"get", "keys"}, {"create", "key", "k", "--app", "a"}, {"create", "key", "k", "--app", "a", "--create-app"}, {"disable", "k"}} {
		got := run(args...)
		got.want(t, 1)
		got.says(t, "Error from server (NotFound)", "Latchkey's kinds are not there")
	}
	run("why", "k").want(t, 2)
	run("doctor").want(t, 1, "not there: applications, apikeys, models, providers, systempolicies", "kubectl apply --server-side -k config/crd", "1 thing to mend.")
	run("--as", "nobody", "doctor").want(t, 1, "not served: applications")

	// A CRD that is there and serves another version.
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	crds, err := clientset.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	for _, plural := range []string{"applications", "apikeys", "models", "providers", "systempolicies"} {
		crd := &apiextensionsv1.CustomResourceDefinition{
			ObjectMeta: metav1.ObjectMeta{Name: plural + ".latchkey.dev"},
			Spec: apiextensionsv1.CustomResourceDefinitionSpec{
				Group: "latchkey.dev", Scope: apiextensionsv1.ClusterScoped, Names: apiextensionsv1.CustomResourceDefinitionNames{Plural: plural, Kind: "X" + plural},
				Versions: []apiextensionsv1.CustomResourceDefinitionVersion{{
					Name: "v9", Served: true, Storage: true,
					Schema: &apiextensionsv1.CustomResourceValidation{OpenAPIV3Schema: &apiextensionsv1.JSONSchemaProps{Type: "object"}},
				}},
			},
		}
		if _, err := crds.ApiextensionsV1().CustomResourceDefinitions().Create(t.Context(), crd, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	run("doctor").want(t, 1, "not served: applications, apikeys")
}
