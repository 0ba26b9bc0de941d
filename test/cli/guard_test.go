package cli

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	"github.com/latchkey-dev/latchkey/test/controlplane"
)

const annotationConfirm = "latchkey.dev/confirm-deletion"

// guarded installs config/guard for the length of a test, and waits until it asks.
func guarded(t *testing.T) (namespace string) {
	t.Helper()
	root, err := controlplane.Root()
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(filepath.Join(root, "config", "guard", "apikeys.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	namespace = newNamespace(t)
	canary := newKey(t, namespace, "canary")
	// The API server reads its policies by a watch.
	awaitGuard := func(asks bool) {
		ctx := context.WithoutCancel(t.Context())
		for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
			err := server.client.Delete(ctx, canary, client.DryRunAll)
			if apierrors.IsForbidden(err) == asks {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("the guard asks: %v, want %v: %v", !asks, asks, err)
			}
		}
	}
	t.Cleanup(func() { awaitGuard(false) })
	decoder := yaml.NewYAMLOrJSONDecoder(file, 4096)
	for {
		obj := &unstructured.Unstructured{}
		if err := decoder.Decode(obj); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if err := server.client.Create(t.Context(), obj); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := server.client.Delete(context.WithoutCancel(t.Context()), obj); err != nil {
				t.Error(err)
			}
		})
	}
	awaitGuard(true)
	return namespace
}

// allowed lets a user do some things with the keys of a namespace.
func allowed(t *testing.T, namespace, user string, verbs ...string) {
	t.Helper()
	meta := metav1.ObjectMeta{Namespace: namespace, Name: user}
	for _, obj := range []client.Object{
		&rbacv1.Role{ObjectMeta: meta, Rules: []rbacv1.PolicyRule{{APIGroups: []string{v1alpha1.GroupVersion.Group}, Resources: []string{"apikeys"}, Verbs: verbs}}},
		&rbacv1.RoleBinding{
			ObjectMeta: meta, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: user},
			Subjects: []rbacv1.Subject{{Kind: rbacv1.UserKind, APIGroup: rbacv1.GroupName, Name: user}},
		},
	} {
		if err := server.client.Create(t.Context(), obj); err != nil {
			t.Fatal(err)
		}
	}
}

func isGone(t *testing.T, namespace, name string) bool {
	t.Helper()
	err := server.client.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: name}, &v1alpha1.APIKey{})
	if client.IgnoreNotFound(err) != nil {
		t.Fatal(err)
	}
	return err != nil
}

func TestDeleteKeyAnswersTheGuard(t *testing.T) {
	ns := guarded(t)
	newKey(t, ns, "plain")
	latchkey(t, ns, "delete", "key", "plain", "--confirm", "wrong").want(t, 1)
	latchkey(t, ns, "delete", "key", "plain", "--confirm", "plain", "--dry-run=server").want(t, 0, "plain deleted (server dry run)\n")
	latchkey(t, ns, "delete", "key", "plain", "--confirm", "plain", "--dry-run=client").want(t, 0)
	if k := get(t, keyNamed(ns, "plain")); len(k.Annotations) != 0 {
		t.Errorf("what has deleted nothing has left %v", k.Annotations)
	}
	latchkey(t, ns, "delete", "key", "plain", "--confirm", "plain").want(t, 0, "apikey.latchkey.dev/plain deleted\n")
	if !isGone(t, ns, "plain") {
		t.Error("the key is still there")
	}

	const quoted = `Ada's "shop" $HOME`
	newKey(t, ns, "quoted", func(k *v1alpha1.APIKey) {
		k.Spec.DisplayName, k.Annotations = quoted, map[string]string{annotationConfirm: "an old answer"}
	})
	latchkey(t, ns, "delete", "key", "quoted", "--confirm", quoted).want(t, 0, "deleted")

	allowed(t, ns, "deletes-only", "get", "delete")
	newKey(t, ns, "kept")
	refused := latchkey(t, ns, "--as", "deletes-only", "delete", "key", "kept", "--confirm", "kept")
	refused.want(t, 1)
	refused.silent(t)
	refused.says(t, "kubectl annotate --overwrite apikeys.latchkey.dev kept -n "+ns+" "+annotationConfirm+"='Key kept'")
	if strings.Contains(refused.stderr, "You lack this permission") {
		t.Errorf("the guard's refusal is taken for a lack of permission:\n%s", refused.stderr)
	}

	allowed(t, ns, "changes-only", "get", "patch")
	refused = latchkey(t, ns, "--as", "changes-only", "delete", "key", "kept", "--confirm", "kept")
	refused.want(t, 1)
	refused.says(t, "You lack this permission")
	if k := get(t, keyNamed(ns, "kept")); len(k.Annotations) != 0 {
		t.Errorf("a refused deletion has left the key without its guard: %v", k.Annotations)
	}
}

// TestDeleteKeyThatIsAnotherMeanwhile puts another key of the name in the place of the one that was agreed to be deleted.
func TestDeleteKeyThatIsAnotherMeanwhile(t *testing.T) {
	ns := newNamespace(t)
	k, replaced := newKey(t, ns, "one"), false
	kubeconfig := through(t, func(r *http.Request) {
		if r.Method != http.MethodPatch || replaced {
			return
		}
		replaced = true
		if err := server.client.Delete(t.Context(), k); err != nil {
			t.Error(err)
		}
		another := keyNamed(ns, "one")
		another.Spec = k.Spec
		if err := server.client.Create(t.Context(), another); err != nil {
			t.Error(err)
		}
	})
	latchkey(t, ns, "--kubeconfig", kubeconfig, "delete", "key", "one", "--confirm", "one").want(t, 1)
	if another := get(t, keyNamed(ns, "one")); another.UID == k.UID || len(another.Annotations) != 0 {
		t.Errorf("the other key: UID %s, annotations %v", another.UID, another.Annotations)
	}
}

// TestDeleteKeyOfWhoMayNotChangeIt: where there is no guard, the right to delete is enough.
func TestDeleteKeyOfWhoMayNotChangeIt(t *testing.T) {
	ns := newNamespace(t)
	newKey(t, ns, "gone")
	allowed(t, ns, "deletes-only", "get", "delete")
	latchkey(t, ns, "--as", "deletes-only", "delete", "key", "gone", "--confirm", "gone").want(t, 0, "deleted")
}

func TestTryDeletesItsKeyUnderTheGuard(t *testing.T) {
	ns := guarded(t)
	inPlaceOfManager(t, ns)
	g := newGateway(t, func(string) bool { return true })
	latchkey(t, ns, "try", "--gateway", g.URL, "--app", "shop", "--model", "gpt-5-mini", "Say hello.").want(t, 0)
	var keys v1alpha1.APIKeyList
	if err := server.client.List(t.Context(), &keys, client.InNamespace(ns)); err != nil {
		t.Fatal(err)
	}
	if len(keys.Items) != 1 || keys.Items[0].Name != "canary" {
		t.Errorf("%d keys are left, want the canary alone", len(keys.Items))
	}
}
