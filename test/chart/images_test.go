package chart

import (
	"archive/tar"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// TestImages builds the images, and holds them against what the chart's Pods want to run in them.
func TestImages(t *testing.T) {
	dir := t.TempDir()
	if _, err := run(t.Context(), []string{"TAG=test", "PLATFORM="}, filepath.Join(server.root, "hack", "images.sh"), dir); err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, u := range render(t, "helm4", "testdata/values/default.yaml") {
		pod := podOf(t, u)
		if pod == nil {
			continue
		}
		for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
			if strings.HasPrefix(c.Image, "envoyproxy/") {
				continue
			}
			seen++
			checkImage(t, dir, &c)
		}
	}
	if seen != 3 {
		t.Errorf("%d containers run our images", seen)
	}
}

func checkImage(t *testing.T, dir string, c *corev1.Container) {
	t.Helper()
	repository, _, _ := strings.Cut(c.Image, ":")
	files := untar(t, open(t, filepath.Join(dir, filepath.Base(repository)+".tar")))
	var manifest []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := json.Unmarshal(files["manifest.json"], &manifest); err != nil {
		t.Fatal(err)
	}
	if got := manifest[0].RepoTags; !slices.Equal(got, []string{repository + ":test"}) {
		t.Errorf("%s: tags %q", c.Image, got)
	}
	var image struct {
		Config struct {
			User       string
			Entrypoint []string
		} `json:"config"`
	}
	if err := json.Unmarshal(files[manifest[0].Config], &image); err != nil {
		t.Fatal(err)
	}
	if image.Config.User != "65532:65532" || !slices.Equal(image.Config.Entrypoint, c.Command) {
		t.Errorf("%s runs %q as %s; the chart runs %q", c.Image, image.Config.Entrypoint, image.Config.User, c.Command)
	}
	layer, err := gzip.NewReader(strings.NewReader(string(files[manifest[0].Layers[0]])))
	if err != nil {
		t.Fatal(err)
	}
	content := untar(t, layer)
	program := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(program, content[strings.TrimPrefix(c.Command[0], "/")], 0o700); err != nil { //nolint:gosec // it is run
		t.Fatal(err)
	}
	if _, err := run(t.Context(), nil, program, "--help"); err != nil {
		t.Errorf("%s: %v", c.Image, err)
	}
	if len(content) != 2 {
		t.Errorf("%s holds %d files", c.Image, len(content))
	}
}

func open(t *testing.T, path string) io.Reader {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func untar(t *testing.T, r io.Reader) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	reader := tar.NewReader(r)
	for {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		if files[header.Name], err = io.ReadAll(reader); err != nil {
			t.Fatal(err)
		}
	}
}
