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

	"github.com/prometheus/client_golang/prometheus"

	"github.com/latchkey-dev/latchkey/internal/certs"
	"github.com/latchkey-dev/latchkey/internal/enforce"
	"github.com/latchkey-dev/latchkey/internal/extproc"
	"github.com/latchkey-dev/latchkey/internal/ledger"
	"github.com/latchkey-dev/latchkey/internal/ledger/journal"
	"github.com/latchkey-dev/latchkey/internal/telemetry"
	"github.com/latchkey-dev/latchkey/internal/usage"
	"github.com/latchkey-dev/latchkey/internal/xdsclient"
)

const (
	// stopGrace is how long the requests under way have to be decided once the enforcer is asked to end.
	stopGrace = 10 * time.Second
	// holdFor is how long a request waits where only requests under way stand in the way of a budget. Envoy gives the enforcer 10 seconds.
	holdFor = 5 * time.Second
	// pagesGrace is how long a page being read has, after that.
	pagesGrace = time.Second
)

// dependencies are what tests replace.
type dependencies struct {
	log *slog.Logger
	now func() time.Time
	// pagesAt is told the address of the pages once they can be read. nil: nobody asks.
	pagesAt func(net.Addr)
	// debugAt is told the address of the debug pages, where there are any. nil: nobody asks.
	debugAt func(net.Addr)
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

	m := newMetrics()
	var trouble atomic.Value // a string: what the last commit failed by
	trouble.Store("")
	books, state, err := journal.OpenDir(cfg.stateDir, journal.Options{
		Log: log, Now: deps.now,
		OnCommit: func(changes int, took time.Duration) {
			m.ledgerChanges.Add(float64(changes))
			m.ledgerCommits.Observe(took.Seconds())
			trouble.Store("")
		},
		OnFailure: func(err error) {
			m.ledgerFailures.Inc()
			trouble.Store(err.Error())
		},
	})
	if err != nil {
		return fmt.Errorf("open the ledger in --state-dir %s: %w", cfg.stateDir, err)
	}
	//nolint:contextcheck // what was open is charged before anything else, however soon the process is asked to end
	counts, err := ledger.Open(ledger.Options{Now: deps.now, Journal: books, State: state, HoldFor: holdFor, OnOverrun: m.overran, Log: log})
	if err != nil {
		return errors.Join(fmt.Errorf("start the ledger: %w", err), books.Close())
	}
	defer func() { err = errors.Join(err, counts.Close()) }()

	told := telemetry.Start(ctx, telemetryOptions(cfg, deps))
	defer told.Shutdown(ctx)

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
	reporter := usage.NewReporter(usage.ReporterConfig{Address: cfg.xdsAddress, TLS: clientTLS, Source: counts, Log: log,
		Trouble: func() string { return trouble.Load().(string) }})
	m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: metricsPrefix + "usage_rows_reported_total",
		Help: "Rows of usage that the control plane has taken over.",
	}, func() float64 { return float64(reporter.Reported()) }))
	policyInForce := func() policyState { return stateOf(client.Status(), table) }
	m.registry.MustRegister(newPolicyCollector(policyInForce), newCertificateCollector(certs.Dir(cfg.certDir)))

	pagesListener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", cfg.metricsAddress)
	if err != nil {
		return fmt.Errorf("listen on --metrics-address: %w", err)
	}
	var listening atomic.Bool
	pages := &http.Server{
		Handler:           newPages(m.registry, policyInForce, listening.Load, deps.now, log),
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

	if cfg.debugAddress != "" {
		debugListener, err := listenForDebug(ctx, cfg.debugAddress, log)
		if err != nil {
			return err
		}
		handler := newDebugPages(func() readiness { return readinessOf(policyInForce(), listening.Load(), deps.now()) })
		tasks.Go(func() {
			if err := serveDebug(background, debugListener, handler, log); err != nil {
				stopServing(err)
			}
		})
		if deps.debugAt != nil {
			deps.debugAt(debugListener.Addr())
		}
	}

	log.Info("enforcer started, waiting for the policy",
		slog.String("version", buildVersion()), slog.String("nodeId", cfg.nodeID), slog.String("controlPlane", cfg.xdsAddress))
	source, err := client.WaitUsable(serving)
	if err != nil {
		return causeOf(ctx, serving, err)
	}
	// Only now: what is reported must not go before what is recalled, or it would take its place.
	if counts.Empty() {
		if err := recall(serving, reporter, counts, log); err != nil {
			return causeOf(ctx, serving, err)
		}
	}
	tasks.Go(func() { reporter.Run(background) })
	watching := observedBy(newObserver(m, log, cfg.accessLog, deps.now), told)
	engine, err := enforce.New(enforce.Options{Table: table, Ledger: counts, Observer: watching, Now: deps.now})
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
		MaxRequestBytes: cfg.maxRequestBytes, StopGrace: stopGrace, WatchGrace: cfg.watchGrace,
	})
	if err != nil {
		return err
	}
	log.Info("no longer enforcing, ending")
	return causeOf(ctx, serving, nil)
}

// recallEvery is how long to wait before the control plane is asked again.
const recallEvery = time.Second

// recall starts a ledger that has no memory of its own from what the control plane last knew. Nobody is let through before that: budgets
// that are used up would be full again.
func recall(ctx context.Context, reporter *usage.Reporter, counts ledger.Ledger, log *slog.Logger) error {
	said := false
	for {
		rows, err := reporter.Recall(ctx)
		if err == nil {
			if err = counts.Seed(rows); err != nil {
				return fmt.Errorf("start the ledger from what the control plane knows: %w", err)
			}
			log.Info("the ledger is new, and starts from what the control plane last knew", slog.Int("accounts", len(rows)))
			return nil
		}
		if !said {
			said = true
			log.Warn("the ledger is new, and the control plane cannot say what was spent; waiting for it", slog.String("error", err.Error()))
		}
		timer := time.NewTimer(recallEvery)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
	}
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
