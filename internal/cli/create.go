package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

func (p *plugin) newCreate() *cobra.Command {
	cmd := group("create", "Create an APIKey or an Application")
	cmd.Example = `  # An application, and a key for it, in one step
  kubectl latchkey create key shop-backend --app shop --create-app -n demo

  # An application alone
  kubectl latchkey create app shop --monthly-budget 500 -n demo`
	cmd.AddCommand(p.newCreateKey(), p.newCreateApp())
	return cmd
}

// group is a command that holds others.
func group(use, short string, aliases ...string) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Aliases: aliases, DisableFlagsInUseLine: true,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("unknown command %q for %q\nSee: %s --help", args[0], cmd.CommandPath(), cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
}

// create creates an object, or only tries to.
func create(ctx context.Context, c client.Client, obj client.Object, dryRun dryRunFlag) error {
	opts := []client.CreateOption{client.FieldOwner(fieldOwner), &client.CreateOptions{Raw: strict()}}
	switch dryRun {
	case dryRunClient:
		return nil
	case dryRunServer:
		opts = append(opts, client.DryRunAll)
	}
	if err := c.Create(ctx, obj, opts...); err != nil {
		return fmt.Errorf("create %s: %w", describeObject(obj), err)
	}
	return nil
}
