package provider

import (
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"
)

const (
	directivePrefix = "sim:"
	maxDelay        = 10 * time.Minute
	maxChunks       = 100_000
	maxSearches     = 10
	maxCount        = 1_000_000_000_000
	// unset marks a number that no directive gave, where 0 means something.
	unset = -1
)

// spoil is the way in which sim:bad-usage makes the usage useless.
type spoil string

const (
	spoilNegative spoil = "negative"
	spoilText     spoil = "text"
	spoilHuge     spoil = "huge"
)

// directives are what a request's text asks the simulator to do; doc.go has the table.
type directives struct {
	names        []string // as written, for the record
	status       int
	retryAfter   int
	delay        time.Duration
	abort        bool
	reply        *string
	echoHeaders  bool
	chunks       int
	chunkDelay   time.Duration
	breakAfter   int
	errorAfter   int
	hold         bool
	holdName     string
	split        bool
	gzip         bool
	noUsage      bool
	badUsage     spoil
	inputTokens  int
	outputTokens int
	cached       int
	cacheWrite   int
	reasoning    int
	searches     int
	noTools      bool
	flag         bool
}

// wantsText reports whether a directive asks for a text, so that tools are not called unless forced.
func (d directives) wantsText() bool {
	return d.reply != nil || d.echoHeaders || d.chunks > 0 || d.noTools
}

func noDirectives() directives {
	return directives{breakAfter: unset, errorAfter: unset, inputTokens: unset, outputTokens: unset, searches: unset, retryAfter: unset}
}

// parseDirectives reads the directives in text. It fails on an unknown one and on a value out of range.
func parseDirectives(text string) (directives, error) {
	d := noDirectives()
	if !strings.Contains(text, directivePrefix) {
		return d, nil
	}
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\r\n")
		for {
			line = strings.TrimLeftFunc(line, unicode.IsSpace)
			end := strings.IndexFunc(line, unicode.IsSpace)
			if end < 0 {
				end = len(line)
			}
			if end == 0 {
				break
			}
			word := line[:end]
			if reply, ok := strings.CutPrefix(line, directivePrefix+"reply="); ok {
				d.names = append(d.names, "reply")
				d.reply = &reply
				break
			}
			line = line[end:]
			directive, ok := strings.CutPrefix(word, directivePrefix)
			if !ok {
				continue
			}
			name, value, _ := strings.Cut(directive, "=")
			if err := d.set(name, value); err != nil {
				return d, fmt.Errorf("read directive %q: %w", word, err)
			}
			d.names = append(d.names, directive)
		}
	}
	return d, nil
}

func (d *directives) set(name, value string) (err error) {
	switch name {
	case "abort", "echo-headers", "split", "gzip", "no-usage", "no-tools", "flag":
		if value != "" {
			return fmt.Errorf("it takes no value")
		}
	}
	switch name {
	case "status":
		d.status, err = parseCount(value, 400, 599)
	case "retry-after":
		d.retryAfter, err = parseCount(value, 0, 86_400)
	case "delay":
		d.delay, err = parseDelay(value)
	case "abort":
		d.abort = true
	case "echo-headers":
		d.echoHeaders = true
	case "chunks":
		d.chunks, err = parseCount(value, 1, maxChunks)
	case "chunk-delay":
		d.chunkDelay, err = parseDelay(value)
	case "break-after":
		d.breakAfter, err = parseCount(value, 0, maxChunks)
	case "error-after":
		d.errorAfter, err = parseCount(value, 0, maxChunks)
	case "hold":
		d.hold, d.holdName = true, value
	case "split":
		d.split = true
	case "gzip":
		d.gzip = true
	case "no-usage":
		d.noUsage = true
	case "bad-usage":
		d.badUsage, err = parseSpoil(value)
	case "input-tokens":
		d.inputTokens, err = parseCount(value, 0, maxCount)
	case "output-tokens":
		d.outputTokens, err = parseCount(value, 0, maxCount)
	case "cached":
		d.cached, err = parseCount(value, 0, maxCount)
	case "cache-write":
		d.cacheWrite, err = parseCount(value, 0, maxCount)
	case "reasoning":
		d.reasoning, err = parseCount(value, 0, maxCount)
	case "searches":
		d.searches, err = parseCount(value, 0, maxSearches)
	case "no-tools":
		d.noTools = true
	case "flag":
		d.flag = true
	default:
		return fmt.Errorf("there is no such directive")
	}
	return err
}

func parseCount(value string, low, high int) (int, error) {
	n, err := strconv.Atoi(value)
	if err != nil || n < low || n > high {
		return 0, fmt.Errorf("want a number from %d to %d", low, high)
	}
	return n, nil
}

func parseDelay(value string) (time.Duration, error) {
	delay, err := time.ParseDuration(value)
	if err != nil || delay < 0 || delay > maxDelay {
		return 0, fmt.Errorf("want a duration from 0 to %s", maxDelay)
	}
	return delay, nil
}

func parseSpoil(value string) (spoil, error) {
	switch kind := spoil(value); kind {
	case "":
		return spoilNegative, nil
	case spoilNegative, spoilText, spoilHuge:
		return kind, nil
	default:
		return "", fmt.Errorf("want negative, text or huge")
	}
}

// spoilUsage replaces every number in a usage document.
func spoilUsage(value any, kind spoil) any {
	switch v := value.(type) {
	case object:
		spoiled := object{}
		for name, field := range v {
			spoiled[name] = spoilUsage(field, kind)
		}
		return spoiled
	case int, float64:
		switch kind {
		case spoilText:
			return "many"
		case spoilHuge:
			return int64(9_000_000_000_000_000_000)
		default:
			return -1
		}
	default:
		return value
	}
}
