package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
)

// waitFlags say whether and how long to wait until the enforcers have an edit.
type waitFlags struct {
	wait    bool
	timeout time.Duration
}

func (w *waitFlags) add(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&w.wait, "wait", true, "wait until the enforcers have it")
	cmd.Flags().DurationVar(&w.timeout, "timeout", time.Minute, "how long to wait")
}

// errNotInTime says that what was waited for did not come about in time.
var errNotInTime = errors.New("not in time")

// awaitEnforced waits until every enforcer has the object as it stands in obj, and renews obj as it goes. Its errors say what is
// in the way; those that wrap errNotInTime may still mend themselves.
func (p *plugin) awaitEnforced(ctx context.Context, c client.Client, obj client.Object, timeout time.Duration) error {
	generation := obj.GetGeneration()
	return p.await(ctx, c, obj, timeout, awaited{
		state:    "enforced",
		done:     func() bool { return isEnforced(obj, generation) },
		inTheWay: func(generation int64) string { return inTheWay(conditionsOf(obj), generation) },
	})
}

// awaited is what is waited for of an object.
type awaited struct {
	state    string // in a word
	done     func() bool
	inTheWay func(generation int64) string
}

// await waits for what awaited says, and renews obj as it goes.
func (p *plugin) await(ctx context.Context, c client.Client, obj client.Object, timeout time.Duration, a awaited) error {
	generation, uid := obj.GetGeneration(), obj.GetUID()
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, errNotInTime)
	defer cancel()
	line := p.progress()
	defer line.clear()
	what := describeObject(obj)
	line.show("waiting until " + what + " is " + a.state)
	err := wait.PollUntilContextCancel(ctx, pollEvery, true, func(ctx context.Context) (bool, error) {
		if err := c.Get(ctx, client.ObjectKeyFromObject(obj), obj); err != nil {
			return false, fmt.Errorf("get %s: %w", what, err)
		}
		if obj.GetUID() != uid {
			return false, fmt.Errorf("%s has been deleted and created anew by somebody else", what)
		}
		stalled := meta.FindStatusCondition(conditionsOf(obj), v1alpha1.ConditionStalled)
		if stalled != nil && stalled.Status == metav1.ConditionTrue && stalled.ObservedGeneration >= generation {
			return false, fmt.Errorf("%s cannot be %s: %s", what, a.state, stalled.Message)
		}
		line.show("waiting until " + what + " is " + a.state + ": " + a.inTheWay(generation))
		return a.done(), nil
	})
	if ctx.Err() != nil && errors.Is(context.Cause(ctx), errNotInTime) {
		return fmt.Errorf("%s is not %s after %s: %s: %w", what, a.state, timeout, a.inTheWay(generation), errNotInTime)
	}
	return err
}

// isEnforced reports whether every enforcer has the object as of that generation.
func isEnforced(obj client.Object, generation int64) bool {
	enforced := meta.FindStatusCondition(conditionsOf(obj), v1alpha1.ConditionEnforced)
	return enforced != nil && enforced.Status == metav1.ConditionTrue && enforced.ObservedGeneration >= generation
}

// inTheWay is what an object waits for.
func inTheWay(conditions []metav1.Condition, generation int64) string {
	for _, which := range []string{v1alpha1.ConditionReady, v1alpha1.ConditionEnforced} {
		found := meta.FindStatusCondition(conditions, which)
		switch {
		case found == nil || found.ObservedGeneration < generation:
			return "no controller has looked at it yet; is the Latchkey manager running?"
		case found.Status != metav1.ConditionTrue && found.Message != "":
			return oneLine(found.Message)
		case found.Status != metav1.ConditionTrue:
			return found.Reason
		}
	}
	return "the enforcers have it"
}

func conditionsOf(obj client.Object) []metav1.Condition {
	switch o := obj.(type) {
	case *v1alpha1.APIKey:
		return o.Status.Conditions
	case *v1alpha1.Application:
		return o.Status.Conditions
	}
	return nil
}

// describeObject names an object in messages: kind, namespace and name.
func describeObject(obj client.Object) string {
	kind := kindKey
	if _, app := obj.(*v1alpha1.Application); app {
		kind = kindApp
	}
	return kind + " " + obj.GetNamespace() + "/" + obj.GetName()
}
