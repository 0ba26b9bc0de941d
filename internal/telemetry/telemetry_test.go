package telemetry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/latchkey-dev/latchkey/internal/enforce"
	"github.com/latchkey-dev/latchkey/internal/llm"
	"github.com/latchkey-dev/latchkey/internal/money"
	"github.com/latchkey-dev/latchkey/internal/policy"
	"github.com/latchkey-dev/latchkey/test/collector"
)

const (
	parentTrace = "0af7651916cd43dd8448eb211c80319c"
	parentSpan  = "b7ad6b7169203331"
)

var noon = time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)

// chat is a stream that was let through and answered in good order.
func chat() enforce.Metering {
	return enforce.Metering{
		Decision: enforce.Decision{
			Outcome: enforce.OutcomeForwarded, KeyPrefix: "lk_abc123", Namespace: "team", Key: "shop-key", Application: "shop", Capability: "TextGeneration",
			Model: "gpt-4o", Provider: "openai-eu", Dialect: "openai", RequestID: "req-1", Endpoint: llm.ChatCompletions, Stream: true,
			Began: noon, Took: 2500 * time.Millisecond,
		},
		Ending: enforce.EndingAnswered, Cost: money.Unit / 400, Currency: "USD", AnswerStatus: 200, FirstText: 250 * time.Millisecond,
		AnswerModel: []byte("gpt-4o-2024-08-06"),
		Usage:       policy.Usage{InputTokens: 1200, CachedInputTokens: 1024, CacheWriteTokens: 10, OutputTokens: 340, ReasoningTokens: 300},
	}
}

// with is a chat that differs in something.
func with(change func(*enforce.Metering)) enforce.Metering {
	m := chat()
	change(&m)
	return m
}

// refusal is a request that was not let through.
func refusal() enforce.Decision {
	d := chat().Decision
	d.Outcome, d.Reason, d.Status, d.Took, d.Stream = enforce.OutcomeRefused, "budget_exhausted", 429, 3*time.Millisecond, false
	return d
}

func TestNothingIsMadeUnlessItIsAskedFor(t *testing.T) {
	const endpoint = "http://127.0.0.1:4317"
	for name, environment := range map[string]map[string]string{
		"nothing is set":                     {},
		"only what belongs to it is set":     {"OTEL_SERVICE_NAME": "x", "OTEL_TRACES_SAMPLER": "always_on", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
		"both signals are turned off":        {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_METRICS_EXPORTER": "none", "OTEL_TRACES_EXPORTER": "none"},
		"all is turned off":                  {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_SDK_DISABLED": "true"},
		"all is turned off, in capitals":     {"OTEL_METRICS_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "TRUE"},
		"an endpoint of logs":                {"OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": endpoint},
		"an empty endpoint":                  {"OTEL_EXPORTER_OTLP_ENDPOINT": " "},
		"an exporter that there is not":      {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_METRICS_EXPORTER": "prometheus", "OTEL_TRACES_EXPORTER": "zipkin"},
		"a protocol that there is not":       {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"},
		"an endpoint that is turned off too": {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": endpoint, "OTEL_TRACES_EXPORTER": "none"},
	} {
		t.Run(name, func(t *testing.T) {
			told, log := start(t, environment)
			if told != nil {
				t.Errorf("made %+v", told)
			}
			if wrong := strings.Contains(name, "there is not"); wrong != (log.lines() > 0) || wrong != strings.Contains(log.String(), "set it to") {
				t.Errorf("logged %s", log)
			}
		})
	}
}

func TestSettings(t *testing.T) {
	t.Parallel()
	const endpoint = "http://127.0.0.1:4317"
	for name, tc := range map[string]struct {
		environment map[string]string
		want        settings
	}{
		"an endpoint":                     {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}, settings{protocolHTTP, protocolHTTP, 2048}},
		"an endpoint of traces":           {map[string]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": endpoint}, settings{"", protocolHTTP, 2048}},
		"an endpoint of metrics, by gRPC": {map[string]string{"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, settings{protocolGRPC, "", 2048}},
		"an exporter alone":               {map[string]string{"OTEL_TRACES_EXPORTER": "otlp"}, settings{"", protocolHTTP, 2048}},
		"one signal is turned off":        {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_METRICS_EXPORTER": "none"}, settings{"", protocolHTTP, 2048}},
		"a protocol each": {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"},
			settings{protocolGRPC, protocolHTTP, 2048}},
		"a queue":              {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_BSP_MAX_QUEUE_SIZE": "10"}, settings{protocolHTTP, protocolHTTP, 10}},
		"a queue of no length": {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_BSP_MAX_QUEUE_SIZE": "-1"}, settings{protocolHTTP, protocolHTTP, 2048}},
		"disabled, but not":    {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_SDK_DISABLED": "1"}, settings{protocolHTTP, protocolHTTP, 2048}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, errs := readSettings(func(name string) string { return tc.environment[name] })
			if got != tc.want || errs != nil {
				t.Errorf("got %+v, %v, want %+v", got, errs, tc.want)
			}
		})
	}
}

func TestBothProtocols(t *testing.T) {
	for protocol, url := range map[string]func(*collector.Collector) string{
		"grpc":          func(c *collector.Collector) string { return c.GRPC },
		"http/protobuf": func(c *collector.Collector) string { return c.HTTP },
	} {
		t.Run(protocol, func(t *testing.T) {
			c := newCollector(t, nil)
			told, log := start(t, map[string]string{
				"OTEL_EXPORTER_OTLP_ENDPOINT": url(c), "OTEL_EXPORTER_OTLP_PROTOCOL": protocol, "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
				"OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test", "OTEL_EXPORTER_OTLP_HEADERS": "authorization=secret-of-collector",
			})
			told.Metered(chat())
			told.Decided(chat().Decision) // is told once it ends
			told.Decided(refusal())
			told.LedgerFailed(errors.New("no"))
			told.Shutdown(t.Context())

			if len(c.Spans()) != 2 || len(c.Metrics()) != 5 || len(c.About()) != 2 {
				t.Fatalf("%d spans, metrics %v, %d resources; log %s", len(c.Spans()), c.Metrics(), len(c.About()), log)
			}
			for _, got := range c.About() {
				want := map[string]any{"service.name": "latchkey-enforcer", "service.version": "v1.2.3", "service.instance.id": "node-1",
					"deployment.environment.name": "test", "telemetry.sdk.name": "opentelemetry", "telemetry.sdk.language": "go", "telemetry.sdk.version": got["telemetry.sdk.version"]}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("resource (-want +got):\n%s", diff)
				}
			}
			if protocol != "grpc" && !slices.Equal(c.Authorization(), []string{"secret-of-collector", "secret-of-collector"}) {
				t.Errorf("headers %v", c.Authorization())
			}
			if strings.Contains(log.String(), "secret-of-collector") || strings.Contains(log.String(), "WARN") {
				t.Errorf("log %s", log)
			}
		})
	}
}

func TestTheEnvironmentNamesTheService(t *testing.T) {
	c := newCollector(t, nil)
	told, _ := start(t, map[string]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": c.GRPC, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_SERVICE_NAME": "gateway-eu"})
	told.Decided(refusal())
	told.Shutdown(t.Context())
	if len(c.Spans()) != 1 || len(c.Metrics()) != 0 || c.About()[0]["service.name"] != "gateway-eu" {
		t.Errorf("%d spans, %d metrics, %v", len(c.Spans()), len(c.Metrics()), c.About())
	}
}

func TestSpans(t *testing.T) {
	ended := noon.Add(2500 * time.Millisecond)
	// attributes of the chat, changed: nil removes.
	attributes := func(changes map[string]any) map[string]any {
		a := map[string]any{
			"gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": "gpt-4o", "gen_ai.response.model": "gpt-4o-2024-08-06",
			"gen_ai.request.stream": true, "gen_ai.response.time_to_first_chunk": 0.25, "gen_ai.usage.input_tokens": int64(1200), "gen_ai.usage.output_tokens": int64(340),
			"gen_ai.usage.cache_read.input_tokens": int64(1024), "gen_ai.usage.cache_creation.input_tokens": int64(10), "gen_ai.usage.reasoning.output_tokens": int64(300),
			"http.response.status_code": int64(200), "latchkey.provider": "openai-eu", "latchkey.key.prefix": "lk_abc123", "latchkey.application": "shop",
			"latchkey.namespace": "team", "latchkey.request.id": "req-1", "latchkey.ending": "answered", "latchkey.cost": 0.0025, "latchkey.currency": "USD",
		}
		for k, v := range changes {
			a[k] = v
			if v == nil {
				delete(a, k)
			}
		}
		return a
	}
	refused := map[string]any{
		"gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": "gpt-4o", "latchkey.provider": "openai-eu",
		"latchkey.key.prefix": "lk_abc123", "latchkey.application": "shop", "latchkey.namespace": "team", "latchkey.request.id": "req-1",
		"latchkey.refusal.reason": "budget_exhausted", "error.type": "budget_exhausted", "http.response.status_code": int64(429),
	}
	for name, tc := range map[string]struct {
		tell func(*Telemetry)
		want []collector.Span
	}{
		"a stream": {func(told *Telemetry) { told.Metered(chat()) }, []collector.Span{{Name: "chat gpt-4o", Server: true, Start: noon, End: ended, Failed: "", Attributes: attributes(nil)}}},
		"an answer in one piece, estimated and free": {func(told *Telemetry) {
			told.Metered(with(func(m *enforce.Metering) {
				m.Stream, m.FirstText, m.AnswerModel, m.Cost = false, 0, nil, 0
				m.Usage = policy.Usage{InputTokens: 5, Estimated: true}
				m.Endpoint, m.Dialect = llm.Messages, "anthropic"
			}))
		}, []collector.Span{{Name: "chat gpt-4o", Server: true, Start: noon, End: ended, Failed: "", Attributes: attributes(map[string]any{
			"gen_ai.provider.name": "anthropic", "gen_ai.request.stream": false, "gen_ai.response.model": nil, "gen_ai.response.time_to_first_chunk": nil,
			"gen_ai.usage.input_tokens": int64(5), "gen_ai.usage.output_tokens": nil, "gen_ai.usage.cache_read.input_tokens": nil,
			"gen_ai.usage.cache_creation.input_tokens": nil, "gen_ai.usage.reasoning.output_tokens": nil, "latchkey.usage.estimated": true,
			"latchkey.cost": nil, "latchkey.currency": nil,
		})}}},
		"an error of the provider's": {func(told *Telemetry) {
			told.Metered(with(func(m *enforce.Metering) { m.Ending, m.AnswerStatus = enforce.EndingError, 529 }))
		}, []collector.Span{{Name: "chat gpt-4o", Server: true, Start: noon, End: ended, Failed: "error", Attributes: attributes(map[string]any{
			"latchkey.ending": "error", "error.type": "529", "http.response.status_code": int64(529),
		})}}},
		"a bad credential of the gateway's": {func(told *Telemetry) {
			told.Metered(with(func(m *enforce.Metering) { m.Ending, m.AnswerStatus = enforce.EndingCredential, 401 }))
		}, []collector.Span{{Name: "chat gpt-4o", Server: true, Start: noon, End: ended, Failed: "credential", Attributes: attributes(map[string]any{
			"latchkey.ending": "credential", "error.type": "provider_credential", "http.response.status_code": nil,
		})}}},
		"a caller who hung up": {func(told *Telemetry) {
			told.Metered(with(func(m *enforce.Metering) { m.Ending, m.AnswerStatus = enforce.EndingHungUp, 0 }))
		}, []collector.Span{{Name: "chat gpt-4o", Server: true, Start: noon, End: ended, Failed: "hung_up", Attributes: attributes(map[string]any{
			"latchkey.ending": "hung_up", "error.type": "hung_up", "http.response.status_code": nil,
		})}}},
		"an answer that goes on without the enforcer": {func(told *Telemetry) {
			told.Metered(with(func(m *enforce.Metering) { m.Ending = enforce.EndingNotWatched }))
		}, []collector.Span{{Name: "chat gpt-4o", Server: true, Start: noon, End: ended, Failed: "", Attributes: attributes(map[string]any{"latchkey.ending": "not_watched"})}}},
		"a refusal": {func(told *Telemetry) { told.Decided(refusal()) },
			[]collector.Span{{Name: "chat gpt-4o", Server: true, Start: noon, End: noon.Add(3 * time.Millisecond), Failed: "refused: budget_exhausted", Attributes: refused}}},
		"a refusal of a stranger, of whom nothing is told": {func(told *Telemetry) {
			told.Decided(enforce.Decision{Outcome: enforce.OutcomeRefused, Reason: "key_unknown", Status: 401, Dialect: "openai", Began: noon})
		}, []collector.Span{{Name: "request", Server: true, Start: noon, End: noon, Failed: "refused: key_unknown", Attributes: map[string]any{
			"latchkey.refusal.reason": "key_unknown", "error.type": "key_unknown", "http.response.status_code": int64(401),
		}}}},
		"a refusal of a model that there is not": {func(told *Telemetry) {
			d := refusal()
			d.Model, d.Provider, d.Endpoint, d.KeyPrefix, d.RequestID = "", "", llm.Embeddings, "", ""
			told.Decided(d)
		}, []collector.Span{{Name: "embeddings", Server: true, Start: noon, End: noon.Add(3 * time.Millisecond), Failed: "refused: budget_exhausted", Attributes: map[string]any{
			"gen_ai.operation.name": "embeddings", "gen_ai.provider.name": "openai", "latchkey.application": "shop", "latchkey.namespace": "team",
			"latchkey.refusal.reason": "budget_exhausted", "error.type": "budget_exhausted", "http.response.status_code": int64(429),
		}}}},
		"what is let through is told at its end, and what the gateway answers itself is not": {func(told *Telemetry) {
			d := chat().Decision
			told.Decided(d)
			d.Outcome = enforce.OutcomeAnswered
			told.Decided(d)
		}, []collector.Span{}},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCollector(t, nil)
			told, log := start(t, map[string]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": c.HTTP + "/v1/traces"})
			tc.tell(told)
			told.Shutdown(t.Context())
			if diff := cmp.Diff(tc.want, c.Spans(), cmpopts.IgnoreFields(collector.Span{}, "Trace")); diff != "" {
				t.Errorf("(-want +got):\n%s\nlog %s", diff, log)
			}
		})
	}
}

func TestOperations(t *testing.T) {
	t.Parallel()
	for endpoint, want := range map[string]string{
		llm.ChatCompletions: "chat", llm.Responses: "chat", llm.Messages: "chat", llm.Completions: "text_completion", llm.Embeddings: "embeddings",
		llm.ImagesGenerations: "generate_content", llm.ImagesEdits: "generate_content", llm.ImagesVariations: "generate_content",
		llm.AudioSpeech: "text_to_speech", llm.AudioTranscriptions: "speech_to_text", llm.AudioTranslations: "speech_to_text",
		llm.Moderations: "moderation", llm.CountTokens: "count_tokens", llm.Models: "list_models", "": "", "/v1/unheard-of": "",
	} {
		if got := operationOf(endpoint); got != want {
			t.Errorf("%s is %q, want %q", endpoint, got, want)
		}
	}
}

func TestParents(t *testing.T) {
	for name, tc := range map[string]struct {
		parent, state, sampler string
		sent                   bool
		trace                  bool // the caller's
		wantState              string
	}{
		"none":                                 {sent: true},
		"one that is sampled":                  {parent: "00-" + parentTrace + "-" + parentSpan + "-01", state: "vendor=1", sent: true, trace: true, wantState: "vendor=1"},
		"one that is not sampled":              {parent: "00-" + parentTrace + "-" + parentSpan + "-00"},
		"one that is not sampled, against all": {parent: "00-" + parentTrace + "-" + parentSpan + "-00", sampler: "always_on", sent: true, trace: true},
		"nothing is sampled":                   {parent: "00-" + parentTrace + "-" + parentSpan + "-01", sampler: "always_off"},
		"one that is none":                     {parent: "00-" + strings.Repeat("0", 32) + "-" + parentSpan + "-01", state: "vendor=1", sent: true},
		"garbage":                              {parent: "lk_whatever", state: "vendor=1", sent: true},
		"a state that is garbage":              {parent: "00-" + parentTrace + "-" + parentSpan + "-01", state: "no state", sent: true, trace: true},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCollector(t, nil)
			environment := map[string]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": c.GRPC, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc"}
			if tc.sampler != "" {
				environment["OTEL_TRACES_SAMPLER"] = tc.sampler
			}
			told, _ := start(t, environment)
			told.Metered(with(func(m *enforce.Metering) { m.TraceParent, m.TraceState = tc.parent, tc.state }))
			told.Shutdown(t.Context())
			if sent := len(c.Spans()) == 1; sent != tc.sent {
				t.Fatalf("%d spans", len(c.Spans()))
			}
			if !tc.sent {
				return
			}
			s := c.Spans()[0]
			wantParent := ""
			if tc.trace {
				wantParent = parentSpan
			}
			if (s.Trace == parentTrace) != tc.trace || s.Parent != wantParent || s.State != tc.wantState {
				t.Errorf("%+v", s)
			}
		})
	}
}

func TestMetrics(t *testing.T) {
	c := newCollector(t, nil)
	told, log := start(t, map[string]string{"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": c.GRPC, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})
	told.Metered(chat())
	told.Metered(with(func(m *enforce.Metering) { m.KeyPrefix, m.Application, m.Namespace = "lk_other12", "other", "others" })) // the same series
	told.Metered(with(func(m *enforce.Metering) {                                                                               // with tokens that nobody told
		m.Ending, m.Usage.Estimated, m.AnswerModel = enforce.EndingCutOff, true, nil
	}))
	told.Metered(with(func(m *enforce.Metering) { // whose duration nobody knows
		m.Ending, m.Usage, m.FirstText, m.Cost = enforce.EndingNotWatched, policy.Usage{Estimated: true}, 0, 0
	}))
	told.Metered(with(func(m *enforce.Metering) { // with nothing but a status
		m.Ending, m.AnswerStatus, m.Usage, m.FirstText, m.Cost, m.AnswerModel = enforce.EndingError, 503, policy.Usage{}, 0, 0, nil
	}))
	told.Decided(refusal())
	told.Decided(enforce.Decision{Outcome: enforce.OutcomeRefused, Reason: "key_unknown", Status: 401, Dialect: "openai", Began: noon})
	told.Decided(chat().Decision)
	told.Shutdown(t.Context())

	series := func(changes ...string) map[string]any {
		a := map[string]any{"gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": "gpt-4o", "latchkey.provider": "openai-eu"}
		for i := 0; i < len(changes); i += 2 {
			a[changes[i]] = changes[i+1]
		}
		return a
	}
	const dated = "gpt-4o-2024-08-06"
	for name, want := range map[string]struct {
		unit   string
		bounds []float64
		points []collector.Point
	}{
		"gen_ai.server.request.duration": {"s", []float64{0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92}, []collector.Point{
			{Attributes: series("gen_ai.response.model", dated), Count: 2, Sum: 5},
			{Attributes: series("error.type", "cut_off"), Count: 1, Sum: 2.5},
			{Attributes: series("error.type", "503"), Count: 1, Sum: 2.5},
		}},
		"gen_ai.server.time_to_first_token": {"s", []float64{0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10}, []collector.Point{
			{Attributes: series("gen_ai.response.model", dated), Count: 2, Sum: 0.5},
		}},
		"gen_ai.client.token.usage": {"{token}", []float64{1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864}, []collector.Point{
			{Attributes: series("gen_ai.response.model", dated, "gen_ai.token.type", "input"), Count: 2, Sum: 2400},
			{Attributes: series("gen_ai.response.model", dated, "gen_ai.token.type", "output"), Count: 2, Sum: 680},
		}},
		"latchkey.cost": {"{currency}", nil, []collector.Point{{Attributes: series("latchkey.currency", "USD"), Sum: 0.0075}}},
		"latchkey.refusals": {"{request}", nil, []collector.Point{
			{Attributes: series("latchkey.refusal.reason", "budget_exhausted"), Sum: 1},
			{Attributes: map[string]any{"latchkey.refusal.reason": "key_unknown"}, Sum: 1},
		}},
	} {
		got := c.Metrics()[name]
		order := cmpopts.SortSlices(func(a, b collector.Point) bool { return fmt.Sprint(a) < fmt.Sprint(b) })
		if diff := cmp.Diff(want.points, got.Points, order, cmpopts.EquateApprox(0, 1e-9)); diff != "" {
			t.Errorf("%s (-want +got):\n%s\nlog %s", name, diff, log)
		}
		if got.Unit != want.unit || !slices.Equal(got.Bounds, want.bounds) {
			t.Errorf("%s is in %q, with bounds %v", name, got.Unit, got.Bounds)
		}
	}
	if len(c.Metrics()) != 5 || len(c.Spans()) != 0 {
		t.Errorf("%d metrics, %d spans", len(c.Metrics()), len(c.Spans()))
	}
}

// TestTheDocumentNamesAll looks for all that is sent in docs/telemetry.md.
func TestTheDocumentNamesAll(t *testing.T) {
	document, err := os.ReadFile(filepath.Join("..", "..", "docs", "telemetry.md"))
	if err != nil {
		t.Fatal(err)
	}
	c := newCollector(t, nil)
	told, _ := start(t, map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": c.HTTP})
	told.Decided(refusal())
	for _, ending := range []enforce.Ending{
		enforce.EndingAnswered, enforce.EndingError, enforce.EndingUnanswered, enforce.EndingCredential, enforce.EndingCutOff, enforce.EndingHungUp, enforce.EndingNotWatched,
	} {
		told.Metered(with(func(m *enforce.Metering) { m.Ending = ending }))
		told.Metered(with(func(m *enforce.Metering) { m.Ending, m.Usage.Estimated = ending, true }))
	}
	told.Shutdown(t.Context())
	names := map[string]bool{}
	add := func(attributes map[string]any) {
		for name, value := range attributes {
			names[name] = true
			if word, ok := value.(string); ok && (name == "latchkey.ending" || name == "error.type" && word != "200" && word != "budget_exhausted") {
				names[word] = true
			}
		}
	}
	for name, m := range c.Metrics() {
		names[name] = true
		for _, p := range m.Points {
			add(p.Attributes)
		}
	}
	for _, s := range c.Spans() {
		add(s.Attributes)
	}
	for _, endpoint := range []string{
		llm.ChatCompletions, llm.Completions, llm.Embeddings, llm.ImagesEdits, llm.AudioSpeech, llm.AudioTranscriptions, llm.Moderations, llm.CountTokens, llm.Models,
	} {
		names[operationOf(endpoint)] = true
	}
	for name := range names {
		if !bytes.Contains(document, []byte("`"+name+"`")) {
			t.Errorf("%s is not in the document", name)
		}
	}
	if len(names) < 45 {
		t.Errorf("only %d names are sent", len(names))
	}
}

// TestSeriesAreBounded has a provider that answers with a new model each time.
func TestSeriesAreBounded(t *testing.T) {
	c := newCollector(t, nil)
	told, _ := start(t, map[string]string{"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": c.GRPC, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})
	for i := range 3 * mostModels {
		told.Metered(with(func(m *enforce.Metering) { m.AnswerModel = fmt.Appendf(nil, "model-%d", i) }))
	}
	told.Metered(with(func(m *enforce.Metering) { m.AnswerModel = []byte("model-0") }))
	told.Shutdown(t.Context())
	got := c.Metrics()["gen_ai.server.request.duration"].Points
	if len(got) != mostModels+1 {
		t.Errorf("%d series", len(got))
	}
	for _, p := range got {
		want := uint64(1)
		switch p.Attributes["gen_ai.response.model"] {
		case "model-0":
			want = 2
		case nil:
			want = 2 * mostModels
		}
		if p.Count != want {
			t.Errorf("%v has %d", p.Attributes, p.Count)
		}
	}
}

func TestModelsThatCouldBeKeysAreNotTold(t *testing.T) {
	t.Parallel()
	n := newNames(2)
	for _, tc := range []struct{ name, want string }{{"lk_abc", ""}, {"a", "a"}, {"x-lk_abc", ""}, {"b", "b"}, {"c", ""}, {"a", "a"}, {"", ""}} {
		if got := n.name([]byte(tc.name)); got != tc.want {
			t.Errorf("%q is told as %q", tc.name, got)
		}
	}
}

func TestShutdownOfNothing(t *testing.T) {
	t.Parallel()
	var told *Telemetry
	told.Shutdown(context.Background())
}

func BenchmarkMetered(b *testing.B) {
	b.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
	told := Start(b.Context(), Options{Service: "x", Version: "x", Instance: "x", Log: slog.New(slog.DiscardHandler), Now: time.Now,
		Getenv: func(name string) string {
			if name == "OTEL_EXPORTER_OTLP_ENDPOINT" {
				return "http://127.0.0.1:1"
			}
			return ""
		}})
	defer told.Shutdown(b.Context())
	m := chat()
	b.ReportAllocs()
	for b.Loop() {
		told.Metered(m)
	}
}
