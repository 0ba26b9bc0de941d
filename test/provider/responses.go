package provider

import (
	"encoding/json"
	"strconv"
)

func readResponses(f fields) (prompt, error) {
	var p prompt
	var instructions string
	var text struct {
		Format struct {
			Type   string          `json:"type"`
			Schema json.RawMessage `json:"schema"`
		} `json:"format"`
	}
	if err := f.getAll(map[string]any{
		"model": &p.model, "stream": &p.stream, "instructions": &instructions, "max_output_tokens": &p.maxTokens, "text": &text,
	}); err != nil {
		return p, err
	}
	p.choices = 1
	p.count(instructions)
	p.jsonOutput, p.schema = text.Format.Type == "json_object" || text.Format.Type == "json_schema", text.Format.Schema
	if err := p.readOpenAITools(f); err != nil {
		return p, err
	}
	if isNull(f["input"]) {
		return p, badRequest("input", "Missing required parameter: 'input'.")
	}
	var input string
	if json.Unmarshal(f["input"], &input) == nil {
		p.add("user", content{texts: []string{input}})
		return p, nil
	}
	var items []struct {
		Type      string          `json:"type"`
		Role      string          `json:"role"`
		Content   json.RawMessage `json:"content"`
		Arguments string          `json:"arguments"`
		Output    json.RawMessage `json:"output"`
	}
	if json.Unmarshal(f["input"], &items) != nil {
		return p, badRequest("input", "Invalid type for 'input': expected a string or an array of objects.")
	}
	for _, item := range items {
		switch item.Type {
		case "function_call":
			p.count(item.Arguments)
		case "function_call_output", "custom_tool_call_output":
			c, err := readContent(item.Output, "input")
			if err != nil {
				return p, err
			}
			p.add("tool", c)
		case "message", "":
			c, err := readContent(item.Content, "input")
			if err != nil {
				return p, err
			}
			p.add(item.Role, c)
		}
	}
	return p, nil
}

// response is an answer of the Responses API: its document and the items that it outputs.
type response struct {
	x       *exchange
	f       fields
	p       prompt
	a       textAnswer
	created int64
	number  int // of the next event
}

func serveResponses(x *exchange) error {
	f, err := x.fields()
	if err != nil {
		return err
	}
	p, err := readResponses(f)
	if err != nil {
		return err
	}
	if err := x.begin(p.model, p.user); err != nil {
		return err
	}
	r := &response{x: x, f: f, p: p, a: x.compose(p), created: x.now()}
	if p.stream {
		return r.stream()
	}
	document := r.document(r.finalStatus(), r.items())
	x.complete(r.a)
	return x.answerJSON(document, &r.a.usage)
}

func (r *response) finalStatus() string {
	if r.a.truncated {
		return "incomplete"
	}
	return "completed"
}

// document is the response in a status; only a final one has a usage.
func (r *response) document(status string, items []any) object {
	echo := func(name string, missing any) any {
		if isNull(r.f[name]) {
			return missing
		}
		return r.f[name]
	}
	document := object{
		"id": r.x.newID("resp_"), "object": "response", "created_at": r.created, "status": status, "model": r.p.model, "output": items,
		"error": nil, "incomplete_details": nil, "usage": nil, "background": false, "service_tier": "default", "truncation": "disabled",
		"instructions": echo("instructions", nil), "max_output_tokens": echo("max_output_tokens", nil), "metadata": echo("metadata", object{}),
		"parallel_tool_calls": echo("parallel_tool_calls", true), "previous_response_id": echo("previous_response_id", nil),
		"reasoning": echo("reasoning", object{"effort": nil, "summary": nil}), "store": echo("store", true), "temperature": echo("temperature", 1),
		"text": echo("text", object{"format": object{"type": "text"}}), "tool_choice": echo("tool_choice", "auto"), "tools": echo("tools", []any{}),
		"top_p": echo("top_p", 1), "user": echo("user", nil),
	}
	switch status {
	case "incomplete":
		document["incomplete_details"] = object{"reason": "max_output_tokens"}
	case "failed":
		document["error"] = object{"code": "server_error", "message": "The server had an error while processing your request."}
	}
	if status == "completed" || status == "incomplete" {
		document["completed_at"] = r.x.now()
		r.x.putUsage(document, responsesUsage(r.a.usage))
	}
	return document
}

func responsesUsage(u Usage) object {
	return object{
		"input_tokens": u.InputTokens, "output_tokens": u.OutputTokens, "total_tokens": u.InputTokens + u.OutputTokens,
		"input_tokens_details":  object{"cached_tokens": u.CachedTokens, "cache_write_tokens": u.CacheWriteTokens},
		"output_tokens_details": object{"reasoning_tokens": u.ReasoningTokens},
	}
}

// items are the finished output items.
func (r *response) items() []any {
	var items []any
	if r.a.usage.ReasoningTokens > 0 {
		items = append(items, r.reasoning())
	}
	for i := range r.a.searches {
		items = append(items, r.search(i, "completed"))
	}
	if r.a.call != nil {
		return append(items, r.call("completed", r.a.call.arguments))
	}
	return append(items, r.message(r.finalStatus(), []any{r.text(r.a.text)}))
}

func (r *response) reasoning() object {
	return object{"id": r.x.newID("rs_"), "type": "reasoning", "summary": []any{}}
}

func (r *response) search(i int, status string) object {
	item := object{"id": r.x.newID("ws_") + strconv.Itoa(i), "type": "web_search_call", "status": status}
	if status == "completed" {
		item["action"] = object{"type": "search", "query": r.a.query}
	}
	return item
}

func (r *response) call(status, arguments string) object {
	return object{
		"id": r.x.newID("fc_"), "type": "function_call", "status": status, "call_id": r.x.newID("call_"),
		"name": r.a.call.name, "arguments": arguments,
	}
}

func (r *response) message(status string, parts []any) object {
	return object{"id": r.x.newID("msg_"), "type": "message", "status": status, "role": "assistant", "content": parts}
}

func (r *response) text(text string) object {
	annotations := []any{}
	if text != "" {
		for range r.a.searches {
			annotations = append(annotations, object{
				"type": "url_citation", "start_index": 0, "end_index": len([]rune(text)), "title": "Simulated source", "url": "https://example.com/source",
			})
		}
	}
	return object{"type": "output_text", "text": text, "annotations": annotations, "logprobs": []any{}}
}

// typed completes an event with its type and number.
func (r *response) typed(kind string, data object) object {
	data["type"], data["sequence_number"] = kind, r.number
	r.number++
	return data
}

func (r *response) event(kind string, data object) error {
	return r.x.event(kind, r.typed(kind, data))
}

func (r *response) stream() error {
	if err := r.x.openStream(); err != nil {
		return err
	}
	for _, kind := range []string{"response.created", "response.in_progress"} {
		if err := r.event(kind, object{"response": r.document("in_progress", []any{})}); err != nil {
			return err
		}
	}
	if err := r.streamItems(); err != nil {
		failed := r.typed("response.failed", object{"response": r.document("failed", []any{})})
		return r.x.fail(err, "response.failed", failed)
	}
	r.x.complete(r.a)
	status := r.finalStatus()
	if err := r.event("response."+status, object{"response": r.document(status, r.items())}); err != nil {
		return err
	}
	r.x.report(&r.a.usage)
	return nil
}

func (r *response) streamItems() error {
	index := 0
	if r.a.usage.ReasoningTokens > 0 {
		item := r.reasoning()
		if err := r.around(index, item, item, func() error { return nil }); err != nil {
			return err
		}
		index++
	}
	for i := range r.a.searches {
		if err := r.around(index, r.search(i, "in_progress"), r.search(i, "completed"), func() error {
			for _, step := range []string{"in_progress", "searching", "completed"} {
				data := object{"output_index": index, "item_id": r.x.newID("ws_") + strconv.Itoa(i)}
				if err := r.event("response.web_search_call."+step, data); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			return err
		}
		index++
	}
	if r.a.call != nil {
		return r.around(index, r.call("in_progress", ""), r.call("completed", r.a.call.arguments), func() error {
			return r.streamCall(index)
		})
	}
	whole := r.message(r.finalStatus(), []any{r.text(r.a.text)})
	return r.around(index, r.message("in_progress", []any{}), whole, func() error { return r.streamText(index) })
}

// around sends the events that start and end an output item, and between them those of inner.
func (r *response) around(index int, started, done object, inner func() error) error {
	if err := r.event("response.output_item.added", object{"output_index": index, "item": started}); err != nil {
		return err
	}
	if err := inner(); err != nil {
		return err
	}
	return r.event("response.output_item.done", object{"output_index": index, "item": done})
}

func (r *response) streamCall(index int) error {
	id := r.x.newID("fc_")
	for _, arguments := range r.a.call.chunks {
		const kind = "response.function_call_arguments.delta"
		data := r.typed(kind, object{"output_index": index, "item_id": id, "delta": arguments})
		if err := r.x.chunk(countTokens(arguments), kind, data); err != nil {
			return err
		}
	}
	if err := r.x.afterContent(); err != nil {
		return err
	}
	return r.event("response.function_call_arguments.done", object{
		"output_index": index, "item_id": id, "name": r.a.call.name, "arguments": r.a.call.arguments,
	})
}

func (r *response) streamText(index int) error {
	place := func(data object) object {
		data["output_index"], data["content_index"], data["item_id"] = index, 0, r.x.newID("msg_")
		return data
	}
	if err := r.event("response.content_part.added", place(object{"part": r.text("")})); err != nil {
		return err
	}
	for _, text := range r.a.chunks {
		const kind = "response.output_text.delta"
		data := r.typed(kind, place(object{"delta": text, "logprobs": []any{}}))
		if err := r.x.chunk(countTokens(text), kind, data); err != nil {
			return err
		}
	}
	if err := r.x.afterContent(); err != nil {
		return err
	}
	if err := r.event("response.output_text.done", place(object{"text": r.a.text, "logprobs": []any{}})); err != nil {
		return err
	}
	return r.event("response.content_part.done", place(object{"part": r.text(r.a.text)}))
}
