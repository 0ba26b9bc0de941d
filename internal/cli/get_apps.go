package cli

import (
	"strconv"

	"github.com/spf13/cobra"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
)

func (p *plugin) newGetApps() *cobra.Command {
	l := &listing{
		p: p, plural: "applications", namespaced: true, parse: appName,
		newList:   func() client.ObjectList { return &v1alpha1.ApplicationList{} },
		newObject: func() client.Object { return &v1alpha1.Application{} },
		header:    appHeader,
		row: func(obj client.Object, cal calendar, wide bool) []cell {
			return appRow(obj.(*v1alpha1.Application), cal, wide)
		},
		sortKeys: appSortKeys(),
	}
	cmd := &cobra.Command{
		Use:     "apps [NAME...]",
		Aliases: []string{"app", "applications", "application"},
		Short:   "List Applications: their keys, spend against caps, state, last use",
		Example: `  # Those of all namespaces, those that spend most first
  kubectl latchkey get apps -A --sort-by spent

  # As JSON
  kubectl latchkey get apps -n demo -o json`,
		ValidArgsFunction: p.completeApps(0),
		RunE:              func(cmd *cobra.Command, args []string) error { return l.run(cmd.Context(), args) },
	}
	l.add(cmd)
	return cmd
}

func appHeader(wide bool) []string {
	header := []string{"NAME", "STATE", "KEYS", "DAY", "MONTH", "RPM", "TPM", "LAST USED", "AGE"}
	if wide {
		header = append(header, "DISPLAY NAME", "CONCURRENT", "MODELS", "CAPABILITIES", "READY")
	}
	return header
}

func appRow(a *v1alpha1.Application, cal calendar, wide bool) []cell {
	daily, monthly := budgetsOf(a.Spec.Budgets)
	day, month := spend(cal.today(a.Status.Usage).Spent), spend(cal.thisMonth(a.Status.Usage).Spent)
	limits := v1alpha1.RateLimits{}
	if a.Spec.RateLimits != nil {
		limits = *a.Spec.RateLimits
	}
	row := []cell{
		text(a.Name), appState(a, cal), text(keysText(a)),
		{against(day, daily), ratioStyle(day, daily)}, {against(month, monthly), ratioStyle(month, monthly)},
		text(number(limits.RequestsPerMinute)), text(number(limits.TokensPerMinute)),
		text(ago(cal.now, usedLast(a.Status.Usage))), text(age(cal.now, a.CreationTimestamp)),
	}
	if !wide {
		return row
	}
	models := "all"
	if a.Spec.Models != nil {
		models = scopeText(a.Spec.Models.Access, a.Spec.Models.Names)
	}
	capabilities := "all"
	if len(a.Spec.Capabilities) > 0 {
		capabilities = join(a.Spec.Capabilities)
	}
	return append(row, text(orNone(string(a.Spec.DisplayName))), text(number(limits.ConcurrentRequests)), text(models), text(capabilities),
		conditionCell(a.Status.Conditions, v1alpha1.ConditionReady))
}

// keysText is how many keys there are, of how many there may be.
func keysText(a *v1alpha1.Application) string {
	n := "0"
	if a.Status.Keys != nil {
		n = strconv.Itoa(int(*a.Status.Keys))
	}
	if a.Spec.MaxKeys != nil {
		n += "/" + strconv.Itoa(int(*a.Spec.MaxKeys))
	}
	return n
}
