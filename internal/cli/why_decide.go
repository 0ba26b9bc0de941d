package cli

import (
	"fmt"
	"net/http"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	"github.com/latchkey-dev/latchkey/internal/compile"
	"github.com/latchkey-dev/latchkey/internal/llm"
	"github.com/latchkey-dev/latchkey/internal/money"
	"github.com/latchkey-dev/latchkey/internal/policy"
)

// question is what is asked about a key, and all that is known to answer it.
type question struct {
	key      *v1alpha1.APIKey
	app      *v1alpha1.Application // nil: there is none
	model    string                // empty: whichever
	path     string                // empty: whichever
	models   []v1alpha1.Model
	provider func(name string) *v1alpha1.Provider // nil: there is none of that name
	cal      calendar
}

// The outcomes of a check.
const (
	outcomeOK      = "ok"
	outcomeRefused = "refused"
	outcomeLimit   = "limit" // counted by the minute, where no status can tell
	outcomeNote    = "note"
)

// check is one thing that is looked at.
type check struct {
	Outcome string `json:"outcome"`
	What    string `json:"what"`
	Says    string `json:"says"`
}

// verdict is whether a request would pass now.
type verdict struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Path      string `json:"path,omitempty"`
	Model     string `json:"model,omitempty"`
	Passes    bool   `json:"passes"`
	// Status is the HTTP status of the refusal; 0: none.
	Status int `json:"status,omitempty"`
	// Reason is what refuses, in a sentence.
	Reason string `json:"reason,omitempty"`
	// Resets is when the refusing budget begins anew.
	Resets *metav1.Time `json:"resets,omitempty"`
	Checks []check      `json:"checks"`
}

func (v *verdict) ok(what, format string, args ...any) {
	v.Checks = append(v.Checks, check{outcomeOK, what, fmt.Sprintf(format, args...)})
}

func (v *verdict) note(outcome, what, format string, args ...any) {
	v.Checks = append(v.Checks, check{outcome, what, fmt.Sprintf(format, args...)})
}

// refuse notes a refusal. The first in the enforcer's order is the one that a caller sees.
func (v *verdict) refuse(status int, what, format string, args ...any) bool {
	says := fmt.Sprintf(format, args...)
	v.Checks = append(v.Checks, check{outcomeRefused, what, says})
	if v.Status != 0 {
		return false
	}
	v.Passes, v.Status, v.Reason = false, status, what+": "+says
	return true
}

// decide answers in the order in which the enforcer looks: key, application, capability, model, limits by the minute, budgets. It goes on
// after the first refusal, since who mends one wants to know of the next.
func (q *question) decide() *verdict {
	v := &verdict{Namespace: q.key.Namespace, Name: q.key.Name, Path: q.path, Model: q.model, Passes: true}
	q.checkKey(v)
	q.checkApplication(v)
	q.checkCapability(v)
	q.checkModel(v)
	q.checkRates(v)
	q.checkBudgets(v)
	q.addNotes(v)
	return v
}

func (q *question) checkKey(v *verdict) {
	k := q.key
	expires := k.Spec.ExpirationTime
	usable := meta.FindStatusCondition(k.Status.Conditions, v1alpha1.ConditionUsable)
	switch {
	case !k.DeletionTimestamp.IsZero():
		v.refuse(http.StatusUnauthorized, "key", "it is being deleted")
	case k.Status.SecretName == "":
		v.refuse(http.StatusUnauthorized, "key", "it has not been minted yet: %s", notMinted(k))
	case k.Spec.State == v1alpha1.StateDisabled:
		v.refuse(http.StatusUnauthorized, "key", "it is disabled; enable it with: kubectl latchkey enable %s -n %s", k.Name, k.Namespace)
	case expires != nil && !q.cal.now.Before(expires.Time):
		v.refuse(http.StatusUnauthorized, "key", "it expired at %s; give it more time with: kubectl latchkey set key %s -n %s --expires 30d",
			moment(expires.Time, q.cal.zone), k.Name, k.Namespace)
	case usable != nil && usable.Status == metav1.ConditionFalse && usable.Reason == v1alpha1.ReasonSecretLost:
		v.refuse(http.StatusUnauthorized, "key", "%s: %s; %s", usable.Reason, oneLine(usable.Message), rotateHint(k))
	case usable != nil && usable.Status == metav1.ConditionFalse && !toldElsewhere(usable.Reason):
		v.refuse(http.StatusUnauthorized, "key", "%s: %s", usable.Reason, oneLine(usable.Message))
	case expires != nil:
		v.ok("key", "enabled, expires %s", in(q.cal.now, expires.Time))
	default:
		v.ok("key", "enabled, never expires")
	}
	q.checkRotation(v)
}

// checkRotation tells what holders of the earlier key meet. It passes like the present one until its end, under the same limits.
func (q *question) checkRotation(v *verdict) {
	earlier, rotated := earlierOf(q.key, q.cal.now)
	switch {
	case rotationPending(q.key):
		v.note(outcomeNote, "key", "a rotation has been asked for and not been carried out; %s", inTheWayOfRotation(q.key, q.key.Generation))
	case rotated && earlier.honoured:
		v.ok("earlier key", "%s %s", orElse(earlier.prefix, "it"), earlier.says(q.cal))
	}
}

// toldElsewhere reports whether a reason of the Usable condition is found out here from what is current.
func toldElsewhere(reason string) bool {
	return slices.Contains([]string{
		v1alpha1.ReasonPending, v1alpha1.ReasonDisabled, v1alpha1.ReasonExpired, v1alpha1.ReasonApplicationNotFound,
		v1alpha1.ReasonApplicationDisabled, v1alpha1.ReasonBudgetExhausted,
	}, reason)
}

func notMinted(k *v1alpha1.APIKey) string {
	if ready := meta.FindStatusCondition(k.Status.Conditions, v1alpha1.ConditionReady); ready != nil {
		return oneLine(ready.Message)
	}
	return "no controller has looked at it; is the Latchkey manager running?"
}

func (q *question) checkApplication(v *verdict) {
	name := q.key.Spec.ApplicationRef.Name
	what := "application " + name
	switch {
	case q.app == nil:
		v.refuse(http.StatusUnauthorized, what, "it does not exist; create it with: kubectl latchkey create app %s -n %s", name, q.key.Namespace)
	case q.app.Spec.State == v1alpha1.StateDisabled:
		v.refuse(http.StatusUnauthorized, what, "it is disabled; enable it with: kubectl latchkey enable app/%s -n %s", name, q.key.Namespace)
	default:
		v.ok(what, "enabled")
	}
}

// effective is what binds the key.
func (q *question) effective() policy.Effective {
	var app *policy.Application
	if q.app != nil {
		app, _ = compile.Application(q.app)
	}
	return policy.EffectiveFor(compile.Policy(q.key), app, q.cal.system)
}

func (q *question) checkCapability(v *verdict) {
	own, eff := compile.Policy(q.key).Capabilities, q.effective().Capabilities
	if q.path == "" {
		if eff == 0 {
			v.refuse(http.StatusForbidden, "capabilities", "the key has %s, and its application allows none of them", own)
			return
		}
		v.ok("capabilities", "%s", eff)
		return
	}
	route, err := matchPath(q.path)
	switch {
	case err != nil:
		v.refuse(http.StatusNotFound, "path", "%v", err)
	case route.Listing:
		v.ok("path", "%s, which every key may call", route.Path)
	case !own.Has(route.Capability):
		v.refuse(http.StatusForbidden, "capability", "the key is not allowed %s; it has %s", route.Capability, own)
	case !eff.Has(route.Capability):
		v.refuse(http.StatusForbidden, "capability", "the key is allowed %s, but application %s is not", route.Capability, q.key.Spec.ApplicationRef.Name)
	default:
		v.ok("capability", "%s, for %s", route.Capability, route.Path)
	}
}

// matchPath finds what is at a path, whichever method it takes.
func matchPath(path string) (llm.Route, error) {
	route, err := llm.Match(http.MethodPost, path)
	if err == nil {
		return route, nil
	}
	if listing, again := llm.Match(http.MethodGet, path); again == nil {
		return listing, nil
	}
	return route, err
}

func (q *question) checkModel(v *verdict) {
	own, eff := compile.Policy(q.key).Models, q.effective().Models
	if q.model == "" {
		if !eff.All && len(eff.Names) == 0 {
			v.refuse(http.StatusNotFound, "models", "of the models that the key may call, its application allows none")
			return
		}
		scope := "all"
		if !eff.All {
			scope = join(eff.Names)
		}
		v.ok("models", "%s", scope)
		return
	}
	var claimants []*v1alpha1.Model
	for i := range q.models {
		if q.models[i].CallName() == q.model {
			claimants = append(claimants, &q.models[i])
		}
	}
	what := "model " + oneLine(q.model)
	switch {
	case !own.Allows(q.model):
		v.refuse(http.StatusNotFound, what, "the key may not call it; it may call %s", join(own.Names))
		return
	case !eff.Allows(q.model):
		v.refuse(http.StatusNotFound, what, "application %s may not call it", q.key.Spec.ApplicationRef.Name)
		return
	case len(claimants) == 0:
		v.refuse(http.StatusNotFound, what, "no Model answers to that name; kubectl latchkey get models lists them")
		return
	}
	q.checkServed(v, what, compile.Winner(claimants))
}

// checkServed looks at the model itself: whether it is served, in the path's format, with the path's capability.
func (q *question) checkServed(v *verdict, what string, m *v1alpha1.Model) {
	provider := q.provider(m.Spec.ProviderRef.Name)
	compiled, problems := compile.Model(m, provider)
	ready := meta.FindStatusCondition(m.Status.Conditions, v1alpha1.ConditionReady)
	if compiled == nil {
		says := "it is being deleted"
		if len(problems) > 0 {
			says = problems[0].Message
		}
		v.refuse(http.StatusNotFound, what, "%s", oneLine(says))
		return
	}
	if route, err := matchPath(q.path); q.path != "" && err == nil && !route.Listing {
		if !compiled.Capabilities.Has(route.Capability) {
			v.refuse(http.StatusBadRequest, what, "it does not do %s; it does %s", route.Capability, compiled.Capabilities)
			return
		}
		if route.Dialect.Format() != compiled.Format {
			v.refuse(http.StatusBadRequest, what, "it is served in the format of %s, and %s is not one of its paths", compiled.Format, route.Path)
			return
		}
	}
	eff := q.effective()
	missing := missingPrice(q.path, compiled.Prices)
	if missing != "" && (eff.Daily >= 0 || eff.Monthly >= 0) && q.cal.system.UnpricedModels == policy.UnpricedRefuse {
		v.refuse(http.StatusForbidden, what, "it has no price %s, and under a budget the SystemPolicy refuses such models: set spec.prices of Model %s", missing, m.Name)
		return
	}
	if compiled.MaxOutputTokens == 0 && q.strict() {
		v.note(outcomeNote, what, "its maxOutputTokens is not set: under a Strict budget a request has to say how long its answer may be")
	}
	if ready != nil && ready.Status != metav1.ConditionTrue {
		v.note(outcomeNote, what, "it is not ready, and the provider may not answer: %s: %s", ready.Reason, oneLine(ready.Message))
		return
	}
	v.ok(what, "by provider %s", m.Spec.ProviderRef.Name)
}

// missingPrice is the unit of a path's requests that has no price; empty: none. Without a path any price will do.
func missingPrice(path string, prices *policy.Prices) string {
	p := policy.NoPrices()
	if prices != nil {
		p = *prices
	}
	route, err := matchPath(path)
	switch {
	case path == "" || err != nil:
		if !prices.Has() {
			return "at all"
		}
	case route.Listing, route.Path == llm.CountTokens, route.Path == llm.Moderations: // free of charge
	case route.Capability == policy.Embeddings:
		if p.Input < 0 {
			return "for input tokens"
		}
	case route.Capability == policy.ImageGeneration:
		if len(p.Images) == 0 && p.Output < 0 && p.ImageOutput < 0 {
			return "per image, nor for output tokens"
		}
	case route.Capability == policy.TextToSpeech:
		if p.PerMillionCharacters < 0 && p.Output < 0 && p.AudioOutput < 0 {
			return "for characters, nor for output tokens"
		}
	case route.Capability == policy.SpeechToText:
		if p.PerMinute < 0 && p.Input < 0 && p.AudioInput < 0 {
			return "per minute, nor for input tokens"
		}
	case p.Input < 0 || p.Output < 0:
		return "for input and output tokens"
	}
	return ""
}

// strict reports whether a budget of the key or its application is Strict.
func (q *question) strict() bool {
	is := func(b *v1alpha1.Budgets) bool { return b != nil && b.Enforcement == v1alpha1.BudgetEnforcementStrict }
	return is(q.key.Spec.Budgets) || (q.app != nil && is(q.app.Spec.Budgets))
}

// checkRates tells the limits by the minute. What has been used of them in the last 60 seconds only the enforcer knows.
func (q *question) checkRates(v *verdict) {
	of := func(whose string, l policy.RateLimits) {
		for _, limit := range []struct {
			is   policy.Limit
			what string
		}{{l.RequestsPerMinute, "requests in any 60 seconds"}, {l.TokensPerMinute, "tokens in any 60 seconds"}, {l.ConcurrentRequests, "requests at one time"}} {
			switch {
			case limit.is == 0:
				v.refuse(http.StatusTooManyRequests, whose, "its limit of %s is 0, which refuses everything", limit.what)
			case limit.is.IsSet():
				v.note(outcomeLimit, whose, "%s %s", grouped(int64(limit.is)), limit.what)
			}
		}
	}
	of("key", policy.KeyLimits(compile.Policy(q.key), q.cal.system))
	if q.app != nil {
		if app, _ := compile.Application(q.app); app != nil {
			of("application "+q.app.Name, app.Limits)
		}
	}
}

func (q *question) checkBudgets(v *verdict) {
	q.checkAccount(v, "key", q.key.Spec.Budgets, q.key.Status.Usage)
	if q.app != nil {
		q.checkAccount(v, "application "+q.app.Name, q.app.Spec.Budgets, q.app.Status.Usage)
	}
}

// checkAccount looks at the day and the month of a key or an application.
func (q *question) checkAccount(v *verdict, whose string, b *v1alpha1.Budgets, u *v1alpha1.Usage) {
	daily, monthly := budgetsOf(b)
	window := func(name string, limit money.Amount, spent money.Amount, resets time.Time) {
		what := name + " budget of the " + whose
		when := fmt.Sprintf("resets at %s (%s)", moment(resets, q.cal.zone), in(q.cal.now, resets))
		switch {
		case limit < 0:
		case limit == 0:
			v.refuse(http.StatusTooManyRequests, what, "it is 0, which refuses everything")
		case spent >= limit:
			if v.refuse(http.StatusTooManyRequests, what, "%s of %s used; %s", spent, q.cal.money(limit), when) {
				v.Resets = new(metav1.NewTime(resets))
			}
		default:
			v.ok(what, "%s of %s used (%d %%); %s", spent, q.cal.money(limit), percent(spent, limit), when)
		}
	}
	window("daily", daily, spend(q.cal.today(u).Spent), q.cal.dayEnds())
	window("monthly", monthly, spend(q.cal.thisMonth(u).Spent), q.cal.monthEnds())
	if u != nil && u.BlockedTime != nil {
		v.note(outcomeNote, "budgets of the "+whose, "the enforcer has found one used up at %s", moment(u.BlockedTime.Time, q.cal.zone))
	}
	if b != nil && b.Enforcement == v1alpha1.BudgetEnforcementStrict {
		v.note(outcomeNote, "budgets of the "+whose, "Strict: a request whose worst case does not fit into what is left is refused, too")
	}
}

func (q *question) addNotes(v *verdict) {
	enforced := meta.FindStatusCondition(q.key.Status.Conditions, v1alpha1.ConditionEnforced)
	switch {
	case enforced == nil:
		v.note(outcomeNote, "enforcers", "it is not known whether they have this key yet")
	case enforced.ObservedGeneration < q.key.Generation:
		v.note(outcomeNote, "enforcers", "they may still act on an earlier version of the key: its latest edit has not been acted on")
	case enforced.Status != metav1.ConditionTrue:
		v.note(outcomeNote, "enforcers", "they may still act on an earlier version: %s", oneLine(enforced.Message))
	}
}
