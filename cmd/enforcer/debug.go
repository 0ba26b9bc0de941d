package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"time"
)

// newDebugPages makes the handler of the debug address: Go's profiles, and what is known of the policy in force. No page shows a key or
// its hash. The pages are for operators all the same: whoever reads them learns how the process was started, and can keep it busy.
//
// net/http/pprof enters its pages into http.DefaultServeMux as well, which nothing here serves.
func newDebugPages(policy func() readiness) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	mux.HandleFunc("GET /debug/policy", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, http.StatusOK, policy()) })
	return mux
}

// listenForDebug opens the debug address, and warns where others than this machine can reach it.
func listenForDebug(ctx context.Context, address string, log *slog.Logger) (net.Listener, error) {
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen on --debug-address: %w", err)
	}
	at := slog.String("address", ln.Addr().String())
	if tcp, ok := ln.Addr().(*net.TCPAddr); ok && tcp.IP.IsLoopback() {
		log.Info("serving debug pages", at)
	} else {
		log.Warn("serving debug pages to other machines, without access control: give --debug-address a loopback address", at)
	}
	return ln, nil
}

// serveDebug answers until ctx is done.
func serveDebug(ctx context.Context, ln net.Listener, handler http.Handler, log *slog.Logger) error {
	server := &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 5 * time.Second,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	// A profile can take minutes, and nothing waits for it.
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	if err := server.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve --debug-address: %w", err)
	}
	return nil
}
