package controllers

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	"github.com/latchkey-dev/latchkey/internal/compile"
	"github.com/latchkey-dev/latchkey/internal/policy"
)

var now = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// scope is a key with everything in order, changed as a case wants it.
func scope(change ...func(*keyScope)) *keyScope {
	hash := policy.KeyHash{1}
	controller := true
	s := &keyScope{
		key: &v1alpha1.APIKey{
			ObjectMeta: metav1.ObjectMeta{Namespace: "demo", Name: "backend", UID: "uid-1"},
			Spec: v1alpha1.APIKeySpec{
				ApplicationRef: v1alpha1.ApplicationReference{Name: "shop"}, State: v1alpha1.StateEnabled,
				Capabilities: []v1alpha1.Capability{v1alpha1.CapabilityTextGeneration}, Models: v1alpha1.ModelScope{Access: v1alpha1.ModelAccessAll},
			},
		},
		status: &v1alpha1.APIKeyStatus{SecretName: "backend-api-key", KeyFingerprint: compile.Fingerprint(hash)},
		app:    &v1alpha1.Application{ObjectMeta: metav1.ObjectMeta{Name: "shop"}, Spec: v1alpha1.ApplicationSpec{State: v1alpha1.StateEnabled}},
		secret: &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{
				Name: "backend-api-key", Labels: map[string]string{v1alpha1.LabelAPIKey: "backend"},
				OwnerReferences: []metav1.OwnerReference{{UID: "uid-1", Controller: &controller}},
			},
			Data: map[string][]byte{"keyHash": []byte(hash.String()), "apiKey": []byte("x")},
		},
	}
	for _, c := range change {
		c(s)
	}
	return s
}

func expiresIn(d time.Duration) func(*keyScope) {
	return func(s *keyScope) { s.key.Spec.ExpirationTime = &metav1.Time{Time: now.Add(d)} }
}

func retaining(allowed bool) func(*keyScope) {
	return func(s *keyScope) {
		s.key.Spec.Secret = &v1alpha1.SecretSpec{Retention: v1alpha1.SecretRetentionRetain}
		if allowed {
			s.policy = &v1alpha1.SystemPolicy{Spec: v1alpha1.SystemPolicySpec{Reveal: &v1alpha1.RevealPolicy{Retain: v1alpha1.RetainAllowed}}}
		}
	}
}

func disabled(s *keyScope)      { s.key.Spec.State = v1alpha1.StateDisabled }
func appDisabled(s *keyScope)   { s.app.Spec.State = v1alpha1.StateDisabled }
func withoutApp(s *keyScope)    { s.app = nil }
func withoutSecret(s *keyScope) { s.secret = nil }
func notMinted(s *keyScope)     { s.secret, s.status = nil, &v1alpha1.APIKeyStatus{} }
func foreign(s *keyScope)       { s.secret.Labels = nil }
func twin(s *keyScope)          { s.elder = "demo/elder" }
func taken(s *keyScope)         { delete(s.secret.Data, "apiKey") }
func removed(why string) func(*keyScope) {
	return func(s *keyScope) {
		taken(s)
		s.secret.Annotations = map[string]string{v1alpha1.AnnotationRemoval: why}
	}
}

func TestConditionsOfAKey(t *testing.T) {
	t.Parallel()
	const stalled = true
	for name, tc := range map[string]struct {
		scope    *keyScope
		ready    string // status/reason
		stalled  bool
		usable   string
		revealed string
	}{
		"a key in order":                    {scope(), "True/Reconciled", !stalled, "True/Active", "False/Pending"},
		"a disabled key is ready":           {scope(disabled), "True/Reconciled", !stalled, "False/Disabled", "False/Pending"},
		"an expired key is ready":           {scope(expiresIn(0)), "True/Reconciled", !stalled, "False/Expired", "False/Pending"},
		"a key before its expiration":       {scope(expiresIn(1)), "True/Reconciled", !stalled, "True/Active", "False/Pending"},
		"disabled comes before expired":     {scope(disabled, expiresIn(-1)), "True/Reconciled", !stalled, "False/Disabled", "False/Pending"},
		"of a disabled application":         {scope(appDisabled), "True/Reconciled", !stalled, "False/ApplicationDisabled", "False/Pending"},
		"of an application that left":       {scope(withoutApp), "False/ApplicationNotFound", !stalled, "False/ApplicationNotFound", "False/Pending"},
		"waiting for its application":       {scope(withoutApp, notMinted), "False/ApplicationNotFound", !stalled, "False/Pending", "False/Pending"},
		"not minted yet":                    {scope(notMinted), "False/Pending", !stalled, "False/Pending", "False/Pending"},
		"that lost its Secret":              {scope(withoutSecret), "False/SecretLost", stalled, "False/SecretLost", "False/SecretLost"},
		"that meets a foreign Secret":       {scope(foreign), "False/SecretConflict", stalled, "False/SecretConflict", "False/SecretConflict"},
		"with an older twin":                {scope(twin), "False/DuplicateKey", stalled, "False/DuplicateKey", "False/Pending"},
		"that may not retain":               {scope(retaining(false)), "False/RetainNotAllowed", stalled, "True/Active", "False/Pending"},
		"that may retain":                   {scope(retaining(true)), "True/Reconciled", !stalled, "True/Active", "True/Retained"},
		"that was to retain, but was taken": {scope(retaining(true), taken), "True/Reconciled", !stalled, "True/Active", "True/Claimed"},
		"claimed by a patch":                {scope(taken), "True/Reconciled", !stalled, "True/Active", "True/Claimed"},
		"claimed by hand":                   {scope(removed(v1alpha1.ReasonClaimed)), "True/Reconciled", !stalled, "True/Active", "True/Claimed"},
		"that nobody took":                  {scope(removed(v1alpha1.ReasonRevealExpired)), "True/Reconciled", !stalled, "True/Active", "False/RevealExpired"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			show := func(v verdict) string {
				if v.message == "" || strings.Contains(v.message, "%!") {
					t.Errorf("message %q", v.message)
				}
				return string(v.status) + "/" + v.reason
			}
			v, isStalled := readyOf(tc.scope, nil)
			if got := show(v); got != tc.ready || isStalled != tc.stalled {
				t.Errorf("Ready = %s, stalled %v; want %s, %v", got, isStalled, tc.ready, tc.stalled)
			}
			if reason := usableOf(tc.scope, now).reason; !slices.Contains(keyStates(), reason) {
				t.Errorf("the metrics do not know the state %s", reason)
			}
			if got := show(usableOf(tc.scope, now)); got != tc.usable {
				t.Errorf("Usable = %s, want %s", got, tc.usable)
			}
			if got := show(revealedOf(tc.scope)); got != tc.revealed {
				t.Errorf("Revealed = %s, want %s", got, tc.revealed)
			}
		})
	}
}

func TestEnforced(t *testing.T) {
	t.Parallel()
	acked, behind := AckState{Enforcers: 2, Acknowledged: true}, AckState{Enforcers: 2}
	refused := AckState{Enforcers: 2, Rejection: "enforcer-1: cannot read it"}
	was := func(status metav1.ConditionStatus, generation int64) []metav1.Condition {
		return []metav1.Condition{{Type: v1alpha1.ConditionEnforced, Status: status, Reason: v1alpha1.ReasonAcknowledged, ObservedGeneration: generation}}
	}
	for name, tc := range map[string]struct {
		before []metav1.Condition
		states []AckState
		want   string
	}{
		"all have acknowledged":                         {nil, []AckState{acked, acked}, "True/Acknowledged"},
		"the key has, its Secret has not":               {nil, []AckState{acked, behind}, "False/Pending"},
		"none is connected":                             {nil, []AckState{{}}, "False/NoEnforcers"},
		"one has refused":                               {nil, []AckState{refused}, "False/Rejected"},
		"one refuses something else, this one is acked": {nil, []AckState{{Enforcers: 1, Acknowledged: true, Rejection: "x"}}, "True/Acknowledged"},
		"once acknowledged, always so":                  {was(metav1.ConditionTrue, 7), []AckState{{}}, "True/Acknowledged"},
		"but not for another generation":                {was(metav1.ConditionTrue, 6), []AckState{behind}, "False/Pending"},
		"what was False is looked at again":             {was(metav1.ConditionFalse, 7), []AckState{acked}, "True/Acknowledged"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := enforced(tc.before, 7, tc.states...)
			if got := string(v.status) + "/" + v.reason; got != tc.want {
				t.Fatalf("Enforced = %s, want %s", got, tc.want)
			}
			if v.reason == v1alpha1.ReasonRejected && !strings.Contains(v.message, "cannot read it") {
				t.Fatalf("message %q", v.message)
			}
		})
	}
}

func TestClampsAreSaid(t *testing.T) {
	t.Parallel()
	v, stalled := readyOf(scope(), []policy.Clamp{{Field: "requestsPerMinute", Asked: 900, Max: 60}, {Field: "tokensPerMinute", Asked: 5, Max: 4}})
	if v.reason != v1alpha1.ReasonLimitClamped || v.status != metav1.ConditionTrue || stalled ||
		v.message != "requestsPerMinute 900 is above the system's maximum and is clamped to 60; tokensPerMinute 5 is above the system's maximum and is clamped to 4" {
		t.Fatalf("Ready = %+v", v)
	}
}

func TestStalledComesAndGoes(t *testing.T) {
	t.Parallel()
	var conditions []metav1.Condition
	list := conditionList{&conditions, 3, now}
	list.setReady(no(v1alpha1.ReasonInvalid, "wrong"), true)
	if c := meta.FindStatusCondition(conditions, v1alpha1.ConditionStalled); c == nil || c.Status != metav1.ConditionTrue || c.Message != "wrong" || c.ObservedGeneration != 3 || !c.LastTransitionTime.Time.Equal(now) {
		t.Fatalf("Stalled = %+v", c)
	}
	list.setReady(yes(v1alpha1.ReasonReconciled, "right"), false)
	if meta.FindStatusCondition(conditions, v1alpha1.ConditionStalled) != nil || !meta.IsStatusConditionTrue(conditions, v1alpha1.ConditionReady) {
		t.Fatalf("conditions %+v", conditions)
	}
}

func TestAnApplicationNamesTheKeysThatHoldItBack(t *testing.T) {
	t.Parallel()
	keys := make([]string, 0, 12)
	for i := range 12 {
		keys = append(keys, fmt.Sprintf("key-%02d", i))
	}
	v, stalled := applicationReady(true, keys, nil)
	if stalled || v.reason != v1alpha1.ReasonKeysRemain || !strings.Contains(v.message, "12 left: key-00, ") || !strings.Contains(v.message, "key-09 and 2 more") || strings.Contains(v.message, "key-10") {
		t.Fatalf("Ready = %+v", v)
	}
	if v, _ := applicationReady(false, keys, nil); v.status != metav1.ConditionTrue {
		t.Fatalf("Ready = %+v", v)
	}
}

func TestModelReady(t *testing.T) {
	t.Parallel()
	m := &v1alpha1.Model{ObjectMeta: metav1.ObjectMeta{Name: "m"}, Spec: v1alpha1.ModelSpec{ProviderRef: v1alpha1.ProviderReference{Name: "p"}}}
	other := &v1alpha1.Model{ObjectMeta: metav1.ObjectMeta{Name: "older"}}
	p := func(conditions ...metav1.Condition) *v1alpha1.Provider {
		return &v1alpha1.Provider{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: v1alpha1.ProviderSpec{Format: v1alpha1.ProviderFormatOpenAI}, Status: v1alpha1.ProviderStatus{Conditions: conditions}}
	}
	for name, tc := range map[string]struct {
		winner   *v1alpha1.Model
		provider *v1alpha1.Provider
		want     string
		stalled  bool
	}{
		"in order":                        {m, p(metav1.Condition{Type: "Ready", Status: metav1.ConditionTrue}), "True/Reconciled", false},
		"no provider":                     {m, nil, "False/ProviderNotFound", false},
		"a provider not looked at yet":    {m, p(), "False/ProviderNotReady", false},
		"a provider that is not ready":    {m, p(metav1.Condition{Type: "Ready", Status: metav1.ConditionFalse, Message: "no credential"}), "False/ProviderNotReady", false},
		"another has the name":            {other, p(metav1.Condition{Type: "Ready", Status: metav1.ConditionTrue}), "False/ModelNameTaken", true},
		"another has it, and no provider": {other, nil, "False/ModelNameTaken", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v, stalled := modelReady(m, tc.winner, tc.provider)
			if got := string(v.status) + "/" + v.reason; got != tc.want || stalled != tc.stalled {
				t.Fatalf("Ready = %s, stalled %v; want %s, %v", got, stalled, tc.want, tc.stalled)
			}
		})
	}
}

func TestPendingPutsRevocationsFirst(t *testing.T) {
	t.Parallel()
	const system = "latchkey-system"
	key := func(name string, state v1alpha1.State, version string) *v1alpha1.APIKey {
		return &v1alpha1.APIKey{ObjectMeta: metav1.ObjectMeta{Namespace: "demo", Name: name, ResourceVersion: version}, Spec: v1alpha1.APIKeySpec{State: state}}
	}
	secret := func(namespace, owner string) *corev1.Secret {
		s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "s", ResourceVersion: "12"}}
		if owner != "" {
			s.Labels = map[string]string{v1alpha1.LabelAPIKey: owner}
		}
		return s
	}
	p := newPending()
	p.add(key("on", v1alpha1.StateEnabled, "7"), false, system)
	select {
	case <-p.urgent:
		t.Fatal("an enabled key is no revocation")
	default:
	}
	p.add(key("off", v1alpha1.StateDisabled, "9"), false, system)
	p.add(key("gone", v1alpha1.StateEnabled, "8"), true, system)
	p.add(secret("demo", "stolen"), true, system)
	p.add(secret("demo", "minted"), false, system)
	p.add(secret("demo", ""), false, system) // somebody's Secret
	p.add(&v1alpha1.Application{ObjectMeta: metav1.ObjectMeta{Namespace: "demo", Name: "shop"}, Spec: v1alpha1.ApplicationSpec{State: v1alpha1.StateDisabled}}, false, system)
	select {
	case <-p.urgent:
	default:
		t.Fatal("revocations were not signalled")
	}
	names := func(set map[types.NamespacedName]struct{}) map[string]bool {
		out := map[string]bool{}
		for n := range set {
			out[n.Name] = true
		}
		return out
	}
	keys, apps := p.takeUrgent()
	if diff := cmp.Diff([]map[string]bool{{"off": true, "gone": true, "stolen": true}, {"shop": true}}, []map[string]bool{names(keys), names(apps)}); diff != "" {
		t.Fatalf("revocations, -want +got:\n%s", diff)
	}
	b := p.take()
	if diff := cmp.Diff(map[string]bool{"on": true, "minted": true}, names(b.keys)); diff != "" || b.envoy || b.models || b.system {
		t.Fatalf("the rest: envoy %v, models %v, system %v, -want +got:\n%s", b.envoy, b.models, b.system, diff)
	}
	if b.seen[watchedAPIKey] != 9 || b.seen[watchedSecret] != 12 {
		t.Fatalf("seen %v", b.seen)
	}
	p.add(secret(system, ""), false, system) // a provider's credential
	if b := p.take(); !b.envoy || !b.models || b.seen[watchedAPIKey] != 9 {
		t.Fatalf("a credential: %+v", b)
	}
}
