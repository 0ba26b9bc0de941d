package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/latchkey-dev/latchkey/internal/enforce"
	"github.com/latchkey-dev/latchkey/internal/money"
	"github.com/latchkey-dev/latchkey/internal/xdsclient"
)

// observer counts and logs decisions. It implements enforce.Observer.
type observer struct {
	metrics *metrics
	log     *slog.Logger
	access  accessLog
	sampler *sampler
}

func newObserver(m *metrics, log *slog.Logger, access accessLog, now func() time.Time) *observer {
	return &observer{metrics: m, log: log, access: access, sampler: newSampler(access.linesPerSecond(), now)}
}

// Decided implements enforce.Observer.
func (o *observer) Decided(d enforce.Decision) {
	o.metrics.decisions.WithLabelValues(string(d.Outcome), d.Reason, d.Capability).Inc()
	o.metrics.duration.Observe(d.Elapsed.Seconds())

	level := o.access.levelOfDecision(&d)
	if !o.wanted(level) {
		return
	}
	o.log.LogAttrs(context.Background(), level, "request decided",
		slog.String("outcome", string(d.Outcome)),
		slog.String("reason", d.Reason),
		slog.Int("status", d.Status),
		slog.String("requestId", d.RequestID),
		slog.String("keyPrefix", d.KeyPrefix),
		slog.String("namespace", d.Namespace),
		slog.String("key", d.Key),
		slog.String("application", d.Application),
		slog.String("capability", d.Capability),
		slog.String("model", d.Model),
		slog.String("provider", d.Provider),
		slog.String("dialect", d.Dialect),
	)
}

// Metered implements enforce.Observer.
func (o *observer) Metered(m enforce.Metering) {
	o.metrics.endings.WithLabelValues(m.Model, string(m.Ending)).Inc()
	o.metrics.tokens.WithLabelValues(m.Model, "input").Add(float64(m.Usage.InputTokens))
	o.metrics.tokens.WithLabelValues(m.Model, "output").Add(float64(m.Usage.OutputTokens))
	o.metrics.spend.WithLabelValues(m.Model).Add(float64(m.Cost) / float64(money.Unit))
	if m.Usage.Estimated {
		o.metrics.estimates.Inc()
	}
	if m.Failure != nil {
		o.metrics.ledgerFailures.Inc()
	}
	level := o.access.levelOfEnding(m.Ending)
	if !o.wanted(level) {
		return
	}
	o.log.LogAttrs(context.Background(), level, "request ended",
		slog.String("ending", string(m.Ending)),
		slog.Int("status", m.Status),
		slog.String("requestId", m.RequestID),
		slog.String("keyPrefix", m.KeyPrefix),
		slog.String("namespace", m.Namespace),
		slog.String("key", m.Key),
		slog.String("application", m.Application),
		slog.String("capability", m.Capability),
		slog.String("model", m.Model),
		slog.String("provider", m.Provider),
		slog.String("dialect", m.Dialect),
		slog.Int64("inputTokens", m.Usage.InputTokens),
		slog.Int64("outputTokens", m.Usage.OutputTokens),
		slog.Bool("estimated", m.Usage.Estimated),
		slog.String("cost", m.Cost.String()),
		slog.String("reserved", m.Reserved.String()),
	)
}

// wanted reports whether a line is to be written, and counts it if it is one too many. What is shown for debugging is not bounded.
func (o *observer) wanted(level slog.Level) bool {
	if level == levelNever || !o.log.Enabled(context.Background(), level) {
		return false
	}
	if level > slog.LevelDebug && !o.sampler.allow() {
		o.metrics.suppressed.Inc()
		return false
	}
	return true
}

// LedgerFailed implements enforce.Observer. The ledger itself logs why.
func (o *observer) LedgerFailed(error) { o.metrics.ledgerFailures.Inc() }

// stateOf puts together what the client and the table know of the policy in force.
func stateOf(status xdsclient.Status, table *enforce.Table) policyState {
	state := policyState{Source: sourceNone, Connected: status.Connected, LastChange: status.LastChange}
	switch status.Source {
	case xdsclient.SourceDisk:
		state.Source = sourceDisk
	case xdsclient.SourceControlPlane:
		state.Source = sourceControlPlane
	case xdsclient.SourceNone:
	}
	state.Keys, state.Applications, state.Models = table.Counts()
	return state
}
