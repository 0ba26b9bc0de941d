// Package provider is a simulated LLM provider: an HTTP server that answers like the public OpenAI and Anthropic APIs, closely enough that
// their official SDKs work against it unmodified, without a model behind it.
//
// Input: HTTP requests of those APIs. Output: their JSON documents, SSE streams and audio bytes, and a [Record] of every request for tests to read.
// The package starts no goroutines: all work is done in the goroutine of the HTTP request. Whoever serves the [Server] owns those, and calls
// [Server.Close] so that held and delayed requests end.
//
// # Endpoints
//
// Every path is Config.Prefix + Config.Base + the endpoint; Base is "/v1" unless set.
//
//	POST chat/completions, completions, responses     JSON and SSE
//	POST embeddings, moderations                      JSON
//	POST images/generations                           JSON and SSE
//	POST images/edits                                 multipart or JSON; JSON and SSE
//	POST images/variations                            multipart
//	POST audio/speech                                 audio bytes, or SSE with stream_format=sse
//	POST audio/transcriptions, audio/translations     multipart; json, text, srt, vtt, verbose_json; transcriptions also SSE
//	POST messages, messages/count_tokens              Anthropic's
//	GET  models, models/{id}                          OpenAI's, or Anthropic's where the request carries anthropic-version
//
// The credential is a bearer token for OpenAI's API, and x-api-key, with anthropic-version beside it, for Anthropic's; no other header is looked at.
//
// # Directives
//
// A request chooses what happens to it by words in its text, since a gateway in between may drop headers. They are looked for in the last user text of a
// conversation, the last prompt or input, the prompt field of images and transcriptions, and the user field of image variations.
// A directive is a word of its own, set off by white space. An unknown one, or one with a wrong value, gets 400, so that a mistyped test fails.
// A "content chunk" is an SSE event that carries part of the answer (text, arguments, image or audio), or one write of audio bytes; events that only
// frame the answer are not counted.
//
//	sim:status=N          answer with the error N (400–599) in the API's own shape
//	sim:retry-after=N     seconds in retry-after of such an error; 429 has 1 unless set
//	sim:delay=D           wait D (a Go duration, at most 10m) before the first byte
//	sim:abort             close the connection without an answer
//	sim:reply=TEXT        the answer's text: the rest of the line
//	sim:echo-headers      the answer's text is the request's headers, one "name: value" a line, sorted, names in lower case;
//	                      the configured credential is shown as [provider credential]
//	sim:chunks=N          N content chunks (1–100000) of text or audio; the text is N words unless sim:reply gives one, which has at most a chunk for each rune
//	sim:chunk-delay=D     wait D before each content chunk
//	sim:break-after=N     break the connection after N content chunks, if there are as many; an answer that is no stream breaks in its middle
//	sim:error-after=N     after N content chunks the SSE stream ends with the API's own error event; audio bytes break
//	sim:hold, sim:hold=X  hold the stream after its first content chunk until Release is called with the record's id or with X;
//	                      an answer that is no stream is held before its first byte
//	sim:split             write each SSE event in pieces that end inside a line and inside a UTF-8 character
//	sim:gzip              gzip the answer, stream or not, if the request accepts it
//	sim:no-usage          leave out the usage
//	sim:bad-usage=KIND    usage in which every number is spoiled: negative (also without =KIND), text or huge
//	sim:input-tokens=N    count N input tokens
//	sim:output-tokens=N   count N output tokens, still cut by the request's maximum
//	sim:cached=N          N of the input tokens were read from the cache
//	sim:cache-write=N     N of the input tokens were written to the cache
//	sim:reasoning=N       N reasoning tokens, part of the output tokens
//	sim:searches=N        make N web searches (0–10) if the request allows any; 1 unless set
//	sim:no-tools          answer with text although there are tools
//	sim:flag              the moderation flags the input
//
// # What it answers
//
// Text: the reply asked for; JSON that fits the schema when the request asks for structured output; otherwise one fixed sentence with characters of two
// and three bytes. A function tool is called when the request has one, tool_choice is not none, the conversation does not end with a tool's
// result and no directive asks for text; tool_choice can force it. Its arguments are the smallest that fit its schema. A web search is made when the
// request has a web search tool or web_search_options. The answer is cut at the request's maximum of output tokens, with the reason the API has for that.
//
// # Counting
//
// A text of n bytes has ceil(n/4) tokens. Input tokens are the sum over all texts of the request (messages, instructions, tool definitions as sent, tool
// results) plus 85 for each image or file. Output tokens are those of the text, or of the called function's name and arguments, plus reasoning tokens.
// OpenAI's input count includes cached tokens, Anthropic's input_tokens does not, as in the real APIs.
// Images cost output tokens by size and quality (see imageTokens). Audio has as many seconds as its WAV header says, otherwise its bytes / 16000 rounded up, 10 tokens a second.
// Models named whisper* report a duration instead of tokens, and models named dall-e* report nothing.
package provider
