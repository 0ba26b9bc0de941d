// protogen writes FILE.pb.go beside each FILE.proto, as protoc with protoc-gen-go
// and paths=source_relative would, without needing protoc.
//
//	protogen -I ROOT FILE.proto...
//
// FILE is relative to ROOT, which is also where imports are looked for.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/bufbuild/protocompile"
	"github.com/bufbuild/protocompile/linker"
	"github.com/bufbuild/protocompile/protoutil"
	"google.golang.org/protobuf/cmd/protoc-gen-go/internal_gengo"
	"google.golang.org/protobuf/compiler/protogen"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/pluginpb"
)

func main() {
	root := flag.String("I", ".", "folder that the files and their imports are relative to")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: protogen -I ROOT FILE.proto...")
		flag.PrintDefaults()
	}
	flag.Parse()
	if err := run(context.Background(), *root, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "protogen:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, root string, files []string) error {
	if len(files) == 0 {
		return errors.New("no file was named")
	}
	compiler := protocompile.Compiler{
		Resolver:       protocompile.WithStandardImports(&protocompile.SourceResolver{ImportPaths: []string{root}}),
		SourceInfoMode: protocompile.SourceInfoStandard, // carries the comments over
	}
	compiled, err := compiler.Compile(ctx, files...)
	if err != nil {
		return fmt.Errorf("compile: %w", err)
	}

	plugin, err := protogen.Options{}.New(&pluginpb.CodeGeneratorRequest{
		FileToGenerate: files,
		Parameter:      new("paths=source_relative"),
		ProtoFile:      descriptors(compiled),
	})
	if err != nil {
		return fmt.Errorf("set up the generator: %w", err)
	}
	for _, file := range plugin.Files {
		if file.Generate {
			internal_gengo.GenerateFile(plugin, file)
		}
	}

	response := plugin.Response()
	if response.Error != nil {
		return fmt.Errorf("generate: %s", response.GetError())
	}
	for _, file := range response.GetFile() {
		path := filepath.Join(root, filepath.FromSlash(file.GetName()))
		if err := os.WriteFile(path, []byte(file.GetContent()), 0o644); err != nil {
			return fmt.Errorf("write generated code: %w", err)
		}
	}
	return nil
}

// descriptors lists the files and all that they import, each after its imports,
// as a generator expects them.
func descriptors(files linker.Files) []*descriptorpb.FileDescriptorProto {
	var (
		ordered []*descriptorpb.FileDescriptorProto
		seen    []string
		visit   func(protoreflect.FileDescriptor)
	)
	visit = func(file protoreflect.FileDescriptor) {
		if slices.Contains(seen, file.Path()) {
			return
		}
		seen = append(seen, file.Path())
		for i := range file.Imports().Len() {
			visit(file.Imports().Get(i).FileDescriptor)
		}
		ordered = append(ordered, protoutil.ProtoFromFileDescriptor(file))
	}
	for _, file := range files {
		visit(file)
	}
	return ordered
}
