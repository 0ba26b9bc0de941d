package cli

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	plugin "github.com/latchkey-dev/latchkey/internal/cli"
	"github.com/latchkey-dev/latchkey/test/controlplane"
)

// patience is how long a test waits for something that takes moments. It is not what is tested.
const patience = 60 * time.Second

// server is the API server that all tests share, with the CRDs in it.
var server struct {
	kubeconfig string
	binary     string
	client     client.Client
}

func TestMain(m *testing.M) {
	flag.Parse()
	if testing.Short() {
		fmt.Println("test/cli: left out by -short")
		os.Exit(0)
	}
	code, err := runAll(m)
	if err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "test/cli:", err)
		code = 1
	}
	os.Exit(code)
}

func runAll(m *testing.M) (code int, err error) {
	ctx := context.Background()
	for _, name := range []string{"NO_COLOR", "OPENAI_API_KEY", "LATCHKEY_GATEWAY"} { // those of the developer's own
		if err := os.Unsetenv(name); err != nil {
			return 1, err
		}
	}
	cp, err := controlplane.Start(ctx, controlplane.Options{InstallCRDs: true})
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, cp.Stop()) }()
	server.kubeconfig = filepath.Join(cp.Dir(), "kubeconfig")
	if err := cp.WriteKubeconfig(server.kubeconfig); err != nil {
		return 1, err
	}
	server.binary = filepath.Join(cp.Dir(), "kubectl-latchkey")
	build := exec.CommandContext(ctx, "go", "build", "-o", server.binary, "github.com/latchkey-dev/latchkey/cmd/kubectl-latchkey")
	if out, err := build.CombinedOutput(); err != nil {
		return 1, fmt.Errorf("build the plugin: %w: %s", err, out)
	}
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			return 1, err
		}
	}
	config := cp.Config()
	config.QPS = -1
	if server.client, err = client.New(config, client.Options{Scheme: scheme}); err != nil {
		return 1, fmt.Errorf("make client: %w", err)
	}
	return m.Run(), nil
}

// outcome is what a command has written, and its exit code.
type outcome struct {
	stdout, stderr string
	code           int
}

// latchkey runs the plugin as in a pipe, with its stdin closed.
func latchkey(t *testing.T, namespace string, args ...string) outcome {
	t.Helper()
	return latchkeyWith(t.Context(), "", namespace, args...)
}

func latchkeyWith(ctx context.Context, stdin, namespace string, args ...string) outcome {
	var stdout, stderr bytes.Buffer
	args = append([]string{"--kubeconfig", server.kubeconfig, "--namespace", namespace}, args...)
	code := plugin.Run(ctx, args, genericiooptions.IOStreams{In: strings.NewReader(stdin), Out: &stdout, ErrOut: &stderr})
	return outcome{stdout.String(), stderr.String(), code}
}

// want fails unless the command ended with a code, and stdout holds some texts.
func (o outcome) want(t *testing.T, code int, stdout ...string) {
	t.Helper()
	if o.code != code {
		t.Fatalf("exit code %d, want %d\nstdout: %s\nstderr: %s", o.code, code, o.stdout, o.stderr)
	}
	for _, part := range stdout {
		if !strings.Contains(o.stdout, part) {
			t.Errorf("stdout lacks %q:\n%s", part, o.stdout)
		}
	}
}

// says fails unless stderr holds some texts.
func (o outcome) says(t *testing.T, stderr ...string) {
	t.Helper()
	for _, part := range stderr {
		if !strings.Contains(o.stderr, part) {
			t.Errorf("stderr lacks %q:\n%s", part, o.stderr)
		}
	}
}

// silent fails if stdout holds anything.
func (o outcome) silent(t *testing.T) {
	t.Helper()
	if o.stdout != "" {
		t.Errorf("stdout is to be empty: %q", o.stdout)
	}
}

func newNamespace(t *testing.T) string {
	t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "cli-"}}
	if err := server.client.Create(t.Context(), ns); err != nil {
		t.Fatal(err)
	}
	return ns.Name
}
