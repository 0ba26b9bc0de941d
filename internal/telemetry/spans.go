package telemetry

import (
	"context"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.41.0"
	oteltrace "go.opentelemetry.io/otel/trace"

	"github.com/latchkey-dev/latchkey/internal/enforce"
	"github.com/latchkey-dev/latchkey/internal/money"
)

// carrier gives the caller's place in a trace to the SDK. It implements propagation.TextMapCarrier.
type carrier struct{ d *enforce.Decision }

func (c carrier) Get(name string) string {
	switch name {
	case "traceparent":
		return c.d.TraceParent
	case "tracestate":
		return c.d.TraceState
	}
	return ""
}

func (c carrier) Set(string, string) {} // nothing is sent on from here

func (c carrier) Keys() []string { return []string{"traceparent", "tracestate"} }

// begin makes the request's span, as of the request's beginning. It is nil where there are no traces. What a sampler may want to know is
// there from the start.
//
// Its kind is that of a server: it covers the time in which the gateway serves a caller, whose own span is of the kind of a client. The
// call of the provider is made by the proxy, which can have a client's span of its own.
func (t *Telemetry) begin(d *enforce.Decision) (context.Context, oteltrace.Span) {
	ctx := context.Background()
	if t.tracer == nil {
		return ctx, nil
	}
	if d.TraceParent != "" {
		ctx = propagation.TraceContext{}.Extract(ctx, carrier{d})
	}
	a := common(d, 8)
	a.text(keyPrefix, d.KeyPrefix)
	a.text(keyApplication, d.Application)
	a.text(keyNamespace, d.Namespace)
	a.text(keyRequestID, d.RequestID)
	return t.tracer.Start(ctx, spanName(d), oteltrace.WithSpanKind(oteltrace.SpanKindServer), oteltrace.WithTimestamp(d.Began), oteltrace.WithAttributes(a...))
}

// spanName is the operation and the model, as far as they are known: nothing that a caller can make up.
func spanName(d *enforce.Decision) string {
	operation := operationOf(d.Endpoint)
	switch {
	case operation == "":
		return "request"
	case d.Model == "":
		return operation
	}
	return operation + " " + d.Model
}

// endRefused ends the span of a request that was not let through.
func endRefused(span oteltrace.Span, d *enforce.Decision) {
	if span.IsRecording() {
		span.SetAttributes(keyRefusalReason.String(d.Reason), semconv.ErrorTypeKey.String(d.Reason), semconv.HTTPResponseStatusCode(d.Status))
		span.SetStatus(codes.Error, "refused: "+d.Reason)
	}
	span.End(oteltrace.WithTimestamp(d.Began.Add(d.Took)))
}

// endMetered ends the span of a request that was let through.
func endMetered(span oteltrace.Span, m *enforce.Metering, answeredBy string) {
	defer span.End(oteltrace.WithTimestamp(m.Began.Add(m.Took)))
	if !span.IsRecording() {
		return
	}
	a := make(attributes, 0, 16)
	a = append(a, semconv.GenAIRequestStream(m.Stream), keyEnding.String(string(m.Ending)))
	a.text(semconv.GenAIResponseModelKey, answeredBy)
	if m.Ending != enforce.EndingCredential { // of which the caller got another
		a.count(semconv.HTTPResponseStatusCodeKey, int64(m.AnswerStatus))
	}
	a.count(semconv.GenAIUsageInputTokensKey, m.Usage.InputTokens)
	a.count(semconv.GenAIUsageOutputTokensKey, m.Usage.OutputTokens)
	a.count(semconv.GenAIUsageCacheReadInputTokensKey, m.Usage.CachedInputTokens)
	a.count(semconv.GenAIUsageCacheCreationInputTokensKey, m.Usage.CacheWriteTokens)
	a.count(semconv.GenAIUsageReasoningOutputTokensKey, m.Usage.ReasoningTokens)
	a.seconds(semconv.GenAIResponseTimeToFirstChunkKey, m.FirstText)
	if m.Usage.Estimated {
		a = append(a, keyEstimated.Bool(true))
	}
	if m.Cost > 0 {
		a = append(a, keyCost.Float64(float64(m.Cost)/float64(money.Unit)), keyCurrency.String(m.Currency))
	}
	if failed := errorOf(m); failed != "" {
		a.text(semconv.ErrorTypeKey, failed)
		span.SetStatus(codes.Error, string(m.Ending))
	}
	span.SetAttributes(a...)
}

func (a *attributes) seconds(k attribute.Key, d time.Duration) {
	if d > 0 {
		*a = append(*a, k.Float64(d.Seconds()))
	}
}
