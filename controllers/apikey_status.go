package controllers

import (
	"fmt"
	"strings"
	"time"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	"github.com/latchkey-dev/latchkey/internal/compile"
	"github.com/latchkey-dev/latchkey/internal/money"
	"github.com/latchkey-dev/latchkey/internal/policy"
)

// secretProblem is what is wrong with the key's Secret; nil: nothing.
func secretProblem(s *keyScope) *compile.Problem {
	withStatus := *s.key
	withStatus.Status = *s.status
	_, problem := compile.KeyHash(&withStatus, s.secret)
	return problem
}

// specProblem is what is wrong with the key itself, its Secret being as it should; nil: nothing.
func specProblem(s *keyScope) *compile.Problem {
	if _, problems := compile.Key(s.key, s.secret); len(problems) > 0 {
		return &problems[0]
	}
	return nil
}

// readyOf says whether the spec has been carried out. A disabled or expired key is carried out, too.
func readyOf(s *keyScope, clamps []policy.Clamp) (v verdict, stalled bool) {
	problem := secretProblem(s)
	switch {
	case problem != nil && problem.Stalled:
		return no(problem.Reason, problem.Message), true
	case s.crowdedOut:
		return no(v1alpha1.ReasonMaxKeysReached, crowdedOutMessage(s)), true
	case s.elder != "":
		return no(v1alpha1.ReasonDuplicateKey, fmt.Sprintf(
			"APIKey %s is older and holds the same key in its Secret, which counts: delete this APIKey and create a new one", s.elder)), true
	case s.app == nil:
		return no(v1alpha1.ReasonApplicationNotFound, fmt.Sprintf(
			"Application %s does not exist in this namespace: create it, and this key goes on by itself", s.key.Spec.ApplicationRef.Name)), false
	case s.key.Retention() == v1alpha1.SecretRetentionRetain && !s.mayRetain():
		return no(v1alpha1.ReasonRetainNotAllowed,
			"spec.secret.retention: Retain is not allowed by the SystemPolicy: leave it out, or have spec.reveal.retain set to Allowed in SystemPolicy default"), true
	case problem != nil:
		return no(problem.Reason, problem.Message), false
	}
	if problem := specProblem(s); problem != nil {
		return no(problem.Reason, problem.Message), problem.Stalled
	}
	if len(clamps) > 0 {
		said := make([]string, 0, len(clamps))
		for _, c := range clamps {
			said = append(said, fmt.Sprintf("%s %d is above the system's maximum and is clamped to %d", c.Field, c.Asked, c.Max))
		}
		return yes(v1alpha1.ReasonLimitClamped, strings.Join(said, "; ")), false
	}
	return yes(v1alpha1.ReasonReconciled, "the spec has been carried out"), false
}

// usableOf says what a caller of the key meets, in the order in which the enforcer looks.
func usableOf(s *keyScope, now time.Time) verdict {
	switch problem := secretProblem(s); {
	case s.crowdedOut && (problem == nil || !problem.Stalled):
		return no(v1alpha1.ReasonMaxKeysReached, crowdedOutMessage(s))
	case problem != nil:
		return no(problem.Reason, problem.Message)
	}
	if problem := specProblem(s); problem != nil {
		return no(problem.Reason, problem.Message)
	}
	e := s.key.Spec.ExpirationTime
	switch {
	case s.elder != "":
		return no(v1alpha1.ReasonDuplicateKey, "an older APIKey holds the same key: "+s.elder)
	case s.key.Spec.State == v1alpha1.StateDisabled:
		return no(v1alpha1.ReasonDisabled, "spec.state is Disabled")
	case e != nil && !now.Before(e.Time):
		return no(v1alpha1.ReasonExpired, "spec.expirationTime has passed")
	case s.app == nil:
		return no(v1alpha1.ReasonApplicationNotFound, fmt.Sprintf("Application %s does not exist", s.key.Spec.ApplicationRef.Name))
	case s.app.Spec.State == v1alpha1.StateDisabled:
		return no(v1alpha1.ReasonApplicationDisabled, fmt.Sprintf("Application %s is disabled", s.app.Name))
	}
	if spent := spentBudget(s, now); spent != nil {
		return no(v1alpha1.ReasonBudgetExhausted, spent.message)
	}
	return yes(v1alpha1.ReasonActive, "requests with this key are decided by its policy")
}

// revealedOf says whether the plaintext has been taken.
func revealedOf(s *keyScope) verdict {
	if problem := secretProblem(s); problem != nil {
		return no(problem.Reason, problem.Message)
	}
	_, there := s.secret.Data[v1alpha1.SecretDataAPIKey]
	switch {
	case there && s.retains():
		return yes(v1alpha1.ReasonRetained, "the plaintext stays in Secret "+s.secret.Name)
	case there && s.status.RevealDeadline != nil:
		return no(v1alpha1.ReasonPending, fmt.Sprintf("take the key with: kubectl latchkey reveal %s -n %s; it is removed at %s",
			s.key.Name, s.key.Namespace, s.status.RevealDeadline.UTC().Format(time.RFC3339)))
	case there:
		return no(v1alpha1.ReasonPending, "the plaintext has not been taken")
	case s.secret.Annotations[v1alpha1.AnnotationRemoval] == v1alpha1.ReasonRevealExpired:
		return no(v1alpha1.ReasonRevealExpired, "nobody took the key before its deadline, and it has been removed: raise spec.rotation.generation for a new key, or delete this APIKey and create a new one")
	}
	return yes(v1alpha1.ReasonClaimed, "the plaintext has been taken, and no copy is left in the cluster")
}

// effectiveStatus writes what applies as the API shows it.
func effectiveStatus(e policy.Effective) *v1alpha1.EffectivePolicy {
	out := &v1alpha1.EffectivePolicy{
		RequestsPerMinute:  limitStatus(e.Limits.RequestsPerMinute),
		TokensPerMinute:    limitStatus(e.Limits.TokensPerMinute),
		ConcurrentRequests: limitStatus(e.Limits.ConcurrentRequests),
		DailyBudget:        budgetStatus(e.Daily),
		MonthlyBudget:      budgetStatus(e.Monthly),
	}
	for _, c := range e.Capabilities.List() {
		out.Capabilities = append(out.Capabilities, v1alpha1.Capability(c.String()))
	}
	out.Models = &v1alpha1.EffectiveModels{Access: v1alpha1.ModelAccessAll}
	if !e.Models.All {
		out.Models.Access = v1alpha1.ModelAccessList
		for _, name := range e.Models.Names {
			out.Models.Names = append(out.Models.Names, v1alpha1.ModelName(name))
		}
	}
	return out
}

func limitStatus(l policy.Limit) *int64 {
	if !l.IsSet() {
		return nil
	}
	return new(int64(l))
}

func budgetStatus(a money.Amount) *v1alpha1.Money {
	if a < 0 {
		return nil
	}
	return new(v1alpha1.Money(a.String()))
}
