package money

import (
	"errors"
	"math"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		in   string
		want Amount
		out  string
	}{
		"a whole number":              {"12", 12 * Unit, "12"},
		"two decimals":                {"12.50", 12*Unit + Unit/2, "12.5"},
		"zero":                        {"0", 0, "0"},
		"zero with decimals":          {"0.000", 0, "0"},
		"the smallest amount":         {"0.000000001", 1, "0.000000001"},
		"the largest amount":          {"999999999.999999999", 1e18 - 1, "999999999.999999999"},
		"leading zeros change nought": {"007.10", 7*Unit + Unit/10, "7.1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := Parse(tc.in)
			if err != nil || got != tc.want || got.String() != tc.out {
				t.Fatalf("Parse(%q) = %d %q, %v; want %d %q", tc.in, got, got, err, tc.want, tc.out)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	for _, in := range []string{"", ".", "1.", ".5", "-1", "+1", "1e3", "1,000", " 1", "1 ", "0x10", "1_000", "١", "NaN", "1.0000000001", "1000000000", "1.2.3", "$5"} {
		if got, err := Parse(in); !errors.Is(err, ErrSyntax) {
			t.Errorf("Parse(%q) = %v, %v; want an error that wraps ErrSyntax", in, got, err)
		}
	}
}

func TestStringOfNegatives(t *testing.T) {
	t.Parallel()
	for in, want := range map[Amount]string{-1: "-0.000000001", -Unit: "-1", math.MinInt64: "-9223372036.854775808"} {
		if got := in.String(); got != want {
			t.Errorf("Amount(%d).String() = %q, want %q", int64(in), got, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"12.50", "0", "1e9", "-1", "999999999.999999999"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := Parse(s)
		if err != nil {
			return
		}
		if a < 0 || strings.ContainsAny(s, "eE+- ") {
			t.Fatalf("Parse(%q) = %v", s, a)
		}
		if back, err := Parse(a.String()); err != nil || back != a {
			t.Fatalf("Parse(%q) = %v, %v; want %v again", a.String(), back, err, a)
		}
	})
}
