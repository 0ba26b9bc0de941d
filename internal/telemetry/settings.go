package telemetry

import (
	"fmt"
	"strconv"
	"strings"
)

// The protocols of OTEL_EXPORTER_OTLP_PROTOCOL that there are.
const (
	protocolGRPC = "grpc"
	protocolHTTP = "http/protobuf"
)

// The signals, as the variables' names have them.
const (
	signalMetrics = "METRICS"
	signalTraces  = "TRACES"
)

// settings are what the environment asks for, as far as the SDK does not look at it itself.
type settings struct {
	metrics   string // protocol; empty: off
	traces    string
	queueSize int // of spans that wait to be sent
}

// defaultQueueSize is that of the SDK.
const defaultQueueSize = 2048

// readSettings reads the environment. What cannot be understood turns its signal off, and is told.
func readSettings(getenv func(string) string) (settings, []error) {
	s := settings{queueSize: defaultQueueSize}
	if strings.EqualFold(strings.TrimSpace(getenv("OTEL_SDK_DISABLED")), "true") {
		return s, nil
	}
	var errs []error
	var err error
	if s.metrics, err = protocolOf(signalMetrics, getenv); err != nil {
		errs = append(errs, err)
	}
	if s.traces, err = protocolOf(signalTraces, getenv); err != nil {
		errs = append(errs, err)
	}
	if n, err := strconv.Atoi(strings.TrimSpace(getenv("OTEL_BSP_MAX_QUEUE_SIZE"))); err == nil && n > 0 {
		s.queueSize = n
	}
	return s, errs
}

// protocolOf is the protocol by which a signal is sent; empty when it is not.
func protocolOf(signal string, getenv func(string) string) (string, error) {
	get := func(name string) string { return strings.TrimSpace(getenv(name)) }
	name := "OTEL_" + signal + "_EXPORTER"
	switch exporter := get(name); exporter {
	case "otlp":
	case "none":
		return "", nil
	case "":
		if get("OTEL_EXPORTER_OTLP_ENDPOINT") == "" && get("OTEL_EXPORTER_OTLP_"+signal+"_ENDPOINT") == "" {
			return "", nil
		}
	default:
		return "", fmt.Errorf("%s is %q: set it to otlp or none", name, exporter)
	}
	for _, name := range []string{"OTEL_EXPORTER_OTLP_" + signal + "_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"} {
		switch protocol := get(name); protocol {
		case "":
		case protocolGRPC, protocolHTTP:
			return protocol, nil
		default:
			return "", fmt.Errorf("%s is %q: set it to %s or %s", name, protocol, protocolGRPC, protocolHTTP)
		}
	}
	return protocolHTTP, nil
}
