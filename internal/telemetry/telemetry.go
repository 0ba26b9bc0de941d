package telemetry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetricgrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetrichttp"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/resource"
	"go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.41.0"
	oteltrace "go.opentelemetry.io/otel/trace"

	"github.com/latchkey-dev/latchkey/internal/enforce"
)

const (
	// scope names what measures, in everything that is sent.
	scope = "github.com/latchkey-dev/latchkey/internal/telemetry"
	// flushWithin is how long Shutdown tries to get out what is left.
	flushWithin = 3 * time.Second
	// mostSeries bounds the series of each metric; what is beyond is put together in one.
	mostSeries = 2000
)

// Options are what Start needs. All are required.
type Options struct {
	Service  string // service.name, where the environment does not say
	Version  string // service.version
	Instance string // service.instance.id
	Getenv   func(string) string
	Log      *slog.Logger
	Now      func() time.Time
}

// Telemetry tells what it observes. It implements enforce.Observer, and is safe for concurrent use. None of its methods but Shutdown waits.
type Telemetry struct {
	tracer oteltrace.Tracer // nil: no traces
	meters *instruments     // nil: no metrics
	models *names
	faults *faults

	shutdowns []func(context.Context) error
	giveUp    context.CancelFunc
}

var _ enforce.Observer = (*Telemetry)(nil)

// Start makes what the environment asks for, and nil where that is nothing. What cannot be made of it is logged and left out: the gateway
// has to go on without. The SDK's own handlers of errors and logs, of which a process has one, write to the log from then on.
func Start(ctx context.Context, o Options) *Telemetry {
	s, errs := readSettings(o.Getenv)
	for _, err := range errs {
		o.Log.Error("telemetry cannot be sent as the environment wants it", slog.String("error", err.Error()))
	}
	if s.metrics == "" && s.traces == "" {
		return nil
	}
	t := &Telemetry{models: newNames(mostModels), faults: newFaults(o.Log, o.Now)}
	otel.SetErrorHandler(t.faults)
	otel.SetLogger(t.faults.logger())
	var sending context.Context
	sending, t.giveUp = context.WithCancel(context.WithoutCancel(ctx))
	described := describe(ctx, o)
	if err := errors.Join(t.startMetrics(ctx, s, described), t.startTraces(ctx, sending, s, described)); err != nil {
		o.Log.Error("telemetry cannot be sent", slog.String("error", err.Error()))
	}
	if t.meters == nil && t.tracer == nil {
		t.giveUp()
		return nil
	}
	o.Log.Info("telemetry is sent", slog.Bool("metrics", t.meters != nil), slog.Bool("traces", t.tracer != nil))
	return t
}

// describe is who sends: the environment has the last word.
func describe(ctx context.Context, o Options) *resource.Resource {
	described, err := resource.New(ctx,
		resource.WithTelemetrySDK(),
		resource.WithAttributes(semconv.ServiceName(o.Service), semconv.ServiceVersion(o.Version), semconv.ServiceInstanceID(o.Instance)),
		resource.WithFromEnv(),
	)
	if err != nil {
		o.Log.Warn("not all of the environment's resource attributes can be told", slog.String("error", err.Error()))
	}
	return described
}

func (t *Telemetry) startMetrics(ctx context.Context, s settings, described *resource.Resource) error {
	var exporter metric.Exporter
	var err error
	switch s.metrics {
	case protocolGRPC:
		exporter, err = otlpmetricgrpc.New(ctx)
	case protocolHTTP:
		exporter, err = otlpmetrichttp.New(ctx)
	default:
		return nil
	}
	if err != nil {
		return fmt.Errorf("make exporter of metrics: %w", err)
	}
	provider := metric.NewMeterProvider(metric.WithResource(described), metric.WithCardinalityLimit(mostSeries),
		metric.WithReader(metric.NewPeriodicReader(exporter)))
	meters, err := newInstruments(provider.Meter(scope))
	if err != nil {
		return errors.Join(fmt.Errorf("make metrics: %w", err), provider.Shutdown(ctx))
	}
	t.meters = meters
	t.shutdowns = append(t.shutdowns, provider.Shutdown)
	return nil
}

func (t *Telemetry) startTraces(ctx, sending context.Context, s settings, described *resource.Resource) error {
	var exporter trace.SpanExporter
	var err error
	switch s.traces {
	case protocolGRPC:
		exporter, err = otlptracegrpc.New(ctx)
	case protocolHTTP:
		exporter, err = otlptracehttp.New(ctx)
	default:
		return nil
	}
	if err != nil {
		return fmt.Errorf("make exporter of traces: %w", err)
	}
	q := &queue{limit: int64(s.queueSize), faults: t.faults}
	// It holds as many as q lets in, so that it never drops one itself, of which nobody would learn.
	batches := trace.NewBatchSpanProcessor(&sender{SpanExporter: exporter, queue: q, sending: sending}, trace.WithMaxQueueSize(s.queueSize))
	provider := trace.NewTracerProvider(trace.WithResource(described), trace.WithSpanProcessor(&gate{SpanProcessor: batches, queue: q}))
	t.tracer = provider.Tracer(scope)
	t.shutdowns = append(t.shutdowns, provider.Shutdown)
	return nil
}

// Shutdown sends what is left, for up to three seconds, and ends. Nothing may be observed after it. It may be called on nil.
func (t *Telemetry) Shutdown(ctx context.Context) {
	if t == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushWithin)
	defer cancel()
	var ending sync.WaitGroup
	for _, shutdown := range t.shutdowns {
		ending.Go(func() {
			if err := shutdown(ctx); err != nil {
				t.faults.Handle(fmt.Errorf("send what is left: %w", err))
			}
		})
	}
	ending.Wait()
	t.giveUp() // what is still on its way
	t.faults.close()
}

// Decided implements enforce.Observer. A request that was let through is told once it has ended.
func (t *Telemetry) Decided(d enforce.Decision) {
	if d.Outcome == enforce.OutcomeRefused {
		t.refused(d)
	}
}

// refused has a copy on the heap, which Decided shall not pay for.
func (t *Telemetry) refused(d enforce.Decision) {
	ctx, span := t.begin(&d)
	if t.meters != nil {
		t.meters.refused(ctx, &d)
	}
	if span != nil {
		endRefused(span, &d)
	}
}

// Metered implements enforce.Observer.
func (t *Telemetry) Metered(m enforce.Metering) {
	ctx, span := t.begin(&m.Decision)
	answeredBy := t.models.name(m.AnswerModel)
	if t.meters != nil {
		t.meters.ended(ctx, &m, answeredBy)
	}
	if span != nil {
		endMetered(span, &m, answeredBy)
	}
}

// LedgerFailed implements enforce.Observer. Prometheus' metrics and the log tell it.
func (t *Telemetry) LedgerFailed(error) {}

// attributes is a list that leaves out what is empty.
type attributes []attribute.KeyValue

func (a *attributes) text(k attribute.Key, value string) {
	if value != "" {
		*a = append(*a, k.String(value))
	}
}

func (a *attributes) count(k attribute.Key, n int64) {
	if n > 0 {
		*a = append(*a, k.Int64(n))
	}
}
