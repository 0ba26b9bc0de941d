package controllers

import (
	"fmt"
	"strings"
	"time"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	"github.com/latchkey-dev/latchkey/internal/compile"
)

// keysNamed is how many keys a message names.
const keysNamed = 10

// applicationReady says whether an application's spec has been carried out, or what keeps it from going.
func applicationReady(deleting bool, keys []string, problems []compile.Problem) (v verdict, stalled bool) {
	if deleting {
		named := strings.Join(keys[:min(len(keys), keysNamed)], ", ")
		if more := len(keys) - keysNamed; more > 0 {
			named += fmt.Sprintf(" and %d more", more)
		}
		return no(v1alpha1.ReasonKeysRemain, fmt.Sprintf(
			"it is deleted once its keys are gone, and serves them until then; %d left: %s. Delete them with kubectl delete lkkey NAME", len(keys), named)), false
	}
	return ready(problems)
}

// applicationUsable says what callers of the application's keys meet, and for how long that holds at most; 0: until something changes.
func applicationUsable(app *v1alpha1.Application, now time.Time, terms budgetTerms) (verdict, time.Duration) {
	if app.Spec.State == v1alpha1.StateDisabled {
		return no(v1alpha1.ReasonDisabled, "spec.state is Disabled: the requests of all its keys are refused"), 0
	}
	if spent := exhausted(now, terms, budgetHolder{thisApplication, app.Spec.Budgets, app.Status.Usage}); spent != nil {
		var wake time.Duration
		if !spent.reset.IsZero() {
			wake = max(spent.reset.Sub(now), time.Millisecond)
		}
		return no(v1alpha1.ReasonBudgetExhausted, spent.message), wake
	}
	return yes(v1alpha1.ReasonActive, "requests with its keys are decided by their policy"), 0
}
