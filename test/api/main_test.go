package api

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"sigs.k8s.io/yaml"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	"github.com/latchkey-dev/latchkey/test/controlplane"
)

// server is the API server that all tests of the package share, with the CRDs in it.
var server struct {
	*controlplane.ControlPlane
	kubeconfig string
	client     dynamic.Interface
	mapper     meta.RESTMapper
}

func TestMain(m *testing.M) {
	code, err := runAll(m)
	if err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "test/api:", err)
		code = 1
	}
	os.Exit(code)
}

func runAll(m *testing.M) (code int, err error) {
	ctx := context.Background()
	cp, err := controlplane.Start(ctx, controlplane.Options{InstallCRDs: true})
	if err != nil {
		return 1, err
	}
	server.ControlPlane = cp
	defer func() {
		err = errors.Join(err, cp.Stop())
		if err == nil {
			err = goleak.Find()
		}
	}()
	server.kubeconfig = filepath.Join(cp.Dir(), "kubeconfig")
	if err := cp.WriteKubeconfig(server.kubeconfig); err != nil {
		return 1, err
	}
	config := cp.Config()
	config.QPS = -1 // the API server's own fairness is the limit
	if server.client, err = dynamic.NewForConfig(config); err != nil {
		return 1, fmt.Errorf("make client: %w", err)
	}
	client, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return 1, fmt.Errorf("make client: %w", err)
	}
	resources, err := restmapper.GetAPIGroupResources(client)
	if err != nil {
		return 1, fmt.Errorf("discover the kinds: %w", err)
	}
	server.mapper = restmapper.NewDiscoveryRESTMapper(resources)
	return m.Run(), nil
}

// newNamespace creates a namespace. It stays: nothing deletes a namespace's content here.
func newNamespace(t *testing.T) string {
	t.Helper()
	client, err := kubernetes.NewForConfig(rest.CopyConfig(server.Config()))
	if err != nil {
		t.Fatal(err)
	}
	ns, err := client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "test-"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return ns.Name
}

// document is one object of a YAML file.
type document struct {
	text  string
	wants []string // what its refusal must say; none: it must be accepted
}

// readDocuments reads a file's documents.
func readDocuments(t *testing.T, path string) []document {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var docs []document
	for text := range strings.SplitSeq(string(content), "\n---\n") {
		doc := document{text: text}
		for line := range strings.Lines(text) {
			if want, ok := strings.CutPrefix(strings.TrimSpace(line), "# want: "); ok {
				doc.wants = append(doc.wants, want)
			}
		}
		docs = append(docs, doc)
	}
	return docs
}

// files lists the YAML files of a folder. There has to be one.
func files(t *testing.T, dir string) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no YAML files in %s: %v", dir, err)
	}
	return paths
}

// apply creates the object that a YAML text holds, or puts it in the place of the one of its name, with strict field
// validation, as kubectl asks for by default. The text goes to the API server as it stands, so that it sees fields that occur twice.
func apply(t *testing.T, namespace, text string) error {
	t.Helper()
	var obj unstructured.Unstructured
	if err := yaml.Unmarshal([]byte(text), &obj.Object); err != nil {
		t.Fatal(err)
	}
	client, mapping := resourceOf(t, namespace, &obj)
	existing, err := client.Get(t.Context(), obj.GetName(), metav1.GetOptions{})
	absent := apierrors.IsNotFound(err)
	if err != nil && !absent {
		t.Fatal(err)
	}
	config := dynamic.ConfigFor(server.Config())
	config.GroupVersion = new(mapping.Resource.GroupVersion())
	config.APIPath = "/apis"
	rc, err := rest.RESTClientFor(config)
	if err != nil {
		t.Fatal(err)
	}
	request := rc.Post()
	if !absent {
		request = rc.Put().Name(obj.GetName())
		text = strings.Replace(text, "metadata:\n", "metadata:\n  resourceVersion: \""+existing.GetResourceVersion()+"\"\n", 1)
	} else {
		t.Cleanup(func() {
			if err := client.Delete(context.WithoutCancel(t.Context()), obj.GetName(), metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
				t.Errorf("delete %s: %v", obj.GetName(), err)
			}
		})
	}
	return request.
		NamespaceIfScoped(namespace, mapping.Scope.Name() == meta.RESTScopeNameNamespace).
		Resource(mapping.Resource.Resource).
		Param("fieldValidation", metav1.FieldValidationStrict).
		SetHeader("Content-Type", "application/yaml").
		Body(strings.NewReader(text)).
		Do(t.Context()).Error()
}

func resourceOf(t *testing.T, namespace string, obj *unstructured.Unstructured) (dynamic.ResourceInterface, *meta.RESTMapping) {
	t.Helper()
	gvk := obj.GroupVersionKind()
	mapping, err := server.mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
	if err != nil {
		t.Fatal(err)
	}
	if mapping.Scope.Name() == meta.RESTScopeNameNamespace {
		return server.client.Resource(mapping.Resource).Namespace(namespace), mapping
	}
	return server.client.Resource(mapping.Resource), mapping
}

// resource is one of the kinds, by its plural name.
func resource(plural string) schema.GroupVersionResource {
	return v1alpha1.GroupVersion.WithResource(plural)
}
