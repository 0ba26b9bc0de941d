package llm

import (
	"bytes"
	"strings"

	"github.com/latchkey-dev/latchkey/internal/policy"
)

// Metered is what an answer was found to have used.
type Metered struct {
	policy.Usage
	// Complete says that the answer came to its end in good order, error answers included.
	Complete bool
}

// AnswerHead is what is known of an answer before its body.
type AnswerHead struct {
	Status          int
	ContentType     string
	ContentEncoding string
}

// maxHeld is the largest event that is held back to see whether it is to be hidden. One that tells the usage is far smaller.
const maxHeld = 64 << 10

// Meter reads one answer as it passes, in pieces that can end anywhere, and says what it used. One goroutine uses it at a time, and has to
// call Result.
type Meter struct {
	route Route
	req   *Request
	head  AnswerHead

	decoder *decoder // of a compressed answer; nil: it is not, or cannot be read
	blind   bool     // the answer cannot be read
	skim    skimmer
	doc     document
	json    bool // it is one JSON document
	events  *eventReader
	hides   bool
	held    []byte // of the event at hand, while it may have to be hidden
	out     []byte

	// Of the answer so far.
	usage    [2][]byte // as the provider told it last: of the message's beginning, and of the whole
	spoiled  bool      // what it told does not fit
	failed   bool      // it told of an error
	finished bool      // it came to its end
	final    bool      // what it told of its usage is the last word
	text     textCount
	pieces   int64 // of text
	images   int64
	searches int64
	size     string
	quality  string
	modelIs  [maxShort]byte // the model that the answer names
	modelLen int
	seconds  []byte // of audio
}

// The two places of a usage.
const (
	usageOfBeginning = iota // message_start
	usageOfWhole
)

// NewMeter makes a meter for the answer to a request that Parse gave.
func NewMeter(route Route, req *Request, head AnswerHead) *Meter {
	m := &Meter{route: route, req: req, head: head}
	m.skim.visitor = m
	mediaType, _, _ := strings.Cut(head.ContentType, ";")
	switch mediaType = strings.ToLower(strings.TrimSpace(mediaType)); {
	case mediaType == "text/event-stream":
		m.events = &eventReader{}
	case mediaType == mediaJSON, strings.HasSuffix(mediaType, "+json"):
		m.json = true
	}
	switch encoding := strings.ToLower(strings.TrimSpace(head.ContentEncoding)); encoding {
	case "", "identity":
		m.hides = m.events != nil && req.AsksForUsage()
	default:
		if m.decoder = newDecoder(encoding); m.decoder == nil {
			m.blind = true
		}
	}
	return m
}

// ChangesBody reports whether Write may change the answer.
func (m *Meter) ChangesBody() bool { return m.hides }

// Write reads a piece. What goes on to the caller is out where changed, and the piece itself otherwise. The end of an answer that has
// broken off is not told by Write, but by Result.
func (m *Meter) Write(piece []byte, end bool) (out []byte, changed bool) {
	switch {
	case m.head.Status >= 400 || m.blind:
	case m.decoder != nil:
		decoded, err := m.decoder.write(piece, end)
		m.read(decoded, end && err == nil)
		m.blind = err != nil
	default:
		m.out = m.out[:0]
		m.read(piece, end)
		if m.hides && (len(m.out) != len(piece) || !bytes.Equal(m.out, piece)) {
			out, changed = m.out, true
		}
	}
	m.finished = m.finished || end && (m.events == nil || m.head.Status >= 400)
	return out, changed
}

// read takes in what is not compressed.
func (m *Meter) read(piece []byte, end bool) {
	switch {
	case m.json:
		m.skim.write(piece)
		if end {
			m.skim.endScalar()
			m.endDocument()
		}
	case m.events != nil:
		m.readEvents(piece, end)
	}
}

// readEvents goes through the lines of a stream of events, and decides at the end of each event whether it goes on.
func (m *Meter) readEvents(piece []byte, end bool) {
	for len(piece) > 0 {
		n, line, boundary := m.events.next(piece)
		if m.hides {
			m.held = append(m.held, piece[:n]...)
		}
		if len(line) > 0 {
			m.skim.write(line)
		}
		if boundary {
			m.endEvent()
		} else if len(m.held) > maxHeld {
			m.pass()
		}
		piece = piece[n:]
	}
	if end {
		m.endEvent()
	}
}

// pass lets go on what was held.
func (m *Meter) pass() {
	m.out = append(m.out, m.held...)
	m.held = m.held[:0]
}

// endEvent looks at an event that is whole.
func (m *Meter) endEvent() {
	m.final = m.final || m.doc.usage && (!m.doc.choices || m.doc.noChoices)
	hidden := m.hides && m.doc.choices && m.doc.noChoices && m.doc.usage && m.skim.ended
	if m.events.done {
		m.finished = true
	}
	m.endDocument()
	m.events.done = false
	if hidden {
		m.held = m.held[:0]
		return
	}
	m.pass()
}

// document is what is known of the JSON document at hand: of the whole answer, or of an event of it.
type document struct {
	kind      string // its "type"
	itemKind  string // its item's
	choices   bool
	noChoices bool
	usage     bool
	text      bool
	images    int64
	searches  int64 // calls in its output
}

// endDocument takes what a document told into account.
func (m *Meter) endDocument() {
	d := &m.doc
	if d.text {
		m.pieces++
	}
	switch d.kind {
	case "response.output_item.done":
		if d.itemKind == "web_search_call" {
			m.searches++
		}
	case "response.completed", "response.incomplete", "message_stop", "speech.audio.done", "transcript.text.done":
		m.finished = true
	case "image_generation.completed", "image_edit.completed":
		m.finished = true
		m.images++
	case "response.failed":
		m.finished, m.failed = true, true
	case "error":
		m.failed = true
	}
	if m.json {
		m.images, m.searches = d.images, d.searches
	}
	m.doc = document{}
	if m.events != nil {
		m.skim.reset()
	}
}

// begins implements skimVisitor.
func (m *Meter) begins(s *skimmer, first byte) (keep bool) {
	last := s.depth - 1
	switch s.key(last) {
	case "usage":
		if first == 'n' { // null
			return false
		}
		return s.depth == 1 || s.depth == 2 && (s.key(0) == "response" || s.key(0) == "message")
	case "choices":
		if s.depth == 1 {
			m.doc.choices = true
		}
	case "error":
		if s.depth == 1 && first != 'n' {
			m.failed = true
		}
	case "duration":
		return s.depth == 1
	}
	return false
}

// captured implements skimVisitor.
func (m *Meter) captured(s *skimmer, raw []byte, whole bool) {
	switch {
	case s.key(s.depth-1) == "duration":
		if whole {
			m.seconds = append(m.seconds[:0], bytes.Trim(raw, `"`)...)
		}
	case !whole || len(raw) == 0 || raw[0] != '{':
		m.spoiled = true
	default:
		m.doc.usage = true
		place := usageOfWhole
		if s.depth == 2 && s.key(0) == "message" {
			place = usageOfBeginning
		}
		m.usage[place] = append(m.usage[place][:0], raw...)
	}
}

// ended implements skimVisitor.
func (m *Meter) ended(s *skimmer, short []byte, cut bool, count textCount) {
	last := s.key(s.depth - 1)
	switch last {
	case "type":
		switch {
		case cut:
		case s.depth == 1:
			m.doc.kind = string(short)
		case s.depth == 2 && s.key(0) == "item":
			m.doc.itemKind = string(short)
		case s.depth == 3 && s.key(0) == "output" && string(short) == "web_search_call":
			m.doc.searches++
		}
		return
	case "model":
		// Of the whole, of Responses' events, and of Anthropic's message_start.
		if !cut && m.modelLen == 0 && (s.depth == 1 || s.depth == 2 && (s.key(0) == "response" || s.key(0) == "message")) && namesModel(short) {
			m.modelLen = copy(m.modelIs[:], short)
		}
		return
	case "size", "quality":
		if s.depth == 1 && !cut && string(short) != "auto" {
			if last == "size" {
				m.size = string(short)
			} else {
				m.quality = string(short)
			}
		}
		return
	case "content", "text", "delta", "arguments", "partial_json", "thinking", "reasoning", "reasoning_content", "refusal", "transcript", "name":
	default:
		return
	}
	if m.events != nil && m.repeats() {
		return
	}
	if count.ascii+count.other > 0 {
		m.text.add(count)
		m.doc.text = true
	}
}

// namesModel reports whether a string can be a model's name: printable ASCII on one line.
func namesModel(b []byte) bool {
	for _, c := range b {
		if c <= ' ' || c > '~' {
			return false
		}
	}
	return len(b) > 0
}

// Model is the model that the answer says it is of; empty when it has said none. It is the meter's own memory.
func (m *Meter) Model() []byte { return m.modelIs[:m.modelLen] }

// TextBegan reports whether the first piece of text of a stream has passed: words, reasoning, or what a tool is called with.
func (m *Meter) TextBegan() bool { return m.events != nil && m.pieces > 0 }

// repeats reports whether the event at hand tells again what others have told in pieces.
func (m *Meter) repeats() bool {
	k := m.doc.kind
	return strings.HasPrefix(k, "response.") && !strings.HasSuffix(k, ".delta") || strings.HasSuffix(k, ".done")
}

// closed implements skimVisitor.
func (m *Meter) closed(s *skimmer, elements int, array bool) {
	if !array || s.depth != 1 {
		return
	}
	switch s.key(0) {
	case "choices":
		m.doc.noChoices = elements == 0
	case "data":
		m.doc.images = int64(elements)
	}
}

// Result is what the answer used, as far as it went. The meter has to be left alone after that.
func (m *Meter) Result() Metered {
	if m.decoder != nil {
		m.decoder.close()
	}
	out := Metered{Complete: m.finished}
	if m.head.Status >= 400 || m.route.Path == CountTokens || m.route.Path == Moderations {
		return out
	}
	if m.events != nil && m.failed && !m.reported() {
		out.Complete = false
	}
	u := &out.Usage
	told := m.told(u)
	m.units(u, told, out.Complete)
	m.search(u)
	out.Complete = out.Complete || told && m.final
	return out
}

// reported reports whether the provider told of what was used.
func (m *Meter) reported() bool { return m.usage[usageOfWhole] != nil }

// told takes over what the provider told, and estimates tokens where it did not.
func (m *Meter) told(u *policy.Usage) bool {
	beginning, whole, sound := m.parsed()
	switch {
	case sound && whole != nil:
		whole.fill(u, beginning, m.route.Dialect)
		if whole.hasTokens() || whole.Seconds != "" {
			if m.events != nil && !m.finished && !m.final { // a count that had still to grow
				u.OutputTokens, u.Estimated = max(u.OutputTokens, m.delivered()), true
			}
			return true
		}
	case sound && beginning != nil:
		beginning.fill(u, nil, m.route.Dialect)
		u.OutputTokens = max(u.OutputTokens, m.delivered())
		u.Estimated = true
		return false
	}
	if m.perUnit() {
		return false
	}
	u.InputTokens = m.req.LikelyInputTokens()
	if m.route.Capability != policy.Embeddings {
		u.OutputTokens = m.delivered()
	}
	u.Estimated = true
	return false
}

func (m *Meter) parsed() (beginning, whole *toldUsage, sound bool) {
	if m.spoiled {
		return nil, nil, false
	}
	var err error
	if raw := m.usage[usageOfBeginning]; raw != nil {
		if beginning, err = parseUsage(raw); err != nil {
			return nil, nil, false
		}
	}
	if raw := m.usage[usageOfWhole]; raw != nil {
		if whole, err = parseUsage(raw); err != nil {
			return beginning, nil, beginning != nil
		}
	}
	return beginning, whole, true
}

// perUnit reports whether the endpoint is billed by other units than tokens where it tells no tokens.
func (m *Meter) perUnit() bool {
	switch m.route.Capability {
	case policy.ImageGeneration, policy.TextToSpeech, policy.SpeechToText:
		return true
	default:
		return false
	}
}

// units fills in what is not tokens. It does so also where tokens are told: which of them is billed, the prices decide.
func (m *Meter) units(u *policy.Usage, told, complete bool) {
	switch m.route.Capability {
	case policy.ImageGeneration:
		u.Images = m.images
		u.ImageSize, u.ImageQuality = m.req.ImageSize, m.req.ImageQuality
		if m.size != "" {
			u.ImageSize = m.size
		}
		if m.quality != "" {
			u.ImageQuality = m.quality
		}
		if !told && (!complete || m.blind) {
			u.Images, u.Estimated = max(u.Images, m.req.OutputCount()), true
		}
	case policy.TextToSpeech:
		u.Characters = m.req.InputCharacters
	case policy.SpeechToText:
		if u.AudioMilliseconds > 0 {
			return
		}
		if ms, ok := milliseconds(string(m.seconds)); ok {
			u.AudioMilliseconds = ms
			return
		}
		u.AudioMilliseconds = m.req.LikelyAudioMilliseconds()
		u.Estimated = u.Estimated || !told
	default:
	}
}

// search counts web searches where the usage does not: the calls that the answer shows; and for chat completions one, since that API
// makes one a request that asks for it.
func (m *Meter) search(u *policy.Usage) {
	if u.Searches > 0 || !m.req.Capabilities.Has(policy.WebSearch) {
		return
	}
	u.Searches = m.searches
	if m.route.Path == ChatCompletions && m.finished {
		u.Searches = max(u.Searches, 1)
	}
}

// delivered estimates the output tokens that were delivered.
func (m *Meter) delivered() int64 { return max(m.text.tokens(), m.pieces) }

// SoFar is a quick estimate of what has been delivered up to now.
func (m *Meter) SoFar() policy.Usage {
	if m.events == nil || m.perUnit() {
		return policy.Usage{}
	}
	return policy.Usage{InputTokens: m.req.LikelyInputTokens(), OutputTokens: m.delivered(), Estimated: true}
}
