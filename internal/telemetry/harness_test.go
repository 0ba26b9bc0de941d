package telemetry

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/latchkey-dev/latchkey/test/collector"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 30 * time.Second

// eventually polls until the condition holds.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-ctx.Done():
			t.Fatalf("waited in vain for %s", what)
		case <-tick.C:
		}
	}
}

func newCollector(t *testing.T, hold <-chan struct{}) *collector.Collector {
	t.Helper()
	c, err := collector.Start(t.Context(), hold)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Stop)
	return c
}

// lockedBuffer is a log.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func (b *lockedBuffer) lines() int { return strings.Count(b.String(), "\n") }

// start starts telemetry as an environment says, which is put in place for the SDK, too.
func start(t *testing.T, environment map[string]string) (*Telemetry, *lockedBuffer) {
	t.Helper()
	for name, value := range environment {
		t.Setenv(name, value)
	}
	log := &lockedBuffer{}
	told := Start(t.Context(), Options{
		Service: "latchkey-enforcer", Version: "v1.2.3", Instance: "node-1",
		Getenv: func(name string) string { return environment[name] },
		Log:    slog.New(slog.NewJSONHandler(log, nil)), Now: time.Now,
	})
	t.Cleanup(func() { told.Shutdown(context.Background()) })
	return told, log
}
