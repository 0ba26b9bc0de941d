package enforce

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/latchkey-dev/latchkey/internal/ledger"
	"github.com/latchkey-dev/latchkey/internal/llm"
	"github.com/latchkey-dev/latchkey/internal/money"
	"github.com/latchkey-dev/latchkey/internal/policy"
)

// What a request is thought to use at most where neither it nor its model says: budgets that are Strict refuse it instead.
const (
	unknownOutputTokens = 32_768
	tokensOfAnImage     = 8_000 // above the most that OpenAI's image models take for one: platform.openai.com/docs/guides/image-generation
	// Audio of fewer bits a second than this is hardly speech. 4 kbit/s are 2 ms a byte.
	millisecondsOfAudioByte  = 2
	millisecondsOfAudioToken = 50 // 20 tokens a second, the most that is published
)

// reserve asks the ledger to let the request pass.
func (x *Exchange) reserve(ctx context.Context, request *llm.Request) *refusal {
	system, zone := x.engine.table.systemPolicy()
	ask := ledger.Ask{
		Key:         ledger.Account{ID: x.key.UID, Limits: limitsOf(policy.KeyLimits(x.key, &system), x.key.Budgets)},
		Application: ledger.Account{ID: x.app.UID, Limits: limitsOf(x.app.Limits, x.app.Budgets)},
		Model:       x.model.Name,
		Zone:        zone,
		Volatile:    system.LedgerFailure == policy.OnFailureAllow,
	}
	x.zone, x.currency = zone, system.Currency
	budgeted := hasBudget(&ask.Key.Limits) || hasBudget(&ask.Application.Limits)
	if budgeted && system.UnpricedModels == policy.UnpricedRefuse {
		if missing := x.missingPrice(request); missing != "" {
			return &refusal{status: http.StatusForbidden, reason: "model_unpriced", param: "model",
				message: "model " + shown(x.model.Name) + " has no price " + missing + ", so a budget cannot cover the request: " +
					"whoever manages the gateway can set prices on the Model, or allow it in the SystemPolicy"}
		}
	}
	most, bounded := x.most(request)
	if !bounded && (hasStrictBudget(&ask.Key.Limits) || hasStrictBudget(&ask.Application.Limits)) && x.model.Prices.Has() {
		return badRequest("cost_unbounded", "", "the cost of the request has no upper bound, which its Strict budget needs: set the most "+
			"output tokens in the request, and leave out what lies outside of it (links, files, earlier answers, searches); or have "+
			"maxInputTokens and maxOutputTokens set on the Model")
	}
	likely := policy.Usage{InputTokens: min(request.LikelyInputTokens(), most.InputTokens), Characters: most.Characters}
	ask.Input = ledger.Amounts{Tokens: likely.Tokens(), Cost: x.cost(likely)}
	billed := x.billed(most)
	ask.Worst = ledger.Amounts{Tokens: most.Tokens(), Cost: x.model.Prices.Most(&billed)}

	reservation, refused, err := x.engine.ledger.Reserve(ctx, &ask)
	switch {
	case err != nil && ctx.Err() != nil: // nobody will read the answer
		return &refusal{status: http.StatusServiceUnavailable, kind: kindServer, reason: "caller_gone", message: "the caller has hung up"}
	case err != nil:
		x.engine.observer.LedgerFailed(err)
		return &refusal{status: http.StatusServiceUnavailable, kind: kindServer, reason: "ledger_unavailable",
			message: "the gateway cannot count the request at the moment, and so does not let it pass; try again shortly"}
	case refused != nil:
		return x.limitRefusal(refused)
	}
	x.reservation = reservation
	return nil
}

func limitsOf(rates policy.RateLimits, budgets policy.Budgets) ledger.Limits {
	return ledger.Limits{
		RequestsPerMinute:  rates.RequestsPerMinute,
		TokensPerMinute:    rates.TokensPerMinute,
		ConcurrentRequests: rates.ConcurrentRequests,
		Daily:              budgets.Daily,
		Monthly:            budgets.Monthly,
		Enforcement:        budgets.Enforcement,
	}
}

func hasBudget(l *ledger.Limits) bool { return l.Daily >= 0 || l.Monthly >= 0 }

func hasStrictBudget(l *ledger.Limits) bool { return hasBudget(l) && l.Enforcement == policy.Strict }

// missingPrice is the unit that the request uses and that has no price; empty: none.
func (x *Exchange) missingPrice(request *llm.Request) string {
	p := x.model.Prices
	if p == nil {
		none := policy.NoPrices()
		p = &none
	}
	needsSearch := request.Capabilities.Has(policy.WebSearch)
	switch path := x.route.Path; {
	case path == llm.CountTokens, path == llm.Moderations:
		return "" // free of charge at the providers
	case path == llm.Embeddings && p.Input < 0:
		return "for input tokens"
	case path == llm.Embeddings:
	case x.route.Capability == policy.ImageGeneration:
		if len(p.Images) == 0 && p.Output < 0 && p.ImageOutput < 0 {
			return "per image, nor for output tokens"
		}
	case x.route.Capability == policy.TextToSpeech:
		if p.PerMillionCharacters < 0 && p.Output < 0 && p.AudioOutput < 0 {
			return "for characters, nor for output tokens"
		}
	case x.route.Capability == policy.SpeechToText:
		if p.PerMinute < 0 && p.Input < 0 && p.AudioInput < 0 {
			return "per minute, nor for input tokens"
		}
	case p.Input < 0 || p.Output < 0:
		return "for input and output tokens"
	}
	if needsSearch && p.PerSearch < 0 {
		return "per web search"
	}
	return ""
}

// most is the most that the request can use. Without a bound it is what is likely never passed.
func (x *Exchange) most(request *llm.Request) (most policy.Usage, bounded bool) {
	bounded = true
	if x.route.Path == llm.CountTokens || x.route.Path == llm.Moderations {
		return policy.Usage{}, true
	}
	input, known := request.MostInputTokens()
	switch {
	case x.model.MaxInputTokens > 0 && known:
		input = min(input, x.model.MaxInputTokens)
	case x.model.MaxInputTokens > 0:
		input = x.model.MaxInputTokens
	default:
		bounded = known
	}
	most.InputTokens = input
	count := request.OutputCount()
	output := x.model.MaxOutputTokens
	if request.MaxTokens > 0 && (output == 0 || request.MaxTokens < output) {
		output = request.MaxTokens
	}
	switch x.route.Capability {
	case policy.Embeddings:
		output = 0
	case policy.ImageGeneration:
		most.Images, most.ImageSize, most.ImageQuality = count, request.ImageSize, request.ImageQuality
		output = max(output, tokensOfAnImage)
	case policy.SpeechToText:
		most.AudioMilliseconds = saturated(request.MediaBytes, millisecondsOfAudioByte)
		if request.AudioMilliseconds > 0 {
			most.AudioMilliseconds = request.AudioMilliseconds
		}
		most.InputTokens += most.AudioMilliseconds / millisecondsOfAudioToken
		output = max(output, most.InputTokens)
	case policy.TextToSpeech:
		most.Characters = request.InputCharacters
		if output == 0 {
			output = unknownOutputTokens
			bounded = bounded && x.model.Prices != nil && x.model.Prices.PerMillionCharacters >= 0
		}
	default:
		if output == 0 {
			output, bounded = unknownOutputTokens, false
		}
	}
	most.OutputTokens = saturated(output, count)
	if request.Capabilities.Has(policy.WebSearch) {
		most.Searches = 1
		if x.route.Path != llm.ChatCompletions { // which makes one search a request
			most.Searches = 10
			bounded = bounded && (x.model.Prices == nil || x.model.Prices.PerSearch <= 0)
		}
	}
	return most, bounded
}

func saturated(a, b int64) int64 {
	if a > 0 && b > math.MaxInt64/a {
		return math.MaxInt64
	}
	return a * b
}

// limitRefusal puts a limit that was met into words: whose it is, its value, what is used, and when it is free again.
func (x *Exchange) limitRefusal(r *ledger.Refusal) *refusal {
	now := x.engine.now()
	wait := max(int64(math.Ceil(r.Reset.Sub(now).Seconds())), 1)
	if r.Limit < ledger.Daily {
		wait = min(wait, maxRateWait)
	}
	x.standing()
	whose := "the API key " + x.prefix() + "…"
	if r.Scope == ledger.ScopeApplication {
		whose = "the application " + shown(x.app.DisplayName)
	}
	out := &refusal{status: http.StatusTooManyRequests, after: wait, code: "rate_limit_exceeded", kind: kindRequests, headers: x.limitHeaders()}
	again := fmt.Sprintf("; try again in %ds", wait)
	switch r.Limit {
	case ledger.RequestsPerMinute:
		out.reason = "requests_per_minute"
		out.message = fmt.Sprintf("rate limit reached: %s is allowed %d requests in any minute, and has made %d%s", whose, r.Max, r.Used, again)
	case ledger.TokensPerMinute:
		out.kind, out.reason = kindTokens, "tokens_per_minute"
		out.message = fmt.Sprintf("rate limit reached: %s is allowed %d tokens in any minute; %d are used and %d reserved by requests under way%s",
			whose, r.Max, r.Used, r.Reserved, again)
	case ledger.ConcurrentRequests:
		out.reason = "concurrent_requests"
		out.message = fmt.Sprintf("rate limit reached: %s is allowed %d requests at one time, and %d are under way%s", whose, r.Max, r.Reserved, again)
	case ledger.Daily, ledger.Monthly:
		x.budgetRefusal(out, r, whose, now)
	}
	if r.Max == 0 && r.Limit < ledger.Daily {
		out.retry = retryNever
		out.message = fmt.Sprintf("%s is allowed no requests: its limit %s is 0; whoever manages it can raise that", whose, limitField(r.Limit))
	}
	return out
}

// maxRateWait is the most seconds that a rate limit tells a caller to wait. The SDKs and Claude Code heed no more; the ledger's minute can
// be a second longer than that.
const maxRateWait = 60

// standing looks up how the caller stands in the limits per minute, where no reservation says so.
func (x *Exchange) standing() {
	system, zone := x.engine.table.systemPolicy()
	x.reservation.Requests.Max, x.reservation.Tokens.Max = policy.Unset, policy.Unset
	for _, side := range [...]struct {
		id     string
		scope  ledger.Scope
		limits policy.RateLimits
	}{
		{x.key.UID, ledger.ScopeKey, policy.KeyLimits(x.key, &system)},
		{x.app.UID, ledger.ScopeApplication, x.app.Limits},
	} {
		b := x.engine.ledger.Balance(side.id, zone)
		for _, w := range [...]struct {
			of    *ledger.Window
			max   policy.Limit
			used  int64
			reset time.Duration
		}{
			{&x.reservation.Requests, side.limits.RequestsPerMinute, b.RequestsInMinute, b.RequestsReset},
			{&x.reservation.Tokens, side.limits.TokensPerMinute, b.TokensInMinute + b.TokensReserved, b.TokensReset},
		} {
			left := max(int64(w.max)-w.used, 0)
			if w.max.IsSet() && (!w.of.Max.IsSet() || left < w.of.Remaining) {
				*w.of = ledger.Window{Max: w.max, Remaining: left, Reset: w.reset, Scope: side.scope}
			}
		}
	}
}

// limitField is the limit's name in the API.
func limitField(l ledger.Limit) string {
	switch l {
	case ledger.RequestsPerMinute:
		return "rateLimits.requestsPerMinute"
	case ledger.TokensPerMinute:
		return "rateLimits.tokensPerMinute"
	case ledger.ConcurrentRequests:
		return "rateLimits.concurrentRequests"
	case ledger.Daily:
		return "budgets.daily"
	case ledger.Monthly:
	}
	return "budgets.monthly"
}

func (x *Exchange) budgetRefusal(out *refusal, r *ledger.Refusal, whose string, now time.Time) {
	window := "daily"
	if r.Limit == ledger.Monthly {
		window = "monthly"
	}
	sum := func(nanos int64) string { return money.Amount(nanos).String() + " " + x.currency }
	budget := "the " + window + " budget of " + whose
	if r.Held {
		// It may pass once a request under way has turned out cheaper than what is reserved for it.
		out.reason = "budget_reserved"
		out.message = fmt.Sprintf("%s is reserved by requests under way: %s spent and %s reserved of %s; try again in %ds",
			budget, sum(r.Used), sum(r.Reserved), sum(r.Max), out.after)
		return
	}
	out.kind, out.code, out.reason, out.retry = kindQuota, "insufficient_quota", "budget_exhausted", retryNever
	resets := fmt.Sprintf("; it resets at %s, in %s", r.Reset.In(x.zone).Format(time.RFC3339), r.Reset.Sub(now).Round(time.Second))
	switch {
	case r.Max == 0:
		out.message = budget + " is 0, so nothing can be spent: whoever manages it can raise it"
	case r.Needed > 0 && r.Used < r.Max:
		out.message = fmt.Sprintf("%s has %s left of %s, and the request can cost up to %s: ask for fewer output tokens%s",
			budget, sum(r.Max-r.Used), sum(r.Max), sum(r.Needed), resets)
	default:
		out.message = fmt.Sprintf("%s is used up: %s of %s spent%s", budget, sum(r.Used), sum(r.Max), resets)
	}
}

// limitHeaders tell how the caller stands in the limits per minute, in the names of the dialect.
func (x *Exchange) limitHeaders() []Header {
	requests, tokens := &x.reservation.Requests, &x.reservation.Tokens
	headers := make([]Header, 0, 6)
	if x.dialect == llm.Anthropic {
		now := x.engine.now()
		add := func(kind string, w *ledger.Window) {
			if w.Max.IsSet() {
				headers = append(headers,
					Header{"anthropic-ratelimit-" + kind + "-limit", strconv.FormatInt(int64(w.Max), 10)},
					Header{"anthropic-ratelimit-" + kind + "-remaining", strconv.FormatInt(w.Remaining, 10)},
					Header{"anthropic-ratelimit-" + kind + "-reset", now.Add(w.Reset).UTC().Format(time.RFC3339)})
			}
		}
		add("requests", requests)
		add("tokens", tokens)
		return headers
	}
	add := func(kind string, w *ledger.Window) {
		if w.Max.IsSet() {
			headers = append(headers,
				Header{"x-ratelimit-limit-" + kind, strconv.FormatInt(int64(w.Max), 10)},
				Header{"x-ratelimit-remaining-" + kind, strconv.FormatInt(w.Remaining, 10)},
				Header{"x-ratelimit-reset-" + kind, resetDuration(w.Reset)})
		}
	}
	add("requests", requests)
	add("tokens", tokens)
	return headers
}

// resetDuration is a duration as OpenAI writes it: 1s, 6m0s, 120ms.
func resetDuration(d time.Duration) string {
	if d >= time.Second {
		d = d.Round(time.Second)
	}
	return d.Round(time.Millisecond).String()
}
