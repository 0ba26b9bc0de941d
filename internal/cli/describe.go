package cli

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
)

func (p *plugin) newDescribe() *cobra.Command {
	cmd := group("describe", "Show an APIKey or an Application in full")
	cmd.Example = `  # A key
  kubectl latchkey describe key shop-backend -n demo

  # An application with its keys
  kubectl latchkey describe app shop -n demo`
	cmd.AddCommand(p.newDescribeKey(), p.newDescribeApp())
	return cmd
}

// sheet is lines of a name and a value, in kubectl's manner.
type sheet struct {
	b       strings.Builder
	colours palette
}

// sheetColumn is where values begin.
const sheetColumn = 22

// line writes a name and its value, on as many lines as the value has.
func (s *sheet) line(name string, value cell) {
	for i, part := range strings.Split(value.text, "\n") {
		label := ""
		if i == 0 {
			label = name + ":"
		}
		fmt.Fprintf(&s.b, "%-*s%s\n", sheetColumn, label, s.colours.paint(value.style, part))
	}
}

func (s *sheet) text(name, value string) { s.line(name, text(value)) }

// head begins a section.
func (s *sheet) head(name string) { s.b.WriteString(name + ":\n") }

// usage writes a day or a month against its cap.
func (s *sheet) usage(name string, t v1alpha1.UsageTotals, limit *v1alpha1.Money, cal calendar) {
	spent, value := spend(t.Spent), cal.money(spend(t.Spent))
	if limit != nil {
		value = fmt.Sprintf("%s of %s (%d %%)", spent, cal.money(budget(limit)), percent(spent, budget(limit)))
	}
	value += fmt.Sprintf(", %s, %s", counted(t.Requests, "request"), counted(t.Tokens, "token"))
	if t.Estimated != "" && spend(t.Estimated) > 0 {
		value += fmt.Sprintf("; %s of it estimated", cal.money(spend(t.Estimated)))
	}
	s.line(name, cell{value, ratioStyle(spent, budget(limit))})
}

// usageSection writes the day and the month that budgets count in now.
func (s *sheet) usageSection(u *v1alpha1.Usage, b *v1alpha1.Budgets, cal calendar) {
	var daily, monthly *v1alpha1.Money
	if b != nil {
		daily, monthly = b.Daily, b.Monthly
	}
	s.head("Usage")
	s.usage("  Today", cal.today(u), daily, cal)
	s.usage("  This month", cal.thisMonth(u), monthly, cal)
	s.text("  Resets", fmt.Sprintf("day at %s (%s), month at %s (%s)", moment(cal.dayEnds(), cal.zone), in(cal.now, cal.dayEnds()),
		moment(cal.monthEnds(), cal.zone), in(cal.now, cal.monthEnds())))
	last := "never, as far as is known"
	if t := usedLast(u); !t.IsZero() {
		last = fmt.Sprintf("%s (%s)", moment(t.Time, cal.zone), in(cal.now, t.Time))
	}
	s.text("  Last used", last)
	if u != nil && u.BlockedTime != nil {
		s.line("  Used up since", cell{fmt.Sprintf("%s (%s)", moment(u.BlockedTime.Time, cal.zone), in(cal.now, u.BlockedTime.Time)), bad})
	}
}

// limits writes the limits by the minute.
func (s *sheet) limits(rpm, tpm, concurrent *int64) {
	s.head("Limits")
	s.text("  Requests/minute", number(rpm))
	s.text("  Tokens/minute", number(tpm))
	s.text("  At one time", number(concurrent))
}

func (s *sheet) conditions(conditions []metav1.Condition) {
	if len(conditions) == 0 {
		s.text("Conditions", "none yet; is the Latchkey manager running?")
		return
	}
	s.head("Conditions")
	t := &table{header: []string{"  TYPE", "STATUS", "REASON", "MESSAGE"}}
	rows := make([][]cell, 0, len(conditions))
	for _, c := range conditions {
		rows = append(rows, []cell{text("  " + c.Type), text(string(c.Status)), text(c.Reason), text(oneLine(c.Message))})
	}
	_ = t.write(&s.b, s.colours, true, rows) // a strings.Builder does not fail
}

// events writes the latest that happened to an object. Whoever may not read events is not told of any.
func (s *sheet) events(ctx context.Context, c client.Reader, obj client.Object, cal calendar) {
	const most = 10
	var list corev1.EventList
	err := c.List(ctx, &list, client.InNamespace(obj.GetNamespace()),
		client.MatchingFields{"involvedObject.uid": string(obj.GetUID())})
	if err != nil || len(list.Items) == 0 {
		return
	}
	slices.SortFunc(list.Items, func(a, b corev1.Event) int { return happened(&b).Compare(happened(&a).Time) })
	s.head("Events")
	t := &table{header: []string{"  AGE", "TYPE", "REASON", "MESSAGE"}}
	var rows [][]cell
	for i := range list.Items[:min(most, len(list.Items))] {
		e := &list.Items[i]
		look := plain
		if e.Type == corev1.EventTypeWarning {
			look = warn
		}
		rows = append(rows, []cell{text("  " + age(cal.now, happened(e))), {e.Type, look}, text(e.Reason), text(oneLine(e.Message))})
	}
	_ = t.write(&s.b, s.colours, true, rows) // as above
}

// happened is when an event was last seen.
func happened(e *corev1.Event) metav1.Time {
	switch {
	case e.Series != nil:
		return metav1.NewTime(e.Series.LastObservedTime.Time)
	case !e.LastTimestamp.IsZero():
		return e.LastTimestamp
	case !e.EventTime.IsZero():
		return metav1.NewTime(e.EventTime.Time)
	}
	return e.CreationTimestamp
}

func (s *sheet) flush(to io.Writer) error {
	_, err := io.WriteString(to, s.b.String())
	return err
}

// labelsText writes labels in order.
func labelsText(labels map[string]string) string {
	pairs := make([]string, 0, len(labels))
	for k, v := range labels {
		pairs = append(pairs, k+"="+v)
	}
	slices.Sort(pairs)
	if len(pairs) == 0 {
		return none
	}
	return strings.Join(pairs, "\n")
}

// moneyText writes a cap; nil: none.
func moneyText(m *v1alpha1.Money, cal calendar) string {
	if m == nil {
		return none
	}
	return string(*m) + " " + cal.currency
}
