package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
)

// NewCommand is the root of the plugin's commands.
func NewCommand(streams genericiooptions.IOStreams) *cobra.Command {
	flags := genericclioptions.NewConfigFlags(true)
	root := &cobra.Command{
		Use:           "kubectl-latchkey",
		Short:         "API keys for LLM APIs",
		SilenceUsage:  true,
		SilenceErrors: true,
		Annotations:   map[string]string{cobra.CommandDisplayNameAnnotation: "kubectl latchkey"},
	}
	root.SetIn(streams.In)
	root.SetOut(streams.Out)
	root.SetErr(streams.ErrOut)
	flags.AddFlags(root.PersistentFlags())
	root.AddCommand(newReveal(flags, streams))
	return root
}

func newReveal(flags *genericclioptions.ConfigFlags, streams genericiooptions.IOStreams) *cobra.Command {
	timeout := 30 * time.Second
	cmd := &cobra.Command{
		Use:   "reveal NAME",
		Short: "Show the key of an APIKey, once",
		Long: `Show the key of an APIKey, once.

The key is printed on stdout and removed from the cluster in the same step: of several who try, one gets it, and nobody can get it
again. A key with secret.retention: Retain is shown and stays.`,
		Example: `  # Show the key
  kubectl latchkey reveal shop-backend -n demo

  # Put it where the OpenAI SDKs look for it
  export OPENAI_API_KEY=$(kubectl latchkey reveal shop-backend -n demo)`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, namespace, err := connect(flags)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			plaintext, err := Claim(ctx, c, types.NamespacedName{Namespace: namespace, Name: args[0]})
			if err != nil {
				return err
			}
			if _, err := fmt.Fprintln(streams.Out, plaintext.Reveal()); err != nil {
				return fmt.Errorf("the key was taken, but could not be printed and is lost; delete the APIKey and create a new one: %w", err)
			}
			return nil
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", timeout, "how long to wait for the key to be minted")
	return cmd
}

// connect makes a client, and tells the namespace that the flags and the kubeconfig name.
func connect(flags *genericclioptions.ConfigFlags) (client.Client, string, error) {
	namespace, _, err := flags.ToRawKubeConfigLoader().Namespace()
	if err != nil {
		return nil, "", fmt.Errorf("read kubeconfig: %w", err)
	}
	config, err := flags.ToRESTConfig()
	if err != nil {
		return nil, "", fmt.Errorf("read kubeconfig: %w", err)
	}
	scheme := runtime.NewScheme()
	if err := clientgoscheme.AddToScheme(scheme); err != nil {
		return nil, "", fmt.Errorf("build scheme: %w", err)
	}
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		return nil, "", fmt.Errorf("build scheme: %w", err)
	}
	c, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		return nil, "", fmt.Errorf("connect to the API server: %w", err)
	}
	return c, namespace, nil
}
