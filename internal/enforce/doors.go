package enforce

import (
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/latchkey-dev/latchkey/internal/money"
	"github.com/latchkey-dev/latchkey/internal/policy"
)

// door is a path at which the holder of a key asks how it stands, in the shape of an API that tools know.
type door uint8

// The doors.
const (
	doorKey          door = iota // OpenRouter's GET /api/v1/key, and ours
	doorBalance                  // DeepSeek's GET /user/balance, and what CC Switch's General template reads
	doorSelf                     // New API's GET /api/user/self
	doorSubscription             // One API's GET /dashboard/billing/subscription
	doorUsage                    // One API's GET /dashboard/billing/usage
	doorGrants                   // GET /dashboard/billing/credit_grants
	doorToken                    // New API's GET /api/usage/token
)

var doorEndings = [...]struct {
	ending string
	door   door
}{
	{"/v1/key", doorKey},
	{"/user/balance", doorBalance},
	{"/api/user/self", doorSelf},
	{"/dashboard/billing/subscription", doorSubscription},
	{"/dashboard/billing/usage", doorUsage},
	{"/dashboard/billing/credit_grants", doorGrants},
	{"/api/usage/token", doorToken},
	{"/api/usage/token/", doorToken},
}

// doorAt finds the door at a path. Any prefix may stand before it, since a base URL can have one; but a model's ID can hold slashes, so
// that what is below models is no door.
func doorAt(path string) (door, bool) {
	if strings.HasPrefix(path, "/v1/models/") || strings.HasPrefix(path, "/models/") {
		return 0, false
	}
	for _, d := range doorEndings {
		if strings.HasSuffix(path, d.ending) {
			return d.door, true
		}
	}
	return 0, false
}

// doorsAMinute is how often a key can ask at its doors in a minute. Meters ask every few minutes.
const doorsAMinute = 120

// maxDoorCounts bounds how many keys' counts are kept. Those of minutes that have passed are let go.
const maxDoorCounts = 10_000

// doorLimiter counts how often keys ask at their doors. It is safe for concurrent use.
type doorLimiter struct {
	mu     sync.Mutex
	counts map[string]doorCount // by UID
}

type doorCount struct {
	since time.Time
	n     int
}

// wait is how long a key has to wait; 0: not at all.
func (l *doorLimiter) wait(uid string, now time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	c, found := l.counts[uid]
	if passed := now.Sub(c.since); !found || passed >= time.Minute || passed < 0 {
		if len(l.counts) >= maxDoorCounts {
			for id, old := range l.counts {
				if passed := now.Sub(old.since); passed >= time.Minute || passed < 0 {
					delete(l.counts, id)
				}
			}
		}
		if l.counts == nil || len(l.counts) >= maxDoorCounts {
			l.counts = map[string]doorCount{}
		}
		c = doorCount{since: now}
	}
	if c.n >= doorsAMinute {
		return c.since.Add(time.Minute).Sub(now)
	}
	c.n++
	l.counts[uid] = c
	return 0
}

// open answers at a door. The key is known, and may have expired.
func (x *Exchange) open(d door, now time.Time) *Answer {
	if x.head.Method != http.MethodGet && x.head.Method != http.MethodHead {
		return x.refuse(&refusal{status: http.StatusMethodNotAllowed, reason: "method_not_allowed", allow: "GET, HEAD",
			message: "method " + shown(x.head.Method) + " is not allowed here: use GET"})
	}
	if wait := x.engine.doors.wait(x.key.UID, now); wait > 0 {
		return x.refuse(&refusal{status: http.StatusTooManyRequests, kind: kindRequests, code: "rate_limit_exceeded", reason: "door_limit",
			after:   int64(wait/time.Second) + 1,
			message: "the API key " + x.prefix() + "… has asked for its state 120 times within a minute; try again in " + (wait.Truncate(time.Second) + time.Second).String()})
	}
	system, zone := x.engine.table.systemPolicy()
	s := newStatement(x.key, x.key.Credential(x.hash), x.app, &system, x.modelNames(), x.engine.ledger.Balance(x.key.UID, zone), x.engine.ledger.Balance(x.app.UID, zone), now)
	body, refused := s.body(d, x.query, zone)
	if refused != nil {
		return x.refuse(refused)
	}
	answer := x.reply(http.StatusOK, body)
	answer.Headers = append(answer.Headers, Header{"cache-control", "no-store"})
	answer.Reason = "state_told"
	return answer
}

// modelNames are the models that the key may call.
func (x *Exchange) modelNames() []string {
	granted := x.key.Capabilities & x.app.Capabilities
	names := []string{}
	for _, m := range x.engine.table.allModels() {
		if x.mayCall(m) && m.Capabilities&granted != 0 {
			names = append(names, m.Name)
		}
	}
	return names
}

// object is a JSON object.
type object map[string]any

// body is what is said at a door.
func (s *statement) body(d door, query string, zone *time.Location) (any, *refusal) {
	switch d {
	case doorKey:
		return object{"data": s.keyData()}, nil
	case doorBalance:
		return s.balanceBody(), nil
	case doorSelf:
		return object{"success": true, "message": "", "data": object{
			"username": s.key.DisplayName, "display_name": s.key.DisplayName, "group": s.app.DisplayName,
			"quota": quotaOf(s.left()), "used_quota": quotaUsed(s.used()), "request_count": s.balance.Month.Requests,
		}}, nil
	case doorSubscription:
		total := number(s.left() + s.used())
		if s.tightest() == nil {
			total = json.Number("100000000")
		}
		return object{
			"object": "billing_subscription", "has_payment_method": true, "soft_limit_usd": total, "hard_limit_usd": total,
			"system_hard_limit_usd": total, "access_until": s.expiryUnix(),
		}, nil
	case doorUsage:
		used, refused := s.usedBetween(query, zone)
		if refused != nil {
			return nil, refused
		}
		return object{"object": "list", "total_usage": cents(used)}, nil
	case doorGrants:
		return object{"object": "credit_summary", "total_granted": number(s.left() + s.used()), "total_used": number(s.used()), "total_available": number(s.left())}, nil
	case doorToken:
	}
	limits := map[string]bool{}
	if !s.effective.Models.All {
		for _, m := range s.models {
			limits[m] = true
		}
	}
	return object{"code": true, "message": "ok", "data": object{
		"object": "token_usage", "name": s.key.DisplayName, "total_granted": quotaOf(s.left()) + quotaUsed(s.used()), "total_used": quotaUsed(s.used()),
		"total_available": quotaOf(s.left()), "unlimited_quota": s.tightest() == nil, "model_limits": limits,
		"model_limits_enabled": !s.effective.Models.All, "expires_at": s.expiryUnix(),
	}}, nil
}

// keyData is OpenRouter's, and our own beside it.
func (s *statement) keyData() object {
	data := object{
		"label": s.key.DisplayName, "limit": nil, "limit_remaining": nil, "limit_reset": nil, "usage": number(s.used()),
		"usage_daily": number(s.balance.Day.Spent), "usage_monthly": number(s.balance.Month.Spent), "is_free_tier": false,
		"is_provisioning_key": false, "expires_at": s.expiry(),
		"rate_limit": object{"requests": s.requests[0], "interval": "60s"},

		"state": s.state, "key_prefix": s.credential.Prefix, "namespace": s.key.Namespace, "name": s.key.Name, "application": s.key.Application,
		"application_label": s.app.DisplayName, "currency": s.system.Currency, "time_zone": s.system.TimeZone,
		"capabilities": capabilityNames(s.effective.Capabilities), "models": s.models, "all_models": s.effective.Models.All,
		"today": s.period(s.balance.Day.Requests, s.balance.Day.Tokens, s.balance.Day.Spent, s.balance.Day.Estimated, s.balance.Day.Reserved),
		"this_month": s.period(s.balance.Month.Requests, s.balance.Month.Tokens, s.balance.Month.Spent, s.balance.Month.Estimated,
			s.balance.Month.Reserved),
		"last_used_at": nil, "replaced": nil,
	}
	if ends := s.credential.Ends; !ends.IsZero() {
		data["replaced"] = object{"ends_at": ends.UTC().Format(time.RFC3339)}
	}
	if w := s.tightest(); w != nil {
		data["limit"], data["limit_remaining"], data["limit_reset"] = number(w.cap), number(w.remaining()), w.period
	}
	if !s.balance.LastUsed.IsZero() {
		data["last_used_at"] = s.balance.LastUsed.UTC().Format(time.RFC3339)
	}
	budgets := make([]object, 0, len(s.windows))
	for i := range s.windows {
		w := &s.windows[i]
		budgets = append(budgets, object{
			"of": w.scope, "period": w.period, "limit": number(w.cap), "spent": number(w.used), "reserved": number(w.held),
			"remaining": number(w.remaining()), "resets_at": w.resets.Format(time.RFC3339),
		})
	}
	data["budgets"] = budgets
	data["limits"] = object{
		"requests_per_minute": limitOf(s.requests[0], s.requests[1], s.balance.RequestsReset),
		"tokens_per_minute":   limitOf(s.tokens[0], s.tokens[1], s.balance.TokensReset),
		"concurrent_requests": limitOf(int64(s.effective.Limits.ConcurrentRequests),
			max(int64(s.effective.Limits.ConcurrentRequests)-s.balance.ConcurrentRequests, 0), 0),
	}
	return data
}

func (s *statement) period(requests, tokens int64, spent, estimated, reserved money.Amount) object {
	return object{"requests": requests, "tokens": tokens, "spent": number(spent), "estimated": number(estimated), "reserved": number(reserved)}
}

// limitOf is a limit as it stands; null: there is none.
func limitOf(limit, remaining int64, reset time.Duration) any {
	if limit < 0 {
		return nil
	}
	return object{"limit": limit, "remaining": remaining, "reset_seconds": int64((reset + time.Second - 1) / time.Second)}
}

func capabilityNames(set policy.Capabilities) []string {
	names := []string{}
	for _, c := range set.List() {
		names = append(names, c.String())
	}
	return names
}

// balanceBody is read by CC Switch's General template (is_active, balance), by DeepSeek's readers, and by plans of several windows.
func (s *statement) balanceBody() object {
	valid := s.state != stateExpired
	left := s.left()
	plans := make([]object, 0, max(len(s.windows), 1))
	for i := range s.windows {
		w := &s.windows[i]
		plans = append(plans, object{
			"planName": w.planned, "remaining": number(w.remaining()), "used": number(w.used), "total": number(w.cap), "unit": s.system.Currency,
			"isValid": valid, "extra": "resets " + w.resets.Format(time.RFC3339),
		})
	}
	if len(plans) == 0 {
		plans = append(plans, object{
			"planName": s.key.DisplayName, "remaining": number(left), "used": number(s.used()), "total": json.Number("-1"), "unit": s.system.Currency,
			"isValid": valid, "extra": "no budget",
		})
	}
	return object{
		"is_active": valid, "balance": number(left), "currency": s.system.Currency,
		"is_available":  valid && left > 0,
		"balance_infos": []object{{"currency": s.system.Currency, "total_balance": fixed(left), "granted_balance": "0.00", "topped_up_balance": fixed(left)}},
		"plans":         plans,
	}
}

// usedBetween is what was spent within the dates of a query, as far as the ledger can tell: of today alone where they name no other day,
// and otherwise what goes with the total that the other doors tell.
func (s *statement) usedBetween(query string, zone *time.Location) (money.Amount, *refusal) {
	values, err := url.ParseQuery(strings.TrimPrefix(query, "?"))
	if err != nil {
		return 0, badRequest("bad_request", "", "the query cannot be read: percent-encode it")
	}
	today := s.now.In(zone).Format(time.DateOnly)
	onlyToday := true
	for _, name := range []string{"start_date", "end_date"} {
		value := values.Get(name)
		if value == "" {
			onlyToday = false
			continue
		}
		if _, err := time.Parse(time.DateOnly, value); err != nil {
			return 0, badRequest("bad_request", name, name+" must be a date such as "+today)
		}
		onlyToday = onlyToday && value == today
	}
	if onlyToday {
		return s.balance.Day.Spent, nil
	}
	return s.used(), nil
}
