package cli

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/duration"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	"github.com/latchkey-dev/latchkey/internal/money"
)

// none is what kubectl writes where there is nothing.
const none = "<none>"

// orNone is the text, or that there is none.
func orNone(s string) string {
	if s == "" {
		return none
	}
	return oneLine(s)
}

// ago is how long ago something was, in kubectl's manner; nil and zero: never.
func ago(now time.Time, t *metav1.Time) string {
	if t.IsZero() {
		return "never"
	}
	return age(now, *t)
}

// age is how old something is.
func age(now time.Time, t metav1.Time) string {
	if t.IsZero() {
		return "<unknown>"
	}
	return duration.HumanDuration(max(now.Sub(t.Time), 0))
}

// until is how long it is until then.
func until(now, then time.Time) string { return duration.HumanDuration(then.Sub(now)) }

// number writes a limit; nil: none.
func number(n *int64) string {
	if n == nil {
		return none
	}
	return strconv.FormatInt(*n, 10)
}

// grouped writes a count with a comma at every third digit.
func grouped(n int64) string {
	digits, sign := strconv.FormatInt(n, 10), ""
	if n < 0 {
		sign, digits = "-", digits[1:]
	}
	var b strings.Builder
	for i, d := range digits {
		if i > 0 && (len(digits)-i)%3 == 0 {
			b.WriteByte(',')
		}
		b.WriteRune(d)
	}
	return sign + b.String()
}

// counted writes a number and what is counted, which gets an s.
func counted(n int64, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return grouped(n) + " " + what + "s"
}

// short writes an amount with at most four digits behind the point, rounded up, so that tables stay narrow.
func short(a money.Amount) string {
	const step = money.Unit / 10_000
	if rest := a % step; rest > 0 {
		a += step - rest
	}
	return a.String()
}

// against writes what is spent and the cap, such as 3.1/5; without a cap (negative) just what is spent.
func against(spent, limit money.Amount) string {
	if limit < 0 {
		return short(spent)
	}
	return short(spent) + "/" + short(limit)
}

// ratioStyle is green, yellow from 80 % and red from the cap on. A cap of 0 is reached at once.
func ratioStyle(spent, limit money.Amount) style {
	switch {
	case limit < 0:
		return plain
	case spent >= limit:
		return bad
	case spent >= limit-limit/5:
		return warn
	}
	return plain
}

// percent is how much of the cap is spent, in whole percent, rounded down; a cap of 0 is always used up.
func percent(spent, limit money.Amount) int64 {
	if limit <= 0 {
		return 100
	}
	return int64(float64(spent) / float64(limit) * 100)
}

// bar shows a share of a whole. More than the whole fills it.
func bar(spent, limit money.Amount, cells int, unicode bool) string {
	full, empty := "#", "."
	if unicode {
		full, empty = "█", "░"
	}
	n := cells
	if limit > 0 && spent < limit {
		n = int(float64(spent) / float64(limit) * float64(cells))
		if n == 0 && spent > 0 {
			n = 1
		}
	}
	return strings.Repeat(full, n) + strings.Repeat(empty, cells-n)
}

// spend reads an amount out of a status; what cannot be read is 0.
func spend(s v1alpha1.Spend) money.Amount {
	a, err := money.Parse(string(s))
	if err != nil {
		return 0
	}
	return a
}

// budget reads a cap; nil: none, which is negative. A cap that cannot be read refuses everything, as the enforcer would not have it.
func budget(m *v1alpha1.Money) money.Amount {
	if m == nil {
		return -1
	}
	a, err := money.Parse(string(*m))
	if err != nil {
		return 0
	}
	return a
}

// join writes a list with commas; empty: none.
func join[S ~string](list []S) string {
	if len(list) == 0 {
		return none
	}
	parts := make([]string, len(list))
	for i, s := range list {
		parts[i] = oneLine(string(s))
	}
	return strings.Join(parts, ",")
}

// scopeText writes a model scope.
func scopeText(access v1alpha1.ModelAccess, names []v1alpha1.ModelName) string {
	if access == v1alpha1.ModelAccessAll {
		return "all"
	}
	return join(names)
}

// moment writes a time for people, in a zone.
func moment(t time.Time, zone *time.Location) string {
	return t.In(zone).Format("2006-01-02 15:04:05 MST")
}

// in writes how long it is until then, or how long ago it was.
func in(now, then time.Time) string {
	if then.After(now) {
		return "in " + until(now, then)
	}
	return until(then, now) + " ago"
}

// tokensShort writes a count of tokens in thousands and millions.
func tokensShort(n int64) string {
	switch {
	case n >= 10_000_000:
		return fmt.Sprintf("%dM", n/1_000_000)
	case n >= 1_000_000:
		return fmt.Sprintf("%.1fM", float64(n)/1_000_000)
	case n >= 10_000:
		return fmt.Sprintf("%dk", n/1_000)
	}
	return strconv.FormatInt(n, 10)
}
