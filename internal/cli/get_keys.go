package cli

import (
	"github.com/spf13/cobra"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
)

func (p *plugin) newGetKeys() *cobra.Command {
	l := &listing{
		p: p, plural: "apikeys", namespaced: true, parse: keyName,
		newList:   func() client.ObjectList { return &v1alpha1.APIKeyList{} },
		newObject: func() client.Object { return &v1alpha1.APIKey{} },
		header:    keyHeader,
		row: func(obj client.Object, cal calendar, wide bool) []cell {
			return keyRow(obj.(*v1alpha1.APIKey), cal, wide)
		},
		sortKeys: keySortKeys(),
	}
	app := ""
	cmd := &cobra.Command{
		Use:     "keys [NAME...]",
		Aliases: []string{"key", "apikeys", "apikey"},
		Short:   "List APIKeys: spend against caps, limits, state, last use",
		Long: `List APIKeys.

STATE is what a caller meets. DAY and MONTH are what the key has spent, of its own cap if it has one; its application's are
in: kubectl latchkey get apps. They are what the enforcer reported last, and can be some seconds behind. RPM and TPM are the limits that apply.
KEY is the beginning of the key; with -o wide, EARLIER KEY is that of the one before the last rotation, and ENDS when it is refused.`,
		Example: `  # The keys of one application, those that spend most first
  kubectl latchkey get keys --app shop --sort-by spent -n demo

  # All keys, with more columns, as they change
  kubectl latchkey get keys -A -o wide -w

  # Disable all keys of a team
  kubectl latchkey get keys -l team=shop -o name | xargs kubectl latchkey disable`,
		ValidArgsFunction: p.completeKeys(0),
		RunE: func(cmd *cobra.Command, args []string) error {
			if app != "" {
				name, err := appName(app)
				if err != nil {
					return err
				}
				l.keep = func(obj client.Object) bool { return obj.(*v1alpha1.APIKey).Spec.ApplicationRef.Name == name }
			}
			return l.run(cmd.Context(), args)
		},
	}
	cmd.Flags().StringVar(&app, "app", "", "only the keys of this Application")
	l.add(cmd)
	return cmd
}

func keyHeader(wide bool) []string {
	header := []string{"NAME", "APP", "STATE", "KEY", "DAY", "MONTH", "RPM", "TPM", "LAST USED", "AGE"}
	if wide {
		header = append(header, "DISPLAY NAME", "CONCURRENT", "MODELS", "CAPABILITIES", "EXPIRES", "REVEALED", "ENFORCED", "EARLIER KEY", "ENDS")
	}
	return header
}

func keyRow(k *v1alpha1.APIKey, cal calendar, wide bool) []cell {
	daily, monthly := budgetsOf(k.Spec.Budgets)
	day, month := spend(cal.today(k.Status.Usage).Spent), spend(cal.thisMonth(k.Status.Usage).Spent)
	rpm, tpm, concurrent := keyLimits(k)
	row := []cell{
		text(k.Name), text(k.Spec.ApplicationRef.Name), keyState(k, cal), text(orNone(k.Status.KeyPrefix)),
		{against(day, daily), ratioStyle(day, daily)}, {against(month, monthly), ratioStyle(month, monthly)},
		text(number(rpm)), text(number(tpm)), text(ago(cal.now, usedLast(k.Status.Usage))), text(age(cal.now, k.CreationTimestamp)),
	}
	if !wide {
		return row
	}
	expires := "never"
	if e := k.Spec.ExpirationTime; e != nil {
		expires = in(cal.now, e.Time)
	}
	row = append(row,
		text(orNone(string(k.Spec.DisplayName))), text(number(concurrent)), text(scopeText(k.Spec.Models.Access, k.Spec.Models.Names)),
		text(join(k.Spec.Capabilities)), text(expires), text(orNone(reasonOf(k.Status.Conditions, v1alpha1.ConditionRevealed))),
		conditionCell(k.Status.Conditions, v1alpha1.ConditionEnforced),
	)
	return append(row, earlierCells(k, cal)...)
}

// keyLimits are those that apply: as the status says, else as the spec asks for.
func keyLimits(k *v1alpha1.APIKey) (rpm, tpm, concurrent *int64) {
	if e := k.Status.Effective; e != nil {
		return e.RequestsPerMinute, e.TokensPerMinute, e.ConcurrentRequests
	}
	if l := k.Spec.RateLimits; l != nil {
		return l.RequestsPerMinute, l.TokensPerMinute, l.ConcurrentRequests
	}
	return nil, nil, nil
}
