package collector

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"sync"
	"time"

	collectormetrics "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	collectortraces "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	values "go.opentelemetry.io/proto/otlp/common/v1"
	metrics "go.opentelemetry.io/proto/otlp/metrics/v1"
	traces "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

// Span is what is looked at of one.
type Span struct {
	Name          string
	Server        bool   // its kind
	Trace, Parent string // in hexadecimal digits; no Parent: it is the root
	State         string
	Start, End    time.Time
	Failed        string // what its status says; empty: no error
	Attributes    map[string]any
}

// Point is one series of a metric.
type Point struct {
	Attributes map[string]any
	Count      uint64  // of a histogram
	Sum        float64 // of a histogram or a counter
}

// Metric is one metric, as it was sent last.
type Metric struct {
	Unit   string
	Bounds []float64 // of a histogram
	Points []Point
}

// Collector is a receiver of OTLP, over gRPC and HTTP, that keeps what it gets. It is safe for concurrent use.
type Collector struct {
	GRPC, HTTP string // URLs

	hold   <-chan struct{}
	rpc    *grpc.Server
	web    *http.Server
	served sync.WaitGroup

	mu            sync.Mutex
	spans         []Span
	metrics       map[string]Metric
	about         []map[string]any
	raw           bytes.Buffer
	calls         int
	authorization []string
}

// Start starts a collector on free ports of the loopback. Where there is hold, every call waits until it is closed, or the caller goes.
func Start(ctx context.Context, hold <-chan struct{}) (*Collector, error) {
	c := &Collector{metrics: map[string]Metric{}, hold: hold, rpc: grpc.NewServer()}
	c.web = &http.Server{Handler: http.HandlerFunc(c.serveHTTP), ReadHeaderTimeout: time.Minute}
	var listen net.ListenConfig
	forRPC, err := listen.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for gRPC: %w", err)
	}
	forWeb, err := listen.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen for HTTP: %w", err), forRPC.Close())
	}
	collectortraces.RegisterTraceServiceServer(c.rpc, traceService{c: c})
	collectormetrics.RegisterMetricsServiceServer(c.rpc, metricsService{c: c})
	c.served.Go(func() { _ = c.rpc.Serve(forRPC) })
	c.served.Go(func() { _ = c.web.Serve(forWeb) })
	c.GRPC, c.HTTP = "http://"+forRPC.Addr().String(), "http://"+forWeb.Addr().String()
	return c, nil
}

// Stop ends it. What it got can still be read.
func (c *Collector) Stop() {
	c.rpc.Stop()
	_ = c.web.Close()
	c.served.Wait()
}

// Spans are all that came.
func (c *Collector) Spans() []Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]Span{}, c.spans...) // never nil
}

// Metrics are the latest of each name.
func (c *Collector) Metrics() map[string]Metric {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.metrics)
}

// About is what each batch said of who sent it.
func (c *Collector) About() []map[string]any {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]map[string]any{}, c.about...)
}

// Calls is how many calls there were, those on hold included.
func (c *Collector) Calls() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.calls
}

// Authorization is what the header of that name said, of each call by HTTP.
func (c *Collector) Authorization() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]string{}, c.authorization...)
}

// Contains reports whether a text is anywhere in what came.
func (c *Collector) Contains(text string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return bytes.Contains(c.raw.Bytes(), []byte(text))
}

type traceService struct {
	collectortraces.UnimplementedTraceServiceServer

	c *Collector
}

func (s traceService) Export(ctx context.Context, r *collectortraces.ExportTraceServiceRequest) (*collectortraces.ExportTraceServiceResponse, error) {
	return &collectortraces.ExportTraceServiceResponse{}, s.c.take(ctx, r)
}

type metricsService struct {
	collectormetrics.UnimplementedMetricsServiceServer

	c *Collector
}

func (s metricsService) Export(ctx context.Context, r *collectormetrics.ExportMetricsServiceRequest) (*collectormetrics.ExportMetricsServiceResponse, error) {
	return &collectormetrics.ExportMetricsServiceResponse{}, s.c.take(ctx, r)
}

func (c *Collector) serveHTTP(w http.ResponseWriter, r *http.Request) {
	var message proto.Message
	switch r.URL.Path {
	case "/v1/traces":
		message = &collectortraces.ExportTraceServiceRequest{}
	case "/v1/metrics":
		message = &collectormetrics.ExportMetricsServiceRequest{}
	default:
		http.NotFound(w, r)
		return
	}
	raw, err := bodyOf(r)
	if err == nil {
		err = proto.Unmarshal(raw, message)
	}
	if err == nil {
		c.mu.Lock()
		c.authorization = append(c.authorization, r.Header.Get("authorization"))
		c.mu.Unlock()
		err = c.take(r.Context(), message)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("content-type", "application/x-protobuf")
}

func bodyOf(r *http.Request) ([]byte, error) {
	if r.Header.Get("content-encoding") != "gzip" {
		return io.ReadAll(r.Body)
	}
	unpacked, err := gzip.NewReader(r.Body)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(unpacked)
}

// take keeps what has come.
func (c *Collector) take(ctx context.Context, message proto.Message) error {
	c.mu.Lock()
	c.calls++
	c.mu.Unlock()
	if c.hold != nil {
		select {
		case <-c.hold:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	raw, err := proto.Marshal(message)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.raw.Write(raw)
	switch m := message.(type) {
	case *collectortraces.ExportTraceServiceRequest:
		for _, r := range m.GetResourceSpans() {
			c.about = append(c.about, shown(r.GetResource().GetAttributes()))
			for _, s := range r.GetScopeSpans() {
				for _, one := range s.GetSpans() {
					c.spans = append(c.spans, spanOf(one))
				}
			}
		}
	case *collectormetrics.ExportMetricsServiceRequest:
		for _, r := range m.GetResourceMetrics() {
			c.about = append(c.about, shown(r.GetResource().GetAttributes()))
			for _, s := range r.GetScopeMetrics() {
				for _, one := range s.GetMetrics() {
					c.metrics[one.GetName()] = metricOf(one)
				}
			}
		}
	}
	return nil
}

func spanOf(s *traces.Span) Span {
	out := Span{
		Name: s.GetName(), Server: s.GetKind() == traces.Span_SPAN_KIND_SERVER,
		Trace: hex.EncodeToString(s.GetTraceId()), Parent: hex.EncodeToString(s.GetParentSpanId()), State: s.GetTraceState(),
		Start: timeOf(s.GetStartTimeUnixNano()), End: timeOf(s.GetEndTimeUnixNano()), Attributes: shown(s.GetAttributes()),
	}
	if status := s.GetStatus(); status.GetCode() == traces.Status_STATUS_CODE_ERROR {
		out.Failed = cmp.Or(status.GetMessage(), "error")
	}
	return out
}

func timeOf(nanoseconds uint64) time.Time {
	return time.Unix(0, int64(nanoseconds)).UTC() //nolint:gosec // it is a time of our days
}

func metricOf(m *metrics.Metric) Metric {
	out := Metric{Unit: m.GetUnit()}
	for _, p := range m.GetHistogram().GetDataPoints() {
		out.Bounds = p.GetExplicitBounds()
		out.Points = append(out.Points, Point{shown(p.GetAttributes()), p.GetCount(), p.GetSum()})
	}
	for _, p := range m.GetSum().GetDataPoints() {
		out.Points = append(out.Points, Point{shown(p.GetAttributes()), 0, p.GetAsDouble() + float64(p.GetAsInt())})
	}
	return out
}

// shown is a list of attributes as a map of values that can be compared.
func shown(attributes []*values.KeyValue) map[string]any {
	out := map[string]any{}
	for _, a := range attributes {
		switch v := a.GetValue().GetValue().(type) {
		case *values.AnyValue_StringValue:
			out[a.GetKey()] = v.StringValue
		case *values.AnyValue_IntValue:
			out[a.GetKey()] = v.IntValue
		case *values.AnyValue_DoubleValue:
			out[a.GetKey()] = v.DoubleValue
		case *values.AnyValue_BoolValue:
			out[a.GetKey()] = v.BoolValue
		default:
			out[a.GetKey()] = fmt.Sprintf("%T", v)
		}
	}
	return out
}
