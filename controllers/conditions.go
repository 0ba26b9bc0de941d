package controllers

import (
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	"github.com/latchkey-dev/latchkey/internal/compile"
)

// verdict is what a condition comes to.
type verdict struct {
	status  metav1.ConditionStatus
	reason  string
	message string
}

func yes(reason, message string) verdict { return verdict{metav1.ConditionTrue, reason, message} }
func no(reason, message string) verdict  { return verdict{metav1.ConditionFalse, reason, message} }

// conditionList sets conditions on behalf of one generation at one moment.
type conditionList struct {
	list       *[]metav1.Condition
	generation int64
	now        time.Time
}

func (c conditionList) set(kind string, v verdict) {
	meta.SetStatusCondition(c.list, metav1.Condition{
		Type: kind, Status: v.status, Reason: v.reason, Message: v.message,
		ObservedGeneration: c.generation, LastTransitionTime: metav1.NewTime(c.now),
	})
}

// setReady sets Ready, and Stalled where somebody has to mend something.
func (c conditionList) setReady(v verdict, stalled bool) {
	c.set(v1alpha1.ConditionReady, v)
	if stalled {
		c.set(v1alpha1.ConditionStalled, yes(v.reason, v.message))
	} else {
		meta.RemoveStatusCondition(c.list, v1alpha1.ConditionStalled)
	}
}

// ready is the verdict of a list of problems: the first counts.
func ready(problems []compile.Problem) (v verdict, stalled bool) {
	if len(problems) > 0 {
		return no(problems[0].Reason, problems[0].Message), problems[0].Stalled
	}
	return yes(v1alpha1.ReasonReconciled, "the spec has been carried out"), false
}

// enforced is the verdict on whether the enforcers have followed. Once they have acknowledged a generation it stays so: a mere change of status,
// or an enforcer that connects later, takes nothing back.
func enforced(conditions []metav1.Condition, generation int64, states ...AckState) verdict {
	if was := meta.FindStatusCondition(conditions, v1alpha1.ConditionEnforced); was != nil &&
		was.Status == metav1.ConditionTrue && was.ObservedGeneration == generation {
		return verdict{was.Status, was.Reason, was.Message}
	}
	all := AckState{Acknowledged: len(states) > 0}
	for _, s := range states {
		all.Enforcers = s.Enforcers
		all.Acknowledged = all.Acknowledged && s.Acknowledged
		if s.Rejection != "" {
			all.Rejection = s.Rejection
		}
	}
	switch {
	case all.Acknowledged:
		return yes(v1alpha1.ReasonAcknowledged, "every connected enforcer has acknowledged this generation")
	case all.Enforcers == 0:
		return no(v1alpha1.ReasonNoEnforcers, "no enforcer is connected: is the gateway running, and does it reach the manager's xDS port?")
	case all.Rejection != "":
		return no(v1alpha1.ReasonRejected, "an enforcer refused the configuration: "+all.Rejection)
	}
	return no(v1alpha1.ReasonPending, "waiting for the enforcers to acknowledge this generation")
}

// news is a condition that says something else than before; nil: it says the same, or nothing.
func news(before, after []metav1.Condition, kind string) *metav1.Condition {
	was, is := meta.FindStatusCondition(before, kind), meta.FindStatusCondition(after, kind)
	if is == nil || (was != nil && was.Reason == is.Reason && was.Message == is.Message) {
		return nil
	}
	return is
}
