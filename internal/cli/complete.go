package cli

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
)

// completionTimeout bounds a completion, for which somebody waits with a finger on the key.
const completionTimeout = 3 * time.Second

type completion = func(cmd *cobra.Command, args []string, toComplete string) ([]string, cobra.ShellCompDirective)

// complete offers fixed values for a flag.
func complete(cmd *cobra.Command, flag string, values ...string) {
	completeBy(cmd, flag, func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return values, cobra.ShellCompDirectiveNoFileComp
	})
}

func completeBy(cmd *cobra.Command, flag string, by completion) {
	if err := cmd.RegisterFlagCompletionFunc(flag, by); err != nil {
		panic(err) // the flag is not there: a mistake in this package that every start shows
	}
}

// completeList offers the names that a list holds. most is how many arguments there can be; 0: any number. Of lists with commas in a flag
// the last word is completed.
func (p *plugin) completeList(most int, list func() client.ObjectList, name func(client.Object) string) completion {
	return func(cmd *cobra.Command, args []string, toComplete string) ([]string, cobra.ShellCompDirective) {
		if most > 0 && len(args) >= most {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), completionTimeout)
		defer cancel()
		c, err := p.connect()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		into := list()
		if err := c.List(ctx, into, client.InNamespace(c.namespace)); err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		before, last := "", toComplete
		if at := strings.LastIndex(toComplete, ","); at >= 0 {
			before, last = toComplete[:at+1], toComplete[at+1:]
		}
		var found []string
		for _, obj := range itemsOf(into) {
			if n := name(obj); strings.HasPrefix(n, last) && !slices.Contains(args, n) {
				found = append(found, before+n)
			}
		}
		return found, cobra.ShellCompDirectiveNoFileComp
	}
}

// itemsOf are a list's items.
func itemsOf(list client.ObjectList) []client.Object {
	var out []client.Object
	switch l := list.(type) {
	case *v1alpha1.APIKeyList:
		for i := range l.Items {
			out = append(out, &l.Items[i])
		}
	case *v1alpha1.ApplicationList:
		for i := range l.Items {
			out = append(out, &l.Items[i])
		}
	case *v1alpha1.ModelList:
		for i := range l.Items {
			out = append(out, &l.Items[i])
		}
	case *corev1.NamespaceList:
		for i := range l.Items {
			out = append(out, &l.Items[i])
		}
	}
	return out
}

func (p *plugin) completeKeys(most int) completion {
	return p.completeList(most, func() client.ObjectList { return &v1alpha1.APIKeyList{} }, client.Object.GetName)
}

func (p *plugin) completeApps(most int) completion {
	return p.completeList(most, func() client.ObjectList { return &v1alpha1.ApplicationList{} }, client.Object.GetName)
}

func (p *plugin) completeModels(most int) completion {
	return p.completeList(most, func() client.ObjectList { return &v1alpha1.ModelList{} }, func(obj client.Object) string {
		return obj.(*v1alpha1.Model).CallName()
	})
}

// completeFlags offers values for the flags that several commands have.
func (p *plugin) completeFlags(cmd *cobra.Command) {
	for flag, by := range map[string]completion{
		"app": p.completeApps(0), "model": p.completeModels(0), "key-name": p.completeKeys(0),
		"capability":  fixed(strings.Split(capabilityNames(), ", ")...),
		"enforcement": fixed(string(v1alpha1.BudgetEnforcementUntilReached), string(v1alpha1.BudgetEnforcementStrict)),
		"state":       fixed(string(v1alpha1.StateEnabled), string(v1alpha1.StateDisabled)),
	} {
		if cmd.Flags().Lookup(flag) != nil {
			completeBy(cmd, flag, by)
		}
	}
}

func fixed(values ...string) completion {
	return func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return values, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeGlobal offers namespaces and contexts for the flags that all commands have.
func (p *plugin) completeGlobal(root *cobra.Command) {
	completeBy(root, "namespace", p.completeList(0, func() client.ObjectList { return &corev1.NamespaceList{} }, client.Object.GetName))
	entries := func(of func(clientcmd.ClientConfig) []string) completion {
		return func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return of(p.flags.ToRawKubeConfigLoader()), cobra.ShellCompDirectiveNoFileComp
		}
	}
	completeBy(root, "context", entries(func(c clientcmd.ClientConfig) (out []string) {
		raw, err := c.RawConfig()
		if err != nil {
			return nil
		}
		for name := range raw.Contexts {
			out = append(out, name)
		}
		return out
	}))
}
