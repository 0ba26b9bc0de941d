// Command bench is `make bench`: it measures how soon edits take effect, on the whole system with the real API server and the real
// Envoy, and then runs the Go benchmarks of the parts. It prints Markdown, for docs/benchmarks.
//
// Every figure is from this run, on this machine; compare figures of one run with each other, not with those of another machine.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/latchkey-dev/latchkey/test/stack"
)

func main() { os.Exit(realMain()) }

func realMain() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "make bench:", err)
		return 1
	}
	return 0
}

func run(ctx context.Context) (err error) {
	rounds := flag.Int("rounds", 100, "measurements of each kind")
	sizes := flag.String("keys", "1,1000,10000", "numbers of keys present, ascending")
	parts := flag.Bool("parts", true, "run the Go benchmarks of the parts, too")
	flag.Parse()

	fmt.Printf("# Benchmarks\n\nPrinted by `make bench` on %s: %s, %d cores, %s, Linux %s.\n\n",
		time.Now().UTC().Format(time.DateOnly), cpu(), runtime.NumCPU(), runtime.Version(), kernel())
	if err := system(ctx, *rounds, *sizes); err != nil {
		return err
	}
	if !*parts {
		return nil
	}
	return goBenchmarks(ctx)
}

func system(ctx context.Context, rounds int, sizes string) (err error) {
	dir, err := os.MkdirTemp("", "lk-bench-")
	if err != nil {
		return fmt.Errorf("make a directory: %w", err)
	}
	s, err := stack.Start(ctx, stack.Options{Dir: dir, Say: os.Stderr})
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, s.Stop())
		if err == nil {
			_ = os.RemoveAll(dir)
		} else {
			_, _ = fmt.Fprintln(os.Stderr, "logs are kept in", filepath.Join(dir, "logs"))
		}
	}()
	m := &measurer{stack: s, rounds: rounds}
	if err := errors.Join(m.prepare(ctx), m.prepareMetering(ctx)); err != nil {
		return err
	}
	fmt.Print(`## From the API server's answer to the first request decided accordingly

Milliseconds, from the moment kube-apiserver has answered the write until the end of the first request through Envoy that is decided by
it. A new key includes its minting and the reading of its Secret. "Request" is what one request through Envoy takes meanwhile, which is part of each figure.

| keys present | edit | p50 | p99 | max | p50 / request |
|---|---|---|---|---|---|
`)
	present := 0
	for field := range strings.SplitSeq(sizes, ",") {
		var n int
		if _, err := fmt.Sscan(field, &n); err != nil || n < 1 {
			return fmt.Errorf("-keys %s: give numbers, separated by commas", sizes)
		}
		if err := m.fill(ctx, present, n); err != nil {
			return err
		}
		present = max(present, n)
		if err := m.effects(ctx, n); err != nil {
			return err
		}
	}
	m.printThroughput()
	return m.metering(ctx)
}

// goBenchmarks runs those of the parts and prints what they printed.
func goBenchmarks(ctx context.Context) error {
	fmt.Print("\n## Parts\n\nOne key's change at 100,000 keys in the key set's cache, beside go-control-plane's LinearCache; one decision at 100,000 keys;\nthe ledger in memory and its journal; reading answers.\n\n```\n")
	defer fmt.Println("```")
	for _, args := range [][]string{
		{"./internal/keyset/...", "./internal/enforce/...", "./internal/llm/...", "./internal/ledger/journal"},
		{"-cpu", "1,2", "./internal/ledger"},
	} {
		cmd := exec.CommandContext(ctx, "go", append([]string{"test", "-run", "^$", "-bench", ".", "-benchmem", "-count", "1"}, args...)...)
		out, err := cmd.Output()
		for line := range strings.Lines(string(out)) {
			if strings.HasPrefix(line, "Benchmark") {
				fmt.Print(line)
			}
		}
		if err != nil {
			return fmt.Errorf("go test -bench: %w: %s", err, out)
		}
	}
	return nil
}

func cpu() string {
	file, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return runtime.GOARCH
	}
	defer func() { _ = file.Close() }()
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		if name, value, ok := strings.Cut(lines.Text(), ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}

func kernel() string {
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(release))
}
