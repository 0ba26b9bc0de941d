package llm

import (
	"bytes"
	"encoding/binary"
	"math"
)

// contents is what a request's body holds, as far as it tells what the request can use.
type contents struct {
	text     textCount
	media    int64 // images, files and audio
	bytes    int64 // of those that are in the body, as they stand there
	external bool  // it refers to what is outside of it
	input    int64 // characters of the text to speak
	size     string
	quality  string
	bestOf   int64
}

// inspector gathers contents from a JSON body that is known to be sound.
type inspector struct {
	skim skimmer
	contents
}

// inspectJSON looks through a body.
func inspectJSON(body []byte) contents {
	i := &inspector{}
	i.skim.visitor = i
	i.skim.write(body)
	return i.contents
}

// begins implements skimVisitor.
func (i *inspector) begins(s *skimmer, first byte) (keep bool) {
	switch s.key(s.depth - 1) {
	case "previous_response_id", "conversation", "file_id", "container":
		i.external = i.external || first != 'n'
	case "prompt": // of a stored prompt, where it is no text
		i.external = i.external || s.depth == 1 && first == '{'
	case "best_of":
		return s.depth == 1
	}
	return false
}

// captured implements skimVisitor.
func (i *inspector) captured(_ *skimmer, raw []byte, whole bool) {
	if n, ok := wholeNumber(string(bytes.TrimSpace(raw))); ok && whole {
		i.bestOf = n
	}
}

// ended implements skimVisitor.
func (i *inspector) ended(s *skimmer, short []byte, cut bool, count textCount) {
	key := s.key(s.depth - 1)
	switch key {
	case "type":
		i.typed(string(short))
		return
	case "data", "b64_json", "file_data":
		i.bytes += count.ascii + count.other
		return
	case "url", "image_url", "file_url":
		if bytes.HasPrefix(short, []byte("http")) {
			i.external = true
			return
		}
	case "input":
		if s.depth == 1 {
			i.input = count.runes
		}
	case "size", "quality":
		if s.depth == 1 && !cut && string(short) != "auto" {
			if key == "size" {
				i.size = string(short)
			} else {
				i.quality = string(short)
			}
		}
	}
	if bytes.HasPrefix(short, []byte("data:")) {
		i.bytes += count.ascii + count.other
		return
	}
	i.text.add(count)
}

// typed looks at the type of a part or of a tool.
func (i *inspector) typed(kind string) {
	switch kind {
	case "image_url", "input_image", "image", "input_file", "file", "document", "input_audio":
		i.media++
	case "mcp", "file_search", "code_interpreter", "computer_use_preview", "web_search_preview":
		i.external = true
	}
}

// closed implements skimVisitor.
func (i *inspector) closed(*skimmer, int, bool) {}

// inspectForm looks through a form.
func inspectForm(form []part) contents {
	var c contents
	for i := range form {
		p := &form[i]
		switch {
		case p.file:
			c.media++
			c.bytes += int64(len(p.content))
		case p.name == "size" && string(p.content) != "auto":
			c.size = clip(string(p.content), maxShort)
		case p.name == "quality" && string(p.content) != "auto":
			c.quality = clip(string(p.content), maxShort)
		case p.name != fieldModel:
			for _, b := range p.content {
				if b < 0x80 {
					c.text.ascii++
				} else {
					c.text.other++
				}
			}
		}
	}
	return c
}

const (
	// tokensOfMedia is what an image or a file is thought to have: the least that OpenAI's models count for an image.
	tokensOfMedia = 85
	// mostTokensOfMedia is above what an image can have: 1,536 patches by OpenAI's models, and about 1,600 tokens by Anthropic's
	// (platform.openai.com/docs/guides/images-vision, docs.anthropic.com/en/docs/build-with-claude/vision).
	mostTokensOfMedia = 2_000
	// tokensOfForm is room for what a chat's template puts around its messages, beside their JSON, which is longer than it.
	tokensOfForm = 64
	// bytesOfAudioSecond is what a second of compressed speech is thought to have, at 32 kbit/s.
	bytesOfAudioSecond = 4_000
)

// OutputCount is how many answers or images are asked for.
func (r *Request) OutputCount() int64 { return max(1, r.N, r.bestOf) }

// LikelyInputTokens estimates the tokens of the request.
func (r *Request) LikelyInputTokens() int64 {
	return r.text.tokens() + r.media*tokensOfMedia
}

// MostInputTokens is what the request's tokens cannot pass, since each has at least one byte. bounded is false where it refers to what is
// outside of it.
func (r *Request) MostInputTokens() (most int64, bounded bool) {
	most = int64(r.bodyBytes) - r.MediaBytes + r.media*mostTokensOfMedia + tokensOfForm
	if r.form == nil && r.MediaBytes > 0 {
		// Files can hold text, of which a base64 byte is three quarters.
		most += r.MediaBytes
	}
	return max(most, 0), !r.external
}

// LikelyAudioMilliseconds estimates how long the audio of the request is: by the header of a WAV file, otherwise by its size.
func (r *Request) LikelyAudioMilliseconds() int64 {
	if r.AudioMilliseconds > 0 {
		return r.AudioMilliseconds
	}
	return r.MediaBytes * 1000 / bytesOfAudioSecond
}

// wavMilliseconds is how long a WAV file plays, rounded up; 0: it is none. It believes the file's size, not what its header claims.
func wavMilliseconds(file []byte) int64 {
	if len(file) < 44 || string(file[:4]) != "RIFF" || string(file[8:12]) != "WAVE" {
		return 0
	}
	rate := uint32(0)
	for at := 12; at+8 <= len(file); {
		size := int(binary.LittleEndian.Uint32(file[at+4:]))
		data := file[at+8:]
		switch string(file[at : at+4]) {
		case "fmt ":
			if len(data) >= 12 {
				rate = binary.LittleEndian.Uint32(data[8:])
			}
		case "data":
			if rate == 0 {
				return 0
			}
			return int64(math.Ceil(float64(len(data)) * 1000 / float64(rate)))
		}
		if size > len(data) {
			return 0
		}
		at += 8 + size + size%2
	}
	return 0
}
