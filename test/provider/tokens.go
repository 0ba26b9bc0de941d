package provider

import (
	"strconv"
	"strings"
	"unicode/utf8"
)

const (
	bytesPerToken = 4
	// mediaTokens is what an image or a file in the input counts as.
	mediaTokens = 85
)

// Usage counts what one request used. In a Record, all numbers are those of the provider, whatever the API's spelling of them is.
type Usage struct {
	// InputTokens includes the cached and the cache-writing ones, also for Anthropic's API, which reports them apart.
	InputTokens int `json:"input_tokens,omitempty"`
	// OutputTokens includes ReasoningTokens.
	OutputTokens     int `json:"output_tokens,omitempty"`
	CachedTokens     int `json:"cached_tokens,omitempty"`
	CacheWriteTokens int `json:"cache_write_tokens,omitempty"`
	ReasoningTokens  int `json:"reasoning_tokens,omitempty"`
	WebSearches      int `json:"web_searches,omitempty"`
	Images           int `json:"images,omitempty"`
	// Characters of the input of audio/speech, in runes.
	Characters int `json:"characters,omitempty"`
	// AudioSeconds of the input of transcriptions and translations.
	AudioSeconds float64 `json:"audio_seconds,omitempty"`
}

// countTokens is the package's only tokenizer: four bytes are a token.
func countTokens(text string) int {
	return (len(text) + bytesPerToken - 1) / bytesPerToken
}

// truncate cuts text to at most limit tokens without cutting a UTF-8 character.
func truncate(text string, limit int) string {
	if countTokens(text) <= limit {
		return text
	}
	end := max(limit, 0) * bytesPerToken
	for end > 0 && !utf8.RuneStart(text[end]) {
		end--
	}
	return text[:end]
}

// splitText cuts text into n pieces of about the same number of runes, fewer if it has fewer runes; n = 0 cuts after each word.
func splitText(text string, n int) []string {
	if text == "" {
		return nil
	}
	if n == 0 {
		return strings.SplitAfter(text, " ")
	}
	runes := []rune(text)
	n = min(n, len(runes))
	pieces := make([]string, 0, n)
	for i := range n {
		pieces = append(pieces, string(runes[i*len(runes)/n:(i+1)*len(runes)/n]))
	}
	return pieces
}

// numberedWords is a text of n words, each different, so that a missing or doubled chunk can be seen.
func numberedWords(n int) string {
	words := make([]string, n)
	for i := range n {
		words[i] = "word" + strconv.Itoa(i+1)
	}
	return strings.Join(words, " ")
}
