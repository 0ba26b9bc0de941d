package gitops

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

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/latchkey-dev/latchkey/test/stack"
)

const patience = 60 * time.Second

var system *stack.Stack

func TestMain(m *testing.M) {
	flag.Parse()
	if testing.Short() {
		fmt.Println("test/gitops: left out by -short")
		os.Exit(0)
	}
	code, err := runAll(m)
	if err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "test/gitops:", err)
		code = 1
	}
	os.Exit(code)
}

func runAll(m *testing.M) (code int, err error) {
	dir, err := os.MkdirTemp("", "lk-gitops-")
	if err != nil {
		return 1, err
	}
	if system, err = stack.Start(context.Background(), stack.Options{Dir: dir, Say: os.Stderr}); err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, system.Stop()) }()
	code = m.Run()
	if code == 0 {
		_ = os.RemoveAll(dir)
	} else {
		_, _ = fmt.Fprintln(os.Stderr, "test/gitops: logs are kept in", filepath.Join(dir, "logs"))
	}
	return code, nil
}

// until polls, and fails the test with the last complaint.
func until(t *testing.T, what string, check func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var last error
	if err := wait.PollUntilContextCancel(ctx, 50*time.Millisecond, true, func(context.Context) (bool, error) {
		last = check()
		return last == nil, nil
	}); err != nil {
		t.Fatalf("%s: %v", what, last)
	}
}

func newNamespace(t *testing.T) string {
	t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "gitops-"}}
	create(t, ns)
	return ns.Name
}

func create(t *testing.T, objects ...client.Object) {
	t.Helper()
	for _, obj := range objects {
		if err := system.Client.Create(t.Context(), obj); err != nil {
			t.Fatal(err)
		}
	}
}

func patch(t *testing.T, obj client.Object, body string) {
	t.Helper()
	if err := system.Client.Patch(t.Context(), obj, client.RawPatch(types.MergePatchType, []byte(body))); err != nil {
		t.Fatal(err)
	}
}

func kubectl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := system.Kubectl(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// samples writes config/samples anew with the port of the simulated provider that runs here, and returns the folder.
func samples(t *testing.T) string {
	t.Helper()
	from, to := filepath.Join(system.Root, "config", "samples"), t.TempDir()
	entries, err := os.ReadDir(from)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		content, err := os.ReadFile(filepath.Join(from, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		text := strings.ReplaceAll(string(content), "127.0.0.1:18080", strings.TrimPrefix(system.ProviderURL(), "http://"))
		if err := os.WriteFile(filepath.Join(to, e.Name()), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return to
}
