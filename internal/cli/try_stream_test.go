package cli

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/latchkey-dev/latchkey/internal/money"
	"github.com/latchkey-dev/latchkey/internal/policy"
)

func TestReadStream(t *testing.T) {
	for name, test := range map[string]struct {
		stream   string
		text     string
		in, out  int64
		reported bool
		err      string
	}{
		"chat, with usage at the end": {
			"data: {\"choices\":[{\"delta\":{\"content\":\"He\"}}]}\n\ndata: {\"choices\":[{\"delta\":{\"content\":\"llo\"},\"finish_reason\":\"stop\"}]}\n\n" +
				"data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":2}}\n\ndata: [DONE]\n\n",
			"Hello", 7, 2, true, "",
		},
		"chat, without usage": {"data:{\"choices\":[{\"delta\":{\"content\":\"Hi\"}}]}\n\ndata: [DONE]\n\n", "Hi", 0, 0, false, ""},
		"messages": {
			"event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":5,\"cache_read_input_tokens\":3,\"output_tokens\":1}}}\n\n" +
				"event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"delta\":{\"type\":\"text_delta\",\"text\":\"Hi\"}}\n\n" +
				"data: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":9}}\n\ndata: {\"type\":\"message_stop\"}\n\n",
			"Hi", 8, 9, true, "",
		},
		"an answer that breaks off": {"data: {\"choices\":[{\"delta\":{\"content\":\"Hi\"}}]}\n\n", "Hi", 0, 0, false, errCutOff.Error()},
		"an error in the stream":    {"data: {\"error\":{\"message\":\"overloaded\"}}\n\n", "", 0, 0, false, "overloaded"},
		"what is not JSON":          {"data: {\n\n", "", 0, 0, false, "not JSON"},
		"no stream at all":          {"<html>", "", 0, 0, false, errCutOff.Error()},
	} {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			got, err := readStream(strings.NewReader(test.stream), &b)
			if b.String() != test.text || got.usage.InputTokens != test.in || got.usage.OutputTokens != test.out || got.reported != test.reported {
				t.Errorf("%q, %+v", b.String(), got)
			}
			if (err == nil) != (test.err == "") || (err != nil && !strings.Contains(err.Error(), test.err)) {
				t.Errorf("error %v, want %q", err, test.err)
			}
		})
	}
	if _, err := readStream(strings.NewReader("data: {\"choices\":[{\"delta\":{\"content\":\"Hi\"}}]}\n"), failing{}); !errors.Is(err, errFull) {
		t.Errorf("a writer that fails: %v", err)
	}
}

var errFull = errors.New("full")

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errFull }

func TestTookText(t *testing.T) {
	got := &answered{reported: true, finish: "length", usage: policy.Usage{InputTokens: 1_000_000, OutputTokens: 500_000}}
	prices := policy.NoPrices()
	prices.Input, prices.Output = money.Unit, 2*money.Unit
	began := theMoment()
	text := tookText(got, knownModel{prices: &prices, currency: "EUR"}, began, began.Add(120*time.Millisecond), began.Add(time.Second))
	if want := "tokens: 1,000,000 in, 500,000 out · cost: 2 EUR · first text after 120 ms · all after 1000 ms · ended by length"; text != want {
		t.Errorf("%s\nwant %s", text, want)
	}
}

func TestAnswerOnATerminalCannotSteerIt(t *testing.T) {
	for _, test := range []struct {
		terminal bool
		want     string
	}{{true, "a[31mb\n"}, {false, "a\x1b[31mb\n"}} {
		var b bytes.Buffer
		w := &answerWriter{to: &b, first: theMoment, plainText: test.terminal}
		if _, err := w.Write([]byte("a\x1b[31mb\n")); err != nil || b.String() != test.want || !w.endsLine {
			t.Errorf("terminal %v: %q, %v", test.terminal, b.String(), err)
		}
	}
}
