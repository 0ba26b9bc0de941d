package provider

import (
	"bytes"
	"mime/multipart"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestUsageIsLeftOutOrSpoiled(t *testing.T) {
	s := start(t, Config{})
	bodies := map[string]object{
		"/v1/chat/completions":   chat(""),
		"/v1/completions":        {"model": "m", "prompt": ""},
		"/v1/responses":          {"model": "m", "input": ""},
		"/v1/messages":           message(""),
		"/v1/embeddings":         {"model": "m", "input": ""},
		"/v1/images/generations": {"model": "gpt-image-1", "prompt": ""},
	}
	field := map[string]string{"/v1/completions": "prompt", "/v1/responses": "input", "/v1/embeddings": "input", "/v1/images/generations": "prompt"}
	spoiled := map[string]any{"sim:bad-usage": -1.0, "sim:bad-usage=text": "many", "sim:bad-usage=huge": 9e18}
	for path, body := range bodies {
		t.Run(path, func(t *testing.T) {
			ask := func(text string) object {
				if name, ok := field[path]; ok {
					body[name] = text
				} else {
					body["messages"] = chat(text)["messages"]
				}
				return decode(t, s.post(t, path, body).body)
			}
			if usage := ask("sim:no-usage")["usage"]; usage != nil || s.last(t).Reported != nil {
				t.Errorf("usage is %v", usage)
			}
			for directive, want := range spoiled {
				usage, _ := ask(directive)["usage"].(object)
				for _, name := range []string{"prompt_tokens", "input_tokens"} {
					if value, ok := usage[name]; ok && value != want {
						t.Errorf("%s: %s is %v", directive, name, value)
					}
				}
				if len(usage) == 0 || s.last(t).Reported != nil || s.last(t).Consumed.InputTokens == 0 {
					t.Errorf("%s: usage is %v, record %+v", directive, usage, s.last(t))
				}
			}
			if usage, _ := ask("fine")["usage"].(object); len(usage) == 0 || s.last(t).Reported == nil || *s.last(t).Reported != s.last(t).Consumed {
				t.Errorf("usage is %v, record %+v", usage, s.last(t))
			}
		})
	}
}

func TestUsageInChatStreamsOnlyWhenAskedFor(t *testing.T) {
	s := start(t, Config{})
	for name, tc := range map[string]struct {
		text  string
		asked bool
		want  bool
	}{
		"asked":                {text: "hi", asked: true, want: true},
		"not asked":            {text: "hi"},
		"asked and not wanted": {text: "sim:no-usage", asked: true},
	} {
		t.Run(name, func(t *testing.T) {
			body := chat(tc.text, object{"stream": true})
			if tc.asked {
				body["stream_options"] = object{"include_usage": true}
			}
			got := s.post(t, "/v1/chat/completions", body)
			found := events(t, got.body)
			if end := found[len(found)-1]; end.data != "[DONE]" {
				t.Errorf("last event is %+v", end)
			}
			before := decode(t, found[len(found)-2].data)
			isUsage := len(before["choices"].([]any)) == 0 && before["usage"] != nil
			if isUsage != tc.want || (s.last(t).Reported != nil) != tc.want {
				t.Errorf("event before the last is %v, record %+v", before, s.last(t))
			}
			if first := decode(t, found[0].data)["choices"].([]any)[0].(object)["delta"].(object); first["role"] != "assistant" {
				t.Errorf("first delta is %v", first)
			}
		})
	}
}

func TestEventSequences(t *testing.T) {
	s := start(t, Config{})
	function := object{"type": "function", "name": "f", "parameters": object{}}
	tests := map[string]struct {
		path string
		body object
		want []string
	}{
		"responses: text": {"/v1/responses", object{"model": "m", "input": "hi"}, []string{
			"response.created", "response.in_progress", "response.output_item.added", "response.content_part.added", "response.output_text.delta",
			"response.output_text.done", "response.content_part.done", "response.output_item.done", "response.completed",
		}},
		"responses: text that is cut": {"/v1/responses", object{"model": "m", "input": "hi", "max_output_tokens": 2}, []string{
			"response.created", "response.in_progress", "response.output_item.added", "response.content_part.added", "response.output_text.delta",
			"response.output_text.done", "response.content_part.done", "response.output_item.done", "response.incomplete",
		}},
		"responses: web search and function": {"/v1/responses", object{"model": "m", "input": "hi", "tools": []any{object{"type": "web_search_preview"}, function}}, []string{
			"response.created", "response.in_progress", "response.output_item.added", "response.web_search_call.in_progress",
			"response.web_search_call.searching", "response.web_search_call.completed", "response.output_item.done",
			"response.output_item.added", "response.function_call_arguments.delta", "response.function_call_arguments.done", "response.output_item.done",
			"response.completed",
		}},
		"messages: text": {"/v1/messages", message("hi"), []string{
			"message_start", "content_block_start", "ping", "content_block_delta", "content_block_stop", "message_delta", "message_stop",
		}},
		"messages: web search and text": {"/v1/messages", message("hi", object{"tools": []any{object{"type": "web_search_20250305", "name": "web_search"}}}), []string{
			"message_start", "content_block_start", "ping", "content_block_delta", "content_block_stop", "content_block_start", "content_block_stop",
			"content_block_start", "content_block_delta", "content_block_stop", "message_delta", "message_stop",
		}},
		"images: edits": {"/v1/images/edits", object{"model": "gpt-image-1", "prompt": "x", "images": []any{object{"file_id": "f"}}, "partial_images": 1}, []string{
			"image_edit.partial_image", "image_edit.completed",
		}},
		"speech": {"/v1/audio/speech", object{"model": "m", "input": "hello", "voice": "alloy", "stream_format": "sse"}, []string{
			"speech.audio.delta", "speech.audio.done",
		}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			got := s.post(t, tc.path, merge(tc.body, object{"stream": true}))
			if !strings.HasPrefix(got.header.Get("Content-Type"), "text/event-stream") {
				t.Fatalf("answer is %d %s", got.status, got.body)
			}
			if diff := cmp.Diff(tc.want, types(t, got.body)); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			if record := s.last(t); record.Reported == nil || *record.Reported != record.Consumed {
				t.Errorf("record is %+v", record)
			}
		})
	}
}

func TestCountsCanBeSetAndAreCutAtTheMaximum(t *testing.T) {
	s := start(t, Config{})
	tests := map[string]struct {
		text   string
		limit  int
		want   Usage
		finish string
	}{
		"as set": {
			"sim:input-tokens=1000 sim:output-tokens=500 sim:cached=400 sim:reasoning=100", 0,
			Usage{InputTokens: 1000, OutputTokens: 500, CachedTokens: 400, ReasoningTokens: 100}, "stop",
		},
		"cached ones are not more than all": {"sim:input-tokens=5 sim:cached=9 sim:output-tokens=1", 0, Usage{InputTokens: 5, CachedTokens: 5, OutputTokens: 1}, "stop"},
		"output is cut":                     {"sim:input-tokens=1 sim:output-tokens=500", 30, Usage{InputTokens: 1, OutputTokens: 30}, "length"},
		"text is cut":                       {"sim:input-tokens=1", 2, Usage{InputTokens: 1, OutputTokens: 2}, "length"},
		"reasoning alone fills the maximum": {"sim:input-tokens=1 sim:reasoning=50", 20, Usage{InputTokens: 1, OutputTokens: 20, ReasoningTokens: 20}, "length"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			body := chat(tc.text)
			if tc.limit > 0 {
				body["max_completion_tokens"] = tc.limit
			}
			got := decode(t, s.post(t, "/v1/chat/completions", body).body)
			if finish := got["choices"].([]any)[0].(object)["finish_reason"]; finish != tc.finish {
				t.Errorf("finish reason is %v", finish)
			}
			if diff := cmp.Diff(&tc.want, s.last(t).Reported); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestToolsAndStructuredOutput(t *testing.T) {
	s := start(t, Config{})
	tool := func(name string) object { return object{"type": "function", "function": object{"name": name}} }
	tools := object{"tools": []any{tool("a"), tool("b")}}
	schema := object{"type": "object", "properties": object{"n": object{"type": "integer"}}, "required": []any{"n"}}
	tests := map[string]struct {
		body       object
		call, text string
	}{
		"the first tool is called":              {body: chat("hi", tools), call: "a"},
		"a chosen tool is called":               {body: chat("sim:no-tools", tools, object{"tool_choice": tool("b")}), call: "b"},
		"a required tool beats a wish for text": {body: chat("sim:reply=x", tools, object{"tool_choice": "required"}), call: "a"},
		"no tool when none is chosen":           {body: chat("hi", tools, object{"tool_choice": "none"}), text: defaultReply},
		"no tool when a reply is given":         {body: chat("sim:reply=x y", tools), text: "x y"},
		"output that fits a schema": {
			body: chat("hi", object{"response_format": object{"type": "json_schema", "json_schema": object{"name": "s", "schema": schema}}}), text: `{"n":1}`,
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			got := decode(t, s.post(t, "/v1/chat/completions", tc.body).body)
			message := got["choices"].([]any)[0].(object)["message"].(object)
			call := ""
			if calls, ok := message["tool_calls"].([]any); ok {
				call = calls[0].(object)["function"].(object)["name"].(string)
			}
			text, _ := message["content"].(string)
			if call != tc.call || text != tc.text {
				t.Errorf("call is %q, text %q", call, text)
			}
		})
	}
}

func TestTranscriptFormats(t *testing.T) {
	s := start(t, Config{})
	tests := map[string]struct{ path, format, contentType, want string }{
		"text":             {"/v1/audio/transcriptions", "text", "text/plain; charset=utf-8", "a b\n"},
		"srt":              {"/v1/audio/transcriptions", "srt", "text/plain; charset=utf-8", "1\n00:00:00,000 --> 00:01:01,500\na b\n\n"},
		"vtt":              {"/v1/audio/translations", "vtt", "text/plain; charset=utf-8", "WEBVTT\n\n00:00:00.000 --> 00:01:01.500\na b\n\n"},
		"json":             {"/v1/audio/transcriptions", "json", "application/json", `{"text":"a b","usage":{"seconds":62,"type":"duration"}}`},
		"translation json": {"/v1/audio/translations", "", "application/json", `{"text":"a b"}`},
		"verbose json": {"/v1/audio/translations", "verbose_json", "application/json", `{"duration":61.5,"language":"english","segments":[{"avg_logprob":-0.1,` +
			`"compression_ratio":1.2,"end":61.5,"id":0,"no_speech_prob":0.01,"seek":0,"start":0,"temperature":0,"text":"a b","tokens":[50364]}],"task":"translate","text":"a b"}`},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			var body bytes.Buffer
			form := multipart.NewWriter(&body)
			for field, value := range map[string]string{"model": "whisper-1", "prompt": "sim:reply=a b", "response_format": tc.format, "stream": "true"} {
				if err := form.WriteField(field, value); err != nil {
					t.Fatal(err)
				}
			}
			file, err := form.CreateFormFile("file", "a.wav")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := file.Write(wavSilence(61.5 * 48_000)); err != nil {
				t.Fatal(err)
			}
			if err := form.Close(); err != nil {
				t.Fatal(err)
			}
			r := s.request(t, tc.path, rawJSON(body.Bytes()))
			r.Header.Set("Content-Type", form.FormDataContentType())
			got := s.do(t, r)
			if got.status != http.StatusOK || got.header.Get("Content-Type") != tc.contentType || got.body != tc.want {
				t.Errorf("answer is %d, %s: %s", got.status, got.header.Get("Content-Type"), got.body)
			}
			if record := s.last(t); record.Consumed.AudioSeconds != 61.5 || (record.Reported != nil) != strings.Contains(tc.want, "usage") {
				t.Errorf("record is %+v", record)
			}
		})
	}
}
