package enforce

import (
	"net/http"
	"strings"
	"time"

	"github.com/latchkey-dev/latchkey/internal/ledger"
	"github.com/latchkey-dev/latchkey/internal/llm"
	"github.com/latchkey-dev/latchkey/internal/money"
	"github.com/latchkey-dev/latchkey/internal/policy"
)

// Ending says how a request that was let through ended.
type Ending string

// The endings.
const (
	EndingAnswered   Ending = "answered"    // the provider's answer came to its end
	EndingError      Ending = "error"       // the provider answered with an error, which is free
	EndingUnanswered Ending = "unanswered"  // the provider could not be reached, or did not answer in time
	EndingCredential Ending = "credential"  // the provider refused the gateway's own credential
	EndingCutOff     Ending = "cut_off"     // the caller hung up, or the provider broke off, in the middle of the answer
	EndingHungUp     Ending = "hung_up"     // the caller hung up before the answer began
	EndingNotWatched Ending = "not_watched" // the enforcer ended before the answer did
)

// Metering is what an Observer is told of a request that has ended.
type Metering struct {
	Decision
	Ending   Ending
	Usage    policy.Usage
	Cost     money.Amount
	Currency string       // of Cost and Reserved, by the policy; may be empty
	Reserved money.Amount // for it at its end
	Failure  error        // the ledger could not write it down yet; nil: it has

	// For traces.
	AnswerStatus int           // of the provider, or of the proxy in its place; 0: there was no answer
	FirstText    time.Duration // from Began to the first piece of a streamed answer's text; 0: there was none
	// AnswerModel is the model that the provider says has answered; empty when it does not. It is the meter's own memory: to be copied by
	// whoever keeps it.
	AnswerModel []byte
}

// unforwardedAnswer are headers of providers that are not for callers: they tell of the limits of the platform's own account.
func unforwardedAnswer(name string) bool {
	return strings.HasPrefix(name, "x-ratelimit-") || strings.HasPrefix(name, "anthropic-ratelimit-")
}

// ResponseHead looks at the head of a provider's response, or of the error that the proxy gives in its place. A response that says that
// the platform's own credential is no good becomes an error of the gateway's: to the caller it would look like their key, and its body can
// quote the credential. end says that no body follows.
func (x *Exchange) ResponseHead(status int, headers []Header, end bool) (*Answer, *ResponseChange) {
	if x.model == nil || x.ended {
		return nil, nil
	}
	x.status = status
	head := llm.AnswerHead{Status: status}
	change := &ResponseChange{}
	for i := range headers {
		switch h := &headers[i]; {
		case h.Name == policy.GatewayErrorHeader:
			if h.Value == policy.GatewayErrorOfProvider {
				x.finish(EndingUnanswered)
			}
			return nil, nil
		case h.Name == "content-type":
			head.ContentType = h.Value
		case h.Name == "content-encoding":
			head.ContentEncoding = h.Value
		case unforwardedAnswer(h.Name):
			change.Remove = append(change.Remove, h.Name)
		}
	}
	if status == http.StatusUnauthorized || status == http.StatusForbidden {
		x.status = http.StatusBadGateway // that is what the caller gets
		x.finish(EndingCredential)
		return x.refuse(&refusal{status: http.StatusBadGateway, kind: kindServer, retry: retryNever, reason: "provider_credential",
			message: "provider " + shown(x.model.Provider) + " refused the gateway's own credential; your key is in order. The platform team has to mend the provider's credential"}), nil
	}
	x.meter = llm.NewMeter(x.route, x.request, head)
	change.Set = append(change.Set, x.limitHeaders()...)
	if x.meter.ChangesBody() {
		change.Remove = append(change.Remove, "content-length")
	}
	if end {
		x.ResponseBody(nil, true)
	}
	return nil, change
}

// ResponseBody sees a piece of the answer on its way to the caller, who gets out in its place if changed. At the end it returns once what
// was used is written down: nobody has a whole answer that a crash of the enforcer would make free.
func (x *Exchange) ResponseBody(piece []byte, end bool) (out []byte, changed bool) {
	if x.meter == nil || x.ended {
		return nil, false
	}
	out, changed = x.meter.Write(piece, end)
	if x.firstAt.IsZero() && x.meter.TextBegan() {
		x.firstAt = x.engine.now()
	}
	if end {
		x.finish(EndingAnswered)
		return out, changed
	}
	x.grow()
	return out, changed
}

// growEvery is how much more of an answer has to be delivered before its reservation is looked at again, in output tokens.
const growEvery = 256

// grow raises the reservation once more has been delivered than was reserved.
func (x *Exchange) grow() {
	if x.reservation.ID == 0 {
		return
	}
	soFar := x.meter.SoFar()
	if soFar.OutputTokens < x.grownAt+growEvery {
		return
	}
	x.grownAt = soFar.OutputTokens
	x.engine.ledger.Grow(&x.reservation, ledger.Amounts{Tokens: soFar.Tokens(), Cost: x.cost(soFar)})
}

// ResponseEnd is called where the end of the answer is known by other means than its last piece: by its trailers.
func (x *Exchange) ResponseEnd() {
	if x.meter == nil || x.ended {
		return
	}
	x.ResponseBody(nil, true)
}

// End is called when the proxy has nothing more to say of the request, whatever became of it. watched is false where the answer goes on,
// but the enforcer does not see it any more.
func (x *Exchange) End(watched bool) {
	switch {
	case x.model == nil || x.ended || x.request == nil:
	case !watched:
		x.finish(EndingNotWatched)
	case x.meter == nil:
		x.finish(EndingHungUp)
	default:
		x.finish(EndingCutOff)
	}
}

// finish settles or releases, once.
func (x *Exchange) finish(ending Ending) {
	x.ended = true
	m := Metering{Ending: ending, Currency: x.currency, Reserved: x.reservation.Reserved.Cost, AnswerStatus: x.status}
	if !x.firstAt.IsZero() {
		m.FirstText = x.firstAt.Sub(x.began)
	}
	if x.meter != nil {
		result := x.meter.Result()
		m.AnswerModel = x.meter.Model()
		m.Usage = result.Usage
		switch {
		case x.failed() && ending != EndingNotWatched:
			m.Ending = EndingError
		case ending == EndingCutOff && result.Complete:
			m.Ending = EndingAnswered // all that counts had been seen
		case ending == EndingAnswered && !result.Complete:
			m.Ending = EndingCutOff
		}
	}
	used := ledger.Amounts{Tokens: m.Usage.Tokens(), Cost: x.cost(m.Usage)}
	switch m.Ending {
	case EndingUnanswered, EndingCredential:
		m.Failure = x.release()
		used = ledger.Amounts{}
	case EndingHungUp:
		// The provider may have done all the work. Of a stream it stops soon after; of any other answer it hardly ever does.
		m.Usage.Estimated = true
		used = x.reservation.Reserved
		if x.request.Stream {
			m.Usage.InputTokens = x.request.LikelyInputTokens()
			used = ledger.Amounts{Tokens: m.Usage.Tokens(), Cost: x.cost(m.Usage)}
		}
		m.Failure = x.settle(used, true, false)
	case EndingNotWatched:
		m.Usage.Estimated = true
		used.Tokens, used.Cost = max(used.Tokens, x.reservation.Reserved.Tokens), max(used.Cost, x.reservation.Reserved.Cost)
		m.Failure = x.settle(used, true, false)
	case EndingAnswered, EndingError, EndingCutOff:
		m.Failure = x.settle(used, m.Usage.Estimated, m.Ending == EndingAnswered)
	}
	m.Cost = used.Cost
	m.Decision = x.decision(x.engine.now())
	x.engine.observer.Metered(m)
}

// cost is the price of what was used.
func (x *Exchange) cost(u policy.Usage) money.Amount {
	u = x.billed(u)
	return x.model.Prices.Cost(&u)
}

// billed is the usage without what is not billed: images, speech and transcriptions are billed by their own units where the model has
// a price for those, and by tokens otherwise.
func (x *Exchange) billed(u policy.Usage) policy.Usage {
	p := x.model.Prices
	if p == nil {
		return u
	}
	byUnit := false
	switch x.route.Capability {
	case policy.ImageGeneration:
		if byUnit = len(p.Images) > 0; !byUnit {
			u.Images = 0
		}
	case policy.TextToSpeech:
		if byUnit = p.PerMillionCharacters >= 0; !byUnit {
			u.Characters = 0
		}
	case policy.SpeechToText:
		if byUnit = p.PerMinute >= 0; !byUnit {
			u.AudioMilliseconds = 0
		}
	default:
	}
	if byUnit {
		u.InputTokens, u.OutputTokens = 0, 0
	}
	return u
}

// failed reports whether the provider answered with an error.
func (x *Exchange) failed() bool { return x.status >= http.StatusBadRequest }

func (x *Exchange) settle(used ledger.Amounts, estimated, learn bool) error {
	if x.reservation.ID == 0 {
		return nil
	}
	return x.engine.ledger.Settle(&x.reservation, ledger.Settlement{Amounts: used, Estimated: estimated, Learn: learn})
}

func (x *Exchange) release() error {
	if x.reservation.ID == 0 {
		return nil
	}
	return x.engine.ledger.Release(&x.reservation)
}
