package llm

import (
	"encoding/json"
	"errors"
	"math"
	"strings"

	"github.com/latchkey-dev/latchkey/internal/policy"
)

// toldUsage is the usage as providers tell it, in the words of all their APIs.
type toldUsage struct {
	PromptTokens     *count `json:"prompt_tokens"`
	CompletionTokens *count `json:"completion_tokens"`
	InputTokens      *count `json:"input_tokens"`
	OutputTokens     *count `json:"output_tokens"`

	PromptDetails     *inputDetails  `json:"prompt_tokens_details"`
	InputDetails      *inputDetails  `json:"input_tokens_details"`
	InputDetail       *inputDetails  `json:"input_token_details"` // of transcriptions
	CompletionDetails *outputDetails `json:"completion_tokens_details"`
	OutputDetails     *outputDetails `json:"output_tokens_details"`

	// Anthropic's, whose input_tokens do not include these.
	CacheCreation *count        `json:"cache_creation_input_tokens"`
	CacheRead     *count        `json:"cache_read_input_tokens"`
	CacheWritten  *cacheWritten `json:"cache_creation"`
	ServerToolUse *struct {
		WebSearches *count `json:"web_search_requests"`
	} `json:"server_tool_use"`

	Seconds json.Number `json:"seconds"` // of a usage of the type "duration"
}

type inputDetails struct {
	Cached count `json:"cached_tokens"`
	Wrote  count `json:"cache_write_tokens"`
	Audio  count `json:"audio_tokens"`
	Image  count `json:"image_tokens"`
}

type outputDetails struct {
	Reasoning count `json:"reasoning_tokens"`
	Audio     count `json:"audio_tokens"`
	Image     count `json:"image_tokens"`
}

type cacheWritten struct {
	OneHour count `json:"ephemeral_1h_input_tokens"`
}

// count is a number of tokens. Anything that is none spoils the usage.
type count int64

// mostTokens is more than any request can have.
const mostTokens = 1_000_000_000

var errCount = errors.New("not a number of tokens")

// UnmarshalJSON implements json.Unmarshaler.
func (c *count) UnmarshalJSON(raw []byte) error {
	if string(raw) == "null" {
		return nil
	}
	var n int64
	if err := json.Unmarshal(raw, &n); err != nil || n < 0 || n > mostTokens {
		return errCount
	}
	*c = count(n)
	return nil
}

func parseUsage(raw []byte) (*toldUsage, error) {
	var t toldUsage
	if err := json.Unmarshal(raw, &t); err != nil {
		return nil, err
	}
	return &t, nil
}

func (t *toldUsage) hasTokens() bool {
	return t.PromptTokens != nil || t.CompletionTokens != nil || t.InputTokens != nil || t.OutputTokens != nil
}

// fill takes the usage over. What only the beginning of the answer told, it takes from there.
func (t *toldUsage) fill(u *policy.Usage, beginning *toldUsage, dialect Dialect) {
	if beginning == nil {
		beginning = &toldUsage{}
	}
	u.InputTokens = first(t.InputTokens, t.PromptTokens, beginning.InputTokens)
	u.OutputTokens = first(t.OutputTokens, t.CompletionTokens, beginning.OutputTokens)
	for _, d := range []*inputDetails{t.PromptDetails, t.InputDetails, t.InputDetail} {
		if d != nil {
			u.CachedInputTokens, u.CacheWriteTokens = int64(d.Cached), int64(d.Wrote)
			u.AudioInputTokens, u.ImageInputTokens = int64(d.Audio), int64(d.Image)
		}
	}
	for _, d := range []*outputDetails{t.CompletionDetails, t.OutputDetails} {
		if d != nil {
			u.ReasoningTokens, u.AudioOutputTokens, u.ImageOutputTokens = int64(d.Reasoning), int64(d.Audio), int64(d.Image)
		}
	}
	if dialect == Anthropic {
		u.CachedInputTokens = first(t.CacheRead, beginning.CacheRead)
		u.CacheWriteTokens = first(t.CacheCreation, beginning.CacheCreation)
		for _, w := range []*cacheWritten{t.CacheWritten, beginning.CacheWritten} {
			if w != nil {
				u.CacheWriteOneHourTokens = int64(w.OneHour)
				break
			}
		}
		u.InputTokens += u.CachedInputTokens + u.CacheWriteTokens
	}
	for _, tools := range []*toldUsage{t, beginning} {
		if tools.ServerToolUse != nil && tools.ServerToolUse.WebSearches != nil {
			u.Searches = int64(*tools.ServerToolUse.WebSearches)
			break
		}
	}
	if ms, ok := milliseconds(t.Seconds.String()); ok {
		u.AudioMilliseconds = ms
	}
}

// first is the first of the counts that is there.
func first(counts ...*count) int64 {
	for _, c := range counts {
		if c != nil {
			return int64(*c)
		}
	}
	return 0
}

// milliseconds reads seconds, such as 12.345, rounded up to milliseconds. It reads the digits as they are, since a float would not.
func milliseconds(seconds string) (int64, bool) {
	whole, fraction, _ := strings.Cut(seconds, ".")
	if whole == "" || len(whole) > 9 || len(fraction) > 30 {
		return 0, false
	}
	n := int64(0)
	for i, c := range []byte(whole + (fraction + "000")[:3]) {
		if c < '0' || c > '9' || i > 12 {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	for i := 3; i < len(fraction); i++ {
		switch c := fraction[i]; {
		case c < '0' || c > '9':
			return 0, false
		case c != '0':
			return min(n+1, math.MaxInt64), true
		}
	}
	return n, true
}
