package extproc

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/latchkey-dev/latchkey/internal/enforce"
	"github.com/latchkey-dev/latchkey/internal/money"
)

// The tests of this file follow answers through the real Envoy, and what becomes of what was reserved for them.

const answerJSON = `{"choices":[{"message":{"content":"hello"}}],"usage":{"prompt_tokens":100,"completion_tokens":20,"total_tokens":120}}`

// costOfAnswer is that of the usage above, by the harness's prices.
const costOfAnswer = money.Amount(100*1_000 + 20*10_000)

func event(content string) string {
	return fmt.Sprintf("data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":%q}}]}\n\n", content)
}

const usageEvent = `data: {"choices":[],"usage":{"prompt_tokens":100,"completion_tokens":20,"total_tokens":120}}` + "\n\n"

// answerAs answers as the request's x-test header wants, if it does.
func answerAs(w http.ResponseWriter, r *http.Request, release <-chan struct{}) bool {
	stream := func(parts ...string) {
		w.Header().Set("content-type", "text/event-stream")
		for _, part := range parts {
			_, _ = io.WriteString(w, part)
			w.(http.Flusher).Flush()
		}
	}
	switch r.Header.Get("x-test") {
	case "json":
		w.Header().Set("content-type", "application/json")
		w.Header().Set("content-length", strconv.Itoa(len(answerJSON)))
		_, _ = io.WriteString(w, answerJSON)
	case "trailers":
		w.Header().Set("content-type", "application/json")
		w.Header().Set("trailer", "x-checksum")
		_, _ = io.WriteString(w, answerJSON)
		w.Header().Set("x-checksum", "1")
	case "usage":
		stream(event("hel"), event("lo"), usageEvent, "data: [DONE]\n\n")
	case "held":
		stream(event("hello"), event(" again"))
		select {
		case <-release:
		case <-r.Context().Done():
		}
		stream(usageEvent, "data: [DONE]\n\n")
	case "silent":
		<-r.Context().Done()
	case "breaks":
		stream(event("hello"))
		<-release
		panic(http.ErrAbortHandler)
	case "error":
		w.WriteHeader(http.StatusInternalServerError)
		_, _ = io.WriteString(w, `{"error":{"message":"no"}}`)
	case "credential":
		w.WriteHeader(http.StatusUnauthorized)
	default:
		return false
	}
	return true
}

// awaitEnding is the only request of the fixture's that has ended.
func (f *fixture) awaitEnding(t *testing.T) enforce.Metering {
	t.Helper()
	var m enforce.Metering
	waitFor(t, "the request's end", func() bool {
		f.decisions.mu.Lock()
		defer f.decisions.mu.Unlock()
		if len(f.decisions.meterings) == 0 {
			return false
		}
		m = f.decisions.meterings[0]
		return true
	})
	return m
}

func TestAnswersAreMeteredAndSettled(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		as, model, body string
		stream          bool
		status          int
		ending          enforce.Ending
		cost            money.Amount // -1: that of a few tokens, estimated
		counted         bool         // as a request
	}{
		"a JSON answer":                      {as: "json", status: 200, ending: enforce.EndingAnswered, cost: costOfAnswer, counted: true, body: answerJSON},
		"a JSON answer with trailers":        {as: "trailers", status: 200, ending: enforce.EndingAnswered, cost: costOfAnswer, counted: true, body: answerJSON},
		"a stream, without the usage":        {as: "usage", stream: true, status: 200, ending: enforce.EndingAnswered, cost: costOfAnswer, counted: true, body: event("hel") + event("lo") + "data: [DONE]\n\n"},
		"an error of the provider's is free": {as: "error", status: 500, ending: enforce.EndingError, counted: true},
		"a bad credential of ours is free":   {as: "credential", status: 502, ending: enforce.EndingCredential},
		"a provider out of reach is free":    {model: "nowhere", status: 503, ending: enforce.EndingUnanswered},
		"a provider that breaks off is not":  {as: "breaks", stream: true, status: 200, ending: enforce.EndingCutOff, cost: -1, counted: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, fixtureOptions{})
			up := newUpstream(t, &f.plaintext)
			g := startGateway(t, f.socket, up)
			body := chat(strings.TrimSpace("same"))
			if tc.model != "" {
				body = chat(tc.model)
			}
			if tc.stream {
				body = strings.TrimSuffix(body, "}") + `,"stream":true}`
			}
			req := g.request(t, strings.NewReader(body), f.plaintext)
			req.Header.Set("x-test", tc.as)
			resp, err := g.client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			lines := bufio.NewReader(resp.Body)
			if _, err := lines.Peek(1); err != nil && tc.as != "credential" {
				t.Fatal(err)
			}
			close(up.release)
			got, err := io.ReadAll(lines)
			_ = resp.Body.Close()
			if resp.StatusCode != tc.status || (err != nil) != (tc.as == "breaks") {
				t.Fatalf("status %d, %v: %s", resp.StatusCode, err, got)
			}
			if tc.body != "" {
				if diff := cmp.Diff(tc.body, string(got)); diff != "" {
					t.Errorf("the caller's body (-want +got):\n%s", diff)
				}
			}
			if tc.as == "json" && resp.ContentLength != int64(len(answerJSON)) {
				t.Errorf("content length %d", resp.ContentLength)
			}
			m := f.awaitEnding(t)
			few := m.Usage.Estimated && m.Cost > 0 && m.Cost < 200*1_000
			if m.Ending != tc.ending || m.Status != tc.status || (tc.cost >= 0 && (m.Cost != tc.cost || m.Usage.Estimated)) || (tc.cost < 0 && !few) {
				t.Errorf("ended %s as %d with %+v, cost %d", m.Ending, m.Status, m.Usage, m.Cost)
			}
			for _, id := range []string{"key-1", "app-1"} {
				b := f.ledger.Balance(id, time.UTC)
				if b.Day.Spent != m.Cost || b.Day.Reserved != 0 || b.ConcurrentRequests != 0 || (b.Day.Requests == 1) != tc.counted {
					t.Errorf("%s has %+v", id, b)
				}
			}
		})
	}
}

func TestCallersWhoHangUp(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		as     string
		stream bool
		ending enforce.Ending
	}{
		"in the middle of a stream":        {"held", true, enforce.EndingCutOff},
		"before a stream has begun":        {"silent", true, enforce.EndingHungUp},
		"before any other answer is there": {"silent", false, enforce.EndingHungUp},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, fixtureOptions{})
			up := newUpstream(t, &f.plaintext)
			g := startGateway(t, f.socket, up)
			body := `{"model":"same","max_tokens":50,"messages":[{"role":"user","content":"How do you do?"}]}`
			if tc.stream {
				body = strings.TrimSuffix(body, "}") + `,"stream":true}`
			}
			ctx, cancel := context.WithCancel(t.Context())
			req := g.request(t, strings.NewReader(body), f.plaintext).WithContext(ctx)
			req.Header.Set("x-test", tc.as)
			done := make(chan struct{})
			go func() {
				defer close(done)
				resp, err := g.client.Do(req)
				if err != nil {
					return
				}
				lines := bufio.NewReader(resp.Body)
				_, _ = lines.ReadString('\n')
				cancel()
				_ = resp.Body.Close()
			}()
			if tc.as == "silent" {
				waitFor(t, "the reservation", func() bool { return f.ledger.Balance("key-1", time.UTC).ConcurrentRequests == 1 })
				waitFor(t, "the provider to be asked", func() bool { return f.decided() == 1 })
				cancel()
			}
			<-done
			m := f.awaitEnding(t)
			if m.Ending != tc.ending || m.Cost <= 0 || !m.Usage.Estimated {
				t.Errorf("ended %s with %+v, cost %d", m.Ending, m.Usage, m.Cost)
			}
			if b := f.ledger.Balance("key-1", time.UTC); b.Day.Spent != m.Cost || b.Day.Estimated != m.Cost || b.ConcurrentRequests != 0 {
				t.Errorf("balance %+v", b)
			}
		})
	}
}

// decided is how many requests have been let through.
func (f *fixture) decided() int {
	f.decisions.mu.Lock()
	defer f.decisions.mu.Unlock()
	return len(f.decisions.list)
}

// TestAnswersGoOnWithoutTheEnforcer ends the enforcer in the middle of an answer, and has the caller get all of it.
func TestAnswersGoOnWithoutTheEnforcer(t *testing.T) {
	t.Parallel()
	f := newFixture(t, fixtureOptions{})
	up := newUpstream(t, &f.plaintext)
	g := startGateway(t, f.socket, up)
	req := g.request(t, strings.NewReader(`{"model":"same","max_tokens":50,"messages":[],"stream":true,"stream_options":{"include_usage":true}}`), f.plaintext)
	req.Header.Set("x-test", "held")
	resp, err := g.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	lines := bufio.NewReader(resp.Body)
	first, err := lines.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	f.stop()
	if err := <-f.stopped; err != nil {
		t.Fatal(err)
	}
	m := f.awaitEnding(t)
	if m.Ending != enforce.EndingNotWatched || m.Cost != m.Reserved || m.Cost < 50*10_000 || !m.Usage.Estimated {
		t.Errorf("ended %s with %+v, cost %d, reserved %d", m.Ending, m.Usage, m.Cost, m.Reserved)
	}
	close(up.release)
	rest, err := io.ReadAll(lines)
	if diff := cmp.Diff(event("hello")+event(" again")+usageEvent+"data: [DONE]\n\n", first+string(rest)); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
}
