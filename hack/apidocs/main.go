// Command apidocs writes the fields of each kind into its page in docs/api, out of the CRDs, between two marks. What stands around them is
// written by hand. The page of conditions and reasons it writes whole, out of the comments of their constants.
//
//	apidocs CRD-DIR CONDITIONS-GO DOCS-DIR
package main

import (
	"bytes"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"sigs.k8s.io/yaml"
)

const (
	begin = "<!-- Written by `make docs` from here on; do not edit. -->"
	end   = "<!-- Written by hand from here on. -->"
)

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: apidocs CRD-DIR CONDITIONS-GO DOCS-DIR")
		os.Exit(2)
	}
	if err := errors.Join(run(os.Args[1], os.Args[3]), conditions(os.Args[2], filepath.Join(os.Args[3], "conditions.md"))); err != nil {
		fmt.Fprintln(os.Stderr, "apidocs:", err)
		os.Exit(1)
	}
}

func run(crds, docs string) error {
	paths, err := filepath.Glob(filepath.Join(crds, "*.yaml"))
	if err != nil || len(paths) == 0 {
		return fmt.Errorf("no CRD in %s: %w", crds, err)
	}
	for _, path := range paths {
		raw, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("read CRD: %w", err)
		}
		var crd apiextensionsv1.CustomResourceDefinition
		if err := yaml.UnmarshalStrict(raw, &crd); err != nil {
			return fmt.Errorf("parse %s: %w", path, err)
		}
		page := filepath.Join(docs, crd.Spec.Names.Singular+".md")
		text, err := os.ReadFile(page)
		if err != nil {
			return fmt.Errorf("read the page of %s: %w", crd.Spec.Names.Kind, err)
		}
		text, err = between(text, reference(&crd))
		if err != nil {
			return fmt.Errorf("%s: %w", page, err)
		}
		if err := os.WriteFile(page, text, 0o644); err != nil { //nolint:gosec // a page for everybody
			return fmt.Errorf("write page: %w", err)
		}
	}
	return nil
}

// between puts the generated part into its place.
func between(page []byte, generated string) ([]byte, error) {
	before, rest, found := bytes.Cut(page, []byte(begin))
	_, after, closed := bytes.Cut(rest, []byte(end))
	if !found || !closed {
		return nil, fmt.Errorf("the marks %q and %q are missing", begin, end)
	}
	return slices.Concat(before, []byte(begin+"\n\n"+generated+"\n"+end), after), nil
}

// conditions writes a page of the constants in a Go file, each with its comment.
func conditions(source, page string) error {
	file, err := parser.ParseFile(token.NewFileSet(), source, nil, parser.ParseComments)
	if err != nil {
		return fmt.Errorf("parse conditions: %w", err)
	}
	var out strings.Builder
	out.WriteString("<!-- Written by `make docs`; do not edit. -->\n# Conditions, reasons and names\n")
	for _, decl := range file.Decls {
		group, isGroup := decl.(*ast.GenDecl)
		if !isGroup || group.Tok != token.CONST {
			continue
		}
		title, rest, _ := strings.Cut(strings.TrimSpace(group.Doc.Text()), ".")
		fmt.Fprintf(&out, "\n## %s\n", title)
		if rest = cell(rest); rest != "" {
			fmt.Fprintf(&out, "\n%s\n", rest)
		}
		out.WriteString("\n| | |\n|---|---|\n")
		for _, spec := range group.Specs {
			value := spec.(*ast.ValueSpec)
			literal, isLiteral := value.Values[0].(*ast.BasicLit)
			if !isLiteral {
				return fmt.Errorf("%s: %s is not a literal", source, value.Names[0].Name)
			}
			_, says, _ := strings.Cut(cell(value.Doc.Text()), " ")
			fmt.Fprintf(&out, "| `%s` | %s |\n", strings.Trim(literal.Value, `"`), says)
		}
	}
	if err := os.WriteFile(page, []byte(out.String()), 0o644); err != nil { //nolint:gosec // a page for everybody
		return fmt.Errorf("write page: %w", err)
	}
	return nil
}

// reference lists what can be written, and what is told.
func reference(crd *apiextensionsv1.CustomResourceDefinition) string {
	version := crd.Spec.Versions[0]
	schema := version.Schema.OpenAPIV3Schema
	var out strings.Builder
	names := crd.Spec.Names
	scope := "in a namespace"
	if crd.Spec.Scope == apiextensionsv1.ClusterScoped {
		scope = "of the cluster"
	}
	fmt.Fprintf(&out, "`apiVersion: %s/%s`, `kind: %s`, short `%s`, %s.\n", crd.Spec.Group, version.Name, names.Kind, strings.Join(names.ShortNames, "`, `"), scope)
	for _, part := range []struct{ field, title string }{{"spec", "What you write"}, {"status", "What you are told"}} {
		section, there := schema.Properties[part.field]
		if !there {
			continue
		}
		fmt.Fprintf(&out, "\n## %s: `%s`\n\n| field | type | |\n|---|---|---|\n", part.title, part.field)
		var rules []string
		fields(&out, &rules, &section, "")
		if len(rules) > 0 && part.field == "spec" {
			out.WriteString("\nRules that the API server holds it to, with the words in which it says so:\n\n")
			for _, r := range rules {
				fmt.Fprintf(&out, "- %s\n", r)
			}
		}
	}
	return out.String()
}

// fields writes a line for each field below schema, parents first, and gathers the rules.
func fields(out *strings.Builder, rules *[]string, schema *apiextensionsv1.JSONSchemaProps, path string) {
	note(rules, schema, path)
	for _, name := range sorted(schema.Properties) {
		p := schema.Properties[name]
		at := name
		if path != "" {
			at = path + "." + name
		}
		if strings.HasPrefix(at, "conditions.") || strings.Contains(at, ".conditions.") {
			continue
		}
		fmt.Fprintf(out, "| `%s` | %s | %s |\n", at, typeOf(&p, slices.Contains(schema.Required, name)), cell(p.Description))
		inner, below := &p, at
		if p.Items != nil && p.Items.Schema != nil {
			inner, below = p.Items.Schema, at+"[]"
			note(rules, &p, at)
		}
		if name == "conditions" { // the API's own kind
			continue
		}
		fields(out, rules, inner, below)
	}
}

func note(rules *[]string, schema *apiextensionsv1.JSONSchemaProps, path string) {
	for _, rule := range schema.XValidations {
		if rule.Message == "" {
			continue
		}
		text := cell(rule.Message)
		if path != "" {
			text = "`" + path + "`: " + text
		}
		if !slices.Contains(*rules, text) {
			*rules = append(*rules, text)
		}
	}
}

// typeOf says what kind of value a field takes, with its bounds.
func typeOf(p *apiextensionsv1.JSONSchemaProps, required bool) string {
	said := []string{kindOf(p)}
	if required {
		said = append(said, "required")
	}
	if p.Default != nil {
		said = append(said, "default `"+strings.Trim(string(p.Default.Raw), `"`)+"`")
	}
	number := func(f float64) string { return strconv.FormatFloat(f, 'f', -1, 64) }
	switch {
	case p.Minimum != nil && p.Maximum != nil:
		said = append(said, number(*p.Minimum)+" to "+number(*p.Maximum))
	case p.Minimum != nil:
		said = append(said, "from "+number(*p.Minimum)+" on")
	case p.Maximum != nil:
		said = append(said, "up to "+number(*p.Maximum))
	}
	count := func(least, most *int64, of string) {
		switch {
		case least != nil && most != nil && *least > 0:
			said = append(said, fmt.Sprintf("%d to %d %s", *least, *most, of))
		case most != nil:
			said = append(said, fmt.Sprintf("at most %d %s", *most, of))
		}
	}
	// Where the words say it, the schema's bound is a wider one, in bytes, and a rule of its own counts characters.
	if !strings.Contains(p.Description, " characters") {
		count(p.MinLength, p.MaxLength, "characters")
	}
	count(p.MinItems, p.MaxItems, "entries")
	return strings.Join(said, ", ")
}

func kindOf(p *apiextensionsv1.JSONSchemaProps) string {
	switch {
	case len(p.Enum) > 0:
		values := make([]string, 0, len(p.Enum))
		for _, v := range p.Enum {
			values = append(values, "`"+strings.Trim(string(v.Raw), `"`)+"`")
		}
		return strings.Join(values, ", ")
	case p.Items != nil && p.Items.Schema != nil:
		return "list of " + kindOf(p.Items.Schema)
	case p.Format == "date-time":
		return "time, RFC 3339"
	case p.Type == "":
		return "integer or string"
	}
	return p.Type
}

// cell is text for a table's cell.
func cell(text string) string {
	text = strings.Join(strings.Fields(text), " ")
	return strings.NewReplacer("|", `\|`, "<", "&lt;").Replace(text)
}

func sorted(properties map[string]apiextensionsv1.JSONSchemaProps) []string {
	names := make([]string, 0, len(properties))
	for name := range properties {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
