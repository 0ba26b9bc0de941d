package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
)

type why struct {
	p                   *plugin
	model, path, format string
}

func (p *plugin) newWhy() *cobra.Command {
	o := &why{p: p}
	cmd := &cobra.Command{
		Use:   "why KEY",
		Short: "Would a request with the key pass now, and if not, what refuses it?",
		Long: `Tell whether a request with the key would pass now, and if not, which limit of whom refuses it, what is used of it and when it resets.

It is computed from the objects in the cluster. What status says of spend can be some seconds behind, and what was asked for in the last 60
seconds is not in it. Exact is what the gateway answers to GET /v1/key with the key itself.

Exit codes: 0, a request would pass; 1, it would be refused; 2, it could not be told.`,
		Example: `  # Any request
  kubectl latchkey why shop-backend -n demo

  # A certain one
  kubectl latchkey why shop-backend --model gpt-5-mini --path /v1/chat/completions -n demo

  # In a script
  kubectl latchkey why shop-backend -o json -n demo > why.json || grep '"reason"' why.json`,
		ValidArgsFunction: p.completeKeys(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			err := names(1, 1, "the KEY's name")(cmd, args)
			if err == nil {
				err = o.run(cmd.Context(), args[0])
			}
			if _, own := errors.AsType[*ExitError](err); err == nil || own || cmd.Context().Err() != nil {
				return err
			}
			return &ExitError{exitUndecided, err}
		},
	}
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return &ExitError{exitUndecided, flagError(cmd, err)} })
	cmd.Flags().StringVar(&o.model, "model", "", "model that the request names")
	cmd.Flags().StringVar(&o.path, "path", "", "path of the request, such as /v1/chat/completions")
	cmd.Flags().StringVarP(&o.format, "output", "o", "", "Output format. One of: (json, yaml).")
	complete(cmd, "output", "json", "yaml")
	complete(cmd, "path", "/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/embeddings", "/v1/images/generations", "/v1/audio/speech", "/v1/audio/transcriptions")
	p.completeFlags(cmd)
	return cmd
}

func (o *why) run(ctx context.Context, arg string) error {
	if o.format != "" && o.format != "json" && o.format != "yaml" {
		return fmt.Errorf("--output: %q is neither json nor yaml", o.format)
	}
	name, err := keyName(arg)
	if err != nil {
		return err
	}
	c, err := o.p.connect()
	if err != nil {
		return err
	}
	q, err := o.gather(ctx, c, types.NamespacedName{Namespace: c.namespace, Name: name})
	if err != nil {
		return err
	}
	v := q.decide()
	if err := o.print(q, v); err != nil {
		return err
	}
	if !v.Passes {
		return &ExitError{Code: exitFailed}
	}
	return nil
}

// gather reads what the answer needs.
func (o *why) gather(ctx context.Context, c *cluster, name types.NamespacedName) (*question, error) {
	q := &question{key: &v1alpha1.APIKey{}, app: &v1alpha1.Application{}, model: o.model, path: o.path}
	if q.path != "" && !strings.HasPrefix(q.path, "/") {
		q.path = "/" + q.path
	}
	if err := c.Get(ctx, name, q.key); err != nil {
		return nil, fmt.Errorf("get apikey %s: %w", name, err)
	}
	appName := types.NamespacedName{Namespace: name.Namespace, Name: q.key.Spec.ApplicationRef.Name}
	if err := c.Get(ctx, appName, q.app); apierrors.IsNotFound(err) {
		q.app = nil
	} else if err != nil {
		return nil, fmt.Errorf("get application %s: %w", appName, err)
	}
	var err error
	if q.cal, err = o.p.readCalendar(ctx, c); err != nil {
		return nil, err
	}
	q.provider = func(string) *v1alpha1.Provider { return nil }
	if o.model == "" {
		return q, nil
	}
	var models v1alpha1.ModelList
	if err := c.List(ctx, &models); err != nil {
		return nil, fmt.Errorf("list models: %w", err)
	}
	q.models = models.Items
	var providers v1alpha1.ProviderList
	if err := c.List(ctx, &providers); err != nil {
		return nil, fmt.Errorf("list providers: %w", err)
	}
	q.provider = func(name string) *v1alpha1.Provider {
		for i := range providers.Items {
			if providers.Items[i].Name == name {
				return &providers.Items[i]
			}
		}
		return nil
	}
	return q, nil
}

func (o *why) print(q *question, v *verdict) error {
	switch o.format {
	case "json":
		encoder := json.NewEncoder(o.p.Out)
		encoder.SetIndent("", "    ")
		return encoder.Encode(v)
	case "yaml":
		content, err := yaml.Marshal(v)
		if err != nil {
			return fmt.Errorf("encode the answer: %w", err)
		}
		_, err = o.p.Out.Write(content)
		return err
	}
	colours := o.p.palette(o.p.Out)
	if _, err := fmt.Fprintln(o.p.Out, q.title()+"\n"); err != nil {
		return err
	}
	t := &table{header: []string{"", "", ""}}
	rows := make([][]cell, 0, len(v.Checks))
	for _, ch := range v.Checks {
		rows = append(rows, []cell{{"  " + ch.Outcome, outcomeStyle(ch.Outcome)}, text(ch.What), text(ch.Says)})
	}
	if err := t.write(o.p.Out, colours, false, rows); err != nil {
		return err
	}
	answer := colours.paint(good, "A request would pass now") + ", unless a limit by the minute is used up."
	if !v.Passes {
		answer = fmt.Sprintf("%s with %d %s: %s.", colours.paint(bad, "A request would be refused now"), v.Status, http.StatusText(v.Status), v.Reason)
	}
	_, err := fmt.Fprintln(o.p.Out, "\n"+answer)
	if err == nil {
		o.p.say("%s", o.p.palette(o.p.ErrOut).paint(faint, "Spend is as the enforcer last reported it; GET /v1/key on the gateway, with the key itself, is exact."))
	}
	return err
}

func outcomeStyle(outcome string) style {
	switch outcome {
	case outcomeOK:
		return good
	case outcomeRefused:
		return bad
	case outcomeNote:
		return warn
	}
	return plain
}

// title says what is asked about.
func (q *question) title() string {
	s := fmt.Sprintf("Key %s/%s, %s", q.key.Namespace, q.key.Name, oneLine(string(q.key.Spec.DisplayName)))
	if q.key.Status.KeyPrefix != "" {
		s += ", " + oneLine(q.key.Status.KeyPrefix) + "…"
	}
	if q.path != "" {
		s += "; path " + oneLine(q.path)
	}
	if q.model != "" {
		s += "; model " + oneLine(q.model)
	}
	return s
}
