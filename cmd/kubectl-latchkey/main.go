// Command kubectl-latchkey is the kubectl plugin "kubectl latchkey".
//
// Under the name kubectl_complete-latchkey, which a link can give it, it is what kubectl asks for completions of the plugin.
package main

import (
	"context"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/go-logr/logr"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/klog/v2"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/latchkey-dev/latchkey/internal/cli"
)

const completionName = "kubectl_complete-latchkey"

func main() { os.Exit(realMain()) }

func realMain() int {
	// What the libraries log is no part of the output.
	ctrllog.SetLogger(logr.Discard())
	klog.SetLogger(logr.Discard())

	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		code := codeOf(<-signals)
		cancel(&cli.ExitError{Code: code})
		os.Exit(codeOf(<-signals)) // the second asks for an end at once
	}()

	args := os.Args[1:]
	if strings.TrimSuffix(filepath.Base(os.Args[0]), ".exe") == completionName {
		args = append([]string{"__complete"}, args...)
	}
	return cli.Run(ctx, args, genericiooptions.IOStreams{In: os.Stdin, Out: os.Stdout, ErrOut: os.Stderr})
}

// codeOf is the exit code that shells expect of a program that a signal has ended.
func codeOf(s os.Signal) int {
	if n, ok := s.(syscall.Signal); ok {
		return 128 + int(n)
	}
	return 1
}
