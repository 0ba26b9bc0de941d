package provider

import (
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	defaultBase            = "/v1"
	defaultMaxBody         = 64 << 20
	defaultMaxRecordedBody = 64 << 10
	defaultMaxRecords      = 10_000
)

// Config configures a Server. The zero value answers every request with 401, since it has no credential.
type Config struct {
	// Credential that OpenAI's API wants as bearer token. Empty: nothing is accepted.
	Credential string
	// AnthropicCredential that Anthropic's API wants as x-api-key. Empty: Credential.
	AnthropicCredential string
	// Models that exist, by their upstream names. Empty: every name does.
	Models []string
	// Prefix of all paths before Base, such as /gateway; usually empty.
	Prefix string
	// Base path of the APIs, such as /api/paas/v4. Default "/v1"; "/" is none.
	Base string
	// MaxBody is the largest body accepted, in bytes; a larger one gets 413. Default 64 MiB.
	MaxBody int64
	// MaxRecordedBody is how much of a body is recorded, in bytes. Default 64 KiB; negative records none.
	MaxRecordedBody int
	// MaxRecords kept; older ones are dropped. Default 10,000.
	MaxRecords int
	// Log gets a JSON line, a Record without headers, query and body, for each finished request. Nil: no log.
	Log io.Writer
	// Now is the clock. Default time.Now.
	Now func() time.Time
	// Sleep waits for d, or less when ctx ends, whose error it then returns. Default: real time.
	Sleep func(ctx context.Context, d time.Duration) error
}

// Server is the simulated provider. It is safe for concurrent use.
type Server struct {
	config    Config
	base      string
	endpoints map[string]endpoint
	recorder  *recorder

	mu          sync.Mutex
	credentials map[dialect]string
	held        map[*hold]struct{}
	running     map[*exchange]context.CancelFunc
	closed      bool
}

// endpoint is one path of an API.
type endpoint struct {
	method  string
	dialect dialect
	serve   func(*exchange) error
}

// hold is a stream that waits for Release.
type hold struct {
	id, name string
	released chan struct{}
}

// New makes a Server; it is ready to serve.
func New(config Config) *Server {
	if config.Base == "" {
		config.Base = defaultBase
	}
	if config.MaxBody == 0 {
		config.MaxBody = defaultMaxBody
	}
	if config.MaxRecordedBody == 0 {
		config.MaxRecordedBody = defaultMaxRecordedBody
	}
	if config.MaxRecords <= 0 {
		config.MaxRecords = defaultMaxRecords
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	if config.Sleep == nil {
		config.Sleep = sleep
	}
	config.Models = slices.Clone(config.Models)
	s := &Server{
		config:    config,
		base:      strings.TrimRight(joinPath(config.Prefix)+joinPath(config.Base), "/") + "/",
		endpoints: allEndpoints(),
		recorder:  &recorder{limit: config.MaxRecords, log: config.Log},
		held:      map[*hold]struct{}{},
		running:   map[*exchange]context.CancelFunc{},
	}
	s.SetCredentials(config.Credential, config.AnthropicCredential)
	return s
}

// joinPath makes a path that starts with a slash and ends with none, or nothing at all.
func joinPath(path string) string {
	path = strings.Trim(path, "/")
	if path == "" {
		return ""
	}
	return "/" + path
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func allEndpoints() map[string]endpoint {
	post := func(d dialect, serve func(*exchange) error) endpoint {
		return endpoint{method: http.MethodPost, dialect: d, serve: serve}
	}
	return map[string]endpoint{
		"chat/completions":      post(openAI, serveChat),
		"completions":           post(openAI, serveCompletions),
		"responses":             post(openAI, serveResponses),
		"embeddings":            post(openAI, serveEmbeddings),
		"moderations":           post(openAI, serveModerations),
		"images/generations":    post(openAI, serveImageGenerations),
		"images/edits":          post(openAI, serveImageEdits),
		"images/variations":     post(openAI, serveImageVariations),
		"audio/speech":          post(openAI, serveSpeech),
		"audio/transcriptions":  post(openAI, serveTranscriptions),
		"audio/translations":    post(openAI, serveTranslations),
		"messages":              post(anthropic, serveMessages),
		"messages/count_tokens": post(anthropic, serveCountTokens),
		"models":                {method: http.MethodGet, dialect: openAI, serve: serveModels},
	}
}

// SetCredentials replaces the credentials for the requests that follow, as when a provider's key is rotated. An empty anthropicCredential
// stands for credential.
func (s *Server) SetCredentials(credential, anthropicCredential string) {
	if anthropicCredential == "" {
		anthropicCredential = credential
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.credentials = map[dialect]string{openAI: credential, anthropic: anthropicCredential}
}

// Requests returns the records of the latest requests, oldest first, also of those that still run.
func (s *Server) Requests() []Record {
	return s.recorder.snapshot()
}

// Reset forgets all records and releases all held streams.
func (s *Server) Reset() {
	s.recorder.reset()
	s.release(func(*hold) bool { return true })
}

// Release lets every stream go on that holds with this record's id or this name of sim:hold. It reports whether there was one.
func (s *Server) Release(id string) bool {
	return s.release(func(h *hold) bool { return h.id == id || h.name == id && id != "" })
}

func (s *Server) release(match func(*hold) bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	found := false
	for h := range s.held {
		if match(h) {
			close(h.released)
			delete(s.held, h)
			found = true
		}
	}
	return found
}

// LogError returns the first error of writing the log, after which nothing more was logged.
func (s *Server) LogError() error {
	return s.recorder.logError()
}

// Close breaks the requests that are held or delayed, now and later; the others go on. It waits for none: that is for the http.Server to do.
func (s *Server) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for _, cancel := range s.running {
		cancel()
	}
}

func (s *Server) track(x *exchange, cancel context.CancelFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		cancel()
	}
	s.running[x] = cancel
}

func (s *Server) untrack(x *exchange) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.running, x)
}

func (s *Server) credential(d dialect) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.credentials[d]
}

func (s *Server) hasModel(model string) bool {
	return len(s.config.Models) == 0 || slices.Contains(s.config.Models, model)
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	record := s.recorder.start(Record{
		Time: s.config.Now(), Method: r.Method, Path: r.URL.Path, Query: r.URL.RawQuery, Proto: r.Proto, Host: r.Host, Headers: r.Header.Clone(),
	})
	x := &exchange{server: s, w: w, r: r, ctx: ctx, record: record, id: record.ID, out: w, d: noDirectives()}
	s.track(x, cancel)
	defer s.untrack(x)

	err := x.serve()
	if refusal, ok := errors.AsType[*apiError](err); ok {
		err = x.refuse(refusal)
	}
	if err == nil {
		err = x.closeBody()
	}
	outcome := OutcomeAnswered
	switch {
	case err == nil:
	case errors.Is(err, errFailStream):
		outcome = OutcomeFailed
	case errors.Is(err, errBroken):
		outcome = OutcomeBroken
	default:
		outcome = OutcomeClientGone
	}
	s.recorder.finish(record, outcome, s.config.Now())
	if outcome == OutcomeBroken {
		// The one way to break a connection that works for HTTP/1 and HTTP/2 alike.
		panic(http.ErrAbortHandler)
	}
}
