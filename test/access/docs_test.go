package access

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
)

// TestDocumentation runs every command of docs/access.md, in its order. Those with "# refused" have to be.
func TestDocumentation(t *testing.T) {
	content, err := os.ReadFile(filepath.Join(server.root, "docs", "access.md"))
	if err != nil {
		t.Fatal(err)
	}
	var inBlock bool
	commands, refusals := 0, 0
	for line := range strings.Lines(string(content)) {
		line = strings.TrimSpace(line)
		switch {
		case line == "```sh":
			inBlock = true
			continue
		case strings.HasPrefix(line, "```"):
			inBlock = false
			continue
		case !inBlock || line == "":
			continue
		}
		commands++
		command, refused := strings.CutSuffix(line, " # refused")
		if refused {
			refusals++
			mustRefuse(t, command)
		} else {
			mustRun(t, command)
		}
		mintAll(t, "demo")
	}
	if commands < 30 || refusals < 12 {
		t.Errorf("docs/access.md has %d commands, of which %d are refused: is the page still read rightly?", commands, refusals)
	}
	takeBack(t)
}

// mustRun runs a command. What was granted by the one before it takes the API server a moment to heed.
func mustRun(t *testing.T, command string) {
	t.Helper()
	await(t, command, func() error {
		out, err := shell(t.Context(), command)
		if err != nil && !saysNo(out) {
			t.Fatalf("%s: %v\n%s", command, err, out)
		}
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}

// mustRefuse runs a command that must fail, and where it would change something tries that without effect until it is refused.
func mustRefuse(t *testing.T, command string) {
	t.Helper()
	if strings.HasPrefix(command, "kubectl delete ") || strings.HasPrefix(command, "kubectl patch ") {
		await(t, command+" is refused", func() error {
			if out, err := shell(t.Context(), command+" --dry-run=server"); err == nil {
				return errors.New(out)
			}
			return nil
		})
	}
	out, err := shell(t.Context(), command)
	if err == nil || !saysNo(out) {
		t.Errorf("%s: %v, which is to be refused\n%s", command, err, out)
	}
}

// saysNo says whether kubectl's answer is a refusal for want of rights, or by a policy.
func saysNo(out string) bool {
	return strings.Contains(strings.ToLower(out), "forbidden") || strings.HasPrefix(out, "no\n") || strings.HasSuffix(out, "\nno\n")
}

// mintAll does the manager's part for the keys that have no Secret yet.
func mintAll(t *testing.T, namespace string) {
	t.Helper()
	var keys v1alpha1.APIKeyList
	if err := server.admin.List(t.Context(), &keys, client.InNamespace(namespace)); err != nil {
		t.Fatal(err)
	}
	for i := range keys.Items {
		if keys.Items[i].Status.SecretName == "" {
			mint(t, &keys.Items[i])
		}
	}
}

// takeBack undoes what the page does to the whole cluster, and waits until that is heeded, for the sake of the other tests: they must
// neither find anything granted to everybody, nor take a guard for up that is about to go.
func takeBack(t *testing.T) {
	t.Helper()
	for _, name := range []string{"latchkey-catalog", "latchkey-auditors", "latchkey-operators"} {
		if err := server.admin.Delete(t.Context(), &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: name}}); err != nil {
			t.Fatal(err)
		}
	}
	mustRun(t, "kubectl delete -k config/guard/secrets")
	key, secret := newKey(newNamespace(t, nil), "last", "Last"), database("demo")
	secret.Name = "last"
	mustCreate(t, key, secret)
	ada, anybody := clientAs(t, "ada"), clientAs(t, "anybody")
	await(t, "all is as it was", func() error {
		if err := anybody.List(t.Context(), &v1alpha1.ModelList{}); !apierrors.IsForbidden(err) {
			return fmt.Errorf("anybody lists models: %w", err)
		}
		overwrite := client.RawPatch(types.MergePatchType, []byte(`{"data":{"password":"b3RoZXI="}}`))
		return errors.Join(server.admin.Delete(t.Context(), key, client.DryRunAll), ada.Patch(t.Context(), secret, overwrite, client.DryRunAll))
	})
}
