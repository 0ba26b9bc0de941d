package story

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestPages runs the commands of the pages that have no transcript: each ```sh block, line by line, in one shell for each page. A line that
// ends with "# refused" has to fail.
func TestPages(t *testing.T) {
	for page, least := range map[string]int{"docs/quickstart.md": 12, "docs/rotation.md": 1, "docs/limits.md": 1, "docs/gitops.md": 6} {
		t.Run(page, func(t *testing.T) {
			content, err := os.ReadFile(filepath.Join(system.Root, filepath.FromSlash(page)))
			if err != nil {
				t.Fatal(err)
			}
			lines := commandsOf(string(content))
			if len(lines) < least {
				t.Fatalf("%d commands: is the page still read rightly?", len(lines))
			}
			s := newShell(t, "")
			s.must("ln -s '" + system.Root + "/config' config")
			s.must("export KUBECONFIG=$PWD/.run/kubeconfig PATH=$PWD/bin:$PATH LATCHKEY_GATEWAY=" + usualGateway)
			s.must("export OPENAI_BASE_URL=" + usualGateway + "/v1 OPENAI_API_KEY=$(kubectl latchkey create key holder --app holder --create-app --yes -n " + newNamespace(t) + " 2>/dev/null)")
			s.must("kubectl create namespace argocd --dry-run=client -o yaml | kubectl apply -f -") // as if Argo CD were here
			// What a page leaves turned on is not for the next one.
			t.Cleanup(func() {
				if page == "docs/gitops.md" {
					s.must("kubectl latchkey delete key assistant --confirm Assistant -n demo")
				}
				s.must("kubectl delete -k config/guard --ignore-not-found")
				s.must(`kubectl patch systempolicy default --type merge -p '{"spec":{"reveal":{"retain":null}}}'`)
			})
			for _, line := range lines {
				command, refused := strings.CutSuffix(line, " # refused")
				if out, code := s.run(command); (code != 0) != refused {
					t.Fatalf("%s: exit code %d\n%s", line, code, out)
				}
			}
		})
	}
}

// TestReadme runs the lines that README gives beside its session.
func TestReadme(t *testing.T) {
	content, err := os.ReadFile(filepath.Join(system.Root, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, try, _ := section(t, string(content), "## Try it")
	_, key, _ := section(t, string(content), "## A key")
	s := newShell(t, "")
	s.must("export KUBECONFIG=$PWD/.run/kubeconfig PATH=$PWD/bin:$PATH")
	s.must("export OPENAI_API_KEY=$(kubectl latchkey create key holder --app holder --create-app --yes -n " + newNamespace(t) + " 2>/dev/null)")
	for _, line := range commandsOf(try) {
		if line != "make run" { // it stands for what this test has started
			s.must(line)
		}
	}
	_, yaml, there := strings.Cut(key, "```yaml\n")
	yaml, _, ends := strings.Cut(yaml, "```")
	if !there || !ends {
		t.Fatal("README shows no key")
	}
	namespace := newNamespace(t)
	s.must("cat > key.yaml <<'YAML'\n" + strings.ReplaceAll(yaml, "namespace: demo", "namespace: "+namespace) + "YAML")
	for line := range strings.Lines(key) {
		if line, is := strings.CutPrefix(strings.TrimSpace(line), "$ "); is {
			s.must(strings.ReplaceAll(line, "-n demo", "-n "+namespace))
		}
	}
}

// TestNoPageIsLeftOut keeps a list of the pages with commands, and of the test that runs them.
func TestNoPageIsLeftOut(t *testing.T) {
	tested := map[string]string{
		"README.md":                 "TestStory, TestReadme",
		"docs/story.md":             "TestStory",
		"docs/quickstart.md":        "TestPages",
		"docs/rotation.md":          "TestPages",
		"docs/limits.md":            "TestPages",
		"docs/gitops.md":            "TestPages",
		"docs/access.md":            "test/access, TestDocumentation",
		"docs/gateways.md":          "test/gateways, TestPage",
		"docs/operations.md":        "test/chart, TestDocuments",
		"charts/latchkey/README.md": "test/chart, TestDocuments",
	}
	for _, pattern := range []string{"*.md", "docs/*.md", "docs/api/*.md", "charts/*/*.md", "config/*/*.md"} {
		pages, err := filepath.Glob(filepath.Join(system.Root, filepath.FromSlash(pattern)))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range pages {
			content, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			page, err := filepath.Rel(system.Root, path)
			if err != nil {
				t.Fatal(err)
			}
			has := strings.Contains(string(content), "```sh\n") || strings.Contains(string(content), "```console\n")
			if _, listed := tested[filepath.ToSlash(page)]; has && !listed {
				t.Errorf("%s has commands, and no test runs them", page)
			}
		}
	}
}

// commandsOf are the commands in the sh blocks of a page. One goes on where a line ends with a backslash, and to the end of what it reads
// from << 'YAML'.
func commandsOf(page string) (commands []string) {
	inBlock, until := false, ""
	var command strings.Builder
	for line := range strings.Lines(page) {
		text := strings.TrimSuffix(line, "\n")
		switch {
		case !inBlock:
			inBlock = text == "```sh"
			continue
		case text == "```":
			inBlock = false
			continue
		case until != "":
			if text == until {
				until = ""
			}
		case strings.HasSuffix(text, "<<'YAML'"):
			until = "YAML"
		}
		if command.Len() > 0 {
			command.WriteByte('\n')
		}
		command.WriteString(text)
		if until == "" && !strings.HasSuffix(text, `\`) {
			if command.Len() > 0 {
				commands = append(commands, command.String())
			}
			command.Reset()
		}
	}
	return commands
}

func TestCommandsOf(t *testing.T) {
	got := commandsOf("x\n```sh\na \\\n  b\nc <<'YAML'\nd: \\\n\ne\nYAML\n\nf # refused\n```\n```yaml\ng\n```\n")
	want := []string{"a \\\n  b", "c <<'YAML'\nd: \\\n\ne\nYAML", "f # refused"}
	if strings.Join(got, "|") != strings.Join(want, "|") {
		t.Errorf("%q", got)
	}
}
