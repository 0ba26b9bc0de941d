package provider

import (
	"encoding/json"
	"strconv"
)

// readMessages reads what messages and messages/count_tokens have in common.
func readMessages(f fields) (prompt, error) {
	var p prompt
	var messages []struct {
		Role    string          `json:"role"`
		Content json.RawMessage `json:"content"`
	}
	var thinking struct {
		Type string `json:"type"`
	}
	if err := f.getAll(map[string]any{"model": &p.model, "stream": &p.stream, "messages": &messages, "thinking": &thinking}); err != nil {
		return p, err
	}
	if isNull(f["messages"]) {
		return p, badRequest("", "messages: Field required")
	}
	if len(messages) == 0 {
		return p, badRequest("", "messages: at least one message is required")
	}
	p.choices = 1
	p.thinking = thinking.Type == "enabled" || thinking.Type == "adaptive"
	system, err := readContent(f["system"], "system")
	if err != nil {
		return p, err
	}
	p.add("system", system)
	for i, m := range messages {
		if m.Role != "user" && m.Role != "assistant" && m.Role != "system" {
			return p, badRequest("", "messages.%d.role: Input should be 'user' or 'assistant'", i)
		}
		c, err := readContent(m.Content, "messages."+strconv.Itoa(i)+".content")
		if err != nil {
			return p, err
		}
		p.add(m.Role, c)
	}
	return p, p.readAnthropicTools(f)
}

func (p *prompt) readAnthropicTools(f fields) error {
	var raw []json.RawMessage
	var choice struct {
		Type string `json:"type"`
		Name string `json:"name"`
	}
	if err := f.getAll(map[string]any{"tools": &raw, "tool_choice": &choice}); err != nil {
		return err
	}
	for i, definition := range raw {
		var t struct {
			Type        string          `json:"type"`
			Name        string          `json:"name"`
			InputSchema json.RawMessage `json:"input_schema"`
		}
		if json.Unmarshal(definition, &t) != nil || t.Name == "" {
			return badRequest("", "tools.%d.name: Field required", i)
		}
		p.count(string(definition))
		switch {
		case isWebSearch(t.Type):
			p.webSearch = true
		case t.Type == "" || t.Type == "custom":
			p.tools = append(p.tools, tool{name: t.Name, schema: t.InputSchema})
		}
	}
	switch choice.Type {
	case "none":
		p.toolsOff = true
	case "any":
		p.forced = anyTool
	case "tool":
		p.forced = choice.Name
	}
	return nil
}

func serveCountTokens(x *exchange) error {
	f, err := x.fields()
	if err != nil {
		return err
	}
	p, err := readMessages(f)
	if err != nil {
		return err
	}
	if err := x.begin(p.model, p.user); err != nil {
		return err
	}
	if x.d.inputTokens != unset {
		p.input = x.d.inputTokens
	}
	return x.answerJSON(object{"input_tokens": p.input}, nil)
}

func serveMessages(x *exchange) error {
	f, err := x.fields()
	if err != nil {
		return err
	}
	p, err := readMessages(f)
	if err != nil {
		return err
	}
	if isNull(f["max_tokens"]) {
		return badRequest("", "max_tokens: Field required")
	}
	if err := f.get("max_tokens", &p.maxTokens); err != nil {
		return err
	}
	if p.maxTokens < 1 {
		return badRequest("", "max_tokens: Input should be greater than or equal to 1")
	}
	if err := x.begin(p.model, p.user); err != nil {
		return err
	}
	a := x.compose(p)
	blocks := x.blocks(p, a)
	if p.stream {
		return x.streamMessage(p, a, blocks)
	}
	var contents []any
	for _, b := range blocks {
		contents = append(contents, b.whole)
	}
	document := x.message(p, contents, a.stopReason())
	x.putUsage(document, messagesUsage(a.usage))
	x.complete(a)
	return x.answerJSON(document, &a.usage)
}

func (x *exchange) message(p prompt, contents []any, stopReason any) object {
	if contents == nil {
		contents = []any{}
	}
	return object{
		"id": x.newID("msg_"), "type": "message", "role": "assistant", "model": p.model, "content": contents,
		"stop_reason": stopReason, "stop_sequence": nil, "stop_details": nil, "container": nil,
	}
}

func (a textAnswer) stopReason() string {
	switch {
	case a.truncated:
		return "max_tokens"
	case a.call != nil:
		return "tool_use"
	default:
		return "end_turn"
	}
}

// messagesUsage reports cached tokens apart from the others, as Anthropic does.
func messagesUsage(u Usage) object {
	usage := object{
		"input_tokens":                u.InputTokens - u.CachedTokens - u.CacheWriteTokens,
		"cache_read_input_tokens":     u.CachedTokens,
		"cache_creation_input_tokens": u.CacheWriteTokens,
		"cache_creation":              object{"ephemeral_5m_input_tokens": u.CacheWriteTokens, "ephemeral_1h_input_tokens": 0},
		"output_tokens":               u.OutputTokens,
		"service_tier":                "standard",
	}
	if u.ReasoningTokens > 0 {
		usage["output_tokens_details"] = object{"thinking_tokens": u.ReasoningTokens}
	}
	if u.WebSearches > 0 {
		usage["server_tool_use"] = object{"web_search_requests": u.WebSearches, "web_fetch_requests": 0}
	}
	return usage
}

// block is a content block: whole, as its stream starts, and the deltas in between.
type block struct {
	whole, start object
	deltas       []delta
}

// delta is one delta of a block; those with tokens are content chunks.
type delta struct {
	tokens  int
	content bool
	data    object
}

func (x *exchange) blocks(p prompt, a textAnswer) []block {
	var blocks []block
	if p.thinking {
		blocks = append(blocks, block{
			whole: object{"type": "thinking", "thinking": a.thinking, "signature": "c2ltdWxhdGVk"},
			start: object{"type": "thinking", "thinking": "", "signature": ""},
			deltas: []delta{
				{tokens: countTokens(a.thinking), content: true, data: object{"type": "thinking_delta", "thinking": a.thinking}},
				{data: object{"type": "signature_delta", "signature": "c2ltdWxhdGVk"}},
			},
		})
	}
	for i := range a.searches {
		id := x.newID("srvtoolu_") + strconv.Itoa(i)
		input := object{"query": a.query}
		result := object{"type": "web_search_tool_result", "tool_use_id": id, "content": []any{object{
			"type": "web_search_result", "title": "Simulated source", "url": "https://example.com/source", "encrypted_content": "c2ltdWxhdGVk", "page_age": nil,
		}}}
		blocks = append(blocks, block{
			whole:  object{"type": "server_tool_use", "id": id, "name": "web_search", "input": input},
			start:  object{"type": "server_tool_use", "id": id, "name": "web_search", "input": object{}},
			deltas: []delta{{data: object{"type": "input_json_delta", "partial_json": string(encode(input))}}},
		}, block{whole: result, start: result})
	}
	if a.call != nil {
		b := block{
			whole: object{"type": "tool_use", "id": x.newID("toolu_"), "name": a.call.name, "input": json.RawMessage(a.call.arguments)},
			start: object{"type": "tool_use", "id": x.newID("toolu_"), "name": a.call.name, "input": object{}},
		}
		for _, arguments := range a.call.chunks {
			b.deltas = append(b.deltas, delta{
				tokens: countTokens(arguments), content: true, data: object{"type": "input_json_delta", "partial_json": arguments},
			})
		}
		return append(blocks, b)
	}
	if a.text == "" {
		return blocks
	}
	b := block{whole: object{"type": "text", "text": a.text}, start: object{"type": "text", "text": ""}}
	if a.searches > 0 {
		b.whole["citations"] = []any{object{
			"type": "web_search_result_location", "url": "https://example.com/source", "title": "Simulated source",
			"encrypted_index": "c2ltdWxhdGVk", "cited_text": "Simulated source",
		}}
	}
	for _, text := range a.chunks {
		b.deltas = append(b.deltas, delta{tokens: countTokens(text), content: true, data: object{"type": "text_delta", "text": text}})
	}
	return append(blocks, b)
}

func (x *exchange) streamMessage(p prompt, a textAnswer, blocks []block) error {
	if err := x.openStream(); err != nil {
		return err
	}
	// The first event has the input's usage and an output of one token, the last the whole of it.
	early := a.usage
	early.OutputTokens, early.ReasoningTokens, early.WebSearches = 1, 0, 0
	message := x.message(p, nil, nil)
	x.putUsage(message, messagesUsage(early))
	if err := x.event("message_start", object{"type": "message_start", "message": message}); err != nil {
		return err
	}
	x.report(&early)
	for i, b := range blocks {
		if err := x.streamBlock(i, b); err != nil {
			return x.failMessage(err)
		}
	}
	if err := x.afterContent(); err != nil {
		return x.failMessage(err)
	}
	x.complete(a)
	end := object{
		"type": "message_delta", "delta": object{"stop_reason": a.stopReason(), "stop_sequence": nil, "stop_details": nil, "container": nil},
	}
	usage := messagesUsage(a.usage)
	delete(usage, "cache_creation")
	delete(usage, "service_tier")
	x.putUsage(end, usage)
	if err := x.event("message_delta", end); err != nil {
		return err
	}
	x.report(&a.usage)
	return x.event("message_stop", object{"type": "message_stop"})
}

func (x *exchange) failMessage(err error) error {
	return x.fail(err, "error", object{"type": "error", "error": object{"type": "overloaded_error", "message": "Overloaded"}})
}

func (x *exchange) streamBlock(index int, b block) error {
	if err := x.event("content_block_start", object{"type": "content_block_start", "index": index, "content_block": b.start}); err != nil {
		return err
	}
	if index == 0 {
		if err := x.event("ping", object{"type": "ping"}); err != nil {
			return err
		}
	}
	for _, d := range b.deltas {
		data := object{"type": "content_block_delta", "index": index, "delta": d.data}
		send := func() error { return x.event("content_block_delta", data) }
		if d.content {
			send = func() error { return x.chunk(d.tokens, "content_block_delta", data) }
		}
		if err := send(); err != nil {
			return err
		}
	}
	return x.event("content_block_stop", object{"type": "content_block_stop", "index": index})
}
