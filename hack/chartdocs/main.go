// Command chartdocs writes a chart's README.md out of its values.yaml: each value with its default, and the comment above it.
//
//	chartdocs CHART-DIR
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	yaml "go.yaml.in/yaml/v3"
)

const head = `<!-- Written by ` + "`make generate`" + ` out of values.yaml; do not edit. -->
# Latchkey's Helm chart

Manager, gateway (Envoy with the enforcer beside it), CRDs, roles and certificates. Helm 3.18 or later, or Helm 4; Kubernetes 1.33 or later.

` + "```console" + `
$ helm install latchkey charts/latchkey --namespace latchkey-system --create-namespace
` + "```" + `

One installation for a cluster. A value that is not in the table below is refused by its name. Uninstalling leaves the CRDs, and with them all keys and what they say; the
ledger's volume; and the certificates' Secrets. [docs/operations.md](../../docs/operations.md) says how to upgrade, to back up, and to remove it all.

| value | default | |
|---|---|---|
`

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: chartdocs CHART-DIR")
		os.Exit(2)
	}
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "chartdocs:", err)
		os.Exit(1)
	}
}

func run(chart string) error {
	raw, err := os.ReadFile(filepath.Join(chart, "values.yaml"))
	if err != nil {
		return fmt.Errorf("read values: %w", err)
	}
	var document yaml.Node
	if err := yaml.Unmarshal(raw, &document); err != nil {
		return fmt.Errorf("parse values: %w", err)
	}
	var out strings.Builder
	out.WriteString(head)
	if err := rows(&out, document.Content[0], "", ""); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(chart, "README.md"), []byte(out.String()), 0o644); err != nil { //nolint:gosec // a page for everybody
		return fmt.Errorf("write README: %w", err)
	}
	return nil
}

// rows writes a line for each value that is not a mapping with comments of its own.
func rows(out *strings.Builder, mapping *yaml.Node, path, inherited string) error {
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		name, value := mapping.Content[i], mapping.Content[i+1]
		at := strings.TrimPrefix(path+"."+name.Value, ".")
		says := said(name.HeadComment)
		if value.Kind == yaml.MappingNode && value.Style != yaml.FlowStyle {
			if err := rows(out, value, at, says); err != nil {
				return err
			}
			continue
		}
		if says == "" && i == 0 {
			says = inherited
		}
		var plain any
		if err := value.Decode(&plain); err != nil {
			return fmt.Errorf("%s: %w", at, err)
		}
		text, err := json.Marshal(plain)
		if err != nil {
			return fmt.Errorf("%s: %w", at, err)
		}
		fmt.Fprintf(out, "| `%s` | `%s` | %s |\n", at, text, says)
	}
	return nil
}

// said is a comment as one line of a table.
func said(comment string) string {
	lines := strings.Split(comment, "\n")
	for i := range lines {
		lines[i] = strings.TrimSpace(strings.TrimPrefix(lines[i], "#"))
	}
	return strings.ReplaceAll(strings.TrimSpace(strings.Join(lines, " ")), "|", `\|`)
}
