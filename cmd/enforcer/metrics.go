package main

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/latchkey-dev/latchkey/internal/certs"
	"github.com/latchkey-dev/latchkey/internal/money"
)

const metricsPrefix = "latchkey_enforcer_"

// metrics are the enforcer's own. No label names a key, an application or anything else that grows with the number of users.
type metrics struct {
	registry   *prometheus.Registry
	decisions  *prometheus.CounterVec
	duration   prometheus.Histogram
	panics     prometheus.Counter
	violations prometheus.Counter
	suppressed prometheus.Counter

	endings        *prometheus.CounterVec
	tokens         *prometheus.CounterVec
	spend          *prometheus.CounterVec
	estimates      prometheus.Counter
	overruns       prometheus.Counter
	overrun        prometheus.Counter
	ledgerFailures prometheus.Counter
	ledgerCommits  prometheus.Histogram
	ledgerChanges  prometheus.Counter
}

func newMetrics() *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		decisions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: metricsPrefix + "decisions_total",
			Help: "Requests decided, by outcome, by the reason of a refusal, and by the capability asked for where it is known.",
		}, []string{"outcome", "reason", "capability"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    metricsPrefix + "decision_duration_seconds",
			Help:    "Time that the engine took to decide, without the time that Envoy took to bring the request.",
			Buckets: []float64{2e-6, 5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 5e-3, 2e-2, 0.1, 0.5},
		}),
		panics: prometheus.NewCounter(prometheus.CounterOpts{
			Name: metricsPrefix + "panics_total",
			Help: "Requests refused because the engine panicked. Each is a bug; the log has its stack.",
		}),
		violations: prometheus.NewCounter(prometheus.CounterOpts{
			Name: metricsPrefix + "protocol_violations_total",
			Help: "Requests refused because Envoy sent something else than it must, by its configuration most likely.",
		}),
		suppressed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: metricsPrefix + "suppressed_log_lines_total",
			Help: "Lines of the access log that were left out because there were too many in that second.",
		}),
	}
	m.endings = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: metricsPrefix + "requests_ended_total",
		Help: "Requests that were let through, by model and by how they ended.",
	}, []string{"model", "ending"})
	m.tokens = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: metricsPrefix + "tokens_total",
		Help: "Tokens of the answers, by model and by type: input (cached included) and output.",
	}, []string{"model", "type"})
	m.spend = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: metricsPrefix + "spend_total",
		Help: "Price of what was used, in units of the currency, by model. The ledger has it exactly.",
	}, []string{"model"})
	m.estimates = prometheus.NewCounter(prometheus.CounterOpts{
		Name: metricsPrefix + "estimated_answers_total",
		Help: "Answers whose usage the provider did not, or not wholly, report.",
	})
	m.overruns = prometheus.NewCounter(prometheus.CounterOpts{
		Name: metricsPrefix + "budget_overruns_total",
		Help: "Settlements by which a budget was passed.",
	})
	m.overrun = prometheus.NewCounter(prometheus.CounterOpts{
		Name: metricsPrefix + "budget_overrun_spend_total",
		Help: "By how much budgets were passed in all, in units of the currency.",
	})
	m.ledgerFailures = prometheus.NewCounter(prometheus.CounterOpts{
		Name: metricsPrefix + "ledger_failures_total",
		Help: "Requests for which the ledger could not write, and its failed commits.",
	})
	m.ledgerCommits = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name:    metricsPrefix + "ledger_commit_duration_seconds",
		Help:    "Time that the ledger's disk took for a commit, of as many changes as had come together.",
		Buckets: []float64{1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.5, 1, 5},
	})
	m.ledgerChanges = prometheus.NewCounter(prometheus.CounterOpts{
		Name: metricsPrefix + "ledger_changes_total",
		Help: "Changes that the ledger has written.",
	})
	buildInfo := prometheus.NewGauge(prometheus.GaugeOpts{
		Name:        metricsPrefix + "build_info",
		Help:        "Always 1; the labels say what was built.",
		ConstLabels: prometheus.Labels{"version": buildVersion(), "revision": buildRevision(), "goversion": goVersion()},
	})
	buildInfo.Set(1)
	m.registry.MustRegister(
		m.decisions, m.duration, m.panics, m.violations, m.suppressed, buildInfo,
		m.endings, m.tokens, m.spend, m.estimates, m.overruns, m.overrun, m.ledgerFailures, m.ledgerCommits, m.ledgerChanges,
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return m
}

// Panicked implements extproc.Faults.
func (m *metrics) Panicked() { m.panics.Inc() }

// overran counts by how much a settlement has passed a budget.
func (m *metrics) overran(by money.Amount) {
	m.overruns.Inc()
	m.overrun.Add(float64(by) / float64(money.Unit))
}

// Violated implements extproc.Faults.
func (m *metrics) Violated() { m.violations.Inc() }

// policyCollector shows what the policy in force holds, as of the scrape.
type policyCollector struct {
	state      func() policyState
	entries    *prometheus.Desc
	connected  *prometheus.Desc
	lastChange *prometheus.Desc
}

func newPolicyCollector(state func() policyState) *policyCollector {
	return &policyCollector{
		state: state,
		entries: prometheus.NewDesc(metricsPrefix+"policy_entries",
			"Entries of the policy in force, by kind.", []string{"kind"}, nil),
		connected: prometheus.NewDesc(metricsPrefix+"control_plane_connected",
			"1 while the stream from the control plane is open, 0 otherwise.", nil, nil),
		lastChange: prometheus.NewDesc(metricsPrefix+"policy_last_change_timestamp_seconds",
			"When the policy in force last changed, in seconds since 1970; absent before it first did.", nil, nil),
	}
}

// Describe implements prometheus.Collector.
func (c *policyCollector) Describe(descs chan<- *prometheus.Desc) {
	descs <- c.entries
	descs <- c.connected
	descs <- c.lastChange
}

// Collect implements prometheus.Collector.
func (c *policyCollector) Collect(out chan<- prometheus.Metric) {
	state := c.state()
	for kind, n := range map[string]int{"key": state.Keys, "application": state.Applications, "model": state.Models} {
		out <- prometheus.MustNewConstMetric(c.entries, prometheus.GaugeValue, float64(n), kind)
	}
	connected := 0.0
	if state.Connected {
		connected = 1
	}
	out <- prometheus.MustNewConstMetric(c.connected, prometheus.GaugeValue, connected)
	if !state.LastChange.IsZero() {
		seconds := float64(state.LastChange.UnixNano()) / float64(time.Second)
		out <- prometheus.MustNewConstMetric(c.lastChange, prometheus.GaugeValue, seconds)
	}
}

// certificateCollector shows when the certificate ends that the next connection to the control plane is made with.
type certificateCollector struct {
	source certs.Source
	expiry *prometheus.Desc
}

func newCertificateCollector(source certs.Source) *certificateCollector {
	return &certificateCollector{source: source, expiry: prometheus.NewDesc(metricsPrefix+"certificate_expiry_timestamp_seconds",
		"When the enforcer's certificate for the control plane ends, in seconds since 1970; absent where it cannot be read.", nil, nil)}
}

// Describe implements prometheus.Collector.
func (c *certificateCollector) Describe(descs chan<- *prometheus.Desc) { descs <- c.expiry }

// Collect implements prometheus.Collector. A certificate that cannot be read fails the connection, which logs it.
func (c *certificateCollector) Collect(out chan<- prometheus.Metric) {
	bundle, err := c.source()
	if err != nil {
		return
	}
	_, own, err := certs.Expiry(bundle)
	if err != nil {
		return
	}
	out <- prometheus.MustNewConstMetric(c.expiry, prometheus.GaugeValue, float64(own.Unix()))
}
