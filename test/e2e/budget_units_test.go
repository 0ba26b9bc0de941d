package e2e

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/big"
	"mime/multipart"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	"github.com/latchkey-dev/latchkey/test/provider"
)

// wav is silence of so many milliseconds, 8 kHz of 16 bits.
func wav(milliseconds int) string {
	const rate = 16_000 // bytes a second
	data := make([]byte, rate*milliseconds/1000)
	var b bytes.Buffer
	b.WriteString("RIFF")
	for _, v := range []any{uint32(36 + len(data)), [8]byte([]byte("WAVEfmt ")), uint32(16), uint16(1), uint16(1), uint32(8_000), uint32(rate), uint16(2), uint16(16)} {
		_ = binary.Write(&b, binary.LittleEndian, v) // a buffer takes everything
	}
	b.WriteString("data")
	_ = binary.Write(&b, binary.LittleEndian, uint32(len(data)))
	b.Write(data)
	return b.String()
}

func transcription(t *testing.T, model string, milliseconds int, fields ...string) request {
	t.Helper()
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	for i := 0; i < len(fields); i += 2 {
		if err := w.WriteField(fields[i], fields[i+1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.WriteField("model", model); err != nil {
		t.Fatal(err)
	}
	file, err := w.CreateFormFile("file", "a.wav")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.Write([]byte(wav(milliseconds))); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return request{path: "/v1/audio/transcriptions", body: b.String(), headers: map[string]string{"Content-Type": w.FormDataContentType()}}
}

// TestEveryUnitIsBilled calls each kind of endpoint, and reckons its price from the provider's log by the units that the provider publishes.
func TestEveryUnitIsBilled(t *testing.T) {
	amount := func(s string) *v1alpha1.Money { return new(v1alpha1.Money(s)) }
	// In nano-units: a million tokens, an image, a million characters, a minute, and a search.
	tokens := func(u provider.Usage, input, output int64) int64 {
		return int64(u.InputTokens)*input + int64(u.OutputTokens)*output
	}
	_, key := newTenant(t).newKey("units", func(s *v1alpha1.APIKeySpec) { s.Budgets = &v1alpha1.Budgets{Monthly: amount("1000")} })
	want := new(big.Int)
	for name, tc := range map[string]struct {
		prefix       string // of the provider's name for the model
		capabilities []v1alpha1.Capability
		prices       v1alpha1.Prices
		request      func(model string) request
		nanos        func(u provider.Usage) int64
	}{
		"embeddings": {
			capabilities: []v1alpha1.Capability{v1alpha1.CapabilityEmbeddings},
			prices:       v1alpha1.Prices{PerMillionTokens: &v1alpha1.TokenPrices{Input: amount("0.02")}},
			request: func(m string) request {
				return request{path: "/v1/embeddings", body: `{"model":"` + m + `","input":["eins","zwei und drei"]}`}
			},
			nanos: func(u provider.Usage) int64 { return tokens(u, 20, 0) },
		},
		"images by tokens": {
			capabilities: []v1alpha1.Capability{v1alpha1.CapabilityImageGeneration},
			prices:       v1alpha1.Prices{PerMillionTokens: &v1alpha1.TokenPrices{Input: amount("5"), Output: amount("40")}},
			request: func(m string) request {
				return request{path: "/v1/images/generations", body: `{"model":"` + m + `","prompt":"a key","size":"1024x1536","quality":"low"}`}
			},
			nanos: func(u provider.Usage) int64 { return tokens(u, 5_000, 40_000) },
		},
		"images by number, size and quality": {
			prefix:       "dall-e-",
			capabilities: []v1alpha1.Capability{v1alpha1.CapabilityImageGeneration},
			prices: v1alpha1.Prices{PerImage: []v1alpha1.ImagePrice{
				{Size: "1024x1024", Quality: "hd", Price: "0.08"}, {Size: "1024x1024", Price: "0.04"}, {Price: "0.12"},
			}},
			request: func(m string) request {
				return request{path: "/v1/images/generations", body: `{"model":"` + m + `","prompt":"a key","n":2,"size":"1024x1024"}`}
			},
			nanos: func(u provider.Usage) int64 { return int64(u.Images) * 40_000_000 },
		},
		"speech": {
			capabilities: []v1alpha1.Capability{v1alpha1.CapabilityTextToSpeech},
			prices:       v1alpha1.Prices{PerMillionCharacters: amount("15")},
			request: func(m string) request {
				return request{path: "/v1/audio/speech", body: `{"model":"` + m + `","voice":"alloy","input":"Grüße aus Köln"}`}
			},
			nanos: func(u provider.Usage) int64 { return int64(u.Characters) * 15_000 },
		},
		"a transcription by its length": {
			prefix:       "whisper-",
			capabilities: []v1alpha1.Capability{v1alpha1.CapabilitySpeechToText},
			prices:       v1alpha1.Prices{PerMinute: amount("0.006")},
			request:      func(m string) request { return transcription(t, m, 3_000, "prompt", "sim:reply=hello") },
			nanos:        func(u provider.Usage) int64 { return int64(u.AudioSeconds*1000) * 6_000_000 / 60_000 },
		},
		"a transcription by tokens": {
			capabilities: []v1alpha1.Capability{v1alpha1.CapabilitySpeechToText},
			prices:       v1alpha1.Prices{PerMillionTokens: &v1alpha1.TokenPrices{Input: amount("2.5"), Output: amount("10")}},
			request:      func(m string) request { return transcription(t, m, 3_000) },
			nanos:        func(u provider.Usage) int64 { return tokens(u, 2_500, 10_000) },
		},
		"web searches": {
			capabilities: []v1alpha1.Capability{v1alpha1.CapabilityTextGeneration, v1alpha1.CapabilityWebSearch},
			prices:       v1alpha1.Prices{PerMillionTokens: &v1alpha1.TokenPrices{Input: amount("1"), Output: amount("2")}, PerSearch: amount("0.01")},
			request: func(m string) request {
				return request{path: "/v1/responses", body: `{"model":"` + m + `","input":"sim:searches=3 what is new","tools":[{"type":"web_search"}],"stream":true}`}
			},
			nanos: func(u provider.Usage) int64 { return tokens(u, 1_000, 2_000) + int64(u.WebSearches)*10_000_000 },
		},
		"text completions in a stream": {
			capabilities: []v1alpha1.Capability{v1alpha1.CapabilityTextGeneration},
			prices:       v1alpha1.Prices{PerMillionTokens: &v1alpha1.TokenPrices{Input: amount("1"), Output: amount("2")}},
			request: func(m string) request {
				return request{path: "/v1/completions", body: `{"model":"` + m + `","prompt":"sim:chunks=5","stream":true}`}
			},
			nanos: func(u provider.Usage) int64 { return tokens(u, 1_000, 2_000) },
		},
	} {
		upstream := tc.prefix + "unit-" + strconv.FormatInt(time.Now().UnixNano(), 36)
		m := pricedModel(t, &tc.prices, func(s *v1alpha1.ModelSpec) { s.UpstreamName, s.Capabilities = upstream, tc.capabilities })
		before := new(big.Int).Set(spent(t, key))
		a := call(t, key, tc.request(m.Name))
		if a.status != http.StatusOK {
			t.Fatalf("%s: %v", name, a)
		}
		log := served(t, upstream)
		if len(log) != 1 {
			t.Fatalf("%s: the provider served %d requests", name, len(log))
		}
		cost := big.NewInt(tc.nanos(log[0].Consumed))
		if got := new(big.Int).Sub(spent(t, key), before); got.Cmp(cost) != 0 || cost.Sign() == 0 {
			t.Errorf("%s: %s nano-units were charged, and %s are due for %+v", name, got, cost, log[0].Consumed)
		}
		want.Add(want, cost)
	}
	if got := spent(t, key); got.Cmp(want) != 0 {
		t.Errorf("in all %s, and %s are due", got, want)
	}
	estimated := call(t, key, request{method: http.MethodGet, path: "/v1/key"})
	if !strings.Contains(estimated.body, `"estimated":0,`) {
		t.Errorf("something is an estimate: %s", fmt.Sprint(estimated))
	}
}
