package api

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestDocumentedYAML has the API server take every APIKey, Application, Model, Provider and SystemPolicy that the documents show.
func TestDocumentedYAML(t *testing.T) {
	namespace := newNamespace(t)
	shown := 0
	check := func(path string) {
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, block := range blocks(string(content)) {
			for doc := range strings.SplitSeq(block, "\n---\n") {
				if !strings.Contains(doc, "apiVersion: latchkey.dev/") {
					continue
				}
				shown++
				doc = strings.Replace(doc, ", namespace: demo}", "}", 1)
				t.Run(filepath.Base(path), func(t *testing.T) {
					if err := apply(t, namespace, doc); err != nil {
						t.Errorf("%v\n%s", err, doc)
					}
				})
			}
		}
	}
	root := filepath.Join("..", "..")
	check(filepath.Join(root, "README.md"))
	if err := filepath.WalkDir(filepath.Join(root, "docs"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && strings.HasSuffix(path, ".md") {
			check(path)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if shown < 10 {
		t.Errorf("%d documents were found: are the pages still read rightly?", shown)
	}
}

// blocks are the contents of the yaml blocks, and of what sh blocks hand to a command as YAML.
func blocks(page string) (all []string) {
	var block strings.Builder
	begun, ends := false, ""
	for line := range strings.Lines(page) {
		text := strings.TrimSuffix(line, "\n")
		switch {
		case begun && text == ends:
			all = append(all, strings.TrimSuffix(block.String(), "\n"))
			block.Reset()
			begun = false
		case begun:
			block.WriteString(line)
		case text == "```yaml":
			begun, ends = true, "```"
		case strings.HasSuffix(text, "<<'YAML'"):
			begun, ends = true, "YAML"
		}
	}
	return all
}
