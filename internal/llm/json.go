package llm

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/latchkey-dev/latchkey/internal/policy"
)

// The fields that are read.
const (
	fieldModel               = "model"
	fieldStream              = "stream"
	fieldStreamOptions       = "stream_options"
	fieldMaxTokens           = "max_tokens"
	fieldMaxCompletionTokens = "max_completion_tokens"
	fieldMaxOutputTokens     = "max_output_tokens"
	fieldN                   = "n"
	fieldBackground          = "background"
	fieldTools               = "tools"
	fieldModalities          = "modalities"
	fieldWebSearchOptions    = "web_search_options"
	fieldEnableSearch        = "enable_search"
	fieldSearchParameters    = "search_parameters"
	fieldPlugins             = "plugins"
	fieldModels              = "models"
	fieldFallbacks           = "fallbacks"
)

// The fields that are read of each object. A name that differs from one of these in case only is refused: some upstreams would take it.
var (
	requestFields = []string{
		fieldModel, fieldStream, fieldStreamOptions, fieldMaxTokens, fieldMaxCompletionTokens, fieldMaxOutputTokens, fieldN, fieldBackground,
		fieldTools, fieldModalities, fieldWebSearchOptions, fieldEnableSearch, fieldSearchParameters, fieldPlugins,
		fieldModels, fieldFallbacks,
	}
	streamFields = []string{"include_usage"}
	toolFields   = []string{"type", "function"}
	nameFields   = []string{"name"}
	pluginFields = []string{"id"}
	searchFields = []string{"mode"}
)

// maxDepth is jsontext's own limit, which encoding/json has too.
const maxDepth = 10_000

const byteOrderMark = "\xef\xbb\xbf"

// reader reads one body at a time.
type reader struct {
	dec  jsontext.Decoder
	src  bytes.Buffer // what dec reads: the body itself, not a copy
	path string       // the endpoint's
	req  *Request
}

// begin makes the body what the reader reads. With nil it lets go of the one before.
func (r *reader) begin(path string, body []byte) {
	r.path, r.req, r.src = path, nil, *bytes.NewBuffer(body)
	r.dec.Reset(&r.src)
}

// parseJSON reads a JSON body.
func (p *Parser) parseJSON(route Route, body []byte) (*Request, error) {
	if bytes.HasPrefix(body, []byte(byteOrderMark)) {
		return nil, formError("", "the body begins with a byte order mark, which JSON does not have: send it without")
	}
	r, ok := p.readers.Get().(*reader)
	if !ok {
		r = &reader{}
	}
	r.begin(route.Path, body)
	req, err := r.read()
	r.begin("", nil)
	p.readers.Put(r)
	return req, err
}

func (r *reader) read() (*Request, error) {
	switch r.dec.PeekKind() {
	case '{':
	case jsontext.KindInvalid:
		_, err := r.dec.ReadToken()
		if errors.Is(err, io.EOF) {
			return nil, formError("", "the body is empty: send a JSON object")
		}
		return nil, asFormError(err)
	default:
		return nil, formError("", "the body must be a JSON object, with the fields of %s", r.path)
	}
	r.req = &Request{}
	if err := r.eachField(requestFields, r.readField); err != nil {
		return nil, asFormError(err)
	}
	end := r.dec.InputOffset()
	if _, err := r.dec.ReadToken(); !errors.Is(err, io.EOF) {
		return nil, formError("", "there is something behind the body's JSON object, which ends at byte %d: send one object", end)
	}
	if r.req.end == 0 {
		return nil, noModel()
	}
	return r.req, nil
}

func (r *reader) readField(name string) error {
	switch name {
	case fieldModel:
		return r.readModel()
	case fieldStream:
		return r.readSwitch(name, &r.req.Stream)
	case fieldStreamOptions:
		return r.readStreamOptions()
	case fieldMaxTokens, fieldMaxCompletionTokens, fieldMaxOutputTokens:
		count, err := r.readCount(name)
		if boundsAnswer(r.path, name) {
			r.req.MaxTokens = max(r.req.MaxTokens, count)
		}
		return err
	case fieldN:
		count, err := r.readCount(name)
		r.req.N = count
		return err
	case fieldBackground:
		on := false
		err := r.readSwitch(name, &on)
		if on && r.path == Responses {
			return formError(name, "background responses are not available through this gateway, which could neither bill nor fetch them: leave \"background\" out")
		}
		return err
	case fieldTools:
		return r.readTools()
	case fieldModalities:
		return r.readModalities()
	case fieldModels, fieldFallbacks:
		// Some providers answer with one of these in place of "model", which would go round the key's scope and its price.
		if r.dec.PeekKind() != 'n' {
			return formError(name, "the field \"%s\" names other models to fall back on, which this gateway does not allow: name one in \"model\"", name)
		}
		return r.dec.SkipValue()
	case fieldPlugins:
		return r.readPlugins()
	}
	return r.readSearch(name)
}

// boundsAnswer reports whether the endpoint's answers are bounded by the field. Others of the kind are ignored by providers, and must be here.
func boundsAnswer(path, field string) bool {
	switch path {
	case ChatCompletions:
		return field == fieldMaxTokens || field == fieldMaxCompletionTokens
	case Completions, Messages:
		return field == fieldMaxTokens
	case Responses:
		return field == fieldMaxOutputTokens
	}
	return false
}

// optionsAt is where stream_options stand in a body.
type optionsAt struct {
	there      bool
	object     bool
	start, end int // of the value
	usage      bool
	usageStart int // of include_usage's value
	usageEnd   int
	more       bool // it has fields
}

// addable reports whether include_usage can be set there. What is neither an object nor null the provider refuses.
func (o *optionsAt) addable() bool { return !o.there || o.object || o.end-o.start == len("null") }

// readStreamOptions notes where the options stand, beside what they ask for.
func (r *reader) readStreamOptions() error {
	o := &r.req.options
	o.there, o.object = true, r.dec.PeekKind() == '{'
	if !o.object {
		value, err := r.dec.ReadValue()
		o.end = int(r.dec.InputOffset())
		o.start = o.end - len(value)
		if err == nil && value.Kind() != 'n' {
			o.start = o.end // not addable
		}
		return err
	}
	begun := false
	err := r.eachFieldFrom(func() {
		if !begun {
			begun = true
			o.start = int(r.dec.InputOffset()) - 1
			o.more = r.dec.PeekKind() != '}'
		}
	}, streamFields, func(name string) error {
		before := r.dec.InputOffset()
		if err := r.readSwitch(name, &r.req.IncludeUsage); err != nil {
			return err
		}
		o.usage, o.usageStart, o.usageEnd = true, int(before), int(r.dec.InputOffset())
		return nil
	})
	o.end = int(r.dec.InputOffset())
	return err
}

func (r *reader) readModel() error {
	value, err := r.dec.ReadValue()
	if err != nil {
		return err
	}
	if value.Kind() != '"' {
		return formError(fieldModel, "the field \"model\" must be a string")
	}
	r.req.end = int(r.dec.InputOffset())
	r.req.start = r.req.end - len(value)
	unquoted, err := jsontext.AppendUnquote(nil, value)
	if err != nil {
		return err
	}
	r.req.Model = string(unquoted)
	return checkModel(r.req.Model)
}

// need notes a capability that the body asks for.
func (r *reader) need(c policy.Capability) { r.req.Capabilities |= policy.CapabilitiesOf(c) }

// readTools looks for tools that are capabilities of their own: web search by both APIs' names, and image generation.
func (r *reader) readTools() error {
	switch r.dec.PeekKind() {
	case 'n':
		return r.dec.SkipValue()
	case '[':
	default:
		return r.mustBe(fieldTools, "a list")
	}
	return r.eachElement(func() error {
		kind, function := "", ""
		err := r.ifObject(toolFields, func(name string) error {
			if name == "type" {
				return r.readString(&kind)
			}
			return r.ifObject(nameFields, func(string) error { return r.readString(&function) })
		})
		kind = strings.ToLower(kind)
		switch {
		case strings.HasPrefix(kind, "web_search"), strings.HasPrefix(kind, "web_fetch"),
			kind == "builtin_function" && strings.EqualFold(function, "$web_search"):
			r.need(policy.WebSearch)
		case kind == "image_generation":
			r.need(policy.ImageGeneration)
		}
		return err
	})
}

// readModalities looks for answers that are not text.
func (r *reader) readModalities() error {
	read := func() error {
		modality := ""
		err := r.readString(&modality)
		switch strings.ToLower(modality) {
		case "image":
			r.need(policy.ImageGeneration)
		case "audio":
			r.need(policy.TextToSpeech)
		}
		return err
	}
	if r.dec.PeekKind() == '[' {
		return r.eachElement(read)
	}
	return read()
}

// readPlugins looks for OpenRouter's web plugin.
func (r *reader) readPlugins() error {
	if r.dec.PeekKind() != '[' {
		return r.dec.SkipValue()
	}
	return r.eachElement(func() error {
		id := ""
		err := r.ifObject(pluginFields, func(string) error { return r.readString(&id) })
		if strings.EqualFold(id, "web") {
			r.need(policy.WebSearch)
		}
		return err
	})
}

// readSearch looks at the options by which various APIs turn web search on: OpenAI's, xAI's, and those of others. What is not clearly off
// is on.
func (r *reader) readSearch(name string) error {
	kind := r.dec.PeekKind()
	switch {
	case kind == 'n', name == fieldEnableSearch && kind == 'f':
		return r.dec.SkipValue()
	case name == fieldSearchParameters:
		mode := ""
		err := r.ifObject(searchFields, func(string) error { return r.readString(&mode) })
		if mode != "off" {
			r.need(policy.WebSearch)
		}
		return err
	}
	r.need(policy.WebSearch)
	return r.dec.SkipValue()
}

// ifObject is eachField where there is an object. Any other value is skipped, and the provider will say what it thinks of it.
func (r *reader) ifObject(fields []string, visit func(name string) error) error {
	if r.dec.PeekKind() != '{' {
		return r.dec.SkipValue()
	}
	return r.eachField(fields, visit)
}

// eachField walks an object and calls visit, which must read the value, for each of the fields named. It skips the others, and refuses a
// name that differs from one of them in case only.
func (r *reader) eachField(fields []string, visit func(name string) error) error {
	return r.eachFieldFrom(func() {}, fields, visit)
}

// eachFieldFrom is eachField, which calls begun behind the object's brace.
func (r *reader) eachFieldFrom(begun func(), fields []string, visit func(name string) error) error {
	if _, err := r.dec.ReadToken(); err != nil { // {
		return err
	}
	begun()
	for r.dec.PeekKind() != '}' {
		raw, err := r.dec.ReadValue()
		if err != nil {
			return err
		}
		name := raw[1 : len(raw)-1]
		if bytes.IndexByte(name, '\\') >= 0 {
			if name, err = jsontext.AppendUnquote(nil, raw); err != nil {
				return err
			}
		}
		field, err := fieldOf(name, fields)
		switch {
		case err != nil:
		case field == "":
			err = r.dec.SkipValue()
		default:
			err = visit(field)
		}
		if err != nil {
			return err
		}
	}
	_, err := r.dec.ReadToken() // }
	return err
}

// fieldOf is the one of the fields that has the name, or empty. It refuses a name that is one of them but for upper and lower case.
func fieldOf(name []byte, fields []string) (string, error) {
	for _, field := range fields {
		if string(name) == field {
			return field, nil
		}
	}
	for _, field := range fields {
		if bytes.EqualFold(name, []byte(field)) {
			return "", formError(field, "the field %s differs from %q in upper and lower case: write %q", quote(string(name)), field, field)
		}
	}
	return "", nil
}

// eachElement walks an array; visit must read the element.
func (r *reader) eachElement(visit func() error) error {
	if _, err := r.dec.ReadToken(); err != nil { // [
		return err
	}
	for r.dec.PeekKind() != ']' {
		if err := visit(); err != nil {
			return err
		}
	}
	_, err := r.dec.ReadToken() // ]
	return err
}

// readString reads a string; any other value is skipped, and the provider will say what it thinks of it.
func (r *reader) readString(into *string) error {
	if r.dec.PeekKind() != '"' {
		return r.dec.SkipValue()
	}
	token, err := r.dec.ReadToken()
	if err == nil {
		*into = token.String()
	}
	return err
}

// readSwitch reads true, false or null. Others are refused: some upstreams take "true" and 1 for true.
func (r *reader) readSwitch(name string, into *bool) error {
	switch r.dec.PeekKind() {
	case 't':
		*into = true
	case 'f', 'n':
	default:
		return r.mustBe(name, "true or false")
	}
	return r.dec.SkipValue()
}

// readCount reads a whole number. null and what is below zero, which some upstreams take for "no limit", count as 0. Others are refused:
// some upstreams take "100" for 100.
func (r *reader) readCount(name string) (int64, error) {
	switch r.dec.PeekKind() {
	case 'n':
		return 0, r.dec.SkipValue()
	case '0':
	default:
		return 0, r.mustBe(name, "a whole number")
	}
	value, err := r.dec.ReadValue()
	if err != nil {
		return 0, err
	}
	count, ok := wholeNumber(string(value))
	if !ok {
		return 0, formError(name, "the field %q must be a whole number", name)
	}
	return count, nil
}

// wholeNumber reads a number, be it written as 1000, 1e3 or 1000.0. The result is 0 or more, and capped by what a float holds exactly.
func wholeNumber(s string) (int64, bool) {
	f, err := strconv.ParseFloat(s, 64)
	if err != nil && !errors.Is(err, strconv.ErrRange) || f != math.Trunc(f) {
		return 0, false
	}
	return int64(min(max(f, 0), 1<<53)), true
}

// mustBe skips a value, and says what it must be instead, unless it is not JSON to begin with.
func (r *reader) mustBe(name, what string) error {
	if err := r.dec.SkipValue(); err != nil {
		return err
	}
	return formError(name, "the field %q must be %s", name, what)
}

// asFormError puts a syntax error into words.
func asFormError(err error) error {
	if form, ok := errors.AsType[*FormError](err); ok {
		return form
	}
	syntactic, ok := errors.AsType[*jsontext.SyntacticError](err)
	if !ok {
		return formError("", "the body is not valid JSON: it ends before the object does")
	}
	pointer, at := syntactic.JSONPointer, syntactic.ByteOffset
	switch {
	case errors.Is(err, jsontext.ErrDuplicateName):
		field := pointer.LastToken()
		return formError(field, "the body holds the field %s twice, the second time at byte %d: send it once", quote(field), at)
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return formError("", "the body is not valid JSON: it ends at byte %d before the object does", at)
	case strings.Count(string(pointer), "/") >= maxDepth:
		return formError("", "the body nests more than %d levels deep, at byte %d: send a flatter one", maxDepth, at)
	}
	return formError("", "the body is not valid JSON, at byte %d: %s", at, clip(syntactic.Err.Error(), 80))
}

// edit is a stretch of a body, and what takes its place.
type edit struct {
	start, end int
	with       []byte
}

// rewritten puts another name in the model's place, asks for the usage if that has to be, and leaves every other byte as it is.
func (r *Request) rewritten(body []byte, upstream string) ([]byte, error) {
	name, err := jsontext.AppendQuote(nil, upstream)
	if err != nil {
		return nil, fmt.Errorf("quote upstream model: %w", err)
	}
	edits := []edit{{r.start, r.end, name}}
	if r.asks {
		edits = append(edits, r.options.asking(r.end))
	}
	slices.SortStableFunc(edits, func(a, b edit) int { return a.start - b.start })
	size := len(body)
	for _, e := range edits {
		size += len(e.with) - (e.end - e.start)
	}
	out := make([]byte, 0, size)
	at := 0
	for _, e := range edits {
		out = append(append(out, body[at:e.start]...), e.with...)
		at = e.end
	}
	return append(out, body[at:]...), nil
}

// asking is the edit that asks for the usage; behind is the end of another field's value, behind which a field can be added.
func (o *optionsAt) asking(behind int) edit {
	switch {
	case !o.there:
		return edit{behind, behind, []byte(`,"stream_options":{"include_usage":true}`)}
	case !o.object:
		return edit{o.start, o.end, []byte(`{"include_usage":true}`)}
	case o.usage:
		return edit{o.usageStart, o.usageEnd, []byte(`:true`)}
	case o.more:
		return edit{o.start + 1, o.start + 1, []byte(`"include_usage":true,`)}
	}
	return edit{o.start + 1, o.start + 1, []byte(`"include_usage":true`)}
}
