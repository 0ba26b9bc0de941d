package money

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Amount is a sum of money in nano-units (10⁻⁹) of the currency that the system policy names.
type Amount int64

// Unit is one whole unit of the currency.
const Unit Amount = 1_000_000_000

// The most digits that Parse accepts before and behind the point. Together they stay below the range of an int64.
const (
	maxWhole = 9
	maxFrac  = 9
)

// ErrSyntax is wrapped by the errors of Parse.
var ErrSyntax = errors.New(`an amount is a decimal string that is not negative, with at most 9 digits before the point and at most 9 behind it, such as "12.50"`)

// Parse reads a decimal string such as "12.50". It accepts what the API's schema accepts and nothing else: no sign, no exponent,
// no blanks, no separators. Its errors wrap ErrSyntax.
func Parse(s string) (Amount, error) {
	whole, frac, point := strings.Cut(s, ".")
	if !digits(whole, maxWhole) || (point && !digits(frac, maxFrac)) {
		return 0, fmt.Errorf("parse amount %q: %w", s, ErrSyntax)
	}
	n, err := strconv.ParseInt(whole+frac+strings.Repeat("0", maxFrac-len(frac)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("parse amount %q: %w", s, ErrSyntax)
	}
	return Amount(n), nil
}

// String is the shortest decimal string for the amount: "12.5", "0", "-0.000000001".
func (a Amount) String() string {
	sign, n := "", uint64(a)
	if a < 0 {
		sign, n = "-", -n
	}
	whole, frac := n/uint64(Unit), n%uint64(Unit)
	if frac == 0 {
		return sign + strconv.FormatUint(whole, 10)
	}
	return sign + strconv.FormatUint(whole, 10) + "." + strings.TrimRight(fmt.Sprintf("%09d", frac), "0")
}

func digits(s string, most int) bool {
	if s == "" || len(s) > most {
		return false
	}
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return false
		}
	}
	return true
}
