package controllers

import (
	"fmt"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	"github.com/latchkey-dev/latchkey/internal/compile"
)

// modelReady says whether callers can reach a model by its name.
func modelReady(model, winner *v1alpha1.Model, provider *v1alpha1.Provider) (v verdict, stalled bool) {
	if winner.Name != model.Name {
		return no(v1alpha1.ReasonModelNameTaken, fmt.Sprintf(
			"Model %s is older and already answers to the name %s: choose another spec.name, or delete one of the two", winner.Name, model.CallName())), true
	}
	if _, problems := compile.Model(model, provider); len(problems) > 0 {
		return ready(problems)
	}
	if provider != nil {
		if c := meta.FindStatusCondition(provider.Status.Conditions, v1alpha1.ConditionReady); c == nil || c.Status != metav1.ConditionTrue {
			message := fmt.Sprintf("Provider %s has not been looked at yet", provider.Name)
			if c != nil {
				message = fmt.Sprintf("Provider %s is not ready: %s", provider.Name, c.Message)
			}
			return no(v1alpha1.ReasonProviderNotReady, message), false
		}
	}
	return ready(nil)
}
