package main

import (
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/latchkey-dev/latchkey/internal/enforce"
	"github.com/latchkey-dev/latchkey/internal/policy"
)

func TestObserverBoundsTheLogAndCountsEverything(t *testing.T) {
	t.Parallel()
	const many = refusalsPerSecond * 3
	now := time.Unix(0, 0)
	refused := enforce.Decision{Outcome: enforce.OutcomeRefused, Reason: "key_unknown", Status: 401}
	failed := enforce.Decision{Outcome: enforce.OutcomeRefused, Reason: "ledger_unavailable", Status: 503}
	forwarded := enforce.Decision{Outcome: enforce.OutcomeForwarded}
	listed := enforce.Decision{Outcome: enforce.OutcomeAnswered, Reason: "models", Status: 200}
	ended := func(e enforce.Ending) *enforce.Metering {
		return &enforce.Metering{Decision: enforce.Decision{Outcome: enforce.OutcomeForwarded, Status: 200}, Ending: e}
	}
	for name, tc := range map[string]struct {
		access    accessLog
		decision  enforce.Decision
		ending    *enforce.Metering // nil: it was not let through
		level     slog.Level
		times     int // 0: many
		wantLines int
		wantLevel string
		lost      float64
	}{
		"refusals are bounded": {
			access: accessLogRefused, decision: refused, wantLines: refusalsPerSecond, wantLevel: "INFO", lost: many - refusalsPerSecond,
		},
		"failures of the platform's are warnings": {
			access: accessLogRefused, decision: failed, wantLines: refusalsPerSecond, wantLevel: "WARN", lost: many - refusalsPerSecond,
		},
		"what passes is not logged":      {access: accessLogRefused, decision: forwarded, ending: ended(enforce.EndingAnswered)},
		"a list of models is not logged": {access: accessLogRefused, decision: listed},
		"what passes is logged in full for debugging, when it is decided and when it ends": {
			access: accessLogRefused, decision: forwarded, ending: ended(enforce.EndingAnswered), level: slog.LevelDebug,
			wantLines: 2 * many, wantLevel: "DEBUG",
		},
		"refusals that nobody wants logged are not counted as left out": {access: accessLogRefused, decision: refused, level: slog.LevelError},
		"a credential that the provider refuses is a warning": {
			access: accessLogRefused, decision: forwarded, ending: ended(enforce.EndingCredential),
			wantLines: refusalsPerSecond, wantLevel: "WARN", lost: many - refusalsPerSecond,
		},
		"all: a request that passes has one line, at its end": {
			access: accessLogAll, decision: forwarded, ending: ended(enforce.EndingCutOff), wantLines: many, wantLevel: "INFO",
		},
		"all: a list of models has a line":             {access: accessLogAll, decision: listed, wantLines: many, wantLevel: "INFO"},
		"all: a refusal has a line":                    {access: accessLogAll, decision: refused, wantLines: many, wantLevel: "INFO"},
		"all: failures of the platform's are warnings": {access: accessLogAll, decision: failed, wantLines: many, wantLevel: "WARN"},
		"all: a flood is bounded, and what is left out is counted": {
			access: accessLogAll, decision: forwarded, ending: ended(enforce.EndingAnswered),
			times: requestsPerSecond + 7, wantLines: requestsPerSecond, wantLevel: "INFO", lost: 7,
		},
		"none: refusals have no line, not even for debugging": {access: accessLogNone, decision: refused, level: slog.LevelDebug},
		"none: what passes has no line, not even for debugging": {
			access: accessLogNone, decision: forwarded, ending: ended(enforce.EndingAnswered), level: slog.LevelDebug,
		},
		"none: failures of the platform's are warnings still": {
			access: accessLogNone, decision: failed, wantLines: refusalsPerSecond, wantLevel: "WARN", lost: many - refusalsPerSecond,
		},
		"none: a credential that the provider refuses is a warning still": {
			access: accessLogNone, decision: forwarded, ending: ended(enforce.EndingCredential),
			wantLines: refusalsPerSecond, wantLevel: "WARN", lost: many - refusalsPerSecond,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m, log := newMetrics(), &lockedBuffer{}
			o := newObserver(m, slog.New(slog.NewJSONHandler(log, &slog.HandlerOptions{Level: tc.level})), tc.access, func() time.Time { return now })
			times := tc.times
			if times == 0 {
				times = many
			}
			for range times {
				o.Decided(tc.decision)
				if tc.ending != nil {
					o.Metered(*tc.ending)
				}
			}
			if got := strings.Count(log.String(), `"level":"`+tc.wantLevel); got != tc.wantLines {
				t.Errorf("%d lines, want %d", got, tc.wantLines)
			}
			if got := strings.Count(log.String(), "\n"); got != tc.wantLines {
				t.Errorf("%d lines in all, want %d", got, tc.wantLines)
			}
			if got := testutil.ToFloat64(m.suppressed); got != tc.lost {
				t.Errorf("%v left out, want %v", got, tc.lost)
			}
			d := tc.decision
			if got := testutil.ToFloat64(m.decisions.WithLabelValues(string(d.Outcome), d.Reason, d.Capability)); got != float64(times) {
				t.Errorf("%v counted, want %d", got, times)
			}
		})
	}
}

func TestALineSaysAllThatIsKnownOfARequest(t *testing.T) {
	t.Parallel()
	log := &lockedBuffer{}
	o := newObserver(newMetrics(), slog.New(slog.NewJSONHandler(log, nil)), accessLogAll, time.Now)
	o.Metered(enforce.Metering{
		Decision: enforce.Decision{
			Outcome: enforce.OutcomeForwarded, Status: 200, KeyPrefix: "lk_abc", Namespace: "team", Key: "shop-key", Application: "shop",
			Capability: "TextGeneration", Model: "gpt", Provider: "alpha", Dialect: "openai", RequestID: "req-1",
		},
		Ending: enforce.EndingAnswered, Usage: policy.Usage{InputTokens: 3, OutputTokens: 4, Estimated: true}, Cost: 5, Reserved: 6,
	})
	var got map[string]any
	if err := json.Unmarshal([]byte(log.String()), &got); err != nil {
		t.Fatalf("line %q: %v", log.String(), err)
	}
	delete(got, "time")
	want := map[string]any{
		"level": "INFO", "msg": "request ended", "ending": "answered", "status": 200.0, "requestId": "req-1", "keyPrefix": "lk_abc",
		"namespace": "team", "key": "shop-key", "application": "shop", "capability": "TextGeneration", "model": "gpt", "provider": "alpha",
		"dialect": "openai", "inputTokens": 3.0, "outputTokens": 4.0, "estimated": true, "cost": "0.000000005", "reserved": "0.000000006",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("line (-want +got):\n%s", diff)
	}

	// So does the page for operators.
	o.Decided(enforce.Decision{Outcome: enforce.OutcomeRefused})
	decided := log.String()[strings.Index(log.String(), "\n")+1:]
	if err := json.Unmarshal([]byte(decided), &got); err != nil {
		t.Fatalf("line %q: %v", decided, err)
	}
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "metrics.md"))
	if err != nil {
		t.Fatal(err)
	}
	for field := range got {
		if field != "time" && field != "level" && field != "msg" && !strings.Contains(string(page), "`"+field+"`") {
			t.Errorf("docs/metrics.md does not name the field %s", field)
		}
	}
}
