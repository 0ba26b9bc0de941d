package telemetry

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/latchkey-dev/latchkey/test/collector"
)

// TestCollectorsThatHang hold up neither requests nor the end: the timeouts of the environment are far longer than the test may last.
func TestCollectorsThatHang(t *testing.T) {
	const tenHours = "36000000"
	for protocol, url := range map[string]func(*collector.Collector) string{
		"grpc":          func(c *collector.Collector) string { return c.GRPC },
		"http/protobuf": func(c *collector.Collector) string { return c.HTTP },
	} {
		t.Run(protocol, func(t *testing.T) {
			hold := make(chan struct{})
			c := newCollector(t, hold)
			t.Cleanup(func() { close(hold) })
			const queued, all = 20, 500
			told, log := start(t, map[string]string{
				"OTEL_EXPORTER_OTLP_ENDPOINT": url(c), "OTEL_EXPORTER_OTLP_PROTOCOL": protocol, "OTEL_EXPORTER_OTLP_TIMEOUT": tenHours,
				"OTEL_BSP_EXPORT_TIMEOUT": tenHours, "OTEL_METRIC_EXPORT_TIMEOUT": tenHours, "OTEL_METRIC_EXPORT_INTERVAL": "10",
				"OTEL_BSP_SCHEDULE_DELAY": "1", "OTEL_BSP_MAX_QUEUE_SIZE": fmt.Sprint(queued), "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "5",
			})
			told.Metered(chat())
			eventually(t, "both signals to hang", func() bool { return c.Calls() >= 2 })
			var crowd sync.WaitGroup
			for range 4 {
				crowd.Go(func() {
					for range all / 4 {
						told.Metered(chat())
						told.Decided(refusal())
					}
				})
			}
			crowd.Wait()
			if lost := told.faults.spansLost(); lost != 2*all+1-queued {
				t.Errorf("%d spans are counted as lost", lost)
			}
			told.Shutdown(t.Context())
			eventually(t, "the rest to be counted", func() bool { return told.faults.spansLost() == 2*all+1 })
			// One line that it is there, one of the first that was lost, one at the end.
			if n := log.lines(); n < 2 || n > 3 || !strings.Contains(log.String(), `"spansLostInAll"`) {
				t.Errorf("%d lines of log: %s", n, log)
			}
		})
	}
}

func TestCollectorsThatAreDown(t *testing.T) {
	for _, protocol := range []string{"grpc", "http/protobuf"} {
		t.Run(protocol, func(t *testing.T) {
			ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			url := "http://" + ln.Addr().String()
			if err := ln.Close(); err != nil {
				t.Fatal(err)
			}
			told, log := start(t, map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_EXPORTER_OTLP_PROTOCOL": protocol})
			for range 100 {
				told.Metered(chat())
			}
			told.Shutdown(t.Context())
			eventually(t, "the loss to be counted", func() bool { return told.faults.spansLost() == 100 })
			if !strings.Contains(log.String(), "telemetry could not be sent") || log.lines() > 3 {
				t.Errorf("log %s", log)
			}
		})
	}
}

func TestFaultsAreLoggedNowAndThen(t *testing.T) {
	t.Parallel()
	log, now := &lockedBuffer{}, noon
	f := newFaults(slog.New(slog.NewTextHandler(log, nil)), func() time.Time { return now })
	f.close() // there is nothing to say
	for i := range 1000 {
		f.lose(2, "full")
		f.Handle(fmt.Errorf("fault %d", i))
		now = now.Add(100 * time.Millisecond)
	}
	f.logger().Error(errors.New("quiet"), "parse headers", "input", "authorization=secret")
	f.logger().WithName("x").WithValues("input", "secret").Info("quiet", "input", "secret")
	f.close()
	got := log.String()
	if log.lines() != 3 || strings.Contains(got, "secret") {
		t.Fatalf("logged %s", got)
	}
	for _, want := range []string{"error=full faults=1 spansLost=2 spansLostInAll=2", "faults=1200 spansLost=1200 spansLostInAll=1202", "error=\"parse headers\" faults=800 spansLost=798 spansLostInAll=2000"} {
		if !strings.Contains(got, want) {
			t.Errorf("%s is not in %s", want, got)
		}
	}
}
