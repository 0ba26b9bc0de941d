package gateways

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestPage runs the commands of docs/gateways.md, from the repository's root: those of kubectl as they stand. The chart's installation is
// rendered only, and Envoy Gateway's, whose chart would have to be fetched, is held against the version that is tested here.
func TestPage(t *testing.T) {
	page, err := os.ReadFile(filepath.Join(theStack.Root, "docs/gateways.md"))
	if err != nil {
		t.Fatal(err)
	}
	helm := os.Getenv("LATCHKEY_HELM")
	if helm == "" {
		t.Fatal("LATCHKEY_HELM is not set: run this through `make test`, which builds Helm, or set it to what hack/helm.sh prints")
	}
	t.Cleanup(func() { // so that the page can be run again
		if _, err := theStack.Kubectl(context.WithoutCancel(t.Context()), "delete", "secret", "llm-providers", "-n", "latchkey-system"); err != nil {
			t.Error(err)
		}
	})
	ran := 0
	for _, block := range strings.Split(string(page), "```sh\n")[1:] {
		block, _, _ = strings.Cut(block, "\n```")
		for command := range strings.SplitSeq(strings.ReplaceAll(block, "\\\n", ""), "\n") {
			switch {
			case strings.HasPrefix(command, "kubectl "):
			case strings.Contains(command, "oci://docker.io/envoyproxy/gateway-helm "):
				if want := " --version " + pinned(t, "hack/gateways/envoygateway", "github.com/envoyproxy/gateway") + " "; !strings.Contains(command, want) {
					t.Errorf("%s: want%s", command, want)
				}
				if _, values, _ := strings.Cut(command, " --values "); values != "config/gateways/envoy-gateway/values.yaml" {
					t.Errorf("%s: the values are not those that are tested", command)
				}
				continue
			case strings.HasPrefix(command, "helm install latchkey charts/latchkey "):
				command = strings.Replace(command, "helm install", filepath.Join(helm, "helm4")+" template", 1)
			default:
				t.Fatalf("%q: nobody knows how to try this", command)
			}
			ran++
			cmd := exec.CommandContext(t.Context(), "bash", "-euo", "pipefail", "-c", command)
			cmd.Dir = theStack.Root
			cmd.Env = append(os.Environ(), "KUBECONFIG="+theStack.Kubeconfig(), "OPENAI_API_KEY=sk-openai", "ANTHROPIC_API_KEY=sk-anthropic",
				"PATH="+os.Getenv("KUBEBUILDER_ASSETS")+string(os.PathListSeparator)+os.Getenv("PATH"))
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%s: %v\n%s", command, err, out)
			}
		}
	}
	if ran < 5 {
		t.Errorf("%d commands: is the page still read rightly?", ran)
	}
}
