package provider

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// object is a JSON document as the API reference shows it.
type object = map[string]any

// splitPause lets the pieces of a split event leave in packets of their own.
const splitPause = time.Millisecond

// exchange is one request and its answer. It belongs to the request's goroutine.
type exchange struct {
	server  *Server
	w       http.ResponseWriter
	r       *http.Request
	ctx     context.Context // of the request, and ended by Close; for waiting only
	dialect dialect
	record  *Record
	id      string
	body    []byte
	d       directives
	out     io.Writer // w, or the gzip writer before it
	zip     *gzip.Writer
	chunks  int
	wasHeld bool
}

// serve finds the endpoint, checks the credential, reads the body and answers.
func (x *exchange) serve() error {
	path, inside := strings.CutPrefix(x.r.URL.Path, x.server.base)
	e, found := x.server.endpoints[path]
	if model, ok := strings.CutPrefix(path, "models/"); ok && model != "" {
		e, found = endpoint{method: http.MethodGet, serve: func(x *exchange) error { return serveModel(x, model) }}, true
	}
	x.dialect = e.dialect
	if path == "models" || strings.HasPrefix(path, "models/") || !found {
		// Both APIs have these paths; only this header tells them apart.
		if x.r.Header.Get("anthropic-version") != "" {
			x.dialect = anthropic
		}
	}
	if !inside || !found {
		return pathError(x.dialect, x.r.Method, x.r.URL.Path)
	}
	if x.r.Method != e.method {
		return methodError(x.r.Method, x.r.URL.Path)
	}
	if err := x.authenticate(); err != nil {
		return err
	}
	if err := x.readBody(); err != nil {
		return err
	}
	return e.serve(x)
}

func (x *exchange) authenticate() error {
	want := x.server.credential(x.dialect)
	var offered string
	if x.dialect == anthropic {
		offered = x.r.Header.Get("x-api-key")
	} else if scheme, token, ok := strings.Cut(x.r.Header.Get("Authorization"), " "); ok && strings.EqualFold(scheme, "Bearer") {
		offered = strings.TrimSpace(token)
	}
	if offered == "" || offered != want {
		return keyError(x.dialect, offered)
	}
	if x.dialect == anthropic && x.r.Header.Get("anthropic-version") == "" {
		return badRequest("", "anthropic-version: header is required")
	}
	return nil
}

func (x *exchange) readBody() error {
	body, err := io.ReadAll(http.MaxBytesReader(x.w, x.r.Body, x.server.config.MaxBody))
	kept := body[:min(len(body), max(x.server.config.MaxRecordedBody, 0))]
	x.update(func(r *Record) { r.Body, r.BodySize = string(kept), len(body) })
	if tooLarge, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return &apiError{
			status: http.StatusRequestEntityTooLarge, retryAfter: unset,
			message: fmt.Sprintf("Request exceeds the maximum size of %d bytes", tooLarge.Limit),
		}
	}
	if err != nil {
		return errGone
	}
	x.body = body
	return nil
}

// fields reads the body as a JSON object. Names are told apart by case and the last of two wins, as in the real APIs.
func (x *exchange) fields() (fields, error) {
	media, _, err := mime.ParseMediaType(x.r.Header.Get("Content-Type"))
	if x.dialect == openAI && (err != nil || media != "application/json") {
		e := badRequest("", "Unsupported content type: '%s'. This API method only accepts 'application/json' requests.", x.r.Header.Get("Content-Type"))
		e.code = "unsupported_content_type"
		return nil, e
	}
	var f fields
	if err := json.Unmarshal(x.body, &f); err != nil || f == nil {
		return nil, badRequest("", "We could not parse the JSON body of your request. The API expects a JSON object.")
	}
	return f, nil
}

// begin is called once with the request's model and the text that may hold directives, before anything is answered.
func (x *exchange) begin(model, text string) error {
	d, err := parseDirectives(text)
	x.update(func(r *Record) { r.Model, r.Directives = model, d.names })
	if err != nil {
		return badRequest("", "%s", err)
	}
	if model == "" {
		if x.dialect == anthropic {
			return badRequest("model", "model: Field required")
		}
		return badRequest("model", "you must provide a model parameter")
	}
	if !x.server.hasModel(model) {
		return modelError(x.dialect, model)
	}
	x.d = d
	if err := x.sleep(d.delay); err != nil {
		return err
	}
	if d.abort {
		return errBroken
	}
	if d.status != 0 {
		return statusError(x.dialect, d.status, d.retryAfter, model)
	}
	return nil
}

func (x *exchange) update(change func(*Record)) {
	x.server.recorder.update(x.record, change)
}

func (x *exchange) now() int64 {
	return x.server.config.Now().Unix()
}

// newID makes an identifier of the request's own number, such as chatcmpl-sim00000001.
func (x *exchange) newID(prefix string) string {
	return prefix + strings.TrimPrefix(x.id, "req_")
}

func (x *exchange) sleep(d time.Duration) error {
	if d > 0 && x.server.config.Sleep(x.ctx, d) != nil {
		return x.stopped()
	}
	return x.left()
}

// left returns errGone if the client has gone.
func (x *exchange) left() error {
	if x.r.Context().Err() != nil {
		return errGone
	}
	return nil
}

// stopped returns why a wait has ended early.
func (x *exchange) stopped() error {
	if err := x.left(); err != nil {
		return err
	}
	return errBroken
}

// wait is sim:hold.
func (x *exchange) wait() error {
	if x.wasHeld || !x.d.hold {
		return nil
	}
	x.wasHeld = true
	h := &hold{id: x.id, name: x.d.holdName, released: make(chan struct{})}
	s := x.server
	s.mu.Lock()
	s.held[h] = struct{}{}
	s.mu.Unlock()
	// Only now, so that whoever sees the state can release it.
	x.update(func(r *Record) { r.State = StateHolding })
	defer x.update(func(r *Record) { r.State = StateRunning })
	select {
	case <-h.released:
		return nil
	case <-x.ctx.Done():
		s.mu.Lock()
		delete(s.held, h)
		s.mu.Unlock()
		return x.stopped()
	}
}

// head writes the answer's status and headers.
func (x *exchange) head(status int, contentType string, size int) {
	h := x.w.Header()
	h.Set("Content-Type", contentType)
	reset := x.server.config.Now().Add(time.Second).UTC().Format(time.RFC3339)
	if x.dialect == anthropic {
		h.Set("Request-Id", x.id)
		h.Set("Anthropic-Organization-Id", "sim-org")
		for _, kind := range []string{"Requests", "Tokens", "Input-Tokens", "Output-Tokens"} {
			h.Set("Anthropic-Ratelimit-"+kind+"-Limit", "500000")
			h.Set("Anthropic-Ratelimit-"+kind+"-Remaining", "499999")
			h.Set("Anthropic-Ratelimit-"+kind+"-Reset", reset)
		}
	} else {
		h.Set("X-Request-Id", x.id)
		h.Set("Openai-Organization", "sim-org")
		h.Set("Openai-Version", "2020-10-01")
		h.Set("Openai-Processing-Ms", strconv.FormatInt(x.server.config.Now().Sub(x.record.Time).Milliseconds(), 10))
		for _, kind := range []string{"Requests", "Tokens"} {
			h.Set("X-Ratelimit-Limit-"+kind, "500000")
			h.Set("X-Ratelimit-Remaining-"+kind, "499999")
			h.Set("X-Ratelimit-Reset-"+kind, "1s")
		}
	}
	switch {
	case x.d.gzip && acceptsGzip(x.r.Header):
		h.Set("Content-Encoding", "gzip")
		h.Add("Vary", "Accept-Encoding")
		x.zip = gzip.NewWriter(x.w)
		x.out = x.zip
	case size >= 0:
		h.Set("Content-Length", strconv.Itoa(size))
	}
	x.update(func(r *Record) { r.Status = status })
	x.w.WriteHeader(status)
}

func acceptsGzip(h http.Header) bool {
	for _, value := range h.Values("Accept-Encoding") {
		for coding := range strings.SplitSeq(value, ",") {
			name, quality, _ := strings.Cut(strings.TrimSpace(coding), ";")
			if strings.EqualFold(strings.TrimSpace(name), "gzip") && strings.ReplaceAll(quality, " ", "") != "q=0" {
				return true
			}
		}
	}
	return false
}

// refuse answers with an error.
func (x *exchange) refuse(e *apiError) error {
	if e.retryAfter != unset {
		x.w.Header().Set("Retry-After", strconv.Itoa(e.retryAfter))
	}
	body := encode(e.document(x.dialect, x.id))
	x.head(e.status, "application/json", len(body))
	return x.send(body)
}

// answerJSON writes a document as the whole answer; reported is the usage in it, or nil.
func (x *exchange) answerJSON(document object, reported *Usage) error {
	return x.answer("application/json", encode(document), reported)
}

// answer writes a body as the whole answer.
func (x *exchange) answer(contentType string, body []byte, reported *Usage) error {
	if err := x.wait(); err != nil {
		return err
	}
	x.head(http.StatusOK, contentType, len(body))
	if x.d.breakAfter != unset {
		if err := x.send(body[:len(body)/2]); err != nil {
			return err
		}
		return errBroken
	}
	if err := x.send(body); err != nil {
		return err
	}
	x.report(reported)
	return nil
}

// putUsage sets the usage of a document, as the directives want it.
func (x *exchange) putUsage(document, usage object) {
	switch {
	case x.d.noUsage:
	case x.d.badUsage != "":
		document["usage"] = spoilUsage(usage, x.d.badUsage)
	default:
		document["usage"] = usage
	}
}

// report records the usage that the client has now been told, unless it was spoiled or left out.
func (x *exchange) report(u *Usage) {
	if u == nil || x.d.noUsage || x.d.badUsage != "" {
		return
	}
	x.update(func(r *Record) { r.Reported = new(*u) })
}

// consume records what has been used so far.
func (x *exchange) consume(change func(*Usage)) {
	x.update(func(r *Record) { change(&r.Consumed) })
}

// openStream starts an SSE answer.
func (x *exchange) openStream() error {
	x.w.Header().Set("Cache-Control", "no-cache")
	x.update(func(r *Record) { r.Streamed = true })
	x.head(http.StatusOK, "text/event-stream; charset=utf-8", unset)
	return x.send(nil)
}

// event sends one SSE event; without a name it has only a data line, which for a string is the string itself.
func (x *exchange) event(name string, data any) error {
	var b bytes.Buffer
	if name != "" {
		fmt.Fprintf(&b, "event: %s\n", name)
	}
	b.WriteString("data: ")
	if text, ok := data.(string); ok {
		b.WriteString(text)
	} else {
		b.Write(encode(data))
	}
	b.WriteString("\n\n")
	if err := x.send(b.Bytes()); err != nil {
		return err
	}
	x.update(func(r *Record) { r.Events++ })
	return nil
}

// chunk sends an event that carries a part of the answer worth so many output tokens, and obeys the directives about chunks.
func (x *exchange) chunk(tokens int, name string, data any) error {
	return x.content(tokens, func() error { return x.event(name, data) })
}

func (x *exchange) content(tokens int, send func() error) error {
	if err := x.interrupt(); err != nil {
		return err
	}
	if err := x.sleep(x.d.chunkDelay); err != nil {
		return err
	}
	if err := send(); err != nil {
		return err
	}
	x.chunks++
	x.update(func(r *Record) {
		r.Chunks++
		r.Consumed.OutputTokens += tokens
	})
	return x.wait()
}

// interrupt ends the stream where the directives want it to. It is called before each content chunk and once after the last.
func (x *exchange) interrupt() error {
	switch x.chunks {
	case x.d.breakAfter:
		return errBroken
	case x.d.errorAfter:
		return errFailStream
	}
	return nil
}

// afterContent is called once between the last content chunk and the events that end the stream.
func (x *exchange) afterContent() error {
	if err := x.interrupt(); err != nil {
		return err
	}
	return x.wait()
}

// send writes bytes and flushes them.
func (x *exchange) send(b []byte) error {
	if err := x.left(); err != nil {
		return err
	}
	pieces := [][]byte{b}
	if x.d.split {
		pieces = splitEvent(b)
	}
	for i, piece := range pieces {
		if i > 0 {
			if err := x.sleep(splitPause); err != nil {
				return err
			}
		}
		if _, err := x.out.Write(piece); err != nil {
			return errGone
		}
		if x.zip != nil {
			if err := x.zip.Flush(); err != nil {
				return errGone
			}
		}
		if err := http.NewResponseController(x.w).Flush(); err != nil && !errors.Is(err, http.ErrNotSupported) {
			return errGone
		}
	}
	return nil
}

func (x *exchange) closeBody() error {
	if x.zip == nil {
		return nil
	}
	if err := x.zip.Close(); err != nil {
		return errGone
	}
	return nil
}

// splitEvent cuts bytes after their second byte, which is inside an SSE line, and after the first byte of each character that has more than one.
func splitEvent(b []byte) [][]byte {
	var pieces [][]byte
	start := 0
	for i := range b {
		if i == 1 || b[i] >= utf8.RuneSelf && utf8.RuneStart(b[i]) {
			pieces = append(pieces, b[start:i+1])
			start = i + 1
		}
	}
	return append(pieces, b[start:])
}

// encode makes JSON with its text as it is, not escaped for HTML.
func encode(value any) []byte {
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		// All documents are made here of strings, numbers, lists and objects.
		panic(fmt.Sprintf("encode document: %v", err))
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

func orNull[T comparable](value T) any {
	var zero T
	if value == zero {
		return nil
	}
	return value
}

// echo is the text of sim:echo-headers.
func (x *exchange) echo() string {
	lines := []string{"host: " + x.r.Host}
	for _, name := range slices.Sorted(maps.Keys(x.r.Header)) {
		for _, value := range x.r.Header[name] {
			for _, d := range []dialect{openAI, anthropic} {
				if credential := x.server.credential(d); credential != "" {
					value = strings.ReplaceAll(value, credential, "[provider credential]")
				}
			}
			lines = append(lines, strings.ToLower(name)+": "+value)
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}
