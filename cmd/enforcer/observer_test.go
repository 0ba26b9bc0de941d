package main

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/latchkey-dev/latchkey/internal/enforce"
)

func TestObserverBoundsTheLogAndCountsEverything(t *testing.T) {
	t.Parallel()
	const many = refusalsPerSecond * 3
	now := time.Unix(0, 0)
	for name, tc := range map[string]struct {
		decision   enforce.Decision
		level      slog.Level
		wantLines  int
		wantLevel  string
		suppressed float64
	}{
		"refusals are bounded": {
			decision: enforce.Decision{Outcome: enforce.OutcomeRefused, Reason: "key_unknown", Status: 401},
			level:    slog.LevelInfo, wantLines: refusalsPerSecond, wantLevel: "INFO", suppressed: many - refusalsPerSecond,
		},
		"failures of the platform's are warnings": {
			decision: enforce.Decision{Outcome: enforce.OutcomeRefused, Reason: "provider_credential", Status: 502},
			level:    slog.LevelInfo, wantLines: refusalsPerSecond, wantLevel: "WARN", suppressed: many - refusalsPerSecond,
		},
		"what passes is not logged": {
			decision: enforce.Decision{Outcome: enforce.OutcomeForwarded}, level: slog.LevelInfo,
		},
		"what passes is logged in full when asked for": {
			decision: enforce.Decision{Outcome: enforce.OutcomeForwarded}, level: slog.LevelDebug, wantLines: many, wantLevel: "DEBUG",
		},
		"refusals that nobody wants logged are not counted as suppressed": {
			decision: enforce.Decision{Outcome: enforce.OutcomeRefused, Status: 401}, level: slog.LevelError,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m, log := newMetrics(), &lockedBuffer{}
			o := newObserver(m, slog.New(slog.NewJSONHandler(log, &slog.HandlerOptions{Level: tc.level})), func() time.Time { return now })
			for range many {
				o.Decided(tc.decision)
			}
			if got := strings.Count(log.String(), `"level":"`+tc.wantLevel); got != tc.wantLines {
				t.Errorf("%d lines, want %d", got, tc.wantLines)
			}
			if got := strings.Count(log.String(), "\n"); got != tc.wantLines {
				t.Errorf("%d lines in all, want %d", got, tc.wantLines)
			}
			if got := testutil.ToFloat64(m.suppressed); got != tc.suppressed {
				t.Errorf("%v suppressed, want %v", got, tc.suppressed)
			}
			d := tc.decision
			if got := testutil.ToFloat64(m.decisions.WithLabelValues(string(d.Outcome), d.Reason, d.Capability)); got != many {
				t.Errorf("%v counted, want %d", got, many)
			}
		})
	}
}
