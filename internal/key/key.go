package key

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"math/big"
	"strings"
)

const (
	scheme       = "lk_"
	randomBytes  = 32
	randomLength = 43 // ⌈32 × 8 / log₂ 62⌉
	crcLength    = 6  // ⌈32 / log₂ 62⌉

	// Length is the number of characters in a key.
	Length = len(scheme) + randomLength + crcLength

	// PrefixLength is the number of a key's characters that may be shown: enough to tell keys apart (62⁶ of them), too few to help a guess.
	PrefixLength = len(scheme) + 6
)

const base62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

// Errors of Parse.
var (
	ErrFormat   = errors.New("not a Latchkey API key: it begins with lk_ and has 52 letters and digits in all")
	ErrChecksum = errors.New("the API key's checksum does not match: it was cut off or mistyped")
)

// Plaintext is a whole key. It hides itself from fmt, slog and encoders.
type Plaintext struct{ s string }

const redacted = "lk_[redacted]"

// String hides the key.
func (Plaintext) String() string { return redacted }

// GoString hides the key from %#v.
func (Plaintext) GoString() string { return redacted }

// Format hides the key from every verb of fmt.
func (Plaintext) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// LogValue hides the key from slog.
func (Plaintext) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText hides the key from encoders.
func (Plaintext) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// Reveal is the key itself, for the one place that stores it.
func (p Plaintext) Reveal() string { return p.s }

// Hash is the SHA-256 of the key. 32 random bytes need no salt and no slow hash: they cannot be guessed.
func (p Plaintext) Hash() [sha256.Size]byte { return sha256.Sum256([]byte(p.s)) }

// Prefix is the part of the key that may be shown.
func (p Plaintext) Prefix() string { return p.s[:PrefixLength] }

// Mint makes a new key from 32 bytes of the random source, which must be cryptographic.
func Mint(random io.Reader) (Plaintext, error) {
	var b [randomBytes]byte
	if _, err := io.ReadFull(random, b[:]); err != nil {
		return Plaintext{}, fmt.Errorf("mint key: %w", err)
	}
	body := scheme + encode(new(big.Int).SetBytes(b[:]), randomLength)
	return Plaintext{s: body + checksum(body)}, nil
}

// Parse checks the form and the checksum of what a caller presented. Its errors are ErrFormat or ErrChecksum and never quote the input.
func Parse(s string) (Plaintext, error) {
	if len(s) != Length || !strings.HasPrefix(s, scheme) {
		return Plaintext{}, ErrFormat
	}
	for i := len(scheme); i < len(s); i++ {
		if c := s[i]; (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') {
			return Plaintext{}, ErrFormat
		}
	}
	body := s[:Length-crcLength]
	var want [crcLength]byte
	putChecksum(&want, body)
	if s[Length-crcLength:] != string(want[:]) {
		return Plaintext{}, ErrChecksum
	}
	return Plaintext{s: s}, nil
}

func encode(n *big.Int, length int) string {
	out := make([]byte, length)
	digit, base := new(big.Int), big.NewInt(int64(len(base62)))
	for i := length - 1; i >= 0; i-- {
		n.DivMod(n, base, digit)
		out[i] = base62[digit.Int64()]
	}
	return string(out)
}

func checksum(body string) string {
	var out [crcLength]byte
	putChecksum(&out, body)
	return string(out[:])
}

func putChecksum(out *[crcLength]byte, body string) {
	n := crc32.ChecksumIEEE([]byte(body))
	for i := crcLength - 1; i >= 0; i-- {
		out[i] = base62[n%uint32(len(base62))]
		n /= uint32(len(base62))
	}
}
