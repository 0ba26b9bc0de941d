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

// Cost is the price of a request's usage: exact, and rounded up once to a nano-unit. What has no price costs nothing.
func (p *Prices) Cost(u *Usage) money.Amount {
	if p == nil {
		return 0
	}
	var s sum
	input, output := p.Input, p.Output
	write := otherwise(p.CacheWrite, input)
	oneHour := min(u.CacheWriteOneHourTokens, u.CacheWriteTokens)
	s.add(u.InputTokens-u.CachedInputTokens-u.CacheWriteTokens-u.AudioInputTokens-u.ImageInputTokens, input, perMillionScale)
	s.add(u.CachedInputTokens, otherwise(p.CachedInput, input), perMillionScale)
	s.add(u.CacheWriteTokens-oneHour, write, perMillionScale)
	s.add(oneHour, otherwise(p.CacheWriteOneHour, write), perMillionScale)
	s.add(u.AudioInputTokens, otherwise(p.AudioInput, input), perMillionScale)
	s.add(u.ImageInputTokens, otherwise(p.ImageInput, input), perMillionScale)
	s.add(u.OutputTokens-u.AudioOutputTokens-u.ImageOutputTokens, output, perMillionScale)
	s.add(u.AudioOutputTokens, otherwise(p.AudioOutput, output), perMillionScale)
	s.add(u.ImageOutputTokens, otherwise(p.ImageOutput, output), perMillionScale)
	s.add(u.Images, p.image(u.ImageSize, u.ImageQuality), costScale)
	s.add(u.Characters, p.PerMillionCharacters, perMillionScale)
	s.add(u.AudioMilliseconds, p.PerMinute, perMinuteScale)
	s.add(u.Searches, p.PerSearch, costScale)
	return s.amount()
}

// Most is a price that no usage of such counts can pass, whatever its tokens turn out to be: the bound of what a request can cost.
func (p *Prices) Most(u *Usage) money.Amount {
	if p == nil {
		return 0
	}
	write := max(p.CacheWrite, p.Input)
	dearest := *p
	dearest.Input = max(p.Input, p.CachedInput, write, p.CacheWriteOneHour, p.AudioInput, p.ImageInput)
	dearest.Output = max(p.Output, p.AudioOutput, p.ImageOutput)
	bound := Usage{
		InputTokens: u.InputTokens, OutputTokens: u.OutputTokens,
		Images: u.Images, ImageSize: u.ImageSize, ImageQuality: u.ImageQuality,
		Characters: u.Characters, AudioMilliseconds: u.AudioMilliseconds, Searches: u.Searches,
	}
	if p.image(u.ImageSize, u.ImageQuality) == NoPrice || u.ImageSize == "" || u.ImageQuality == "" {
		// The provider chooses what the request leaves open.
		most := NoPrice
		for _, i := range p.Images {
			most = max(most, i.Price)
		}
		dearest.Images = []ImagePrice{{Price: most}}
	}
	return dearest.Cost(&bound)
}

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

// add is a sum of two counts that stays at the largest value once it is too large.
func add(a, b int64) int64 {
	if a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}
