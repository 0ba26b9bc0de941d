package main

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// The sources of the policy in force.
const (
	sourceNone         = "none"
	sourceDisk         = "disk"
	sourceControlPlane = "control-plane"
)

// policyState is what is known of the policy in force.
type policyState struct {
	Source       string // sourceNone, sourceDisk or sourceControlPlane
	Connected    bool
	LastChange   time.Time // zero: none yet
	Keys         int
	Applications int
	Models       int
}

// readiness is the body of /readyz.
type readiness struct {
	Ready                bool     `json:"ready"`
	Source               string   `json:"source"`    // where the policy in force comes from
	Connected            bool     `json:"connected"` // to the control plane
	Listening            bool     `json:"listening"` // on the socket that Envoy asks on
	LastChangeAgeSeconds *float64 `json:"lastChangeAgeSeconds"`
	Keys                 int      `json:"keys"`
	Applications         int      `json:"applications"`
	Models               int      `json:"models"`
}

// newPages makes the handler of the metrics address. ready tells whether Envoy is being answered.
func newPages(registry *prometheus.Registry, state func() policyState, listening func() bool, now func() time.Time, log *slog.Logger) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelError), Registry: registry,
	}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, map[string]bool{"alive": true})
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		page := readinessOf(state(), listening(), now())
		code := http.StatusOK
		if !page.Ready {
			code = http.StatusServiceUnavailable
		}
		writeJSON(w, code, page)
	})
	return mux
}

// readinessOf says whether the enforcer can do its work, and by which policy.
func readinessOf(s policyState, listening bool, now time.Time) readiness {
	page := readiness{
		Source: s.Source, Connected: s.Connected, Listening: listening,
		Keys: s.Keys, Applications: s.Applications, Models: s.Models,
	}
	page.Ready = listening && s.Source != sourceNone
	if !s.LastChange.IsZero() {
		page.LastChangeAgeSeconds = new(now.Sub(s.LastChange).Seconds())
	}
	return page
}

func writeJSON(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(body) // it fails when the reader has gone, and then nobody is left to tell
}
