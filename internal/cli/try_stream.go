package cli

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/latchkey-dev/latchkey/internal/policy"
)

// The APIs that try speaks.
const (
	apiChat     = "chat"
	apiMessages = "messages"
)

// tryRequest is the body of a request with one prompt.
func tryRequest(api, model, system, prompt string, maxTokens int64) ([]byte, error) {
	type message struct {
		Role    string `json:"role"`
		Content string `json:"content"`
	}
	messages := []message{{"user", prompt}}
	body := map[string]any{"model": model, "stream": true}
	switch api {
	case apiMessages:
		const mostByDefault = 1024 // the API demands one
		body["max_tokens"] = int64(mostByDefault)
		if system != "" {
			body["system"] = system
		}
		if maxTokens > 0 {
			body["max_tokens"] = maxTokens
		}
	default:
		if system != "" {
			messages = append([]message{{"system", system}}, messages...)
		}
		if maxTokens > 0 {
			body["max_completion_tokens"] = maxTokens
		}
		body["stream_options"] = map[string]any{"include_usage": true}
	}
	body["messages"] = messages
	encoded, err := json.Marshal(body)
	if err != nil {
		return nil, fmt.Errorf("encode the request: %w", err)
	}
	return encoded, nil
}

// answered is what an answer has said beside its text.
type answered struct {
	usage    policy.Usage
	reported bool // usage was
	finish   string
}

// chunk is any event of the two APIs, as far as it is of use here.
type chunk struct {
	Type    string `json:"type"`
	Choices []struct {
		Delta   struct{ Content, Refusal string } `json:"delta"`
		Message struct{ Content string }          `json:"message"`
		Finish  string                            `json:"finish_reason"`
	} `json:"choices"`
	Delta struct {
		Text   string `json:"text"`
		Finish string `json:"stop_reason"`
	} `json:"delta"`
	Message struct {
		Usage *reportedUsage `json:"usage"`
	} `json:"message"`
	Usage *reportedUsage  `json:"usage"`
	Error json.RawMessage `json:"error"`
}

// reportedUsage is the usage of either API. Anthropic's input does not hold what was cached; OpenAI's does.
type reportedUsage struct {
	Prompt        int64 `json:"prompt_tokens"`
	Completion    int64 `json:"completion_tokens"`
	PromptDetails struct {
		Cached int64 `json:"cached_tokens"`
	} `json:"prompt_tokens_details"`
	CompletionDetails struct {
		Reasoning int64 `json:"reasoning_tokens"`
	} `json:"completion_tokens_details"`
	Input       int64 `json:"input_tokens"`
	Output      int64 `json:"output_tokens"`
	CacheWrites int64 `json:"cache_creation_input_tokens"`
	CacheReads  int64 `json:"cache_read_input_tokens"`
}

func (a *answered) take(u *reportedUsage) {
	if u == nil {
		return
	}
	a.reported = true
	if input := u.Prompt + u.Input + u.CacheWrites + u.CacheReads; input > 0 {
		a.usage.InputTokens = input
		a.usage.CachedInputTokens = u.PromptDetails.Cached + u.CacheReads
		a.usage.CacheWriteTokens = u.CacheWrites
	}
	a.usage.OutputTokens = max(a.usage.OutputTokens, u.Completion+u.Output)
	a.usage.ReasoningTokens = max(a.usage.ReasoningTokens, u.CompletionDetails.Reasoning)
}

// errCutOff says that a stream ended before its end was told.
var errCutOff = errors.New("the answer broke off before its end")

// readStream copies the text of an answer's events to a writer as they arrive.
func readStream(from io.Reader, to io.Writer) (*answered, error) {
	const longest = 4 << 20 // of one event
	got := &answered{}
	lines := bufio.NewScanner(from)
	lines.Buffer(make([]byte, 0, 64<<10), longest)
	ended := false
	for lines.Scan() {
		data, ok := bytes.CutPrefix(lines.Bytes(), []byte("data:"))
		if !ok {
			continue
		}
		data = bytes.TrimSpace(data)
		if string(data) == "[DONE]" {
			ended = true
			continue
		}
		var c chunk
		if err := json.Unmarshal(data, &c); err != nil {
			return got, fmt.Errorf("read the answer: an event is not JSON: %w", err)
		}
		if len(c.Error) > 0 && string(c.Error) != "null" {
			return got, fmt.Errorf("the provider broke off: %s", errorMessage(data))
		}
		var text strings.Builder
		text.WriteString(c.Delta.Text)
		for _, choice := range c.Choices {
			text.WriteString(choice.Delta.Content)
			text.WriteString(choice.Delta.Refusal)
			got.finish = orElse(choice.Finish, got.finish)
		}
		got.finish = orElse(c.Delta.Finish, got.finish)
		got.take(c.Usage)
		got.take(c.Message.Usage)
		ended = ended || c.Type == "message_stop"
		if _, err := io.WriteString(to, text.String()); err != nil {
			return got, fmt.Errorf("print the answer: %w", err)
		}
	}
	if err := lines.Err(); err != nil {
		return got, fmt.Errorf("read the answer: %w", err)
	}
	if !ended {
		return got, errCutOff
	}
	return got, nil
}

func orElse(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// errorMessage is what an error's body says, in either dialect; a body that is neither, as it stands.
func errorMessage(body []byte) string {
	var e struct {
		Error struct {
			Message string `json:"message"`
		} `json:"error"`
	}
	if json.Unmarshal(body, &e) == nil && e.Error.Message != "" {
		return oneLine(e.Error.Message)
	}
	const most = 300
	return clip(oneLine(strings.TrimSpace(string(body))), most)
}
