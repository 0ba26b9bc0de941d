package provider

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

const (
	testCredential      = "sk-openai-0123456789abcdef"
	testAnthropicKey    = "sk-ant-0123456789abcdef"
	wholeDefaultTokens  = 19
	conditionDeadline   = 10 * time.Second
	conditionPollPeriod = 2 * time.Millisecond
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

// simulator is a Server that is being served.
type simulator struct {
	*Server
	url    string
	client *http.Client
}

func start(t *testing.T, config Config) *simulator {
	t.Helper()
	if config.Credential == "" {
		config.Credential, config.AnthropicCredential = testCredential, testAnthropicKey
	}
	s := New(config)
	served := httptest.NewServer(s)
	t.Cleanup(func() {
		s.Close()
		served.CloseClientConnections()
		served.Close()
	})
	return &simulator{Server: s, url: served.URL, client: served.Client()}
}

// rawJSON is a body to be sent as it is.
type rawJSON []byte

// request makes an authenticated request of a JSON body; the path decides the dialect.
func (s *simulator) request(t *testing.T, path string, body any) *http.Request {
	t.Helper()
	content, ok := body.(rawJSON)
	if !ok {
		content = encode(body)
	}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.url+path, bytes.NewReader(content))
	if err != nil {
		t.Fatalf("make request: %v", err)
	}
	r.Header.Set("Content-Type", "application/json")
	if strings.Contains(path, "/messages") {
		r.Header.Set("x-api-key", testAnthropicKey)
		r.Header.Set("anthropic-version", "2023-06-01")
	} else {
		r.Header.Set("Authorization", "Bearer "+testCredential)
	}
	return r
}

// result is a whole answer; err is how reading its body ended.
type result struct {
	status int
	header http.Header
	body   string
	err    error
}

func (s *simulator) do(t *testing.T, r *http.Request) result {
	t.Helper()
	response, err := s.client.Do(r)
	if err != nil {
		return result{err: err}
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return result{status: response.StatusCode, header: response.Header, body: string(body), err: err}
}

func (s *simulator) post(t *testing.T, path string, body any) result {
	t.Helper()
	return s.do(t, s.request(t, path, body))
}

// last waits until the latest request is done and returns its record.
func (s *simulator) last(t *testing.T) Record {
	t.Helper()
	return s.waitFor(t, StateDone)
}

// waitFor waits until the latest request is in the state.
func (s *simulator) waitFor(t *testing.T, state State) Record {
	t.Helper()
	var latest Record
	waitUntil(t, "the latest request is "+string(state), func() bool {
		records := s.Requests()
		if len(records) == 0 {
			return false
		}
		latest = records[len(records)-1]
		return latest.State == state
	})
	return latest
}

func waitUntil(t *testing.T, what string, condition func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), conditionDeadline)
	defer cancel()
	ticker := time.NewTicker(conditionPollPeriod)
	defer ticker.Stop()
	for !condition() {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			t.Fatalf("gave up waiting until %s", what)
		}
	}
}

// chat is a chat request whose only message is text.
func chat(text string, more ...object) object {
	return merge(object{"model": "m", "messages": []any{object{"role": "user", "content": text}}}, more...)
}

// message is a request of Anthropic's API whose only message is text.
func message(text string, more ...object) object {
	return merge(chat(text), append([]object{{"max_tokens": 1000}}, more...)...)
}

func merge(document object, more ...object) object {
	for _, fields := range more {
		maps.Copy(document, fields)
	}
	return document
}

// decode reads a JSON document into numbers, strings, lists and objects.
func decode(t *testing.T, text string) object {
	t.Helper()
	var document object
	if err := json.Unmarshal([]byte(text), &document); err != nil {
		t.Fatalf("decode %q: %v", text, err)
	}
	return document
}

// sseEvent is an event of an SSE stream.
type sseEvent struct{ name, data string }

func events(t *testing.T, stream string) []sseEvent {
	t.Helper()
	var found []sseEvent
	for block := range strings.SplitSeq(strings.TrimSuffix(stream, "\n\n"), "\n\n") {
		var e sseEvent
		for line := range strings.SplitSeq(block, "\n") {
			name, value, ok := strings.Cut(line, ": ")
			switch {
			case ok && name == "event":
				e.name = value
			case ok && name == "data":
				e.data = value
			default:
				t.Fatalf("stream has the line %q", line)
			}
		}
		found = append(found, e)
	}
	return found
}

// types are the types of the events of a stream whose events have one, in order and without repetition next to each other.
func types(t *testing.T, stream string) []string {
	t.Helper()
	var kinds []string
	for _, e := range events(t, stream) {
		kind, _ := decode(t, e.data)["type"].(string)
		if e.name != "" && e.name != kind {
			t.Errorf("event %q has the type %q", e.name, kind)
		}
		if len(kinds) == 0 || kinds[len(kinds)-1] != kind {
			kinds = append(kinds, kind)
		}
	}
	return kinds
}
