package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"time"

	"github.com/latchkey-dev/latchkey/internal/certs"
	"github.com/latchkey-dev/latchkey/internal/policy"
)

// config is what the flags say.
type config struct {
	xdsAddress      string
	xdsServerName   string
	certDir         string
	socket          string
	stateDir        string
	nodeID          string
	metricsAddress  string
	debugAddress    string // empty: no debug pages
	startGrace      time.Duration
	watchGrace      time.Duration
	maxRequestBytes int
	logLevel        slog.Level
	accessLog       accessLog
	version         bool
}

// maxMaxRequestBytes keeps a body well within what one gRPC message can hold.
const maxMaxRequestBytes = 1 << 30

func parseConfig(args []string, hostname func() (string, error), usage io.Writer) (config, error) {
	var cfg config
	flags := flag.NewFlagSet("enforcer", flag.ContinueOnError)
	flags.SetOutput(io.Discard) // the error is returned, and not printed a second time
	flags.StringVar(&cfg.xdsAddress, "xds-address", "", "`host:port` of the control plane's xDS server (required)")
	flags.StringVar(&cfg.xdsServerName, "xds-server-name", certs.ServerName, "DNS name that the control plane's certificate must carry")
	flags.StringVar(&cfg.certDir, "cert-dir", "/etc/latchkey/certs",
		"`directory` with ca.crt, tls.crt and tls.key for the control plane; read anew for each connection")
	flags.StringVar(&cfg.socket, "socket", "/run/latchkey/enforcer.sock", "`path` of the unix socket that Envoy asks on")
	flags.StringVar(&cfg.stateDir, "state-dir", "/var/lib/latchkey", "`directory` for the ledger and the last good policy; one enforcer can use it at a time")
	flags.StringVar(&cfg.nodeID, "node-id", "", "name under which the control plane knows this enforcer (default: the host's name)")
	flags.StringVar(&cfg.metricsAddress, "metrics-address", ":9091", "`host:port` for /metrics, /healthz and /readyz")
	flags.StringVar(&cfg.debugAddress, "debug-address", "", "`host:port` for /debug/pprof/ and /debug/policy, best on the loopback, since anybody who gets there can read them; empty: none")
	flags.DurationVar(&cfg.startGrace, "start-grace", 3*time.Second,
		"how long to wait at the start for the control plane before going on with the policy on disk")
	flags.DurationVar(&cfg.watchGrace, "watch-grace", 2*time.Second,
		"how long, once asked to end, to go on reading answers that are on their way; those that take longer go on unread, and are charged by an estimate")
	flags.IntVar(&cfg.maxRequestBytes, "max-request-bytes", policy.DefaultMaxRequestBytes, "largest request body; the same as the manager's")
	flags.TextVar(&cfg.logLevel, "log-level", slog.LevelInfo, "debug, info, warn or error; debug shows each decision, too")
	flags.TextVar(&cfg.accessLog, "access-log", accessLogRefused,
		"refused, all or none: which requests have a line in the log; with none, only what is the platform's own fault has")
	flags.BoolVar(&cfg.version, "version", false, "print the version and exit")
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		flags.SetOutput(usage)
		_, _ = fmt.Fprintln(usage, "enforcer decides, beside Envoy, which requests pass. Flags:")
		flags.PrintDefaults()
		return config{}, err
	} else if err != nil {
		return config{}, fmt.Errorf("parse flags: %w", err)
	}
	if flags.NArg() > 0 {
		return config{}, fmt.Errorf("parse flags: %q is not a flag, and no other arguments are taken", flags.Arg(0))
	}
	if cfg.version {
		return cfg, nil
	}
	if cfg.nodeID == "" {
		name, err := hostname()
		if err != nil {
			return config{}, fmt.Errorf("find the host's name (set --node-id): %w", err)
		}
		cfg.nodeID = name
	}
	return cfg, cfg.validate()
}

func (c config) validate() error {
	var errs []error
	if c.xdsAddress == "" {
		errs = append(errs, errors.New("--xds-address is missing: set it to the host:port of the control plane's xDS server"))
	} else if _, _, err := net.SplitHostPort(c.xdsAddress); err != nil {
		errs = append(errs, fmt.Errorf("--xds-address must be host:port: %w", err))
	}
	if _, _, err := net.SplitHostPort(c.metricsAddress); err != nil {
		errs = append(errs, fmt.Errorf("--metrics-address must be host:port: %w", err))
	}
	if _, _, err := net.SplitHostPort(c.debugAddress); c.debugAddress != "" && err != nil {
		errs = append(errs, fmt.Errorf("--debug-address must be host:port, or empty: %w", err))
	}
	for _, required := range []struct{ flag, value string }{
		{"--xds-server-name", c.xdsServerName},
		{"--cert-dir", c.certDir},
		{"--socket", c.socket},
		{"--state-dir", c.stateDir},
		{"--node-id", c.nodeID},
	} {
		if required.value == "" {
			errs = append(errs, fmt.Errorf("%s must not be empty", required.flag))
		}
	}
	if c.watchGrace < 0 || c.watchGrace > stopGrace {
		errs = append(errs, fmt.Errorf("--watch-grace must be between 0 and %s", stopGrace))
	}
	if c.startGrace < 0 {
		errs = append(errs, errors.New("--start-grace must not be negative"))
	}
	if c.maxRequestBytes < 1 || c.maxRequestBytes > maxMaxRequestBytes {
		errs = append(errs, fmt.Errorf("--max-request-bytes must be between 1 and %d", maxMaxRequestBytes))
	}
	return errors.Join(errs...)
}
