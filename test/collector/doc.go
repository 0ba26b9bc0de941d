// Package collector is a receiver of OpenTelemetry's protocol, over gRPC and HTTP, for tests.
//
// Input: what exporters send to it. Output: the spans and metrics of that, in a form that can be compared. Start starts its goroutines,
// Stop ends them.
package collector
