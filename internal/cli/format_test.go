package cli

import (
	"bytes"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	"github.com/latchkey-dev/latchkey/internal/money"
)

func TestTableIsAligned(t *testing.T) {
	tb := &table{header: []string{"NAME", "STATE", "AGE"}}
	var b bytes.Buffer
	if err := tb.write(&b, false, true, [][]cell{{text("a"), {"Active", good}, text("1d")}, {text("日本"), {"Disabled", bad}, text("2d")}}); err != nil {
		t.Fatal(err)
	}
	want := "NAME   STATE      AGE\na      Active     1d\n日本   Disabled   2d\n"
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Error(diff)
	}
	b.Reset()
	if err := tb.write(&b, true, false, [][]cell{{text("b"), {"Active", good}, text("3d")}}); err != nil {
		t.Fatal(err)
	}
	if want := "b      \x1b[32mActive\x1b[0m     3d\n"; b.String() != want {
		t.Errorf("%q, want %q: colour takes no room, and a later row keeps the columns", b.String(), want)
	}
}

func TestNumbersForPeople(t *testing.T) {
	for name, test := range map[string]struct{ got, want string }{
		"spent against a cap":                  {against(3*money.Unit+100_000_000, 5*money.Unit), "3.1/5"},
		"spent without one":                    {against(money.Unit, -1), "1"},
		"a nano-unit is not shown as 0":        {short(1), "0.0001"},
		"nothing is 0":                         {short(0), "0"},
		"grouped":                              {grouped(1234567), "1,234,567"},
		"grouped, three digits":                {grouped(123), "123"},
		"grouped, below zero":                  {grouped(-1234), "-1,234"},
		"one":                                  {counted(1, "request"), "1 request"},
		"many":                                 {counted(2000, "request"), "2,000 requests"},
		"an empty bar":                         {bar(0, 10, 5, false), "....."},
		"a little is not nothing":              {bar(1, 1000, 5, false), "#...."},
		"nearly all is not all":                {bar(999, 1000, 5, false), "####."},
		"more than all":                        {bar(20, 10, 5, true), "█████"},
		"a cap of 0 is full":                   {bar(0, 0, 3, false), "###"},
		"percent is rounded down":              {fmt.Sprint(percent(999, 1000)), "99"},
		"tokens":                               {tokensShort(1_234_567), "1.2M"},
		"a name cannot steer the terminal":     {oneLine("a\x1b[31m\nb\u0085"), "a [31m b "},
		"a key that is used":                   {ago(theMoment(), new(metav1.NewTime(theMoment().Add(-90*time.Second)))), "90s"},
		"one that never was":                   {ago(theMoment(), nil), "never"},
		"a clock that is ahead":                {ago(theMoment(), new(metav1.NewTime(theMoment().Add(time.Minute)))), "0s"},
		"a shell's word":                       {quoteForShell("a-b_c.d"), "a-b_c.d"},
		"a shell's word with a quote":          {quoteForShell("it's"), `'it'\''s'`},
		"a shell's empty word":                 {quoteForShell(""), "''"},
		"below 80 % is nothing special":        {string(ratioStyle(79, 100)), string(plain)},
		"80 % is a warning":                    {string(ratioStyle(80, 100)), string(warn)},
		"the cap is reached":                   {string(ratioStyle(100, 100)), string(bad)},
		"a cap of 0 is reached from the start": {string(ratioStyle(0, 0)), string(bad)},
	} {
		if test.got != test.want {
			t.Errorf("%s: %q, want %q", name, test.got, test.want)
		}
	}
}

func TestParseFlags(t *testing.T) {
	limit := func(s string) string {
		n, err := parseLimit(s)
		if err != nil {
			return "error"
		}
		return number(n)
	}
	expiry := func(s string) string {
		e, err := parseExpiry(s, theMoment())
		switch {
		case err != nil:
			return "error"
		case e == nil:
			return none
		}
		return e.UTC().Format(time.RFC3339)
	}
	models := func(mayUnset bool, list ...string) string {
		s, err := parseModels(list, mayUnset)
		switch {
		case err != nil:
			return "error"
		case s == nil:
			return none
		}
		return scopeText(s.Access, s.Names)
	}
	capabilities := func(list ...string) string {
		c, err := parseCapabilities(list, true)
		if err != nil {
			return "error"
		}
		return join(c)
	}
	for name, test := range map[string]struct{ got, want string }{
		"a limit":                         {limit("600"), "600"},
		"thousands":                       {limit("200k"), "200000"},
		"millions":                        {limit("2M"), "2000000"},
		"with underscores":                {limit("1_000"), "1000"},
		"zero is a limit":                 {limit("0"), "0"},
		"none is no limit":                {limit("none"), none},
		"a limit below zero":              {limit("-1"), "error"},
		"a limit that overflows":          {limit("9223372036854775807k"), "error"},
		"a word":                          {limit("many"), "error"},
		"an empty limit":                  {limit(""), "error"},
		"a moment":                        {expiry("2026-12-01T01:00:00+01:00"), "2026-12-01T00:00:00Z"},
		"a day is until its end":          {expiry("2026-12-31"), "2027-01-01T00:00:00Z"},
		"days from now":                   {expiry("30d"), "2026-12-30T22:30:00Z"},
		"weeks from now":                  {expiry("2w"), "2026-12-14T22:30:00Z"},
		"hours from now":                  {expiry("12h"), "2026-12-01T10:30:00Z"},
		"never":                           {expiry("none"), none},
		"the past by a duration":          {expiry("-1h"), "error"},
		"no days":                         {expiry("0d"), "error"},
		"nonsense":                        {expiry("soon"), "error"},
		"all models":                      {models(false, "ALL"), "all"},
		"some, each once":                 {models(false, "a", "b", "a"), "a,b"},
		"all and a name":                  {models(false, "all", "a"), "error"},
		"a key cannot go without":         {models(false, "none"), "error"},
		"an application can":              {models(true, "none"), none},
		"an empty name":                   {models(false, ""), "error"},
		"capabilities in any case":        {capabilities("textgeneration", "WEBSEARCH"), "TextGeneration,WebSearch"},
		"all capabilities, and one again": {capabilities("all", "WebSearch"), strings.ReplaceAll(capabilityNames(), ", ", ",")},
		"an unknown capability":           {capabilities("Flying"), "error"},
		"no capability":                   {capabilities("none"), none},
	} {
		if test.got != test.want {
			t.Errorf("%s: %q, want %q", name, test.got, test.want)
		}
	}
}

func TestReferences(t *testing.T) {
	for arg, want := range map[string]string{
		"shop": "apikey.latchkey.dev/shop", "apikey.latchkey.dev/shop": "apikey.latchkey.dev/shop", "lkkey/shop": "apikey.latchkey.dev/shop",
		"app/shop": "application.latchkey.dev/shop", "application.latchkey.dev/shop": "application.latchkey.dev/shop",
		"pod/shop": "", "key/": "",
	} {
		ref, err := parseReference(arg, kindKey)
		if (err != nil) != (want == "") || (err == nil && ref.String() != want) {
			t.Errorf("%s: %v, %v; want %q", arg, ref, err, want)
		}
	}
}

func TestErrorsSayWhatToDo(t *testing.T) {
	resource := schema.GroupResource{Group: "latchkey.dev", Resource: "apikeys"}
	for name, test := range map[string]struct {
		err  error
		want []string
	}{
		"not found, as kubectl words it": {fmt.Errorf("get apikey: %w", apierrors.NewNotFound(resource, "k")), []string{"Error from server (NotFound): get apikey: ", `"k" not found`}},
		"forbidden":                      {apierrors.NewForbidden(resource, "k", errors.New("no")), []string{"(Forbidden)", "roles"}},
		"not logged in":                  {apierrors.NewUnauthorized("no"), []string{"(Unauthorized)", "log in again"}},
		"no such kind":                   {&meta.NoKindMatchError{GroupKind: v1alpha1.GroupVersion.WithKind("APIKey").GroupKind()}, []string{"error: ", "doctor"}},
		"nobody listens":                 {&url.Error{Op: "Get", URL: "http://a.test", Err: syscall.ECONNREFUSED}, []string{"Nothing listens at http://a.test"}},
		"anything else":                  {errors.New("odd"), []string{"error: odd"}},
	} {
		t.Run(name, func(t *testing.T) {
			for _, want := range test.want {
				if got := explain(test.err); !strings.Contains(got, want) {
					t.Errorf("%q lacks %q", got, want)
				}
			}
		})
	}
}
