package provider

import (
	"bytes"
	"encoding/base64"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/openai/openai-go/v3/packages/param"
	"github.com/openai/openai-go/v3/responses"
	"github.com/openai/openai-go/v3/shared"
)

func openAIClient(s *simulator) openai.Client {
	return openai.NewClient(option.WithBaseURL(s.url+"/v1"), option.WithAPIKey(testCredential), option.WithHTTPClient(s.client), option.WithMaxRetries(0))
}

func chatParams(text string) openai.ChatCompletionNewParams {
	return openai.ChatCompletionNewParams{Model: "m", Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage(text)}}
}

func weatherSchema() map[string]any {
	return map[string]any{
		"type":       "object",
		"properties": map[string]any{"city": map[string]any{"type": "string"}, "days": map[string]any{"type": "integer"}, "note": map[string]any{"type": "string"}},
		"required":   []string{"city", "days"},
	}
}

const weatherArguments = `{"city":"example","days":1}`

func TestOpenAISDKChat(t *testing.T) {
	s := start(t, Config{})
	client := openAIClient(s)
	got, err := client.Chat.Completions.New(t.Context(), chatParams("four words sim:cached=3 sim:reasoning=7"))
	if err != nil {
		t.Fatal(err)
	}
	if text, reason := got.Choices[0].Message.Content, got.Choices[0].FinishReason; text != defaultReply || reason != "stop" {
		t.Errorf("answer is %q, finished by %q", text, reason)
	}
	want := Usage{InputTokens: 10, OutputTokens: wholeDefaultTokens + 7, CachedTokens: 3, ReasoningTokens: 7}
	told := Usage{
		InputTokens: int(got.Usage.PromptTokens), OutputTokens: int(got.Usage.CompletionTokens), CachedTokens: int(got.Usage.PromptTokensDetails.CachedTokens),
		ReasoningTokens: int(got.Usage.CompletionTokensDetails.ReasoningTokens),
	}
	record := s.last(t)
	if diff := cmp.Diff([]Usage{want, want, want}, []Usage{told, *record.Reported, record.Consumed}); diff != "" {
		t.Errorf("usage wanted and told, reported, consumed: (-want +got)\n%s", diff)
	}
	if got.Usage.TotalTokens != got.Usage.PromptTokens+got.Usage.CompletionTokens {
		t.Errorf("total is %d", got.Usage.TotalTokens)
	}
}

func TestOpenAISDKChatStream(t *testing.T) {
	s := start(t, Config{})
	params := chatParams("sim:chunks=5 sim:split")
	params.StreamOptions = openai.ChatCompletionStreamOptionsParam{IncludeUsage: openai.Bool(true)}
	client := openAIClient(s)
	stream := client.Chat.Completions.NewStreaming(t.Context(), params)
	var collected openai.ChatCompletionAccumulator
	chunks := 0
	for stream.Next() {
		if !collected.AddChunk(stream.Current()) {
			t.Fatal("the SDK could not add a chunk")
		}
		if choices := stream.Current().Choices; len(choices) > 0 && choices[0].Delta.Content != "" {
			chunks++
		}
	}
	if err := stream.Err(); err != nil {
		t.Fatal(err)
	}
	if text := collected.Choices[0].Message.Content; text != numberedWords(5) || chunks != 5 {
		t.Errorf("answer is %q in %d chunks", text, chunks)
	}
	want := Usage{InputTokens: 6, OutputTokens: countTokens(numberedWords(5))}
	told := Usage{InputTokens: int(collected.Usage.PromptTokens), OutputTokens: int(collected.Usage.CompletionTokens)}
	if diff := cmp.Diff(want, told); diff != "" {
		t.Errorf("usage (-want +got)\n%s", diff)
	}
	record := s.last(t)
	if !record.Streamed || record.Chunks != 5 || record.Reported == nil || *record.Reported != want {
		t.Errorf("record is %+v", record)
	}
}

func TestOpenAISDKChatCallsTool(t *testing.T) {
	s := start(t, Config{})
	params := chatParams("weather?")
	params.Tools = []openai.ChatCompletionToolUnionParam{openai.ChatCompletionFunctionTool(shared.FunctionDefinitionParam{
		Name: "weather", Parameters: weatherSchema(),
	})}
	client := openAIClient(s)
	got, err := client.Chat.Completions.New(t.Context(), params)
	if err != nil {
		t.Fatal(err)
	}
	stream := client.Chat.Completions.NewStreaming(t.Context(), params)
	var collected openai.ChatCompletionAccumulator
	for stream.Next() {
		collected.AddChunk(stream.Current())
	}
	if err := stream.Err(); err != nil {
		t.Fatal(err)
	}
	for how, choice := range map[string]openai.ChatCompletionChoice{"at once": got.Choices[0], "streamed": collected.Choices[0]} {
		if len(choice.Message.ToolCalls) != 1 || choice.FinishReason != "tool_calls" {
			t.Fatalf("%s: choice is %+v", how, choice)
		}
		if f := choice.Message.ToolCalls[0].Function; f.Name != "weather" || f.Arguments != weatherArguments {
			t.Errorf("%s: call is %s(%s)", how, f.Name, f.Arguments)
		}
	}
	params.Messages = append(params.Messages, got.Choices[0].Message.ToParam(), openai.ToolMessage("sunny", got.Choices[0].Message.ToolCalls[0].ID))
	got, err = client.Chat.Completions.New(t.Context(), params)
	if err != nil {
		t.Fatal(err)
	}
	if got.Choices[0].Message.Content != defaultReply {
		t.Errorf("answer to the tool's result is %+v", got.Choices[0].Message)
	}
}

func TestOpenAISDKResponsesStream(t *testing.T) {
	s := start(t, Config{})
	client := openAIClient(s)
	stream := client.Responses.NewStreaming(t.Context(), responses.ResponseNewParams{
		Model: "m", Input: responses.ResponseNewParamsInputUnion{OfString: param.NewOpt("news? sim:reasoning=2")},
		Tools: []responses.ToolUnionParam{responses.ToolParamOfWebSearch(responses.WebSearchToolTypeWebSearch)},
	})
	var text strings.Builder
	var final responses.Response
	number := int64(0)
	for stream.Next() {
		event := stream.Current()
		if event.SequenceNumber != number {
			t.Errorf("event %s has number %d, want %d", event.Type, event.SequenceNumber, number)
		}
		number++
		switch event := event.AsAny().(type) {
		case responses.ResponseTextDeltaEvent:
			text.WriteString(event.Delta)
		case responses.ResponseCompletedEvent:
			final = event.Response
		}
	}
	if err := stream.Err(); err != nil {
		t.Fatal(err)
	}
	if text.String() != defaultReply || final.OutputText() != defaultReply {
		t.Errorf("streamed %q, final %q", text.String(), final.OutputText())
	}
	var kinds []string
	for _, item := range final.Output {
		kinds = append(kinds, item.Type)
	}
	if diff := cmp.Diff([]string{"reasoning", "web_search_call", "message"}, kinds); diff != "" {
		t.Errorf("items (-want +got)\n%s", diff)
	}
	record := s.last(t)
	if final.Usage.OutputTokens != wholeDefaultTokens+2 || final.Usage.OutputTokensDetails.ReasoningTokens != 2 || record.Reported.WebSearches != 1 {
		t.Errorf("usage is %+v, record %+v", final.Usage, record.Reported)
	}
}

func TestOpenAISDKEmbeddings(t *testing.T) {
	s := start(t, Config{})
	client := openAIClient(s)
	embed := func(format openai.EmbeddingNewParamsEncodingFormat) *openai.CreateEmbeddingResponse {
		got, err := client.Embeddings.New(t.Context(), openai.EmbeddingNewParams{
			Model: "m", Dimensions: openai.Int(8), EncodingFormat: format,
			Input: openai.EmbeddingNewParamsInputUnion{OfArrayOfStrings: []string{"12345678", "1"}},
		})
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	floats, again := embed("float"), embed("float")
	if len(floats.Data) != 2 || len(floats.Data[0].Embedding) != 8 || floats.Usage.PromptTokens != 3 {
		t.Fatalf("embeddings are %s", floats.RawJSON())
	}
	if diff := cmp.Diff(floats.Data[0].Embedding, again.Data[0].Embedding); diff != "" {
		t.Errorf("the same text has other embeddings (-first +second)\n%s", diff)
	}
	if cmp.Equal(floats.Data[0].Embedding, floats.Data[1].Embedding) {
		t.Error("different texts have the same embedding")
	}
	raw := decode(t, embed("base64").RawJSON())["data"].([]any)[0].(object)["embedding"].(string)
	if b, err := base64.StdEncoding.DecodeString(raw); err != nil || len(b) != 8*4 {
		t.Errorf("base64 embedding has %d bytes, error %v", len(b), err)
	}
}

func TestOpenAISDKImages(t *testing.T) {
	s := start(t, Config{})
	client := openAIClient(s)
	png, err := base64.StdEncoding.DecodeString(pixel)
	if err != nil {
		t.Fatal(err)
	}
	image := func() io.Reader { return openai.File(bytes.NewReader(png), "a.png", "image/png") }
	generated, err := client.Images.Generate(t.Context(), openai.ImageGenerateParams{Model: "gpt-image-1", Prompt: "a cat", N: openai.Int(2), Size: "1024x1536", Quality: "low"})
	if err != nil {
		t.Fatal(err)
	}
	if len(generated.Data) != 2 || generated.Data[0].B64JSON != pixel || generated.Usage.OutputTokens != 2*408 || generated.Size != "1024x1536" || generated.Quality != "low" {
		t.Errorf("generated %s", generated.RawJSON())
	}
	old, err := client.Images.Generate(t.Context(), openai.ImageGenerateParams{Model: "dall-e-3", Prompt: "a cat"})
	if err != nil {
		t.Fatal(err)
	}
	if len(old.Data) != 1 || old.Data[0].URL == "" || old.JSON.Usage.Valid() {
		t.Errorf("the old model generated %s", old.RawJSON())
	}
	edited, err := client.Images.Edit(t.Context(), openai.ImageEditParams{
		Model: "gpt-image-1", Prompt: "mend", Image: openai.ImageEditParamsImageUnion{OfFileArray: []io.Reader{image(), image()}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if edited.Usage.InputTokensDetails.ImageTokens != 2*mediaTokens || edited.Usage.InputTokensDetails.TextTokens != 1 {
		t.Errorf("edited %s", edited.RawJSON())
	}
	varied, err := client.Images.NewVariation(t.Context(), openai.ImageNewVariationParams{Image: image()})
	if err != nil {
		t.Fatal(err)
	}
	if len(varied.Data) != 1 || s.last(t).Model != defaultImageModel {
		t.Errorf("varied %s", varied.RawJSON())
	}
	stream := client.Images.GenerateStreaming(t.Context(), openai.ImageGenerateParams{Model: "gpt-image-1", Prompt: "a cat", PartialImages: openai.Int(2)})
	var kinds []string
	for stream.Next() {
		kinds = append(kinds, stream.Current().Type)
	}
	if err := stream.Err(); err != nil {
		t.Fatal(err)
	}
	const partial = "image_generation.partial_image"
	if diff := cmp.Diff([]string{partial, partial, "image_generation.completed"}, kinds); diff != "" {
		t.Errorf("events (-want +got)\n%s", diff)
	}
	if record := s.last(t); record.Reported == nil || record.Reported.OutputTokens != 1056+200 {
		t.Errorf("record is %+v", record)
	}
}

func TestOpenAISDKAudio(t *testing.T) {
	s := start(t, Config{})
	client := openAIClient(s)
	response, err := client.Audio.Speech.New(t.Context(), openai.AudioSpeechNewParams{
		Model: "tts-1", Input: strings.Repeat("é", 480), Voice: openai.AudioSpeechNewParamsVoiceUnion{OfString: openai.String("alloy")}, ResponseFormat: "wav",
	})
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	wav, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	if response.Header.Get("Content-Type") != "audio/wav" || !bytes.HasPrefix(wav, []byte("RIFF")) || len(wav) != 44+48_000 {
		t.Fatalf("speech is %d bytes of %s", len(wav), response.Header.Get("Content-Type"))
	}
	if record := s.last(t); record.Consumed.Characters != 480 || record.Reported != nil || record.Chunks != speechChunks {
		t.Errorf("record is %+v", record)
	}
	transcribe := func(model string) *openai.AudioTranscriptionNewResponseUnion {
		got, err := client.Audio.Transcriptions.New(t.Context(), openai.AudioTranscriptionNewParams{
			Model: model, File: openai.File(bytes.NewReader(wav), "a.wav", "audio/wav"), Prompt: openai.String("sim:reply=two words"),
		})
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	if got := transcribe("whisper-1"); got.Text != "two words" || got.Usage.Seconds != 1 || got.Usage.Type != "duration" {
		t.Errorf("transcription is %s", got.RawJSON())
	}
	if got := transcribe("gpt-4o-transcribe"); got.Usage.Type != "tokens" || got.Usage.InputTokens != 10+5 || got.Usage.OutputTokens != 3 {
		t.Errorf("transcription is %s", got.RawJSON())
	}
	stream := client.Audio.Transcriptions.NewStreaming(t.Context(), openai.AudioTranscriptionNewParams{
		Model: "gpt-4o-transcribe", File: openai.File(bytes.NewReader(wav), "a.wav", "audio/wav"),
	})
	var text, whole string
	for stream.Next() {
		text += stream.Current().Delta
		whole += stream.Current().Text
	}
	if err := stream.Err(); err != nil {
		t.Fatal(err)
	}
	if text != defaultReply || whole != defaultReply || s.last(t).Reported.InputTokens != 10 {
		t.Errorf("streamed %q, then %q; record %+v", text, whole, s.last(t))
	}
	translation, err := client.Audio.Translations.New(t.Context(), openai.AudioTranslationNewParams{
		Model: "whisper-1", File: openai.File(bytes.NewReader(wav), "a.wav", "audio/wav"),
	})
	if err != nil {
		t.Fatal(err)
	}
	if translation.Text != defaultReply {
		t.Errorf("translation is %s", translation.RawJSON())
	}
}

func TestOpenAISDKModelsAndModerations(t *testing.T) {
	s := start(t, Config{Models: []string{"org/one", "two", "omni-moderation-latest"}})
	client := openAIClient(s)
	page, err := client.Models.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, model := range page.Data {
		names = append(names, model.ID)
	}
	if diff := cmp.Diff([]string{"org/one", "two", "omni-moderation-latest"}, names); diff != "" {
		t.Errorf("models (-want +got)\n%s", diff)
	}
	if model, err := client.Models.Get(t.Context(), "org/one"); err != nil || model.ID != "org/one" {
		t.Errorf("model is %+v, error %v", model, err)
	}
	for text, flagged := range map[string]bool{"fine": false, "bad sim:flag": true} {
		got, err := client.Moderations.New(t.Context(), openai.ModerationNewParams{Input: openai.ModerationNewParamsInputUnion{OfString: openai.String(text)}})
		if err != nil {
			t.Fatal(err)
		}
		if got.Results[0].Flagged != flagged || got.Results[0].Categories.Violence != flagged {
			t.Errorf("%q: %s", text, got.RawJSON())
		}
	}
	_, err = client.Chat.Completions.New(t.Context(), chatParams("hi"))
	var refusal *openai.Error
	if !errors.As(err, &refusal) || refusal.StatusCode != 404 || refusal.Code != "model_not_found" {
		t.Errorf("unknown model gives %v", err)
	}
}
