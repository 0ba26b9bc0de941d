package cli

import (
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
)

// NewCommand is the root of the plugin's commands.
func NewCommand(streams genericiooptions.IOStreams) *cobra.Command {
	p := &plugin{
		IOStreams: streams,
		flags:     genericclioptions.NewConfigFlags(true),
		now:       time.Now,
		getenv:    os.Getenv,
		in:        newReader(streams.In),
	}
	return p.root()
}

func (p *plugin) root() *cobra.Command {
	root := group("kubectl-latchkey", "API keys for LLM APIs")
	root.Long = `API keys for LLM APIs: create them, show them once, see who spends what, and why a request is refused.

For completion through kubectl, put a link to this program, named kubectl_complete-latchkey, into a directory of your PATH. Amounts are in the
SystemPolicy's currency. Colour is for terminals, and NO_COLOR turns it off.

` + exitCodesHelp
	root.Example = `  # A key for an application, in one step; it is printed once
  kubectl latchkey create key shop-backend --app shop --create-app

  # Who spends what
  kubectl latchkey get keys -A --sort-by spent

  # Why is a request refused?
  kubectl latchkey why shop-backend --model gpt-5-mini`
	root.SilenceUsage, root.SilenceErrors = true, true
	root.Annotations = map[string]string{cobra.CommandDisplayNameAnnotation: "kubectl latchkey"}
	root.SetIn(p.In)
	root.SetOut(p.Out)
	root.SetErr(p.ErrOut)
	root.SetFlagErrorFunc(flagError)
	root.SetUsageTemplate(usageTemplate(root.UsageTemplate()))
	p.flags.AddFlags(root.PersistentFlags())
	p.completeGlobal(root)
	root.AddCommand(
		p.newCreate(),
		p.newReveal(), p.newRotate(), p.newGet(), p.newEnable(), p.newDisable(), p.newSet(), p.newDelete(), p.newWhy(), p.newDescribe(), p.newUsage(), p.newTry(), p.newDoctor(), p.newDocs(), p.newOptions(),
	)
	return root
}

// flagError says where the flags are explained.
func flagError(cmd *cobra.Command, err error) error {
	return fmt.Errorf("%w\nSee: %s --help", err, cmd.CommandPath())
}

// usageTemplate leaves the flags that all commands have to a command of their own, as kubectl does: they would hide the others.
func usageTemplate(cobras string) string {
	begin := strings.Index(cobras, "{{if .HasAvailableInheritedFlags}}")
	end := strings.Index(cobras, "{{if .HasHelpSubCommands}}")
	if begin < 0 || end < begin {
		return cobras
	}
	const local = "{{if .HasAvailableLocalFlags}}"
	return strings.Replace(cobras[:begin], local, "{{if and .HasAvailableLocalFlags .HasParent}}", 1) +
		"\n\nUse \"{{.Root.CommandPath}} options\" for the flags that all commands have." + cobras[end:]
}

func (p *plugin) newOptions() *cobra.Command {
	return &cobra.Command{
		Use:     "options",
		Short:   "List the flags that all commands have",
		Example: "  kubectl latchkey options",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprint(p.Out, "The flags that all commands have:\n\n"+cmd.Root().PersistentFlags().FlagUsages())
			return err
		},
	}
}
