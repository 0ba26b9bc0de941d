package provider

import (
	"encoding/json"
	"errors"
	"strings"
)

// chatTool is a tool of chat/completions, and one of responses, which has the function's members in the tool itself.
type chatTool struct {
	Type       string          `json:"type"`
	Name       string          `json:"name"`
	Parameters json.RawMessage `json:"parameters"`
	Function   struct {
		Name       string          `json:"name"`
		Parameters json.RawMessage `json:"parameters"`
	} `json:"function"`
}

// readOpenAITools reads tools and tool_choice of both chat/completions and responses.
func (p *prompt) readOpenAITools(f fields) error {
	var raw []json.RawMessage
	if err := f.get("tools", &raw); err != nil {
		return err
	}
	for _, definition := range raw {
		var t chatTool
		if json.Unmarshal(definition, &t) != nil {
			return badRequest("tools", "Invalid type for 'tools': expected an array of objects.")
		}
		p.count(string(definition))
		switch {
		case t.Type == "function" && t.Function.Name != "":
			p.tools = append(p.tools, tool{name: t.Function.Name, schema: t.Function.Parameters})
		case t.Type == "function" && t.Name != "":
			p.tools = append(p.tools, tool{name: t.Name, schema: t.Parameters})
		case t.Type == "function":
			return badRequest("tools", "Missing required parameter: 'tools[].function.name'.")
		case isWebSearch(t.Type):
			p.webSearch = true
		}
	}
	choice := f["tool_choice"]
	var word string
	var chosen chatTool
	switch {
	case isNull(choice):
	case json.Unmarshal(choice, &word) == nil:
		switch word {
		case "none":
			p.toolsOff = true
		case "required":
			p.forced = anyTool
		}
	case json.Unmarshal(choice, &chosen) == nil:
		if chosen.Type == "function" {
			p.forced = chosen.Name + chosen.Function.Name
		}
	default:
		return badRequest("tool_choice", "Invalid type for 'tool_choice'.")
	}
	return nil
}

func readChat(f fields) (p prompt, includeUsage bool, err error) {
	var messages []struct {
		Role      string          `json:"role"`
		Content   json.RawMessage `json:"content"`
		ToolCalls json.RawMessage `json:"tool_calls"`
	}
	var maxTokens, maxCompletionTokens int
	var options struct {
		IncludeUsage bool `json:"include_usage"`
	}
	var format struct {
		Type       string `json:"type"`
		JSONSchema struct {
			Schema json.RawMessage `json:"schema"`
		} `json:"json_schema"`
	}
	p.choices = 1
	if err := f.getAll(map[string]any{
		"model": &p.model, "stream": &p.stream, "messages": &messages, "n": &p.choices, "max_tokens": &maxTokens,
		"max_completion_tokens": &maxCompletionTokens, "stream_options": &options, "response_format": &format,
	}); err != nil {
		return p, false, err
	}
	if len(messages) == 0 {
		return p, false, badRequest("messages", "Missing required parameter: 'messages'.")
	}
	if p.choices < 1 || p.choices > 128 {
		return p, false, badRequest("n", "Invalid 'n': expected a value from 1 to 128.")
	}
	if !isNull(f["stream_options"]) && !p.stream {
		return p, false, badRequest("stream_options", "The 'stream_options' parameter is only allowed when 'stream' is enabled.")
	}
	for _, m := range messages {
		c, err := readContent(m.Content, "messages")
		if err != nil {
			return p, false, err
		}
		p.add(m.Role, c)
		if !isNull(m.ToolCalls) {
			p.count(string(m.ToolCalls))
		}
	}
	if err := p.readOpenAITools(f); err != nil {
		return p, false, err
	}
	p.webSearch = p.webSearch || !isNull(f["web_search_options"])
	p.maxTokens = max(maxTokens, maxCompletionTokens)
	p.jsonOutput, p.schema = format.Type == "json_object" || format.Type == "json_schema", format.JSONSchema.Schema
	return p, options.IncludeUsage, nil
}

func serveChat(x *exchange) error {
	f, err := x.fields()
	if err != nil {
		return err
	}
	p, includeUsage, err := readChat(f)
	if err != nil {
		return err
	}
	if err := x.begin(p.model, p.user); err != nil {
		return err
	}
	a := x.compose(p)
	if p.stream {
		return x.streamChat(p, a, includeUsage)
	}
	choices := make([]any, p.choices)
	for i := range choices {
		message := object{"role": "assistant", "content": a.text, "refusal": nil, "annotations": a.annotations()}
		if a.call != nil {
			message["content"] = nil
			message["tool_calls"] = []any{x.chatCall(a.call, i)}
		}
		choices[i] = object{"index": i, "message": message, "logprobs": nil, "finish_reason": a.finishReason()}
	}
	document := object{
		"id": x.newID("chatcmpl-"), "object": "chat.completion", "created": x.now(), "model": p.model, "choices": choices,
		"service_tier": "default", "system_fingerprint": "fp_sim",
	}
	x.putUsage(document, chatUsage(a.usage))
	x.complete(a)
	return x.answerJSON(document, &a.usage)
}

func (x *exchange) chatCall(c *call, choice int) object {
	return object{
		"id": x.newID("call_") + string(rune('a'+choice%26)), "type": "function", "function": object{"name": c.name, "arguments": c.arguments},
	}
}

func (a textAnswer) finishReason() string {
	switch {
	case a.truncated:
		return "length"
	case a.call != nil:
		return "tool_calls"
	default:
		return "stop"
	}
}

// annotations are the sources of the web searches in a chat message.
func (a textAnswer) annotations() []any {
	annotations := []any{}
	for range a.searches {
		annotations = append(annotations, object{"type": "url_citation", "url_citation": object{
			"start_index": 0, "end_index": len([]rune(a.text)), "title": "Simulated source", "url": "https://example.com/source",
		}})
	}
	return annotations
}

func chatUsage(u Usage) object {
	return object{
		"prompt_tokens": u.InputTokens, "completion_tokens": u.OutputTokens, "total_tokens": u.InputTokens + u.OutputTokens,
		"prompt_tokens_details":     object{"cached_tokens": u.CachedTokens, "cache_write_tokens": u.CacheWriteTokens, "audio_tokens": 0},
		"completion_tokens_details": object{"reasoning_tokens": u.ReasoningTokens, "audio_tokens": 0, "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0},
	}
}

func (x *exchange) streamChat(p prompt, a textAnswer, includeUsage bool) error {
	created, id := x.now(), x.newID("chatcmpl-")
	frame := func(choices ...any) object {
		if choices == nil {
			choices = []any{}
		}
		document := object{
			"id": id, "object": "chat.completion.chunk", "created": created, "model": p.model, "choices": choices,
			"service_tier": "default", "system_fingerprint": "fp_sim",
		}
		if includeUsage && !x.d.noUsage {
			document["usage"] = nil
		}
		return document
	}
	choice := func(index int, delta object, finish any) object {
		return object{"index": index, "delta": delta, "logprobs": nil, "finish_reason": finish}
	}
	if err := x.openStream(); err != nil {
		return err
	}
	for i := range p.choices {
		start := object{"role": "assistant", "content": "", "refusal": nil}
		if a.call != nil {
			start["content"] = nil
		}
		if err := x.event("", frame(choice(i, start, nil))); err != nil {
			return err
		}
		if err := x.streamChatContent(a, i, func(delta object) object { return frame(choice(i, delta, nil)) }); err != nil {
			return x.failOpenAI(err)
		}
		end := object{}
		if a.searches > 0 {
			end["annotations"] = a.annotations()
		}
		if err := x.event("", frame(choice(i, end, a.finishReason()))); err != nil {
			return err
		}
	}
	return x.endOpenAI(a, includeUsage, frame())
}

func (x *exchange) streamChatContent(a textAnswer, choice int, frame func(object) object) error {
	for _, text := range a.chunks {
		if err := x.chunk(countTokens(text), "", frame(object{"content": text})); err != nil {
			return err
		}
	}
	if a.call != nil {
		head := x.chatCall(&call{name: a.call.name}, choice)
		head["index"] = 0
		if err := x.event("", frame(object{"tool_calls": []any{head}})); err != nil {
			return err
		}
		for _, arguments := range a.call.chunks {
			delta := object{"tool_calls": []any{object{"index": 0, "function": object{"arguments": arguments}}}}
			if err := x.chunk(countTokens(arguments), "", frame(delta)); err != nil {
				return err
			}
		}
	}
	return x.afterContent()
}

// endOpenAI sends the usage chunk, if asked for, and the mark of the end.
func (x *exchange) endOpenAI(a textAnswer, includeUsage bool, frame object) error {
	x.complete(a)
	if includeUsage && !x.d.noUsage {
		x.putUsage(frame, chatUsage(a.usage))
		if err := x.event("", frame); err != nil {
			return err
		}
		x.report(&a.usage)
	}
	return x.event("", "[DONE]")
}

// failOpenAI sends the error event of a chat stream if err asks for it, and returns err.
func (x *exchange) failOpenAI(err error) error {
	return x.fail(err, "", statusError(openAI, 500, unset, "").document(openAI, x.id))
}

// fail sends the error event of a stream if err is errFailStream, and returns err.
func (x *exchange) fail(err error, name string, document object) error {
	if !errors.Is(err, errFailStream) {
		return err
	}
	if err := x.event(name, document); err != nil {
		return err
	}
	if err := x.closeBody(); err != nil {
		return err
	}
	return errFailStream
}

func serveCompletions(x *exchange) error {
	f, err := x.fields()
	if err != nil {
		return err
	}
	p := prompt{choices: 1}
	var options struct {
		IncludeUsage bool `json:"include_usage"`
	}
	if err := f.getAll(map[string]any{
		"model": &p.model, "stream": &p.stream, "n": &p.choices, "max_tokens": &p.maxTokens, "stream_options": &options,
	}); err != nil {
		return err
	}
	if p.choices < 1 || p.choices > 128 {
		return badRequest("n", "Invalid 'n': expected a value from 1 to 128.")
	}
	inputs, err := readInputs(f["prompt"], "prompt")
	if err != nil {
		return err
	}
	for _, input := range inputs {
		p.input += input.tokens
		p.user = input.text
	}
	if err := x.begin(p.model, p.user); err != nil {
		return err
	}
	a := x.compose(p)
	id, created := x.newID("cmpl-"), x.now()
	frame := func(choices ...any) object {
		if choices == nil {
			choices = []any{}
		}
		return object{"id": id, "object": "text_completion", "created": created, "model": p.model, "choices": choices, "system_fingerprint": "fp_sim"}
	}
	choice := func(index int, text string, finish any) object {
		return object{"index": index, "text": text, "logprobs": nil, "finish_reason": finish}
	}
	if !p.stream {
		choices := make([]any, p.choices)
		for i := range choices {
			choices[i] = choice(i, a.text, a.finishReason())
		}
		document := frame(choices...)
		x.putUsage(document, chatUsage(a.usage))
		x.complete(a)
		return x.answerJSON(document, &a.usage)
	}
	if err := x.openStream(); err != nil {
		return err
	}
	for i := range p.choices {
		for _, text := range a.chunks {
			if err := x.chunk(countTokens(text), "", frame(choice(i, text, nil))); err != nil {
				return x.failOpenAI(err)
			}
		}
		if err := x.afterContent(); err != nil {
			return x.failOpenAI(err)
		}
		if err := x.event("", frame(choice(i, "", a.finishReason()))); err != nil {
			return err
		}
	}
	return x.endOpenAI(a, options.IncludeUsage, frame())
}

func isWebSearch(kind string) bool {
	return strings.HasPrefix(kind, "web_search")
}
