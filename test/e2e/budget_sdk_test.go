package e2e

import (
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anthropics/anthropic-sdk-go"
	anthropicoption "github.com/anthropics/anthropic-sdk-go/option"
	"github.com/openai/openai-go/v3"
	openaioption "github.com/openai/openai-go/v3/option"
	"github.com/openai/openai-go/v3/responses"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	"github.com/latchkey-dev/latchkey/test/provider"
)

// TestUsageThatSDKsSeeIsWhatTheLedgerCounts streams through the real SDKs, adds up the usage that they report, and compares.
func TestUsageThatSDKsSeeIsWhatTheLedgerCounts(t *testing.T) {
	ctx := t.Context()
	prices := perMillion{input: "2.5", cached: "0.3", output: "9.999999999"}
	gpt := pricedModel(t, prices.spec())
	claude := pricedModel(t, &v1alpha1.Prices{PerMillionTokens: &v1alpha1.TokenPrices{
		Input: new(v1alpha1.Money("3")), CachedInput: new(v1alpha1.Money("0.3")), CacheWrite: new(v1alpha1.Money("3.75")), Output: new(v1alpha1.Money("15")),
	}}, func(s *v1alpha1.ModelSpec) { s.ProviderRef.Name = "anthropic" })
	_, key := newTenant(t).newKey("sdk", func(s *v1alpha1.APIKeySpec) { s.Budgets = &v1alpha1.Budgets{Daily: new(v1alpha1.Money("100"))} })
	want := new(big.Int)
	add := func(input, cached, output int64) {
		if input == 0 || output == 0 {
			t.Errorf("the SDK saw no usage: %d and %d tokens", input, output)
		}
		want.Add(want, prices.cost(t, provider.Usage{InputTokens: int(input), CachedTokens: int(cached), OutputTokens: int(output)}))
	}
	client := openai.NewClient(openaioption.WithBaseURL(theStack.GatewayURL()+"/v1"), openaioption.WithAPIKey(key))
	for i := range 5 {
		text := fmt.Sprintf("Wieviel ist %d? sim:chunks=%d sim:cached=%d sim:input-tokens=%d sim:reasoning=%d sim:split", i, 3+i, 7*i, 50+i, i)
		params := openai.ChatCompletionNewParams{
			Model: gpt.Name, Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage(text)},
			StreamOptions: openai.ChatCompletionStreamOptionsParam{IncludeUsage: openai.Bool(true)},
		}
		stream := client.Chat.Completions.NewStreaming(ctx, params)
		var usage openai.CompletionUsage
		for stream.Next() {
			if u := stream.Current().Usage; u.TotalTokens > 0 {
				usage = u
			}
		}
		if err := stream.Err(); err != nil {
			t.Fatal(err)
		}
		add(usage.PromptTokens, usage.PromptTokensDetails.CachedTokens, usage.CompletionTokens)

		whole, err := client.Chat.Completions.New(ctx, openai.ChatCompletionNewParams{Model: gpt.Name, Messages: params.Messages})
		if err != nil {
			t.Fatal(err)
		}
		add(whole.Usage.PromptTokens, whole.Usage.PromptTokensDetails.CachedTokens, whole.Usage.CompletionTokens)

		events := client.Responses.NewStreaming(ctx, responses.ResponseNewParams{Model: gpt.Name, Input: responses.ResponseNewParamsInputUnion{OfString: openai.String(text)}})
		for events.Next() {
			if e := events.Current(); e.Type == "response.completed" {
				add(e.Response.Usage.InputTokens, e.Response.Usage.InputTokensDetails.CachedTokens, e.Response.Usage.OutputTokens)
			}
		}
		if err := events.Err(); err != nil {
			t.Fatal(err)
		}
	}
	if got := spent(t, key); got.Cmp(want) != 0 {
		t.Fatalf("the SDK's usage costs %s nano-units, the ledger says %s", want, got)
	}

	claudeClient := anthropic.NewClient(anthropicoption.WithBaseURL(theStack.GatewayURL()), anthropicoption.WithAPIKey(key))
	messages := claudeClient.Messages.NewStreaming(ctx, anthropic.MessageNewParams{
		Model: claude.Name, MaxTokens: 64,
		Messages: []anthropic.MessageParam{anthropic.NewUserMessage(anthropic.NewTextBlock("Grüße sim:input-tokens=1000 sim:cached=300 sim:cache-write=200 sim:chunks=9"))},
	})
	message := anthropic.Message{}
	for messages.Next() {
		if err := message.Accumulate(messages.Current()); err != nil {
			t.Fatal(err)
		}
	}
	if err := messages.Err(); err != nil {
		t.Fatal(err)
	}
	u := message.Usage
	if u.CacheReadInputTokens != 300 || u.CacheCreationInputTokens != 200 || u.OutputTokens == 0 {
		t.Fatalf("the SDK saw %+v", u)
	}
	// Prices of a million tokens in whole thousandths of the currency: nano-units a token.
	want.Add(want, big.NewInt(u.InputTokens*3_000+u.CacheReadInputTokens*300+u.CacheCreationInputTokens*3_750+u.OutputTokens*15_000))
	if got := spent(t, key); got.Cmp(want) != 0 {
		t.Fatalf("with Anthropic's the SDKs' usage costs %s nano-units, the ledger says %s", want, got)
	}
}

// TestSDKsDoRightByRefusals counts how often the SDKs try: once where trying again is in vain, and again where it is not.
func TestSDKsDoRightByRefusals(t *testing.T) {
	ctx := t.Context()
	tn := newTenant(t)
	var tries atomic.Int64
	var lastStatus atomic.Int64
	watch := func(req *http.Request, next func(*http.Request) (*http.Response, error)) (*http.Response, error) {
		tries.Add(1)
		resp, err := next(req)
		if err == nil {
			lastStatus.Store(int64(resp.StatusCode))
		}
		return resp, err
	}
	openAIOf := func(key string) openai.Client {
		return openai.NewClient(openaioption.WithBaseURL(theStack.GatewayURL()+"/v1"), openaioption.WithAPIKey(key), openaioption.WithMiddleware(watch))
	}
	anthropicOf := func(key string) anthropic.Client {
		return anthropic.NewClient(anthropicoption.WithBaseURL(theStack.GatewayURL()), anthropicoption.WithAPIKey(key), anthropicoption.WithMiddleware(watch))
	}
	chatParams := openai.ChatCompletionNewParams{Model: "gpt-5-mini", Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage("hi")}}
	messageParams := anthropic.MessageNewParams{
		Model: "claude-sonnet-4-5", MaxTokens: 64, Messages: []anthropic.MessageParam{anthropic.NewUserMessage(anthropic.NewTextBlock("hi"))},
	}

	_, broke := tn.newKey("broke", func(s *v1alpha1.APIKeySpec) { s.Budgets = &v1alpha1.Budgets{Daily: new(v1alpha1.Money("0"))} })
	free := roomy()
	free.Budgets = &v1alpha1.BudgetPolicy{UnpricedModels: v1alpha1.UnpricedCountAsFree}
	systemPolicy(t, free)
	openAI, claude := openAIOf(broke), anthropicOf(broke)
	_, err := openAI.Chat.Completions.New(ctx, chatParams)
	var refusal *openai.Error
	if !errors.As(err, &refusal) || refusal.StatusCode != http.StatusTooManyRequests || refusal.Code != "insufficient_quota" || tries.Load() != 1 {
		t.Errorf("OpenAI's SDK over budget: %v after %d tries", err, tries.Load())
	}
	tries.Store(0)
	_, err = claude.Messages.New(ctx, messageParams)
	var anthropicRefusal *anthropic.Error
	if !errors.As(err, &anthropicRefusal) || anthropicRefusal.StatusCode != http.StatusTooManyRequests || tries.Load() != 1 {
		t.Errorf("Anthropic's SDK over budget: %v after %d tries", err, tries.Load())
	}

	// One request at a time, and the one is held: the SDKs come back after the second that they are told, and get through.
	for name, try := range map[string]func(key string) error{
		"openai": func(key string) error {
			c := openAIOf(key)
			_, err := c.Chat.Completions.New(ctx, chatParams)
			return err
		},
		"anthropic": func(key string) error {
			c := anthropicOf(key)
			_, err := c.Messages.New(ctx, messageParams)
			return err
		},
	} {
		_, key := tn.newKey("single-"+name, func(s *v1alpha1.APIKeySpec) { s.RateLimits = &v1alpha1.RateLimits{ConcurrentRequests: new(int64(1))} })
		mark := "retry-" + strconv.FormatInt(time.Now().UnixNano(), 36)
		resp, err := http.DefaultClient.Do(request{body: streamed("gpt-5-mini", "sim:chunks=2 sim:hold="+mark)}.build(t, key))
		if err != nil {
			t.Fatal(err)
		}
		tries.Store(0)
		lastStatus.Store(0)
		done := make(chan error, 1)
		go func() { done <- try(key) }()
		eventually(t, "the first try is refused", func() error {
			if s := lastStatus.Load(); s != http.StatusTooManyRequests {
				return fmt.Errorf("status %d after %d tries", s, tries.Load())
			}
			return nil
		})
		eventually(t, "the stream is held", func() error { return control(t, http.MethodPost, "/_sim/release?id="+mark, nil) })
		_ = resp.Body.Close()
		if err := <-done; err != nil || tries.Load() < 2 {
			t.Errorf("%s: %v after %d tries", name, err, tries.Load())
		}
	}
}
