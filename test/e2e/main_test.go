package e2e

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	"github.com/latchkey-dev/latchkey/internal/cli"
	"github.com/latchkey-dev/latchkey/test/stack"
)

var theStack *stack.Stack

// patience is how long a test waits for something that takes moments. It is not what is tested.
const patience = 60 * time.Second

func TestMain(m *testing.M) {
	flag.Parse()
	if testing.Short() {
		fmt.Println("e2e: left out by -short")
		os.Exit(0)
	}
	code, err := runAll(m)
	if err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "e2e:", err)
		code = 1
	}
	os.Exit(code)
}

func runAll(m *testing.M) (code int, err error) {
	dir, err := os.MkdirTemp("", "lk-e2e-")
	if err != nil {
		return 1, err
	}
	theStack, err = stack.Start(context.Background(), stack.Options{Dir: dir, Say: os.Stderr})
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, theStack.Stop()) }()
	if err := seed(context.Background()); err != nil {
		return 1, err
	}
	code = m.Run()
	if code == 0 {
		_ = os.RemoveAll(dir)
	} else {
		_, _ = fmt.Fprintln(os.Stderr, "e2e: logs are kept in", filepath.Join(dir, "logs"))
	}
	return code, nil
}

// seed sets up the providers and models that all tests share.
func seed(ctx context.Context) error {
	c := theStack.Client
	objects := []client.Object{
		&v1alpha1.SystemPolicy{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.SystemPolicyName}, Spec: roomy()},
		&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: stack.Namespace, Name: "openai"}, StringData: map[string]string{"apiKey": stack.OpenAICredential}},
		&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: stack.Namespace, Name: "anthropic"}, StringData: map[string]string{"apiKey": stack.AnthropicCredential}},
		&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: stack.Namespace, Name: "wrong"}, StringData: map[string]string{"apiKey": "sk-wrong-credential-of-the-platform"}},
		providerOf("openai", v1alpha1.ProviderFormatOpenAI, theStack.ProviderURL()+"/v1", "openai"),
		providerOf("anthropic", v1alpha1.ProviderFormatAnthropic, theStack.ProviderURL(), "anthropic"),
		providerOf("miscredentialed", v1alpha1.ProviderFormatOpenAI, theStack.ProviderURL()+"/v1", "wrong"),
		providerOf("unreachable", v1alpha1.ProviderFormatOpenAI, "http://127.0.0.1:1/v1", ""),
		modelOf("gpt-5-mini", "openai", "", v1alpha1.CapabilityTextGeneration, v1alpha1.CapabilityWebSearch),
		modelOf("gpt-5", "openai", "", v1alpha1.CapabilityTextGeneration),
		modelOf("fast", "openai", "gpt-5-mini", v1alpha1.CapabilityTextGeneration),
		modelOf("text-embedding-3-small", "openai", "", v1alpha1.CapabilityEmbeddings),
		modelOf("gpt-image-1", "openai", "", v1alpha1.CapabilityImageGeneration),
		modelOf("gpt-4o-mini-tts", "openai", "", v1alpha1.CapabilityTextToSpeech),
		modelOf("gpt-4o-transcribe", "openai", "", v1alpha1.CapabilitySpeechToText),
		modelOf("listener", "openai", "gpt-4o-transcribe", v1alpha1.CapabilitySpeechToText),
		modelOf("omni-moderation-latest", "openai", "", v1alpha1.CapabilityTextGeneration),
		modelOf("claude-sonnet-4-5", "anthropic", "", v1alpha1.CapabilityTextGeneration, v1alpha1.CapabilityWebSearch),
		modelOf("broken-credential", "miscredentialed", "gpt-5-mini", v1alpha1.CapabilityTextGeneration),
		modelOf("nowhere", "unreachable", "gpt-5-mini", v1alpha1.CapabilityTextGeneration),
	}
	for _, obj := range objects {
		if err := c.Create(ctx, obj); err != nil {
			return fmt.Errorf("create %s: %w", obj.GetName(), err)
		}
	}
	for _, obj := range objects {
		if m, ok := obj.(*v1alpha1.Model); ok {
			if err := await(ctx, m, func() bool { return isTrue(m.Status.Conditions, v1alpha1.ConditionReady) }); err != nil {
				return err
			}
		}
	}
	return nil
}

// roomy is a policy whose rate limits the tests of other things do not meet.
func roomy() v1alpha1.SystemPolicySpec {
	limits := func(limit int64) *v1alpha1.LimitRange {
		return &v1alpha1.LimitRange{Default: new(limit), Max: new(limit)}
	}
	return v1alpha1.SystemPolicySpec{RateLimits: &v1alpha1.SystemRateLimits{
		RequestsPerMinute: limits(1_000_000), TokensPerMinute: limits(1_000_000_000),
	}}
}

func providerOf(name string, format v1alpha1.ProviderFormat, url, secret string) *v1alpha1.Provider {
	p := &v1alpha1.Provider{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.ProviderSpec{Format: format, URL: url}}
	if secret != "" {
		p.Spec.Credential = &v1alpha1.ProviderCredential{SecretRef: v1alpha1.SecretKeyReference{Name: secret, Key: "apiKey"}}
	}
	return p
}

func modelOf(name, provider, upstream string, capabilities ...v1alpha1.Capability) *v1alpha1.Model {
	return &v1alpha1.Model{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: v1alpha1.ModelSpec{
			ProviderRef: v1alpha1.ProviderReference{Name: provider}, UpstreamName: upstream, Capabilities: capabilities,
		},
	}
}

// tenant is a namespace with one application, as a product team has it.
type tenant struct {
	t           *testing.T
	namespace   string
	application *v1alpha1.Application
}

var allCapabilities = []v1alpha1.Capability{
	v1alpha1.CapabilityTextGeneration, v1alpha1.CapabilityImageGeneration, v1alpha1.CapabilityEmbeddings,
	v1alpha1.CapabilityTextToSpeech, v1alpha1.CapabilitySpeechToText, v1alpha1.CapabilityWebSearch,
}

func newTenant(t *testing.T, change ...func(*v1alpha1.ApplicationSpec)) *tenant {
	t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "team-"}}
	if err := theStack.Client.Create(t.Context(), ns); err != nil {
		t.Fatal(err)
	}
	app := &v1alpha1.Application{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns.Name, Name: "shop"},
		Spec:       v1alpha1.ApplicationSpec{DisplayName: "Shop"},
	}
	for _, c := range change {
		c(&app.Spec)
	}
	if err := theStack.Client.Create(t.Context(), app); err != nil {
		t.Fatal(err)
	}
	return &tenant{t: t, namespace: ns.Name, application: app}
}

// newKey applies a key with every capability and model unless changed, waits until it is enforced, and reveals it.
func (tn *tenant) newKey(name string, change ...func(*v1alpha1.APIKeySpec)) (*v1alpha1.APIKey, string) {
	tn.t.Helper()
	k := tn.apply(name, change...)
	if err := await(tn.t.Context(), k, func() bool { return isTrue(k.Status.Conditions, v1alpha1.ConditionEnforced) }); err != nil {
		tn.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(tn.t.Context(), patience)
	defer cancel()
	plaintext, err := cli.Claim(ctx, theStack.Client, client.ObjectKeyFromObject(k))
	if err != nil {
		tn.t.Fatal(err)
	}
	return k, plaintext.Reveal()
}

func (tn *tenant) apply(name string, change ...func(*v1alpha1.APIKeySpec)) *v1alpha1.APIKey {
	tn.t.Helper()
	k := &v1alpha1.APIKey{
		ObjectMeta: metav1.ObjectMeta{Namespace: tn.namespace, Name: name},
		Spec: v1alpha1.APIKeySpec{
			ApplicationRef: v1alpha1.ApplicationReference{Name: tn.application.Name},
			DisplayName:    "Backend",
			Capabilities:   allCapabilities,
			Models:         v1alpha1.ModelScope{Access: v1alpha1.ModelAccessAll},
		},
	}
	for _, c := range change {
		c(&k.Spec)
	}
	if err := theStack.Client.Create(tn.t.Context(), k); err != nil {
		tn.t.Fatal(err)
	}
	return k
}

// patch changes an object by a JSON merge patch, as kubectl patch does.
func patch(t *testing.T, obj client.Object, body string) {
	t.Helper()
	if err := theStack.Client.Patch(t.Context(), obj, client.RawPatch(types.MergePatchType, []byte(body))); err != nil {
		t.Fatal(err)
	}
}

// await re-reads the object until what is asked for holds.
func await(ctx context.Context, obj client.Object, holds func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err := wait.PollUntilContextCancel(ctx, 20*time.Millisecond, true, func(ctx context.Context) (bool, error) {
		if err := theStack.Client.Get(ctx, client.ObjectKeyFromObject(obj), obj); err != nil {
			return false, err
		}
		return holds(), nil
	})
	if err != nil {
		return fmt.Errorf("wait for %T %s: %w; it is %s", obj, obj.GetName(), err, describe(obj))
	}
	return nil
}

// eventually polls until the check passes, and fails the test with its last complaint otherwise.
func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var last error
	err := wait.PollUntilContextCancel(ctx, 20*time.Millisecond, true, func(context.Context) (bool, error) {
		last = check()
		return last == nil, nil
	})
	if err != nil {
		t.Fatalf("%s: %v", what, last)
	}
}

func isTrue(conditions []metav1.Condition, kind string) bool {
	return meta.IsStatusConditionTrue(conditions, kind)
}

func describe(obj client.Object) string {
	var conditions []metav1.Condition
	switch o := obj.(type) {
	case *v1alpha1.APIKey:
		conditions = o.Status.Conditions
	case *v1alpha1.Application:
		conditions = o.Status.Conditions
	case *v1alpha1.Model:
		conditions = o.Status.Conditions
	case *v1alpha1.Provider:
		conditions = o.Status.Conditions
	}
	said := make([]string, 0, len(conditions))
	for _, c := range conditions {
		said = append(said, fmt.Sprintf("%s=%s (%s: %s)", c.Type, c.Status, c.Reason, c.Message))
	}
	return strings.Join(said, ", ")
}
