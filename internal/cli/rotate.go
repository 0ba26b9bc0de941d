package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
)

// rotateTimeout bounds the one request that asks for a rotation.
const rotateTimeout = 10 * time.Second

type rotate struct {
	p       *plugin
	overlap string
	force   bool
	reveal  bool
	hand    handover
	out     *output
	dryRun  dryRunFlag
	waiting waitFlags

	given *metav1.Duration // --overlap; nil: the field is left as it is
}

func (p *plugin) newRotate() *cobra.Command {
	o := &rotate{p: p}
	cmd := &cobra.Command{
		Use:   "rotate NAME...",
		Short: "Replace the key of an APIKey by a new one, and show that, once",
		Long: `Replace the key of an APIKey by a new one, and show that, once. The APIKey stays, with its limits and what it has spent. It is how a lost
key is replaced, too.

The earlier key is honoured beside the new one for the overlap: --overlap, else spec.rotation.overlap, else 24 hours. One earlier key at the
most is honoured. While it is, rotating again would end it, and is refused without --force or --overlap 0s.

On stdout stands the new key and nothing else. With -o, or with --reveal=false, it is not shown and can be taken later with: kubectl latchkey
reveal NAME. Several keys can be rotated at once with --reveal=false. The command asks nothing.`,
		Example: `  # A new key; the old one goes on for a day
  kubectl latchkey rotate shop-backend -n demo

  # The old one is known to others: refuse it from now on
  kubectl latchkey rotate shop-backend --overlap 0s -n demo

  # Lines for a shell instead of the key alone, and a week to put the new key in place
  kubectl latchkey rotate shop-backend --overlap 7d --env --gateway https://llm.example.com -n demo

  # All keys of a team; each holder takes the new one
  kubectl latchkey get keys -l team=shop -o name -n demo | xargs kubectl latchkey rotate --reveal=false -n demo`,
		Args:              rotateArgs,
		ValidArgsFunction: p.completeKeys(0),
		RunE:              func(cmd *cobra.Command, args []string) error { return o.run(cmd, args) },
	}
	cmd.Flags().StringVar(&o.overlap, "overlap", "", "how long the earlier key is honoured beside the new one, from 0s to 720h, such as 24h or 7d; unset: as the spec says, else 24h")
	cmd.Flags().BoolVar(&o.force, "force", false, "rotate although a key from before the last rotation is still honoured, or a rotation is under way: the earlier one is refused at once")
	cmd.Flags().BoolVar(&o.reveal, "reveal", true, "show the new key; with false it can be revealed later")
	o.hand.add(cmd)
	o.waiting.add(cmd)
	o.dryRun.add(cmd)
	o.out = newOutput(cmd, false)
	return cmd
}

// rotateArgs wants one name at least. "rotate key NAME" is understood, as the commands say it that are for more than one kind.
func rotateArgs(cmd *cobra.Command, args []string) error {
	return names(1, -1, "the APIKey's NAME")(cmd, withoutKind(args))
}

// withoutKind takes away a kind that stands before the names.
func withoutKind(args []string) []string {
	if len(args) > 1 && slices.Contains([]string{"key", "keys", "apikey", "apikeys"}, args[0]) {
		return args[1:]
	}
	return args
}

func (o *rotate) run(cmd *cobra.Command, args []string) (err error) {
	ctx := cmd.Context()
	if err := errors.Join(o.dryRun.check(), o.out.check()); err != nil {
		return err
	}
	if cmd.Flags().Changed("overlap") {
		if o.given, err = parseOverlap(o.overlap); err != nil {
			return fmt.Errorf("--overlap: %w", err)
		}
	}
	keys := withoutKind(args)
	switch {
	case o.hand.asked() && !o.reveals():
		return errors.New("--env and --cc-switch print the key, and go neither with --reveal=false nor with --dry-run nor with -o")
	case len(keys) > 1 && o.reveals():
		return errors.New("one key is shown at a time: rotate them one by one, or with --reveal=false and take each with: kubectl latchkey reveal NAME")
	}
	if err := o.hand.check(o.p.getenv); err != nil {
		return err
	}
	c, err := o.p.connect()
	if err != nil {
		return err
	}
	cal, err := o.p.readCalendar(ctx, c)
	if err != nil {
		return err
	}
	var errs []error
	for _, arg := range keys {
		name, err := keyName(arg)
		if err == nil {
			err = o.one(ctx, c, types.NamespacedName{Namespace: c.namespace, Name: name}, cal)
		}
		if err != nil && ctx.Err() != nil {
			return err
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// reveals reports whether the key is shown in the end.
func (o *rotate) reveals() bool {
	return o.reveal && o.dryRun == dryRunNone && o.out.forPeople()
}

// one rotates one key.
func (o *rotate) one(ctx context.Context, c *cluster, name types.NamespacedName, cal calendar) error {
	k, was, err := o.raise(ctx, c, name, cal)
	if err != nil {
		return err
	}
	if o.dryRun != dryRunNone {
		return o.p.tell(o.out, k, o.dryRun.done("rotated"))
	}
	wanted := k.RotationGeneration()
	if o.waiting.wait || o.reveals() {
		if err := o.p.awaitRotated(ctx, c, k, o.waiting); err != nil {
			return &noticeError{err, o.leftAs(k, was, wanted)}
		}
	}
	// Without waiting it is only known that it has been asked for.
	carriedOut := rotationDone(k) >= wanted
	switch {
	case !o.out.forPeople():
		return o.p.tell(o.out, k, "")
	case !carriedOut:
		return o.p.tell(o.out, k, "rotation asked for")
	case !o.reveal:
		if err := o.p.tell(o.out, k, "rotated"); err != nil {
			return err
		}
	default:
		o.p.say("%s rotated", reference{kindKey, k.Name})
	}
	o.p.say("%s", rotatedText(k, o.p.at(cal)))
	if !o.reveal {
		return nil
	}
	if err := o.p.reveal(ctx, c, name, o.waiting.timeout, o.hand.of(k)); err != nil {
		if errors.Is(err, ErrTaken) {
			return err
		}
		return &noticeError{err, o.leftAs(k, was, wanted)}
	}
	if isTerminal(o.p.Out) && k.Retention() != v1alpha1.SecretRetentionRetain {
		o.p.say("%s", o.p.palette(o.p.ErrOut).paint(faint, "This is the only time that the key is shown."))
	}
	return nil
}

// raise asks for the rotation, and returns the key as written and the prefix of the one that is replaced.
//
// The write names the version that the decision was made on. What has changed meanwhile can be no more than the status, in which what is
// spent comes in; after any edit of the spec, such as another's rotation, it would be a second one, and nothing is done.
func (o *rotate) raise(ctx context.Context, c *cluster, name types.NamespacedName, cal calendar) (k *v1alpha1.APIKey, was string, err error) {
	var first *v1alpha1.APIKey
	for attempt := 1; ; attempt++ {
		k = &v1alpha1.APIKey{}
		if err := c.Get(ctx, name, k); err != nil {
			return nil, "", fmt.Errorf("get apikey %s: %w", name, err)
		}
		if first == nil {
			first = k.DeepCopy()
		}
		if k.UID != first.UID || k.Generation != first.Generation || rotationDone(k) != rotationDone(first) {
			return nil, "", changedMeanwhile(k)
		}
		if err := o.mayRotate(k, o.p.at(cal)); err != nil {
			return nil, "", err
		}
		before := k.DeepCopy()
		if k.Spec.Rotation == nil {
			k.Spec.Rotation = &v1alpha1.RotationSpec{}
		}
		k.Spec.Rotation.Generation = max(k.Spec.Rotation.Generation, rotationDone(k)) + 1
		if o.given != nil {
			k.Spec.Rotation.Overlap = o.given
		}
		if o.dryRun == dryRunClient {
			return k, before.Status.KeyPrefix, nil
		}
		err := o.patch(ctx, c, k, before)
		switch {
		case err == nil:
			return k, before.Status.KeyPrefix, nil
		case !isConflict(err):
			return nil, "", fmt.Errorf("rotate %s: %w", describeObject(k), err)
		case attempt == editAttempts:
			return nil, "", fmt.Errorf("rotate %s: its status changes all the time; nothing has been rotated, try again: %w", describeObject(k), err)
		}
	}
}

// patch sends the rotation. It is not broken off with the context, so that it is known whether it has been asked for.
func (o *rotate) patch(ctx context.Context, c client.Client, k, before *v1alpha1.APIKey) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	opts := []client.PatchOption{client.FieldOwner(fieldOwner), &client.PatchOptions{Raw: strictPatch()}}
	if o.dryRun == dryRunServer {
		opts = append(opts, client.DryRunAll)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), rotateTimeout)
	defer cancel()
	return c.Patch(ctx, k, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}), opts...)
}

func changedMeanwhile(k *v1alpha1.APIKey) error {
	return fmt.Errorf("%s has been changed by somebody else meanwhile, and this command has rotated nothing: see what it is like now with: kubectl latchkey describe key %s -n %s",
		describeObject(k), k.Name, k.Namespace)
}

// mayRotate says what speaks against a rotation.
func (o *rotate) mayRotate(k *v1alpha1.APIKey, cal calendar) error {
	what := describeObject(k)
	earlier, rotated := earlierOf(k, cal.now)
	switch {
	case !k.DeletionTimestamp.IsZero():
		return fmt.Errorf("%s is being deleted", what)
	case k.Status.SecretName == "":
		return fmt.Errorf("%s has no key yet that could be rotated: %s", what, notMinted(k))
	case o.force:
		return nil
	case rotationPending(k):
		return fmt.Errorf("a rotation of %s is under way, to generation %d; %s\nIts key can be taken with: kubectl latchkey reveal %s -n %s. To rotate all the same: --force",
			what, k.RotationGeneration(), inTheWayOfRotation(k, k.RotationGeneration()), k.Name, k.Namespace)
	case rotated && earlier.honoured && (o.given == nil || o.given.Duration > 0):
		return fmt.Errorf(`the key of %s was rotated at %s, and the earlier one%s %s
Rotating again ends the earlier one now, for two keys at the most are honoured: the present one, %s…, and its successor.
To rotate all the same: --force. To end both, and honour the new one alone: --overlap 0s. To end the earlier one and rotate nothing: kubectl latchkey set key %s --overlap 0s -n %s`,
			what, moment(k.Status.Rotation.RotationTime.Time, cal.zone), earlier.name(), earlier.says(cal), oneLine(k.Status.KeyPrefix), k.Name, k.Namespace)
	}
	return nil
}

// awaitRotated waits until the rotation has been carried out and, if that is to be waited for, enforced. It renews k as it goes.
func (p *plugin) awaitRotated(ctx context.Context, c client.Client, k *v1alpha1.APIKey, waiting waitFlags) error {
	wanted := k.RotationGeneration()
	return p.await(ctx, c, k, waiting.timeout, awaited{
		state: "rotated",
		done: func() bool {
			return rotationDone(k) >= wanted && (!waiting.wait || isEnforced(k, k.Generation))
		},
		inTheWay: func(generation int64) string {
			if rotationDone(k) < wanted {
				return inTheWayOfRotation(k, generation)
			}
			return "the new key is minted; " + inTheWay(k.Status.Conditions, generation)
		},
	})
}

// inTheWayOfRotation is what a rotation waits for that has not been carried out.
func inTheWayOfRotation(k *v1alpha1.APIKey, generation int64) string {
	ready := meta.FindStatusCondition(k.Status.Conditions, v1alpha1.ConditionReady)
	if ready != nil && ready.ObservedGeneration >= generation && ready.Status != metav1.ConditionTrue {
		return oneLine(ready.Message)
	}
	return "no controller has looked at it yet; is the Latchkey manager running?"
}

// leftAs says in which state a command that did not come to its end leaves the key.
func (o *rotate) leftAs(k *v1alpha1.APIKey, was string, wanted int64) string {
	take := fmt.Sprintf("kubectl latchkey reveal %s -n %s", k.Name, k.Namespace)
	if rotationDone(k) >= wanted {
		return fmt.Sprintf("The key has been rotated, and the new one, %s…, not been shown. Take it with: %s\nThe enforcers may not have it yet.", oneLine(k.Status.KeyPrefix), take)
	}
	present := ""
	if was != "" {
		present = ", " + oneLine(was) + "…,"
	}
	return fmt.Sprintf("The rotation has been asked for, and is carried out without this command. Until then the present key%s is honoured. Take the new one, once it is there, with: %s", present, take)
}

// rotatedText tells the new key from the earlier one.
func rotatedText(k *v1alpha1.APIKey, cal calendar) string {
	earlier, _ := earlierOf(k, cal.now)
	return fmt.Sprintf("The new key is %s…; the earlier one%s %s.", oneLine(k.Status.KeyPrefix), earlier.name(), earlier.says(cal))
}
