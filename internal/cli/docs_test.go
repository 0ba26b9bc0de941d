package cli

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericiooptions"
)

func newRoot() *cobra.Command {
	return NewCommand(genericiooptions.IOStreams{In: &bytes.Buffer{}, Out: &bytes.Buffer{}, ErrOut: &bytes.Buffer{}})
}

func TestPagesAreFresh(t *testing.T) {
	const dir = "../../docs/cli"
	pages := Pages(newRoot())
	files, err := filepath.Glob(filepath.Join(dir, "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if _, ok := pages[filepath.Base(file)]; !ok {
			t.Errorf("%s is of no command any more: make docs", file)
		}
	}
	for name, want := range pages {
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("docs/cli/%s is stale: make docs (%v)", name, err)
		}
	}
}

func TestPagesTellNothingOfTheMachine(t *testing.T) {
	t.Setenv("HOME", "/home/somebody")
	for name, page := range Pages(newRoot()) {
		if bytes.Contains(page, []byte("/home/somebody")) || bytes.Contains(page, []byte("/root")) {
			t.Errorf("%s holds a path of this machine", name)
		}
	}
}

func TestEveryCommandHasAnExampleThatItsFlagsUnderstand(t *testing.T) {
	seen := 0
	walk(newRoot(), func(cmd *cobra.Command) {
		if cmd.Short == "" || cmd.Example == "" {
			t.Errorf("%s lacks a short text or an example", cmd.CommandPath())
		}
		for l := range strings.Lines(cmd.Example) {
			for _, args := range invocations(l) {
				seen++
				// Flags remember what they were given: each example gets a root of its own.
				root := newRoot()
				found, rest, err := root.Find(args)
				if err != nil {
					t.Errorf("%s: %v: %v", cmd.CommandPath(), args, err)
					continue
				}
				if err := found.ParseFlags(rest); err != nil {
					t.Errorf("%s: %v: %v", cmd.CommandPath(), args, err)
					continue
				}
				if err := found.ValidateArgs(found.Flags().Args()); err != nil && !strings.Contains(l, "xargs") {
					t.Errorf("%s: %v: %v", cmd.CommandPath(), args, err)
				}
				if found.HasSubCommands() {
					t.Errorf("%s: %v names no command", cmd.CommandPath(), args)
				}
			}
		}
	})
	if seen < 30 {
		t.Errorf("%d examples were looked at; there are more", seen)
	}
}

// invocations are the arguments of the plugin's calls in a line of shell.
func invocations(l string) [][]string {
	if strings.HasPrefix(strings.TrimSpace(l), "#") {
		return nil
	}
	var out [][]string
	for i, part := range strings.Split(l, "kubectl latchkey ") {
		if i > 0 {
			out = append(out, words(part))
		}
	}
	return out
}

// words splits shell words up to the first operator.
func words(s string) []string {
	var out []string
	word, quoted, started := "", rune(0), false
	for _, r := range s {
		switch {
		case quoted == 0 && strings.ContainsRune(" \t\n|;)>", r):
			if started {
				out = append(out, word)
			}
			if strings.ContainsRune("|;)>", r) {
				return out
			}
			word, started = "", false
		case quoted == 0 && (r == '"' || r == '\''):
			quoted, started = r, true
		case r == quoted:
			quoted = 0
		default:
			word += string(r)
			started = true
		}
	}
	if started && word != "" {
		out = append(out, word)
	}
	return out
}
