// Command enforcer decides, beside Envoy, which requests pass: it receives the policy from the control plane, keeps it on disk, and
// answers Envoy's external processing filter on a unix socket. It holds no Kubernetes credential.
//
// This package is flags → config → run(ctx). run owns every goroutine and has ended them when it returns.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"
	_ "time/tzdata" // a budget's day begins in a time zone that the image may not have
)

func main() { os.Exit(realMain()) }

func realMain() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	cfg, err := parseConfig(os.Args[1:], os.Hostname, os.Stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		_, _ = fmt.Fprintln(os.Stderr, "enforcer:", err)
		return 2
	case cfg.version:
		_, _ = fmt.Fprintln(os.Stdout, buildVersion())
		return 0
	}
	log := slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: cfg.logLevel}))
	if err := run(ctx, cfg, dependencies{log: log, now: time.Now}); err != nil {
		log.Error("enforcer ended", slog.String("error", err.Error()))
		return 1
	}
	return 0
}
