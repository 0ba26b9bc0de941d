package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
)

func (p *plugin) newDescribeApp() *cobra.Command {
	return &cobra.Command{
		Use:     "app NAME",
		Aliases: []string{"application"},
		Short:   "Show an Application in full, with its keys and what each has used",
		Example: `  # An application with its keys
  kubectl latchkey describe app shop -n demo`,
		Args:              names(1, 1, "the Application's NAME"),
		ValidArgsFunction: p.completeApps(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := appName(args[0])
			if err != nil {
				return err
			}
			return p.describeApp(cmd.Context(), name)
		},
	}
}

func (p *plugin) describeApp(ctx context.Context, name string) error {
	c, err := p.connect()
	if err != nil {
		return err
	}
	a := &v1alpha1.Application{}
	if err := c.Get(ctx, types.NamespacedName{Namespace: c.namespace, Name: name}, a); err != nil {
		return fmt.Errorf("get application %s/%s: %w", c.namespace, name, err)
	}
	cal, err := p.readCalendar(ctx, c)
	if err != nil {
		return err
	}
	var keys v1alpha1.APIKeyList
	if err := c.List(ctx, &keys, client.InNamespace(c.namespace)); err != nil {
		return fmt.Errorf("list apikeys: %w", err)
	}
	s := &sheet{colours: p.palette(p.Out)}
	s.app(a, cal)
	s.keys(a, keys.Items, cal)
	s.conditions(a.Status.Conditions)
	s.events(ctx, c, a, cal)
	return s.flush(p.Out)
}

// app writes all of an application but its keys, conditions and events.
func (s *sheet) app(a *v1alpha1.Application, cal calendar) {
	s.text("Name", a.Name)
	s.text("Namespace", a.Namespace)
	s.text("Labels", labelsText(a.Labels))
	s.text("Display name", oneLine(string(a.Spec.DisplayName)))
	s.text("Description", orNone(a.Spec.Description))
	s.line("State", appState(a, cal))
	s.text("Created", fmt.Sprintf("%s (%s)", moment(a.CreationTimestamp.Time, cal.zone), in(cal.now, a.CreationTimestamp.Time)))
	capabilities, models := "not bounded", "not bounded"
	if len(a.Spec.Capabilities) > 0 {
		capabilities = join(a.Spec.Capabilities)
	}
	if a.Spec.Models != nil {
		models = scopeText(a.Spec.Models.Access, a.Spec.Models.Names)
	}
	s.text("Capabilities", capabilities)
	s.text("Models", models)
	limits := v1alpha1.RateLimits{}
	if a.Spec.RateLimits != nil {
		limits = *a.Spec.RateLimits
	}
	s.limits(limits.RequestsPerMinute, limits.TokensPerMinute, limits.ConcurrentRequests)
	if b := a.Spec.Budgets; b != nil {
		s.text("Budgets", fmt.Sprintf("day %s, month %s, %s", moneyText(b.Daily, cal), moneyText(b.Monthly, cal), enforcementText(b)))
	} else {
		s.text("Budgets", none)
	}
	s.usageSection(a.Status.Usage, a.Spec.Budgets, cal)
}

// keys writes a line for each of the application's keys, those that spend most first.
func (s *sheet) keys(a *v1alpha1.Application, all []v1alpha1.APIKey, cal calendar) {
	var of []client.Object
	for i := range all {
		if all[i].Spec.ApplicationRef.Name == a.Name {
			of = append(of, &all[i])
		}
	}
	s.text("Keys", keysText(a))
	if len(of) == 0 {
		return
	}
	sorter{keySortKeys()["spent"]}.sort(of, cal)
	t := &table{header: []string{"  NAME", "STATE", "KEY", "DAY", "MONTH", "REQUESTS", "TOKENS", "LAST USED"}}
	rows := make([][]cell, 0, len(of))
	for _, obj := range of {
		k := obj.(*v1alpha1.APIKey)
		daily, monthly := budgetsOf(k.Spec.Budgets)
		day, month := cal.today(k.Status.Usage), cal.thisMonth(k.Status.Usage)
		rows = append(rows, []cell{
			text("  " + k.Name), keyState(k, cal), text(orNone(k.Status.KeyPrefix)),
			{against(spend(day.Spent), daily), ratioStyle(spend(day.Spent), daily)},
			{against(spend(month.Spent), monthly), ratioStyle(spend(month.Spent), monthly)},
			text(grouped(month.Requests)), text(tokensShort(month.Tokens)), text(ago(cal.now, usedLast(k.Status.Usage))),
		})
	}
	_ = t.write(&s.b, s.colours, true, rows) // a strings.Builder does not fail
}
