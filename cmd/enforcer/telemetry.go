package main

import (
	"os"

	_ "golang.org/x/crypto/x509roots/fallback" // collectors with public certificates: the image has no list of authorities of its own

	"github.com/latchkey-dev/latchkey/internal/enforce"
	"github.com/latchkey-dev/latchkey/internal/telemetry"
)

// serviceName is what OpenTelemetry's collectors know enforcers by, where the environment does not say.
const serviceName = "latchkey-enforcer"

func telemetryOptions(cfg config, deps dependencies) telemetry.Options {
	return telemetry.Options{
		Service: serviceName, Version: buildVersion(), Instance: cfg.nodeID,
		Getenv: os.Getenv, // the SDK reads the environment, too
		Log:    deps.log, Now: deps.now,
	}
}

// observedBy is an observer for both; first alone where no telemetry is wanted.
func observedBy(first enforce.Observer, told *telemetry.Telemetry) enforce.Observer {
	if told == nil {
		return first
	}
	return observers{first, told}
}

// observers tells each of them. It implements enforce.Observer.
type observers []enforce.Observer

// Decided implements enforce.Observer.
func (o observers) Decided(d enforce.Decision) {
	for _, observer := range o {
		observer.Decided(d)
	}
}

// Metered implements enforce.Observer.
func (o observers) Metered(m enforce.Metering) {
	for _, observer := range o {
		observer.Metered(m)
	}
}

// LedgerFailed implements enforce.Observer.
func (o observers) LedgerFailed(err error) {
	for _, observer := range o {
		observer.LedgerFailed(err)
	}
}
