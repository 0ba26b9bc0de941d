package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/latchkey-dev/latchkey/internal/certs"
	"github.com/latchkey-dev/latchkey/internal/enforce"
	"github.com/latchkey-dev/latchkey/internal/extproc"
	"github.com/latchkey-dev/latchkey/internal/xdsclient"
)

const (
	// stopGrace is how long the requests under way have to be decided once the enforcer is asked to end.
	stopGrace = 10 * time.Second
	// pagesGrace is how long a page being read has, after that.
	pagesGrace = time.Second
)

// dependencies are what tests replace.
type dependencies struct {
	log *slog.Logger
	now func() time.Time
	// pagesAt is told the address of the pages once they can be read. nil: nobody asks.
	pagesAt func(net.Addr)
}

// run enforces until ctx is done, or something fails that the enforcer cannot go on without. It ends in the reverse order of its
// start: no new requests, those under way, the control plane, the disk.
func run(ctx context.Context, cfg config, deps dependencies) (err error) {
	log := deps.log
	clientTLS := func() (*tls.Config, error) { return certs.Client(certs.Dir(cfg.certDir), cfg.xdsServerName) }
	if _, err := clientTLS(); err != nil {
		return fmt.Errorf("load certificates of --cert-dir %s: %w", cfg.certDir, err)
	}
	store, err := xdsclient.OpenStore(cfg.stateDir, log, deps.now())
	if err != nil {
		return fmt.Errorf("open --state-dir %s: %w", cfg.stateDir, err)
	}
	defer func() { err = errors.Join(err, store.Close()) }()

	table := enforce.NewTable()
	client := xdsclient.New(xdsclient.Config{
		Address:    cfg.xdsAddress,
		TLS:        clientTLS,
		NodeID:     cfg.nodeID,
		Store:      store,
		Sink:       table,
		Log:        log,
		StartGrace: cfg.startGrace,
		Now:        deps.now,
	})
	m := newMetrics()
	state := func() policyState { return stateOf(client.Status(), table) }
	m.registry.MustRegister(newPolicyCollector(state))

	pagesListener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", cfg.metricsAddress)
	if err != nil {
		return fmt.Errorf("listen on --metrics-address: %w", err)
	}
	var listening atomic.Bool
	pages := &http.Server{
		Handler:           newPages(m.registry, state, listening.Load, deps.now, log),
		ReadHeaderTimeout: 5 * time.Second,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}

	// What runs in the background goes on while the requests under way finish: revocations hold for them too.
	background, stopBackground := context.WithCancel(context.WithoutCancel(ctx))
	serving, stopServing := context.WithCancelCause(ctx)
	defer stopServing(nil)
	var tasks sync.WaitGroup
	defer tasks.Wait()
	defer stopBackground()
	tasks.Go(func() {
		if err := client.Run(background); err != nil {
			stopServing(fmt.Errorf("follow the control plane: %w", err))
		}
	})
	tasks.Go(func() {
		if err := pages.Serve(pagesListener); !errors.Is(err, http.ErrServerClosed) {
			stopServing(fmt.Errorf("serve --metrics-address: %w", err))
		}
	})
	tasks.Go(func() {
		<-background.Done()
		grace, cancel := context.WithTimeout(context.WithoutCancel(background), pagesGrace)
		defer cancel()
		if err := pages.Shutdown(grace); err != nil {
			_ = pages.Close()
		}
	})
	if deps.pagesAt != nil {
		deps.pagesAt(pagesListener.Addr())
	}

	log.Info("enforcer started, waiting for the policy",
		slog.String("version", buildVersion()), slog.String("nodeId", cfg.nodeID), slog.String("controlPlane", cfg.xdsAddress))
	source, err := client.WaitUsable(serving)
	if err != nil {
		return causeOf(ctx, serving, err)
	}
	engine, err := enforce.New(enforce.Options{Table: table, Observer: newObserver(m, log, deps.now), Now: deps.now})
	if err != nil {
		return fmt.Errorf("make engine: %w", err)
	}
	ln, err := extproc.Listen(serving, cfg.socket)
	if err != nil {
		return fmt.Errorf("open --socket: %w", err)
	}
	listening.Store(true)
	defer context.AfterFunc(serving, func() { listening.Store(false) })()
	log.Info("enforcing", slog.String("socket", cfg.socket), slog.String("policySource", string(source)))
	err = extproc.Serve(serving, ln, extproc.NewAdapter(engine, m, log), extproc.ServeOptions{
		MaxRequestBytes: cfg.maxRequestBytes, StopGrace: stopGrace,
	})
	if err != nil {
		return err
	}
	log.Info("no longer enforcing, ending")
	return causeOf(ctx, serving, nil)
}

// causeOf is why serving ended: nil when the enforcer was asked to end, else the failure of a background task, else err.
func causeOf(asked, serving context.Context, err error) error {
	select {
	case <-asked.Done():
		return nil
	default:
	}
	if cause := context.Cause(serving); cause != nil {
		return cause
	}
	return err
}
