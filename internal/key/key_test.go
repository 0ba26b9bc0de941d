package key

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"strings"
	"testing"
)

func mint(t testing.TB) Plaintext {
	t.Helper()
	p, err := Mint(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestMintedKeysParseAndDiffer(t *testing.T) {
	t.Parallel()
	form := regexp.MustCompile(`^lk_[0-9A-Za-z]{49}$`)
	seen := map[string]bool{}
	for range 1000 {
		p := mint(t)
		if !form.MatchString(p.Reveal()) || seen[p.Reveal()] {
			t.Fatalf("minted a key of the wrong form or twice (length %d)", len(p.Reveal()))
		}
		seen[p.Reveal()] = true
		back, err := Parse(p.Reveal())
		if err != nil || back.Hash() != p.Hash() || back.Prefix() != p.Reveal()[:9] {
			t.Fatalf("Parse: %v", err)
		}
	}
}

func TestKnownKey(t *testing.T) {
	t.Parallel()
	// The form is a promise to secret scanners and to stored Secrets: this vector must never change.
	p, err := Mint(bytes.NewReader(bytes.Repeat([]byte{0x5a}, 32)))
	if err != nil {
		t.Fatal(err)
	}
	const want = "lk_LQNUGZHT5u543eF8cvF8tKdPlcVkNSYQAq1KIqZ6f742wBNO5" // computed apart from this code
	if got := p.Reveal(); got != want {
		t.Fatalf("got %s, want %s", got, want)
	}
}

func TestMintFailsWithoutRandomness(t *testing.T) {
	t.Parallel()
	if p, err := Mint(strings.NewReader("short")); err == nil || p.Reveal() != "" {
		t.Fatal("Mint made a key from too few random bytes")
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	good := mint(t).Reveal()
	flipped := []byte(good)
	flipped[10] = map[bool]byte{true: 'B', false: 'A'}[flipped[10] == 'A']
	for name, tc := range map[string]struct {
		in   string
		want error
	}{
		"nothing":                     {"", ErrFormat},
		"another vendor's key":        {"sk-proj-abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstu", ErrFormat},
		"a key cut off":               {good[:len(good)-1], ErrFormat},
		"a key with something behind": {good + "x", ErrFormat},
		"a key with a blank":          {good[:20] + " " + good[21:], ErrFormat},
		"a key in other letters":      {good[:20] + "é" + good[22:], ErrFormat},
		"one character changed":       {string(flipped), ErrChecksum},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if _, err := Parse(tc.in); !errors.Is(err, tc.want) {
				t.Fatalf("Parse = %v, want %v", err, tc.want)
			}
		})
	}
}

func TestPlaintextHidesItself(t *testing.T) {
	t.Parallel()
	p := mint(t)
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
		fmt.Fprintf(&out, verb, p)
		fmt.Fprintf(&out, verb, &p)
		fmt.Fprintf(&out, verb, struct{ P Plaintext }{p})
		fmt.Fprintf(&out, verb, []Plaintext{p})
	}
	slog.New(slog.NewJSONHandler(&out, nil)).Info("m", "key", p, "in", struct{ P Plaintext }{p})
	slog.New(slog.NewTextHandler(&out, nil)).Info("m", "key", p, "in", struct{ P Plaintext }{p})
	if err := json.NewEncoder(&out).Encode(map[string]any{"p": p, "pp": &p}); err != nil {
		t.Fatal(err)
	}
	if s := p.Reveal()[PrefixLength:]; strings.Contains(out.String(), s) || strings.Contains(out.String(), fmt.Sprintf("%x", s)) {
		t.Fatalf("the plaintext shows in: %s", out.String())
	}
}

func FuzzParse(f *testing.F) {
	f.Add("lk_")
	f.Add(mint(f).Reveal())
	f.Fuzz(func(t *testing.T, s string) {
		p, err := Parse(s)
		if err == nil && (p.Reveal() != s || len(s) != Length) {
			t.Fatalf("Parse(%q) gave another key", s)
		}
	})
}
