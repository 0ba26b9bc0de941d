package telemetry

import (
	"context"
	"sync/atomic"

	"go.opentelemetry.io/otel/sdk/trace"
)

// queue counts the spans that wait to be sent, and those that are being sent.
type queue struct {
	limit  int64
	held   atomic.Int64
	faults *faults
}

// gate lets into a processor as many spans as its queue has room for, and counts those it turns away. It never waits.
type gate struct {
	trace.SpanProcessor

	queue *queue
}

// OnEnd implements trace.SpanProcessor.
func (g *gate) OnEnd(span trace.ReadOnlySpan) {
	if !span.SpanContext().IsSampled() {
		return
	}
	if g.queue.held.Add(1) > g.queue.limit {
		g.queue.held.Add(-1)
		g.queue.faults.lose(1, "the queue of spans is full")
		return
	}
	g.SpanProcessor.OnEnd(span)
}

// sender sends what comes out of the queue. It gives up once sending is done.
type sender struct {
	trace.SpanExporter

	queue   *queue
	sending context.Context //nolint:containedctx // it ends every call there is, whoever makes it
}

// ExportSpans implements trace.SpanExporter.
func (s *sender) ExportSpans(ctx context.Context, spans []trace.ReadOnlySpan) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.sending, cancel)() //nolint:contextcheck // it is there to end the call, not to be passed on
	err := s.SpanExporter.ExportSpans(ctx, spans)
	s.queue.held.Add(-int64(len(spans)))
	if err != nil {
		s.queue.faults.lose(int64(len(spans)), err.Error())
	}
	return nil // it has been told
}
