package cli

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// newDocs writes the reference pages. It is for `make`, and hidden.
func (p *plugin) newDocs() *cobra.Command {
	return &cobra.Command{
		Use: "gen-docs DIR", Hidden: true, Args: cobra.ExactArgs(1),
		Short: "Write a Markdown page for each command",
		RunE: func(cmd *cobra.Command, args []string) error {
			dir := args[0]
			pages := Pages(cmd.Root())
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return fmt.Errorf("make %s: %w", dir, err)
			}
			old, err := filepath.Glob(filepath.Join(dir, "*.md"))
			if err != nil {
				return fmt.Errorf("list %s: %w", dir, err)
			}
			for _, path := range old {
				if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
					return fmt.Errorf("remove %s: %w", path, err)
				}
			}
			for name, content := range pages {
				if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
					return fmt.Errorf("write %s: %w", name, err)
				}
			}
			return nil
		},
	}
}

// Pages are the reference pages in Markdown, by file name: one for each command that is not hidden. They are the same on each machine and day.
func Pages(root *cobra.Command) map[string][]byte {
	pages := map[string][]byte{}
	walk(root, func(cmd *cobra.Command) { pages[pageName(cmd)] = page(cmd) })
	return pages
}

// walk visits a command and those below it that are documented.
func walk(cmd *cobra.Command, visit func(*cobra.Command)) {
	visit(cmd)
	for _, sub := range cmd.Commands() {
		if documented(sub) {
			walk(sub, visit)
		}
	}
}

// documented reports whether a command is the plugin's own and for people.
func documented(cmd *cobra.Command) bool {
	return !cmd.Hidden && cmd.Name() != "help" && cmd.Name() != "completion"
}

func pageName(cmd *cobra.Command) string {
	if !cmd.HasParent() {
		return "README.md"
	}
	return strings.ReplaceAll(strings.TrimPrefix(cmd.CommandPath(), cmd.Root().CommandPath()+" "), " ", "-") + ".md"
}

func page(cmd *cobra.Command) []byte {
	var b bytes.Buffer
	b.WriteString("<!-- Written by `make docs`; do not edit. -->\n")
	fmt.Fprintf(&b, "# %s\n\n%s.\n", cmd.CommandPath(), strings.TrimSuffix(cmd.Short, "."))
	if cmd.Long != "" {
		fmt.Fprintf(&b, "\n```text\n%s\n```\n", strings.TrimSpace(cmd.Long))
	}
	if cmd.Runnable() && !cmd.HasSubCommands() {
		fmt.Fprintf(&b, "\n## Usage\n\n```sh\n%s\n```\n", cmd.UseLine())
	}
	if len(cmd.Aliases) > 0 {
		fmt.Fprintf(&b, "\nAlso: `%s`\n", strings.Join(cmd.Aliases, "`, `"))
	}
	if cmd.Example != "" {
		fmt.Fprintf(&b, "\n## Examples\n\n```sh\n%s\n```\n", unindent(cmd.Example))
	}
	if cmd.HasSubCommands() {
		b.WriteString("\n## Commands\n\n| command | |\n|---|---|\n")
		for _, sub := range cmd.Commands() {
			if documented(sub) {
				fmt.Fprintf(&b, "| [%s](%s) | %s |\n", sub.CommandPath(), pageName(sub), inTable(sub.Short))
			}
		}
	}
	writeFlags(&b, "Flags", cmd.NonInheritedFlags(), cmd.HasParent())
	if cmd.HasParent() {
		b.WriteString("\nThe flags of [kubectl latchkey](README.md) apply too.\n")
	}
	return b.Bytes()
}

// writeFlags writes a table of flags. Defaults that hang on the machine are left out.
func writeFlags(b *bytes.Buffer, head string, flags *pflag.FlagSet, withDefaults bool) {
	if !flags.HasAvailableFlags() {
		return
	}
	fmt.Fprintf(b, "\n## %s\n\n| flag | default | |\n|---|---|---|\n", head)
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Deprecated != "" || f.Name == "help" {
			return
		}
		name := "`--" + f.Name + "`"
		if f.Shorthand != "" {
			name = "`-" + f.Shorthand + "`, " + name
		}
		byDefault := ""
		if withDefaults && f.DefValue != "" && f.DefValue != "[]" {
			byDefault = "`" + f.DefValue + "`"
		}
		_, usage := pflag.UnquoteUsage(f)
		fmt.Fprintf(b, "| %s | %s | %s |\n", name, byDefault, inTable(usage))
	})
}

func inTable(s string) string { return strings.ReplaceAll(strings.ReplaceAll(s, "|", `\|`), "\n", " ") }

// unindent takes the two spaces away that examples begin with.
func unindent(s string) string {
	var b strings.Builder
	for l := range strings.Lines(s) {
		b.WriteString(strings.TrimPrefix(l, "  "))
	}
	return strings.TrimRight(b.String(), "\n")
}
