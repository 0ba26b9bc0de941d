package enforce

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/latchkey-dev/latchkey/internal/key"
	"github.com/latchkey-dev/latchkey/internal/ledger"
	"github.com/latchkey-dev/latchkey/internal/llm"
	"github.com/latchkey-dev/latchkey/internal/policy"
)

// Header is one header field; a field that was sent twice is two of them.
type Header struct{ Name, Value string } // Name in lower case

// Head is a request without its body.
type Head struct {
	Method    string
	Path      string // with the query, as it was sent
	Headers   []Header
	EndStream bool // no body follows
}

// Forward says what goes to the provider.
type Forward struct {
	Provider string   // by its name
	Path     string   // canonical, with the caller's query
	Set      []Header // put in place of what the caller sent
	Remove   []string
	Body     []byte // nil: the caller's
}

// Answer is given in place of the provider's.
type Answer struct {
	Status  int
	Headers []Header
	Body    []byte
	Reason  string // for metrics and logs: one of a few words
}

// ResponseChange is what becomes of a provider's response head.
type ResponseChange struct {
	Set    []Header
	Remove []string
}

// Outcome says what became of a request.
type Outcome string

// The outcomes.
const (
	OutcomeForwarded Outcome = "forwarded" // to a provider
	OutcomeAnswered  Outcome = "answered"  // by the enforcer itself, with what was asked for
	OutcomeRefused   Outcome = "refused"
)

// Decision is what an Observer is told of one.
type Decision struct {
	Outcome     Outcome
	Reason      string // of a refusal or an answer; empty when forwarded
	Status      int    // that the caller gets; 0 where no answer has begun
	KeyPrefix   string // empty when the key is unknown
	Namespace   string
	Key         string // name of the APIKey
	Application string
	Capability  string // of the endpoint; empty when it is unknown
	Model       string // as the caller named it, only when there is such a model
	Provider    string
	Dialect     string
	RequestID   string
	Elapsed     time.Duration // spent deciding

	// For traces.
	Endpoint    string        // canonical path, one of package llm's; empty when it is unknown
	Stream      bool          // the caller asked for a stream; known of requests that were let through
	Began       time.Time     // when the request's head was there
	Took        time.Duration // since then, waiting for the body included; of a Metering: to the end of the answer
	TraceParent string        // the caller's header of that name, as it was sent; empty when it is absent, or too long to be one
	TraceState  string        // likewise; only beside a TraceParent
}

// Observer is told what happens, from the goroutine in which it does.
type Observer interface {
	// Decided is called for every request, once it is decided whether it may pass.
	Decided(d Decision)
	// Metered is called for every request that was let through to a provider, once it has ended.
	Metered(m Metering)
	// LedgerFailed is called when the ledger could not answer.
	LedgerFailed(err error)
}

// Options are what an Engine needs.
type Options struct {
	Table    *Table
	Ledger   ledger.Ledger
	Observer Observer
	Now      func() time.Time
}

// Engine decides. It is safe for concurrent use.
type Engine struct {
	table    *Table
	ledger   ledger.Ledger
	observer Observer
	now      func() time.Time
	parser   llm.Parser
	doors    doorLimiter
}

// New makes an engine. All options are required.
func New(o Options) (*Engine, error) {
	if o.Table == nil || o.Ledger == nil || o.Observer == nil || o.Now == nil {
		return nil, errors.New("make engine: table, ledger, observer and clock are required")
	}
	return &Engine{table: o.Table, ledger: o.Ledger, observer: o.Observer, now: o.Now}, nil
}

// Exchange is one request on its way, and its answer. One goroutine uses it at a time. End has to be called for each that Begin gave.
type Exchange struct {
	engine    *Engine
	head      Head
	path      string // without the query
	query     string // with its question mark, or empty
	dialect   llm.Dialect
	requestID string
	plaintext key.Plaintext
	hash      policy.KeyHash
	key       *policy.Key
	app       *policy.Application
	route     llm.Route
	routed    bool
	model     *policy.Model
	began     time.Time
	elapsed   time.Duration

	// Of a request that was let through.
	request     *llm.Request
	reservation ledger.Reservation // the zero value where the ledger does not count it
	zone        *time.Location
	currency    string
	status      int        // of the answer
	meter       *llm.Meter // nil: no answer has begun
	grownAt     int64
	firstAt     time.Time // when the first piece of a streamed answer's text passed; the zero time: none has
	ended       bool
}

// Begin looks at a request's head. It answers what needs no body: a refusal, or a list of models. Otherwise the exchange waits for Body.
func (e *Engine) Begin(h Head) (*Exchange, *Answer) {
	started := e.now()
	x := &Exchange{engine: e, head: h, began: started}
	x.path, x.query = h.Path, ""
	if i := strings.IndexByte(h.Path, '?'); i >= 0 {
		x.path, x.query = h.Path[:i], h.Path[i:]
	}
	x.requestID = requestID(x.header("x-request-id"))
	if llm.IsAnthropicPath(x.path) || x.header("anthropic-version") != "" {
		x.dialect = llm.Anthropic
	}
	answer := x.begin(started)
	now := e.now()
	x.elapsed = now.Sub(started)
	if answer != nil {
		x.observe(answer, now)
		return nil, answer
	}
	return x, nil
}

func (x *Exchange) begin(now time.Time) *Answer {
	refused := x.authenticate(now)
	door, isDoor := doorAt(x.path)
	if refused != nil && (!isDoor || refused.reason != "api_key_expired" || x.app == nil || x.app.State != policy.StateEnabled) {
		return x.refuse(refused)
	}
	if refusal := x.checkURL(); refusal != nil {
		return x.refuse(refusal)
	}
	if isDoor {
		return x.open(door, now)
	}
	route, err := llm.Match(x.head.Method, x.path)
	if err != nil {
		return x.refuse(pathRefusal(err))
	}
	x.route, x.routed = route, true
	if route.Listing {
		return x.listModels()
	}
	if refusal := x.checkCapabilities(policy.CapabilitiesOf(route.Capability)); refusal != nil {
		return x.refuse(refusal)
	}
	if x.head.EndStream {
		_, answer := x.decide(context.Background(), nil, now) // there is no endpoint whose request can do without a body
		return answer
	}
	return nil
}

// Body decides, now that the whole body is there. It waits for the ledger's disk, and where a budget is reserved by requests under way, for
// a few seconds also for those; no longer than ctx lasts.
func (x *Exchange) Body(ctx context.Context, body []byte) (*Forward, *Answer) {
	started := x.engine.now()
	forward, answer := x.decide(ctx, body, started)
	now := x.engine.now()
	x.elapsed += now.Sub(started)
	x.observe(answer, now)
	return forward, answer
}

func (x *Exchange) decide(ctx context.Context, body []byte, now time.Time) (*Forward, *Answer) {
	// The key may have been revoked while the body was on its way.
	if refusal := x.look(now); refusal != nil {
		return nil, x.refuse(refusal)
	}
	contentType, ok := x.single("content-type")
	encoding, okToo := x.single("content-encoding")
	if !ok || !okToo {
		return nil, x.refuse(badRequest("bad_request", "", "the request has several content-type or content-encoding headers: send each once"))
	}
	request, err := x.engine.parser.Parse(x.route, contentType, encoding, body)
	if err != nil {
		return nil, x.refuse(formRefusal(err))
	}
	if refusal := x.checkCapabilities(request.Capabilities); refusal != nil {
		return nil, x.refuse(refusal)
	}
	if refusal := x.chooseModel(request); refusal != nil {
		return nil, x.refuse(refusal)
	}
	changed, newType, err := request.Forwarded(body, x.model.UpstreamName)
	if err != nil {
		return nil, x.refuse(&refusal{status: http.StatusInternalServerError, kind: kindServer, retry: retryNever, reason: "internal_error",
			message: "the gateway could not write the request anew for the provider; it was not forwarded"})
	}
	sent := body
	if changed != nil {
		sent = changed
	}
	if bytes.Contains(sent, []byte(x.secret())) {
		return nil, x.refuse(badRequest("key_in_body", "",
			"the body holds the API key itself, which must not get to a provider: take it out of the body, and consider the key leaked"))
	}
	if refusal := x.reserve(ctx, request); refusal != nil {
		return nil, x.refuse(refusal)
	}
	x.request = request
	// What a provider compresses would have to be decompressed to be read.
	forward := &Forward{Provider: x.model.Provider, Path: x.route.Path + x.query, Remove: x.strip(), Body: changed,
		Set: []Header{{"accept-encoding", "identity"}}}
	if newType != "" {
		forward.Set = append(forward.Set, Header{"content-type", newType})
	}
	return forward, nil
}

// chooseModel finds the model, and checks that the request can go to it.
func (x *Exchange) chooseModel(request *llm.Request) *refusal {
	m := x.engine.table.model(request.Model)
	if m == nil || !x.mayCall(m) {
		return modelNotFound(request.Model)
	}
	if missing := m.Capabilities.Missing(request.Capabilities); missing != 0 {
		return badRequest("model_incapable", "model",
			"model "+shown(m.Name)+" cannot do what is asked for ("+missing.String()+"): it does "+m.Capabilities.String())
	}
	if m.Format != x.route.Dialect.Format() {
		return badRequest("wrong_api", "model", "model "+shown(m.Name)+" speaks "+m.Format.String()+"'s API: "+x.insteadOf(m.Format))
	}
	x.model = m
	return nil
}

// insteadOf says what to call for a model of the other API.
func (x *Exchange) insteadOf(format policy.Format) string {
	switch {
	case x.route.Path == llm.CountTokens:
		return "it does not count tokens beforehand, and is called at " + llm.ChatCompletions
	case format == policy.FormatAnthropic:
		return "call " + llm.Messages + " instead of " + x.route.Path
	}
	return "call " + llm.ChatCompletions + " instead of " + x.route.Path
}

// mayCall reports whether a model is in the scope of both the key and its application.
func (x *Exchange) mayCall(m *policy.Model) bool {
	return m.Format != policy.FormatUnknown && x.key.Models.Allows(m.Name) && x.app.Models.Allows(m.Name)
}

// checkCapabilities checks that both the key and its application grant what is needed.
func (x *Exchange) checkCapabilities(needed policy.Capabilities) *refusal {
	if missing := x.key.Capabilities.Missing(needed); missing != 0 {
		return capabilityRefusal("the API key "+x.prefix()+"…", missing)
	}
	if missing := x.app.Capabilities.Missing(needed); missing != 0 {
		return capabilityRefusal("the application "+shown(x.app.DisplayName), missing)
	}
	return nil
}

// checkURL refuses a URL that holds the key, also percent-encoded, and what no URL can hold.
func (x *Exchange) checkURL() *refusal {
	secret := x.secret()
	for _, part := range []string{x.head.Path, x.header("host")} {
		if strings.Contains(part, secret) || strings.Contains(unescaped(part), secret) {
			return badRequest("key_in_url", "",
				"keys do not belong into URLs, which end up in logs: send it as \"Authorization: Bearer KEY\" only, and consider this key leaked")
		}
	}
	if strings.ContainsFunc(x.head.Path, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '#' }) {
		return badRequest("bad_request", "", "the URL holds characters that URLs cannot hold: percent-encode them")
	}
	return nil
}

// unescaped resolves the percent-encoding that is well-formed, and leaves the rest.
func unescaped(s string) string {
	if !strings.Contains(s, "%") {
		return s
	}
	out := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			if b, err := hex.DecodeString(s[i+1 : i+3]); err == nil {
				out = append(out, b[0])
				i += 2
				continue
			}
		}
		out = append(out, s[i])
	}
	return string(out)
}

// neverForwarded are the headers that must not reach a provider: credentials, and those that choose whose account pays there.
var neverForwarded = []string{
	headerAuthorization, headerXAPIKey, headerAPIKey, "x-goog-api-key", "proxy-authorization", "cookie",
	"openai-organization", "openai-project", "anthropic-organization-id",
}

// strip names the headers to take out: those that no provider gets, the gateway's own, and whatever else holds the key.
func (x *Exchange) strip() []string {
	secret := x.secret()
	remove := slices.Clone(neverForwarded)
	for i := range x.head.Headers {
		h := &x.head.Headers[i]
		if (strings.HasPrefix(h.Name, "x-latchkey-") || strings.Contains(h.Value, secret)) && !slices.Contains(remove, h.Name) {
			remove = append(remove, h.Name)
		}
	}
	return remove
}

func (x *Exchange) header(name string) string {
	for _, h := range x.head.Headers {
		if h.Name == name {
			return h.Value
		}
	}
	return ""
}

// single is a header's one value, or false when it was sent with several that differ.
func (x *Exchange) single(name string) (value string, ok bool) {
	seen := false
	for i := range x.head.Headers {
		h := &x.head.Headers[i]
		if h.Name != name {
			continue
		}
		if seen && h.Value != value {
			return "", false
		}
		value, seen = h.Value, true
	}
	return value, true
}

// keyScheme begins every key.
const keyScheme = "lk_"

// requestID takes a request's ID if it is one that can be echoed and logged: short, on one line, and not what could be a key.
func requestID(sent string) string {
	const most = 128
	odd := func(r rune) bool { return r <= ' ' || r > '~' }
	if len(sent) > most || strings.ContainsFunc(sent, odd) || strings.Contains(sent, keyScheme) {
		return ""
	}
	return sent
}

// maxTraceHeader is the longest header that is taken for one of a trace, in bytes.
const maxTraceHeader = 512

// trace is the caller's place in a trace, by the headers of W3C's Trace Context. A state that could hold a key is left out.
func (x *Exchange) trace() (parent, state string) {
	if parent = x.header("traceparent"); parent == "" || len(parent) > maxTraceHeader {
		return "", ""
	}
	state = x.header("tracestate")
	if len(state) > maxTraceHeader || strings.Contains(state, keyScheme) || x.key != nil && strings.Contains(state, x.secret()) {
		state = ""
	}
	return parent, state
}

// secret is what the key has behind the prefix that may be shown. Where it stands, the key stands, however its beginning is written. It is
// there once the key is authenticated.
func (x *Exchange) secret() string { return x.plaintext.Reveal()[key.PrefixLength:] }

func (x *Exchange) prefix() string {
	if x.key == nil {
		return ""
	}
	return x.plaintext.Prefix()
}

// decision is what is known of the request at a time, as one that was let through.
func (x *Exchange) decision(now time.Time) Decision {
	d := Decision{
		Outcome: OutcomeForwarded, Status: x.status, KeyPrefix: x.prefix(), Dialect: x.dialect.String(), RequestID: x.requestID, Elapsed: x.elapsed,
		Endpoint: x.route.Path, Stream: x.request != nil && x.request.Stream, Began: x.began, Took: now.Sub(x.began),
	}
	d.TraceParent, d.TraceState = x.trace()
	if x.key != nil {
		d.Namespace, d.Key, d.Application = x.key.Namespace, x.key.Name, x.key.Application
	}
	if x.routed && !x.route.Listing {
		d.Capability = x.route.Capability.String()
	}
	if x.model != nil {
		d.Model, d.Provider = x.model.Name, x.model.Provider
	}
	return d
}

func (x *Exchange) observe(answer *Answer, now time.Time) {
	d := x.decision(now)
	if answer != nil {
		d.Outcome, d.Reason, d.Status = OutcomeRefused, answer.Reason, answer.Status
		if answer.Status < http.StatusBadRequest {
			d.Outcome = OutcomeAnswered
		}
	}
	x.engine.observer.Decided(d)
}
