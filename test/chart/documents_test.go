package chart

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/latchkey-dev/latchkey/test/controlplane"
)

// TestDocuments runs the commands of the pages that tell how to install, upgrade and remove, each page on an API server of its own, from
// the repository's root. Nothing runs the Pods there, so that `doctor` has something to find.
func TestDocuments(t *testing.T) {
	for page, least := range map[string]int{"docs/operations.md": 6, "charts/latchkey/README.md": 1, "README.md": 1} {
		t.Run(page, func(t *testing.T) {
			t.Parallel()
			content, err := os.ReadFile(filepath.Join(server.root, filepath.FromSlash(page)))
			if err != nil {
				t.Fatal(err)
			}
			text := string(content)
			if page == "README.md" { // its other sections are test/story's
				_, text, _ = strings.Cut(text, "\n## Install\n")
				text, _, _ = strings.Cut(text, "\n## ")
			}
			commands := consoleOf(text)
			if len(commands) < least {
				t.Fatalf("%d commands: is the page still read rightly?", len(commands))
			}
			dir := t.TempDir()
			own, err := controlplane.Start(t.Context(), controlplane.Options{Dir: filepath.Join(dir, "controlplane")})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := own.Stop(); err != nil {
					t.Error(err)
				}
			})
			kubeconfig := filepath.Join(dir, "kubeconfig")
			if err := own.WriteKubeconfig(kubeconfig); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, "path")
			// No kube-controller-manager empties a namespace here, so its end is not waited for.
			shims := map[string]string{
				"helm":             `exec "$LATCHKEY_HELM/helm4" "$@"`,
				"kubectl":          `if [ "$1 $2" = "delete namespace" ]; then set -- "$@" --wait=false; fi; exec "$ROOT/bin/kubectl" "$@"`,
				"kubectl-latchkey": `exec "$ROOT/bin/kubectl-latchkey" "$@"`,
			}
			if err := os.Mkdir(path, 0o755); err != nil {
				t.Fatal(err)
			}
			for name, body := range shims {
				if err := os.WriteFile(filepath.Join(path, name), []byte("#!/bin/bash\n"+body+"\n"), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			env := []string{
				"KUBECONFIG=" + kubeconfig, "ROOT=" + server.root, "PATH=" + path + ":" + os.Getenv("PATH"),
				"HELM_CACHE_HOME=" + dir, "HELM_CONFIG_HOME=" + dir, "HELM_DATA_HOME=" + dir,
			}
			for _, command := range commands {
				out, err := run(t.Context(), env, "bash", "-c", "cd \"$ROOT\" && "+command)
				if command == "kubectl latchkey doctor" {
					if err == nil || !strings.Contains(out, "manager") {
						t.Errorf("%s: %v\n%s", command, err, out)
					}
				} else if err != nil {
					t.Fatalf("%v\n%s", err, out)
				}
			}
			if page == "charts/latchkey/README.md" { // the others remove what they have installed
				runNotes(t, env)
			}
		})
	}
}

// runNotes runs what the chart's notes give to make a provider and a model.
func runNotes(t *testing.T, env []string) {
	t.Helper()
	notes, err := run(t.Context(), env, "bash", "-c", "helm get notes latchkey -n latchkey-system")
	must(t, notes, err)
	_, commands, there := strings.Cut(notes, "2. ")
	_, commands, begins := strings.Cut(commands, "\n\n")
	commands, _, ends := strings.Cut(commands, "\n\n3. ")
	if !there || !begins || !ends {
		t.Fatalf("are the notes still read rightly?\n%s", notes)
	}
	script := "set -eu; cd \"$ROOT\"\n" + strings.ReplaceAll("\n"+commands, "\n     ", "\n")
	if out, err := run(t.Context(), append(env, "PROVIDER_KEY=sk-example"), "bash", "-c", script); err != nil || !strings.Contains(out, "model.latchkey.dev/gpt-5-mini created") {
		t.Errorf("%v\n%s", err, out)
	}
}

// consoleOf are the commands of a page's console blocks, those that need no more than an installation.
func consoleOf(page string) (commands []string) {
	inBlock := false
	for line := range strings.Lines(page) {
		line = strings.TrimSuffix(line, "\n")
		switch {
		case strings.HasPrefix(line, "```"):
			inBlock = line == "```console"
		case inBlock && strings.HasPrefix(line, "$ "):
			commands = append(commands, line[2:])
		}
	}
	return commands
}
