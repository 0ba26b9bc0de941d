package cli

import (
	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
)

func (p *plugin) newGetModels() *cobra.Command {
	l := &listing{
		p: p, plural: "models", parse: func(arg string) (string, error) { return modelName(arg), nil },
		newList:   func() client.ObjectList { return &v1alpha1.ModelList{} },
		newObject: func() client.Object { return &v1alpha1.Model{} },
		header:    modelHeader,
		row: func(obj client.Object, cal calendar, wide bool) []cell {
			return modelRow(obj.(*v1alpha1.Model), cal, wide)
		},
		sortKeys: modelSortKeys(),
	}
	cmd := &cobra.Command{
		Use:     "models [NAME...]",
		Aliases: []string{"model"},
		Short:   "List Models: what callers can name, who serves it, what it costs",
		Long: `List Models.

MODEL is what callers send in a request. INPUT and OUTPUT are the prices of a million tokens, in the SystemPolicy's currency.`,
		Example: `  # What can be called, and what it costs
  kubectl latchkey get models

  # By provider, without headers
  kubectl latchkey get models --sort-by provider --no-headers`,
		ValidArgsFunction: p.completeList(0, l.newList, client.Object.GetName),
		RunE:              func(cmd *cobra.Command, args []string) error { return l.run(cmd.Context(), args) },
	}
	l.add(cmd)
	return cmd
}

func modelHeader(wide bool) []string {
	header := []string{"NAME", "MODEL", "PROVIDER", "STATE", "INPUT", "OUTPUT", "CAPABILITIES", "AGE"}
	if wide {
		header = append(header, "UPSTREAM", "MAX INPUT", "MAX OUTPUT")
	}
	return header
}

func modelRow(m *v1alpha1.Model, cal calendar, wide bool) []cell {
	price := func(of func(*v1alpha1.TokenPrices) *v1alpha1.Money) string {
		if m.Spec.Prices == nil || m.Spec.Prices.PerMillionTokens == nil || of(m.Spec.Prices.PerMillionTokens) == nil {
			return none
		}
		return string(*of(m.Spec.Prices.PerMillionTokens))
	}
	row := []cell{
		text(m.Name), text(oneLine(m.CallName())), text(m.Spec.ProviderRef.Name), modelState(m),
		text(price(func(t *v1alpha1.TokenPrices) *v1alpha1.Money { return t.Input })),
		text(price(func(t *v1alpha1.TokenPrices) *v1alpha1.Money { return t.Output })),
		text(join(m.Spec.Capabilities)), text(age(cal.now, m.CreationTimestamp)),
	}
	if !wide {
		return row
	}
	upstream := m.Spec.UpstreamName
	if upstream == "" {
		upstream = m.CallName()
	}
	return append(row, text(oneLine(upstream)), text(number(m.Spec.MaxInputTokens)), text(number(m.Spec.MaxOutputTokens)))
}

// modelState is Ready, or why not.
func modelState(m *v1alpha1.Model) cell {
	ready := meta.FindStatusCondition(m.Status.Conditions, v1alpha1.ConditionReady)
	switch {
	case !m.DeletionTimestamp.IsZero():
		return cell{v1alpha1.ReasonDeleting, bad}
	case ready == nil:
		return cell{v1alpha1.ReasonPending, warn}
	case ready.Status == metav1.ConditionTrue:
		return cell{v1alpha1.ConditionReady, good}
	}
	return cell{ready.Reason, bad}
}
