package controlplane

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// playParent makes the test binary start a control plane and wait to be killed, see TestProgramsDieWithTheirParent.
const playParent = "LATCHKEY_TEST_PLAY_PARENT"

const patience = time.Minute

func TestMain(m *testing.M) {
	if os.Getenv(playParent) != "" {
		if err := startAndWait(); err != nil {
			_, _ = fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	goleak.VerifyTestMain(m)
}

func TestLifecycle(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	var progress strings.Builder
	cp, err := Start(ctx, Options{Dir: dir, InstallCRDs: true, Log: &progress})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cp.Stop(); err != nil {
			t.Error(err)
		}
	})
	admin := clientFor(t, cp.Config())
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "kept"}}
	if _, err := admin.CoreV1().Namespaces().Create(ctx, namespace, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := admin.RESTClient().Get().AbsPath("/apis/latchkey.dev/v1alpha1/applications").Do(ctx).Error(); err != nil {
		t.Errorf("list applications after the installation of the CRDs: %v", err)
	}
	if err := admin.RESTClient().Get().AbsPath("/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies").Do(ctx).Error(); err != nil {
		t.Errorf("list ValidatingAdmissionPolicies: %v", err)
	}

	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "worker"}}
	if _, err := admin.CoreV1().ServiceAccounts("kept").Create(ctx, account, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := cp.ServiceAccountConfig(ctx, "kept", "nobody"); !apierrors.IsNotFound(err) {
		t.Errorf("ServiceAccountConfig of an account that does not exist: got %v, want not found", err)
	}
	config, kubeconfig, err := cp.ServiceAccountConfig(ctx, "kept", "worker")
	if err != nil {
		t.Fatal(err)
	}
	fromFile, err := clientcmd.RESTConfigFromKubeConfig(kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	for name, config := range map[string]*rest.Config{"config": config, "kubeconfig": fromFile} {
		if got, want := userOf(t, config), "system:serviceaccount:kept:worker"; got != want {
			t.Errorf("%s of the service account: the API server takes it for %q, want %q", name, got, want)
		}
	}
	if _, err := clientFor(t, config).CoreV1().Secrets("kept").List(ctx, metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("list secrets by a service account without a role: got %v, want forbidden", err)
	}

	path := filepath.Join(dir, "kubeconfig")
	if err := cp.WriteKubeconfig(path); err != nil {
		t.Fatal(err)
	}
	adminFromFile, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		t.Fatal(err)
	}
	if got := userOf(t, adminFromFile); got != "admin" {
		t.Errorf("WriteKubeconfig: the API server takes its bearer for %q, want admin", got)
	}
	if kubectl, err := cp.Kubectl(); err != nil {
		t.Error(err)
	} else if out, err := exec.CommandContext(ctx, kubectl, "--kubeconfig", path, "get", "namespace", "kept", "-o", "name").CombinedOutput(); err != nil || string(out) != "namespace/kept\n" {
		t.Errorf("kubectl get namespace kept: %v: %s", err, out)
	}

	t.Log("the API server goes away and comes back at the same address with the same data")
	if err := cp.StartAPIServer(ctx); err == nil {
		t.Error("StartAPIServer while it runs: got no error")
	}
	if err := cp.StopAPIServer(); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.CoreV1().Namespaces().Get(ctx, "kept", metav1.GetOptions{}); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("get namespace while the API server is away: got %v, want connection refused", err)
	}
	if err := cp.StartAPIServer(ctx); err != nil {
		t.Fatal(err)
	}
	for name, client := range map[string]*kubernetes.Clientset{"the administrator": admin, "the service account": clientFor(t, config)} {
		if _, err := client.AuthenticationV1().SelfSubjectReviews().Create(ctx, &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{}); err != nil {
			t.Errorf("the credentials of %s after a restart of the API server: %v", name, err)
		}
	}
	if _, err := admin.CoreV1().Namespaces().Get(ctx, "kept", metav1.GetOptions{}); err != nil {
		t.Errorf("get namespace after a restart of the API server: %v", err)
	}

	t.Log("another control plane carries on in the same directory")
	if err := cp.Stop(); err != nil {
		t.Fatal(err)
	}
	if cp, err = Start(ctx, Options{Dir: dir}); err != nil {
		t.Fatal(err)
	}
	if _, err := clientFor(t, cp.Config()).CoreV1().Namespaces().Get(ctx, "kept", metav1.GetOptions{}); err != nil {
		t.Errorf("get namespace from the next control plane: %v", err)
	}
	for _, name := range []string{"etcd.log", "kube-apiserver.log"} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Size() == 0 {
			t.Errorf("log %s: %v, %v", name, info, err)
		}
	}
	for _, want := range []string{"etcd listens", "kube-apiserver listens", "CRDs"} {
		if !strings.Contains(progress.String(), want) {
			t.Errorf("progress does not say %q:\n%s", want, progress.String())
		}
	}
}

func TestProgramsDieWithTheirParent(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux has a signal for the parent's death")
	}
	parent := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^$")
	parent.Env = append(os.Environ(), playParent+"="+t.TempDir())
	parent.Stderr = os.Stderr
	stdout, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	var pids []int
	line, readErr := bufio.NewReader(stdout).ReadBytes('\n')
	if err := errors.Join(readErr, json.Unmarshal(line, &pids)); err != nil || len(pids) != 2 {
		t.Errorf("read the programs' process ids: got %q: %v", line, err)
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, 0); err != nil {
			t.Errorf("process %d does not run: %v", pid, err)
		}
	}
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = parent.Wait() // it says "signal: killed"
	for _, pid := range pids {
		err := wait.PollUntilContextTimeout(t.Context(), 20*time.Millisecond, patience, true, func(context.Context) (bool, error) {
			return gone(pid), nil
		})
		if err != nil {
			t.Errorf("process %d outlives its parent", pid)
		}
	}
}

// gone reports whether the process has ended; one that waits for init to collect it has.
func gone(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	_, afterName, _ := strings.Cut(string(stat), ") ")
	return strings.HasPrefix(afterName, "Z")
}

// startAndWait is the parent's part in TestProgramsDieWithTheirParent. It does not return but on an error.
func startAndWait() error {
	cp, err := Start(context.Background(), Options{Dir: os.Getenv(playParent)})
	if err != nil {
		return err
	}
	if err := json.NewEncoder(os.Stdout).Encode([]int{cp.etcd.cmd.Process.Pid, cp.apiServer.cmd.Process.Pid}); err != nil {
		return errors.Join(err, cp.Stop())
	}
	_, _ = io.Copy(io.Discard, waitForEver{})
	return nil
}

type waitForEver struct{}

func (waitForEver) Read([]byte) (int, error) { select {} }

func TestFindAssets(t *testing.T) {
	full, empty := t.TempDir(), t.TempDir()
	for _, name := range []string{"etcd", "kube-apiserver"} {
		if err := os.WriteFile(filepath.Join(full, name), nil, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	root, err := Root()
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		given, environment string
		want               string
		wantError          []string
	}{
		"the folder given comes first":                      {given: full, environment: empty, want: full},
		"the environment's folder comes next":               {environment: full, want: full},
		"the folder that make builds into comes last":       {want: filepath.Join(root, "bin", "k8s", Version)},
		"a folder without the programs names what to do":    {given: empty, wantError: []string{"kube-apiserver and etcd", empty, "make test", "make run", "KUBEBUILDER_ASSETS"}},
		"a wrong environment is not passed over in silence": {environment: empty, wantError: []string{"kube-apiserver and etcd", empty, "KUBEBUILDER_ASSETS"}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := findAssets(tc.given, func(name string) string {
				return map[string]string{"KUBEBUILDER_ASSETS": tc.environment}[name]
			})
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("findAssets (-want +got):\n%s", diff)
			}
			if (err != nil) != (tc.wantError != nil) {
				t.Fatalf("findAssets: got error %v, want one that says %q", err, tc.wantError)
			}
			for _, want := range tc.wantError {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("findAssets: got error %q, want it to say %q", err, want)
				}
			}
		})
	}
}

func TestVersionIsTheOneThatIsBuilt(t *testing.T) {
	root, err := Root()
	if err != nil {
		t.Fatal(err)
	}
	mod, err := os.ReadFile(filepath.Join(root, "hack", "controlplane", "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	match := regexp.MustCompile(`k8s\.io/kubernetes v(\S+)`).FindSubmatch(mod)
	if match == nil {
		t.Fatal("hack/controlplane/go.mod does not name k8s.io/kubernetes")
	}
	if got := string(match[1]); got != Version {
		t.Errorf("hack/controlplane builds Kubernetes %s, this package looks for %s", got, Version)
	}
}

func clientFor(t *testing.T, config *rest.Config) *kubernetes.Clientset {
	t.Helper()
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func userOf(t *testing.T, config *rest.Config) string {
	t.Helper()
	review, err := clientFor(t, config).AuthenticationV1().SelfSubjectReviews().Create(t.Context(), &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return review.Status.UserInfo.Username
}
