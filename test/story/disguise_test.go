package story

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/util/duration"
)

// disguise puts the same in place of what is different each time: keys, times, ports. Which key is meant, and how far away a moment is,
// can still be told; columns stay aligned.
type disguise struct {
	gateway string
	began   time.Time
	keys    map[string]string // by the beginning that is shown
}

// usualGateway is where `make run` has it.
const usualGateway = "http://127.0.0.1:8080"

// noon is when a disguised session begins.
var noon = time.Date(2026, time.May, 4, 12, 0, 0, 0, time.UTC)

func newDisguise(gateway string, began time.Time) *disguise {
	return &disguise{gateway: gateway, began: began.UTC(), keys: map[string]string{}}
}

const (
	momentPattern = `\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(?: UTC|Z)`
	lengthPattern = `(?:\d+[dhms]){1,3}`
)

var (
	keyPattern     = regexp.MustCompile(`\blk_[0-9A-Za-z]{6,}`)
	momentsPattern = regexp.MustCompile(`(month at |monthly budget .* resets at )?(` + momentPattern + `)( \(in ` + lengthPattern + `\))?(, in ` + lengthPattern + `)?`)
	cellPattern    = regexp.MustCompile(`\S+(?: {1,2}\S+)*`)
	agePattern     = regexp.MustCompile(`^` + lengthPattern + `$`)
)

func (d *disguise) of(s string) string {
	s = strings.ReplaceAll(s, d.gateway, usualGateway)
	s = keyPattern.ReplaceAllStringFunc(s, d.key)
	s = momentsPattern.ReplaceAllStringFunc(s, d.moment)
	s = strings.ReplaceAll(s, d.began.Format(time.DateOnly), noon.Format(time.DateOnly))
	s = regexp.MustCompile(`\b`+d.began.Format("2006-01")+`( |$)`).ReplaceAllString(s, noon.Format("2006-01")+"$1")
	for pattern, by := range map[string]string{
		`\b(text|all) after \d+ ms`: "$1 after 40 ms", `\b` + lengthPattern + ` ago\b`: "2s ago", `try again in \d+ s\b`: "try again in 43200 s",
	} {
		s = regexp.MustCompile(pattern).ReplaceAllString(s, by)
	}
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = ages(lines[i])
	}
	return strings.Join(lines, "\n")
}

// key is another key, or the beginning of one.
func (d *disguise) key(k string) string {
	const shown = len("lk_") + 6
	start := k[:shown]
	if d.keys[start] == "" {
		ordinals := []string{"1st", "2nd", "3rd", "4th", "5th", "6th", "7th", "8th", "9th"}
		d.keys[start] = fmt.Sprintf("lk_%sKey", ordinals[len(d.keys)%len(ordinals)])
	}
	if len(k) > shown {
		return d.keys[start] + "…"
	}
	return d.keys[start]
}

// moment is as far from noon as the true one is from the session's beginning, to the hour. Days and months end when they do.
func (d *disguise) moment(s string) string {
	parts := momentsPattern.FindStringSubmatch(s)
	layout := "2006-01-02 15:04:05 MST"
	if strings.HasSuffix(parts[2], "Z") {
		layout = time.RFC3339
	}
	at, err := time.Parse(layout, parts[2])
	if err != nil {
		return s
	}
	fake := noon.Add(at.Sub(d.began).Round(time.Hour))
	switch midnight := at.Equal(at.Truncate(24 * time.Hour)); {
	case midnight && parts[1] != "":
		fake = time.Date(2026, time.June, 1, 0, 0, 0, 0, time.UTC)
	case midnight:
		fake = time.Date(2026, time.May, 5, 0, 0, 0, 0, time.UTC)
	}
	away := fake.Sub(noon)
	out := parts[1] + fake.Format(layout)
	if parts[3] != "" {
		out += " (in " + duration.HumanDuration(away-time.Second) + ")"
	}
	if parts[4] != "" {
		out += ", in " + away.String()
	}
	return out
}

// ages are a line with another age in each cell of a table that holds nothing else. What stands behind it keeps its column.
func ages(line string) string {
	const age = "2s"
	var b strings.Builder
	cells := cellPattern.FindAllStringIndex(line, -1)
	written := 0
	for i, cell := range cells {
		text := line[cell[0]:cell[1]]
		if i == 0 || !agePattern.MatchString(text) || strings.HasSuffix(line[:cells[i-1][1]], ":") { // a name and its value
			continue
		}
		b.WriteString(line[written:cell[0]] + age)
		written = cell[1]
		if i < len(cells)-1 {
			b.WriteString(strings.Repeat(" ", max(len(text)-len(age), 0)))
		}
	}
	return b.String() + line[written:]
}

func TestDisguise(t *testing.T) {
	began := time.Date(2031, time.December, 30, 20, 14, 3, 0, time.UTC)
	for name, test := range map[string]struct{ in, want string }{
		"keys are told apart":             {"lk_abcdef lk_ghijkl… lk_abcdef0123456789\n", "lk_1stKey lk_2ndKey… lk_1stKey…\n"},
		"the gateway is where it is":      {"POST http://127.0.0.1:4711/v1", "POST http://127.0.0.1:8080/v1"},
		"moments keep their distance":     {"until 2031-12-30 21:14:09 UTC (in 59m)", "until 2026-05-04 13:00:00 UTC (in 59m)"},
		"what is past is now":             {"since 2031-12-30 20:14:39 UTC.", "since 2026-05-04 12:00:00 UTC."},
		"days and months end":             {"day at 2031-12-31 00:00:00 UTC (in 3h45m), month at 2032-01-01 00:00:00 UTC (in 27h)", "day at 2026-05-05 00:00:00 UTC (in 11h), month at 2026-06-01 00:00:00 UTC (in 27d)"},
		"as the gateway says it":          {"at 2031-12-31T00:00:00Z, in 3h45m57s (try again in 13557 s)", "at 2026-05-05T00:00:00Z, in 12h0m0s (try again in 43200 s)"},
		"periods":                         {"a   2031-12-30   0\nb   2031-12      0", "a   2026-05-04   0\nb   2026-05      0"},
		"ages in columns stay in columns": {"1   119s   2m3s        x\n1   2s     12s         x\n", "1   2s     2s          x\n1   2s     2s          x\n"},
		"ages at the end of a line":       {"a   5s   12s\nb   7s   1m2s\n", "a   2s   2s\nb   2s   2s\n"},
		"ages in a sentence":              {"last used 17s ago, at", "last used 2s ago, at"},
		"a value is no age":               {"  Overlap:            1h", "  Overlap:            1h"},
		"monthly budgets":                 {"ok   monthly budget of the key   5 used; resets at 2032-01-01 00:00:00 UTC (in 27h)", "ok   monthly budget of the key   5 used; resets at 2026-06-01 00:00:00 UTC (in 27d)"},
		"numbers stay":                    {"60   100000   12   5 USD   1h or so", "60   100000   12   5 USD   1h or so"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := newDisguise("http://127.0.0.1:4711", began).of(test.in); got != test.want {
				t.Errorf("got  %q\nwant %q", got, test.want)
			}
		})
	}
}
