package cli

import (
	"context"
	"errors"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
)

func (p *plugin) newSet() *cobra.Command {
	cmd := group("set", "Change the fields of an APIKey or an Application", "edit")
	cmd.Example = `  # Another daily budget, and no limit on tokens of its own
  kubectl latchkey set key shop-backend --daily-budget 20 --tpm none -n demo

  # A ceiling for all keys of an application together
  kubectl latchkey set app shop --monthly-budget 800 -n demo`
	cmd.AddCommand(p.newSetKey(), p.newSetApp())
	return cmd
}

// setFields is what both have in common.
type setFields struct {
	p       *plugin
	spec    specFlags
	dryRun  dryRunFlag
	out     *output
	waiting waitFlags
	control map[string]bool // flags that change no field

	after func(context.Context, *cluster) error // once it is enforced; nil: nothing
}

func (o *setFields) add(cmd *cobra.Command) {
	o.waiting.add(cmd)
	o.dryRun.add(cmd)
	o.out = newOutput(cmd, false)
	o.control = map[string]bool{"wait": true, "timeout": true, "dry-run": true, "output": true, "template": true, "show-managed-fields": true, "allow-missing-template-keys": true}
	o.p.completeFlags(cmd)
}

func (o *setFields) run(ctx context.Context, cmd *cobra.Command, obj client.Object, change func(client.Object) error) error {
	if err := errors.Join(o.dryRun.check(), o.out.check()); err != nil {
		return err
	}
	if !o.changes(cmd) {
		return errors.New("nothing to change: name a field by its flag, such as --rpm 120\nSee: " + cmd.CommandPath() + " --help")
	}
	c, err := o.p.connect()
	if err != nil {
		return err
	}
	obj.SetNamespace(c.namespace)
	changed, err := edit(ctx, c, obj, o.dryRun, change)
	if err != nil {
		return err
	}
	done := "changed"
	if !changed {
		done = "unchanged"
	}
	if err := o.p.tell(o.out, obj, o.dryRun.done(done)); err != nil {
		return err
	}
	if !changed || !o.waiting.wait || o.dryRun != dryRunNone {
		return nil
	}
	if err := o.p.awaitEnforced(ctx, c, obj, o.waiting.timeout); err != nil || o.after == nil {
		return err
	}
	return o.after(ctx, c)
}

// changes reports whether any flag of a field was given.
func (o *setFields) changes(cmd *cobra.Command) bool {
	found := false
	cmd.Flags().Visit(func(f *pflag.Flag) {
		found = found || (!o.control[f.Name] && cmd.InheritedFlags().Lookup(f.Name) == nil)
	})
	return found
}

func equalSpecs(a, b client.Object) (bool, error) {
	x, err := runtime.DefaultUnstructuredConverter.ToUnstructured(a)
	if err != nil {
		return false, err
	}
	y, err := runtime.DefaultUnstructuredConverter.ToUnstructured(b)
	if err != nil {
		return false, err
	}
	return apiequality.Semantic.DeepEqual(x["spec"], y["spec"]), nil
}

func isConflict(err error) bool { return apierrors.IsConflict(err) }

func strictPatch() *metav1.PatchOptions {
	return &metav1.PatchOptions{FieldValidation: metav1.FieldValidationStrict}
}

func (p *plugin) newSetKey() *cobra.Command {
	o := &setFields{p: p}
	own, overlap := keyFlags{}, ""
	cmd := &cobra.Command{
		Use:     "key NAME",
		Aliases: []string{"apikey"},
		Short:   "Change the fields of an APIKey",
		Long: `Change the fields of an APIKey. What no flag names stays as it is; lists are replaced.

The command ends when every connected enforcer has acted on it. The key's Application cannot be changed. --overlap counts for an earlier key
that is still honoured after a rotation; 0s ends it now.`,
		Example: `  # Another daily budget, and no limit on tokens of its own
  kubectl latchkey set key shop-backend --daily-budget 20 --tpm none -n demo

  # Other models, for 30 days from now
  kubectl latchkey set key shop-backend --model gpt-5-mini,claude-sonnet-4-5 --expires 30d -n demo

  # The new key is in place everywhere: end the one from before the rotation now
  kubectl latchkey set key shop-backend --overlap 0s -n demo

  # See what would be sent
  kubectl latchkey set key shop-backend --rpm 120 --dry-run=server -o yaml -n demo`,
		Args:              names(1, 1, "the APIKey's NAME"),
		ValidArgsFunction: p.completeKeys(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := keyName(args[0])
			if err != nil {
				return err
			}
			k := &v1alpha1.APIKey{ObjectMeta: metav1.ObjectMeta{Name: name}}
			if cmd.Flags().Changed("overlap") {
				o.after = func(ctx context.Context, c *cluster) error { return p.tellEarlier(ctx, c, k) }
			}
			return o.run(cmd.Context(), cmd, k, func(obj client.Object) error {
				spec := &obj.(*v1alpha1.APIKey).Spec
				err := errors.Join(o.spec.applyToKey(spec), own.apply(cmd, spec, p.now()))
				if cmd.Flags().Changed("overlap") {
					err = errors.Join(err, setOverlap(obj.(*v1alpha1.APIKey), overlap))
				}
				return err
			})
		},
	}
	o.spec.add(cmd, true)
	own.add(cmd)
	cmd.Flags().StringVar(&overlap, "overlap", "", `how long the key from before a rotation is honoured, counted from the rotation, from 0s to 720h, such as 24h or 7d; "none" for the default, 24h`)
	o.add(cmd)
	return cmd
}

func (p *plugin) newSetApp() *cobra.Command {
	o := &setFields{p: p}
	own := appFlags{}
	cmd := &cobra.Command{
		Use:     "app NAME",
		Aliases: []string{"application"},
		Short:   "Change the fields of an Application",
		Long: `Change the fields of an Application. What no flag names stays as it is; lists are replaced, and "none" unsets them.

The command ends when every connected enforcer has acted on it.`,
		Example: `  # A ceiling for all its keys together
  kubectl latchkey set app shop --monthly-budget 800 -n demo

  # No bound on models any more
  kubectl latchkey set app shop --model none -n demo`,
		Args:              names(1, 1, "the Application's NAME"),
		ValidArgsFunction: p.completeApps(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := appName(args[0])
			if err != nil {
				return err
			}
			return o.run(cmd.Context(), cmd, &v1alpha1.Application{ObjectMeta: metav1.ObjectMeta{Name: name}}, func(obj client.Object) error {
				spec := &obj.(*v1alpha1.Application).Spec
				return errors.Join(o.spec.applyToApp(spec), own.apply(cmd, spec))
			})
		},
	}
	o.spec.add(cmd, true)
	own.add(cmd)
	o.add(cmd)
	return cmd
}
