package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
)

func (p *plugin) newDelete() *cobra.Command {
	cmd := group("delete", "Delete an APIKey")
	cmd.Example = `  # Asks for the key's display name
  kubectl latchkey delete key shop-backend -n demo`
	cmd.AddCommand(p.newDeleteKey())
	return cmd
}

// takeBackTimeout bounds the request that takes a confirmation back.
const takeBackTimeout = 5 * time.Second

type deleteKey struct {
	p       *plugin
	confirm string
	dryRun  dryRunFlag
	wait    bool
	timeout time.Duration
}

func (p *plugin) newDeleteKey() *cobra.Command {
	o := &deleteKey{p: p}
	cmd := &cobra.Command{
		Use:     "key NAME",
		Aliases: []string{"apikey"},
		Short:   "Delete an APIKey, for good",
		Long: `Delete an APIKey, for good: its requests are refused from then on, and the same key cannot be made again.

The command says what is lost, and asks for the key's display name. Without a terminal, --confirm gives it. To stop a key for a while,
disable it instead. Where config/guard is installed, which asks kubectl's users the same question, the answer is passed on to it.`,
		Example: `  # Asks for the key's display name
  kubectl latchkey delete key shop-backend -n demo

  # In a script
  kubectl latchkey delete key shop-backend --confirm "Shop backend" -n demo`,
		Args:              names(1, 1, "the APIKey's NAME"),
		ValidArgsFunction: p.completeKeys(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := keyName(args[0])
			if err != nil {
				return err
			}
			return o.run(cmd.Context(), name)
		},
	}
	cmd.Flags().StringVar(&o.confirm, "confirm", "", "the key's display name, or its NAME: delete without asking")
	cmd.Flags().BoolVar(&o.wait, "wait", true, "wait until the key is gone")
	cmd.Flags().DurationVar(&o.timeout, "timeout", time.Minute, "how long to wait")
	o.dryRun.add(cmd)
	return cmd
}

func (o *deleteKey) run(ctx context.Context, name string) error {
	if err := o.dryRun.check(); err != nil {
		return err
	}
	c, err := o.p.connect()
	if err != nil {
		return err
	}
	k := &v1alpha1.APIKey{}
	if err := c.Get(ctx, types.NamespacedName{Namespace: c.namespace, Name: name}, k); err != nil {
		return fmt.Errorf("get apikey %s/%s: %w", c.namespace, name, err)
	}
	cal, err := o.p.readCalendar(ctx, c)
	if err != nil {
		return err
	}
	o.p.say("%s", whatIsLost(k, cal))
	if err := o.agree(ctx, k); err != nil {
		return err
	}
	if o.dryRun != dryRunClient {
		if err := o.delete(ctx, c, k); err != nil {
			return err
		}
	}
	if o.wait && o.dryRun == dryRunNone {
		if err := o.awaitGone(ctx, c, k); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintf(o.p.Out, "%s %s\n", reference{kindKey, name}, o.dryRun.done("deleted"))
	return err
}

// delete deletes what was shown, not another of that name that has taken its place.
func (o *deleteKey) delete(ctx context.Context, c client.Client, k *v1alpha1.APIKey) error {
	opts := []client.DeleteOption{client.Preconditions{UID: &k.UID}}
	if o.dryRun == dryRunServer {
		opts = append(opts, client.DryRunAll)
	}
	takeBack, err := o.confirmForGuard(ctx, c, k)
	if err != nil {
		return err
	}
	err = c.Delete(ctx, k, opts...)
	if o.dryRun == dryRunServer && isGuards(err) {
		return nil // what it asks for has been given in the dry run before, which has left nothing behind
	}
	if err != nil {
		takeBack()
		return fmt.Errorf("delete %s: %w", describeObject(k), err)
	}
	return nil
}

// isGuards reports whether an error is the guard's refusal.
func isGuards(err error) bool {
	return apierrors.IsForbidden(err) && strings.Contains(err.Error(), v1alpha1.AnnotationConfirmDeletion)
}

// confirmForGuard passes on to the guard, should there be one, what was confirmed. takeBack undoes that, for a key that is not deleted after all.
func (o *deleteKey) confirmForGuard(ctx context.Context, c client.Client, k *v1alpha1.APIKey) (takeBack func(), err error) {
	before, had := k.Annotations[v1alpha1.AnnotationConfirmDeletion]
	if before == string(k.Spec.DisplayName) {
		return func() {}, nil
	}
	annotate := func(ctx context.Context, value any) error {
		patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": k.UID, "annotations": map[string]any{v1alpha1.AnnotationConfirmDeletion: value}}})
		if err != nil {
			return fmt.Errorf("encode the confirmation: %w", err)
		}
		opts := []client.PatchOption{client.FieldOwner(fieldOwner)}
		if o.dryRun == dryRunServer {
			opts = append(opts, client.DryRunAll)
		}
		return c.Patch(ctx, k.DeepCopy(), client.RawPatch(types.MergePatchType, patch), opts...)
	}
	err = annotate(ctx, k.Spec.DisplayName)
	switch {
	case apierrors.IsForbidden(err): // who may delete and not change: if there is a guard, it says what it wants
		return func() {}, nil
	case err != nil:
		return nil, fmt.Errorf("confirm the deletion of %s by an annotation: %w", describeObject(k), err)
	}
	return func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), takeBackTimeout)
		defer cancel()
		var value any
		if had {
			value = before
		}
		if err := annotate(ctx, value); err != nil && !apierrors.IsNotFound(err) {
			o.p.say("The annotation %s=%s has been left on it.", v1alpha1.AnnotationConfirmDeletion, quoteForShell(string(k.Spec.DisplayName)))
		}
	}, nil
}

// agree has the key's name given.
func (o *deleteKey) agree(ctx context.Context, k *v1alpha1.APIKey) error {
	displayName := string(k.Spec.DisplayName)
	switch {
	case o.confirm == displayName || (o.confirm != "" && o.confirm == k.Name):
		return nil
	case o.confirm != "":
		return fmt.Errorf("nothing has been deleted: --confirm is %q, and the key's display name is %q", o.confirm, displayName)
	case !o.p.mayAsk():
		return fmt.Errorf("nothing has been deleted, for there is no terminal to ask on: add --confirm %s", quoteForShell(displayName))
	}
	answer, err := o.p.ask(ctx, fmt.Sprintf("Type %q to delete it", oneLine(displayName)), "")
	if err != nil {
		return err
	}
	if answer != displayName {
		return errors.New("nothing has been deleted: that is not the key's display name")
	}
	return nil
}

func (o *deleteKey) awaitGone(ctx context.Context, c client.Client, k *v1alpha1.APIKey) error {
	ctx, cancel := context.WithTimeoutCause(ctx, o.timeout, errNotInTime)
	defer cancel()
	line := o.p.progress()
	defer line.clear()
	err := wait.PollUntilContextCancel(ctx, pollEvery, true, func(ctx context.Context) (bool, error) {
		line.show("waiting until " + describeObject(k) + " is gone")
		now := &v1alpha1.APIKey{}
		err := c.Get(ctx, client.ObjectKeyFromObject(k), now)
		switch {
		case apierrors.IsNotFound(err):
			return true, nil
		case err != nil:
			return false, fmt.Errorf("get %s: %w", describeObject(k), err)
		}
		return now.UID != k.UID, nil
	})
	if ctx.Err() != nil && errors.Is(context.Cause(ctx), errNotInTime) {
		return fmt.Errorf("%s is being deleted, and is not gone after %s: is the Latchkey manager running?", describeObject(k), o.timeout)
	}
	return err
}

// whatIsLost says what goes with a key.
func whatIsLost(k *v1alpha1.APIKey, cal calendar) string {
	var b strings.Builder
	prefix := ""
	if k.Status.KeyPrefix != "" {
		prefix = ", " + oneLine(k.Status.KeyPrefix) + "…"
	}
	fmt.Fprintf(&b, "APIKey %s/%s (%s%s) of application %s will be deleted, for good.\n",
		k.Namespace, k.Name, oneLine(string(k.Spec.DisplayName)), prefix, k.Spec.ApplicationRef.Name)
	if last := usedLast(k.Status.Usage); last.IsZero() {
		b.WriteString("  It has not been used yet, as far as is known.\n")
	} else {
		fmt.Fprintf(&b, "  It was last used %s, at %s.\n", in(cal.now, last.Time), moment(last.Time, cal.zone))
	}
	month := cal.thisMonth(k.Status.Usage)
	fmt.Fprintf(&b, "  This month it has spent %s in %s; the application keeps that in its own account.\n",
		cal.money(spend(month.Spent)), counted(month.Requests, "request"))
	fmt.Fprintf(&b, "  Whoever still uses it gets 401 from then on. To stop it for a while instead: kubectl latchkey disable %[1]s -n %[2]s\n"+
		"  To put another key in its place: kubectl latchkey rotate %[1]s -n %[2]s", k.Name, k.Namespace)
	return b.String()
}
