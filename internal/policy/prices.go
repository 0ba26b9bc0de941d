package policy

import (
	"math"
	"math/bits"

	"github.com/latchkey-dev/latchkey/internal/money"
)

// Usage is what one request used, by the units that providers bill. Kinds that an answer does not report are 0.
type Usage struct {
	// InputTokens are all tokens of the input, those of the four kinds below included.
	InputTokens             int64
	CachedInputTokens       int64 // read from the provider's cache
	CacheWriteTokens        int64 // written to the provider's cache, for any time
	CacheWriteOneHourTokens int64 // part of CacheWriteTokens: written to be kept for an hour
	AudioInputTokens        int64
	ImageInputTokens        int64

	// OutputTokens are all tokens of the output, reasoning and the two kinds below included.
	OutputTokens      int64
	ReasoningTokens   int64 // billed as output; for people to see
	AudioOutputTokens int64
	ImageOutputTokens int64

	Images            int64 // made
	ImageSize         string
	ImageQuality      string
	Characters        int64 // of the text to speak
	AudioMilliseconds int64 // of the audio transcribed, rounded up
	Searches          int64 // web search calls

	// Estimated says that the provider did not report all of it, and the rest was reckoned from what was sent and delivered.
	Estimated bool
}

// Tokens is what counts against tokens per minute: input and output together.
func (u *Usage) Tokens() int64 { return add(u.InputTokens, u.OutputTokens) }

// NoPrice is a price that is not set.
const NoPrice money.Amount = -1

// ImagePrice is the price of one image.
type ImagePrice struct {
	Size    string // such as 1024x1024; empty: any
	Quality string // such as hd; empty: any
	Price   money.Amount
}

// Prices are what a model costs, in the units in which providers publish them. NoPrice: not set. The nil pointer has none.
type Prices struct {
	// Per million tokens. Those that are not set cost what is named.
	Input             money.Amount
	CachedInput       money.Amount // as Input
	CacheWrite        money.Amount // as Input
	CacheWriteOneHour money.Amount // as CacheWrite
	Output            money.Amount
	AudioInput        money.Amount // as Input
	AudioOutput       money.Amount // as Output
	ImageInput        money.Amount // as Input
	ImageOutput       money.Amount // as Output

	Images               []ImagePrice // per image; the first that fits counts
	PerMillionCharacters money.Amount
	PerMinute            money.Amount // of audio transcribed
	PerSearch            money.Amount
}

// NoPrices sets none.
func NoPrices() Prices {
	return Prices{
		Input: NoPrice, CachedInput: NoPrice, CacheWrite: NoPrice, CacheWriteOneHour: NoPrice, Output: NoPrice, AudioInput: NoPrice,
		AudioOutput: NoPrice, ImageInput: NoPrice, ImageOutput: NoPrice, PerMillionCharacters: NoPrice, PerMinute: NoPrice, PerSearch: NoPrice,
	}
}

const (
	// costScale is a common multiple of a million tokens and of the milliseconds of a minute, so that a sum is rounded but once.
	costScale       = 3_000_000
	perMillionScale = costScale / 1_000_000
	perMinuteScale  = costScale / 60_000
)

// sum is an exact sum of products, in nano-units times costScale. It stays at its largest value once it is too large.
type sum struct{ hi, lo uint64 }

func (s *sum) add(count int64, price money.Amount, scale uint64) {
	if count <= 0 || price <= 0 {
		return
	}
	hi, lo := bits.Mul64(uint64(count), uint64(price))
	overflow, scaledHigh := bits.Mul64(hi, scale)
	carried, scaledLow := bits.Mul64(lo, scale)
	var carry uint64
	scaledHigh, carry = bits.Add64(scaledHigh, carried, 0)
	overflow += carry
	s.lo, carry = bits.Add64(s.lo, scaledLow, 0)
	s.hi, carry = bits.Add64(s.hi, scaledHigh, carry)
	if overflow+carry != 0 {
		s.hi, s.lo = math.MaxUint64, math.MaxUint64
	}
}

// amount is the sum in nano-units, rounded up.
func (s *sum) amount() money.Amount {
	if s.hi >= costScale {
		return math.MaxInt64
	}
	quotient, rest := bits.Div64(s.hi, s.lo, costScale)
	if rest > 0 && quotient < math.MaxInt64 {
		quotient++
	}
	return money.Amount(min(quotient, math.MaxInt64))
}

// Cost is the price of a request's usage: exact, and rounded up once to a nano-unit. What has no price costs nothing. Each token is
// charged once: where the kinds together claim more tokens than there are, those listed later get what is left.
func (p *Prices) Cost(u *Usage) money.Amount {
	if p == nil {
		return 0
	}
	var s sum
	input, output := p.Input, p.Output
	write := otherwise(p.CacheWrite, input)
	rest := max(u.InputTokens, 0)
	s.add(take(&rest, u.AudioInputTokens), otherwise(p.AudioInput, input), perMillionScale)
	s.add(take(&rest, u.ImageInputTokens), otherwise(p.ImageInput, input), perMillionScale)
	written := take(&rest, u.CacheWriteTokens)
	s.add(take(&written, u.CacheWriteOneHourTokens), otherwise(p.CacheWriteOneHour, write), perMillionScale)
	s.add(written, write, perMillionScale)
	s.add(take(&rest, u.CachedInputTokens), otherwise(p.CachedInput, input), perMillionScale)
	s.add(rest, input, perMillionScale)
	rest = max(u.OutputTokens, 0)
	s.add(take(&rest, u.AudioOutputTokens), otherwise(p.AudioOutput, output), perMillionScale)
	s.add(take(&rest, u.ImageOutputTokens), otherwise(p.ImageOutput, output), perMillionScale)
	s.add(rest, output, perMillionScale)
	s.add(u.Images, p.image(u.ImageSize, u.ImageQuality), costScale)
	p.addRest(&s, u)
	return s.amount()
}

// addRest adds what is charged by neither tokens nor images.
func (p *Prices) addRest(s *sum, u *Usage) {
	s.add(u.Characters, p.PerMillionCharacters, perMillionScale)
	s.add(u.AudioMilliseconds, p.PerMinute, perMinuteScale)
	s.add(u.Searches, p.PerSearch, costScale)
}

// Most is a price that no usage of such counts can pass, whatever its tokens turn out to be, and whatever size and quality the provider
// chooses for images where the request leaves them open: the bound of what a request can cost.
func (p *Prices) Most(u *Usage) money.Amount {
	if p == nil {
		return 0
	}
	var s sum
	s.add(u.InputTokens, max(p.Input, p.CachedInput, p.CacheWrite, p.CacheWriteOneHour, p.AudioInput, p.ImageInput), perMillionScale)
	s.add(u.OutputTokens, max(p.Output, p.AudioOutput, p.ImageOutput), perMillionScale)
	s.add(u.Images, p.dearestImage(u.ImageSize, u.ImageQuality), costScale)
	p.addRest(&s, u)
	return s.amount()
}

// dearestImage is the highest price that an image can turn out to have when that size and quality were asked for.
func (p *Prices) dearestImage(size, quality string) money.Amount {
	if !open(size) && !open(quality) {
		if price := p.image(size, quality); price != NoPrice {
			return price
		}
	}
	most := NoPrice
	for _, i := range p.Images {
		most = max(most, i.Price)
	}
	return most
}

// open reports whether a request leaves a size or a quality to the provider.
func open(choice string) bool { return choice == "" || choice == "auto" }

// image is the price of one image of that size and quality.
func (p *Prices) image(size, quality string) money.Amount {
	for _, i := range p.Images {
		if (i.Size == "" || i.Size == size) && (i.Quality == "" || i.Quality == quality) {
			return i.Price
		}
	}
	return NoPrice
}

// Has reports whether anything is priced.
func (p *Prices) Has() bool {
	return p != nil && (len(p.Images) > 0 || max(p.Input, p.CachedInput, p.CacheWrite, p.CacheWriteOneHour, p.Output, p.AudioInput,
		p.AudioOutput, p.ImageInput, p.ImageOutput, p.PerMillionCharacters, p.PerMinute, p.PerSearch) >= 0)
}

func otherwise(price, fallback money.Amount) money.Amount {
	if price < 0 {
		return fallback
	}
	return price
}

// take takes up to count of the tokens that are left.
func take(left *int64, count int64) int64 {
	taken := min(max(count, 0), *left)
	*left -= taken
	return taken
}

// add is a sum of two counts that stays at the largest value once it is too large. A negative count is no count.
func add(a, b int64) int64 {
	a, b = max(a, 0), max(b, 0)
	if a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}
