package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

func (p *plugin) newGet() *cobra.Command {
	cmd := group("get", "List APIKeys, Applications or Models", "list", "ls")
	cmd.Example = `  # The keys of a namespace, and what they spend
  kubectl latchkey get keys -n demo

  # All applications, those that spend most first
  kubectl latchkey get apps -A --sort-by spent`
	cmd.AddCommand(p.newGetKeys(), p.newGetApps(), p.newGetModels())
	return cmd
}

// listing lists one kind.
type listing struct {
	p *plugin

	plural     string
	namespaced bool
	newList    func() client.ObjectList
	newObject  func() client.Object
	parse      func(arg string) (string, error)
	header     func(wide bool) []string
	row        func(obj client.Object, cal calendar, wide bool) []cell
	sortKeys   map[string]sortKey

	allNamespaces, noHeaders, watch bool
	selector, sortBy                string
	keep                            func(client.Object) bool // nil: all
	out                             *output
}

func (l *listing) add(cmd *cobra.Command) {
	if l.namespaced {
		cmd.Flags().BoolVarP(&l.allNamespaces, "all-namespaces", "A", false, "list all namespaces")
	}
	cmd.Flags().StringVarP(&l.selector, "selector", "l", "", "label selector, such as team=shop,env!=dev")
	words := make([]string, 0, len(l.sortKeys))
	for word := range l.sortKeys {
		words = append(words, word)
	}
	slices.Sort(words)
	cmd.Flags().StringVar(&l.sortBy, "sort-by", "", fmt.Sprintf("what to sort by: one of %q, or a JSONPath such as .spec.displayName", words))
	cmd.Flags().BoolVarP(&l.watch, "watch", "w", false, "after listing, print what changes")
	cmd.Flags().BoolVar(&l.noHeaders, "no-headers", false, "print no headers")
	l.out = newOutput(cmd, true)
	complete(cmd, "sort-by", words...)
	l.p.completeFlags(cmd)
}

func (l *listing) run(ctx context.Context, args []string) error {
	if err := l.out.check(); err != nil {
		return err
	}
	var wanted []string
	for _, arg := range args {
		name, err := l.parse(arg)
		if err != nil {
			return err
		}
		wanted = append(wanted, name)
	}
	if len(wanted) > 0 && (l.allNamespaces || l.selector != "") {
		return errors.New("names go neither with -A nor with -l: leave one of them out")
	}
	sorter, err := newSorter(l.sortBy, l.sortKeys)
	if err != nil {
		return err
	}
	if l.watch && !l.out.forPeople() && l.out.form() != "name" {
		return errors.New("-w goes with tables and -o name only")
	}
	c, err := l.p.connect()
	if err != nil {
		return err
	}
	cal, err := l.p.readCalendar(ctx, c)
	if err != nil {
		return err
	}
	found, version, missing, err := l.read(ctx, c, wanted)
	if err != nil {
		return err
	}
	sorter.sort(found, cal)
	if err := l.print(found, cal, len(wanted) == 1, c); err != nil {
		return err
	}
	if missing != nil {
		return missing
	}
	if l.watch {
		return l.follow(ctx, c, wanted, version, found, cal)
	}
	return nil
}

// options are the list's namespace and selector.
func (l *listing) options(c *cluster) ([]client.ListOption, error) {
	var opts []client.ListOption
	if l.namespaced && !l.allNamespaces {
		opts = append(opts, client.InNamespace(c.namespace))
	}
	selector, err := labels.Parse(l.selector)
	if err != nil {
		return nil, fmt.Errorf("--selector: %w", err)
	}
	return append(opts, client.MatchingLabelsSelector{Selector: selector}), nil
}

// read reads the objects wanted, or all. Those that are missing are an error of their own, beside those that are there, as kubectl has it.
func (l *listing) read(ctx context.Context, c *cluster, wanted []string) (found []client.Object, version string, missing, err error) {
	if len(wanted) > 0 && !l.watch {
		var errs []error
		for _, name := range wanted {
			obj := l.newObject()
			key := types.NamespacedName{Name: name}
			if l.namespaced {
				key.Namespace = c.namespace
			}
			if err := c.Get(ctx, key, obj); err != nil {
				errs = append(errs, err)
				continue
			}
			found = append(found, obj)
		}
		if len(found) == 0 {
			return nil, "", nil, errors.Join(errs...)
		}
		return found, "", errors.Join(errs...), nil
	}
	opts, err := l.options(c)
	if err != nil {
		return nil, "", nil, err
	}
	list := l.newList()
	if err := c.List(ctx, list, opts...); err != nil {
		return nil, "", nil, fmt.Errorf("list %s: %w", l.plural, err)
	}
	for _, obj := range itemsOf(list) {
		if l.wants(wanted, obj) {
			found = append(found, obj)
		}
	}
	return found, list.GetResourceVersion(), nil, nil
}

func (l *listing) wants(wanted []string, obj client.Object) bool {
	return (len(wanted) == 0 || slices.Contains(wanted, obj.GetName())) && (l.keep == nil || l.keep(obj))
}

func (l *listing) print(found []client.Object, cal calendar, single bool, c *cluster) error {
	if !l.out.forPeople() {
		return l.out.print(l.p, !single, found...)
	}
	if len(found) == 0 && !l.watch {
		where := ""
		if l.namespaced && !l.allNamespaces {
			where = " in namespace " + c.namespace
		}
		l.p.say("No %s found%s.", l.plural, where)
		return nil
	}
	return l.write(l.table(), true, found, cal)
}

func (l *listing) table() *table {
	header := l.header(l.out.isWide())
	if l.allNamespaces {
		header = append([]string{"NAMESPACE"}, header...)
	}
	return &table{header: header}
}

func (l *listing) write(t *table, first bool, objects []client.Object, cal calendar) error {
	rows := make([][]cell, 0, len(objects))
	for _, obj := range objects {
		row := l.row(obj, cal, l.out.isWide())
		if l.allNamespaces {
			row = append([]cell{text(obj.GetNamespace())}, row...)
		}
		rows = append(rows, row)
	}
	if err := t.write(l.p.Out, l.p.palette(l.p.Out), first && !l.noHeaders, rows); err != nil {
		return fmt.Errorf("print %s: %w", l.plural, err)
	}
	return nil
}

// follow prints what changes until the context ends, or the API server ends the watch.
func (l *listing) follow(ctx context.Context, c *cluster, wanted []string, version string, shown []client.Object, cal calendar) error {
	opts, err := l.options(c)
	if err != nil {
		return err
	}
	t := l.table()
	for _, obj := range shown { // columns as in the list
		for i, cl := range l.row(obj, cal, l.out.isWide()) {
			if t.widths == nil {
				t.widths = make([]int, len(t.header))
				for j, h := range t.header {
					t.widths[j] = columns(h)
				}
			}
			at := i + len(t.header) - len(l.header(l.out.isWide()))
			t.widths[at] = max(t.widths[at], columns(cl.text))
		}
		if l.allNamespaces {
			t.widths[0] = max(t.widths[0], columns(obj.GetNamespace()))
		}
	}
	w, err := c.Watch(ctx, l.newList(), append(opts, &client.ListOptions{Raw: fromVersion(version)})...)
	if err != nil {
		return fmt.Errorf("watch %s: %w", l.plural, err)
	}
	defer w.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case event, open := <-w.ResultChan():
			if !open {
				return fmt.Errorf("watch %s: the API server has ended it; run the command again", l.plural)
			}
			obj, ok := event.Object.(client.Object)
			if event.Type == watch.Error || !ok {
				return fmt.Errorf("watch %s: %w", l.plural, watchError(event.Object))
			}
			if event.Type == watch.Bookmark || !l.wants(wanted, obj) {
				continue
			}
			if !l.out.forPeople() {
				if err := l.out.print(l.p, false, obj); err != nil {
					return err
				}
				continue
			}
			cal.now = l.p.now()
			if err := l.write(t, false, []client.Object{obj}, cal); err != nil {
				return err
			}
		}
	}
}
