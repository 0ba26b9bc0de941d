package cli

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	"github.com/latchkey-dev/latchkey/internal/money"
)

const barCells = 20

type usage struct {
	p             *plugin
	allNamespaces bool
	app           string
}

func (p *plugin) newUsage() *cobra.Command {
	o := &usage{p: p}
	cmd := &cobra.Command{
		Use:   "usage [NAME...]",
		Short: "Show what keys and applications have used, with a bar per day and month",
		Long: `Show what keys and applications have used in the latest day and month in which they were used, with a bar for the share of the cap.

NAME is an APIKey, or app/NAME an Application. Without a name: the applications and keys of the namespace. It is what the enforcer reported
last, and can be some seconds behind. A period that has passed is shown in brackets: nothing of it counts now.`,
		Example: `  # Everything in a namespace
  kubectl latchkey usage -n demo

  # An application and one of its keys
  kubectl latchkey usage app/shop shop-backend -n demo`,
		ValidArgsFunction: p.completeKeys(0),
		RunE:              func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), args) },
	}
	cmd.Flags().BoolVarP(&o.allNamespaces, "all-namespaces", "A", false, "of all namespaces")
	cmd.Flags().StringVar(&o.app, "app", "", "only this Application and its keys")
	p.completeFlags(cmd)
	return cmd
}

func (o *usage) run(ctx context.Context, args []string) error {
	if len(args) > 0 && (o.allNamespaces || o.app != "") {
		return errors.New("names go neither with -A nor with --app: leave one of them out")
	}
	objects, err := parseObjects(args)
	if err != nil {
		return err
	}
	c, err := o.p.connect()
	if err != nil {
		return err
	}
	cal, err := o.p.readCalendar(ctx, c)
	if err != nil {
		return err
	}
	for _, obj := range objects {
		obj.SetNamespace(c.namespace)
		if err := c.Get(ctx, client.ObjectKeyFromObject(obj), obj); err != nil {
			return fmt.Errorf("get %s: %w", describeObject(obj), err)
		}
	}
	if len(args) == 0 {
		if objects, err = o.list(ctx, c); err != nil {
			return err
		}
	}
	if len(objects) == 0 {
		o.p.say("No applications and no apikeys found.")
		return nil
	}
	t := &table{header: []string{"NAME", "PERIOD", "", "SPENT", "OF", "REQUESTS", "TOKENS"}}
	if o.allNamespaces {
		t.header = append([]string{"NAMESPACE"}, t.header...)
	}
	var rows [][]cell
	for _, obj := range objects {
		for _, row := range usageRows(obj, cal, o.p.unicode(o.p.Out)) {
			if o.allNamespaces {
				row = append([]cell{text(obj.GetNamespace())}, row...)
			}
			rows = append(rows, row)
		}
	}
	return t.write(o.p.Out, o.p.palette(o.p.Out), true, rows)
}

// list reads the applications, each followed by its keys.
func (o *usage) list(ctx context.Context, c *cluster) ([]client.Object, error) {
	var opts []client.ListOption
	if !o.allNamespaces {
		opts = append(opts, client.InNamespace(c.namespace))
	}
	var apps v1alpha1.ApplicationList
	if err := c.List(ctx, &apps, opts...); err != nil {
		return nil, fmt.Errorf("list applications: %w", err)
	}
	var keys v1alpha1.APIKeyList
	if err := c.List(ctx, &keys, opts...); err != nil {
		return nil, fmt.Errorf("list apikeys: %w", err)
	}
	only := ""
	if o.app != "" {
		var err error
		if only, err = appName(o.app); err != nil {
			return nil, err
		}
	}
	var out []client.Object
	known := map[string]bool{}
	for i := range apps.Items {
		app := &apps.Items[i]
		known[app.Namespace+"/"+app.Name] = true
		if only != "" && app.Name != only {
			continue
		}
		out = append(out, app)
		for j := range keys.Items {
			if k := &keys.Items[j]; k.Namespace == app.Namespace && k.Spec.ApplicationRef.Name == app.Name {
				out = append(out, k)
			}
		}
	}
	for i := range keys.Items { // those whose application is not there
		if k := &keys.Items[i]; !known[k.Namespace+"/"+k.Spec.ApplicationRef.Name] && (only == "" || k.Spec.ApplicationRef.Name == only) {
			out = append(out, k)
		}
	}
	return out, nil
}

// usageRows are the day and the month of an object.
func usageRows(obj client.Object, cal calendar, unicode bool) [][]cell {
	var name string
	var u *v1alpha1.Usage
	daily, monthly := money.Amount(-1), money.Amount(-1)
	switch o := obj.(type) {
	case *v1alpha1.APIKey:
		name, u = "  "+o.Name, o.Status.Usage
		daily, monthly = budgetsOf(o.Spec.Budgets)
	case *v1alpha1.Application:
		name, u = "app/"+o.Name, o.Status.Usage
		daily, monthly = budgetsOf(o.Spec.Budgets)
	}
	day, month := cal.today(u), cal.thisMonth(u)
	past := [2]bool{}
	if u != nil && u.Day != nil && u.Day.Period != day.Period {
		day, past[0] = *u.Day, true
	}
	if u != nil && u.Month != nil && u.Month.Period != month.Period {
		month, past[1] = *u.Month, true
	}
	return [][]cell{
		usageRow(text(name), day, daily, past[0], cal, unicode),
		usageRow(text(""), month, monthly, past[1], cal, unicode),
	}
}

func usageRow(name cell, t v1alpha1.UsageTotals, limit money.Amount, past bool, cal calendar, unicode bool) []cell {
	spent, period, look := spend(t.Spent), t.Period, ratioStyle(spend(t.Spent), limit)
	if past {
		period, look = "("+period+")", faint
	}
	share, of := "", "no cap"
	if limit >= 0 {
		share = bar(spent, limit, barCells, unicode) + " " + strconv.FormatInt(percent(spent, limit), 10) + "%"
		of = cal.money(limit)
	}
	return []cell{name, text(period), {share, look}, text(short(spent)), text(of), text(grouped(t.Requests)), text(tokensShort(t.Tokens))}
}
