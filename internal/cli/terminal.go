package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"
)

// isTerminal reports whether a stream is a terminal.
func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && f != nil && term.IsTerminal(int(f.Fd()))
}

// style colours text, on a terminal.
type style string

const (
	plain  style = ""
	good   style = "32"
	warn   style = "33"
	bad    style = "31"
	faint  style = "2"
	strong style = "1"
)

// palette says whether there is colour.
type palette bool

func (c palette) paint(s style, text string) string {
	if !bool(c) || s == plain || text == "" {
		return text
	}
	return "\x1b[" + string(s) + "m" + text + "\x1b[0m"
}

// palette is coloured where the stream is a terminal that can, and NO_COLOR is not set (https://no-color.org).
func (p *plugin) palette(stream any) palette {
	return palette(isTerminal(stream) && p.getenv("NO_COLOR") == "" && p.getenv("TERM") != "dumb")
}

// unicode reports whether the stream shows more than ASCII: a terminal, in a UTF-8 locale.
func (p *plugin) unicode(stream any) bool {
	if !isTerminal(stream) {
		return false
	}
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if value := p.getenv(name); value != "" {
			value = strings.ToLower(value)
			return strings.Contains(value, "utf-8") || strings.Contains(value, "utf8")
		}
	}
	return false
}

// mayAsk reports whether there is somebody to answer: what is asked is written on stderr, and stdout stays free for what was asked for.
func (p *plugin) mayAsk() bool { return isTerminal(p.In) && isTerminal(p.ErrOut) }

// errNoAnswer says that stdin ended before an answer came.
var errNoAnswer = errors.New("no answer: stdin has ended; give it as a flag instead")

// reader reads lines from stdin in a goroutine of its own, since a read of a terminal cannot be broken off. The goroutine is started by the
// first question, and ends with stdin or with the program.
type reader struct {
	from  io.Reader
	start sync.Once
	ask   chan struct{}
	lines chan line
}

type line struct {
	text string
	err  error
}

func newReader(from io.Reader) *reader {
	return &reader{from: from, ask: make(chan struct{}), lines: make(chan line, 1)}
}

// line reads the next one, without its end.
func (r *reader) line(ctx context.Context) (string, error) {
	r.start.Do(func() {
		go func() {
			buffered := bufio.NewReader(r.from)
			for range r.ask {
				text, err := buffered.ReadString('\n')
				if errors.Is(err, io.EOF) && text != "" {
					err = nil
				}
				r.lines <- line{strings.TrimRight(text, "\r\n"), err}
				if err != nil {
					return
				}
			}
		}()
	})
	select {
	case r.ask <- struct{}{}:
	case <-ctx.Done():
		return "", ctx.Err()
	}
	select {
	case got := <-r.lines:
		if errors.Is(got.err, io.EOF) {
			return "", errNoAnswer
		}
		if got.err != nil {
			return "", fmt.Errorf("read the answer: %w", got.err)
		}
		return got.text, nil
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// ask asks for one line. An empty answer is the default.
func (p *plugin) ask(ctx context.Context, question, byDefault string) (string, error) {
	prompt := question
	if byDefault != "" {
		prompt += " [" + byDefault + "]"
	}
	_, _ = fmt.Fprintf(p.ErrOut, "%s: ", prompt)
	answer, err := p.in.line(ctx)
	if err != nil {
		_, _ = fmt.Fprintln(p.ErrOut)
		return "", err
	}
	if answer = strings.TrimSpace(answer); answer == "" {
		return byDefault, nil
	}
	return answer, nil
}

// askUntil asks again until check has nothing against the answer.
func (p *plugin) askUntil(ctx context.Context, question, byDefault string, check func(string) error) (string, error) {
	for {
		answer, err := p.ask(ctx, question, byDefault)
		if err != nil {
			return "", err
		}
		if err := check(answer); err != nil {
			p.say("  %v", err)
			continue
		}
		return answer, nil
	}
}

// confirm asks a question that yes or no answers. Empty is no.
func (p *plugin) confirm(ctx context.Context, question string) (bool, error) {
	answer, err := p.ask(ctx, question+" (y/N)", "")
	if err != nil {
		return false, err
	}
	answer = strings.ToLower(answer)
	return answer == "y" || answer == "yes", nil
}

// progress is one line on stderr that says what is being waited for. Where stderr is no terminal it says nothing.
type progress struct {
	to    io.Writer
	wide  func() int // how many columns there are
	shown bool
	began time.Time
	now   func() time.Time
}

func (p *plugin) progress() *progress {
	pr := &progress{began: p.now(), now: p.now}
	if isTerminal(p.ErrOut) {
		pr.to, pr.wide = p.ErrOut, func() int { return terminalWidth(p.ErrOut) }
	}
	return pr
}

// show puts what is waited for in the line's place. It may be called at any rate.
func (pr *progress) show(what string) {
	if pr.to == nil {
		return
	}
	pr.shown = true
	took := fmt.Sprintf(" (%ds)", int(pr.now().Sub(pr.began).Seconds()))
	if most := pr.wide() - len(took) - 1; columns(what) > most { // a line that wraps cannot be taken back
		what = clip(what, max(most-1, 0)) + "."
	}
	_, _ = fmt.Fprint(pr.to, "\r\x1b[K"+what+took)
}

// terminalWidth is how many columns a terminal has; 80 where it does not tell.
func terminalWidth(stream any) int {
	const usual = 80
	f, ok := stream.(*os.File)
	if !ok {
		return usual
	}
	if width, _, err := term.GetSize(int(f.Fd())); err == nil && width > 0 {
		return width
	}
	return usual
}

// clear removes the line.
func (pr *progress) clear() {
	if pr.to != nil && pr.shown {
		_, _ = fmt.Fprint(pr.to, "\r\x1b[K")
		pr.shown = false
	}
}
