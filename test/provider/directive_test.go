package provider

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

func TestParseDirectives(t *testing.T) {
	with := func(change func(*directives)) directives {
		d := noDirectives()
		change(&d)
		return d
	}
	tests := map[string]struct {
		text string
		want directives
		fail string
	}{
		"a text without directives asks for nothing": {text: "simulate: 1 sim", want: noDirectives()},
		"a directive inside a word is none":          {text: "xsim:abort", want: noDirectives()},
		"several directives between words": {
			text: "please sim:delay=200ms and\n\tsim:chunks=20 thanks",
			want: with(func(d *directives) {
				d.names, d.delay, d.chunks = []string{"delay=200ms", "chunks=20"}, 200*time.Millisecond, 20
			}),
		},
		"a reply takes the rest of its line, directives and all": {
			text: "sim:no-usage sim:reply=a  b sim:abort \r\nsim:split",
			want: with(func(d *directives) {
				d.names, d.noUsage, d.split, d.reply = []string{"no-usage", "reply", "split"}, true, true, new("a  b sim:abort ")
			}),
		},
		"zero chunks before a break differ from no break": {
			text: "sim:break-after=0", want: with(func(d *directives) { d.names, d.breakAfter = []string{"break-after=0"}, 0 }),
		},
		"a hold with a name": {
			text: "sim:hold=door", want: with(func(d *directives) { d.names, d.hold, d.holdName = []string{"hold=door"}, true, "door" }),
		},
		"bad usage is negative unless said": {
			text: "sim:bad-usage", want: with(func(d *directives) { d.names, d.badUsage = []string{"bad-usage"}, spoilNegative }),
		},
		"an unknown directive fails":           {text: "sim:statsu=500", fail: "no such directive"},
		"a status that is no error fails":      {text: "sim:status=200", fail: "from 400 to 599"},
		"a number with a unit fails":           {text: "sim:chunks=3x", fail: "want a number"},
		"a delay without a unit fails":         {text: "sim:delay=200", fail: "want a duration"},
		"a negative delay fails":               {text: "sim:delay=-1s", fail: "want a duration"},
		"a value where none is expected fails": {text: "sim:abort=1", fail: "no value"},
		"an unknown kind of bad usage fails":   {text: "sim:bad-usage=odd", fail: "negative, text or huge"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := parseDirectives(tc.text)
			if tc.fail != "" {
				if err == nil || !strings.Contains(err.Error(), tc.fail) {
					t.Fatalf("error is %v, want one with %q", err, tc.fail)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got, cmp.AllowUnexported(directives{})); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func FuzzParseDirectives(f *testing.F) {
	for _, seed := range []string{"", "sim:", "sim:reply=", "a sim:hold=x\nsim:reply= y", "sim:delay=1h1h sim:chunks=1", "\u2028sim:abort\xff"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		d, err := parseDirectives(text)
		if err != nil {
			return
		}
		if d.delay < 0 || d.delay > maxDelay || d.chunks < 0 || d.chunks > maxChunks || d.status != 0 && d.status < 400 {
			t.Errorf("directives out of range: %+v", d)
		}
		if !strings.Contains(text, directivePrefix) && len(d.names) > 0 {
			t.Errorf("found %v where there is none", d.names)
		}
	})
}

func FuzzTruncateAndSplit(f *testing.F) {
	f.Add("naïve ✓ answer", 2, 3)
	f.Add("", 0, 0)
	f.Fuzz(func(t *testing.T, text string, limit, n int) {
		if !utf8.ValidString(text) {
			return
		}
		cut := truncate(text, limit)
		if !strings.HasPrefix(text, cut) || !utf8.ValidString(cut) || countTokens(cut) > max(limit, 0) {
			t.Errorf("truncated %q to %q", text, cut)
		}
		if n < 0 {
			return
		}
		pieces := splitText(text, n)
		if strings.Join(pieces, "") != text || n > 0 && len(pieces) > n {
			t.Errorf("split %q into %q", text, pieces)
		}
	})
}

func TestSplitEvent(t *testing.T) {
	got := splitEvent([]byte("data: ✓a\n"))
	want := [][]byte{[]byte("da"), []byte("ta: \xe2"), []byte("\x9c\x93a\n")}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestExampleJSON(t *testing.T) {
	tests := map[string]struct{ schema, want string }{
		"no schema is an empty object":       {"", "{}"},
		"only required fields are there":     {`{"type":"object","properties":{"a":{"type":"string"},"b":{"type":"string"}},"required":["b"]}`, `{"b":"example"}`},
		"each type has its value":            {`{"required":["a","b","c","d"],"properties":{"a":{"type":"array"},"b":{"type":"boolean"},"c":{"type":["null","string"]},"d":{"type":"number"}}}`, `{"a":[],"b":true,"c":null,"d":1}`},
		"an enum gives its first value":      {`{"type":"string","enum":["x","y"]}`, `"x"`},
		"a required field without a schema":  {`{"required":["a"]}`, `{"a":{}}`},
		"anyOf gives its first alternative":  {`{"anyOf":[{"type":"integer"},{"type":"null"}]}`, `1`},
		"what is no schema is an empty one":  {`"odd"`, `{}`},
		"a constant is the constant":         {`{"const":7}`, `7`},
		"objects may hold objects of others": {`{"required":["a"],"properties":{"a":{"type":"object","required":["b"],"properties":{"b":{"type":"string"}}}}}`, `{"a":{"b":"example"}}`},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			if got := exampleJSON([]byte(tc.schema)); got != tc.want {
				t.Errorf("got %s, want %s", got, tc.want)
			}
		})
	}
}
