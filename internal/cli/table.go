package cli

import (
	"io"
	"strings"

	"golang.org/x/text/width"
)

// cell is one field of a table.
type cell struct {
	text  string
	style style
}

func text(s string) cell { return cell{text: s} }

// table is aligned text, in kubectl's manner: headers in capitals and three spaces between columns.
type table struct {
	header []string
	widths []int // of the columns so far; rows that come later keep them
}

// gap is what stands between columns.
const gap = "   "

// write writes rows, and the header before them if asked for. What is written in several goes stays aligned as far as the first allows.
func (t *table) write(w io.Writer, colours palette, withHeader bool, rows [][]cell) error {
	if t.widths == nil {
		t.widths = make([]int, len(t.header))
		for i, h := range t.header {
			t.widths[i] = columns(h)
		}
	}
	for _, row := range rows {
		for i, c := range row {
			t.widths[i] = max(t.widths[i], columns(c.text))
		}
	}
	var b strings.Builder
	if withHeader {
		head := make([]cell, len(t.header))
		for i, h := range t.header {
			head[i] = text(h)
		}
		t.line(&b, colours, head)
	}
	for _, row := range rows {
		t.line(&b, colours, row)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (t *table) line(b *strings.Builder, colours palette, row []cell) {
	for i, c := range row {
		b.WriteString(colours.paint(c.style, c.text))
		if i < len(row)-1 {
			b.WriteString(strings.Repeat(" ", t.widths[i]-columns(c.text)))
			b.WriteString(gap)
		}
	}
	b.WriteByte('\n')
}

// columns is how many columns of a terminal a text takes.
func columns(s string) int {
	n := 0
	for _, r := range s {
		switch width.LookupRune(r).Kind() {
		case width.EastAsianWide, width.EastAsianFullwidth:
			n += 2
		default:
			n++
		}
	}
	return n
}

// oneLine shows what others have written, on one line and without what could steer a terminal.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || (r >= 0x80 && r < 0xa0) || r == '\u2028' || r == '\u2029' {
			return ' '
		}
		return r
	}, s)
}
