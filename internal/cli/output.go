package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
)

// The strategies of --dry-run.
const (
	dryRunNone   = "none"
	dryRunClient = "client"
	dryRunServer = "server"
)

// dryRunFlag is kubectl's --dry-run.
type dryRunFlag string

func (d *dryRunFlag) add(cmd *cobra.Command) {
	*d = dryRunNone
	cmd.Flags().StringVar((*string)(d), "dry-run", dryRunNone, `Must be "none", "server", or "client". If client, only print the object that would be sent. If server, send it without persisting it.`)
	cmd.Flags().Lookup("dry-run").NoOptDefVal = dryRunClient
	complete(cmd, "dry-run", dryRunNone, dryRunClient, dryRunServer)
}

func (d dryRunFlag) check() error {
	switch d {
	case dryRunNone, dryRunClient, dryRunServer:
		return nil
	}
	return fmt.Errorf("--dry-run=%s: write none, client or server", string(d))
}

// done is what has been done, as kubectl words it.
func (d dryRunFlag) done(verb string) string {
	switch d {
	case dryRunClient:
		return verb + " (dry run)"
	case dryRunServer:
		return verb + " (server dry run)"
	}
	return verb
}

// output is kubectl's -o.
type output struct {
	flags *genericclioptions.PrintFlags
	wide  bool // -o wide is one of the forms
}

func newOutput(cmd *cobra.Command, wide bool) *output {
	o := &output{flags: genericclioptions.NewPrintFlags(""), wide: wide}
	o.flags.AddFlags(cmd)
	formats := o.flags.AllowedFormats()
	if wide {
		formats = append(formats, "wide")
	}
	cmd.Flags().Lookup("output").Usage = "Output format. One of: (" + strings.Join(formats, ", ") + ")."
	complete(cmd, "output", formats...)
	return o
}

// form is what -o says; empty: people read it.
func (o *output) form() string { return *o.flags.OutputFormat }

// forPeople reports whether no machine-readable form was asked for.
func (o *output) forPeople() bool {
	return (o.form() == "" && *o.flags.TemplatePrinterFlags.TemplateArgument == "") || o.isWide()
}

func (o *output) isWide() bool { return o.wide && o.form() == "wide" }

// check finds a form that there is not, before anything is done.
func (o *output) check() error {
	if o.forPeople() {
		return nil
	}
	_, err := o.flags.ToPrinter()
	return err
}

// print writes objects in the form asked for. asList: as one list, as kubectl does unless one name was given.
func (o *output) print(p *plugin, asList bool, objects ...client.Object) error {
	printer, err := o.flags.ToPrinter()
	if err != nil {
		return err
	}
	list := &unstructured.UnstructuredList{Object: map[string]any{"apiVersion": "v1", "kind": "List", "metadata": map[string]any{}}}
	list.Items = []unstructured.Unstructured{}
	for _, obj := range objects {
		setKind(obj)
		if !o.flags.JSONYamlPrintFlags.ShowManagedFields {
			obj.SetManagedFields(nil)
		}
		if asList && o.form() != "name" {
			content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(obj)
			if err != nil {
				return fmt.Errorf("print %s: %w", obj.GetName(), err)
			}
			list.Items = append(list.Items, unstructured.Unstructured{Object: content})
			continue
		}
		if err := printer.PrintObj(obj, p.Out); err != nil {
			return fmt.Errorf("print %s: %w", obj.GetName(), err)
		}
	}
	if asList && o.form() != "name" {
		if err := printer.PrintObj(list, p.Out); err != nil {
			return fmt.Errorf("print the list: %w", err)
		}
	}
	return nil
}

// setKind writes apiVersion and kind, which a typed client leaves out.
func setKind(obj client.Object) {
	kind := ""
	switch obj.(type) {
	case *v1alpha1.APIKey:
		kind = "APIKey"
	case *v1alpha1.Application:
		kind = "Application"
	case *v1alpha1.Model:
		kind = "Model"
	default:
		return
	}
	obj.GetObjectKind().SetGroupVersionKind(schema.GroupVersionKind{Group: v1alpha1.GroupVersion.Group, Version: v1alpha1.GroupVersion.Version, Kind: kind})
}

// tell writes what has been done to an object: a line as kubectl's, or the object in the form asked for.
func (p *plugin) tell(o *output, obj client.Object, done string) error {
	if !o.forPeople() {
		return o.print(p, false, obj)
	}
	ref := reference{kindKey, obj.GetName()}
	if _, app := obj.(*v1alpha1.Application); app {
		ref.kind = kindApp
	}
	if _, err := fmt.Fprintf(p.Out, "%s %s\n", ref, done); err != nil {
		return fmt.Errorf("print %s: %w", obj.GetName(), err)
	}
	return nil
}

// strict has the API server refuse fields that it does not know: an older CRD would drop them in silence.
func strict() *metav1.CreateOptions {
	return &metav1.CreateOptions{FieldValidation: metav1.FieldValidationStrict}
}
