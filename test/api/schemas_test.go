package api

import (
	"testing"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"sigs.k8s.io/yaml"
)

// crdSchema is the schema of one version of one kind.
type crdSchema struct {
	name string // the CRD's
	kind string
	root apiextensionsv1.JSONSchemaProps
}

// schemas reads those in config/crd/bases.
func schemas(t *testing.T) []crdSchema {
	t.Helper()
	var found []crdSchema
	for _, path := range files(t, configPath(t, "crd/bases")) {
		var crd apiextensionsv1.CustomResourceDefinition
		if err := yaml.UnmarshalStrict([]byte(mustRead(t, path)), &crd); err != nil {
			t.Fatal(err)
		}
		for _, version := range crd.Spec.Versions {
			found = append(found, crdSchema{name: crd.Name, kind: crd.Spec.Names.Kind, root: *version.Schema.OpenAPIV3Schema})
		}
	}
	return found
}

// withoutText reports every field below the schema that has no description.
func withoutText(schema *apiextensionsv1.JSONSchemaProps, path string, report func(path string)) {
	for name, property := range schema.Properties {
		if property.Description == "" {
			report(path + "." + name)
		}
		withoutText(&property, path+"."+name, report)
	}
	if schema.Items != nil {
		withoutText(schema.Items.Schema, path+"[]", report)
	}
}
