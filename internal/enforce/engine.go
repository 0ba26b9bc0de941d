package enforce

import (
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/latchkey-dev/latchkey/internal/key"
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
	Status      int    // of an answer; 0 when forwarded
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
}

// Observer is told of every decision, from the goroutine that made it.
type Observer interface {
	Decided(d Decision)
}

// Options are what an Engine needs.
type Options struct {
	Table    *Table
	Observer Observer
	Now      func() time.Time
}

// Engine decides. It is safe for concurrent use.
type Engine struct {
	table    *Table
	observer Observer
	now      func() time.Time
}

// New makes an engine. All options are required.
func New(o Options) (*Engine, error) {
	if o.Table == nil || o.Observer == nil || o.Now == nil {
		return nil, errors.New("make engine: table, observer and clock are required")
	}
	return &Engine{table: o.Table, observer: o.Observer, now: o.Now}, nil
}

// Exchange is one request on its way. One goroutine uses it.
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
	elapsed   time.Duration
}

// Begin looks at a request's head. It answers what needs no body: a refusal, or a list of models. Otherwise the exchange waits for Body.
func (e *Engine) Begin(h Head) (*Exchange, *Answer) {
	started := e.now()
	x := &Exchange{engine: e, head: h}
	x.path, x.query = h.Path, ""
	if i := strings.IndexByte(h.Path, '?'); i >= 0 {
		x.path, x.query = h.Path[:i], h.Path[i:]
	}
	x.requestID = x.header("x-request-id")
	if llm.IsAnthropicPath(x.path) || x.header("anthropic-version") != "" {
		x.dialect = llm.Anthropic
	}
	answer := x.begin(started)
	x.elapsed = e.now().Sub(started)
	if answer != nil {
		x.observe(answer)
		return nil, answer
	}
	return x, nil
}

func (x *Exchange) begin(now time.Time) *Answer {
	if refusal := x.authenticate(now); refusal != nil {
		return x.refuse(refusal)
	}
	if strings.Contains(x.head.Path, x.plaintext.Reveal()) {
		return x.refuse(&refusal{status: http.StatusBadRequest, reason: "key_in_url",
			message: "keys do not belong into URLs, which end up in logs: send it as \"Authorization: Bearer KEY\" only, and consider this key leaked"})
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
		_, answer := x.decide(nil, now)
		return answer
	}
	return nil
}

// Body decides, now that the whole body is there.
func (x *Exchange) Body(body []byte) (*Forward, *Answer) {
	started := x.engine.now()
	forward, answer := x.decide(body, started)
	x.elapsed += x.engine.now().Sub(started)
	x.observe(answer)
	return forward, answer
}

func (x *Exchange) decide(body []byte, now time.Time) (*Forward, *Answer) {
	// The key may have been revoked while the body was on its way.
	if refusal := x.look(now); refusal != nil {
		return nil, x.refuse(refusal)
	}
	contentType, ambiguous := x.single("content-type")
	encoding, ambiguousToo := x.single("content-encoding")
	if ambiguous || ambiguousToo {
		return nil, x.refuse(&refusal{status: http.StatusBadRequest, reason: "bad_request", message: "content-type and content-encoding can be sent once each"})
	}
	request, err := llm.Parse(x.route, contentType, encoding, body)
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
		return nil, x.refuse(formRefusal(err))
	}
	forward := &Forward{Provider: x.model.Provider, Path: x.route.Path + x.query, Remove: x.strip(), Body: changed}
	if newType != "" {
		forward.Set = append(forward.Set, Header{"content-type", newType})
	}
	return forward, nil
}

// chooseModel finds the model, and checks that the request can go to it.
func (x *Exchange) chooseModel(request *llm.Request) *refusal {
	m := x.engine.table.model(request.Model)
	if m == nil || !x.key.Models.Allows(m.Name) || !x.app.Models.Allows(m.Name) {
		return modelNotFound(request.Model)
	}
	if m.Format != x.route.Dialect.Format() {
		other := "/v1/messages"
		if m.Format == policy.FormatOpenAI {
			other = "/v1/chat/completions"
		}
		return &refusal{status: http.StatusBadRequest, reason: "wrong_api", param: "model",
			message: "model " + shown(m.Name) + " speaks " + m.Format.String() + "'s API: call " + other + " instead of " + x.route.Path}
	}
	if missing := m.Capabilities.Missing(request.Capabilities); missing != 0 {
		return &refusal{status: http.StatusBadRequest, reason: "model_incapable", param: "model",
			message: "model " + shown(m.Name) + " cannot do what is asked for (" + missing.String() + "): it does " + m.Capabilities.String()}
	}
	x.model = m
	return nil
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

// ResponseHead looks at the head of a provider's response. One that says that the platform's own credential is no good becomes an error of
// the gateway's: to the caller it would look like their key, and its body can quote the credential.
func (x *Exchange) ResponseHead(status int, _ []Header) (*Answer, *ResponseChange) {
	if status != http.StatusUnauthorized && status != http.StatusForbidden {
		return nil, nil
	}
	answer := x.refuse(&refusal{status: http.StatusBadGateway, kind: kindServer, reason: "provider_credential",
		message: "provider " + shown(x.model.Provider) + " refused the gateway's own credential; your key is in order. The platform team has to mend the provider's credential"})
	answer.Headers = append(answer.Headers, Header{"x-should-retry", "false"})
	x.observe(answer)
	return answer, nil
}

// strip names the headers that must not reach a provider: credentials, whatever else holds the key, and those that choose whose account
// pays at the provider.
func (x *Exchange) strip() []string {
	remove := []string{"authorization", "x-api-key", "api-key", "cookie", "openai-organization", "openai-project"}
	plaintext := x.plaintext.Reveal()
	for _, h := range x.head.Headers {
		if strings.HasPrefix(h.Name, "x-latchkey-") || (strings.Contains(h.Value, plaintext) && !strings.HasPrefix(h.Name, ":") && h.Name != "host") {
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

// single is a header's one value, and whether it was sent with several that differ.
func (x *Exchange) single(name string) (value string, ambiguous bool) {
	seen := false
	for _, h := range x.head.Headers {
		if h.Name != name {
			continue
		}
		if seen && h.Value != value {
			return "", true
		}
		value, seen = h.Value, true
	}
	return value, false
}

func (x *Exchange) prefix() string {
	if x.key == nil {
		return ""
	}
	return x.plaintext.Prefix()
}

func (x *Exchange) observe(answer *Answer) {
	d := Decision{
		Outcome: OutcomeForwarded, KeyPrefix: x.prefix(), Dialect: x.dialect.String(), RequestID: x.requestID, Elapsed: x.elapsed,
	}
	if x.key != nil {
		d.Namespace, d.Key, d.Application = x.key.Namespace, x.key.Name, x.key.Application
	}
	if x.routed && !x.route.Listing {
		d.Capability = x.route.Capability.String()
	}
	if x.model != nil {
		d.Model, d.Provider = x.model.Name, x.model.Provider
	}
	if answer != nil {
		d.Outcome, d.Reason, d.Status = OutcomeRefused, answer.Reason, answer.Status
		if answer.Status < http.StatusBadRequest {
			d.Outcome = OutcomeAnswered
		}
	}
	x.engine.observer.Decided(d)
}
