package e2e

import (
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/anthropics/anthropic-sdk-go"
	anthropicoption "github.com/anthropics/anthropic-sdk-go/option"
	"github.com/google/go-cmp/cmp"
	"github.com/openai/openai-go/v3"
	openaioption "github.com/openai/openai-go/v3/option"
)

// python runs one of the scripts with nothing set but the base URL and the key, as a user would.
func python(t *testing.T, script string, env ...string) map[string]any {
	t.Helper()
	interpreter := os.Getenv("LATCHKEY_PYTHON")
	if interpreter == "" {
		t.Fatal("LATCHKEY_PYTHON is not set: run this through `make test`, which installs the Python SDKs")
	}
	args := append(strings.Fields(interpreter)[1:], "python/"+script)
	cmd := exec.CommandContext(t.Context(), strings.Fields(interpreter)[0], args...)
	cmd.Env = append(os.Environ(), env...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, stderr.String())
	}
	var seen map[string]any
	if err := json.Unmarshal(out, &seen); err != nil {
		t.Fatalf("%s printed %q: %v", script, out, err)
	}
	return seen
}

func names(models ...string) []any {
	list := make([]any, 0, len(models))
	for _, m := range models {
		list = append(list, m)
	}
	return list
}

var allModels = names("broken-credential", "claude-sonnet-4-5", "fast", "gpt-4o-mini-tts", "gpt-4o-transcribe", "gpt-5", "gpt-5-mini", "gpt-image-1",
	"listener", "nowhere", "omni-moderation-latest", "text-embedding-3-small")

func TestPythonOpenAI(t *testing.T) {
	_, key := newTenant(t).newKey("sdk")
	got := python(t, "openai_sdk.py", "OPENAI_BASE_URL="+theStack.GatewayURL()+"/v1", "OPENAI_API_KEY="+key)
	want := map[string]any{
		"chat": "Grüße", "chat_stream_words": 5.0, "completion": "ok", "response": "pong",
		"response_events": names("response.created", "response.completed"),
		"embedding":       1.0, "image": true, "image_edit": true, "speech": true, "transcription": true, "moderation": false,
		"models": allModels, "model": "gpt-5-mini",
		"unknown_model": names("model_not_found", "model"), "wrong_key": "invalid_api_key",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("-want +got:\n%s", diff)
	}
}

func TestPythonAnthropic(t *testing.T) {
	_, key := newTenant(t).newKey("sdk")
	got := python(t, "anthropic_sdk.py", "ANTHROPIC_BASE_URL="+theStack.GatewayURL(), "ANTHROPIC_API_KEY="+key)
	want := map[string]any{
		"message": "Grüße", "stream_words": 5.0, "count": true, "models": allModels, "bearer": "yes",
		"unknown_model": "not_found_error", "wrong_key": "authentication_error",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("-want +got:\n%s", diff)
	}
}

func TestGoOpenAI(t *testing.T) {
	_, key := newTenant(t).newKey("sdk")
	client := openai.NewClient(openaioption.WithBaseURL(theStack.GatewayURL()+"/v1"), openaioption.WithAPIKey(key))
	ask := func(model, text string) openai.ChatCompletionNewParams {
		return openai.ChatCompletionNewParams{Model: model, Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage(text)}}
	}
	completion, err := client.Chat.Completions.New(t.Context(), ask("fast", "sim:reply=Grüße"))
	if err != nil {
		t.Fatal(err)
	}
	if got := completion.Choices[0].Message.Content; got != "Grüße" {
		t.Fatalf("answer %q", got)
	}
	stream := client.Chat.Completions.NewStreaming(t.Context(), ask("gpt-5-mini", "sim:chunks=7 hi"))
	var text strings.Builder
	for stream.Next() {
		for _, choice := range stream.Current().Choices {
			text.WriteString(choice.Delta.Content)
		}
	}
	if err := stream.Err(); err != nil || len(strings.Fields(text.String())) != 7 {
		t.Fatalf("stream: %q, %v", text.String(), err)
	}
	_, err = client.Chat.Completions.New(t.Context(), ask("no-such-model", "hi"))
	var refusal *openai.Error
	if !errors.As(err, &refusal) || refusal.StatusCode != http.StatusNotFound || refusal.Code != "model_not_found" || refusal.Param != "model" {
		t.Fatalf("an unknown model gave %v", err)
	}
}

func TestGoAnthropic(t *testing.T) {
	_, key := newTenant(t).newKey("sdk")
	client := anthropic.NewClient(anthropicoption.WithBaseURL(theStack.GatewayURL()), anthropicoption.WithAPIKey(key))
	params := anthropic.MessageNewParams{
		Model: "claude-sonnet-4-5", MaxTokens: 64,
		Messages: []anthropic.MessageParam{anthropic.NewUserMessage(anthropic.NewTextBlock("sim:reply=Grüße"))},
	}
	message, err := client.Messages.New(t.Context(), params)
	if err != nil || message.Content[0].Text != "Grüße" {
		t.Fatalf("message %v, %v", message, err)
	}
	stream := client.Messages.NewStreaming(t.Context(), params)
	whole := anthropic.Message{}
	for stream.Next() {
		if err := whole.Accumulate(stream.Current()); err != nil {
			t.Fatal(err)
		}
	}
	if err := stream.Err(); err != nil || whole.Content[0].Text != "Grüße" {
		t.Fatalf("stream %v, %v", whole, err)
	}
}
