package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"

	"github.com/latchkey-dev/latchkey/internal/certs"
	"github.com/latchkey-dev/latchkey/internal/envoyconf"
)

// envoyBootstrap prints the bootstrap that Envoy is started with: where the control plane is, and the certificates to show it.
func envoyBootstrap(args []string, stdout, stderr io.Writer) error {
	hostname, err := os.Hostname()
	if err != nil {
		hostname = "envoy"
	}
	flags := flag.NewFlagSet("manager envoy-bootstrap", flag.ContinueOnError)
	flags.SetOutput(stderr)
	nodeID := flags.String("node-id", hostname, "Envoy's name for the control plane")
	xdsAddress := flags.String("xds-address", "latchkey-manager.latchkey-system.svc:18000", "host:port of the manager's xDS port")
	serverName := flags.String("xds-server-name", certs.ServerName, "name in the manager's certificate")
	certDir := flags.String("cert-dir", "/etc/latchkey/certs", "directory with Envoy's ca.crt, tls.crt and tls.key")
	adminAddress := flags.String("admin-address", "127.0.0.1", "address of Envoy's admin interface")
	output := flags.String("output", "", "file to write it to; empty: stdout")
	adminPort := flags.Uint("admin-port", 9901, "port of Envoy's admin interface")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	host, port, err := net.SplitHostPort(*xdsAddress)
	if err != nil {
		return fmt.Errorf("--xds-address %q: give HOST:PORT: %w", *xdsAddress, err)
	}
	portNumber, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return fmt.Errorf("--xds-address %q: the port is a number from 1 to 65535: %w", *xdsAddress, err)
	}
	yaml, err := envoyconf.Bootstrap(envoyconf.BootstrapConfig{
		NodeID: *nodeID, XDSHost: host, XDSPort: uint32(portNumber), ServerName: *serverName, CertDir: *certDir,
		AdminAddress: *adminAddress, AdminPort: uint32(*adminPort),
	})
	if err != nil {
		return fmt.Errorf("make Envoy's bootstrap: %w", err)
	}
	if *output != "" {
		if err := os.WriteFile(*output, yaml, 0o600); err != nil {
			return fmt.Errorf("write Envoy's bootstrap: %w", err)
		}
		return nil
	}
	_, err = stdout.Write(yaml)
	return err
}
