package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/types"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
)

func (p *plugin) newDescribeKey() *cobra.Command {
	return &cobra.Command{
		Use:     "key NAME",
		Aliases: []string{"apikey"},
		Short:   "Show an APIKey in full: state, limits, spend, conditions, events",
		Example: `  # A key
  kubectl latchkey describe key shop-backend -n demo`,
		Args:              names(1, 1, "the APIKey's NAME"),
		ValidArgsFunction: p.completeKeys(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := keyName(args[0])
			if err != nil {
				return err
			}
			return p.describeKey(cmd.Context(), name)
		},
	}
}

func (p *plugin) describeKey(ctx context.Context, name string) error {
	c, err := p.connect()
	if err != nil {
		return err
	}
	k := &v1alpha1.APIKey{}
	if err := c.Get(ctx, types.NamespacedName{Namespace: c.namespace, Name: name}, k); err != nil {
		return fmt.Errorf("get apikey %s/%s: %w", c.namespace, name, err)
	}
	cal, err := p.readCalendar(ctx, c)
	if err != nil {
		return err
	}
	s := &sheet{colours: p.palette(p.Out)}
	s.key(k, cal)
	s.conditions(k.Status.Conditions)
	s.events(ctx, c, k, cal)
	return s.flush(p.Out)
}

// key writes all of a key but its conditions and events.
func (s *sheet) key(k *v1alpha1.APIKey, cal calendar) {
	s.text("Name", k.Name)
	s.text("Namespace", k.Namespace)
	s.text("Labels", labelsText(k.Labels))
	s.text("Display name", oneLine(string(k.Spec.DisplayName)))
	s.text("Application", k.Spec.ApplicationRef.Name)
	s.line("State", keyState(k, cal))
	s.text("Key", orNone(k.Status.KeyPrefix))
	s.text("Secret", orNone(k.Status.SecretName)+", "+string(k.Retention()))
	s.text("Revealed", revealedText(k, cal))
	s.rotationSection(k, cal)
	s.text("Created", fmt.Sprintf("%s (%s)", moment(k.CreationTimestamp.Time, cal.zone), in(cal.now, k.CreationTimestamp.Time)))
	expires := "never"
	if e := k.Spec.ExpirationTime; e != nil {
		expires = fmt.Sprintf("%s (%s)", moment(e.Time, cal.zone), in(cal.now, e.Time))
	}
	s.text("Expires", expires)
	s.text("Capabilities", join(k.Spec.Capabilities))
	s.text("Models", scopeText(k.Spec.Models.Access, k.Spec.Models.Names))
	if e := k.Status.Effective; e != nil && e.Models != nil {
		s.head("With its application")
		s.text("  Capabilities", join(e.Capabilities))
		s.text("  Models", scopeText(e.Models.Access, e.Models.Names))
		s.text("  Daily budget", moneyText(e.DailyBudget, cal))
		s.text("  Monthly budget", moneyText(e.MonthlyBudget, cal))
	}
	s.limits(keyLimits(k))
	if b := k.Spec.Budgets; b != nil {
		s.text("Budgets", fmt.Sprintf("day %s, month %s, %s", moneyText(b.Daily, cal), moneyText(b.Monthly, cal), enforcementText(b)))
	} else {
		s.text("Budgets", none)
	}
	s.usageSection(k.Status.Usage, k.Spec.Budgets, cal)
}

// enforcementText is how budgets are enforced.
func enforcementText(b *v1alpha1.Budgets) string {
	if b.Enforcement == "" {
		return string(v1alpha1.BudgetEnforcementUntilReached)
	}
	return string(b.Enforcement)
}

// revealedText is whether the plaintext has been taken, and until when it can be.
func revealedText(k *v1alpha1.APIKey, cal calendar) string {
	reason := orNone(reasonOf(k.Status.Conditions, v1alpha1.ConditionRevealed))
	if d := k.Status.RevealDeadline; d != nil {
		return fmt.Sprintf("%s; can be taken until %s (%s)", reason, moment(d.Time, cal.zone), in(cal.now, d.Time))
	}
	if reason == v1alpha1.ReasonRevealExpired || reason == v1alpha1.ReasonSecretLost {
		return reason + "; " + rotateHint(k)
	}
	return reason
}
