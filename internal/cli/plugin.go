package cli

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
)

// fieldOwner is under which name the plugin's writes are listed in managedFields.
const fieldOwner = "kubectl-latchkey"

// plugin is what all commands share.
type plugin struct {
	genericiooptions.IOStreams
	flags  *genericclioptions.ConfigFlags
	now    func() time.Time
	getenv func(string) string
	in     *reader
}

// cluster is a connection to the API server.
type cluster struct {
	client.WithWatch
	namespace string // that flags and kubeconfig name
	config    *rest.Config
}

// newScheme holds the kinds that the plugin reads and writes.
func newScheme() (*runtime.Scheme, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, apiextensionsv1.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, fmt.Errorf("build scheme: %w", err)
		}
	}
	return scheme, nil
}

// connect makes a client, and tells the namespace that the flags and the kubeconfig name.
func (p *plugin) connect() (*cluster, error) {
	namespace, err := p.namespace()
	if err != nil {
		return nil, err
	}
	config, err := p.flags.ToRESTConfig()
	if err != nil {
		return nil, fmt.Errorf("read kubeconfig: %w", err)
	}
	config.QPS = -1 // the API server's own fairness is the limit
	config.WarningHandler = rest.NewWarningWriter(p.ErrOut, rest.WarningWriterOptions{Deduplicate: true})
	scheme, err := newScheme()
	if err != nil {
		return nil, err
	}
	c, err := client.NewWithWatch(config, client.Options{Scheme: scheme, Mapper: newMapper()})
	if err != nil {
		return nil, fmt.Errorf("connect to the API server: %w", err)
	}
	return &cluster{WithWatch: c, namespace: namespace, config: config}, nil
}

// namespace is the one that flags and kubeconfig name.
func (p *plugin) namespace() (string, error) {
	namespace, _, err := p.flags.ToRawKubeConfigLoader().Namespace()
	if clientcmd.IsEmptyConfig(err) {
		return "default", nil
	}
	if err != nil {
		return "", fmt.Errorf("read kubeconfig: %w", err)
	}
	return namespace, nil
}

// say writes a line for people, on stderr.
func (p *plugin) say(format string, args ...any) { _, _ = fmt.Fprintf(p.ErrOut, format+"\n", args...) }

// The kinds that arguments can name.
const (
	kindKey = "apikey"
	kindApp = "application"
)

// kindsByName are the words that may stand before a slash, as "-o name" and kubectl write them.
func kindOf(word string) (string, bool) {
	word, _, _ = strings.Cut(strings.ToLower(word), ".")
	switch word {
	case kindKey, "apikeys", "lkkey", "key", "keys":
		return kindKey, true
	case kindApp, "applications", "lkapp", "app", "apps":
		return kindApp, true
	}
	return "", false
}

// reference is an object that an argument names.
type reference struct{ kind, name string }

// String is the object as "-o name" writes it.
func (r reference) String() string { return r.kind + "." + v1alpha1.GroupVersion.Group + "/" + r.name }

// parseReference reads NAME or KIND/NAME, as "-o name" writes it. Without a kind it is the one given.
func parseReference(arg, kind string) (reference, error) {
	word, name, slash := strings.Cut(arg, "/")
	if !slash {
		word, name = kind, arg
	}
	found, known := kindOf(word)
	switch {
	case !known:
		return reference{}, fmt.Errorf("%q names neither an APIKey nor an Application: write NAME, key/NAME or app/NAME", arg)
	case name == "":
		return reference{}, fmt.Errorf("%q lacks a name: write %s/NAME", arg, word)
	}
	return reference{found, name}, nil
}

// keyName reads the name of an APIKey: NAME, or what "-o name" writes.
func keyName(arg string) (string, error) {
	ref, err := parseReference(arg, kindKey)
	if err == nil && ref.kind != kindKey {
		err = fmt.Errorf("%q is an Application, and this command is for APIKeys", arg)
	}
	return ref.name, err
}

// appName reads the name of an Application: NAME, or what "-o name" writes.
func appName(arg string) (string, error) {
	ref, err := parseReference(arg, kindApp)
	if err == nil && ref.kind != kindApp {
		err = fmt.Errorf("%q is an APIKey, and this command is for Applications", arg)
	}
	return ref.name, err
}

// names checks the number of arguments, with a message that says what to write.
func names(least, most int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < least:
			return fmt.Errorf("%s is missing: %s\nSee: %s --help", what, cmd.UseLine(), cmd.CommandPath())
		case most >= 0 && len(args) > most:
			return fmt.Errorf("%q is one argument too many: %s\nSee: %s --help", args[most], cmd.UseLine(), cmd.CommandPath())
		}
		return nil
	}
}
