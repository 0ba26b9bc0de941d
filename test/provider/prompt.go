package provider

import (
	"encoding/json"
	"strings"
)

// anyTool as the forced tool stands for the first one.
const anyTool = "*"

// tool is a function that the model may call.
type tool struct {
	name   string
	schema json.RawMessage
}

// prompt is what all text APIs have in common.
type prompt struct {
	model           string
	stream          bool
	user            string // the last user text, where directives are
	input           int    // tokens
	tools           []tool
	forced          string // a tool's name, anyTool or empty
	toolsOff        bool
	afterToolResult bool
	webSearch       bool
	maxTokens       int // 0: no limit
	schema          json.RawMessage
	jsonOutput      bool
	choices         int
	thinking        bool
}

// count adds a text of the request to the input tokens.
func (p *prompt) count(text string) {
	p.input += countTokens(text)
}

// add adds a message or an item of a conversation.
func (p *prompt) add(role string, c content) {
	for _, text := range c.texts {
		p.count(text)
	}
	p.input += c.media * mediaTokens
	p.afterToolResult = c.toolResult || role == "tool" || role == "function"
	if role == "user" && len(c.texts) > c.toolTexts {
		p.user = strings.Join(c.texts[c.toolTexts:], "\n")
	}
}

// content is what a message's content holds; the texts of tool results come first.
type content struct {
	texts      []string
	toolTexts  int
	media      int
	toolResult bool
}

// part is one part of a content in any of the APIs.
type part struct {
	Type    string          `json:"type"`
	Text    string          `json:"text"`
	Refusal string          `json:"refusal"`
	Content json.RawMessage `json:"content"`
	Input   json.RawMessage `json:"input"`
}

// readContent reads a string or a list of parts; null and nothing are empty.
func readContent(raw json.RawMessage, param string) (content, error) {
	var c content
	if isNull(raw) {
		return c, nil
	}
	var text string
	if json.Unmarshal(raw, &text) == nil {
		c.texts = []string{text}
		return c, nil
	}
	var parts []part
	if err := json.Unmarshal(raw, &parts); err != nil {
		return c, badRequest(param, "Invalid type for '%s': expected a string or an array of objects.", param)
	}
	var toolTexts []string
	for _, p := range parts {
		switch {
		case p.Type == "text" || p.Type == "input_text" || p.Type == "output_text":
			c.texts = append(c.texts, p.Text)
		case p.Type == "refusal":
			c.texts = append(c.texts, p.Refusal)
		case p.Type == "tool_result":
			c.toolResult = true
			inner, err := readContent(p.Content, param)
			if err != nil {
				return c, err
			}
			toolTexts = append(toolTexts, inner.texts...)
			c.media += inner.media
		case p.Type == "tool_use" || p.Type == "server_tool_use":
			toolTexts = append(toolTexts, string(p.Input))
		case strings.Contains(p.Type, "image") || strings.Contains(p.Type, "audio") || strings.Contains(p.Type, "file") || p.Type == "document":
			c.media++
		}
	}
	c.toolTexts = len(toolTexts)
	c.texts = append(toolTexts, c.texts...)
	return c, nil
}

// fields are the members of a JSON object.
type fields map[string]json.RawMessage

func isNull(raw json.RawMessage) bool {
	return len(raw) == 0 || string(raw) == "null"
}

// get reads the field name into target; a missing or null field leaves it as it is.
func (f fields) get(name string, target any) error {
	if isNull(f[name]) {
		return nil
	}
	if err := json.Unmarshal(f[name], target); err != nil {
		e := badRequest(name, "Invalid type for '%s'.", name)
		e.code = "invalid_type"
		return e
	}
	return nil
}

// getAll reads several fields, in pairs of a name and its target.
func (f fields) getAll(targets map[string]any) error {
	for name, target := range targets {
		if err := f.get(name, target); err != nil {
			return err
		}
	}
	return nil
}

// textAnswer is what the model says.
type textAnswer struct {
	text      string
	chunks    []string
	call      *call
	searches  int
	query     string
	thinking  string
	truncated bool
	usage     Usage
}

// call is a call of a function tool.
type call struct {
	name      string
	arguments string
	chunks    []string
}

const defaultReply = "Hello – this is the simulated provider’s answer, naïve but complete ✓"

// compose makes the answer to a prompt; it must follow begin. The input is consumed with that.
func (x *exchange) compose(p prompt) textAnswer {
	d := x.d
	a := textAnswer{query: truncate(strings.Join(strings.Fields(p.user), " "), 16)}
	if d.inputTokens != unset {
		p.input = d.inputTokens
	}
	a.usage.InputTokens = p.input
	a.usage.CachedTokens = min(d.cached, p.input)
	a.usage.CacheWriteTokens = min(d.cacheWrite, p.input-a.usage.CachedTokens)
	if p.webSearch {
		a.searches = 1
		if d.searches != unset {
			a.searches = d.searches
		}
		a.usage.WebSearches = a.searches
	}
	x.consume(func(u *Usage) { *u = a.usage })

	if p.thinking {
		a.thinking = "The simulated provider thinks about its answer."
	}
	a.usage.ReasoningTokens = max(d.reasoning, countTokens(a.thinking))
	room := maxCount
	if p.maxTokens > 0 {
		room = p.maxTokens - a.usage.ReasoningTokens
	}
	if room <= 0 {
		a.usage.ReasoningTokens, a.truncated, room = p.maxTokens, true, 0
	}
	var output int
	if t := p.chosenTool(d); t != nil && room > 0 {
		a.call = &call{name: t.name, arguments: exampleJSON(t.schema)}
		a.call.chunks = splitText(a.call.arguments, 4)
		output = countTokens(t.name) + countTokens(a.call.arguments)
	} else {
		text := x.replyText(p)
		a.text = truncate(text, room)
		a.truncated = a.truncated || len(a.text) < len(text)
		a.chunks = splitText(a.text, d.chunks)
		if d.reply == nil {
			// The text was made with a word for each chunk.
			a.chunks = splitText(a.text, 0)
		}
		output = countTokens(a.text)
	}
	if d.outputTokens != unset {
		output = max(d.outputTokens-a.usage.ReasoningTokens, 0)
		if output > room {
			output, a.truncated = room, true
		}
	}
	a.usage.OutputTokens = (output + a.usage.ReasoningTokens) * max(p.choices, 1)
	return a
}

// complete records the whole answer as consumed.
func (x *exchange) complete(a textAnswer) {
	x.consume(func(u *Usage) { *u = a.usage })
}

func (x *exchange) replyText(p prompt) string {
	switch d := x.d; {
	case d.reply != nil:
		return *d.reply
	case d.echoHeaders:
		return x.echo()
	case d.chunks > 0:
		return numberedWords(d.chunks)
	case p.jsonOutput:
		return exampleJSON(p.schema)
	default:
		return defaultReply
	}
}

// chosenTool returns the tool to call, or nil.
func (p prompt) chosenTool(d directives) *tool {
	if len(p.tools) == 0 || p.toolsOff {
		return nil
	}
	if p.forced == "" && (p.afterToolResult || d.wantsText()) {
		return nil
	}
	for i := range p.tools {
		if p.forced == p.tools[i].name {
			return &p.tools[i]
		}
	}
	return &p.tools[0]
}

// jsonSchema is the part of JSON Schema from which examples are made.
type jsonSchema struct {
	Type       any                        `json:"type"`
	Enum       []any                      `json:"enum"`
	Const      any                        `json:"const"`
	Properties map[string]json.RawMessage `json:"properties"`
	Required   []string                   `json:"required"`
	AnyOf      []json.RawMessage          `json:"anyOf"`
}

// exampleJSON makes a small document for a schema; an empty or unreadable schema gives an empty object.
func exampleJSON(schema json.RawMessage) string {
	if isNull(schema) {
		return "{}"
	}
	return string(encode(example(schema, 0)))
}

func example(raw json.RawMessage, depth int) any {
	const maxDepth = 16
	var schema jsonSchema
	if json.Unmarshal(raw, &schema) != nil || depth > maxDepth {
		return object{}
	}
	if schema.Const != nil {
		return schema.Const
	}
	if len(schema.Enum) > 0 {
		return schema.Enum[0]
	}
	if len(schema.AnyOf) > 0 {
		return example(schema.AnyOf[0], depth+1)
	}
	kind, _ := schema.Type.(string)
	if kinds, ok := schema.Type.([]any); ok && len(kinds) > 0 {
		kind, _ = kinds[0].(string)
	}
	switch kind {
	case "string":
		return "example"
	case "integer", "number":
		return 1
	case "boolean":
		return true
	case "array":
		return []any{}
	case "null":
		return nil
	}
	document := object{}
	for _, name := range schema.Required {
		document[name] = example(schema.Properties[name], depth+1)
	}
	return document
}
