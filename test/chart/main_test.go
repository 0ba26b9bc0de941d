package chart

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

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	"github.com/latchkey-dev/latchkey/test/controlplane"
)

const (
	release   = "latchkey"
	namespace = "latchkey-system"
)

// helms are the two that the chart has to work with.
var helms = []string{"helm3", "helm4"}

var server struct {
	*controlplane.ControlPlane
	root       string
	dir        string
	kubeconfig string
	client     client.Client
}

func TestMain(m *testing.M) {
	flag.Parse()
	if testing.Short() {
		fmt.Println("chart: left out by -short")
		os.Exit(0)
	}
	code, err := runAll(m)
	if err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "chart:", err)
		code = 1
	}
	os.Exit(code)
}

func runAll(m *testing.M) (code int, err error) {
	if os.Getenv("LATCHKEY_HELM") == "" {
		return 1, errors.New("LATCHKEY_HELM is not set: run this through `make test`, which builds Helm")
	}
	if server.root, err = controlplane.Root(); err != nil {
		return 1, err
	}
	if server.dir, err = os.MkdirTemp("", "lk-chart-"); err != nil {
		return 1, err
	}
	defer func() {
		if code == 0 {
			_ = os.RemoveAll(server.dir)
		} else {
			_, _ = fmt.Fprintln(os.Stderr, "chart: logs are kept in", server.dir)
		}
	}()
	server.ControlPlane, err = controlplane.Start(context.Background(), controlplane.Options{Dir: filepath.Join(server.dir, "controlplane")})
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, server.Stop()) }()
	server.kubeconfig = filepath.Join(server.dir, "kubeconfig")
	if err := server.WriteKubeconfig(server.kubeconfig); err != nil {
		return 1, err
	}
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		return 1, err
	}
	config := server.Config()
	config.QPS = -1
	if server.client, err = client.New(config, client.Options{Scheme: scheme}); err != nil {
		return 1, err
	}
	// As the chart's README has it, of a namespace that holds its Pods to the strictest standard.
	if err := server.client.Create(context.Background(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		Name: namespace, Labels: map[string]string{"pod-security.kubernetes.io/enforce": "restricted"},
	}}); err != nil {
		return 1, err
	}
	if _, err := kubectl(context.Background(), "apply", "--server-side", "-f", filepath.Join(os.Getenv("LATCHKEY_HELM"), "crds")); err != nil {
		return 1, err
	}
	return m.Run(), nil
}

func chartDir() string { return filepath.Join(server.root, "charts", "latchkey") }

// helm runs one of the Helms, and returns what it printed on stdout. Its caches are the test's own.
func helm(ctx context.Context, which string, args ...string) (string, error) {
	home := filepath.Join(server.dir, which)
	return run(ctx, []string{"HELM_CACHE_HOME=" + home, "HELM_CONFIG_HOME=" + home, "HELM_DATA_HOME=" + home},
		filepath.Join(os.Getenv("LATCHKEY_HELM"), which), args...)
}

func kubectl(ctx context.Context, args ...string) (string, error) {
	return run(ctx, nil, filepath.Join(server.root, "bin", "kubectl"), args...)
}

func run(ctx context.Context, env []string, path string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(append(os.Environ(), "KUBECONFIG="+server.kubeconfig), env...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s %s: %w: %s", filepath.Base(path), strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

func must(t *testing.T, out string, err error) string {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return out
}
