package access

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
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/client-go/kubernetes"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	"github.com/latchkey-dev/latchkey/internal/cli"
	"github.com/latchkey-dev/latchkey/test/controlplane"
)

const (
	installationNamespace = "latchkey-system"
	managerAccount        = "latchkey-manager"
	pluginName            = "kubectl-latchkey"
)

// server is the API server that all tests of the package share, with config/default applied to it.
var server struct {
	*controlplane.ControlPlane
	root       string // the module's
	kubeconfig string
	plugins    string // a folder with the plugin, for the PATH of kubectl
	admin      client.Client
	kube       kubernetes.Interface
	guard      sync.Once // turns config/guard on
}

func TestMain(m *testing.M) {
	log.SetLogger(logr.Discard()) // controller-runtime wants one
	if filepath.Base(os.Args[0]) == pluginName {
		os.Exit(plugin())
	}
	flag.Parse()
	if testing.Short() {
		fmt.Println("test/access: left out by -short")
		os.Exit(0)
	}
	code, err := runAll(m)
	if err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "test/access:", err)
		code = 1
	}
	os.Exit(code)
}

// plugin is the kubectl plugin: the test's own program, called by the plugin's name.
func plugin() int {
	command := cli.NewCommand(genericiooptions.IOStreams{In: os.Stdin, Out: os.Stdout, ErrOut: os.Stderr})
	if err := command.ExecuteContext(context.Background()); err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "error:", err)
		return 1
	}
	return 0
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
	if err := prepare(ctx); err != nil {
		return 1, err
	}
	return m.Run(), nil
}

func prepare(ctx context.Context) (err error) {
	if server.root, err = controlplane.Root(); err != nil {
		return err
	}
	server.kubeconfig = filepath.Join(server.Dir(), "kubeconfig")
	if err := server.WriteKubeconfig(server.kubeconfig); err != nil {
		return err
	}
	if server.admin, err = clientFor(server.Config()); err != nil {
		return err
	}
	config := server.Config()
	config.QPS = -1
	if server.kube, err = kubernetes.NewForConfig(config); err != nil {
		return fmt.Errorf("make client: %w", err)
	}
	program, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find the test's program: %w", err)
	}
	server.plugins = filepath.Join(server.Dir(), "plugins")
	if err := os.Mkdir(server.plugins, 0o700); err != nil {
		return fmt.Errorf("make a folder for the plugin: %w", err)
	}
	if err := os.Symlink(program, filepath.Join(server.plugins, pluginName)); err != nil {
		return fmt.Errorf("link the plugin: %w", err)
	}
	if out, err := shell(ctx, "kubectl apply --server-side -k config/default"); err != nil {
		return fmt.Errorf("apply config/default: %w\n%s", err, out)
	}
	return aggregate(ctx)
}

// aggregate does what kube-controller-manager does with the built-in roles: each takes in the rules of the roles that carry its label.
func aggregate(ctx context.Context) error {
	roles := server.kube.RbacV1().ClusterRoles()
	for _, name := range []string{"view", "edit", "admin"} { // each is part of the next
		var role *rbacv1.ClusterRole
		err := wait.PollUntilContextTimeout(ctx, 50*time.Millisecond, time.Minute, true, func(ctx context.Context) (bool, error) {
			var err error
			role, err = roles.Get(ctx, name, metav1.GetOptions{})
			return err == nil, nil // the API server makes its roles a moment after it has begun to serve
		})
		if err != nil || role.AggregationRule == nil {
			return fmt.Errorf("find the aggregated role %s: %w", name, err)
		}
		role.Rules = nil
		for _, labels := range role.AggregationRule.ClusterRoleSelectors {
			parts, err := roles.List(ctx, metav1.ListOptions{LabelSelector: metav1.FormatLabelSelector(&labels)})
			if err != nil {
				return fmt.Errorf("list the parts of role %s: %w", name, err)
			}
			for _, part := range parts.Items {
				role.Rules = append(role.Rules, part.Rules...)
			}
		}
		if _, err := roles.Update(ctx, role, metav1.UpdateOptions{}); err != nil {
			return fmt.Errorf("update role %s: %w", name, err)
		}
	}
	return nil
}

func clientFor(config *rest.Config) (client.Client, error) {
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		return nil, fmt.Errorf("build scheme: %w", err)
	}
	config.QPS = -1 // the API server's own fairness is the limit
	c, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		return nil, fmt.Errorf("make client: %w", err)
	}
	return c, nil
}

// as is the administrator's configuration with somebody else's identity assumed.
func as(user string, groups ...string) *rest.Config {
	config := server.Config()
	config.QPS = -1
	config.Impersonate = rest.ImpersonationConfig{UserName: user, Groups: groups}
	return config
}

// clientAs is a client of somebody.
func clientAs(t *testing.T, user string, groups ...string) client.Client {
	t.Helper()
	c, err := clientFor(as(user, groups...))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// shell runs a line of shell in the module's root, with kubectl, its plugin and the administrator's kubeconfig.
func shell(ctx context.Context, line string) (string, error) {
	kubectl, err := server.Kubectl()
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-c", line)
	cmd.Dir = server.root
	cmd.Env = append(os.Environ(), "KUBECONFIG="+server.kubeconfig, "KUBECACHEDIR="+filepath.Join(server.Dir(), "kubectl"),
		"PATH="+strings.Join([]string{server.plugins, filepath.Dir(kubectl), os.Getenv("PATH")}, string(os.PathListSeparator)))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err = cmd.Run()
	return out.String(), err
}

// mustCreate creates objects as the administrator. They stay; each test has namespaces of its own.
func mustCreate(t *testing.T, objects ...client.Object) {
	t.Helper()
	for _, obj := range objects {
		if err := server.admin.Create(t.Context(), obj); err != nil {
			t.Fatal(err)
		}
	}
}

// newNamespace creates a namespace. It stays: nothing deletes a namespace's content here.
func newNamespace(t *testing.T, labels map[string]string) string {
	t.Helper()
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "test-", Labels: labels}}
	mustCreate(t, namespace)
	return namespace.Name
}

// bind binds a ClusterRole to a user, in a namespace or, where that is empty, in the cluster.
func bind(t *testing.T, user, role, namespace string) {
	t.Helper()
	subjects := []rbacv1.Subject{{Kind: rbacv1.UserKind, APIGroup: rbacv1.GroupName, Name: user}}
	ref := rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role}
	if namespace == "" {
		mustCreate(t, &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{GenerateName: "test-"}, Subjects: subjects, RoleRef: ref})
		return
	}
	mustCreate(t, &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{GenerateName: "test-", Namespace: namespace}, Subjects: subjects, RoleRef: ref})
}

// newKey is an APIKey that the API server accepts.
func newKey(namespace, name, displayName string) *v1alpha1.APIKey {
	return &v1alpha1.APIKey{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec: v1alpha1.APIKeySpec{
			ApplicationRef: v1alpha1.ApplicationReference{Name: "shop"},
			DisplayName:    v1alpha1.DisplayName(displayName),
			Capabilities:   []v1alpha1.Capability{v1alpha1.CapabilityTextGeneration},
			Models:         v1alpha1.ModelScope{Access: v1alpha1.ModelAccessAll},
		},
	}
}

// await tries until it works out, and fails the test with the last error if it does not.
func await(t *testing.T, what string, try func() error) {
	t.Helper()
	var last error
	err := wait.PollUntilContextTimeout(t.Context(), 50*time.Millisecond, time.Minute, true, func(context.Context) (bool, error) {
		last = try()
		return last == nil, nil
	})
	if err != nil {
		t.Fatalf("%s: %v: %v", what, err, last)
	}
}
