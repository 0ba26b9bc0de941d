// Command run is `make run`: it starts Latchkey whole on this machine, plays its main story once, says what happened and how to go on
// by hand, and stays up until Ctrl-C. With ONCE=1 it ends after the story, with 0 if all went as it should and 1 otherwise.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/latchkey-dev/latchkey/test/stack"
)

func main() { os.Exit(realMain()) }

func realMain() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := run(ctx); err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "\nmake run:", err)
		return 1
	}
	return 0
}

func run(ctx context.Context) (err error) {
	opts, err := options()
	if err != nil {
		return err
	}
	unlock, err := prepare(opts.Dir)
	if err != nil {
		return err
	}
	defer unlock()
	started := time.Now()
	s, err := stack.Start(ctx, opts)
	if err != nil {
		if ctx.Err() != nil {
			return errors.New("interrupted while starting; every process has been stopped")
		}
		return err
	}
	defer func() {
		fmt.Println("\n==> stopping every process")
		err = errors.Join(err, s.Stop())
	}()
	fmt.Printf("==> up after %.1f s\n", time.Since(started).Seconds())

	t := &tale{stack: s}
	if err := t.tell(ctx); err != nil {
		return err
	}
	if os.Getenv("ONCE") == "1" {
		return nil
	}
	t.showHowToGoOn()
	<-ctx.Done()
	return nil
}

// options reads the environment.
func options() (stack.Options, error) {
	opts := stack.Options{Dir: ".run", GatewayPort: 8080, AdminPort: 9901, ProviderPort: 18080, Say: os.Stdout}
	if dir := os.Getenv("LATCHKEY_RUN_DIR"); dir != "" {
		opts.Dir = dir
	}
	for name, port := range map[string]*int{
		"LATCHKEY_GATEWAY_PORT":  &opts.GatewayPort,
		"LATCHKEY_ADMIN_PORT":    &opts.AdminPort,
		"LATCHKEY_PROVIDER_PORT": &opts.ProviderPort,
	} {
		value := os.Getenv(name)
		if value == "" {
			continue
		}
		n, err := strconv.ParseUint(value, 10, 16)
		if err != nil || n == 0 {
			return opts, fmt.Errorf("%s=%s: a port is a number from 1 to 65535", name, value)
		}
		*port = int(n)
	}
	return opts, nil
}

// marker tells a directory of ours from one that must not be emptied.
const marker = ".latchkey-run"

// prepare empties the directory of what an earlier run left, and keeps a second run out of it.
func prepare(dir string) (unlock func(), err error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("read %s: %w", dir, err)
	}
	if len(entries) > 0 {
		if _, err := os.Stat(filepath.Join(dir, marker)); err != nil {
			return nil, fmt.Errorf("%s holds files that `make run` did not write, and it would empty the directory: choose another with LATCHKEY_RUN_DIR=DIR", dir)
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("create %s: %w", dir, err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, marker), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = lock.Close()
		return nil, fmt.Errorf("another `make run` uses %s: stop it, or choose another directory with LATCHKEY_RUN_DIR=DIR and other ports", dir)
	}
	for _, entry := range entries {
		if entry.Name() == marker {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, entry.Name())); err != nil {
			_ = lock.Close()
			return nil, fmt.Errorf("empty %s: %w", dir, err)
		}
	}
	return func() { _ = lock.Close() }, nil
}
