package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"time"

	"github.com/latchkey-dev/latchkey/internal/money"
)

// valueVersion is the first byte of what a checksum covers. A value of a greater one is not damaged, but not for us to read either.
const valueVersion = 1

const checksumSize = 4

// errNewer is wrapped by the errors about a file that an older version must neither read nor replace.
var errNewer = errors.New("it was written by a newer version: start that version again, or give this one another directory")

// Which bucket a value stands in is part of its checksum: a day is no month, though they look alike.
const (
	tagHead     = 'h'
	tagAccounts = 'a'
	tagOpen     = 'o'
	tagDays     = 'd'
	tagMonths   = 'm'
)

// digest sums up a bucket, so that an entry which is missing, or is one of yesterday's, is found. The sum is of the values' checksums.
type digest struct{ count, sum uint64 }

func (d *digest) add(value []byte) {
	d.count++
	d.sum += uint64(binary.BigEndian.Uint32(value))
}

func (d *digest) remove(value []byte) {
	d.count--
	d.sum -= uint64(binary.BigEndian.Uint32(value))
}

// head is what is known of the file as a whole, as of its latest commit.
type head struct {
	commit                       uint64 // counts commits
	nextID                       uint64
	accounts, open, days, months digest
}

// seal appends a value: its checksum, and what the checksum covers beside the tag and the key.
func seal(dst []byte, tag byte, key []byte, body func([]byte) []byte) []byte {
	start := len(dst)
	dst = append(dst, 0, 0, 0, 0, valueVersion)
	dst = body(dst)
	binary.BigEndian.PutUint32(dst[start:], checksum(tag, key, dst[start+checksumSize:]))
	return dst
}

func checksum(tag byte, key, rest []byte) uint32 {
	table := crc32.MakeTable(crc32.Castagnoli) // made once: it is the same each time
	return crc32.Update(crc32.Update(crc32.Update(0, table, []byte{tag}), table, key), table, rest)
}

// unseal returns what follows the version.
func unseal(tag byte, key, value []byte) (reader, error) {
	if len(value) <= checksumSize {
		return reader{}, errors.New("it is too short")
	}
	if binary.BigEndian.Uint32(value) != checksum(tag, key, value[checksumSize:]) {
		return reader{}, errors.New("its checksum is wrong")
	}
	if version := value[checksumSize]; version != valueVersion {
		return reader{}, fmt.Errorf("it has version %d; this version reads %d: %w", version, valueVersion, errNewer)
	}
	return reader{rest: value[checksumSize+1:]}, nil
}

func appendTotals(dst []byte, t *Totals) []byte {
	for _, n := range [...]int64{t.Requests, t.Tokens, int64(t.Spent), int64(t.Estimated)} {
		dst = binary.AppendVarint(dst, n)
	}
	return dst
}

// appendTime writes 0 for no time, and otherwise 1 + the nanoseconds within the second, and the second.
func appendTime(dst []byte, t time.Time) []byte {
	if t.IsZero() {
		return append(dst, 0)
	}
	return binary.AppendVarint(binary.AppendUvarint(dst, uint64(t.Nanosecond())+1), t.Unix())
}

func appendString(dst []byte, s string) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(s))), s...)
}

func appendAccount(dst []byte, a *Account) []byte {
	dst = binary.AppendVarint(dst, int64(a.Day))
	dst = binary.AppendVarint(dst, int64(a.Month))
	dst = appendTotals(appendTotals(dst, &a.DayUsage), &a.MonthUsage)
	return appendTime(appendTime(dst, a.LastUsed), a.BlockedSince)
}

func appendOpen(dst []byte, o *Open) []byte {
	dst = appendString(appendString(appendString(dst, o.Key), o.Application), o.Model)
	for _, n := range [...]int64{o.Tokens, int64(o.Cost), int64(o.Day), int64(o.Month)} {
		dst = binary.AppendVarint(dst, n)
	}
	return appendTime(dst, o.Time)
}

func appendHead(dst []byte, h *head) []byte {
	for _, n := range [...]uint64{
		h.commit, h.nextID, h.accounts.count, h.accounts.sum, h.open.count, h.open.sum, h.days.count, h.days.sum, h.months.count, h.months.sum,
	} {
		dst = binary.AppendUvarint(dst, n)
	}
	return dst
}

// reader takes a value apart. After the first thing that cannot be read it returns zeros.
type reader struct {
	rest []byte
	bad  bool
}

func (r *reader) fail() {
	r.bad, r.rest = true, nil
}

func (r *reader) uint() uint64 {
	n, size := binary.Uvarint(r.rest)
	if size <= 0 {
		r.fail()
		return 0
	}
	r.rest = r.rest[size:]
	return n
}

func (r *reader) int() int64 {
	n, size := binary.Varint(r.rest)
	if size <= 0 {
		r.fail()
		return 0
	}
	r.rest = r.rest[size:]
	return n
}

func (r *reader) int32() int32 {
	n := r.int()
	if n < math.MinInt32 || n > math.MaxInt32 {
		r.fail()
		return 0
	}
	return int32(n)
}

func (r *reader) string() string {
	size := r.uint()
	if size > uint64(len(r.rest)) {
		r.fail()
		return ""
	}
	s := string(r.rest[:size])
	r.rest = r.rest[size:]
	return s
}

func (r *reader) time() time.Time {
	nanos := r.uint()
	if nanos == 0 {
		return time.Time{}
	}
	if nanos > uint64(time.Second) {
		r.fail()
		return time.Time{}
	}
	return time.Unix(r.int(), int64(nanos-1)).UTC()
}

func (r *reader) totals() Totals {
	return Totals{Requests: r.int(), Tokens: r.int(), Spent: money.Amount(r.int()), Estimated: money.Amount(r.int())}
}

func (r *reader) end() error {
	if r.bad || len(r.rest) > 0 {
		return errors.New("it cannot be read")
	}
	return nil
}

func decodeAccount(key, value []byte) (Account, error) {
	r, err := unseal(tagAccounts, key, value)
	if err != nil {
		return Account{}, err
	}
	a := Account{
		ID: string(key), Day: r.int32(), Month: r.int32(), DayUsage: r.totals(), MonthUsage: r.totals(), LastUsed: r.time(), BlockedSince: r.time(),
	}
	return a, r.end()
}

func decodeOpen(key, value []byte) (Open, error) {
	if len(key) != 8 {
		return Open{}, errors.New("its key is not of 8 bytes")
	}
	r, err := unseal(tagOpen, key, value)
	if err != nil {
		return Open{}, err
	}
	o := Open{
		ID: binary.BigEndian.Uint64(key), Key: r.string(), Application: r.string(), Model: r.string(), Tokens: r.int(), Cost: money.Amount(r.int()),
		Day: r.int32(), Month: r.int32(), Time: r.time(),
	}
	return o, r.end()
}

func decodeTotals(tag byte, key, value []byte) (Totals, error) {
	if len(key) <= periodSize {
		return Totals{}, errors.New("its key is too short")
	}
	r, err := unseal(tag, key, value)
	if err != nil {
		return Totals{}, err
	}
	t := r.totals()
	return t, r.end()
}

func decodeHead(value []byte) (head, error) {
	r, err := unseal(tagHead, headKey, value)
	if err != nil {
		return head{}, err
	}
	h := head{commit: r.uint(), nextID: r.uint()}
	for _, d := range [...]*digest{&h.accounts, &h.open, &h.days, &h.months} {
		*d = digest{r.uint(), r.uint()}
	}
	return h, r.end()
}

// periodSize is what follows the account's ID in the key of a day or a month: 0 and the period.
const periodSize = 1 + 4

func appendPeriod(dst []byte, id string, period int32) []byte {
	return binary.BigEndian.AppendUint32(append(append(dst, id...), 0), uint32(period))
}

func periodOf(key []byte) int32 { return int32(binary.BigEndian.Uint32(key[len(key)-4:])) }
