package enforce

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const traceParent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

func TestTraceHeadersAreToldToObservers(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", maxTraceHeader)
	type told struct{ Parent, State string }
	for name, tc := range map[string]struct {
		headers []string
		want    told
	}{
		"both":                          {[]string{"traceparent", traceParent, "tracestate", "a=1,b=2"}, told{traceParent, "a=1,b=2"}},
		"none":                          {nil, told{}},
		"a state without a parent":      {[]string{"tracestate", "a=1"}, told{}},
		"the longest there may be":      {[]string{"traceparent", long, "tracestate", long}, told{long, long}},
		"a parent that is too long":     {[]string{"traceparent", long + "x", "tracestate", "a=1"}, told{}},
		"a state that is too long":      {[]string{"traceparent", traceParent, "tracestate", long + "x"}, told{traceParent, ""}},
		"a state with the key":          {[]string{"traceparent", traceParent, "tracestate", "a={good}"}, told{traceParent, ""}},
		"a state with somebody's key":   {[]string{"traceparent", traceParent, "tracestate", "a={unknown}"}, told{traceParent, ""}},
		"a state with the key's secret": {[]string{"traceparent", traceParent, "tracestate", "a={secret}"}, told{traceParent, ""}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			for i := range tc.headers {
				tc.headers[i] = strings.ReplaceAll(tc.headers[i], "{secret}", w.keys[keyGood][9:])
			}
			x, _, _ := w.do(t, call{key: keyGood, headers: tc.headers, body: chat("gpt")})
			d := w.observed.last(t)
			if diff := cmp.Diff(tc.want, told{d.TraceParent, d.TraceState}); diff != "" {
				t.Errorf("decision (-want +got):\n%s", diff)
			}
			x.End(true)
			m := w.observed.lastMetered(t)
			if diff := cmp.Diff(tc.want, told{m.TraceParent, m.TraceState}); diff != "" {
				t.Errorf("metering (-want +got):\n%s", diff)
			}
		})
	}
}

// TestTimesOfARequest has a clock that goes on between the steps of a request only.
func TestTimesOfARequest(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	now := noon()
	var err error
	clock := func() time.Time { return now }
	if w.engine, err = New(Options{Table: w.table, Ledger: newLedger(t, noon), Observer: w.observed, Now: clock}); err != nil {
		t.Fatal(err)
	}
	x, answer := w.engine.Begin(w.head(call{key: keyGood, body: " "}))
	if answer != nil {
		t.Fatalf("refused: %s", answer.Body)
	}
	now = now.Add(time.Second) // the body is on its way
	if _, answer = x.Body(t.Context(), []byte(strings.TrimSuffix(chat("gpt"), "}")+`,"stream":true}`)); answer != nil {
		t.Fatalf("refused: %s", answer.Body)
	}
	if d := w.observed.last(t); !d.Began.Equal(noon()) || d.Took != time.Second || d.Elapsed != 0 || !d.Stream {
		t.Errorf("decided %+v", d)
	}
	now = now.Add(time.Second)
	x.ResponseHead(200, []Header{{"content-type", "text/event-stream"}}, false)
	for _, piece := range []string{
		`{"model":"gpt-2026","choices":[{"delta":{"role":"assistant","content":""}}]}`, // no text yet
		`{"model":"gpt-2026","choices":[{"delta":{"content":"hello"}}]}`,
		`{"model":"another","choices":[{"delta":{"content":"again"}}]}`,
		`{"choices":[],"usage":{"prompt_tokens":10,"completion_tokens":2}}`,
	} {
		now = now.Add(time.Second)
		x.ResponseBody([]byte("data: "+piece+"\n\n"), false)
	}
	x.ResponseBody([]byte("data: [DONE]\n\n"), true)
	m := w.observed.lastMetered(t)
	if m.Ending != EndingAnswered || m.Took != 6*time.Second || m.FirstText != 4*time.Second || string(m.AnswerModel) != "gpt-2026" ||
		m.AnswerStatus != 200 || !m.Stream || m.Endpoint != "/v1/chat/completions" || m.Currency == "" {
		t.Errorf("metered %+v", m)
	}
}

// TestAnswersThatAreNoStreams have no first text.
func TestAnswersThatAreNoStreams(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	x, _, _ := w.do(t, call{key: keyGood, body: chat("gpt")})
	x.ResponseHead(200, []Header{{"content-type", "application/json"}}, false)
	x.ResponseBody([]byte(`{"model":"gpt-2026","choices":[{"message":{"content":"hello"}}],"usage":{"prompt_tokens":1,"completion_tokens":1}}`), true)
	if m := w.observed.lastMetered(t); m.FirstText != 0 || string(m.AnswerModel) != "gpt-2026" || m.Stream {
		t.Errorf("metered %+v", m)
	}
}
