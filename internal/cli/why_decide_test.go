package cli

import (
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
)

// theMoment is half past eleven at night in Berlin, on the last day of November.
func theMoment() time.Time { return time.Date(2026, 11, 30, 22, 30, 0, 0, time.UTC) }

func berlin() calendar {
	return newCalendar(&v1alpha1.SystemPolicy{Spec: v1alpha1.SystemPolicySpec{TimeZone: "Europe/Berlin", Currency: "EUR"}}, theMoment())
}

// inOrder is a key that may do everything, of an application without limits.
func inOrder() *question {
	k := &v1alpha1.APIKey{ObjectMeta: metav1.ObjectMeta{Namespace: "demo", Name: "k", Generation: 3}}
	k.Spec = v1alpha1.APIKeySpec{
		ApplicationRef: v1alpha1.ApplicationReference{Name: "shop"}, DisplayName: "K",
		Capabilities: []v1alpha1.Capability{v1alpha1.CapabilityTextGeneration}, Models: v1alpha1.ModelScope{Access: v1alpha1.ModelAccessAll},
	}
	k.Status.SecretName = "k-api-key"
	k.Status.Conditions = []metav1.Condition{
		{Type: v1alpha1.ConditionUsable, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonActive},
		{Type: v1alpha1.ConditionEnforced, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonAcknowledged, ObservedGeneration: 3},
	}
	ready := []metav1.Condition{{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue}}
	models := []v1alpha1.Model{
		{
			ObjectMeta: metav1.ObjectMeta{Name: "gpt"}, Status: v1alpha1.ModelStatus{Conditions: ready},
			Spec: v1alpha1.ModelSpec{
				ProviderRef: v1alpha1.ProviderReference{Name: "openai"}, Capabilities: []v1alpha1.Capability{v1alpha1.CapabilityTextGeneration},
				Prices: &v1alpha1.Prices{PerMillionTokens: &v1alpha1.TokenPrices{Input: new(v1alpha1.Money("1")), Output: new(v1alpha1.Money("2"))}},
			},
		},
		{
			ObjectMeta: metav1.ObjectMeta{Name: "unpriced"}, Status: v1alpha1.ModelStatus{Conditions: ready},
			Spec: v1alpha1.ModelSpec{ProviderRef: v1alpha1.ProviderReference{Name: "openai"}, Capabilities: []v1alpha1.Capability{v1alpha1.CapabilityEmbeddings}},
		},
		{ObjectMeta: metav1.ObjectMeta{Name: "homeless"}, Spec: v1alpha1.ModelSpec{ProviderRef: v1alpha1.ProviderReference{Name: "nosuch"}}},
	}
	return &question{
		key: k, app: &v1alpha1.Application{ObjectMeta: metav1.ObjectMeta{Namespace: "demo", Name: "shop"}}, models: models, cal: berlin(),
		provider: func(name string) *v1alpha1.Provider {
			if name != "openai" {
				return nil
			}
			return &v1alpha1.Provider{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.ProviderSpec{Format: v1alpha1.ProviderFormatOpenAI}}
		},
	}
}

func spentBudgets(daily, monthly v1alpha1.Money) *v1alpha1.Budgets {
	return &v1alpha1.Budgets{Daily: &daily, Monthly: &monthly}
}

func spentIn(day, month string, spent v1alpha1.Spend) *v1alpha1.Usage {
	return &v1alpha1.Usage{Day: &v1alpha1.UsageTotals{Period: day, Spent: spent}, Month: &v1alpha1.UsageTotals{Period: month, Spent: spent}}
}

func TestDecide(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*question)
		status int    // 0: it passes
		says   string // in the reason, or in a check where it passes
		resets string // RFC 3339
	}{
		"a key in order passes":               {func(*question) {}, 0, "enabled, never expires", ""},
		"one whose model and path fit passes": {func(q *question) { q.model, q.path = "gpt", "/v1/chat/completions" }, 0, "by provider openai", ""},
		"a path is understood without /v1":    {func(q *question) { q.path = "/chat/completions" }, 0, "TextGeneration, for /v1/chat/completions", ""},
		"listing models needs no capability":  {func(q *question) { q.path = "/v1/models" }, 0, "every key may call", ""},
		"a disabled key is refused":           {func(q *question) { q.key.Spec.State = v1alpha1.StateDisabled }, 401, "kubectl latchkey enable k -n demo", ""},
		"a key is refused from its expiry on": {func(q *question) { q.key.Spec.ExpirationTime = new(metav1.NewTime(theMoment())) }, 401, "it expired at 2026-11-30 23:30:00 CET", ""},
		"and passes a second before":          {func(q *question) { q.key.Spec.ExpirationTime = new(metav1.NewTime(theMoment().Add(time.Second))) }, 0, "expires in 1s", ""},
		"a lost one is offered a rotation": {func(q *question) {
			q.key.Status.Conditions[0] = metav1.Condition{Type: v1alpha1.ConditionUsable, Status: metav1.ConditionFalse, Reason: v1alpha1.ReasonSecretLost}
		}, 401, "kubectl latchkey rotate k -n demo", ""},
		"an earlier key that is honoured is no fault": {func(q *question) { q.key.Status.Rotation = rotatedFor(time.Hour) }, 0, "lk_earlie is honoured until 2026-12-01 00:30:00 CET (in 60m)", ""},
		"nor is a rotation that has been asked for": {func(q *question) {
			q.key.Spec.Rotation = &v1alpha1.RotationSpec{Generation: 1}
		}, 0, "a rotation has been asked for and not been carried out", ""},
		"one that is not minted is refused": {func(q *question) { q.key.Status.SecretName = "" }, 401, "not been minted", ""},
		"one whose Secret is lost is refused": {func(q *question) {
			q.key.Status.Conditions[0] = metav1.Condition{Type: "Usable", Status: "False", Reason: "SecretLost", Message: "gone"}
		}, 401, "SecretLost: gone", ""},
		"what Usable said before an edit is old": {func(q *question) {
			q.key.Status.Conditions[0] = metav1.Condition{Type: "Usable", Status: "False", Reason: "Disabled"}
		}, 0, "enabled, never", ""},
		"a missing application refuses":   {func(q *question) { q.app = nil }, 401, "application shop: it does not exist", ""},
		"a disabled application refuses":  {func(q *question) { q.app.Spec.State = v1alpha1.StateDisabled }, 401, "kubectl latchkey enable app/shop -n demo", ""},
		"the key's capability is missing": {func(q *question) { q.path = "/v1/embeddings" }, 403, "the key is not allowed Embeddings", ""},
		"the application's capability is missing": {func(q *question) {
			q.app.Spec.Capabilities = []v1alpha1.Capability{v1alpha1.CapabilityEmbeddings}
			q.path = "/v1/messages"
		}, 403, "application shop is not", ""},
		"an unknown path is refused": {func(q *question) { q.path = "/v1/nosuch" }, 404, "unknown path", ""},
		"a model out of the key's scope": {func(q *question) {
			q.model, q.key.Spec.Models = "gpt", v1alpha1.ModelScope{Access: v1alpha1.ModelAccessList, Names: []v1alpha1.ModelName{"other"}}
		}, 404, "it may call other", ""},
		"a model out of the application's scope": {func(q *question) {
			q.model, q.app.Spec.Models = "gpt", &v1alpha1.ModelScope{Access: v1alpha1.ModelAccessList, Names: []v1alpha1.ModelName{"other"}}
		}, 404, "application shop may not call it", ""},
		"a model that there is not":      {func(q *question) { q.model = "nosuch" }, 404, "no Model answers", ""},
		"a model without a provider":     {func(q *question) { q.model = "homeless" }, 404, "Provider nosuch does not exist", ""},
		"a model of the other API":       {func(q *question) { q.model, q.path = "gpt", "/v1/messages" }, 400, "format of OpenAI", ""},
		"a model that cannot do it":      {func(q *question) { q.model, q.path = "unpriced", "/v1/chat/completions" }, 400, "it does Embeddings", ""},
		"a model without a price passes": {func(q *question) { q.model = "unpriced" }, 0, "by provider", ""},
		"but not under a budget":         {func(q *question) { q.model, q.key.Spec.Budgets = "unpriced", spentBudgets("1", "1") }, 403, "set spec.prices of Model unpriced", ""},
		"nor for its own path": {func(q *question) {
			q.model, q.path, q.key.Spec.Budgets = "unpriced", "/v1/embeddings", spentBudgets("1", "1")
			q.key.Spec.Capabilities = []v1alpha1.Capability{v1alpha1.CapabilityEmbeddings}
		}, 403, "no price for input tokens", ""},
		"one that lacks half of its prices": {func(q *question) {
			q.model, q.path, q.key.Spec.Budgets = "gpt", "/v1/chat/completions", spentBudgets("1", "1")
			q.models[0].Spec.Prices.PerMillionTokens.Output = nil
		}, 403, "no price for input and output tokens", ""},
		"moderations are free": {func(q *question) {
			q.model, q.path, q.key.Spec.Budgets = "gpt", "/v1/moderations", spentBudgets("1", "1")
			q.models[0].Spec.Prices = nil
		}, 0, "by provider openai", ""},
		"Strict wants a bound": {func(q *question) {
			q.model, q.key.Spec.Budgets = "gpt", spentBudgets("1", "1")
			q.key.Spec.Budgets.Enforcement = v1alpha1.BudgetEnforcementStrict
		}, 0, "maxOutputTokens is not set", ""},
		"a limit of 0 refuses":         {func(q *question) { q.key.Spec.RateLimits = &v1alpha1.RateLimits{TokensPerMinute: new(int64(0))} }, 429, "is 0, which refuses everything", ""},
		"the system's default is told": {func(*question) {}, 0, "60 requests in any 60 seconds", ""},
		"what is left of a budget is told": {func(q *question) {
			q.key.Spec.Budgets, q.key.Status.Usage = spentBudgets("10", "100"), spentIn("2026-11-30", "2026-11", "9.99")
		}, 0, "9.99 of 10 EUR used (99 %)", ""},
		"a budget is used up at its last nano-unit": {func(q *question) {
			q.key.Spec.Budgets, q.key.Status.Usage = spentBudgets("10", "100"), spentIn("2026-11-30", "2026-11", "10.000000000")
		}, 429, "daily budget of the key: 10 of 10 EUR used", "2026-11-30T23:00:00Z"},
		"the month's is used up": {func(q *question) {
			q.key.Spec.Budgets, q.key.Status.Usage = spentBudgets("10", "5"), spentIn("2026-11-30", "2026-11", "5")
		}, 429, "monthly budget of the key", "2026-11-30T23:00:00Z"},
		"yesterday's spend does not count": {func(q *question) {
			q.key.Spec.Budgets, q.key.Status.Usage = spentBudgets("10", "100"), spentIn("2026-11-29", "2026-11", "50")
		}, 0, "0 of 10 EUR used", ""},
		"the application's budget counts for keys": {func(q *question) {
			q.app.Spec.Budgets, q.app.Status.Usage = spentBudgets("10", "100"), spentIn("2026-11-30", "2026-11", "12")
		}, 429, "daily budget of the application shop", "2026-11-30T23:00:00Z"},
		"a budget of 0 refuses": {func(q *question) { q.key.Spec.Budgets = spentBudgets("0", "1") }, 429, "is 0, which refuses everything", ""},
		"the first refusal is what a caller sees": {func(q *question) {
			q.key.Spec.State, q.key.Spec.Budgets = v1alpha1.StateDisabled, spentBudgets("0", "0")
		}, 401, "it is disabled", ""},
		"that enforcers lag is told": {func(q *question) { q.key.Generation = 4 }, 0, "its latest edit has not been acted on", ""},
		"that the enforcer has refused is told": {func(q *question) {
			q.key.Status.Usage = &v1alpha1.Usage{BlockedTime: new(metav1.NewTime(theMoment()))}
		}, 0, "found one used up at 2026-11-30 23:30:00 CET", ""},
		"Strict is told": {func(q *question) {
			q.key.Spec.Budgets = spentBudgets("5", "5")
			q.key.Spec.Budgets.Enforcement = v1alpha1.BudgetEnforcementStrict
		}, 0, "worst case does not fit", ""},
	} {
		t.Run(name, func(t *testing.T) {
			q := inOrder()
			test.change(q)
			v := q.decide()
			if v.Status != test.status || v.Passes != (test.status == 0) {
				t.Errorf("status %d, passes %v, want status %d: %s", v.Status, v.Passes, test.status, v.Reason)
			}
			said := v.Reason
			if v.Passes {
				for _, c := range v.Checks {
					said += c.What + ": " + c.Says + "\n"
				}
			}
			if !strings.Contains(said, test.says) {
				t.Errorf("it says %q, want %q", said, test.says)
			}
			resets := ""
			if v.Resets != nil {
				resets = v.Resets.UTC().Format(time.RFC3339)
			}
			if resets != test.resets {
				t.Errorf("it resets at %q, want %q", resets, test.resets)
			}
		})
	}
}

func TestCalendarTurnsInItsZone(t *testing.T) {
	cal := berlin()
	if cal.day() != "2026-11-30" || cal.month() != "2026-11" {
		t.Errorf("day %s, month %s", cal.day(), cal.month())
	}
	if !cal.dayEnds().Equal(cal.monthEnds()) || !cal.dayEnds().Equal(time.Date(2026, 11, 30, 23, 0, 0, 0, time.UTC)) {
		t.Errorf("the day ends at %s, the month at %s", cal.dayEnds(), cal.monthEnds())
	}
	cal.now = cal.now.Add(time.Hour)
	if cal.day() != "2026-12-01" || cal.month() != "2026-12" {
		t.Errorf("an hour later: day %s, month %s", cal.day(), cal.month())
	}
}
