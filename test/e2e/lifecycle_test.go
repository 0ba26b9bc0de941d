package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/retry"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
)

// condition waits until a condition has the status and reason, and returns its message.
func condition(t *testing.T, obj client.Object, conditions func() []metav1.Condition, kind string, status metav1.ConditionStatus, reason string) string {
	t.Helper()
	var found *metav1.Condition
	err := await(t.Context(), obj, func() bool {
		found = meta.FindStatusCondition(conditions(), kind)
		return found != nil && found.Status == status && found.Reason == reason && found.ObservedGeneration == obj.GetGeneration()
	})
	if err != nil {
		t.Fatalf("%s=%s %s: %v", kind, status, reason, err)
	}
	return found.Message
}

func keyCondition(t *testing.T, k *v1alpha1.APIKey, kind string, status metav1.ConditionStatus, reason string) string {
	t.Helper()
	return condition(t, k, func() []metav1.Condition { return k.Status.Conditions }, kind, status, reason)
}

func secretOf(t *testing.T, k *v1alpha1.APIKey) *corev1.Secret {
	t.Helper()
	if err := await(t.Context(), k, func() bool { return k.Status.SecretName != "" }); err != nil {
		t.Fatal(err)
	}
	secret := &corev1.Secret{}
	if err := theStack.Client.Get(t.Context(), client.ObjectKey{Namespace: k.Namespace, Name: k.Status.SecretName}, secret); err != nil {
		t.Fatal(err)
	}
	return secret
}

// systemPolicy puts another SystemPolicy in place for the length of a test, and waits until it is enforced.
func systemPolicy(t *testing.T, spec v1alpha1.SystemPolicySpec) *v1alpha1.SystemPolicy {
	t.Helper()
	p := &v1alpha1.SystemPolicy{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.SystemPolicyName}}
	put := func(ctx context.Context, spec v1alpha1.SystemPolicySpec) error {
		return retry.RetryOnConflict(retry.DefaultBackoff, func() error {
			if err := theStack.Client.Get(ctx, client.ObjectKeyFromObject(p), p); err != nil {
				return err
			}
			p.Spec = spec
			return theStack.Client.Update(ctx, p)
		})
	}
	if err := put(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	ctx := context.WithoutCancel(t.Context()) // the test's own has ended by the time of the clean-up
	enforced := func() bool {
		return p.Status.ObservedGeneration == p.Generation && isTrue(p.Status.Conditions, v1alpha1.ConditionEnforced)
	}
	t.Cleanup(func() {
		if err := put(ctx, roomy()); err != nil {
			t.Error(err)
		}
		if err := await(ctx, p, enforced); err != nil {
			t.Error(err)
		}
	})
	if err := await(t.Context(), p, enforced); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestAKeyWaitsForItsApplication(t *testing.T) {
	tn := newTenant(t)
	tn.application = &v1alpha1.Application{ObjectMeta: metav1.ObjectMeta{Namespace: tn.namespace, Name: "later"}, Spec: v1alpha1.ApplicationSpec{DisplayName: "Later"}}
	k := tn.apply("early")
	message := keyCondition(t, k, v1alpha1.ConditionReady, metav1.ConditionFalse, v1alpha1.ReasonApplicationNotFound)
	if !strings.Contains(message, "later") || k.Status.SecretName != "" || meta.IsStatusConditionTrue(k.Status.Conditions, v1alpha1.ConditionStalled) {
		t.Fatalf("waiting: %q, secret %q, %s", message, k.Status.SecretName, describe(k))
	}
	if err := theStack.Client.Create(t.Context(), tn.application); err != nil {
		t.Fatal(err)
	}
	keyCondition(t, k, v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonReconciled)
	keyCondition(t, k, v1alpha1.ConditionEnforced, metav1.ConditionTrue, v1alpha1.ReasonAcknowledged)
}

func TestClampsAreShown(t *testing.T) {
	systemPolicy(t, v1alpha1.SystemPolicySpec{Currency: "EUR"}) // and the defaults
	tn := newTenant(t)
	k := tn.apply("greedy", func(s *v1alpha1.APIKeySpec) {
		s.RateLimits = &v1alpha1.RateLimits{RequestsPerMinute: new(int64(50_000))}
		s.Budgets = &v1alpha1.Budgets{Daily: new(v1alpha1.Money("12.50"))}
	})
	message := keyCondition(t, k, v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonLimitClamped)
	if !strings.Contains(message, "50000") || !strings.Contains(message, "6000") {
		t.Errorf("message %q", message)
	}
	if e := k.Status.Effective; e == nil || *e.RequestsPerMinute != 6000 || *e.TokensPerMinute != 100_000 || *e.DailyBudget != "12.5" || e.MonthlyBudget != nil {
		t.Errorf("effective %+v", k.Status.Effective)
	}
	// The system's maximum is raised: the key follows.
	p := systemPolicy(t, v1alpha1.SystemPolicySpec{RateLimits: &v1alpha1.SystemRateLimits{
		RequestsPerMinute: &v1alpha1.LimitRange{Default: new(int64(10)), Max: new(int64(90_000))},
	}})
	keyCondition(t, k, v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonReconciled)
	if *k.Status.Effective.RequestsPerMinute != 50_000 {
		t.Errorf("effective %d", *k.Status.Effective.RequestsPerMinute)
	}
	condition(t, p, func() []metav1.Condition { return p.Status.Conditions }, v1alpha1.ConditionEnforced, metav1.ConditionTrue, v1alpha1.ReasonAcknowledged)
	patch(t, p, `{"spec":{"timeZone":"Europe/Nowhere"}}`)
	if said := condition(t, p, func() []metav1.Condition { return p.Status.Conditions }, v1alpha1.ConditionStalled, metav1.ConditionTrue, v1alpha1.ReasonInvalid); !strings.Contains(said, "spec.timeZone") {
		t.Errorf("message %q", said)
	}
	eventually(t, "a warning event", func() error {
		out, err := theStack.Kubectl(t.Context(), "get", "events", "-n", k.Namespace, "--field-selector", "reason=LimitClamped,type=Warning", "-o", "name")
		if err == nil && strings.Count(out, "\n") != 1 {
			err = fmt.Errorf("got %q", out)
		}
		return err
	})
}

func TestWhatNobodyTakesIsRemoved(t *testing.T) {
	systemPolicy(t, v1alpha1.SystemPolicySpec{Reveal: &v1alpha1.RevealPolicy{TTL: &metav1.Duration{Duration: 10 * time.Second}}})
	tn := newTenant(t)
	k := tn.apply("forgotten")
	secret := secretOf(t, k)
	key := string(secret.Data[v1alpha1.SecretDataAPIKey])
	keyCondition(t, k, v1alpha1.ConditionRevealed, metav1.ConditionFalse, v1alpha1.ReasonPending)
	keyCondition(t, k, v1alpha1.ConditionRevealed, metav1.ConditionFalse, v1alpha1.ReasonRevealExpired)
	secret = secretOf(t, k)
	if _, there := secret.Data[v1alpha1.SecretDataAPIKey]; there || len(secret.Data[v1alpha1.SecretDataKeyHash]) != 64 {
		t.Fatalf("the Secret holds %d entries", len(secret.Data))
	}
	if _, err := theStack.Latchkey(t.Context(), "reveal", k.Name, "-n", k.Namespace); err == nil || !strings.Contains(err.Error(), "deadline") {
		t.Fatalf("reveal: %v", err)
	}
	decided(t, key, request{}, http.StatusOK, "") // whoever read it meanwhile holds a key in force
}

func TestRetain(t *testing.T) {
	retain := func(s *v1alpha1.APIKeySpec) {
		s.Secret = &v1alpha1.SecretSpec{Retention: v1alpha1.SecretRetentionRetain}
	}
	tn := newTenant(t)
	k := tn.apply("mounted", retain)
	if message := keyCondition(t, k, v1alpha1.ConditionStalled, metav1.ConditionTrue, v1alpha1.ReasonRetainNotAllowed); k.Status.SecretName != "" || !strings.Contains(message, "SystemPolicy") {
		t.Fatalf("forbidden: %q, secret %q", message, k.Status.SecretName)
	}
	p := systemPolicy(t, v1alpha1.SystemPolicySpec{Reveal: &v1alpha1.RevealPolicy{Retain: v1alpha1.RetainAllowed, TTL: &metav1.Duration{Duration: 10 * time.Second}}})
	keyCondition(t, k, v1alpha1.ConditionRevealed, metav1.ConditionTrue, v1alpha1.ReasonRetained)
	key := string(secretOf(t, k).Data[v1alpha1.SecretDataAPIKey])
	for range 2 {
		out, err := theStack.Latchkey(t.Context(), "reveal", k.Name, "-n", k.Namespace)
		if err != nil || strings.TrimSpace(out) != key {
			t.Fatalf("a retained key can be read again: %v", err)
		}
	}
	// Forbidden again: the key works on, and its plaintext goes after the TTL.
	patch(t, p, `{"spec":{"reveal":{"retain":"Forbidden"}}}`)
	keyCondition(t, k, v1alpha1.ConditionStalled, metav1.ConditionTrue, v1alpha1.ReasonRetainNotAllowed)
	keyCondition(t, k, v1alpha1.ConditionRevealed, metav1.ConditionFalse, v1alpha1.ReasonRevealExpired)
	decided(t, key, request{}, http.StatusOK, "")
}

func TestALostSecretIsNeverMintedAgain(t *testing.T) {
	tn := newTenant(t)
	k, key := tn.newKey("lost")
	decided(t, key, request{}, http.StatusOK, "")
	secret := secretOf(t, k)
	if err := theStack.Client.Delete(t.Context(), secret); err != nil {
		t.Fatal(err)
	}
	decided(t, key, request{}, http.StatusUnauthorized, "invalid_api_key")
	if message := keyCondition(t, k, v1alpha1.ConditionReady, metav1.ConditionFalse, v1alpha1.ReasonSecretLost); !strings.Contains(message, "create a new one") {
		t.Errorf("message %q", message)
	}
	keyCondition(t, k, v1alpha1.ConditionUsable, metav1.ConditionFalse, v1alpha1.ReasonSecretLost)
	// Neither an edit nor a new manager makes another.
	patch(t, k, `{"spec":{"displayName":"Still lost"}}`)
	keyCondition(t, k, v1alpha1.ConditionReady, metav1.ConditionFalse, v1alpha1.ReasonSecretLost)
	if err := theStack.Managers[0].Restart(); err != nil {
		t.Fatal(err)
	}
	_, fresh := tn.newKey("fresh") // the new manager works
	decided(t, fresh, request{}, http.StatusOK, "")
	if err := theStack.Client.Get(t.Context(), client.ObjectKeyFromObject(secret), secret); !apierrors.IsNotFound(err) {
		t.Fatalf("a Secret came back: %v", err)
	}
}

func TestAnAlteredSecretIsNotHonoured(t *testing.T) {
	tn := newTenant(t)
	k, key := tn.newKey("altered")
	_, others := tn.newKey("others")
	secret := secretOf(t, k)
	own := secret.Data[v1alpha1.SecretDataKeyHash]
	// The hash of another key is put in its place, so that the other's calls would be billed here.
	stolen := secretOf(t, &v1alpha1.APIKey{ObjectMeta: metav1.ObjectMeta{Namespace: k.Namespace, Name: "others"}}).Data[v1alpha1.SecretDataKeyHash]
	before := secret.DeepCopy()
	secret.Data[v1alpha1.SecretDataKeyHash] = stolen
	if err := theStack.Client.Patch(t.Context(), secret, client.MergeFrom(before)); err != nil {
		t.Fatal(err)
	}
	keyCondition(t, k, v1alpha1.ConditionReady, metav1.ConditionFalse, v1alpha1.ReasonSecretLost)
	decided(t, key, request{}, http.StatusUnauthorized, "invalid_api_key")
	decided(t, others, request{}, http.StatusOK, "")
	// Put back, it counts again; so does a label that somebody removed.
	before = secret.DeepCopy()
	secret.Data[v1alpha1.SecretDataKeyHash] = own
	delete(secret.Labels, v1alpha1.LabelAPIKey)
	if err := theStack.Client.Patch(t.Context(), secret, client.MergeFrom(before)); err != nil {
		t.Fatal(err)
	}
	patch(t, k, `{"spec":{"displayName":"Restored"}}`)
	decided(t, key, request{}, http.StatusOK, "")
	keyCondition(t, k, v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonReconciled)
}

func TestARestoredBackupHonoursTheKeysInUse(t *testing.T) {
	tn := newTenant(t)
	k, key := tn.newKey("saved")
	secret := secretOf(t, k)
	restored := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: secret.Namespace, Name: secret.Name, Labels: secret.Labels, Annotations: secret.Annotations},
		Data:       secret.Data,
	}
	if err := theStack.Client.Delete(t.Context(), k); err != nil {
		t.Fatal(err)
	}
	decided(t, key, request{}, http.StatusUnauthorized, "invalid_api_key")
	eventually(t, "key and Secret are gone", func() error {
		for _, obj := range []client.Object{k, secret} {
			if err := theStack.Client.Get(t.Context(), client.ObjectKeyFromObject(obj), obj); !apierrors.IsNotFound(err) {
				return errors.New("there is still one")
			}
		}
		return nil
	})
	if err := theStack.Client.Create(t.Context(), restored); err != nil {
		t.Fatal(err)
	}
	again := tn.apply("saved")
	keyCondition(t, again, v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonReconciled)
	keyCondition(t, again, v1alpha1.ConditionRevealed, metav1.ConditionTrue, v1alpha1.ReasonClaimed)
	decided(t, key, request{}, http.StatusOK, "")
}

func TestAForeignSecretIsLeftAlone(t *testing.T) {
	tn := newTenant(t)
	foreign := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: tn.namespace, Name: "taken-api-key"},
		StringData: map[string]string{"password": "hunter2"},
	}
	if err := theStack.Client.Create(t.Context(), foreign); err != nil {
		t.Fatal(err)
	}
	k := tn.apply("taken")
	if message := keyCondition(t, k, v1alpha1.ConditionStalled, metav1.ConditionTrue, v1alpha1.ReasonSecretConflict); !strings.Contains(message, "taken-api-key") {
		t.Errorf("message %q", message)
	}
	if err := theStack.Client.Delete(t.Context(), k); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the key is gone", func() error {
		if err := theStack.Client.Get(t.Context(), client.ObjectKeyFromObject(k), k); !apierrors.IsNotFound(err) {
			return errors.New("it is not")
		}
		return nil
	})
	if err := theStack.Client.Get(t.Context(), client.ObjectKeyFromObject(foreign), foreign); err != nil || string(foreign.Data["password"]) != "hunter2" || len(foreign.Data) != 1 {
		t.Fatalf("the foreign Secret: %v, %d entries", err, len(foreign.Data))
	}
}

func TestTwoKeysWithOneSecret(t *testing.T) {
	tn := newTenant(t)
	elder, key := tn.newKey("elder")
	secret := secretOf(t, elder)
	copied := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: tn.namespace, Name: "younger-api-key", Labels: map[string]string{v1alpha1.LabelAPIKey: "younger"}},
		Data:       secret.Data,
	}
	if err := theStack.Client.Create(t.Context(), copied); err != nil {
		t.Fatal(err)
	}
	// Creation times have whole seconds: the next one makes the order plain.
	eventually(t, "another second", func() error {
		if time.Now().Unix() <= elder.CreationTimestamp.Unix() {
			return errors.New("not yet")
		}
		return nil
	})
	younger := tn.apply("younger")
	if message := keyCondition(t, younger, v1alpha1.ConditionStalled, metav1.ConditionTrue, v1alpha1.ReasonDuplicateKey); !strings.Contains(message, "elder") {
		t.Errorf("message %q", message)
	}
	decided(t, key, request{}, http.StatusOK, "")
	// The younger's state is of no matter to the elder's callers; with the elder gone, the younger counts.
	patch(t, younger, `{"spec":{"state":"Disabled"}}`)
	keyCondition(t, younger, v1alpha1.ConditionStalled, metav1.ConditionTrue, v1alpha1.ReasonDuplicateKey)
	decided(t, key, request{}, http.StatusOK, "")
	if err := theStack.Client.Delete(t.Context(), elder); err != nil {
		t.Fatal(err)
	}
	decided(t, key, request{}, http.StatusUnauthorized, "api_key_disabled")
	keyCondition(t, younger, v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonReconciled)
}

func TestAnApplicationGoesAfterItsKeys(t *testing.T) {
	tn := newTenant(t)
	k, key := tn.newKey("last")
	app := tn.application
	if err := await(t.Context(), app, func() bool { return app.Status.Keys != nil && *app.Status.Keys == 1 }); err != nil {
		t.Fatal(err)
	}
	if err := theStack.Client.Delete(t.Context(), app); err != nil {
		t.Fatal(err)
	}
	message := condition(t, app, func() []metav1.Condition { return app.Status.Conditions }, v1alpha1.ConditionReady, metav1.ConditionFalse, v1alpha1.ReasonKeysRemain)
	if !strings.Contains(message, "last") {
		t.Errorf("message %q", message)
	}
	decided(t, key, request{}, http.StatusOK, "")
	if err := theStack.Client.Delete(t.Context(), k); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the application goes", func() error {
		if err := theStack.Client.Get(t.Context(), client.ObjectKeyFromObject(app), app); !apierrors.IsNotFound(err) {
			return errors.New("it is still there")
		}
		return nil
	})
}

func TestModelsAndProvidersSayWhatTheyLack(t *testing.T) {
	ctx := t.Context()
	m := modelOf("orphan", "unborn", "gpt-5-mini", v1alpha1.CapabilityTextGeneration)
	p := providerOf("unborn", v1alpha1.ProviderFormatOpenAI, theStack.ProviderURL()+"/v1", "unborn-credential")
	modelReady := func(status metav1.ConditionStatus, reason string) string {
		return condition(t, m, func() []metav1.Condition { return m.Status.Conditions }, v1alpha1.ConditionReady, status, reason)
	}
	providerReady := func(status metav1.ConditionStatus, reason string) string {
		return condition(t, p, func() []metav1.Condition { return p.Status.Conditions }, v1alpha1.ConditionReady, status, reason)
	}
	if err := theStack.Client.Create(ctx, m); err != nil {
		t.Fatal(err)
	}
	if said := modelReady(metav1.ConditionFalse, v1alpha1.ReasonProviderNotFound); !strings.Contains(said, "unborn") {
		t.Errorf("message %q", said)
	}
	if err := theStack.Client.Create(ctx, p); err != nil {
		t.Fatal(err)
	}
	if said := providerReady(metav1.ConditionFalse, v1alpha1.ReasonCredentialNotFound); !strings.Contains(said, "unborn-credential") {
		t.Errorf("message %q", said)
	}
	modelReady(metav1.ConditionFalse, v1alpha1.ReasonProviderNotReady)
	credential := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "latchkey-system", Name: "unborn-credential"}, StringData: map[string]string{"apiKey": "sim-openai-credential\n"}}
	if err := theStack.Client.Create(ctx, credential); err != nil {
		t.Fatal(err)
	}
	providerReady(metav1.ConditionTrue, v1alpha1.ReasonReconciled)
	modelReady(metav1.ConditionTrue, v1alpha1.ReasonReconciled)
	_, key := newTenant(t).newKey("caller")
	decided(t, key, request{body: chat("orphan", "hi")}, http.StatusOK, "")

	// A second model that claims the name stands back, and steps in when the first goes.
	twin := modelOf("twin", "openai", "gpt-5-mini", v1alpha1.CapabilityTextGeneration)
	twin.Spec.Name = "orphan"
	if err := theStack.Client.Create(ctx, twin); err != nil {
		t.Fatal(err)
	}
	twinCondition := func(kind string, status metav1.ConditionStatus, reason string) {
		condition(t, twin, func() []metav1.Condition { return twin.Status.Conditions }, kind, status, reason)
	}
	twinCondition(v1alpha1.ConditionStalled, metav1.ConditionTrue, v1alpha1.ReasonModelNameTaken)
	if err := theStack.Client.Delete(ctx, m); err != nil {
		t.Fatal(err)
	}
	twinCondition(v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonReconciled)
	decided(t, key, request{body: chat("orphan", "hi")}, http.StatusOK, "")
	for _, obj := range []client.Object{twin, p, credential} {
		if err := theStack.Client.Delete(ctx, obj); err != nil {
			t.Fatal(err)
		}
	}
	decided(t, key, request{body: chat("orphan", "hi")}, http.StatusNotFound, "model_not_found")
}
