package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/latchkey-dev/latchkey/internal/policy"
)

// config is what the flags say.
type config struct {
	kubeconfig      string
	namespace       string
	watchNamespaces []string // empty: all
	identity        string
	xdsAddress      string
	metricsAddress  string
	healthAddress   string
	debugAddress    string // empty: no debug pages
	leaderElect     bool
	gatewayAddress  string
	gatewayPort     uint
	enforcerSocket  string
	maxRequestBytes uint
	certDir         string
	selfSigned      bool
	usageWrites     float64
	logLevel        slog.Level
}

func parseFlags(args []string, stderr io.Writer) (config, error) {
	var cfg config
	hostname, err := os.Hostname()
	if err != nil {
		hostname = "manager"
	}
	flags := flag.NewFlagSet("manager", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&cfg.kubeconfig, "kubeconfig", "", "kubeconfig file; empty: the Pod's service account, or $KUBECONFIG")
	flags.StringVar(&cfg.namespace, "namespace", envOr("POD_NAMESPACE", "latchkey-system"), "namespace that Latchkey is installed in; providers' credentials are read there ($POD_NAMESPACE)")
	flags.Func("watch-namespaces", "`namespaces`, with commas between them, whose keys and applications are managed; Secrets are touched there and in --namespace only. Empty: all", func(list string) error {
		for name := range strings.SplitSeq(list, ",") {
			if name = strings.TrimSpace(name); name != "" && !slices.Contains(cfg.watchNamespaces, name) {
				cfg.watchNamespaces = append(cfg.watchNamespaces, name)
			}
		}
		return nil
	})
	flags.StringVar(&cfg.identity, "identity", envOr("POD_NAME", hostname), "name of this replica, unique among them ($POD_NAME, else the host's name)")
	flags.StringVar(&cfg.xdsAddress, "xds-address", ":18000", "address of the xDS port, for enforcers and Envoys")
	flags.StringVar(&cfg.metricsAddress, "metrics-address", ":9100", "address of the metrics; 0: none")
	flags.StringVar(&cfg.healthAddress, "health-address", ":9101", "address of /healthz and /readyz")
	flags.StringVar(&cfg.debugAddress, "debug-address", "", "`host:port` for /debug/pprof/, best on the loopback, since anybody who gets there can read it; empty: none")
	flags.BoolVar(&cfg.leaderElect, "leader-elect", true, "elect a leader among replicas; only the leader writes Secrets and status")
	flags.StringVar(&cfg.gatewayAddress, "gateway-address", "0.0.0.0", "address that Envoy listens on for callers")
	flags.UintVar(&cfg.gatewayPort, "gateway-port", 8080, "port that Envoy listens on for callers")
	flags.StringVar(&cfg.enforcerSocket, "enforcer-socket", "/run/latchkey/enforcer.sock", "unix socket, beside Envoy, that the enforcer answers on")
	flags.UintVar(&cfg.maxRequestBytes, "max-request-bytes", policy.DefaultMaxRequestBytes, "most bytes that a request's body can hold")
	flags.StringVar(&cfg.certDir, "cert-dir", "", "directory with the xDS port's ca.crt, tls.crt and tls.key, as cert-manager writes them")
	flags.BoolVar(&cfg.selfSigned, "self-signed", false, "issue the xDS port's certificates by an authority of the manager's own, kept in Secrets of the namespace")
	flags.Float64Var(&cfg.usageWrites, "usage-writes-per-second", 5, "most writes of status.usage in a second, by this replica; thousands of busy keys take turns")
	flags.TextVar(&cfg.logLevel, "log-level", slog.LevelInfo, "DEBUG, INFO, WARN or ERROR")
	if err := flags.Parse(args); err != nil {
		return config{}, err
	}
	switch {
	case flags.NArg() > 0:
		return config{}, fmt.Errorf("unexpected argument %q: the manager takes flags only, or the command envoy-bootstrap", flags.Arg(0))
	case (cfg.certDir == "") == !cfg.selfSigned:
		return config{}, errors.New("the xDS port needs certificates: give either --cert-dir DIR or --self-signed")
	case cfg.gatewayPort == 0 || cfg.gatewayPort > 65535:
		return config{}, fmt.Errorf("--gateway-port %d: a port is a number from 1 to 65535", cfg.gatewayPort)
	case cfg.maxRequestBytes == 0 || cfg.maxRequestBytes > 1<<30:
		return config{}, fmt.Errorf("--max-request-bytes %d: give a number from 1 to 1073741824 (1 GiB)", cfg.maxRequestBytes)
	case !(cfg.usageWrites > 0) || cfg.usageWrites > 1000:
		return config{}, fmt.Errorf("--usage-writes-per-second %v: give a number above 0 and up to 1000", cfg.usageWrites)
	case cfg.namespace == "":
		return config{}, errors.New("--namespace must not be empty")
	}
	if _, _, err := net.SplitHostPort(cfg.debugAddress); cfg.debugAddress != "" && err != nil {
		return config{}, fmt.Errorf("--debug-address must be host:port, or empty: %w", err)
	}
	return cfg, nil
}

// onLoopback reports whether only this machine can get to an address. A name that is not localhost can stand for anything.
func onLoopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || (err == nil && ip.IsLoopback())
}

func envOr(name, fallback string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return fallback
}
