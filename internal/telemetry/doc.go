// Package telemetry tells OpenTelemetry what became of requests: metrics and one span for each, by the semantic conventions for generative
// AI, as of version 1.41, the last that OpenTelemetry's Go packages have them of.
//
// Input: the standard OTEL_* variables of the environment, and what package enforce tells its observers. Output: OTLP to a collector, over
// gRPC or HTTP. Nothing is made or sent unless those variables ask for it.
//
// The SDK's readers and processors own the goroutines, which Start starts and Shutdown ends. What they cannot send is thrown away: no
// request waits for a collector.
package telemetry
