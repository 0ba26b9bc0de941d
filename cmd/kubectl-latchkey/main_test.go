package main

import (
	"bytes"
	"os"
	"strings"
	"syscall"
	"testing"
	"text/template"

	"sigs.k8s.io/yaml"
)

// TestKrewManifest fills the template in as krew's release bot does, and reads what comes out.
func TestKrewManifest(t *testing.T) {
	source, err := os.ReadFile("../../hack/krew/latchkey.yaml")
	if err != nil {
		t.Fatal(err)
	}
	filled, err := template.New("krew").Funcs(template.FuncMap{"addURIAndSha": func(url, tag string) string {
		return "uri: " + strings.ReplaceAll(url, "{{ .TagName }}", tag) + "\n    sha256: " + strings.Repeat("ab", 32)
	}}).Parse(string(source))
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := filled.Execute(&b, map[string]string{"TagName": "v1.2.3"}); err != nil {
		t.Fatal(err)
	}
	var manifest struct {
		APIVersion string
		Kind       string
		Metadata   struct{ Name string }
		Spec       struct {
			Version, Homepage, ShortDescription, Description, Caveats string
			Platforms                                                 []struct {
				Selector         struct{ MatchLabels map[string]string }
				URI, SHA256, Bin string
			}
		}
	}
	if err := yaml.UnmarshalStrict(b.Bytes(), &manifest); err != nil {
		t.Fatalf("%v\n%s", err, b.String())
	}
	if manifest.Kind != "Plugin" || manifest.Metadata.Name != "latchkey" || manifest.Spec.Version != "v1.2.3" || len(manifest.Spec.Platforms) != 5 {
		t.Errorf("%+v", manifest)
	}
	for _, p := range manifest.Spec.Platforms {
		system := p.Selector.MatchLabels["os"]
		suffix := ""
		if system == "windows" {
			suffix = ".exe"
		}
		if !strings.Contains(p.URI, "/v1.2.3/kubectl-latchkey_"+system+"_"+p.Selector.MatchLabels["arch"]+".") || p.Bin != "kubectl-latchkey"+suffix || len(p.SHA256) != 64 {
			t.Errorf("%+v", p)
		}
	}
}

func TestCodesOfSignals(t *testing.T) {
	for s, want := range map[os.Signal]int{os.Interrupt: 130, syscall.SIGTERM: 143} {
		if got := codeOf(s); got != want {
			t.Errorf("%v: %d, want %d", s, got, want)
		}
	}
}
