package e2e

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	"github.com/latchkey-dev/latchkey/test/collector"
)

// restartEnforcer ends the enforcer in good order, and starts it with an environment.
func restartEnforcer(t *testing.T, environment ...string) error {
	t.Helper()
	if err := theStack.Enforcer.Stop(); err != nil {
		return fmt.Errorf("stop the enforcer: %w", err)
	}
	theStack.Enforcer.Env = environment
	if err := theStack.Enforcer.Start(); err != nil {
		return fmt.Errorf("start the enforcer: %w", err)
	}
	return theStack.AwaitEnforcer(t.Context())
}

// TestTelemetry has the enforcer tell a collector of calls through Envoy.
func TestTelemetry(t *testing.T) {
	const trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	for protocol, url := range map[string]func(*collector.Collector) string{
		"grpc":          func(c *collector.Collector) string { return c.GRPC },
		"http/protobuf": func(c *collector.Collector) string { return c.HTTP },
	} {
		t.Run(protocol, func(t *testing.T) {
			c, err := collector.Start(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(c.Stop)
			tn := newTenant(t)
			_, key := tn.newKey("good")
			_, off := tn.newKey("off", func(s *v1alpha1.APIKeySpec) { s.State = v1alpha1.StateDisabled })
			t.Cleanup(func() { theStack.Enforcer.Env = nil })
			if err := restartEnforcer(t, "OTEL_EXPORTER_OTLP_ENDPOINT="+url(c), "OTEL_EXPORTER_OTLP_PROTOCOL="+protocol); err != nil {
				t.Fatal(err)
			}
			inTrace := map[string]string{"traceparent": "00-" + trace + "-" + parent + "-01", "tracestate": "a=1"}
			const prompt = "sim:reply=a-reply-to-nobody"
			decided(t, key, request{body: chat("fast", prompt), headers: inTrace}, http.StatusOK, "")
			decided(t, key, request{body: streamed("gpt-5", prompt), headers: map[string]string{"tracestate": key}}, http.StatusOK, "")
			decided(t, off, request{body: chat("gpt-5", prompt), headers: map[string]string{
				"traceparent": "00-" + trace + "-" + parent + "-01", "tracestate": "a=" + off,
			}}, http.StatusUnauthorized, "api_key_disabled")
			decided(t, "lk_nobodys", request{body: chat("gpt-5", prompt)}, http.StatusUnauthorized, "invalid_api_key")

			// What is left is sent at the end.
			if err := restartEnforcer(t); err != nil {
				t.Fatal(err)
			}
			checkSpans(t, c, tn.namespace, key, off, trace, parent)
			checkMetrics(t, c)
			for _, about := range c.About() {
				if about["service.name"] != "latchkey-enforcer" || about["service.instance.id"] != "enforcer-0" || about["service.version"] == "" {
					t.Errorf("sent by %v", about)
				}
			}
			for what, secret := range map[string]string{
				"the key": key, "the key's secret": key[9:], "the disabled key": off, "the disabled key's secret": off[9:],
				"the prompt": prompt, "the answer": "a-reply-to-nobody", "an unknown key": "lk_nobodys",
			} {
				if c.Contains(secret) {
					t.Errorf("%s was sent", what)
				}
			}

			// Without the variables nothing more is.
			calls := c.Calls()
			decided(t, key, request{}, http.StatusOK, "")
			if err := restartEnforcer(t); err != nil {
				t.Fatal(err)
			}
			if c.Calls() != calls {
				t.Error("telemetry is sent that nobody asked for")
			}
		})
	}
}

func checkSpans(t *testing.T, c *collector.Collector, namespace, key, off, trace, parent string) {
	t.Helper()
	// The enforcer is asked again and again until it has heard of the keys: of equal spans one is looked at.
	spans := map[string]collector.Span{}
	for _, s := range c.Spans() {
		what, _ := s.Attributes["latchkey.refusal.reason"].(string)
		spans[strings.TrimSpace(s.Name+" "+what)] = s
	}
	common := func(model string, more map[string]any) map[string]any {
		a := map[string]any{
			"gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": model, "gen_ai.request.stream": false,
			"gen_ai.response.model": "gpt-5-mini", "http.response.status_code": int64(200), "latchkey.provider": "openai", "latchkey.ending": "answered",
			"latchkey.key.prefix": key[:9], "latchkey.application": "shop", "latchkey.namespace": namespace,
		}
		maps.Copy(a, more)
		return a
	}
	want := map[string]collector.Span{
		"chat fast": {Name: "chat fast", Server: true, Trace: trace, Parent: parent, State: "a=1", Attributes: common("fast", nil)},
		"chat gpt-5": {Name: "chat gpt-5", Server: true, Attributes: common("gpt-5", map[string]any{
			"gen_ai.request.stream": true, "gen_ai.response.model": "gpt-5",
		})},
		"request api_key_disabled": {Name: "request", Server: true, Trace: trace, Parent: parent, Failed: "refused: api_key_disabled", Attributes: map[string]any{
			"latchkey.key.prefix": off[:9], "latchkey.application": "shop", "latchkey.namespace": namespace,
			"latchkey.refusal.reason": "api_key_disabled", "error.type": "api_key_disabled", "http.response.status_code": int64(401),
		}},
		"request key_malformed": {Name: "request", Server: true, Failed: "refused: key_malformed", Attributes: map[string]any{
			"latchkey.refusal.reason": "key_malformed", "error.type": "key_malformed", "http.response.status_code": int64(401),
		}},
	}
	varies := []string{"gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens", "latchkey.request.id", "latchkey.cost", "latchkey.currency",
		"gen_ai.usage.reasoning.output_tokens", "gen_ai.usage.cache_read.input_tokens", "gen_ai.response.time_to_first_chunk"}
	ignored := cmp.Options{
		cmpopts.IgnoreFields(collector.Span{}, "Start", "End"),
		cmpopts.IgnoreMapEntries(func(name string, _ any) bool { return slices.Contains(varies, name) }),
		cmp.FilterPath(func(p cmp.Path) bool { return p.Last().String() == ".Trace" },
			cmp.Comparer(func(a, b string) bool { return a == b || (a == "" || b == "") && a+b != trace })),
	}
	if diff := cmp.Diff(want, spans, ignored); diff != "" {
		t.Errorf("spans (-want +got):\n%s", diff)
	}
	for name, s := range spans {
		_, counted := s.Attributes["gen_ai.usage.output_tokens"]
		_, first := s.Attributes["gen_ai.response.time_to_first_chunk"]
		if forwarded := strings.HasPrefix(name, "chat"); counted != forwarded || first != (name == "chat gpt-5") || !s.End.After(s.Start) && forwarded {
			t.Errorf("%s: %+v", name, s)
		}
	}
}

func checkMetrics(t *testing.T, c *collector.Collector) {
	t.Helper()
	series := map[string]int{"gen_ai.server.request.duration": 2, "gen_ai.server.time_to_first_token": 1, "gen_ai.client.token.usage": 4, "latchkey.refusals": 2}
	got := map[string]int{}
	for name, m := range c.Metrics() {
		if name != "latchkey.cost" {
			got[name] = len(m.Points)
		}
		for _, p := range m.Points {
			for _, unbounded := range []string{"latchkey.key.prefix", "latchkey.application", "latchkey.namespace", "latchkey.request.id"} {
				if _, there := p.Attributes[unbounded]; there {
					t.Errorf("%s has %s", name, unbounded)
				}
			}
		}
	}
	if diff := cmp.Diff(series, got); diff != "" {
		t.Errorf("series (-want +got):\n%s", diff)
	}
}
