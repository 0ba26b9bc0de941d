package story

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	"github.com/latchkey-dev/latchkey/test/stack"
)

// patience is how long a test waits for something that takes moments. It is not what is tested.
const patience = 60 * time.Second

// system is what all tests share: everything that `make run` starts, with config/samples applied.
var system *stack.Stack

func TestMain(m *testing.M) {
	flag.Parse()
	if testing.Short() {
		fmt.Println("test/story: left out by -short")
		os.Exit(0)
	}
	code, err := runAll(m)
	if err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "test/story:", err)
		code = 1
	}
	os.Exit(code)
}

func runAll(m *testing.M) (code int, err error) {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "lk-story-")
	if err != nil {
		return 1, err
	}
	if system, err = stack.Start(ctx, stack.Options{Dir: dir, Say: os.Stderr}); err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, system.Stop()) }()
	if err := applySamples(ctx); err != nil {
		return 1, err
	}
	code = m.Run()
	if code == 0 {
		_ = os.RemoveAll(dir)
	} else {
		_, _ = fmt.Fprintln(os.Stderr, "test/story: logs are kept in", filepath.Join(dir, "logs"))
	}
	return code, nil
}

// applySamples applies config/samples, with the port that the simulated provider has here in place of its usual one.
func applySamples(ctx context.Context) error {
	const usual = "127.0.0.1:18080"
	rendered, err := system.Kubectl(ctx, "kustomize", filepath.Join(system.Root, "config", "samples"))
	if err != nil {
		return err
	}
	if !strings.Contains(rendered, usual) {
		return fmt.Errorf("config/samples does not name the simulated provider at %s", usual)
	}
	path := filepath.Join(system.Dir, "samples.yaml")
	if err := os.WriteFile(path, []byte(strings.ReplaceAll(rendered, usual, strings.TrimPrefix(system.ProviderURL(), "http://"))), 0o600); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"apply", "-f", path},
		{"wait", "--for=condition=Enforced", "--timeout=60s", "lkkey", "--all", "-n", "demo"},
		{"wait", "--for=condition=Ready", "--timeout=60s", "lkmodel,lkprov", "--all"},
	} {
		if _, err := system.Kubectl(ctx, args...); err != nil {
			return err
		}
	}
	return nil
}

// await reads an object again until what is asked for holds.
func await(t *testing.T, obj client.Object, what string, holds func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	err := wait.PollUntilContextCancel(ctx, 20*time.Millisecond, true, func(ctx context.Context) (bool, error) {
		err := system.Client.Get(ctx, client.ObjectKeyFromObject(obj), obj)
		return err == nil && holds(), client.IgnoreNotFound(err)
	})
	if err != nil {
		t.Fatalf("wait until %s: %v", what, err)
	}
}

func mustCreate(t *testing.T, objects ...client.Object) {
	t.Helper()
	for _, obj := range objects {
		if err := system.Client.Create(t.Context(), obj); err != nil {
			t.Fatal(err)
		}
	}
}

func newNamespace(t *testing.T) string {
	t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "example-"}}
	mustCreate(t, ns)
	return ns.Name
}

func isEnforced(k *v1alpha1.APIKey) bool {
	c := meta.FindStatusCondition(k.Status.Conditions, v1alpha1.ConditionEnforced)
	return c != nil && c.Status == metav1.ConditionTrue && c.ObservedGeneration >= k.Generation
}
