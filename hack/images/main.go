// Command images makes the images of the programs without Docker: each holds one static binary, a user that is not root, and nothing else.
//
//	images -out DIR -tag TAG -platform linux/amd64 BINARY…
//
// Each BINARY becomes DIR/NAME.tar, as `docker load`, `podman load` and `crane push` take it.
package main

import (
	"archive/tar"
	"bytes"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

const (
	nonroot = "65532:65532"
	passwd  = "nonroot:x:65532:65532:nonroot:/:/sbin/nologin\n"
)

func main() {
	out := flag.String("out", "bin/images", "directory for the images")
	tag := flag.String("tag", "dev", "tag of the images")
	platform := flag.String("platform", "linux/"+runtime.GOARCH, "what the binaries are built for")
	flag.Parse()
	if flag.NArg() == 0 {
		fmt.Fprintln(os.Stderr, "images: name the binaries")
		os.Exit(2)
	}
	for _, binary := range flag.Args() {
		if err := build(*out, *tag, *platform, binary); err != nil {
			fmt.Fprintln(os.Stderr, "images:", err)
			os.Exit(1)
		}
	}
}

func build(out, tag, platform, binary string) error {
	program := filepath.Base(binary)
	content, err := os.ReadFile(binary)
	if err != nil {
		return fmt.Errorf("read binary: %w", err)
	}
	layer, err := layerOf(
		file{"etc/passwd", 0o444, []byte(passwd)},
		file{program, 0o555, content},
	)
	if err != nil {
		return err
	}
	image, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return fmt.Errorf("append layer: %w", err)
	}
	system, architecture, found := strings.Cut(platform, "/")
	if !found {
		return fmt.Errorf("platform %q: give OS/ARCHITECTURE", platform)
	}
	config := &v1.ConfigFile{
		OS: system, Architecture: architecture, Created: v1.Time{Time: time.Unix(0, 0).UTC()}, // the same image from the same binary
		Config: v1.Config{
			Entrypoint: []string{"/" + program}, User: nonroot, WorkingDir: "/",
			Labels: map[string]string{
				"org.opencontainers.image.title": "latchkey-" + program, "org.opencontainers.image.licenses": "Apache-2.0",
				"org.opencontainers.image.source": "https://github.com/latchkey-dev/latchkey", "org.opencontainers.image.version": tag,
			},
		},
	}
	configured, err := image.ConfigFile()
	if err != nil {
		return fmt.Errorf("read config: %w", err)
	}
	config.RootFS = configured.RootFS
	if image, err = mutate.ConfigFile(image, config); err != nil {
		return fmt.Errorf("set config: %w", err)
	}
	reference, err := name.NewTag("latchkey-dev/"+program+":"+tag, name.WithDefaultRegistry(""))
	if err != nil {
		return fmt.Errorf("name image: %w", err)
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	path := filepath.Join(out, program+".tar")
	if err := tarball.WriteToFile(path, reference, image); err != nil {
		return fmt.Errorf("write image: %w", err)
	}
	digest, err := image.Digest()
	if err != nil {
		return fmt.Errorf("digest image: %w", err)
	}
	fmt.Printf("%s %s %s\n", path, reference, digest)
	return nil
}

type file struct {
	path    string
	mode    int64
	content []byte
}

func layerOf(files ...file) (v1.Layer, error) {
	var buffer bytes.Buffer
	w := tar.NewWriter(&buffer)
	for _, f := range files {
		header := &tar.Header{Name: f.path, Mode: f.mode, Size: int64(len(f.content)), Typeflag: tar.TypeReg, ModTime: time.Unix(0, 0).UTC()}
		if err := w.WriteHeader(header); err != nil {
			return nil, fmt.Errorf("write layer: %w", err)
		}
		if _, err := w.Write(f.content); err != nil {
			return nil, fmt.Errorf("write layer: %w", err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("write layer: %w", err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buffer.Bytes())), nil })
	if err != nil {
		return nil, fmt.Errorf("make layer: %w", err)
	}
	return layer, nil
}
