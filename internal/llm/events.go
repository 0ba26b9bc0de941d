package llm

import "bytes"

// eventReader takes the data out of a stream of server-sent events, in pieces that can end anywhere
// (https://html.spec.whatwg.org/multipage/server-sent-events.html).
type eventReader struct {
	field   []byte // the beginning of the line, until its field is known
	inData  bool   // the line's field is known, and is data
	skip    bool   // the line's field is known, and is another; or a comment
	blank   bool   // the line is empty so far
	started bool   // something has been read
	cr      bool   // the last byte was a carriage return
	space   bool   // the next byte may be the one space that belongs to no value
	any     bool   // the event at hand has data
	mark    []byte // the beginning of its data, as far as [DONE] is long
	done    bool   // the event was [DONE]
}

var (
	dataField = []byte("data")
	doneMark  = []byte("[DONE]")
	byteOrder = []byte(byteOrderMark)
)

// next reads on: n bytes of the piece, among which line is the event's data (without line ends, which JSON does not need); boundary says
// that the event ends with them.
func (e *eventReader) next(piece []byte) (n int, line []byte, boundary bool) {
	if !e.started {
		e.started, e.blank = true, true
	}
	for n < len(piece) {
		c := piece[n]
		if c == '\n' && e.cr { // the second half of a line's end
			e.cr = false
			n++
			continue
		}
		e.cr = c == '\r'
		switch {
		case c == '\n' || c == '\r':
			n++
			if e.endLine() {
				if c == '\r' && n < len(piece) && piece[n] == '\n' {
					e.cr = false
					n++
				}
				return n, nil, true
			}
		case e.inData:
			if e.space {
				e.space = false
				if c == ' ' {
					n++
					continue
				}
			}
			end := bytes.IndexAny(piece[n:], "\r\n")
			if end < 0 {
				end = len(piece) - n
			}
			line = piece[n : n+end]
			if room := len(doneMark) + 1 - len(e.mark); room > 0 {
				e.mark = append(e.mark, line[:min(room, len(line))]...)
			}
			e.any = true
			return n + end, line, false
		case e.skip:
			end := bytes.IndexAny(piece[n:], "\r\n")
			if end < 0 {
				return len(piece), nil, false
			}
			n += end
		default:
			e.blank = false
			n++
			e.readField(c)
		}
	}
	return n, nil, false
}

// readField takes in a byte of a line whose field is not known yet.
func (e *eventReader) readField(c byte) {
	if c != ':' {
		if e.field = append(e.field, c); len(e.field) > len(byteOrder)+len(dataField) {
			e.skip = true
		}
		return
	}
	name := bytes.TrimPrefix(e.field, byteOrder)
	if bytes.Equal(name, dataField) {
		e.inData, e.space = true, true
	} else {
		e.skip = true
	}
}

// endLine ends a line, and reports whether it ends an event.
func (e *eventReader) endLine() bool {
	ends := e.blank
	e.field, e.inData, e.skip, e.blank, e.space = e.field[:0], false, false, true, false
	if ends {
		e.endEvent()
	}
	return ends
}

func (e *eventReader) endEvent() {
	e.done = e.done || bytes.Equal(bytes.TrimSpace(e.mark), doneMark)
	e.mark, e.any = e.mark[:0], false
}
