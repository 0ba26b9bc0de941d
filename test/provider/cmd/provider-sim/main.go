// Command provider-sim serves the simulated LLM provider of package provider, and its control API on a port of its own.
//
// On standard output it prints two lines when it is ready, "api URL" and "control URL", whose ports are the real ones where a flag asked for port 0.
// It ends with status 0 on SIGTERM or an interrupt, after the requests that run; held ones are broken.
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/latchkey-dev/latchkey/test/provider"
)

const (
	shutdownTimeout   = 10 * time.Second
	readHeaderTimeout = 10 * time.Second
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	switch {
	case err == nil || errors.Is(err, flag.ErrHelp):
	default:
		fmt.Fprintf(os.Stderr, "provider-sim: %v\n", err)
		os.Exit(1)
	}
}

// options are the command's flags.
type options struct {
	listen, controlListen    string
	credential, anthropicKey string
	models, prefix, base     string
	tlsCert, tlsKey, logFile string
}

func parseOptions(args []string, stderr io.Writer) (options, error) {
	var o options
	flags := flag.NewFlagSet("provider-sim", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&o.listen, "listen", "127.0.0.1:0", "`address` of the provider's API")
	flags.StringVar(&o.controlListen, "control-listen", "127.0.0.1:0", "`address` of the control API, which has no credential")
	flags.StringVar(&o.credential, "credential", "", "`key` that requests must carry as bearer token (required)")
	flags.StringVar(&o.anthropicKey, "anthropic-credential", "", "`key` that requests to Anthropic's API must carry as x-api-key (default: -credential)")
	flags.StringVar(&o.models, "models", "", "comma-separated `names` of the models that exist (default: every name does)")
	flags.StringVar(&o.prefix, "prefix", "", "`path` before the base path")
	flags.StringVar(&o.base, "base", "/v1", "base `path` of the APIs; / is none")
	flags.StringVar(&o.tlsCert, "tls-cert", "", "`file` with the certificate chain in PEM; with -tls-key it serves HTTPS")
	flags.StringVar(&o.tlsKey, "tls-key", "", "`file` with the certificate's key in PEM")
	flags.StringVar(&o.logFile, "log", "", "`file` to append a JSON line to for each request")
	if err := flags.Parse(args); err != nil {
		return o, fmt.Errorf("parse flags: %w", err)
	}
	switch {
	case flags.NArg() > 0:
		return o, fmt.Errorf("parse flags: unexpected argument %q", flags.Arg(0))
	case o.credential == "":
		return o, errors.New("parse flags: -credential is required")
	case (o.tlsCert == "") != (o.tlsKey == ""):
		return o, errors.New("parse flags: -tls-cert and -tls-key go together")
	}
	return o, nil
}

// run serves until ctx ends or a listener fails.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	o, err := parseOptions(args, stderr)
	if err != nil {
		return err
	}
	config := provider.Config{Credential: o.credential, AnthropicCredential: o.anthropicKey, Prefix: o.prefix, Base: o.base}
	for name := range strings.SplitSeq(o.models, ",") {
		if name = strings.TrimSpace(name); name != "" {
			config.Models = append(config.Models, name)
		}
	}
	if o.logFile != "" {
		file, openErr := os.OpenFile(o.logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if openErr != nil {
			return fmt.Errorf("open log: %w", openErr)
		}
		defer func() { err = errors.Join(err, file.Close()) }()
		config.Log = file
	}
	sim := provider.New(config)

	scheme, api, err := listenAPI(ctx, o)
	if err != nil {
		return err
	}
	control, err := listen(ctx, o.controlListen)
	if err != nil {
		return errors.Join(err, api.Close())
	}
	errorLog := slog.NewLogLogger(slog.NewTextHandler(stderr, nil), slog.LevelWarn)
	// Gateways may speak HTTP/2 without TLS to a provider, so both are served on either kind of port.
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	servers := []*http.Server{
		{Handler: sim, Protocols: &protocols, ReadHeaderTimeout: readHeaderTimeout, ErrorLog: errorLog},
		{Handler: sim.Control(), ReadHeaderTimeout: readHeaderTimeout, ErrorLog: errorLog},
	}
	failed := make(chan error, len(servers))
	for i, listener := range []net.Listener{api, control} {
		go func() { failed <- servers[i].Serve(listener) }()
	}
	fmt.Fprintf(stdout, "api %s://%s\ncontrol http://%s\n", scheme, api.Addr(), control.Addr())

	running := len(servers)
	select {
	case <-ctx.Done():
	case err = <-failed:
		running--
		err = fmt.Errorf("serve: %w", err)
	}
	sim.Close()
	stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	for _, server := range servers {
		if shutdownErr := server.Shutdown(stopping); shutdownErr != nil {
			err = errors.Join(err, fmt.Errorf("shut down: %w", shutdownErr), server.Close())
		}
	}
	for range running {
		if serveErr := <-failed; !errors.Is(serveErr, http.ErrServerClosed) {
			err = errors.Join(err, fmt.Errorf("serve: %w", serveErr))
		}
	}
	return errors.Join(err, sim.LogError())
}

func listen(ctx context.Context, address string) (net.Listener, error) {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", address, err)
	}
	return listener, nil
}

// listenAPI listens with TLS if there is a certificate.
func listenAPI(ctx context.Context, o options) (scheme string, listener net.Listener, err error) {
	listener, err = listen(ctx, o.listen)
	if err != nil || o.tlsCert == "" {
		return "http", listener, err
	}
	certificate, err := tls.LoadX509KeyPair(o.tlsCert, o.tlsKey)
	if err != nil {
		return "", nil, errors.Join(fmt.Errorf("load certificate: %w", err), listener.Close())
	}
	return "https", tls.NewListener(listener, &tls.Config{
		Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"},
	}), nil
}
