package cli

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/latchkey-dev/latchkey/test/controlplane"
)

// TestThroughKubectl has kubectl itself find the plugin, and its completions.
func TestThroughKubectl(t *testing.T) {
	root, err := controlplane.Root()
	if err != nil {
		t.Fatal(err)
	}
	kubectl, err := exec.LookPath(filepath.Join(os.Getenv("KUBEBUILDER_ASSETS"), "kubectl"))
	if err != nil {
		if kubectl, err = exec.LookPath(filepath.Join(root, "bin", "kubectl")); err != nil {
			t.Skip("there is no kubectl here")
		}
	}
	ns := newNamespace(t)
	newKey(t, ns, "through-kubectl")
	dir := filepath.Dir(server.binary)
	link := filepath.Join(dir, "kubectl_complete-latchkey")
	if err := os.Symlink(server.binary, link); err != nil && !os.IsExist(err) {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		args []string
		want string
	}{
		"a command":    {[]string{"latchkey", "get", "keys", "-n", ns}, "through-kubectl"},
		"a completion": {[]string{"__complete", "latchkey", "why", "-n", ns, ""}, "through-kubectl"},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), kubectl, test.args...)
			cmd.Env = append(os.Environ(), "KUBECONFIG="+server.kubeconfig, "PATH="+dir+":"+os.Getenv("PATH"))
			out, err := cmd.CombinedOutput()
			if err != nil || !strings.Contains(string(out), test.want) {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
}
