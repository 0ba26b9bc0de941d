package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
)

type createKey struct {
	p          *plugin
	spec       specFlags
	own        keyFlags
	app        string
	createApp  bool
	secretName string
	defaults   bool
	reveal     bool
	hand       handover
	out        *output
	dryRun     dryRunFlag
	waiting    waitFlags
}

// keyFlags are the fields that only APIKeys have.
type keyFlags struct{ expires, retention string }

func (k *keyFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&k.expires, "expires", "", `when it expires: RFC 3339, a day such as 2026-12-31, or a time from now such as 12h or 30d; "none" for never`)
	cmd.Flags().StringVar(&k.retention, "retention", "", "of the plaintext in its Secret: UntilRevealed, or Retain, for workloads that mount it")
	complete(cmd, "retention", string(v1alpha1.SecretRetentionUntilRevealed), string(v1alpha1.SecretRetentionRetain))
}

func (k *keyFlags) apply(cmd *cobra.Command, spec *v1alpha1.APIKeySpec, now time.Time) (err error) {
	if cmd.Flags().Changed("expires") {
		if spec.ExpirationTime, err = parseExpiry(k.expires, now); err != nil {
			return fmt.Errorf("--expires: %w", err)
		}
	}
	if cmd.Flags().Changed("retention") {
		retention := v1alpha1.SecretRetention(k.retention)
		if retention != v1alpha1.SecretRetentionRetain && retention != v1alpha1.SecretRetentionUntilRevealed {
			return fmt.Errorf("--retention: %q is neither UntilRevealed nor Retain", k.retention)
		}
		if spec.Secret == nil {
			spec.Secret = &v1alpha1.SecretSpec{}
		}
		spec.Secret.Retention = retention
	}
	return nil
}

func (p *plugin) newCreateKey() *cobra.Command {
	o := &createKey{p: p}
	cmd := &cobra.Command{
		Use:     "key [NAME]",
		Aliases: []string{"apikey"},
		Short:   "Create an APIKey and show its key, once",
		Long: `Create an APIKey, wait until it is enforced, and show its key, once.

On stdout stands the key and nothing else. On a terminal, what the flags leave out is asked for; --yes takes the defaults instead, as
happens where there is no terminal: TextGeneration, and every model that the application allows.

With -o, or with --reveal=false, the key is not shown and can be taken later with: kubectl latchkey reveal NAME.`,
		Example: `  # A key for an application, with limits
  kubectl latchkey create key shop-backend --app shop --model gpt-5-mini --daily-budget 12.50 --rpm 120 -n demo

  # The application too, if it is not there; lines for SDKs, Claude Code and Codex instead of the key alone
  kubectl latchkey create key shop-backend --app shop --create-app --env --gateway https://llm.example.com

  # Into a variable, asking nothing
  export OPENAI_API_KEY=$(kubectl latchkey create key shop-backend --app shop --yes)

  # As YAML, for a repository
  kubectl latchkey create key shop-backend --app shop --dry-run=client -o yaml`,
		Args: names(0, 1, "the APIKey's NAME"),
		RunE: func(cmd *cobra.Command, args []string) error { return o.run(cmd, args) },
	}
	cmd.Flags().StringVar(&o.app, "app", "", "Application that the key belongs to, for good")
	cmd.Flags().BoolVar(&o.createApp, "create-app", false, "create the Application if it does not exist")
	o.spec.add(cmd, false)
	o.spec.addState(cmd)
	o.own.add(cmd)
	cmd.Flags().StringVar(&o.secretName, "secret-name", "", "Secret that holds the key until it is revealed, and its hash from then on; NAME-api-key when unset")
	cmd.Flags().BoolVarP(&o.defaults, "yes", "y", false, "ask nothing, and take the defaults")
	cmd.Flags().BoolVar(&o.reveal, "reveal", true, "show the key; with false it can be revealed later")
	o.hand.add(cmd)
	o.waiting.add(cmd)
	o.dryRun.add(cmd)
	o.out = newOutput(cmd, false)
	p.completeFlags(cmd)
	return cmd
}

func (o *createKey) run(cmd *cobra.Command, args []string) error {
	ctx := cmd.Context()
	if err := errors.Join(o.dryRun.check(), o.out.check()); err != nil {
		return err
	}
	if o.reveals() || o.hand.asked() {
		if err := o.hand.check(o.p.getenv); err != nil {
			return err
		}
	}
	if o.hand.asked() && !o.reveals() {
		return errors.New("--env and --cc-switch print the key, and go neither with --reveal=false nor with --dry-run nor with -o")
	}
	k, err := o.build(cmd, args)
	if err != nil {
		return err
	}
	if k.Namespace, err = o.p.namespace(); err != nil {
		return err
	}
	var c *cluster
	if o.dryRun != dryRunClient {
		if c, err = o.p.connect(); err != nil {
			return err
		}
	}
	app, err := o.ensureApp(ctx, c, k.Namespace)
	if err != nil {
		return err
	}
	if c != nil {
		if err := create(ctx, c, k, o.dryRun); err != nil {
			return existsHint(err, k)
		}
	}
	switch {
	case !o.out.forPeople() && app != nil:
		return o.out.print(o.p, o.form() == "json", app, k)
	case !o.out.forPeople(), o.dryRun != dryRunNone:
		if app != nil {
			if err := o.p.tell(o.out, app, o.dryRun.done("created")); err != nil {
				return err
			}
		}
		return o.p.tell(o.out, k, o.dryRun.done("created"))
	}
	return o.finish(ctx, c, k)
}

func (o *createKey) form() string { return o.out.form() }

// reveals reports whether the key is shown in the end.
func (o *createKey) reveals() bool {
	return o.reveal && o.dryRun == dryRunNone && o.out.forPeople()
}

// existsHint says what to do about a name that is taken.
func existsHint(err error, k *v1alpha1.APIKey) error {
	if apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("%w\nChoose another name, change it with: kubectl latchkey set key %s -n %s, or show it with: kubectl latchkey reveal %s -n %s; %s",
			err, k.Name, k.Namespace, k.Name, k.Namespace, rotateHint(k))
	}
	return err
}

// finish waits until the key is enforced, and shows it.
func (o *createKey) finish(ctx context.Context, c *cluster, k *v1alpha1.APIKey) error {
	if o.reveal {
		o.p.say("%s created", reference{kindKey, k.Name})
	} else if err := o.p.tell(o.out, k, "created"); err != nil {
		return err
	}
	later := fmt.Sprintf("The key has been created and not been shown. Take it with: kubectl latchkey reveal %s -n %s", k.Name, k.Namespace)
	if o.waiting.wait {
		if err := o.p.awaitEnforced(ctx, c, k, o.waiting.timeout); err != nil {
			return &noticeError{err, later}
		}
	}
	if !o.reveal {
		return nil
	}
	name := types.NamespacedName{Namespace: k.Namespace, Name: k.Name}
	if err := o.p.reveal(ctx, c, name, o.waiting.timeout, o.hand.of(k)); err != nil {
		if errors.Is(err, ErrTaken) {
			return err
		}
		return &noticeError{err, later}
	}
	if isTerminal(o.p.Out) && k.Retention() != v1alpha1.SecretRetentionRetain {
		o.p.say("%s", o.p.palette(o.p.ErrOut).paint(faint, "This is the only time that the key is shown."))
	}
	return nil
}

// build puts the key together from flags, answers and defaults.
func (o *createKey) build(cmd *cobra.Command, args []string) (*v1alpha1.APIKey, error) {
	ctx := cmd.Context()
	asking := o.p.mayAsk() && !o.defaults && o.dryRun != dryRunClient
	ask := func(what *string, question, byDefault string, check func(string) error) (err error) {
		if *what == "" && asking {
			*what, err = o.p.askUntil(ctx, question, byDefault, check)
		}
		return err
	}
	var name string
	if len(args) > 0 {
		name = args[0]
	}
	if err := ask(&name, "Name of the key", "", checkName); err != nil {
		return nil, err
	}
	if name == "" {
		return nil, fmt.Errorf("the APIKey's NAME is missing: %s\nSee: %s --help", cmd.UseLine(), cmd.CommandPath())
	}
	name, err := keyName(name)
	if err != nil {
		return nil, err
	}
	if err := ask(&o.app, "Application that it belongs to", "", checkName); err != nil {
		return nil, err
	}
	if o.app == "" {
		return nil, errors.New("say which Application the key belongs to: --app APP (kubectl latchkey get apps lists them; --create-app creates it)")
	}
	if o.app, err = appName(o.app); err != nil {
		return nil, err
	}
	k := &v1alpha1.APIKey{ObjectMeta: metav1.ObjectMeta{Name: name}}
	k.Spec = v1alpha1.APIKeySpec{
		ApplicationRef: v1alpha1.ApplicationReference{Name: o.app},
		DisplayName:    v1alpha1.DisplayName(defaultDisplayName(name)),
		Capabilities:   []v1alpha1.Capability{v1alpha1.CapabilityTextGeneration},
		Models:         v1alpha1.ModelScope{Access: v1alpha1.ModelAccessAll},
	}
	if asking {
		if err := o.askForSpec(cmd, &k.Spec); err != nil {
			return nil, err
		}
	}
	if err := o.spec.applyToKey(&k.Spec); err != nil {
		return nil, err
	}
	if o.secretName != "" {
		k.Spec.Secret = &v1alpha1.SecretSpec{Name: o.secretName}
	}
	if err := o.own.apply(cmd, &k.Spec, o.p.now()); err != nil {
		return nil, err
	}
	return k, nil
}

// askForSpec asks for the fields that a key must have and no flag gives.
func (o *createKey) askForSpec(cmd *cobra.Command, spec *v1alpha1.APIKeySpec) error {
	ctx := cmd.Context()
	if !cmd.Flags().Changed("display-name") {
		answer, err := o.p.askUntil(ctx, "Name for people", string(spec.DisplayName), checkDisplayName)
		if err != nil {
			return err
		}
		spec.DisplayName = v1alpha1.DisplayName(answer)
	}
	if !cmd.Flags().Changed("capability") {
		o.p.say("  of %s", capabilityNames())
		if _, err := o.p.askUntil(ctx, "Capabilities, with commas", join(spec.Capabilities), func(s string) (err error) {
			spec.Capabilities, err = parseCapabilities(splitList(s), false)
			return err
		}); err != nil {
			return err
		}
	}
	if !cmd.Flags().Changed("model") {
		if _, err := o.p.askUntil(ctx, "Models, with commas, or all", "all", func(s string) error {
			scope, err := parseModels(splitList(s), false)
			if err == nil {
				spec.Models = *scope
			}
			return err
		}); err != nil {
			return err
		}
	}
	return nil
}

// splitList splits a list with commas or spaces.
func splitList(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' || r == '\t' })
}

func checkName(s string) error {
	if problems := validation.IsDNS1123Subdomain(s); len(problems) > 0 || len(s) > 63 {
		return fmt.Errorf("%q is not a name: write up to 63 lower-case letters, digits, '-' and '.'", s)
	}
	return nil
}

// defaultDisplayName is a name for people, where none is given.
func defaultDisplayName(name string) string {
	if len(name) < 2 {
		return "Key " + name
	}
	return clip(name, 50)
}

// ensureApp creates the application where that is asked for, or agreed to. It returns the application if it is new.
func (o *createKey) ensureApp(ctx context.Context, c *cluster, namespace string) (*v1alpha1.Application, error) {
	app, err := newApplication(o.app)
	if err != nil {
		return nil, err
	}
	app.Namespace = namespace
	if c == nil {
		if o.createApp {
			return app, nil
		}
		return nil, nil
	}
	err = c.Get(ctx, client.ObjectKeyFromObject(app), &v1alpha1.Application{})
	switch {
	case err == nil:
		return nil, nil
	case apierrors.IsForbidden(err) && !o.createApp: // the key says by its conditions whether the application is there
		return nil, nil
	case kindMissing(err), !apierrors.IsNotFound(err) && !apierrors.IsForbidden(err):
		return nil, fmt.Errorf("get %s: %w", describeObject(app), err)
	case !o.createApp && o.p.mayAsk() && !o.defaults:
		agreed, err := o.p.confirm(ctx, fmt.Sprintf("Application %s does not exist in namespace %s. Create it?", o.app, namespace))
		if err != nil {
			return nil, err
		}
		if !agreed {
			return nil, errors.New("nothing has been created: choose another --app; kubectl latchkey get apps lists them")
		}
	case !o.createApp:
		return nil, fmt.Errorf("application %s does not exist in namespace %s: add --create-app, or choose another --app; kubectl latchkey get apps lists them", o.app, namespace)
	}
	if err := create(ctx, c, app, o.dryRun); err != nil {
		if apierrors.IsAlreadyExists(err) {
			return nil, nil
		}
		return nil, err
	}
	if o.dryRun == dryRunNone {
		o.p.say("%s created", reference{kindApp, app.Name})
	}
	return app, nil
}
