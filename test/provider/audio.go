package provider

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strings"
	"unicode/utf8"
)

const (
	audioBytesPerSecond  = 16_000
	audioTokensPerSecond = 10
	speechChunks         = 4
	// speechBytesPerRune is how much audio a character of the input makes.
	speechBytesPerRune = 100
)

// speechTypes are the media types of the formats of audio/speech.
func speechTypes() map[string]string {
	return map[string]string{
		"mp3": "audio/mpeg", "opus": "audio/opus", "aac": "audio/aac", "flac": "audio/flac", "wav": "audio/wav", "pcm": "audio/pcm",
	}
}

func serveSpeech(x *exchange) error {
	f, err := x.fields()
	if err != nil {
		return err
	}
	var model, text, voice, instructions string
	format, stream := "mp3", "audio"
	targets := map[string]any{
		"model": &model, "input": &text, "instructions": &instructions, "response_format": &format, "stream_format": &stream,
	}
	if !bytes.HasPrefix(f["voice"], []byte("{")) { // a custom voice is an object
		targets["voice"] = &voice
	}
	if err := f.getAll(targets); err != nil {
		return err
	}
	contentType, ok := speechTypes()[format]
	switch {
	case text == "":
		return badRequest("input", "Missing required parameter: 'input'.")
	case isNull(f["voice"]):
		return badRequest("voice", "Missing required parameter: 'voice'.")
	case !ok:
		return badRequest("response_format", "Invalid 'response_format': '%s'.", format)
	case stream != "audio" && stream != "sse":
		return badRequest("stream_format", "Invalid 'stream_format': '%s'.", stream)
	}
	if err := x.begin(model, text); err != nil {
		return err
	}
	audio := speechAudio(format, utf8.RuneCountInString(text)*speechBytesPerRune)
	usage := Usage{
		InputTokens: countTokens(text) + countTokens(instructions), OutputTokens: len(audio)*audioTokensPerSecond/audioBytesPerSecond + 1,
		Characters: utf8.RuneCountInString(text),
	}
	if x.d.inputTokens != unset {
		usage.InputTokens = x.d.inputTokens
	}
	if x.d.outputTokens != unset {
		usage.OutputTokens = x.d.outputTokens
	}
	x.consume(func(u *Usage) { u.InputTokens, u.Characters = usage.InputTokens, usage.Characters })
	pieces := cutBytes(audio, cmp.Or(x.d.chunks, speechChunks))
	if stream == "sse" {
		return x.streamSpeech(pieces, usage)
	}
	x.head(http.StatusOK, contentType, unset)
	for _, piece := range pieces {
		if err := x.content(0, func() error { return x.send(piece) }); err != nil {
			return failBinary(err)
		}
	}
	x.consume(func(u *Usage) { *u = usage })
	return failBinary(x.afterContent())
}

// failBinary breaks audio where an error event is asked for, since bytes have none.
func failBinary(err error) error {
	if errors.Is(err, errFailStream) {
		return errBroken
	}
	return err
}

func (x *exchange) streamSpeech(pieces [][]byte, usage Usage) error {
	if err := x.openStream(); err != nil {
		return err
	}
	for _, piece := range pieces {
		data := object{"type": "speech.audio.delta", "audio": base64.StdEncoding.EncodeToString(piece)}
		if err := x.chunk(0, "", data); err != nil {
			return x.failOpenAI(err)
		}
	}
	if err := x.afterContent(); err != nil {
		return x.failOpenAI(err)
	}
	x.consume(func(u *Usage) { *u = usage })
	done := object{"type": "speech.audio.done"}
	x.putUsage(done, object{
		"input_tokens": usage.InputTokens, "output_tokens": usage.OutputTokens, "total_tokens": usage.InputTokens + usage.OutputTokens,
	})
	if err := x.event("", done); err != nil {
		return err
	}
	x.report(&usage)
	return nil
}

// speechAudio is silence of about size bytes: whole and playable for wav, pcm and mp3, and otherwise the format's mark before filler.
func speechAudio(format string, size int) []byte {
	switch format {
	case "wav":
		return wavSilence(size)
	case "mp3":
		// One MPEG-1 layer III frame at 128 kbit/s and 44.1 kHz, 417 bytes, over and over.
		const frameSize = 417
		frame := make([]byte, frameSize)
		copy(frame, []byte{0xff, 0xfb, 0x90, 0x64})
		return bytes.Repeat(frame, size/frameSize+1)
	case "opus":
		return append([]byte("OggS"), make([]byte, size)...)
	case "flac":
		return append([]byte("fLaC"), make([]byte, size)...)
	case "aac":
		return append([]byte{0xff, 0xf1}, make([]byte, size)...)
	default:
		return make([]byte, size)
	}
}

// wavSilence is a WAV file of 16-bit mono at 24 kHz with size bytes of silence.
func wavSilence(size int) []byte {
	const rate, width = 24_000, 2
	b := []byte("RIFF")
	b = binary.LittleEndian.AppendUint32(b, uint32(36+size))
	b = append(b, "WAVEfmt "...)
	b = binary.LittleEndian.AppendUint32(b, 16)
	b = binary.LittleEndian.AppendUint16(b, 1)
	b = binary.LittleEndian.AppendUint16(b, 1)
	b = binary.LittleEndian.AppendUint32(b, rate)
	b = binary.LittleEndian.AppendUint32(b, rate*width)
	b = binary.LittleEndian.AppendUint16(b, width)
	b = binary.LittleEndian.AppendUint16(b, 8*width)
	b = append(b, "data"...)
	b = binary.LittleEndian.AppendUint32(b, uint32(size))
	return append(b, make([]byte, size)...)
}

// audioSeconds is how long an uploaded file plays: by the byte rate in a WAV header, otherwise by its size.
func audioSeconds(data []byte) float64 {
	const header = 44
	if len(data) > header && bytes.HasPrefix(data, []byte("RIFF")) && string(data[8:16]) == "WAVEfmt " {
		if rate := binary.LittleEndian.Uint32(data[28:32]); rate > 0 {
			return float64(len(data)-header) / float64(rate)
		}
	}
	return math.Ceil(float64(len(data)) / audioBytesPerSecond)
}

// cutBytes cuts b into n pieces of about the same size, fewer if it has fewer bytes.
func cutBytes(b []byte, n int) [][]byte {
	n = min(n, len(b))
	pieces := make([][]byte, 0, n)
	for i := range n {
		pieces = append(pieces, b[i*len(b)/n:(i+1)*len(b)/n])
	}
	return pieces
}

func serveTranscriptions(x *exchange) error { return x.serveTranscript("transcribe") }

func serveTranslations(x *exchange) error { return x.serveTranscript("translate") }

// serveTranscript answers audio/transcriptions and audio/translations, which differ in their task.
func (x *exchange) serveTranscript(task string) error {
	f, err := x.form()
	if err != nil {
		return err
	}
	files := f.files["file"]
	if len(files) == 0 || len(files[0].data) == 0 {
		return badRequest("file", "Missing required parameter: 'file'.")
	}
	if err := x.begin(f.values["model"], f.values["prompt"]); err != nil {
		return err
	}
	text := x.replyText(prompt{})
	seconds := audioSeconds(files[0].data)
	audioTokens := int(math.Ceil(seconds * audioTokensPerSecond))
	textTokens := countTokens(f.values["prompt"])
	usage := Usage{InputTokens: audioTokens + textTokens, OutputTokens: countTokens(text), AudioSeconds: seconds}
	if x.d.inputTokens != unset {
		usage.InputTokens = x.d.inputTokens
		textTokens = min(textTokens, usage.InputTokens)
	}
	if x.d.outputTokens != unset {
		usage.OutputTokens = x.d.outputTokens
	}
	whisper := strings.HasPrefix(f.values["model"], "whisper")
	report := object{"type": "duration", "seconds": int(math.Ceil(seconds))}
	if whisper {
		usage = Usage{AudioSeconds: seconds}
	} else {
		report = object{
			"type": "tokens", "input_tokens": usage.InputTokens, "output_tokens": usage.OutputTokens, "total_tokens": usage.InputTokens + usage.OutputTokens,
			"input_token_details": object{"text_tokens": textTokens, "audio_tokens": usage.InputTokens - textTokens},
		}
	}
	if f.values["stream"] == "true" && !whisper && task == "transcribe" {
		x.consume(func(u *Usage) { u.InputTokens, u.AudioSeconds = usage.InputTokens, usage.AudioSeconds })
		return x.streamTranscript(text, report, usage)
	}
	x.consume(func(u *Usage) { *u = usage })
	return x.answerTranscript(f.values["response_format"], task, text, seconds, report, usage)
}

func (x *exchange) answerTranscript(format, task, text string, seconds float64, report object, usage Usage) error {
	switch format {
	case "", "json":
		document := object{"text": text}
		if task == "translate" {
			return x.answerJSON(document, nil)
		}
		x.putUsage(document, report)
		return x.answerJSON(document, &usage)
	case "text":
		return x.answer("text/plain; charset=utf-8", []byte(text+"\n"), nil)
	case "srt":
		return x.answer("text/plain; charset=utf-8", fmt.Appendf(nil, "1\n00:00:00,000 --> %s\n%s\n\n", timestamp(seconds, ","), text), nil)
	case "vtt":
		return x.answer("text/plain; charset=utf-8", fmt.Appendf(nil, "WEBVTT\n\n00:00:00.000 --> %s\n%s\n\n", timestamp(seconds, "."), text), nil)
	case "verbose_json":
		document := object{"task": task, "language": "english", "duration": seconds, "text": text, "segments": []any{object{
			"id": 0, "seek": 0, "start": 0, "end": seconds, "text": text, "tokens": []any{50364}, "temperature": 0,
			"avg_logprob": -0.1, "compression_ratio": 1.2, "no_speech_prob": 0.01,
		}}}
		if task == "translate" {
			return x.answerJSON(document, nil)
		}
		x.putUsage(document, report)
		return x.answerJSON(document, &usage)
	default:
		return badRequest("response_format", "Invalid 'response_format': '%s'.", format)
	}
}

// timestamp writes seconds as subtitles do, with the given mark before the milliseconds.
func timestamp(seconds float64, mark string) string {
	ms := int(seconds * 1000)
	return fmt.Sprintf("%02d:%02d:%02d%s%03d", ms/3_600_000, ms/60_000%60, ms/1000%60, mark, ms%1000)
}

func (x *exchange) streamTranscript(text string, report object, usage Usage) error {
	if err := x.openStream(); err != nil {
		return err
	}
	n := x.d.chunks
	if x.d.reply == nil {
		n = 0
	}
	for _, piece := range splitText(text, n) {
		if err := x.chunk(countTokens(piece), "", object{"type": "transcript.text.delta", "delta": piece}); err != nil {
			return x.failOpenAI(err)
		}
	}
	if err := x.afterContent(); err != nil {
		return x.failOpenAI(err)
	}
	x.consume(func(u *Usage) { *u = usage })
	done := object{"type": "transcript.text.done", "text": text}
	x.putUsage(done, report)
	if err := x.event("", done); err != nil {
		return err
	}
	x.report(&usage)
	return nil
}
