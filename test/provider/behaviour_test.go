package provider

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// streams are the same request to each text API, streamed.
func streams(text string) map[string]object {
	stream := object{"stream": true}
	return map[string]object{
		"/v1/chat/completions": chat(text, stream),
		"/v1/completions":      {"model": "m", "prompt": text, "stream": true},
		"/v1/responses":        {"model": "m", "input": text, "stream": true},
		"/v1/messages":         message(text, stream),
	}
}

func TestBreakAfterBreaksStreams(t *testing.T) {
	s := start(t, Config{})
	for path, body := range streams("sim:chunks=5 sim:break-after=3") {
		t.Run(path, func(t *testing.T) {
			got := s.post(t, path, body)
			if !errors.Is(got.err, io.ErrUnexpectedEOF) {
				t.Errorf("reading ended with %v", got.err)
			}
			if !strings.Contains(got.body, "word3") || strings.Contains(got.body, "word4") {
				t.Errorf("body is %s", got.body)
			}
			record := s.last(t)
			if record.Outcome != OutcomeBroken || record.Chunks != 3 || record.Consumed.OutputTokens != 3*2 {
				t.Errorf("record is %+v", record)
			}
		})
	}
}

func TestBreakAfterBreaksWholeAnswersInTheMiddle(t *testing.T) {
	s := start(t, Config{})
	got := s.post(t, "/v1/chat/completions", chat("sim:break-after=0"))
	if got.status != http.StatusOK || !errors.Is(got.err, io.ErrUnexpectedEOF) || got.body == "" {
		t.Errorf("result is %+v", got)
	}
	if record := s.last(t); record.Outcome != OutcomeBroken || record.Reported != nil {
		t.Errorf("record is %+v", record)
	}
}

func TestAbortAnswersNothing(t *testing.T) {
	s := start(t, Config{})
	if got := s.post(t, "/v1/messages", message("sim:abort")); got.err == nil {
		t.Errorf("result is %+v", got)
	}
	if record := s.waitFor(t, StateDone); record.Outcome != OutcomeBroken || record.Status != 0 {
		t.Errorf("record is %+v", record)
	}
}

func TestErrorAfterEndsStreamsAsTheAPIDoes(t *testing.T) {
	s := start(t, Config{})
	last := map[string]sseEvent{
		"/v1/chat/completions": {"", `{"error":{"code":null,"message":"The server had an error while processing your request.","param":null,"type":"server_error"}}`},
		"/v1/completions":      {"", `{"error":{"code":null,"message":"The server had an error while processing your request.","param":null,"type":"server_error"}}`},
		"/v1/messages":         {"error", `{"error":{"message":"Overloaded","type":"overloaded_error"},"type":"error"}`},
	}
	for path, body := range streams("sim:chunks=5 sim:error-after=2") {
		t.Run(path, func(t *testing.T) {
			got := s.post(t, path, body)
			if got.err != nil {
				t.Fatal(got.err)
			}
			found := events(t, got.body)
			end := found[len(found)-1]
			if path == "/v1/responses" {
				response := decode(t, end.data)["response"].(object)
				if end.name != "response.failed" || response["status"] != "failed" || response["error"] == nil || response["usage"] != nil {
					t.Errorf("last event is %+v", end)
				}
			} else if end != last[path] {
				t.Errorf("last event is %+v, want %+v", end, last[path])
			}
			if record := s.last(t); record.Outcome != OutcomeFailed || record.Chunks != 2 {
				t.Errorf("record is %+v", record)
			}
		})
	}
}

func TestHoldKeepsTheStreamOpenUntilReleased(t *testing.T) {
	s := start(t, Config{})
	for path, body := range streams("sim:chunks=3 sim:hold=door") {
		t.Run(path, func(t *testing.T) {
			response, err := s.client.Do(s.request(t, path, body))
			if err != nil {
				t.Fatal(err)
			}
			defer response.Body.Close()
			reader := bufio.NewReader(response.Body)
			for line := ""; !strings.Contains(line, "word1"); {
				if line, err = reader.ReadString('\n'); err != nil {
					t.Fatal(err)
				}
			}
			// The first chunk is here and the stream cannot have ended, however long this took.
			if record := s.waitFor(t, StateHolding); record.Chunks != 1 {
				t.Errorf("record is %+v", record)
			}
			if s.Release("other") || s.Release("") {
				t.Error("released something else")
			}
			if !s.Release("door") {
				t.Error("nothing was released")
			}
			rest, err := io.ReadAll(reader)
			if err != nil || !bytes.Contains(rest, []byte("word3")) {
				t.Errorf("rest is %s, error %v", rest, err)
			}
			if record := s.last(t); record.Outcome != OutcomeAnswered || record.Chunks != 3 {
				t.Errorf("record is %+v", record)
			}
			if s.Release("door") {
				t.Error("released twice")
			}
		})
	}
}

func TestHoldIsReleasedByIDResetAndClose(t *testing.T) {
	tests := map[string]struct {
		release func(*simulator, string)
		broken  bool
	}{
		"by the record's id": {release: func(s *simulator, id string) { s.Release(id) }},
		"by a reset":         {release: func(s *simulator, _ string) { s.Reset() }},
		"by a close":         {release: func(s *simulator, _ string) { s.Close() }, broken: true},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			s := start(t, Config{})
			answer := make(chan result, 1)
			request := s.request(t, "/v1/chat/completions", chat("sim:hold"))
			go func() { answer <- s.do(t, request) }()
			tc.release(s, s.waitFor(t, StateHolding).ID)
			if got := <-answer; (got.err != nil) != tc.broken || !tc.broken && got.status != http.StatusOK {
				t.Errorf("result is %+v", got)
			}
		})
	}
}

func TestClientGoneIsRecorded(t *testing.T) {
	s := start(t, Config{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	response, err := s.client.Do(s.request(t, "/v1/messages", message("sim:chunks=3 sim:hold", object{"stream": true})).WithContext(ctx))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	s.waitFor(t, StateHolding)
	cancel()
	if record := s.last(t); record.Outcome != OutcomeClientGone || record.Chunks != 1 || record.Reported == nil || record.Reported.OutputTokens != 1 {
		t.Errorf("record is %+v", record)
	}
	if s.Release(s.Requests()[0].ID) {
		t.Error("the hold was left behind")
	}
}

func TestDelaysSleepAsLongAsAsked(t *testing.T) {
	var mu sync.Mutex
	var slept []time.Duration
	s := start(t, Config{Sleep: func(_ context.Context, d time.Duration) error {
		mu.Lock()
		defer mu.Unlock()
		slept = append(slept, d)
		return nil
	}})
	s.post(t, "/v1/chat/completions", chat("sim:delay=2s sim:chunk-delay=50ms sim:chunks=3", object{"stream": true}))
	s.last(t)
	mu.Lock()
	defer mu.Unlock()
	const chunk = 50 * time.Millisecond
	if diff := cmp.Diff([]time.Duration{2 * time.Second, chunk, chunk, chunk}, slept); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestDelayEndsWithCloseAndWithItsTime(t *testing.T) {
	s := start(t, Config{})
	if got := s.post(t, "/v1/chat/completions", chat("sim:delay=1ms")); got.status != http.StatusOK {
		t.Errorf("result is %+v", got)
	}
	answer := make(chan result, 1)
	request := s.request(t, "/v1/chat/completions", chat("sim:delay=10m"))
	go func() { answer <- s.do(t, request) }()
	waitUntil(t, "the second request runs", func() bool {
		records := s.Requests()
		return len(records) == 2 && len(records[1].Directives) == 1
	})
	s.Close()
	if got := <-answer; got.err == nil {
		t.Errorf("result is %+v", got)
	}
	if record := s.last(t); record.Outcome != OutcomeBroken {
		t.Errorf("record is %+v", record)
	}
}

func TestSplitPiecesMakeTheSameStream(t *testing.T) {
	s := start(t, Config{})
	for path := range streams("") {
		t.Run(path, func(t *testing.T) {
			text := func(body string) string {
				// The identifiers and times differ from request to request.
				var all strings.Builder
				for _, e := range events(t, body) {
					for _, name := range []string{`"content":"`, `"delta":"`, `"text":"`} {
						if _, rest, ok := strings.Cut(e.data, name); ok {
							value, _, _ := strings.Cut(rest, `"`)
							all.WriteString(value)
						}
					}
				}
				return all.String()
			}
			whole := s.post(t, path, streams("hello")[path])
			split := s.post(t, path, streams("sim:split")[path])
			if text(whole.body) != text(split.body) || !strings.Contains(text(split.body), "✓") {
				t.Errorf("whole %q, split %q", text(whole.body), text(split.body))
			}
		})
	}
}

func TestGzipIsForThoseWhoAcceptIt(t *testing.T) {
	s := start(t, Config{})
	for name, body := range map[string]object{"JSON": chat("sim:gzip"), "a stream": chat("sim:gzip", object{"stream": true})} {
		t.Run(name, func(t *testing.T) {
			for accept, zipped := range map[string]bool{"gzip": true, "br, gzip;q=0.5": true, "gzip;q=0": false, "identity": false} {
				r := s.request(t, "/v1/chat/completions", body)
				r.Header.Set("Accept-Encoding", accept)
				got := s.do(t, r)
				if got.err != nil || (got.header.Get("Content-Encoding") == "gzip") != zipped {
					t.Fatalf("%s: encoding is %q, error %v", accept, got.header.Get("Content-Encoding"), got.err)
				}
				text := got.body
				if zipped {
					reader, err := gzip.NewReader(strings.NewReader(got.body))
					if err != nil {
						t.Fatal(err)
					}
					plain, err := io.ReadAll(reader)
					if err != nil {
						t.Fatal(err)
					}
					text = string(plain)
				}
				if !strings.Contains(text, "simulated") {
					t.Errorf("%s: body is %q", accept, text)
				}
			}
		})
	}
}

func TestEchoHeadersHidesOnlyTheCredential(t *testing.T) {
	s := start(t, Config{})
	r := s.request(t, "/v1/chat/completions", chat("sim:echo-headers"))
	r.Header.Set("X-Api-Key", "lk_caller")
	got := decode(t, s.do(t, r).body)
	text := got["choices"].([]any)[0].(object)["message"].(object)["content"].(string)
	for _, line := range []string{"authorization: Bearer [provider credential]", "x-api-key: lk_caller", "content-type: application/json"} {
		if !strings.Contains("\n"+text+"\n", "\n"+line+"\n") {
			t.Errorf("no line %q in\n%s", line, text)
		}
	}
	if record := s.last(t); record.Headers.Get("Authorization") != "Bearer "+testCredential || record.Headers.Get("X-Api-Key") != "lk_caller" {
		t.Errorf("recorded headers are %v", record.Headers)
	}
}

func TestSpeechBytesComeInChunks(t *testing.T) {
	s := start(t, Config{})
	for format, contentType := range speechTypes() {
		t.Run(format, func(t *testing.T) {
			got := s.post(t, "/v1/audio/speech", object{"model": "m", "input": "hello sim:chunks=7", "voice": object{"id": "v"}, "response_format": format})
			if got.err != nil || got.header.Get("Content-Type") != contentType || len(got.body) == 0 {
				t.Errorf("answer is %d bytes of %s, error %v", len(got.body), got.header.Get("Content-Type"), got.err)
			}
			if record := s.last(t); record.Chunks != 7 || record.Streamed {
				t.Errorf("record is %+v", record)
			}
		})
	}
	got := s.post(t, "/v1/audio/speech", object{"model": "m", "input": "sim:break-after=2", "voice": "alloy"})
	if !errors.Is(got.err, io.ErrUnexpectedEOF) || s.last(t).Outcome != OutcomeBroken {
		t.Errorf("reading ended with %v, record %+v", got.err, s.last(t))
	}
}

func TestLogHasALineForEachRequestAndNoSecret(t *testing.T) {
	var log bytes.Buffer
	s := start(t, Config{Log: &log})
	s.post(t, "/v1/chat/completions?api-key=lk_query", chat("my secret sim:output-tokens=50"))
	s.post(t, "/v1/embeddings", object{"model": "e", "input": "12345678"})
	s.last(t)
	var total Usage
	lines := strings.Split(strings.TrimSpace(log.String()), "\n")
	for _, line := range lines {
		var record Record
		if err := json.Unmarshal([]byte(line), &record); err != nil {
			t.Fatal(err)
		}
		total.InputTokens += record.Reported.InputTokens
		total.OutputTokens += record.Reported.OutputTokens
	}
	if len(lines) != 2 || total != (Usage{InputTokens: 8 + 2, OutputTokens: 50}) {
		t.Errorf("log adds up to %+v:\n%s", total, log.String())
	}
	for _, secret := range []string{testCredential, "my secret", "lk_query"} {
		if strings.Contains(log.String(), secret) {
			t.Errorf("the log has %q", secret)
		}
	}
}

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, errors.New("disk full") }

func TestLogErrorIsShown(t *testing.T) {
	s := start(t, Config{Log: failingWriter{}})
	if got := s.post(t, "/v1/chat/completions", chat("hi")); got.status != http.StatusOK {
		t.Errorf("status is %d", got.status)
	}
	waitUntil(t, "the log's error is known", func() bool { return s.LogError() != nil })
}

func TestRecordsAreBounded(t *testing.T) {
	s := start(t, Config{MaxRecords: 3, MaxRecordedBody: 10})
	for range 10 {
		s.post(t, "/v1/chat/completions", chat("hello"))
	}
	record := s.last(t)
	if n := len(s.Requests()); n != 3 {
		t.Errorf("%d records are kept", n)
	}
	if len(record.Body) != 10 || record.BodySize != len(encode(chat("hello"))) {
		t.Errorf("body is %q of %d", record.Body, record.BodySize)
	}
}
