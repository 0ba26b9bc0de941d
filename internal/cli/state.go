package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
)

func (p *plugin) newEnable() *cobra.Command {
	return p.newSetState(v1alpha1.StateEnabled, &cobra.Command{
		Use:   "enable NAME...",
		Short: "Enable APIKeys or Applications",
		Example: `  # A key
  kubectl latchkey enable shop-backend -n demo

  # All keys of an application
  kubectl latchkey enable app/shop -n demo`,
	})
}

func (p *plugin) newDisable() *cobra.Command {
	return p.newSetState(v1alpha1.StateDisabled, &cobra.Command{
		Use:   "disable NAME...",
		Short: "Disable APIKeys or Applications: their requests are refused at once, and nothing is lost",
		Example: `  # A key
  kubectl latchkey disable shop-backend -n demo

  # All keys of an application
  kubectl latchkey disable app/shop -n demo

  # All keys that a selector finds
  kubectl latchkey get keys -l team=shop -o name | xargs kubectl latchkey disable`,
	})
}

type setState struct {
	p       *plugin
	state   v1alpha1.State
	done    string
	dryRun  dryRunFlag
	out     *output
	waiting waitFlags
}

func (p *plugin) newSetState(state v1alpha1.State, cmd *cobra.Command) *cobra.Command {
	o := &setState{p: p, state: state, done: "enabled"}
	if state == v1alpha1.StateDisabled {
		o.done = "disabled"
	}
	cmd.Long = cmd.Short + `.

NAME is an APIKey, or app/NAME an Application. The command ends when every connected enforcer has acted on it.`
	cmd.Args = names(1, -1, "a NAME")
	cmd.ValidArgsFunction = p.completeKeys(0)
	cmd.RunE = func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), args) }
	o.waiting.add(cmd)
	o.dryRun.add(cmd)
	o.out = newOutput(cmd, false)
	return cmd
}

func (o *setState) run(ctx context.Context, args []string) error {
	if err := errors.Join(o.dryRun.check(), o.out.check()); err != nil {
		return err
	}
	objects, err := parseObjects(args)
	if err != nil {
		return err
	}
	c, err := o.p.connect()
	if err != nil {
		return err
	}
	// All are written before any is waited for: a revocation does not queue behind another one's acknowledgement.
	var errs []error
	var written []client.Object
	for _, obj := range objects {
		obj.SetNamespace(c.namespace)
		changed, err := edit(ctx, c, obj, o.dryRun, func(obj client.Object) error {
			switch obj := obj.(type) {
			case *v1alpha1.APIKey:
				obj.Spec.State = o.state
			case *v1alpha1.Application:
				obj.Spec.State = o.state
			}
			return nil
		})
		if err != nil {
			errs = append(errs, err)
			continue
		}
		done := o.done
		if !changed {
			done += " already"
		}
		if err := o.p.tell(o.out, obj, o.dryRun.done(done)); err != nil {
			return err
		}
		written = append(written, obj)
	}
	if o.waiting.wait && o.dryRun == dryRunNone {
		for _, obj := range written {
			if err := o.p.awaitEnforced(ctx, c, obj, o.waiting.timeout); err != nil {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

// parseObjects makes empty objects of NAME and KIND/NAME.
func parseObjects(args []string) ([]client.Object, error) {
	var out []client.Object
	for _, arg := range args {
		ref, err := parseReference(arg, kindKey)
		if err != nil {
			return nil, err
		}
		var obj client.Object = &v1alpha1.APIKey{}
		if ref.kind == kindApp {
			obj = &v1alpha1.Application{}
		}
		obj.SetName(ref.name)
		out = append(out, obj)
	}
	return out, nil
}

// editAttempts bounds how often an edit begins anew because somebody else has changed the object meanwhile.
const editAttempts = 5

// edit reads an object, changes it and writes the difference, provided that it is as it was read. It reports whether there was one.
func edit(ctx context.Context, c client.Client, obj client.Object, dryRun dryRunFlag, change func(client.Object) error) (bool, error) {
	what := describeObject(obj)
	for attempt := 1; ; attempt++ {
		if err := c.Get(ctx, client.ObjectKeyFromObject(obj), obj); err != nil {
			return false, fmt.Errorf("get %s: %w", what, err)
		}
		before := obj.DeepCopyObject().(client.Object)
		if err := change(obj); err != nil {
			return false, err
		}
		same, err := equalSpecs(before, obj)
		if same || err != nil || dryRun == dryRunClient {
			return !same, err
		}
		opts := []client.PatchOption{client.FieldOwner(fieldOwner), &client.PatchOptions{Raw: strictPatch()}}
		if dryRun == dryRunServer {
			opts = append(opts, client.DryRunAll)
		}
		err = c.Patch(ctx, obj, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}), opts...)
		if err == nil {
			return true, nil
		}
		if !isConflict(err) || attempt == editAttempts {
			return false, fmt.Errorf("change %s: %w", what, err)
		}
	}
}
