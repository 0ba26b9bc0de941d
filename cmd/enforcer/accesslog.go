package main

import (
	"fmt"
	"log/slog"
	"math"
	"net/http"

	"github.com/latchkey-dev/latchkey/internal/enforce"
)

// accessLog says which requests have a line in the log.
type accessLog string

const (
	accessLogRefused accessLog = "refused" // those that were refused
	accessLogAll     accessLog = "all"     // each one, at its end
	accessLogNone    accessLog = "none"    // those that failed by the platform's own fault
)

// The most lines in a second: whoever hammers on the gateway with a bad key shall not fill the disk. A log of all requests is meant to
// be whole, and is bounded only where a fault would make it a flood.
const (
	refusalsPerSecond = 100
	requestsPerSecond = 10_000
)

// levelNever is the level of a line that is not written, however much the log shows.
const levelNever slog.Level = math.MinInt

// UnmarshalText implements encoding.TextUnmarshaler.
func (a *accessLog) UnmarshalText(text []byte) error {
	switch v := accessLog(text); v {
	case accessLogRefused, accessLogAll, accessLogNone:
		*a = v
		return nil
	default:
		return fmt.Errorf("%q is none of refused, all and none", text)
	}
}

// MarshalText implements encoding.TextMarshaler.
func (a accessLog) MarshalText() ([]byte, error) { return []byte(a), nil }

// linesPerSecond is the most lines in a second.
func (a accessLog) linesPerSecond() int {
	if a == accessLogAll {
		return requestsPerSecond
	}
	return refusalsPerSecond
}

// levelOfDecision is the level of the line for a decision, or levelNever. A request that goes on to a provider has its line at its end.
func (a accessLog) levelOfDecision(d *enforce.Decision) slog.Level {
	if d.Outcome == enforce.OutcomeRefused && d.Status >= http.StatusInternalServerError {
		return slog.LevelWarn // a matter of the platform's, not of the caller's
	}
	switch {
	case a == accessLogNone:
		return levelNever
	case d.Outcome == enforce.OutcomeRefused, d.Outcome == enforce.OutcomeAnswered && a == accessLogAll:
		return slog.LevelInfo
	default:
		return slog.LevelDebug
	}
}

// levelOfEnding is the level of the line for the end of a request that was let through, or levelNever.
func (a accessLog) levelOfEnding(ending enforce.Ending) slog.Level {
	if ending == enforce.EndingCredential {
		return slog.LevelWarn
	}
	switch a {
	case accessLogNone:
		return levelNever
	case accessLogAll:
		return slog.LevelInfo
	default:
		return slog.LevelDebug
	}
}
