package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/types"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
)

func (p *plugin) newReveal() *cobra.Command {
	timeout := 30 * time.Second
	hand := &handover{}
	cmd := &cobra.Command{
		Use:   "reveal NAME",
		Short: "Show the key of an APIKey, once",
		Long: `Show the key of an APIKey, once.

The key is printed on stdout and removed from the cluster in the same step: of several who try, one gets it, and nobody can get it
again: rotate it for a new one. A key with secret.retention: Retain is shown and stays.`,
		Example: `  # Show the key
  kubectl latchkey reveal shop-backend -n demo

  # Put it where the OpenAI SDKs look for it
  export OPENAI_API_KEY=$(kubectl latchkey reveal shop-backend -n demo)

  # Set up SDKs, Claude Code and Codex in this shell
  eval "$(kubectl latchkey reveal shop-backend -n demo --env --gateway https://llm.example.com)"`,
		Args:              names(1, 1, "the APIKey's NAME"),
		ValidArgsFunction: p.completeKeys(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := keyName(args[0])
			if err != nil {
				return err
			}
			if err := hand.check(p.getenv); err != nil {
				return err
			}
			c, err := p.connect()
			if err != nil {
				return err
			}
			apiKey := &v1alpha1.APIKey{}
			key := types.NamespacedName{Namespace: c.namespace, Name: name}
			if hand.needsObject() {
				if err := c.Get(cmd.Context(), key, apiKey); err != nil {
					return fmt.Errorf("get apikey %s: %w", key, err)
				}
			}
			return p.reveal(cmd.Context(), c, key, timeout, hand.of(apiKey))
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", timeout, "how long to wait for the key to be minted")
	hand.add(cmd)
	return cmd
}

// reveal takes the key and writes it as render says.
func (p *plugin) reveal(ctx context.Context, c *cluster, name types.NamespacedName, timeout time.Duration, render func(plaintext string) string) error {
	if leadsNowhere(p.Out) {
		return fmt.Errorf("the key was not taken, since it would be shown to nobody: stdout is closed or /dev/null; where it can be read: kubectl latchkey reveal %s -n %s", name.Name, name.Namespace)
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	plaintext, err := Claim(ctx, c, name)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(p.Out, render(plaintext.Reveal())); err != nil {
		return fmt.Errorf("the key was taken, but could not be printed and is lost; for a new one: kubectl latchkey rotate %s -n %s: %w", name.Name, name.Namespace, err)
	}
	return nil
}

// leadsNowhere reports whether what is written is thrown away. The Go runtime opens /dev/null in the place of a stdout that is closed.
func leadsNowhere(out io.Writer) bool {
	file, is := out.(*os.File)
	if !is {
		return false
	}
	here, err := file.Stat()
	if err != nil {
		return true
	}
	nowhere, err := os.Stat(os.DevNull)
	return err == nil && os.SameFile(here, nowhere)
}
