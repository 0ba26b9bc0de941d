package main

import (
	"context"
	"net"
	"strconv"
	"testing"
	"time"

	cachev3 "github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/latchkey-dev/latchkey/internal/certs"
	"github.com/latchkey-dev/latchkey/internal/keyset"
	"github.com/latchkey-dev/latchkey/internal/xds"
	"github.com/latchkey-dev/latchkey/test/ports"
)

func TestNotReadyBeforeThePolicyIsPublished(t *testing.T) {
	t.Parallel()
	port, err := ports.Free(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	server, err := xds.New(xds.Config{
		TLS:    certs.Server(certs.Dir(t.TempDir())),
		KeySet: keyset.NewCache(keyset.SystemClock{}), Envoy: cachev3.NewSnapshotCache(true, xds.EnvoyGroup{}, nil),
		Log: logr.Discard(), Metrics: prometheus.NewRegistry(),
	})
	if err != nil {
		t.Fatal(err)
	}
	published := make(chan struct{})
	x := &xdsPort{server: server, after: published, address: "127.0.0.1:" + strconv.Itoa(port)}
	if x.NeedLeaderElection() {
		t.Error("only the leader would become ready, and none of the others serve")
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- x.Start(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("serve: %v", err)
		}
	})

	dial := func() error {
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", x.address)
		if err == nil {
			_ = conn.Close()
		}
		return err
	}
	if err := x.check(); err == nil {
		t.Error("ready before the policy is published")
	}
	if err := dial(); err == nil {
		t.Error("the xDS port is open before the policy is published")
	}

	close(published)
	deadline, stop := context.WithTimeout(t.Context(), 30*time.Second)
	defer stop()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for x.check() != nil {
		select {
		case <-deadline.Done():
			t.Fatalf("not ready although the policy is published: %v", x.check())
		case <-ticker.C:
		}
	}
	if err := dial(); err != nil {
		t.Errorf("ready, but the xDS port is closed: %v", err)
	}
}

func TestAManagerThatEndsBeforeItPublishesIsNeverReady(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	x := &xdsPort{after: make(chan struct{}), address: "127.0.0.1:0"}
	if err := x.Start(ctx); err != nil {
		t.Errorf("Start: %v", err)
	}
	if err := x.check(); err == nil {
		t.Error("ready")
	}
}
