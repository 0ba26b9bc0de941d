package story

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"sigs.k8s.io/controller-runtime/pkg/client"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	"github.com/latchkey-dev/latchkey/internal/cli"
	"github.com/latchkey-dev/latchkey/test/terminal"
)

// example is what stands under one comment of a page's examples.
type example struct {
	page, title, lines string
}

// examplesOf reads the examples of a page.
func examplesOf(page, content string) (all []example) {
	_, after, found := strings.Cut(content, "\n## Examples\n\n```sh\n")
	if !found {
		return nil
	}
	block, _, _ := strings.Cut(after, "\n```\n")
	for line := range strings.Lines(block) {
		text := strings.TrimRight(line, "\n")
		title, isTitle := strings.CutPrefix(text, "# ")
		switch {
		case isTitle:
			all = append(all, example{page: page, title: title})
		case text == "":
		case len(all) == 0:
			all = append(all, example{page: page, title: "the example", lines: text + "\n"})
		default:
			all[len(all)-1].lines += text + "\n"
		}
	}
	return all
}

// dialogue is what a person sees and types where an example asks, or goes on until it is stopped.
type dialogue struct {
	shows, types string
	code         int
}

// dialogues are those of the examples that match. What asks and is not among them fails, for there is nobody to answer.
var dialogues = []struct {
	pattern *regexp.Regexp
	dialogue
}{
	{regexp.MustCompile(`^kubectl latchkey delete key shop-backend -n \S+\n$`), dialogue{`Type "Shop backend" to delete it: `, "Shop backend\n", 0}},
	{regexp.MustCompile(`^kubectl latchkey get keys .* -w\n$`), dialogue{"shop-backend", "\x03", 130}},
}

// TestExamples runs every example of docs/cli, each in a namespace of its own, in which there is what it speaks of.
func TestExamples(t *testing.T) {
	pages, err := filepath.Glob(filepath.Join(system.Root, "docs", "cli", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	ran, commands := 0, 0
	for _, page := range pages {
		content, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		examples := examplesOf(filepath.Base(page), string(content))
		if len(examples) == 0 && strings.Contains(string(content), "\n## Usage\n") {
			t.Errorf("%s has no examples, or they are not where they are looked for", page)
		}
		for _, e := range examples {
			ran++
			commands += strings.Count(e.lines, "kubectl latchkey ")
			t.Run(e.page+"/"+e.title, func(t *testing.T) {
				if !strings.Contains(e.lines, "latchkey doctor") { // which sees the keys of the others, and would have them in order
					t.Parallel()
				}
				e.run(t)
			})
		}
	}
	if ran < 50 || commands < ran {
		t.Errorf("%d examples with %d commands were found; there are more", ran, commands)
	}
}

func (e example) run(t *testing.T) {
	namespace := newNamespace(t)
	lines := strings.NewReplacer("-n demo", "-n "+namespace, "https://llm.example.com", system.GatewayURL(), usualGateway, system.GatewayURL()).Replace(e.lines)
	dir, env := environment(t, namespace)
	env = append(env, e.prepare(t, namespace, dir)...)
	env = append(env, "KUBECONFIG="+filepath.Join(dir, ".run", "kubeconfig"), "LATCHKEY_GATEWAY="+system.GatewayURL(),
		"PATH="+filepath.Join(dir, "bin")+string(os.PathListSeparator)+os.Getenv("PATH"))
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "--norc", "--noprofile", "-uo", "pipefail", "-c", lines)
	cmd.Dir, cmd.Env = dir, env
	for _, d := range dialogues {
		if d.pattern.MatchString(lines) {
			s := terminal.Start(t, cmd)
			s.Expect(d.shows)
			s.Write(d.types)
			s.Ends(d.code)
			return
		}
	}
	out, err := cmd.CombinedOutput()
	if err != nil || codeOf(string(out)) != 0 { // of what stands in $( ) the exit code is lost
		t.Errorf("%s%v\n%s", lines, err, out)
	}
	silent := strings.Contains(lines, "$(") || strings.Contains(lines, " > ")
	if len(out) == 0 && !silent {
		t.Errorf("%sprints nothing", lines)
	}
}

// prepare makes what an example speaks of: the application shop and its key shop-backend, unless it is the example that makes them, and
// with it what else is needed.
func (e example) prepare(t *testing.T, namespace, dir string) (env []string) {
	t.Helper()
	creates := func(what string) bool { return strings.Contains(e.lines, "latchkey create "+what) }
	if !creates("app shop") && !strings.Contains(e.lines, "--create-app") {
		mustCreate(t, &v1alpha1.Application{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "shop"}, Spec: v1alpha1.ApplicationSpec{DisplayName: "Online shop"},
		})
	}
	if !creates("") {
		k := newKey(t, namespace, "shop-backend", "Shop backend")
		switch {
		case strings.Contains(e.lines, "set key shop-backend --overlap"):
			change(t, k, `{"spec":{"rotation":{"generation":1}}}`)
			await(t, k, "the key is rotated", func() bool { return k.Status.Rotation != nil && k.Status.Rotation.Generation == 1 && isEnforced(k) })
		case strings.Contains(e.lines, "why.json ||"): // what refuses is looked for
			change(t, k, `{"spec":{"state":"Disabled"}}`)
		}
	}
	if strings.Contains(e.lines, "latchkey try ") && !strings.Contains(e.lines, "--app") {
		caller := newKey(t, namespace, "caller", "Of the one at the keyboard")
		plaintext, err := cli.Claim(t.Context(), system.Client, client.ObjectKeyFromObject(caller))
		if err != nil {
			t.Fatal(err)
		}
		env = append(env, "OPENAI_API_KEY="+plaintext.Reveal())
	}
	if strings.Contains(e.lines, "git diff") {
		changed(t, dir)
	}
	return env
}

func change(t *testing.T, obj client.Object, patch string) {
	t.Helper()
	if err := system.Client.Patch(t.Context(), obj, client.RawPatch(types.MergePatchType, []byte(patch))); err != nil {
		t.Fatal(err)
	}
}

func newKey(t *testing.T, namespace, name, displayName string) *v1alpha1.APIKey {
	t.Helper()
	k := &v1alpha1.APIKey{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{"team": "shop"}},
		Spec: v1alpha1.APIKeySpec{
			ApplicationRef: v1alpha1.ApplicationReference{Name: "shop"}, DisplayName: v1alpha1.DisplayName(displayName),
			Capabilities: []v1alpha1.Capability{v1alpha1.CapabilityTextGeneration}, Models: v1alpha1.ModelScope{Access: v1alpha1.ModelAccessAll},
		},
	}
	mustCreate(t, k)
	await(t, k, "the key is enforced", func() bool { return isEnforced(k) })
	return k
}

// changed makes a directory a repository in which something has changed.
func changed(t *testing.T, dir string) {
	t.Helper()
	const script = `git init -q . && echo one > notes.txt && git add notes.txt && echo two >> notes.txt`
	cmd := exec.CommandContext(t.Context(), "sh", "-c", script)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatal(fmt.Errorf("make a repository: %w: %s", err, out))
	}
}

func TestExamplesOf(t *testing.T) {
	const page = "# x\n\n## Examples\n\n```sh\n# One\na\nb\n\n# Two\nc\n```\n\n## Flags\n\n```sh\nd\n```\n"
	got := examplesOf("p", page)
	if len(got) != 2 || got[0] != (example{"p", "One", "a\nb\n"}) || got[1] != (example{"p", "Two", "c\n"}) {
		t.Errorf("%+v", got)
	}
	if got := examplesOf("p", "# x\n\n## Examples\n\n```sh\na\n```\n"); len(got) != 1 || got[0].lines != "a\n" {
		t.Errorf("%+v", got)
	}
}
