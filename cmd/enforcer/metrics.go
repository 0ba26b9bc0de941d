package main

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
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
			Help: "Refusals that were not logged because there were too many in that second.",
		}),
	}
	buildInfo := prometheus.NewGauge(prometheus.GaugeOpts{
		Name:        metricsPrefix + "build_info",
		Help:        "Always 1; the labels say what was built.",
		ConstLabels: prometheus.Labels{"version": buildVersion(), "revision": buildRevision(), "goversion": goVersion()},
	})
	buildInfo.Set(1)
	m.registry.MustRegister(
		m.decisions, m.duration, m.panics, m.violations, m.suppressed, buildInfo,
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return m
}

// Panicked implements extproc.Faults.
func (m *metrics) Panicked() { m.panics.Inc() }

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
