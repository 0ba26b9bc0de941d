package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
)

type createApp struct {
	p           *plugin
	spec        specFlags
	own         appFlags
	out         *output
	dryRun      dryRunFlag
	application *v1alpha1.Application
}

// appFlags are the fields that only Applications have.
type appFlags struct{ description, maxKeys string }

func (a *appFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&a.description, "description", "", "what the application is for, up to 500 characters")
	cmd.Flags().StringVar(&a.maxKeys, "max-keys", "", "how many APIKeys it can have in force")
}

func (a *appFlags) apply(cmd *cobra.Command, spec *v1alpha1.ApplicationSpec) error {
	if cmd.Flags().Changed("description") {
		spec.Description = a.description
		if a.description == unset {
			spec.Description = ""
		}
	}
	if cmd.Flags().Changed("max-keys") {
		n, err := parseLimit(a.maxKeys)
		if err != nil || (n != nil && *n > 100_000) {
			return fmt.Errorf("--max-keys: %q is not a number from 0 to 100000, or none", a.maxKeys)
		}
		spec.MaxKeys = nil
		if n != nil {
			spec.MaxKeys = new(int32(*n))
		}
	}
	return nil
}

func (p *plugin) newCreateApp() *cobra.Command {
	o := &createApp{p: p}
	cmd := &cobra.Command{
		Use:     "app NAME",
		Aliases: []string{"application"},
		Short:   "Create an Application",
		Long: `Create an Application: who is billed, with the ceilings for all its keys together.

What is left out is not bounded: each key's own fields decide.`,
		Example: `  # With a budget for all its keys together
  kubectl latchkey create app shop --display-name "Online shop" --monthly-budget 500 -n demo

  # As YAML, for a repository
  kubectl latchkey create app shop --monthly-budget 500 --dry-run=client -o yaml`,
		Args: names(1, 1, "the Application's NAME"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			o.application, err = newApplication(args[0])
			if err != nil {
				return err
			}
			if err := o.spec.applyToApp(&o.application.Spec); err != nil {
				return err
			}
			if err := o.own.apply(cmd, &o.application.Spec); err != nil {
				return err
			}
			return o.run(cmd.Context())
		},
	}
	o.spec.add(cmd, false)
	o.spec.addState(cmd)
	o.own.add(cmd)
	o.dryRun.add(cmd)
	o.out = newOutput(cmd, false)
	p.completeFlags(cmd)
	return cmd
}

// newApplication is an Application with nothing but its names.
func newApplication(arg string) (*v1alpha1.Application, error) {
	name, err := appName(arg)
	if err != nil {
		return nil, err
	}
	displayName := name
	if len(displayName) < 2 {
		displayName = "Application " + name
	}
	return &v1alpha1.Application{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       v1alpha1.ApplicationSpec{DisplayName: v1alpha1.DisplayName(clip(displayName, 50))},
	}, nil
}

// clip cuts a text off.
func clip(s string, most int) string {
	if runes := []rune(s); len(runes) > most {
		return string(runes[:most])
	}
	return s
}

func (o *createApp) run(ctx context.Context) error {
	if err := o.dryRun.check(); err != nil {
		return err
	}
	if err := o.out.check(); err != nil {
		return err
	}
	namespace, err := o.p.namespace()
	if err != nil {
		return err
	}
	o.application.Namespace = namespace
	if o.dryRun != dryRunClient {
		c, err := o.p.connect()
		if err != nil {
			return err
		}
		if err := create(ctx, c, o.application, o.dryRun); err != nil {
			return err
		}
	}
	return o.p.tell(o.out, o.application, o.dryRun.done("created"))
}
