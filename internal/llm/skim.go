package llm

import "unicode/utf8"

// skimmer reads JSON as it passes, in pieces that can end anywhere, and keeps nothing but what it is asked to. It does not check the JSON:
// what is malformed is skimmed as far as it goes. Its memory is bounded.
type skimmer struct {
	visitor skimVisitor

	depth   int // of containers that are open
	stack   [maxSkimDepth]skimFrame
	string  bool // inside a string
	escape  bool // behind a backslash
	unicode int  // hex digits that are missing
	code    rune
	high    rune // the first half of a surrogate pair
	isKey   bool // the string is a key
	scalar  bool // inside a number or a literal
	short   []byte
	cut     bool // short does not hold the whole string
	text    textCount
	keep    int // the depth below which all is captured; 0: nothing is
	kept    []byte
	toolong bool
	ended   bool // the outermost value has ended
	started bool
}

const (
	// maxSkimDepth is the depth down to which keys are known.
	maxSkimDepth = 12
	// maxShort is the longest string that a visitor is shown.
	maxShort = 128
	// maxKept is the largest value that is captured.
	maxKept = 64 << 10
)

// skimFrame is an open container.
type skimFrame struct {
	array bool
	key   string // of the value at hand, if it is one of those that are known; in an object
	count int    // elements so far; in an array
}

// textCount counts a text's bytes, as UTF-8.
type textCount struct{ ascii, other, runes int64 }

func (c *textCount) add(d textCount) {
	c.ascii, c.other, c.runes = c.ascii+d.ascii, c.other+d.other, c.runes+d.runes
}

// tokens estimates how many tokens a text has: three bytes of ASCII, or two of anything else, are thought to be one. That is more than
// today's tokenizers take for prose and code, and at most about twice as many.
func (c textCount) tokens() int64 { return (c.ascii*2 + c.other*3 + 5) / 6 }

// skimVisitor is told what a skimmer finds. Paths are read with skimmer.key.
type skimVisitor interface {
	// value begins: a container, a string, or a scalar. keep asks for all of it to be captured.
	begins(s *skimmer, first byte) (keep bool)
	// ended is a string value that has ended; short is its beginning, whole unless cut.
	ended(s *skimmer, short []byte, cut bool, count textCount)
	// captured is a value that was to be kept. whole is false where it was too large.
	captured(s *skimmer, raw []byte, whole bool)
	// closed is a container that has ended; it is not on the path any more.
	closed(s *skimmer, elements int, array bool)
}

// reset makes it ready for another document.
func (s *skimmer) reset() {
	short, kept, visitor := s.short[:0], s.kept[:0], s.visitor
	*s = skimmer{visitor: visitor, short: short, kept: kept}
}

// key is the key on the path at that depth, 0 being the outermost; empty in an array, or where the key is of no interest.
func (s *skimmer) key(depth int) string {
	if depth >= min(s.depth, maxSkimDepth) || depth < 0 {
		return ""
	}
	return s.stack[depth].key
}

// write skims a piece.
func (s *skimmer) write(piece []byte) {
	for i := 0; i < len(piece); i++ {
		c := piece[i]
		if s.string && !s.escape && s.unicode == 0 {
			// Most of a document is inside strings.
			n := plainRun(piece[i:])
			if n > 0 {
				s.run(piece[i : i+n])
				i += n - 1
				continue
			}
		}
		if s.keep > 0 {
			s.capture(piece[i : i+1])
		}
		s.step(c)
	}
}

// plainRun is how many bytes there are before a quote or a backslash.
func plainRun(b []byte) int {
	for i, c := range b {
		if c == '"' || c == '\\' {
			return i
		}
	}
	return len(b)
}

// run takes in a stretch of a string.
func (s *skimmer) run(b []byte) {
	if s.keep > 0 {
		s.capture(b)
	}
	if room := maxShort - len(s.short); len(b) > room {
		s.short = append(s.short, b[:room]...)
		s.cut = true
	} else {
		s.short = append(s.short, b...)
	}
	if s.isKey {
		return
	}
	for _, c := range b {
		if c < utf8.RuneSelf {
			s.text.ascii++
			s.text.runes++
		} else {
			s.text.other++
			if c >= 0xc0 {
				s.text.runes++
			}
		}
	}
}

func (s *skimmer) capture(b []byte) {
	if len(s.kept)+len(b) > maxKept {
		s.toolong = true
		return
	}
	s.kept = append(s.kept, b...)
}

// step takes in a byte that is not plain text of a string.
func (s *skimmer) step(c byte) {
	switch {
	case s.unicode > 0:
		s.hex(c)
	case s.escape:
		s.escape = false
		if c == 'u' {
			s.unicode, s.code = 4, 0
			return
		}
		s.char(rune(c))
	case s.string && c == '\\':
		s.escape = true
	case s.string: // '"'
		s.endString()
	case c == ' ' || c == '\n' || c == '\r' || c == '\t':
		s.endScalar()
	case c == ',':
		s.endScalar()
		if f := s.frame(); f != nil && !f.array {
			f.key = ""
		}
	case c == ':':
	case c == '"':
		s.string, s.cut, s.text, s.short = true, false, textCount{}, s.short[:0]
		f := s.frame()
		s.isKey = f != nil && !f.array && f.key == ""
		if !s.isKey {
			s.begins(c)
		}
	case c == '{' || c == '[':
		s.begins(c)
		if s.depth < maxSkimDepth {
			s.stack[s.depth] = skimFrame{array: c == '['}
		}
		s.depth++
	case c == '}' || c == ']':
		s.endScalar()
		s.endContainer()
	default:
		if !s.scalar {
			s.scalar = true
			s.begins(c)
		}
	}
}

// hex takes in a digit of \uXXXX.
func (s *skimmer) hex(c byte) {
	digit := rune(0)
	switch {
	case c >= '0' && c <= '9':
		digit = rune(c - '0')
	case c|0x20 >= 'a' && c|0x20 <= 'f':
		digit = rune(c|0x20-'a') + 10
	}
	s.code = s.code<<4 | digit
	if s.unicode--; s.unicode > 0 {
		return
	}
	switch {
	case s.code >= 0xd800 && s.code < 0xdc00:
		s.high = s.code
	case s.high != 0 && s.code >= 0xdc00 && s.code < 0xe000:
		s.char((s.high-0xd800)<<10 + (s.code - 0xdc00) + 0x10000)
		s.high = 0
	default:
		s.high = 0
		s.char(s.code)
	}
}

// char takes in a character that was escaped.
func (s *skimmer) char(r rune) {
	if len(s.short)+utf8.UTFMax <= maxShort {
		s.short = utf8.AppendRune(s.short, r)
	} else {
		s.cut = true
	}
	if s.isKey {
		return
	}
	s.text.runes++
	if n := utf8.RuneLen(r); n == 1 {
		s.text.ascii++
	} else {
		s.text.other += int64(max(n, 3))
	}
}

// frame is the innermost container; nil: there is none, or it is too deep.
func (s *skimmer) frame() *skimFrame {
	if s.depth == 0 || s.depth > maxSkimDepth {
		return nil
	}
	return &s.stack[s.depth-1]
}

func (s *skimmer) begins(c byte) {
	s.started = true
	if f := s.frame(); f != nil && f.array {
		f.count++
	}
	if s.keep == 0 && s.visitor.begins(s, c) {
		s.keep = s.depth + 1
		s.kept, s.toolong = append(s.kept[:0], c), false
	}
}

func (s *skimmer) endString() {
	s.string = false
	if s.isKey {
		s.isKey = false
		if f := s.frame(); f != nil {
			f.key = known(s.short, s.cut)
		}
		return
	}
	s.visitor.ended(s, s.short, s.cut, s.text)
	s.endValue()
}

func (s *skimmer) endScalar() {
	if !s.scalar {
		return
	}
	s.scalar = false
	if s.keep == s.depth+1 {
		s.kept = s.kept[:max(len(s.kept)-1, 0)] // the byte that ended it
	}
	s.endValue()
}

func (s *skimmer) endContainer() {
	if s.depth == 0 {
		return
	}
	f := s.frame()
	s.depth--
	if f != nil {
		s.visitor.closed(s, f.count, f.array)
	} else {
		s.visitor.closed(s, 0, false)
	}
	s.endValue()
}

// endValue is called behind each value.
func (s *skimmer) endValue() {
	if s.keep == s.depth+1 {
		s.keep = 0
		s.visitor.captured(s, s.kept, !s.toolong)
		s.kept = s.kept[:0]
	}
	if s.depth == 0 {
		s.ended = true
	}
}

// unknownKey stands for keys that are of no interest.
const unknownKey = "?"

// known is the key, as a string that need not be allocated.
func known(key []byte, cut bool) string {
	if cut {
		return unknownKey
	}
	switch string(key) {
	case "arguments":
		return "arguments"
	case "b64_json":
		return "b64_json"
	case "best_of":
		return "best_of"
	case "choices":
		return "choices"
	case "container":
		return "container"
	case "content":
		return "content"
	case "content_block":
		return "content_block"
	case "conversation":
		return "conversation"
	case "data":
		return "data"
	case "delta":
		return "delta"
	case "duration":
		return "duration"
	case "embedding":
		return "embedding"
	case "error":
		return "error"
	case "file_data":
		return "file_data"
	case "file_id":
		return "file_id"
	case "file_url":
		return "file_url"
	case "function":
		return "function"
	case "function_call":
		return "function_call"
	case "id":
		return "id"
	case "image_url":
		return "image_url"
	case "input":
		return "input"
	case "item":
		return "item"
	case "message":
		return "message"
	case "model":
		return "model"
	case "name":
		return "name"
	case "output":
		return "output"
	case "part":
		return "part"
	case "partial_image_b64":
		return "partial_image_b64"
	case "partial_json":
		return "partial_json"
	case "previous_response_id":
		return "previous_response_id"
	case "prompt":
		return "prompt"
	case "quality":
		return "quality"
	case "reasoning":
		return "reasoning"
	case "reasoning_content":
		return "reasoning_content"
	case "refusal":
		return "refusal"
	case "response":
		return "response"
	case "result":
		return "result"
	case "size":
		return "size"
	case "source":
		return "source"
	case "text":
		return "text"
	case "thinking":
		return "thinking"
	case "tool_calls":
		return "tool_calls"
	case "tools":
		return "tools"
	case "transcript":
		return "transcript"
	case "type":
		return "type"
	case "url":
		return "url"
	case "usage":
		return "usage"
	}
	return unknownKey
}
