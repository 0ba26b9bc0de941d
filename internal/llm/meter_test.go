package llm

import (
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/andybalholm/brotli"
	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"go.uber.org/goleak"

	"github.com/latchkey-dev/latchkey/internal/policy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// parsed is the request of a body, as the engine has it.
func parsed(t testing.TB, path, contentType, body string) (Route, *Request) {
	t.Helper()
	route, err := Match("POST", path)
	if err != nil {
		t.Fatal(err)
	}
	var p Parser
	req, err := p.Parse(route, contentType, "", []byte(body))
	if err != nil {
		t.Fatal(err)
	}
	return route, req
}

const sseType = "text/event-stream; charset=utf-8"

// metered has an answer metered in pieces of the size, and returns what the caller gets. cut leaves out the end.
func metered(t testing.TB, route Route, req *Request, head AnswerHead, answer string, size int, cut bool) (Metered, string) {
	t.Helper()
	m := NewMeter(route, req, head)
	var got strings.Builder
	give := func(piece string, end bool) {
		out, changed := m.Write([]byte(piece), end)
		if changed && !m.ChangesBody() {
			t.Error("the body is changed though that was not said")
		}
		if changed {
			got.Write(out)
		} else {
			got.WriteString(piece)
		}
	}
	rest := answer
	for len(rest) > size {
		give(rest[:size], false)
		rest = rest[size:]
	}
	give(rest, !cut)
	return m.Result(), got.String()
}

func sse(events ...string) string {
	var b strings.Builder
	for _, e := range events {
		fmt.Fprintf(&b, "data: %s\n\n", e)
	}
	return b.String()
}

func named(events ...string) string {
	var b strings.Builder
	for i := 0; i < len(events); i += 2 {
		fmt.Fprintf(&b, "event: %s\r\ndata: %s\r\n\r\n", events[i], events[i+1])
	}
	return b.String()
}

const (
	chunkA        = `{"id":"c1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}],"usage":null}`
	chunkB        = `{"id":"c1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"Grüße, \"Welt\" \ud83d\ude00"},"finish_reason":null}],"usage":null}`
	chunkC        = `{"id":"c1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":null}`
	chatUsageJSON = `{"prompt_tokens":1200,"completion_tokens":340,"total_tokens":1540,"prompt_tokens_details":{"cached_tokens":1024,"audio_tokens":8},"completion_tokens_details":{"reasoning_tokens":300,"audio_tokens":4,"accepted_prediction_tokens":0}}`
	chunkEnd      = `{"id":"c1","object":"chat.completion.chunk","choices":[],"usage":` + chatUsageJSON + `}`
)

var chatUsage = policy.Usage{InputTokens: 1200, CachedInputTokens: 1024, AudioInputTokens: 8, OutputTokens: 340, ReasoningTokens: 300, AudioOutputTokens: 4}

// answers are answers as the APIs give them, each with what is to be found in it.
var answers = map[string]struct {
	path, contentType, request string
	answerType                 string // empty: JSON
	answer                     string
	want                       policy.Usage
	hidden                     string // what the caller gets in the answer's place; empty: the answer
	incomplete                 bool
	status                     int // 0: 200
}{
	"chat": {
		path: ChatCompletions, request: `{"model":"m","messages":[{"role":"user","content":"hi"}]}`,
		answer: `{"id":"x","choices":[{"index":0,"message":{"role":"assistant","content":"{\"usage\":{\"prompt_tokens\":9}}"}}],"usage":` + chatUsageJSON + `}`,
		want:   chatUsage,
	},
	"chat in a stream whose caller asked": {
		path: ChatCompletions, request: `{"model":"m","messages":[],"stream":true,"stream_options":{"include_usage":true}}`,
		answerType: sseType, answer: sse(chunkA, chunkB, chunkC, chunkEnd, "[DONE]"), want: chatUsage,
	},
	"chat in a stream whose caller did not ask": {
		path: ChatCompletions, request: `{"model":"m","messages":[],"stream":true}`,
		answerType: sseType, answer: sse(chunkA, chunkB, chunkC, chunkEnd, "[DONE]"), hidden: sse(chunkA, chunkB, chunkC, "[DONE]"), want: chatUsage,
	},
	"a stream with comments, carriage returns, and data without a space": {
		path: ChatCompletions, request: `{"model":"m","messages":[],"stream":true,"stream_options":{"include_usage":false,"x":1}}`,
		answerType: sseType,
		answer:     "\xef\xbb\xbf: hello\r\n\r\ndata:" + chunkB + "\r\rid: 7\ndata: " + chunkEnd[:60] + "\ndata: " + chunkEnd[60:] + "\n\ndata:[DONE]\n\n",
		hidden:     "\xef\xbb\xbf: hello\r\n\r\ndata:" + chunkB + "\r\rdata:[DONE]\n\n", want: chatUsage,
	},
	"a stream that counts on each chunk": {
		path: Completions, request: `{"model":"m","prompt":"x","stream":true}`, answerType: sseType,
		answer: sse(`{"choices":[{"text":"a"}],"usage":{"prompt_tokens":5,"completion_tokens":1}}`, `{"choices":[{"text":"b"}],"usage":{"prompt_tokens":5,"completion_tokens":2}}`, "[DONE]"),
		want:   policy.Usage{InputTokens: 5, OutputTokens: 2},
	},
	"a stream that ends without a blank line": {
		path: ChatCompletions, request: `{"model":"m","messages":[],"stream":true,"stream_options":{"include_usage":true}}`, answerType: sseType,
		answer: strings.TrimRight(sse(chunkB, chunkEnd), "\n"), want: chatUsage,
	},
	"a stream without usage is estimated": {
		path: ChatCompletions, request: `{"model":"m","messages":[{"role":"user","content":"twelve bytes"}],"stream":true}`, answerType: sseType,
		answer: sse(chunkA, chunkB, chunkC, "[DONE]"),
		// "m", "user" and "twelve bytes" are 17 bytes; "Grüße, "Welt" 😀" has 12 of ASCII, and 10 of others, since an escaped one counts for 4.
		want: policy.Usage{InputTokens: 6, OutputTokens: 8, Estimated: true},
	},
	"usage that makes no sense is estimated": {
		path: ChatCompletions, request: `{"model":"m","messages":[]}`,
		answer: `{"choices":[{"message":{"content":"abcdef"}}],"usage":{"prompt_tokens":-5,"completion_tokens":1}}`, want: policy.Usage{InputTokens: 1, OutputTokens: 2, Estimated: true},
	},
	"usage in words is estimated": {
		path: ChatCompletions, request: `{"model":"m","messages":[]}`,
		answer: `{"choices":[{"message":{"content":"abcdef"}}],"usage":"many"}`, want: policy.Usage{InputTokens: 1, OutputTokens: 2, Estimated: true},
	},
	"an error is free": {
		path: ChatCompletions, request: `{"model":"m","messages":[]}`, status: 429, answer: `{"error":{"message":"slow down"},"usage":{"prompt_tokens":5}}`,
	},
	"an error in the middle of a stream": {
		path: ChatCompletions, request: `{"model":"m","messages":[],"stream":true}`, answerType: sseType, answer: sse(chunkB, `{"error":{"message":"overloaded"}}`),
		want: policy.Usage{InputTokens: 1, OutputTokens: 8, Estimated: true}, incomplete: true,
	},
	"a response": {
		path: Responses, request: `{"model":"m","input":"hi","tools":[{"type":"web_search"}]}`,
		answer: `{"object":"response","output":[{"type":"web_search_call"},{"type":"web_search_call"},{"type":"message","content":[{"type":"output_text","text":"hi"}]}],"usage":{"input_tokens":36,"input_tokens_details":{"cached_tokens":6},"output_tokens":87,"output_tokens_details":{"reasoning_tokens":64},"total_tokens":123}}`,
		want:   policy.Usage{InputTokens: 36, CachedInputTokens: 6, OutputTokens: 87, ReasoningTokens: 64, Searches: 2},
	},
	"a response in a stream": {
		path: Responses, request: `{"model":"m","input":"hi","stream":true,"tools":[{"type":"web_search"}]}`, answerType: sseType,
		answer: named("response.created", `{"type":"response.created","response":{"usage":null,"output":[]}}`,
			"response.output_item.done", `{"type":"response.output_item.done","item":{"type":"web_search_call","id":"ws"}}`,
			"response.output_text.delta", `{"type":"response.output_text.delta","delta":"hello"}`,
			"response.output_text.done", `{"type":"response.output_text.done","text":"hello"}`,
			"response.completed", `{"type":"response.completed","response":{"output":[{"type":"web_search_call"}],"usage":{"input_tokens":3,"output_tokens":4,"output_tokens_details":{"reasoning_tokens":1}}}}`),
		want: policy.Usage{InputTokens: 3, OutputTokens: 4, ReasoningTokens: 1, Searches: 1},
	},
	"a message": {
		path: Messages, request: `{"model":"m","max_tokens":9,"messages":[]}`,
		answer: `{"type":"message","content":[{"type":"text","text":"hi"}],"usage":{"input_tokens":10,"cache_creation_input_tokens":200,"cache_read_input_tokens":3000,"cache_creation":{"ephemeral_5m_input_tokens":150,"ephemeral_1h_input_tokens":50},"output_tokens":7,"server_tool_use":{"web_search_requests":2}}}`,
		want:   policy.Usage{InputTokens: 3210, CachedInputTokens: 3000, CacheWriteTokens: 200, CacheWriteOneHourTokens: 50, OutputTokens: 7, Searches: 2},
	},
	"a message in a stream": {
		path: Messages, request: `{"model":"m","max_tokens":9,"messages":[],"stream":true}`, answerType: sseType,
		answer: named("message_start", `{"type":"message_start","message":{"type":"message","content":[],"usage":{"input_tokens":25,"cache_creation_input_tokens":5,"cache_read_input_tokens":70,"output_tokens":1}}}`,
			"ping", `{"type":"ping"}`,
			"content_block_delta", `{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hello"}}`,
			"message_delta", `{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":15,"server_tool_use":{"web_search_requests":1}}}`,
			"message_stop", `{"type":"message_stop"}`),
		want: policy.Usage{InputTokens: 100, CachedInputTokens: 70, CacheWriteTokens: 5, OutputTokens: 15, Searches: 1},
	},
	"a message that breaks off": {
		path: Messages, request: `{"model":"m","max_tokens":9,"messages":[],"stream":true}`, answerType: sseType,
		answer: named("message_start", `{"type":"message_start","message":{"usage":{"input_tokens":25,"output_tokens":1}}}`,
			"content_block_delta", `{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hello there"}}`),
		want: policy.Usage{InputTokens: 25, OutputTokens: 4, Estimated: true}, incomplete: true,
	},
	"tokens of a message are counted for free": {
		path: CountTokens, request: `{"model":"m","messages":[]}`, answer: `{"input_tokens":2095}`,
	},
	"embeddings": {
		path: Embeddings, request: `{"model":"m","input":"hi"}`, answer: `{"data":[{"embedding":[0.1,0.2]}],"usage":{"prompt_tokens":8,"total_tokens":8}}`,
		want: policy.Usage{InputTokens: 8},
	},
	"images by number": {
		path: ImagesGenerations, request: `{"model":"m","prompt":"a key","n":2,"size":"1024x1024","quality":"hd"}`, answer: `{"created":1,"data":[{"url":"https://x/1"},{"url":"https://x/2"}]}`,
		want: policy.Usage{Images: 2, ImageSize: "1024x1024", ImageQuality: "hd"},
	},
	"images by tokens": {
		path: ImagesGenerations, request: `{"model":"m","prompt":"a key","size":"auto"}`,
		answer: `{"data":[{"b64_json":"` + strings.Repeat("QUJD", 50) + `"}],"size":"1536x1024","quality":"low","usage":{"input_tokens":50,"output_tokens":4160,"input_tokens_details":{"text_tokens":10,"image_tokens":40}}}`,
		want:   policy.Usage{InputTokens: 50, ImageInputTokens: 40, OutputTokens: 4160, Images: 1, ImageSize: "1536x1024", ImageQuality: "low"},
	},
	"an image in a stream": {
		path: ImagesGenerations, request: `{"model":"m","prompt":"a key","stream":true}`, answerType: sseType,
		answer: named("image_generation.partial_image", `{"type":"image_generation.partial_image","b64_json":"QUJD"}`,
			"image_generation.completed", `{"type":"image_generation.completed","b64_json":"`+strings.Repeat("QUJD", 5000)+`","usage":{"input_tokens":5,"output_tokens":272}}`),
		want: policy.Usage{InputTokens: 5, OutputTokens: 272, Images: 1},
	},
	"speech": {
		path: AudioSpeech, request: `{"model":"m","voice":"alloy","input":"Gr\u00fc\u00dfe 😀"}`, answerType: "audio/mpeg", answer: "\xff\xfb\x90\x00{\"usage\":",
		want: policy.Usage{Characters: 7},
	},
	"a transcription by tokens": {
		path: AudioTranscriptions, contentType: wavFormType, request: form("model", "m"),
		answer: `{"text":"hello","usage":{"type":"tokens","input_tokens":14,"input_token_details":{"text_tokens":0,"audio_tokens":14},"output_tokens":45,"total_tokens":59}}`,
		want:   policy.Usage{InputTokens: 14, AudioInputTokens: 14, OutputTokens: 45, AudioMilliseconds: 1000},
	},
	"a transcription by its length": {
		path: AudioTranscriptions, contentType: wavFormType, request: form("model", "m"), answer: `{"text":"hello","usage":{"type":"duration","seconds":12.3451}}`,
		want: policy.Usage{AudioMilliseconds: 12346},
	},
	"a transcription that tells its length beside": {
		path: AudioTranscriptions, contentType: wavFormType, request: form("model", "m"), answer: `{"task":"transcribe","duration":8.470000267028809,"text":"hello"}`,
		want: policy.Usage{AudioMilliseconds: 8471},
	},
	"a transcription in plain text": {
		path: AudioTranscriptions, contentType: wavFormType, request: form("model", "m"), answerType: "text/plain", answer: "hello",
		want: policy.Usage{AudioMilliseconds: 1000, Estimated: true},
	},
	"a search that chat completions do not count": {
		path: ChatCompletions, request: `{"model":"m","messages":[],"web_search_options":{}}`, answer: `{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1}}`,
		want: policy.Usage{InputTokens: 1, OutputTokens: 1, Searches: 1},
	},
}

const wavFormType = "multipart/form-data; boundary=b"

// form has a second of audio, and fields.
func form(fields ...string) string {
	wav := "RIFF\x00\x00\x00\x00WAVEfmt \x10\x00\x00\x00\x01\x00\x01\x00\x40\x1f\x00\x00\x80\x3e\x00\x00\x02\x00\x10\x00data\x80\x3e\x00\x00" + strings.Repeat("\x00", 16000)
	var b strings.Builder
	for i := 0; i < len(fields); i += 2 {
		fmt.Fprintf(&b, "--b\r\nContent-Disposition: form-data; name=\"%s\"\r\n\r\n%s\r\n", fields[i], fields[i+1])
	}
	fmt.Fprintf(&b, "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\r\n%s\r\n--b--\r\n", wav)
	return b.String()
}

// TestMeter has every answer metered in pieces of several sizes: the result and what the caller gets are the same.
func TestMeter(t *testing.T) {
	t.Parallel()
	for name, tc := range answers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if tc.contentType == "" {
				tc.contentType = mediaJSON
			}
			route, req := parsed(t, tc.path, tc.contentType, tc.request)
			head := AnswerHead{Status: max(tc.status, 0), ContentType: tc.answerType}
			if head.Status == 0 {
				head.Status = 200
			}
			if head.ContentType == "" {
				head.ContentType = mediaJSON
			}
			caller := tc.hidden
			if caller == "" {
				caller = tc.answer
			}
			for _, size := range []int{1, 2, 3, 7, 64, len(tc.answer)} {
				got, out := metered(t, route, req, head, tc.answer, size, false)
				if diff := cmp.Diff(tc.want, got.Usage); diff != "" {
					t.Errorf("in pieces of %d (-want +got):\n%s", size, diff)
				}
				if got.Complete == tc.incomplete {
					t.Errorf("in pieces of %d: complete is %v", size, got.Complete)
				}
				if diff := cmp.Diff(caller, out); diff != "" {
					t.Fatalf("in pieces of %d the caller gets (-want +got):\n%s", size, diff)
				}
			}
		})
	}
}

// TestMeterInTwoPieces cuts streams at every byte.
func TestMeterInTwoPieces(t *testing.T) {
	t.Parallel()
	route, req := parsed(t, ChatCompletions, mediaJSON, `{"model":"m","messages":[],"stream":true}`)
	answer, want := sse(chunkA, chunkB, chunkC, chunkEnd, "[DONE]"), sse(chunkA, chunkB, chunkC, "[DONE]")
	for at := range len(answer) {
		m := NewMeter(route, req, AnswerHead{Status: 200, ContentType: sseType})
		var out bytes.Buffer
		for i, piece := range []string{answer[:at], answer[at:]} {
			if changed, is := m.Write([]byte(piece), i == 1); is {
				out.Write(changed)
			} else {
				out.WriteString(piece)
			}
		}
		if got := m.Result(); out.String() != want || got.Usage != chatUsage || !got.Complete {
			t.Fatalf("cut at %d: %+v, %q", at, got, out.String())
		}
	}
}

// TestEventsAreNotHeldBack passes each event on as soon as it is whole.
func TestEventsAreNotHeldBack(t *testing.T) {
	t.Parallel()
	route, req := parsed(t, ChatCompletions, mediaJSON, `{"model":"m","messages":[],"stream":true}`)
	m := NewMeter(route, req, AnswerHead{Status: 200, ContentType: sseType})
	for _, event := range []string{chunkA, chunkB, chunkC} {
		if out, changed := m.Write([]byte(sse(event)), false); changed {
			t.Errorf("a whole event became %q", out)
		}
	}
	if out, changed := m.Write([]byte(sse(chunkEnd)), false); !changed || len(out) != 0 {
		t.Errorf("the usage became %q, %v", out, changed)
	}
	// An event that is too large for a usage is not held until its end.
	long := "data: {\"choices\":[{\"delta\":{\"content\":\"" + strings.Repeat("x", 2*maxHeld)
	if out, changed := m.Write([]byte(long), false); changed {
		t.Errorf("%d of %d bytes go on", len(out), len(long))
	}
	m.Result()
}

// TestCutOff never estimates less than a token for four bytes that were delivered, nor more than about twice as many.
func TestCutOff(t *testing.T) {
	t.Parallel()
	route, req := parsed(t, ChatCompletions, mediaJSON, `{"model":"m","messages":[{"role":"user","content":"hi"}],"stream":true}`)
	var events []string
	text := 0
	for i := range 300 {
		piece := []string{"word and ", "größe", "汉字汉字", "🙂🙂", "if (a) {"}[i%5]
		text += len(piece)
		events = append(events, fmt.Sprintf(`{"choices":[{"delta":{"content":%q}}]}`, piece))
		if i%50 != 49 {
			continue
		}
		got, _ := metered(t, route, req, AnswerHead{Status: 200, ContentType: sseType}, sse(events...), 100, true)
		least := int64(text+3) / 4
		if got.Complete || !got.Estimated || got.OutputTokens < least || got.OutputTokens > 2*least {
			t.Errorf("%d bytes in %d pieces: %+v", text, i, got)
		}
	}
}

func TestCompressedAnswers(t *testing.T) {
	t.Parallel()
	route, req := parsed(t, ChatCompletions, mediaJSON, `{"model":"m","messages":[],"stream":true}`)
	answer := sse(chunkA, chunkB, chunkC, chunkEnd, "[DONE]")
	for encoding, open := range map[string]func(io.Writer) io.WriteCloser{
		"gzip":    func(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) },
		"deflate": func(w io.Writer) io.WriteCloser { return zlib.NewWriter(w) },
		"br":      func(w io.Writer) io.WriteCloser { return brotli.NewWriter(w) },
		"zstd": func(w io.Writer) io.WriteCloser {
			z, err := zstd.NewWriter(w, zstd.WithEncoderConcurrency(1))
			if err != nil {
				t.Fatal(err)
			}
			return z
		},
	} {
		t.Run(encoding, func(t *testing.T) {
			t.Parallel()
			var packed bytes.Buffer
			w := open(&packed)
			if _, err := io.WriteString(w, answer); err != nil {
				t.Fatal(err)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			head := AnswerHead{Status: 200, ContentType: sseType, ContentEncoding: encoding}
			for _, size := range []int{1, 10, packed.Len()} {
				got, out := metered(t, route, req, head, packed.String(), size, false)
				if got.Usage != chatUsage || !got.Complete || out != packed.String() {
					t.Errorf("in pieces of %d: %+v, %d of %d bytes", size, got, len(out), packed.Len())
				}
			}
			// One that breaks off, or is none, is estimated, and passes as it is.
			for name, broken := range map[string]string{"broken off": packed.String()[:packed.Len()/2], "garbage": "not compressed at all, but long enough to be read"} {
				got, out := metered(t, route, req, head, broken, 5, name == "broken off")
				if !got.Estimated || out != broken {
					t.Errorf("%s: %+v, %q", name, got, out)
				}
			}
		})
	}
	got, out := metered(t, route, req, AnswerHead{Status: 200, ContentType: sseType, ContentEncoding: "unheard-of"}, answer, 9, false)
	if !got.Estimated || out != answer {
		t.Errorf("an unknown encoding: %+v, %q", got, out)
	}
}

func TestAnswersNameTheirModel(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		path, answerType, answer string
		want                     string
		text                     bool // of a stream
	}{
		"an answer in one piece":             {path: ChatCompletions, answer: `{"id":"x","model":"gpt-1","choices":[{"message":{"content":"hi","model":"no"}}]}`, want: "gpt-1"},
		"a stream, by its first chunk":       {path: ChatCompletions, answerType: sseType, answer: sse(`{"model":"gpt-1","choices":[{"delta":{"content":"a"}}]}`, `{"model":"gpt-2"}`), want: "gpt-1", text: true},
		"a stream without text":              {path: ChatCompletions, answerType: sseType, answer: sse(chunkA, `{"model":"gpt-2"}`), want: "gpt-2"},
		"events of responses":                {path: Responses, answerType: sseType, answer: sse(`{"type":"response.created","response":{"model":"gpt-1"}}`, `{"type":"response.output_text.delta","delta":"a"}`), want: "gpt-1", text: true},
		"events of messages":                 {path: Messages, answerType: sseType, answer: sse(`{"type":"message_start","message":{"model":"claude-1"}}`, `{"type":"ping"}`), want: "claude-1"},
		"text of messages":                   {path: Messages, answerType: sseType, answer: sse(`{"type":"message_start","message":{"model":"claude-1"}}`, `{"type":"content_block_delta","delta":{"type":"text_delta","text":"a"}}`), want: "claude-1", text: true},
		"reasoning of messages":              {path: Messages, answerType: sseType, answer: sse(`{"type":"content_block_delta","delta":{"type":"thinking_delta","thinking":"a"}}`), text: true},
		"a tool called model":                {path: ChatCompletions, answer: `{"choices":[{"message":{"tool_calls":[{"function":{"model":"x"}}]}}]}`},
		"a model that is no name":            {path: ChatCompletions, answer: `{"model":"two words"}`},
		"a model with an escaped slash":      {path: ChatCompletions, answer: `{"model":"org\/gpt"}`, want: "org/gpt"},
		"a model that is a number":           {path: ChatCompletions, answer: `{"model":5}`},
		"an empty model":                     {path: ChatCompletions, answer: `{"model":""}`},
		"a model of as many bytes as can be": {path: ChatCompletions, answer: `{"model":"` + strings.Repeat("m", maxShort) + `"}`, want: strings.Repeat("m", maxShort)},
		"a model that is too long":           {path: ChatCompletions, answer: `{"model":"` + strings.Repeat("m", maxShort+1) + `"}`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			route, req := parsed(t, tc.path, mediaJSON, `{"model":"m","messages":[],"max_tokens":1}`)
			for size := 1; size <= len(tc.answer); size += 7 {
				head := AnswerHead{Status: 200, ContentType: mediaJSON}
				if tc.answerType != "" {
					head.ContentType = tc.answerType
				}
				m := NewMeter(route, req, head)
				for piece := range slices.Chunk([]byte(tc.answer), size) {
					m.Write(piece, false)
				}
				m.Write(nil, true)
				m.Result()
				if got := string(m.Model()); got != tc.want || m.TextBegan() != tc.text {
					t.Errorf("in pieces of %d: model %q, text %v", size, got, m.TextBegan())
				}
			}
		})
	}
}

func TestAsksForUsage(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ path, body, want string }{
		"no options":              {ChatCompletions, `{"model":"m","stream":true}`, `{"model":"up","stream_options":{"include_usage":true},"stream":true}`},
		"the model last":          {Completions, ` { "stream" : true , "model" : "m" } `, ` { "stream" : true , "model" : "up","stream_options":{"include_usage":true} } `},
		"null":                    {ChatCompletions, `{"stream_options":null,"model":"m","stream":true}`, `{"stream_options":{"include_usage":true},"model":"up","stream":true}`},
		"an empty object":         {ChatCompletions, `{"model":"m","stream":true,"stream_options": { }}`, `{"model":"up","stream":true,"stream_options": {"include_usage":true }}`},
		"other options":           {ChatCompletions, `{"model":"m","stream":true,"stream_options":{"x":[1]}}`, `{"model":"up","stream":true,"stream_options":{"include_usage":true,"x":[1]}}`},
		"switched off":            {ChatCompletions, `{"model":"m","stream":true,"stream_options":{"include_usage" : false,"x":1}}`, `{"model":"up","stream":true,"stream_options":{"include_usage":true,"x":1}}`},
		"asked for by the caller": {ChatCompletions, `{"model":"m","stream":true,"stream_options":{"include_usage":true}}`, `{"model":"up","stream":true,"stream_options":{"include_usage":true}}`},
		"no stream":               {ChatCompletions, `{"model":"m"}`, `{"model":"up"}`},
		"another endpoint":        {Responses, `{"model":"m","stream":true}`, `{"model":"up","stream":true}`},
		"options that are none":   {ChatCompletions, `{"model":"m","stream":true,"stream_options":7}`, `{"model":"up","stream":true,"stream_options":7}`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, req := parsed(t, tc.path, mediaJSON, tc.body)
			got, _, err := req.Forwarded([]byte(tc.body), "up")
			if err != nil || string(got) != tc.want {
				t.Errorf("got %s, %v", got, err)
			}
			if _, again := parsed(t, tc.path, mediaJSON, string(got)); req.AsksForUsage() && !again.IncludeUsage {
				t.Error("the provider is not asked")
			}
		})
	}
}

func TestWhatRequestsHold(t *testing.T) {
	t.Parallel()
	image := "data:image/png;base64," + strings.Repeat("QUJD", 1000)
	for name, tc := range map[string]struct {
		path, body   string
		likely, most int64
		bounded      bool
		count        int64
	}{
		"text":               {ChatCompletions, `{"model":"m","n":3,"messages":[{"role":"user","content":"abcdefgh"}]}`, 5, 133, true, 3},
		"an image inside":    {ChatCompletions, `{"model":"m","messages":[{"content":[{"type":"image_url","image_url":{"url":"` + image + `"}}]}]}`, 86, 0, true, 1},
		"an image elsewhere": {ChatCompletions, `{"model":"m","messages":[{"content":[{"type":"image_url","image_url":{"url":"https://x/y.png"}}]}]}`, 86, 0, false, 1},
		"an earlier answer":  {Responses, `{"model":"m","input":"hi","previous_response_id":"resp_1"}`, 3, 0, false, 1},
		"no earlier answer":  {Responses, `{"model":"m","input":"hi","previous_response_id":null}`, 1, 0, true, 1},
		"a stored prompt":    {Responses, `{"model":"m","prompt":{"id":"p"}}`, 1, 0, false, 1},
		"best of several":    {Completions, `{"model":"m","prompt":"hi","best_of":4,"n":2}`, 1, 0, true, 4},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, req := parsed(t, tc.path, mediaJSON, tc.body)
			most, bounded := req.MostInputTokens()
			if likely := req.LikelyInputTokens(); likely != tc.likely || bounded != tc.bounded || req.OutputCount() != tc.count ||
				(tc.most > 0 && most != tc.most) || most < likely {
				t.Errorf("likely %d, most %d, bounded %v, %d answers", likely, most, bounded, req.OutputCount())
			}
		})
	}
}

func TestMilliseconds(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int64{"0": 0, "1": 1000, "1.5": 1500, "0.0001": 1, "12.345": 12345, "12.3450": 12345, "12.3451": 12346, "8.470000267028809": 8471} {
		if got, ok := milliseconds(text); !ok || got != want {
			t.Errorf("%s: %d, %v", text, got, ok)
		}
	}
	for _, text := range []string{"", "-1", "1e3", "1.x", "x", "1.2.3", strings.Repeat("9", 20)} {
		if got, ok := milliseconds(text); ok {
			t.Errorf("%q: %d", text, got)
		}
	}
}

// FuzzMeter never panics, keeps to its bounds, says the same in whatever pieces, and changes nothing but what is to be hidden.
func FuzzMeter(f *testing.F) {
	for _, a := range answers {
		f.Add(a.answer, a.answerType == sseType, a.hidden != "", uint8(3))
	}
	f.Fuzz(func(t *testing.T, answer string, stream, hide bool, size uint8) {
		body := `{"model":"m","messages":[],"stream":true,"stream_options":{"include_usage":true}}`
		if hide {
			body = `{"model":"m","messages":[],"stream":true}`
		}
		route, req := parsed(t, ChatCompletions, mediaJSON, body)
		head := AnswerHead{Status: 200, ContentType: mediaJSON}
		if stream {
			head.ContentType = sseType
		}
		whole, out := metered(t, route, req, head, answer, len(answer)+1, false)
		pieces, again := metered(t, route, req, head, answer, int(size)+1, false)
		if whole != pieces || out != again && len(answer) < maxHeld {
			t.Errorf("whole %+v %q, in pieces %+v %q", whole, out, pieces, again)
		}
		if (!hide || !stream) && out != answer {
			t.Errorf("changed %q into %q", answer, out)
		}
		for _, n := range []int64{whole.InputTokens, whole.OutputTokens, whole.CachedInputTokens, whole.Searches, whole.AudioMilliseconds} {
			if n < 0 || n > 3*mostTokens {
				t.Errorf("usage %+v", whole)
			}
		}
	})
}

func FuzzUsage(f *testing.F) {
	f.Add([]byte(`{"prompt_tokens":1,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":1}}`))
	f.Add([]byte(`{"input_tokens":1e9,"output_tokens":null,"cache_creation":{"ephemeral_1h_input_tokens":3}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		told, err := parseUsage(raw)
		if err != nil {
			return
		}
		for _, d := range []Dialect{OpenAI, Anthropic} {
			var u policy.Usage
			told.fill(&u, told, d)
			for _, n := range []int64{u.InputTokens, u.OutputTokens, u.CachedInputTokens, u.CacheWriteTokens, u.AudioMilliseconds} {
				if n < 0 {
					t.Errorf("%s gives %+v", raw, u)
				}
			}
		}
	})
}

func BenchmarkMeterStream(b *testing.B) {
	for name, body := range map[string]string{
		"asked":  `{"model":"m","messages":[],"stream":true,"stream_options":{"include_usage":true}}`,
		"hiding": `{"model":"m","messages":[],"stream":true}`,
	} {
		b.Run(name, func(b *testing.B) {
			route, req := parsed(b, ChatCompletions, mediaJSON, body)
			m := NewMeter(route, req, AnswerHead{Status: 200, ContentType: sseType})
			piece := []byte(sse(chunkB))
			b.SetBytes(int64(len(piece)))
			b.ReportAllocs()
			for b.Loop() {
				m.Write(piece, false)
			}
			m.Result()
		})
	}
}

func BenchmarkMeterJSON(b *testing.B) {
	route, req := parsed(b, Embeddings, mediaJSON, `{"model":"m","input":"x"}`)
	answer := []byte(`{"data":[{"embedding":"` + strings.Repeat("QUJDREVG", 8000) + `"}],"usage":{"prompt_tokens":8}}`)
	b.SetBytes(int64(len(answer)))
	b.ReportAllocs()
	for b.Loop() {
		m := NewMeter(route, req, AnswerHead{Status: 200, ContentType: mediaJSON})
		m.Write(answer, true)
		m.Result()
	}
}
