package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	"github.com/latchkey-dev/latchkey/internal/compile"
	"github.com/latchkey-dev/latchkey/internal/policy"
)

// temporaryKeyLife is how long a temporary key would live if nobody were left to delete it.
const temporaryKeyLife = time.Hour

type try struct {
	p         *plugin
	key       string
	app       string
	gateway   string
	model     string
	system    string
	api       string
	maxTokens int64
	timeout   time.Duration
}

func (p *plugin) newTry() *cobra.Command {
	o := &try{p: p}
	cmd := &cobra.Command{
		Use:   "try [PROMPT...]",
		Short: "Send a prompt to a model through the gateway and watch the answer",
		Long: `Send a prompt to a model through the gateway, and stream the answer to stdout. Tokens, time, cost and what is left of the budget go to stderr.

The key is $OPENAI_API_KEY, --key, or with --app a temporary one that is deleted afterwards (and expires in an hour, should that fail). Other
users of the machine can see --key; the variable they cannot. Without a PROMPT it is read from stdin.`,
		Example: `  # With the key in OPENAI_API_KEY
  kubectl latchkey try --gateway https://llm.example.com --model gpt-5-mini "Say hello."

  # With a temporary key of an application
  kubectl latchkey try --app shop --gateway http://127.0.0.1:8080 --model claude-sonnet-4-5 "Say hello."

  # In a pipe
  git diff | kubectl latchkey try --model gpt-5-mini --system "Write a commit message." > message.txt`,
		RunE: func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), args) },
	}
	cmd.Flags().StringVar(&o.key, "key", "", "the key itself; $OPENAI_API_KEY when unset")
	cmd.Flags().StringVar(&o.app, "app", "", "create a temporary key for this Application, and delete it afterwards")
	cmd.Flags().StringVar(&o.gateway, "gateway", "", "URL that callers use; $"+gatewayVariable+" when unset")
	cmd.Flags().StringVar(&o.model, "model", "", "model to ask; when unset, the first that the key may call")
	cmd.Flags().StringVar(&o.system, "system", "", "instructions that stand before the prompt")
	cmd.Flags().StringVar(&o.api, "api", "", "chat (/v1/chat/completions) or messages (/v1/messages); when unset, by the format of the model's provider")
	cmd.Flags().Int64Var(&o.maxTokens, "max-tokens", 0, "most tokens of the answer")
	cmd.Flags().DurationVar(&o.timeout, "timeout", 5*time.Minute, "how long the answer may take")
	complete(cmd, "api", apiChat, apiMessages)
	p.completeFlags(cmd)
	return cmd
}

func (o *try) run(ctx context.Context, args []string) (err error) {
	if o.api != "" && o.api != apiChat && o.api != apiMessages {
		return fmt.Errorf("--api: %q is neither chat nor messages", o.api)
	}
	if o.key != "" && o.app != "" {
		return errors.New("--key and --app go against each other: leave one of them out")
	}
	base, err := gatewayURL(o.gateway, o.p.getenv)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	prompt, err := o.prompt(ctx, args)
	if err != nil {
		return err
	}
	key, forget, err := o.chooseKey(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, forget()) }()
	g := &gateway{base: base, key: key, client: &http.Client{Transport: &http.Transport{Proxy: http.ProxyFromEnvironment}}}
	defer g.client.CloseIdleConnections()
	if o.model == "" {
		if o.model, err = g.firstModel(ctx); err != nil {
			return err
		}
	}
	known := o.lookUp(ctx)
	if o.api == "" {
		o.api = known.api
	}
	return o.ask(ctx, g, prompt, known)
}

// prompt is what the arguments say, or stdin.
func (o *try) prompt(ctx context.Context, args []string) (string, error) {
	if len(args) > 0 {
		return strings.Join(args, " "), nil
	}
	if o.p.mayAsk() {
		return o.p.askUntil(ctx, "Prompt", "", func(s string) error {
			if s == "" {
				return errors.New("write something")
			}
			return nil
		})
	}
	if isTerminal(o.p.In) || o.p.In == nil {
		return "", errors.New(`the prompt is missing: kubectl latchkey try "Say hello."`)
	}
	const most = 4 << 20
	read := make(chan line, 1)
	go func() { // a read of stdin cannot be broken off
		content, err := io.ReadAll(io.LimitReader(o.p.In, most))
		read <- line{string(content), err}
	}()
	select {
	case got := <-read:
		if got.err != nil && !errors.Is(got.err, os.ErrClosed) {
			return "", fmt.Errorf("read the prompt from stdin: %w", got.err)
		}
		if strings.TrimSpace(got.text) == "" {
			return "", errors.New(`the prompt is missing: kubectl latchkey try "Say hello.", or write it to stdin`)
		}
		return got.text, nil
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// chooseKey takes the key that is given, or makes a temporary one. forget deletes that again.
func (o *try) chooseKey(ctx context.Context) (key string, forget func() error, err error) {
	nothing := func() error { return nil }
	given := orElse(o.key, o.p.getenv("OPENAI_API_KEY"))
	switch {
	case o.app == "" && given == "":
		return "", nil, errors.New("there is no key: set OPENAI_API_KEY, or let a temporary one be made with --app APP")
	case o.app == "":
		return given, nothing, nil
	}
	name, err := appName(o.app)
	if err != nil {
		return "", nil, err
	}
	c, err := o.p.connect()
	if err != nil {
		return "", nil, err
	}
	const displayName = "Temporary, of kubectl latchkey try"
	k := &v1alpha1.APIKey{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: c.namespace, GenerateName: "try-",
			Annotations: map[string]string{v1alpha1.AnnotationConfirmDeletion: displayName}, // nobody has to be asked about it
		},
		Spec: v1alpha1.APIKeySpec{
			ApplicationRef: v1alpha1.ApplicationReference{Name: name},
			DisplayName:    displayName,
			Capabilities:   []v1alpha1.Capability{v1alpha1.CapabilityTextGeneration},
			Models:         v1alpha1.ModelScope{Access: v1alpha1.ModelAccessAll},
			ExpirationTime: new(metav1.NewTime(o.p.now().Add(temporaryKeyLife).UTC().Truncate(time.Second))),
		},
	}
	if o.model != "" {
		k.Spec.Models = v1alpha1.ModelScope{Access: v1alpha1.ModelAccessList, Names: []v1alpha1.ModelName{v1alpha1.ModelName(o.model)}}
	}
	if err := create(ctx, c, k, dryRunNone); err != nil {
		return "", nil, err
	}
	forget = func() error {
		const patience = 10 * time.Second
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
		defer cancel()
		if err := c.Delete(ctx, k); err != nil {
			return &noticeError{fmt.Errorf("delete the temporary key: %w", err),
				fmt.Sprintf("A temporary key is left. Delete it with: kubectl delete lkkey %s -n %s", k.Name, k.Namespace)}
		}
		return nil
	}
	if err := o.p.awaitEnforced(ctx, c, k, min(time.Minute, o.timeout)); err != nil {
		return "", nil, errors.Join(err, forget())
	}
	plaintext, err := Claim(ctx, c, types.NamespacedName{Namespace: k.Namespace, Name: k.Name})
	if err != nil {
		return "", nil, errors.Join(err, forget())
	}
	return plaintext.Reveal(), forget, nil
}

// knownModel is what the cluster says of a model, to whoever may read it.
type knownModel struct {
	api      string
	prices   *policy.Prices
	currency string
}

// lookUp reads the model and its provider. Whoever has a key and no access to the cluster gets a guess by the name.
func (o *try) lookUp(ctx context.Context) knownModel {
	const patience = 3 * time.Second
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	known := knownModel{api: apiChat}
	if strings.HasPrefix(o.model, "claude") {
		known.api = apiMessages
	}
	c, err := o.p.connect()
	if err != nil {
		return known
	}
	var models v1alpha1.ModelList
	if err := c.List(ctx, &models); err != nil {
		return known
	}
	var claimants []*v1alpha1.Model
	for i := range models.Items {
		if models.Items[i].CallName() == o.model {
			claimants = append(claimants, &models.Items[i])
		}
	}
	if len(claimants) == 0 {
		return known
	}
	winner, provider := compile.Winner(claimants), &v1alpha1.Provider{}
	if err := c.Get(ctx, types.NamespacedName{Name: winner.Spec.ProviderRef.Name}, provider); err != nil {
		return known
	}
	model, _ := compile.Model(winner, provider)
	if model == nil {
		return known
	}
	known.api = apiChat
	if model.Format == policy.FormatAnthropic {
		known.api = apiMessages
	}
	if model.Prices.Has() {
		known.prices = model.Prices
		sys := &v1alpha1.SystemPolicy{}
		if err := c.Get(ctx, types.NamespacedName{Name: v1alpha1.SystemPolicyName}, sys); err != nil {
			sys = nil
		}
		known.currency = newCalendar(sys, o.p.now()).currency
	}
	return known
}

// ask sends the prompt, streams the answer, and tells what it took.
func (o *try) ask(ctx context.Context, g *gateway, prompt string, known knownModel) error {
	body, err := tryRequest(o.api, o.model, o.system, prompt, o.maxTokens)
	if err != nil {
		return err
	}
	colours := o.p.palette(o.p.ErrOut)
	o.p.say("%s", colours.paint(faint, fmt.Sprintf("%s, POST %s%s", oneLine(o.model), g.base, pathOf(o.api))))
	began := o.p.now()
	answer, err := g.post(ctx, pathOf(o.api), body)
	if err != nil {
		return err
	}
	defer func() { _ = answer.Close() }()
	out := &answerWriter{to: o.p.Out, first: o.p.now, plainText: isTerminal(o.p.Out)}
	got, err := readStream(answer, out)
	if !out.began.IsZero() && !out.endsLine {
		_, _ = fmt.Fprintln(o.p.Out)
	}
	if err != nil {
		return err
	}
	o.p.say("%s", colours.paint(faint, tookText(got, known, began, out.began, o.p.now())))
	o.p.say("%s", colours.paint(faint, g.left(ctx)))
	return nil
}

func pathOf(api string) string {
	if api == apiMessages {
		return "/v1/messages"
	}
	return "/v1/chat/completions"
}

// tookText is what an answer took.
func tookText(got *answered, known knownModel, began, first, ended time.Time) string {
	parts := []string{"tokens: not reported"}
	if got.reported {
		tokens := fmt.Sprintf("tokens: %s in", grouped(got.usage.InputTokens))
		if got.usage.CachedInputTokens > 0 {
			tokens += fmt.Sprintf(" (%s cached)", grouped(got.usage.CachedInputTokens))
		}
		parts[0] = tokens + fmt.Sprintf(", %s out", grouped(got.usage.OutputTokens))
		if known.prices != nil {
			parts = append(parts, "cost: "+known.prices.Cost(&got.usage).String()+" "+known.currency)
		}
	}
	if !first.IsZero() {
		parts = append(parts, fmt.Sprintf("first text after %d ms", first.Sub(began).Milliseconds()))
	}
	parts = append(parts, fmt.Sprintf("all after %d ms", ended.Sub(began).Milliseconds()))
	if got.finish != "" && got.finish != "stop" && got.finish != "end_turn" {
		parts = append(parts, "ended by "+oneLine(got.finish))
	}
	return strings.Join(parts, " · ")
}

// answerWriter writes a model's text. On a terminal it leaves out what could steer it.
type answerWriter struct {
	to        io.Writer
	first     func() time.Time
	plainText bool
	began     time.Time
	endsLine  bool
}

// Write writes a piece of text.
func (w *answerWriter) Write(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	if w.began.IsZero() {
		w.began = w.first()
	}
	w.endsLine = b[len(b)-1] == '\n'
	shown := string(b)
	if w.plainText {
		shown = strings.Map(func(r rune) rune {
			if r != '\n' && r != '\t' && (r < ' ' || (r >= 0x7f && r < 0xa0)) {
				return -1
			}
			return r
		}, shown)
	}
	if _, err := io.WriteString(w.to, shown); err != nil {
		return 0, err
	}
	return len(b), nil
}
