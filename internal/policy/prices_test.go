package policy

import (
	"math"
	"math/big"
	"math/rand/v2"
	"testing"

	"github.com/latchkey-dev/latchkey/internal/money"
)

// amountOf reads an amount of money as people write it.
func amountOf(t *testing.T, s string) money.Amount {
	t.Helper()
	a, err := money.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// pricesOf has the prices that are set, and no other.
func pricesOf(set func(*Prices)) *Prices {
	p := NoPrices()
	set(&p)
	return &p
}

func TestCost(t *testing.T) {
	t.Parallel()
	const unit = money.Unit
	text := pricesOf(func(p *Prices) { p.Input, p.Output = 2*unit+unit/2, 10*unit })
	cached := pricesOf(func(p *Prices) { p.Input, p.CachedInput, p.Output = 2*unit+unit/2, unit/4, 10*unit })
	caching := pricesOf(func(p *Prices) {
		p.Input, p.CachedInput, p.CacheWrite, p.CacheWriteOneHour, p.Output = 3*unit, 3*unit/10, 3*unit+3*unit/4, 6*unit, 15*unit
	})
	multimodal := pricesOf(func(p *Prices) {
		p.Input, p.Output, p.AudioInput, p.AudioOutput, p.ImageInput, p.ImageOutput = 5*unit, 20*unit, 40*unit, 80*unit, 10*unit, 60*unit
	})
	images := pricesOf(func(p *Prices) {
		p.Images = []ImagePrice{
			{Size: "1024x1024", Quality: "hd", Price: 80 * unit / 1000},
			{Size: "1024x1024", Price: 40 * unit / 1000},
			{Quality: "hd", Price: 120 * unit / 1000},
			{Price: 60 * unit / 1000},
			{Size: "512x512", Price: unit}, // never reached: the one before fits anything
		}
	})
	sized := pricesOf(func(p *Prices) { p.Images = []ImagePrice{{Size: "1024x1024", Price: unit}} })
	others := pricesOf(func(p *Prices) {
		p.PerMillionCharacters, p.PerMinute, p.PerSearch = 15*unit, 6*unit/1000, unit/100
	})
	for name, tc := range map[string]struct {
		prices *Prices
		usage  Usage
		want   string
	}{
		"no prices at all":                             {nil, Usage{InputTokens: 1000, Images: 3}, "0"},
		"nothing used":                                 {text, Usage{}, "0"},
		"none of the prices set":                       {pricesOf(func(*Prices) {}), Usage{InputTokens: 1000, OutputTokens: 1000, Images: 3, Characters: 9, AudioMilliseconds: 9, Searches: 9}, "0"},
		"input and output":                             {text, Usage{InputTokens: 1000, OutputTokens: 500}, "0.0075"},
		"one token":                                    {text, Usage{InputTokens: 1}, "0.0000025"},
		"a million of both":                            {text, Usage{InputTokens: 1_000_000, OutputTokens: 1_000_000}, "12.5"},
		"reasoning is output already":                  {text, Usage{OutputTokens: 500, ReasoningTokens: 400}, "0.005"},
		"an estimate costs the same":                   {text, Usage{InputTokens: 1000, OutputTokens: 500, Estimated: true}, "0.0075"},
		"cached input is cheaper":                      {cached, Usage{InputTokens: 1000, CachedInputTokens: 800}, "0.0007"},
		"cached input without a price of its own":      {text, Usage{InputTokens: 1000, CachedInputTokens: 800}, "0.0025"},
		"cached input that is free":                    {pricesOf(func(p *Prices) { p.Input, p.CachedInput = 3*unit, 0 }), Usage{InputTokens: 1000, CachedInputTokens: 900}, "0.0003"},
		"cache writes for both times":                  {caching, Usage{InputTokens: 3000, CacheWriteTokens: 2000, CacheWriteOneHourTokens: 500}, "0.011625"},
		"cache reads and writes beside plain input":    {caching, Usage{InputTokens: 10_000, CachedInputTokens: 6000, CacheWriteTokens: 3000, OutputTokens: 100}, "0.01755"},
		"one-hour writes without a price of their own": {pricesOf(func(p *Prices) { p.Input, p.CacheWrite = 3*unit, 4*unit }), Usage{InputTokens: 1000, CacheWriteTokens: 1000, CacheWriteOneHourTokens: 1000}, "0.004"},
		"cache writes without any price of their own":  {text, Usage{InputTokens: 1000, CacheWriteTokens: 1000, CacheWriteOneHourTokens: 500}, "0.0025"},
		"audio tokens":                                 {multimodal, Usage{InputTokens: 1000, AudioInputTokens: 400, OutputTokens: 1000, AudioOutputTokens: 900}, "0.093"},
		"image tokens":                                 {multimodal, Usage{InputTokens: 1000, ImageInputTokens: 900, OutputTokens: 4160, ImageOutputTokens: 4160}, "0.2591"},
		"audio and image tokens without prices":        {text, Usage{InputTokens: 1000, AudioInputTokens: 300, ImageInputTokens: 300, OutputTokens: 500, AudioOutputTokens: 200, ImageOutputTokens: 200}, "0.0075"},
		"an output price alone":                        {pricesOf(func(p *Prices) { p.Output = 10 * unit }), Usage{InputTokens: 1000, OutputTokens: 500}, "0.005"},
		"images by size and quality":                   {images, Usage{Images: 2, ImageSize: "1024x1024", ImageQuality: "hd"}, "0.16"},
		"the first entry that fits counts":             {images, Usage{Images: 1, ImageSize: "1024x1024", ImageQuality: "low"}, "0.04"},
		"an entry of any size":                         {images, Usage{Images: 1, ImageSize: "1792x1024", ImageQuality: "hd"}, "0.12"},
		"an entry of any size and quality":             {images, Usage{Images: 1, ImageSize: "512x512", ImageQuality: "low"}, "0.06"},
		"an image whose size nobody told":              {images, Usage{Images: 1}, "0.06"},
		"an image that no entry fits":                  {sized, Usage{Images: 5, ImageSize: "512x512"}, "0"},
		"characters to speak":                          {others, Usage{Characters: 4096}, "0.06144"},
		"a minute and a half of audio":                 {others, Usage{AudioMilliseconds: 90_000}, "0.009"},
		"a millisecond of audio":                       {others, Usage{AudioMilliseconds: 1}, "0.0000001"},
		"searches":                                     {others, Usage{Searches: 3}, "0.03"},
		"all of it together":                           {others, Usage{Characters: 4096, AudioMilliseconds: 90_000, Searches: 3}, "0.10044"},
		"less than a nano-unit is rounded up":          {pricesOf(func(p *Prices) { p.Input = 1 }), Usage{InputTokens: 1}, "0.000000001"},
		"a sum is rounded once, not each of its parts": {pricesOf(func(p *Prices) { p.Input, p.Output, p.PerMillionCharacters = 1, 1, 1 }), Usage{InputTokens: 1, OutputTokens: 1, Characters: 1}, "0.000000001"},
		"a whole nano-unit is not rounded":             {pricesOf(func(p *Prices) { p.Input = 1 }), Usage{InputTokens: 1_000_000}, "0.000000001"},
		"thirds of a nano-unit add up to a whole one":  {pricesOf(func(p *Prices) { p.PerMinute = 1 }), Usage{AudioMilliseconds: 60_000}, "0.000000001"},
		"kinds that claim more than there is":          {multimodal, Usage{InputTokens: 100, AudioInputTokens: 80, ImageInputTokens: 80}, "0.0034"},
		"cached audio, counted as both":                {pricesOf(func(p *Prices) { p.Input, p.CachedInput, p.AudioInput = unit, unit/10, 40*unit }), Usage{InputTokens: 100, AudioInputTokens: 100, CachedInputTokens: 100}, "0.004"},
		"one-hour writes beyond all writes":            {caching, Usage{InputTokens: 1000, CacheWriteTokens: 100, CacheWriteOneHourTokens: 1000}, "0.0033"},
		"kinds of no total":                            {multimodal, Usage{AudioInputTokens: 1000, AudioOutputTokens: 1000}, "0"},
		"counts below zero are nothing":                {multimodal, Usage{InputTokens: 100, AudioInputTokens: -5, OutputTokens: -100, Images: -1, Characters: -1, AudioMilliseconds: -1, Searches: -1}, "0.0005"},
		"a kind below zero does not add to the others": {multimodal, Usage{InputTokens: 100, ImageInputTokens: math.MinInt64, OutputTokens: 100, AudioOutputTokens: math.MinInt64}, "0.0025"},
		"all kinds at their largest claim the total":   {multimodal, Usage{InputTokens: 100, AudioInputTokens: math.MaxInt64, ImageInputTokens: math.MaxInt64, CacheWriteTokens: math.MaxInt64, CachedInputTokens: math.MaxInt64}, "0.004"},
		"kinds of one price cost the same together":    {text, Usage{InputTokens: 1000, AudioInputTokens: 700, CachedInputTokens: 700, CacheWriteTokens: 700}, "0.0025"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got, want := tc.prices.Cost(&tc.usage), amountOf(t, tc.want); got != want {
				t.Fatalf("Cost = %s, want %s", got, want)
			}
			if cost, most := tc.prices.Cost(&tc.usage), tc.prices.Most(&tc.usage); most < cost {
				t.Fatalf("Most = %s, below the cost of %s", most, cost)
			}
		})
	}
}

func TestCostStaysAtTheLargestAmount(t *testing.T) {
	t.Parallel()
	dear := pricesOf(func(p *Prices) {
		p.Input, p.Output, p.PerSearch, p.PerMinute = math.MaxInt64, math.MaxInt64, math.MaxInt64, math.MaxInt64
		p.Images = []ImagePrice{{Price: math.MaxInt64}}
	})
	for name, u := range map[string]Usage{
		"just beyond the largest":         {InputTokens: 1_000_000, OutputTokens: 1},
		"two searches":                    {Searches: 2},
		"a sum beyond 128 bits":           {Images: math.MaxInt64, Searches: math.MaxInt64, InputTokens: math.MaxInt64, OutputTokens: math.MaxInt64},
		"beyond, and then a little more":  {InputTokens: math.MaxInt64, OutputTokens: math.MaxInt64, Images: math.MaxInt64, AudioMilliseconds: 1, Searches: 1},
		"the largest counts of all kinds": {InputTokens: math.MaxInt64, AudioInputTokens: math.MaxInt64, Searches: math.MaxInt64},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if cost, most := dear.Cost(&u), dear.Most(&u); cost != math.MaxInt64 || most != math.MaxInt64 {
				t.Fatalf("Cost = %d, Most = %d; want the largest amount", cost, most)
			}
		})
	}
	if got := dear.Cost(&Usage{InputTokens: 1_000_000}); got != math.MaxInt64 {
		t.Fatalf("the largest price, once: %d", got)
	}
	if got := dear.Cost(&Usage{InputTokens: 999_999}); got != 9_223_362_813_482_738_953 { // ⌈(2⁶³−1)·0.999999⌉
		t.Fatalf("one token less: %d", got)
	}
}

// source makes random usages and prices of all magnitudes.
type source struct{ *rand.Rand }

func (r source) count() int64 {
	switch r.IntN(8) {
	case 0:
		return 0
	case 1:
		return -r.Int64N(1000)
	case 2:
		return r.Int64() // of any size
	}
	return r.Int64N(1 << (1 + r.IntN(40)))
}

func (r source) price() money.Amount {
	switch r.IntN(6) {
	case 0:
		return NoPrice
	case 1:
		return 0
	case 2:
		return money.Amount(r.Int64())
	}
	return money.Amount(r.Int64N(1 << (1 + r.IntN(45))))
}

func (r source) choice(of ...string) string { return of[r.IntN(len(of))] }

func (r source) size() string    { return r.choice("", "auto", "512x512", "1024x1024") }
func (r source) quality() string { return r.choice("", "auto", "low", "hd") }

func (r source) usage() Usage {
	return Usage{
		InputTokens: r.count(), CachedInputTokens: r.count(), CacheWriteTokens: r.count(), CacheWriteOneHourTokens: r.count(),
		AudioInputTokens: r.count(), ImageInputTokens: r.count(),
		OutputTokens: r.count(), ReasoningTokens: r.count(), AudioOutputTokens: r.count(), ImageOutputTokens: r.count(),
		Images: r.count(), ImageSize: r.size(), ImageQuality: r.quality(),
		Characters: r.count(), AudioMilliseconds: r.count(), Searches: r.count(), Estimated: r.IntN(2) == 0,
	}
}

func (r source) prices() *Prices {
	p := Prices{
		Input: r.price(), CachedInput: r.price(), CacheWrite: r.price(), CacheWriteOneHour: r.price(), Output: r.price(),
		AudioInput: r.price(), AudioOutput: r.price(), ImageInput: r.price(), ImageOutput: r.price(),
		PerMillionCharacters: r.price(), PerMinute: r.price(), PerSearch: r.price(),
	}
	for range r.IntN(4) {
		p.Images = append(p.Images, ImagePrice{
			Size: r.choice("", "512x512", "1024x1024"), Quality: r.choice("", "low", "hd"), Price: max(r.price(), 0),
		})
	}
	return &p
}

// oracle is the cost by exact fractions, from what the fields' comments say.
func oracle(p *Prices, u *Usage) money.Amount {
	total := new(big.Rat)
	charge := func(count int64, per int64, prices ...money.Amount) {
		for _, price := range prices { // the first that is set
			if price == NoPrice {
				continue
			}
			if count > 0 {
				product := new(big.Int).Mul(big.NewInt(count), big.NewInt(int64(price)))
				total.Add(total, new(big.Rat).SetFrac(product, big.NewInt(per)))
			}
			return
		}
	}
	const million, minute = 1_000_000, 60_000
	// kinds splits a total: each kind gets what it claims, as far as there is any left.
	kinds := func(count int64, claims ...int64) []int64 {
		left, split := max(count, 0), make([]int64, len(claims)+1)
		for i, claim := range claims {
			split[i] = max(min(claim, left), 0)
			left -= split[i]
		}
		split[len(claims)] = left
		return split
	}
	in := kinds(u.InputTokens, u.AudioInputTokens, u.ImageInputTokens, u.CacheWriteTokens, u.CachedInputTokens)
	written := kinds(in[2], u.CacheWriteOneHourTokens)
	charge(in[0], million, p.AudioInput, p.Input)
	charge(in[1], million, p.ImageInput, p.Input)
	charge(written[0], million, p.CacheWriteOneHour, p.CacheWrite, p.Input)
	charge(written[1], million, p.CacheWrite, p.Input)
	charge(in[3], million, p.CachedInput, p.Input)
	charge(in[4], million, p.Input)
	out := kinds(u.OutputTokens, u.AudioOutputTokens, u.ImageOutputTokens)
	charge(out[0], million, p.AudioOutput, p.Output)
	charge(out[1], million, p.ImageOutput, p.Output)
	charge(out[2], million, p.Output)
	for _, i := range p.Images {
		if (i.Size == u.ImageSize || i.Size == "") && (i.Quality == u.ImageQuality || i.Quality == "") {
			charge(u.Images, 1, i.Price)
			break
		}
	}
	charge(u.Characters, million, p.PerMillionCharacters)
	charge(u.AudioMilliseconds, minute, p.PerMinute)
	charge(u.Searches, 1, p.PerSearch)

	nano, rest := new(big.Int).QuoRem(total.Num(), total.Denom(), new(big.Int))
	if rest.Sign() > 0 {
		nano.Add(nano, big.NewInt(1))
	}
	if !nano.IsInt64() {
		return math.MaxInt64
	}
	return money.Amount(nano.Int64())
}

func TestCostIsExact(t *testing.T) {
	t.Parallel()
	r := source{rand.New(rand.NewPCG(1, 2))}
	var exact int
	for range 20_000 {
		p, u := r.prices(), r.usage()
		if r.IntN(2) == 0 { // counts and prices as they occur
			for _, count := range []*int64{&u.InputTokens, &u.OutputTokens, &u.Images, &u.Characters, &u.AudioMilliseconds, &u.Searches} {
				*count %= 1 << 12
			}
			for _, price := range []*money.Amount{&p.Input, &p.CachedInput, &p.CacheWrite, &p.Output, &p.PerMinute, &p.PerSearch, &p.AudioInput, &p.AudioOutput, &p.PerMillionCharacters} {
				*price = max(*price%(1<<30), NoPrice)
			}
		}
		got, want := p.Cost(&u), oracle(p, &u)
		if got != want || got < 0 {
			t.Fatalf("Cost = %d, want %d\n%+v\n%+v", got, want, *p, u)
		}
		if want > 0 && want < math.MaxInt64 {
			exact++
		}
	}
	if exact < 8_000 {
		t.Fatalf("only %d of the cases cost something that fits", exact)
	}
}

// TestMostIsABound takes requests of known totals, and lets their tokens turn out to be of any kinds, and their images of any size and quality
// that the request left open.
func TestMostIsABound(t *testing.T) {
	t.Parallel()
	r := source{rand.New(rand.NewPCG(3, 4))}
	settle := func(asked string, choose func() string) string {
		if asked != "" && asked != "auto" {
			return asked
		}
		return choose()
	}
	var reached int
	for range 20_000 {
		p, asked := r.prices(), r.usage()
		bound := Usage{
			InputTokens: asked.InputTokens, OutputTokens: asked.OutputTokens, Images: asked.Images, ImageSize: asked.ImageSize, ImageQuality: asked.ImageQuality,
			Characters: asked.Characters, AudioMilliseconds: asked.AudioMilliseconds, Searches: asked.Searches,
		}
		most := p.Most(&bound)
		for range 5 {
			turned := r.usage()
			turned.InputTokens, turned.OutputTokens, turned.Images = bound.InputTokens, bound.OutputTokens, bound.Images
			turned.Characters, turned.AudioMilliseconds, turned.Searches = bound.Characters, bound.AudioMilliseconds, bound.Searches
			turned.ImageSize, turned.ImageQuality = settle(bound.ImageSize, r.size), settle(bound.ImageQuality, r.quality)
			cost := p.Cost(&turned)
			if cost > most {
				t.Fatalf("Cost = %d, above the bound of %d\n%+v\n%+v", cost, most, *p, turned)
			}
			if cost == most && cost > 0 && cost < math.MaxInt64 {
				reached++
			}
		}
	}
	if reached < 500 {
		t.Fatalf("the bound was reached %d times: it is too loose to say anything", reached)
	}
}

func TestMost(t *testing.T) {
	t.Parallel()
	const unit = money.Unit
	tokens := pricesOf(func(p *Prices) { p.Input, p.CacheWrite, p.CachedInput, p.Output = 4*unit, 5*unit, unit, 20*unit })
	images := pricesOf(func(p *Prices) {
		p.Images = []ImagePrice{{Size: "1024x1024", Quality: "hd", Price: 8 * unit}, {Size: "512x512", Price: unit}, {Size: "2048x2048", Price: 9 * unit}}
	})
	for name, tc := range map[string]struct {
		prices *Prices
		usage  Usage
		want   string
	}{
		"no prices":                            {nil, Usage{InputTokens: 1}, "0"},
		"all input may be written to a cache":  {tokens, Usage{InputTokens: 1_000_000, OutputTokens: 1_000_000}, "25"},
		"the split that is told does not help": {tokens, Usage{InputTokens: 1_000_000, CachedInputTokens: 1_000_000}, "5"},
		"a size and quality that are asked":    {images, Usage{Images: 2, ImageSize: "512x512", ImageQuality: "hd"}, "2"},
		"a size that is left open":             {images, Usage{Images: 2, ImageQuality: "hd"}, "18"},
		"a size that is auto":                  {images, Usage{Images: 2, ImageSize: "auto", ImageQuality: "hd"}, "18"},
		"a quality that is auto":               {images, Usage{Images: 1, ImageSize: "1024x1024", ImageQuality: "auto"}, "9"},
		"a size that has no price":             {images, Usage{Images: 1, ImageSize: "1x1", ImageQuality: "hd"}, "9"},
		"what has no price bounds nothing":     {images, Usage{InputTokens: 5, Characters: 5, AudioMilliseconds: 5, Searches: 5}, "0"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got, want := tc.prices.Most(&tc.usage), amountOf(t, tc.want); got != want {
				t.Fatalf("Most = %s, want %s", got, want)
			}
		})
	}
}

func TestHas(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		prices *Prices
		want   bool
	}{
		"nil":                             {nil, false},
		"none set":                        {pricesOf(func(*Prices) {}), false},
		"a price of zero is one":          {pricesOf(func(p *Prices) { p.Input = 0 }), true},
		"cached input alone":              {pricesOf(func(p *Prices) { p.CachedInput = 1 }), true},
		"cache writes alone":              {pricesOf(func(p *Prices) { p.CacheWrite = 1 }), true},
		"cache writes for an hour alone":  {pricesOf(func(p *Prices) { p.CacheWriteOneHour = 1 }), true},
		"output alone":                    {pricesOf(func(p *Prices) { p.Output = 1 }), true},
		"audio input alone":               {pricesOf(func(p *Prices) { p.AudioInput = 1 }), true},
		"audio output alone":              {pricesOf(func(p *Prices) { p.AudioOutput = 1 }), true},
		"image input alone":               {pricesOf(func(p *Prices) { p.ImageInput = 1 }), true},
		"image output alone":              {pricesOf(func(p *Prices) { p.ImageOutput = 1 }), true},
		"images alone":                    {pricesOf(func(p *Prices) { p.Images = []ImagePrice{{}} }), true},
		"characters alone":                {pricesOf(func(p *Prices) { p.PerMillionCharacters = 1 }), true},
		"minutes of audio alone":          {pricesOf(func(p *Prices) { p.PerMinute = 1 }), true},
		"searches alone":                  {pricesOf(func(p *Prices) { p.PerSearch = 1 }), true},
		"the zero value is priced at 0":   {&Prices{}, true},
		"an empty list of images is none": {pricesOf(func(p *Prices) { p.Images = []ImagePrice{} }), false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := tc.prices.Has(); got != tc.want {
				t.Fatalf("Has = %v", got)
			}
		})
	}
}

func TestTokensOfAUsage(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		usage Usage
		want  int64
	}{
		"both together":                {Usage{InputTokens: 3, OutputTokens: 4, CachedInputTokens: 2, ReasoningTokens: 1}, 7},
		"too many stay at the largest": {Usage{InputTokens: math.MaxInt64, OutputTokens: 1}, math.MaxInt64},
		"below zero is nothing":        {Usage{InputTokens: 3, OutputTokens: -1}, 3},
		"nothing at all":               {Usage{InputTokens: math.MinInt64, OutputTokens: -1}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := tc.usage.Tokens(); got != tc.want {
				t.Fatalf("Tokens = %d, want %d", got, tc.want)
			}
		})
	}
}

// It runs alone: other tests would allocate beside it.
func TestCostDoesNotAllocate(t *testing.T) {
	p := pricesOf(func(p *Prices) {
		p.Input, p.CachedInput, p.Output = 2*money.Unit, money.Unit, 10*money.Unit
		p.Images = []ImagePrice{{Size: "1024x1024", Price: 1}, {Price: 2}}
	})
	u := Usage{InputTokens: 1000, CachedInputTokens: 500, OutputTokens: 300, Images: 1, ImageQuality: "hd"}
	var total money.Amount
	if n := testing.AllocsPerRun(100, func() { total += p.Cost(&u) + p.Most(&u) }); n != 0 || total == 0 {
		t.Fatalf("%v allocations, a total of %s", n, total)
	}
}
