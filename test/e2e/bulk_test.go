package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
)

// TestAThousandKeysAtOnce applies 1,000 keys by one kustomization; all become Enforced and no log holds an error.
func TestAThousandKeysAtOnce(t *testing.T) {
	const count = 1000
	tn := newTenant(t)
	before := logSizes(t)
	var manifest strings.Builder
	for i := range count {
		fmt.Fprintf(&manifest, `---
apiVersion: latchkey.dev/v1alpha1
kind: APIKey
metadata: {name: bulk-%04d, namespace: %s}
spec:
  applicationRef: {name: shop}
  displayName: Bulk %d
  capabilities: [TextGeneration]
  models: {access: All}
`, i, tn.namespace, i)
	}
	dir := t.TempDir()
	for name, content := range map[string]string{
		"keys.yaml":          manifest.String(),
		"kustomization.yaml": "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [keys.yaml]\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := theStack.Kubectl(t.Context(), "apply", "--server-side", "-k", dir); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all keys are enforced", func() error {
		var list v1alpha1.APIKeyList
		if err := theStack.Client.List(t.Context(), &list, client.InNamespace(tn.namespace)); err != nil {
			return err
		}
		enforced := 0
		for i := range list.Items {
			if isTrue(list.Items[i].Status.Conditions, v1alpha1.ConditionEnforced) && isTrue(list.Items[i].Status.Conditions, v1alpha1.ConditionReady) {
				enforced++
			}
		}
		if enforced != count {
			return fmt.Errorf("%d of %d are", enforced, count)
		}
		return nil
	})
	for _, complaint := range complaints(t, before) {
		t.Errorf("logged: %s", complaint)
	}
}

func logSizes(t *testing.T) map[string]int64 {
	t.Helper()
	sizes := map[string]int64{}
	for _, name := range []string{"manager-0", "enforcer"} {
		info, err := os.Stat(theStack.LogFile(name))
		if err != nil {
			t.Fatal(err)
		}
		sizes[name] = info.Size()
	}
	return sizes
}

// complaints are the lines of level error that have been logged since.
func complaints(t *testing.T, since map[string]int64) []string {
	t.Helper()
	var found []string
	for name, offset := range since {
		file, err := os.Open(theStack.LogFile(name))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := file.Seek(offset, 0); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(file)
		for lines.Scan() {
			var line struct {
				Level string `json:"level"`
			}
			if json.Unmarshal(lines.Bytes(), &line) != nil || line.Level == "ERROR" {
				found = append(found, name+": "+lines.Text())
			}
		}
		_ = file.Close()
	}
	return found
}
