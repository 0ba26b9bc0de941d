package api

import (
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

func TestGoodYAML(t *testing.T) {
	namespace := newNamespace(t)
	for _, path := range files(t, "testdata/good") {
		t.Run(nameOf(path), func(t *testing.T) {
			for i, doc := range readDocuments(t, path) {
				if len(doc.wants) > 0 {
					t.Fatalf("document %d has a want, but stands among the good ones", i+1)
				}
				if err := apply(t, namespace, doc.text); err != nil {
					t.Errorf("document %d: %v", i+1, err)
				}
			}
		})
	}
}

func TestBadYAML(t *testing.T) {
	namespace := newNamespace(t)
	var messages []string
	for _, path := range files(t, "testdata/bad") {
		t.Run(nameOf(path), func(t *testing.T) {
			docs := readDocuments(t, path)
			if len(docs[len(docs)-1].wants) == 0 {
				t.Fatal("the last document has no want")
			}
			for i, doc := range docs {
				err := apply(t, namespace, doc.text)
				if len(doc.wants) == 0 {
					if err != nil {
						t.Fatalf("document %d, which is to be accepted: %v", i+1, err)
					}
					continue
				}
				if err == nil {
					t.Fatalf("document %d was accepted; want it refused with %q", i+1, doc.wants)
				}
				if !apierrors.IsInvalid(err) && !apierrors.IsBadRequest(err) {
					t.Errorf("document %d: got an error of another kind: %v", i+1, err)
				}
				t.Logf("%s", err) // to be read with -v: is it clear what to do?
				messages = append(messages, err.Error())
				for _, want := range doc.wants {
					if !strings.Contains(err.Error(), want) {
						t.Errorf("document %d: the message does not say %q:\n%v", i+1, want, err)
					}
				}
			}
		})
	}
	t.Run("every rule of the CRDs has refused something", func(t *testing.T) {
		for _, rule := range rules(t) {
			if !slices.ContainsFunc(messages, func(m string) bool { return strings.Contains(m, rule) }) {
				t.Errorf("no bad file is refused by the rule with this message: %s", rule)
			}
		}
	})
}

// rules collects the messages of all CEL rules in the CRDs, status aside, which no user writes.
func rules(t *testing.T) []string {
	t.Helper()
	found := map[string]bool{}
	var walk func(schema *apiextensionsv1.JSONSchemaProps)
	walk = func(schema *apiextensionsv1.JSONSchemaProps) {
		for _, rule := range schema.XValidations {
			if rule.Message == "" {
				t.Errorf("the rule %q has no message", rule.Rule)
				continue
			}
			found[rule.Message] = true
		}
		for name, property := range schema.Properties {
			if name != "status" {
				walk(&property)
			}
		}
		if schema.Items != nil {
			walk(schema.Items.Schema)
		}
	}
	for _, schema := range schemas(t) {
		walk(&schema.root)
	}
	return slices.Sorted(maps.Keys(found))
}

func nameOf(path string) string { return strings.TrimSuffix(filepath.Base(path), ".yaml") }
