package provider

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"
)

// State says how far a request has come.
type State string

// The states of a request.
const (
	StateRunning State = "running"
	// StateHolding: sim:hold is waiting for Release.
	StateHolding State = "holding"
	StateDone    State = "done"
)

// Outcome says how a request ended.
type Outcome string

// The outcomes of a request; a request that has not ended has none.
const (
	// OutcomeAnswered: the answer, also an error, was written to its end.
	OutcomeAnswered Outcome = "answered"
	// OutcomeBroken: the simulator broke the connection as told.
	OutcomeBroken Outcome = "broken"
	// OutcomeFailed: the stream ended with an error event as told.
	OutcomeFailed Outcome = "failed"
	// OutcomeClientGone: the client went away before the end.
	OutcomeClientGone Outcome = "client_gone"
)

// Record is what the simulator knows of one request.
type Record struct {
	// ID is unique in a Server's life, also in the answer's x-request-id (OpenAI) or request-id (Anthropic).
	ID      string    `json:"id"`
	State   State     `json:"state"`
	Outcome Outcome   `json:"outcome,omitempty"`
	Time    time.Time `json:"time"`
	// Duration from the request's head to the end of the answer; 0 until then. In nanoseconds in JSON.
	Duration time.Duration `json:"duration"`
	Method   string        `json:"method"`
	Path     string        `json:"path"`
	Query    string        `json:"query,omitempty"`
	// Proto is the request's protocol, such as HTTP/1.1.
	Proto string `json:"proto"`
	Host  string `json:"host"`
	// Headers as received, with the credential.
	Headers http.Header `json:"headers,omitempty"`
	// Body is the start of the request's body, at most Config.MaxRecordedBody bytes. Bytes that are no UTF-8 are replaced in JSON.
	Body string `json:"body,omitempty"`
	// BodySize is the whole body's, in bytes.
	BodySize int    `json:"body_size"`
	Model    string `json:"model,omitempty"`
	// Directives found in the request's text.
	Directives []string `json:"directives,omitempty"`
	// Status of the answer; 0 until its head is written.
	Status int `json:"status"`
	// Streamed says whether the answer is an SSE stream.
	Streamed bool `json:"streamed"`
	// Events counts all SSE events delivered, Chunks those with a part of the answer.
	Events int `json:"events,omitempty"`
	Chunks int `json:"chunks,omitempty"`
	// Reported is the usage that the client was told. Nil if it was told none, or a spoiled one.
	Reported *Usage `json:"reported,omitempty"`
	// Consumed is what a provider would have had to do for what was delivered, whether it was reported or not.
	Consumed Usage `json:"consumed"`
}

// logLine is a Record without anything that could hold a secret or a text: no headers, query or body.
func logLine(r Record) Record {
	r.Headers, r.Query, r.Body = nil, "", ""
	return r
}

// recorder keeps the latest records and writes a line for each finished one. Safe for concurrent use.
type recorder struct {
	mu      sync.Mutex
	limit   int
	next    int
	records []*Record
	log     io.Writer
	logErr  error
}

func (c *recorder) start(r Record) *Record {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.next++
	r.ID = fmt.Sprintf("req_sim%08d", c.next)
	r.State = StateRunning
	record := &r
	if len(c.records) >= 2*c.limit {
		// Dropping half at once keeps the cost of a request constant.
		c.records = append([]*Record(nil), c.records[len(c.records)-c.limit:]...)
	}
	c.records = append(c.records, record)
	return record
}

// update changes a record; every write after start goes through it.
func (c *recorder) update(record *Record, change func(*Record)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change(record)
}

func (c *recorder) finish(record *Record, outcome Outcome, end time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	record.State, record.Outcome, record.Duration = StateDone, outcome, end.Sub(record.Time)
	if c.log == nil || c.logErr != nil {
		return
	}
	// A line is written whole, under mu, so that lines never mix.
	line, err := json.Marshal(logLine(*record))
	if err == nil {
		_, err = c.log.Write(append(line, '\n'))
	}
	c.logErr = err
}

func (c *recorder) snapshot() []Record {
	c.mu.Lock()
	defer c.mu.Unlock()
	records := c.records[max(0, len(c.records)-c.limit):]
	copies := make([]Record, 0, len(records))
	for _, record := range records {
		snapshot := *record
		if record.Reported != nil {
			snapshot.Reported = new(*record.Reported)
		}
		copies = append(copies, snapshot)
	}
	return copies
}

func (c *recorder) reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.records = nil
}

func (c *recorder) logError() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.logErr
}
