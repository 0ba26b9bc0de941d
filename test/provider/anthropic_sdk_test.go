package provider

import (
	"errors"
	"testing"

	sdk "github.com/anthropics/anthropic-sdk-go"
	"github.com/anthropics/anthropic-sdk-go/option"
	"github.com/google/go-cmp/cmp"
)

func anthropicClient(s *simulator) sdk.Client {
	return sdk.NewClient(option.WithBaseURL(s.url), option.WithAPIKey(testAnthropicKey), option.WithHTTPClient(s.client), option.WithMaxRetries(0))
}

func messageParams(text string) sdk.MessageNewParams {
	return sdk.MessageNewParams{Model: "m", MaxTokens: 2000, Messages: []sdk.MessageParam{sdk.NewUserMessage(sdk.NewTextBlock(text))}}
}

func TestAnthropicSDKMessage(t *testing.T) {
	s := start(t, Config{})
	client := anthropicClient(s)
	got, err := client.Messages.New(t.Context(), messageParams("hello sim:cached=3 sim:cache-write=2"))
	if err != nil {
		t.Fatal(err)
	}
	if got.Content[0].Text != defaultReply || got.StopReason != sdk.StopReasonEndTurn {
		t.Errorf("message is %s", got.RawJSON())
	}
	u := got.Usage
	if u.InputTokens != 4 || u.CacheReadInputTokens != 3 || u.CacheCreationInputTokens != 2 || u.OutputTokens != wholeDefaultTokens {
		t.Errorf("usage is %s", u.RawJSON())
	}
	want := Usage{InputTokens: 9, CachedTokens: 3, CacheWriteTokens: 2, OutputTokens: wholeDefaultTokens}
	if record := s.last(t); record.Reported == nil || *record.Reported != want || record.Consumed != want {
		t.Errorf("record is %+v", record)
	}
}

func TestAnthropicSDKMessageStream(t *testing.T) {
	s := start(t, Config{})
	params := messageParams("weather? sim:split")
	params.Thinking = sdk.ThinkingConfigParamOfEnabled(1024)
	params.Tools = []sdk.ToolUnionParam{
		{OfTool: &sdk.ToolParam{Name: "weather", InputSchema: sdk.ToolInputSchemaParam{Properties: weatherSchema()["properties"], Required: []string{"city", "days"}}}},
		{OfWebSearchTool20250305: &sdk.WebSearchTool20250305Param{}},
	}
	client := anthropicClient(s)
	stream := client.Messages.NewStreaming(t.Context(), params)
	var message sdk.Message
	var order []string
	for stream.Next() {
		event := stream.Current()
		if err := message.Accumulate(event); err != nil {
			t.Fatal(err)
		}
		if len(order) == 0 || order[len(order)-1] != event.Type {
			order = append(order, event.Type)
		}
	}
	if err := stream.Err(); err != nil {
		t.Fatal(err)
	}
	var kinds []string
	for _, block := range message.Content {
		kinds = append(kinds, block.Type)
	}
	if diff := cmp.Diff([]string{"thinking", "server_tool_use", "web_search_tool_result", "tool_use"}, kinds); diff != "" {
		t.Errorf("blocks (-want +got)\n%s", diff)
	}
	if call := message.Content[3]; call.Name != "weather" || string(call.Input) != weatherArguments {
		t.Errorf("call is %s(%s)", call.Name, call.Input)
	}
	if message.StopReason != sdk.StopReasonToolUse || message.Usage.ServerToolUse.WebSearchRequests != 1 {
		t.Errorf("message is %+v", message)
	}
	if order[0] != "message_start" || order[len(order)-2] != "message_delta" || order[len(order)-1] != "message_stop" {
		t.Errorf("events are %v", order)
	}
	thinking := countTokens("The simulated provider thinks about its answer.")
	if record := s.last(t); record.Reported == nil || record.Reported.ReasoningTokens != thinking ||
		record.Reported.OutputTokens != thinking+countTokens("weather")+countTokens(weatherArguments) {
		t.Errorf("record is %+v", record)
	}
}

func TestAnthropicSDKMessageStreamsText(t *testing.T) {
	s := start(t, Config{})
	params := messageParams("sim:reply=naïve ✓ answer")
	params.MaxTokens = 3
	client := anthropicClient(s)
	stream := client.Messages.NewStreaming(t.Context(), params)
	var message sdk.Message
	for stream.Next() {
		if err := message.Accumulate(stream.Current()); err != nil {
			t.Fatal(err)
		}
	}
	if err := stream.Err(); err != nil {
		t.Fatal(err)
	}
	// Three tokens are 12 bytes, of which the accent takes one more than its letter and the mark three.
	if message.Content[0].Text != "naïve ✓ a" || message.StopReason != sdk.StopReasonMaxTokens || message.Usage.OutputTokens != 3 {
		t.Errorf("message is %+v", message)
	}
}

func TestAnthropicSDKCountTokensAndModels(t *testing.T) {
	s := start(t, Config{Models: []string{"m"}})
	client := anthropicClient(s)
	count, err := client.Messages.CountTokens(t.Context(), sdk.MessageCountTokensParams{
		Model: "m", Messages: []sdk.MessageParam{sdk.NewUserMessage(sdk.NewTextBlock("12345"))},
		System: sdk.MessageCountTokensParamsSystemUnion{OfString: sdk.String("1234")},
	})
	if err != nil {
		t.Fatal(err)
	}
	if count.InputTokens != 3 {
		t.Errorf("counted %d", count.InputTokens)
	}
	page, err := client.Models.List(t.Context(), sdk.ModelListParams{})
	if err != nil {
		t.Fatal(err)
	}
	if len(page.Data) != 1 || page.Data[0].ID != "m" {
		t.Errorf("models are %s", page.RawJSON())
	}
	params := messageParams("hi")
	params.Model = "other"
	_, err = client.Messages.New(t.Context(), params)
	var refusal *sdk.Error
	if !errors.As(err, &refusal) || refusal.StatusCode != 404 || refusal.RequestID == "" {
		t.Errorf("unknown model gives %v", err)
	}
}
