package gitops

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	kstatus "github.com/fluxcd/cli-utils/pkg/kstatus/status"
	lua "github.com/yuin/gopher-lua"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
)

var text = []v1alpha1.Capability{v1alpha1.CapabilityTextGeneration}

func keyOf(ns, name string, change ...func(*v1alpha1.APIKeySpec)) *v1alpha1.APIKey {
	k := &v1alpha1.APIKey{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}, Spec: v1alpha1.APIKeySpec{
		ApplicationRef: v1alpha1.ApplicationReference{Name: "shop"}, DisplayName: "Shop", Capabilities: text,
		Models: v1alpha1.ModelScope{Access: v1alpha1.ModelAccessAll},
	}}
	for _, c := range change {
		c(&k.Spec)
	}
	return k
}

func appOf(ns, name string, change ...func(*v1alpha1.ApplicationSpec)) *v1alpha1.Application {
	a := &v1alpha1.Application{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}, Spec: v1alpha1.ApplicationSpec{DisplayName: "Shop"}}
	for _, c := range change {
		c(&a.Spec)
	}
	return a
}

// TestHealth puts each kind into each of its states, and asks kstatus, by which Flux waits, and Argo CD's script.
func TestHealth(t *testing.T) {
	const (
		current, inProgress, failed, terminating = kstatus.CurrentStatus, kstatus.InProgressStatus, kstatus.FailedStatus, kstatus.TerminatingStatus
		healthy, progressing, degraded, paused   = "Healthy", "Progressing", "Degraded", "Suspended"
	)
	provider := func(name string) *v1alpha1.Provider {
		return &v1alpha1.Provider{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.ProviderSpec{Format: v1alpha1.ProviderFormatOpenAI, URL: system.ProviderURL() + "/v1"}}
	}
	model := func(name, calls, of string) *v1alpha1.Model {
		return &v1alpha1.Model{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.ModelSpec{
			Name: v1alpha1.ModelName(calls), ProviderRef: v1alpha1.ProviderReference{Name: of}, Capabilities: text,
		}}
	}
	reason := func(kind, want string) func(conditions []metav1.Condition) bool {
		return func(conditions []metav1.Condition) bool {
			c := meta.FindStatusCondition(conditions, kind)
			return c != nil && c.Reason == want
		}
	}
	const ready, usable, stalled, rotating, enforced = v1alpha1.ConditionReady, v1alpha1.ConditionUsable, v1alpha1.ConditionStalled, v1alpha1.ConditionRotating, v1alpha1.ConditionEnforced

	for name, tc := range map[string]struct {
		make  func(t *testing.T, ns string) client.Object
		in    func(conditions []metav1.Condition) bool // the state that is waited for
		flux  kstatus.Status
		argo  string
		waits bool // until it is enforced, too
	}{
		"a key that is in force": {func(t *testing.T, ns string) client.Object {
			k := keyOf(ns, "k")
			create(t, appOf(ns, "shop"), k)
			return k
		}, reason(usable, v1alpha1.ReasonActive), current, healthy, true},
		"a key whose application is missing": {func(t *testing.T, ns string) client.Object {
			k := keyOf(ns, "k")
			create(t, k)
			return k
		}, reason(ready, v1alpha1.ReasonApplicationNotFound), inProgress, progressing, false},
		"a key that may not keep its plaintext": {func(t *testing.T, ns string) client.Object {
			k := keyOf(ns, "k", func(s *v1alpha1.APIKeySpec) {
				s.Secret = &v1alpha1.SecretSpec{Retention: v1alpha1.SecretRetentionRetain}
			})
			create(t, appOf(ns, "shop"), k)
			return k
		}, reason(stalled, v1alpha1.ReasonRetainNotAllowed), failed, degraded, false},
		"a key beyond maxKeys": {func(t *testing.T, ns string) client.Object {
			k := keyOf(ns, "k")
			create(t, appOf(ns, "shop", func(s *v1alpha1.ApplicationSpec) { s.MaxKeys = new(int32(0)) }), k)
			return k
		}, reason(stalled, v1alpha1.ReasonMaxKeysReached), failed, degraded, false},
		"a key whose Secret is lost": {func(t *testing.T, ns string) client.Object {
			k := keyOf(ns, "k")
			create(t, appOf(ns, "shop"), k)
			until(t, "it is minted", func() error {
				return system.Client.Delete(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: k.SecretName()}})
			})
			return k
		}, reason(stalled, v1alpha1.ReasonSecretLost), failed, degraded, false},
		"a key whose Secret's name is taken": {func(t *testing.T, ns string) client.Object {
			k := keyOf(ns, "k")
			create(t, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: k.SecretName()}}, appOf(ns, "shop"), k)
			return k
		}, reason(stalled, v1alpha1.ReasonSecretConflict), failed, degraded, false},
		"a key that is disabled": {func(t *testing.T, ns string) client.Object {
			k := keyOf(ns, "k", func(s *v1alpha1.APIKeySpec) { s.State = v1alpha1.StateDisabled })
			create(t, appOf(ns, "shop"), k)
			return k
		}, reason(usable, v1alpha1.ReasonDisabled), current, paused, true},
		"a key that has expired": {func(t *testing.T, ns string) client.Object {
			k := keyOf(ns, "k", func(s *v1alpha1.APIKeySpec) { s.ExpirationTime = &metav1.Time{Time: time.Now().Add(-time.Hour)} })
			create(t, appOf(ns, "shop"), k)
			return k
		}, reason(usable, v1alpha1.ReasonExpired), current, paused, true},
		"a key of a disabled application": {func(t *testing.T, ns string) client.Object {
			k := keyOf(ns, "k")
			create(t, appOf(ns, "shop", func(s *v1alpha1.ApplicationSpec) { s.State = v1alpha1.StateDisabled }), k)
			return k
		}, reason(usable, v1alpha1.ReasonApplicationDisabled), current, paused, true},
		"a key whose limit is clamped": {func(t *testing.T, ns string) client.Object {
			k := keyOf(ns, "k", func(s *v1alpha1.APIKeySpec) {
				s.RateLimits = &v1alpha1.RateLimits{RequestsPerMinute: new(int64(1_000_000_000))}
			})
			create(t, appOf(ns, "shop"), k)
			return k
		}, reason(ready, v1alpha1.ReasonLimitClamped), current, healthy, true},
		"a key that was rotated": {func(t *testing.T, ns string) client.Object {
			k := keyOf(ns, "k")
			create(t, appOf(ns, "shop"), k)
			until(t, "it is minted", func() error {
				if err := system.Client.Get(t.Context(), client.ObjectKeyFromObject(k), k); err != nil || k.Status.SecretName == "" {
					return fmt.Errorf("%w, secret %q", err, k.Status.SecretName)
				}
				return nil
			})
			patch(t, k, `{"spec":{"rotation":{"generation":1}}}`)
			return k
		}, reason(rotating, v1alpha1.ReasonOverlap), current, healthy, true},
		"an application": {func(t *testing.T, ns string) client.Object {
			a := appOf(ns, "shop")
			create(t, a)
			return a
		}, reason(ready, v1alpha1.ReasonReconciled), current, healthy, true},
		"an application that is disabled": {func(t *testing.T, ns string) client.Object {
			a := appOf(ns, "shop", func(s *v1alpha1.ApplicationSpec) { s.State = v1alpha1.StateDisabled })
			create(t, a)
			return a
		}, reason(usable, v1alpha1.ReasonDisabled), current, paused, true},
		"an application that is being deleted, and has a key": {func(t *testing.T, ns string) client.Object {
			a, k := appOf(ns, "shop"), keyOf(ns, "k")
			create(t, a, k)
			until(t, "the key is minted", func() error {
				return system.Client.Get(t.Context(), client.ObjectKey{Namespace: ns, Name: k.SecretName()}, &corev1.Secret{})
			})
			if err := system.Client.Delete(t.Context(), a); err != nil {
				t.Fatal(err)
			}
			return a
		}, reason(ready, v1alpha1.ReasonKeysRemain), terminating, progressing, false},
		"a provider": {func(t *testing.T, ns string) client.Object {
			p := provider(ns)
			create(t, p)
			return p
		}, reason(ready, v1alpha1.ReasonReconciled), current, healthy, false},
		"a provider without its credential": {func(t *testing.T, ns string) client.Object {
			p := provider(ns)
			p.Spec.Credential = &v1alpha1.ProviderCredential{SecretRef: v1alpha1.SecretKeyReference{Name: "nowhere", Key: "apiKey"}}
			create(t, p)
			return p
		}, reason(ready, v1alpha1.ReasonCredentialNotFound), inProgress, progressing, false},
		"a model": {func(t *testing.T, ns string) client.Object {
			m := model(ns, ns, ns)
			create(t, provider(ns), m)
			return m
		}, reason(ready, v1alpha1.ReasonReconciled), current, healthy, true},
		"a model without its provider": {func(t *testing.T, ns string) client.Object {
			m := model(ns, ns, "nobody")
			create(t, m)
			return m
		}, reason(ready, v1alpha1.ReasonProviderNotFound), inProgress, progressing, false},
		"a model whose provider has no credential": {func(t *testing.T, ns string) client.Object {
			p, m := provider(ns), model(ns, ns, ns)
			p.Spec.Credential = &v1alpha1.ProviderCredential{SecretRef: v1alpha1.SecretKeyReference{Name: "nowhere", Key: "apiKey"}}
			create(t, p, m)
			return m
		}, reason(ready, v1alpha1.ReasonProviderNotReady), inProgress, progressing, false},
		"a key whose budget is used up": {func(t *testing.T, ns string) client.Object {
			k := keyOf(ns, "k", func(s *v1alpha1.APIKeySpec) { s.Budgets = &v1alpha1.Budgets{Daily: new(v1alpha1.Money("0"))} })
			create(t, appOf(ns, "shop"), k)
			return k
		}, reason(usable, v1alpha1.ReasonBudgetExhausted), current, healthy, true},
		"a key whose Secret is a copy of another's": {func(t *testing.T, ns string) client.Object {
			first, k := keyOf(ns, "first"), keyOf(ns, "k")
			create(t, appOf(ns, "shop"), first)
			var secret corev1.Secret
			until(t, "it is minted", func() error {
				return system.Client.Get(t.Context(), client.ObjectKey{Namespace: ns, Name: first.SecretName()}, &secret)
			})
			create(t, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: k.SecretName(), Labels: map[string]string{v1alpha1.LabelAPIKey: k.Name}}, Data: secret.Data})
			create(t, k)
			return k
		}, reason(stalled, v1alpha1.ReasonDuplicateKey), failed, degraded, false},
		"a model whose name is taken": {func(t *testing.T, ns string) client.Object {
			m := model(ns+"-2", ns, ns)
			create(t, provider(ns), model(ns+"-1", ns, ns), m)
			return m
		}, reason(stalled, v1alpha1.ReasonModelNameTaken), failed, degraded, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			obj := tc.make(t, newNamespace(t))
			var u *unstructured.Unstructured
			until(t, "its state is reached", func() error {
				u = read(t, obj)
				list := conditionsOf(t, u)
				generation, _, _ := unstructured.NestedInt64(u.Object, "status", "observedGeneration")
				if !tc.in(list) || generation != u.GetGeneration() || (tc.waits && !meta.IsStatusConditionTrue(list, enforced)) {
					return fmt.Errorf("it is %v", u.Object["status"])
				}
				return nil
			})
			judge(t, u, tc.flux, tc.argo)
		})
	}
}

// TestSystemPolicysHealth is alone: there is but one.
func TestSystemPolicysHealth(t *testing.T) {
	p := &v1alpha1.SystemPolicy{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.SystemPolicyName}, Spec: v1alpha1.SystemPolicySpec{Currency: "EUR"}}
	create(t, p)
	t.Cleanup(func() { deleteSystemPolicy(t) })
	var u *unstructured.Unstructured
	until(t, "it is enforced", func() error {
		if u = read(t, p); !meta.IsStatusConditionTrue(conditionsOf(t, u), v1alpha1.ConditionEnforced) {
			return fmt.Errorf("it is %v", u.Object["status"])
		}
		return nil
	})
	judge(t, u, kstatus.CurrentStatus, "Healthy")
	patch(t, p, `{"spec":{"timeZone":"Europe/Nowhere"}}`)
	until(t, "it is stalled", func() error {
		if u = read(t, p); !meta.IsStatusConditionTrue(conditionsOf(t, u), v1alpha1.ConditionStalled) {
			return fmt.Errorf("it is %v", u.Object["status"])
		}
		return nil
	})
	judge(t, u, kstatus.FailedStatus, "Degraded")
}

// TestWhatNobodyHasLookedAtIsNotReady stops the manager, and makes one of each kind.
func TestWhatNobodyHasLookedAtIsNotReady(t *testing.T) {
	manager := system.Managers[0]
	if err := manager.Stop(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := manager.Start(); err != nil {
			t.Error(err)
		}
	}()
	ns := newNamespace(t)
	for _, obj := range []client.Object{
		keyOf(ns, "new"), appOf(ns, "new"),
		&v1alpha1.Provider{ObjectMeta: metav1.ObjectMeta{Name: ns}, Spec: v1alpha1.ProviderSpec{Format: v1alpha1.ProviderFormatOpenAI, URL: "https://provider.test/v1"}},
		&v1alpha1.Model{ObjectMeta: metav1.ObjectMeta{Name: ns}, Spec: v1alpha1.ModelSpec{ProviderRef: v1alpha1.ProviderReference{Name: ns}, Capabilities: text}},
		&v1alpha1.SystemPolicy{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.SystemPolicyName}, Spec: v1alpha1.SystemPolicySpec{Currency: "EUR"}},
	} {
		create(t, obj)
		judge(t, read(t, obj), kstatus.InProgressStatus, "Progressing")
	}
	deleteSystemPolicy(t)
}

func deleteSystemPolicy(t *testing.T) {
	t.Helper()
	if err := system.Client.Delete(contextOf(t), &v1alpha1.SystemPolicy{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.SystemPolicyName}}); err != nil {
		t.Errorf("delete the system policy: %v", err)
	}
}

func read(t *testing.T, obj client.Object) *unstructured.Unstructured {
	t.Helper()
	gvk, err := system.Client.GroupVersionKindFor(obj)
	if err != nil {
		t.Fatal(err)
	}
	u := &unstructured.Unstructured{}
	u.SetGroupVersionKind(gvk)
	if err := system.Client.Get(t.Context(), client.ObjectKeyFromObject(obj), u); err != nil {
		t.Fatal(err)
	}
	return u
}

func conditionsOf(t *testing.T, u *unstructured.Unstructured) (list []metav1.Condition) {
	t.Helper()
	found, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
	raw, err := json.Marshal(found)
	if err == nil {
		err = json.Unmarshal(raw, &list)
	}
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func judge(t *testing.T, u *unstructured.Unstructured, flux kstatus.Status, argo string) {
	t.Helper()
	result, err := kstatus.Compute(u)
	if err != nil {
		t.Fatal(err)
	}
	if result.Status != flux {
		t.Errorf("%s: kstatus says %s, %s; want %s", u.GetKind(), result.Status, result.Message, flux)
	}
	if status, message := argoHealth(t, u); status != argo || message == "" {
		t.Errorf("%s: Argo CD says %s, %q; want %s", u.GetKind(), status, message, argo)
	}
}

// argoHealth runs the script of the kind as Argo CD does: obj is the object, and what is returned has status and message.
func argoHealth(t *testing.T, u *unstructured.Unstructured) (status, message string) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(system.Root, "config", "gitops", "argocd", "health.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var config corev1.ConfigMap
	if err := yaml.UnmarshalStrict(raw, &config); err != nil {
		t.Fatal(err)
	}
	script, there := config.Data["resource.customizations.health.latchkey.dev_"+u.GetKind()]
	if !there {
		t.Fatalf("there is no script for %s", u.GetKind())
	}
	l := lua.NewState(lua.Options{SkipOpenLibs: true})
	defer l.Close()
	for name, open := range map[string]lua.LGFunction{lua.LoadLibName: lua.OpenPackage, lua.BaseLibName: lua.OpenBase, lua.TabLibName: lua.OpenTable} {
		if err := l.CallByParam(lua.P{Fn: l.NewFunction(open), Protect: true}, lua.LString(name)); err != nil {
			t.Fatal(err)
		}
	}
	l.SetGlobal("obj", luaOf(l, u.Object))
	if err := l.DoString(script); err != nil {
		t.Fatal(err)
	}
	health, ok := l.Get(-1).(*lua.LTable)
	if !ok {
		t.Fatalf("the script returned %v", l.Get(-1))
	}
	return lua.LVAsString(health.RawGetString("status")), lua.LVAsString(health.RawGetString("message"))
}

func luaOf(l *lua.LState, value any) lua.LValue {
	switch v := value.(type) {
	case map[string]any:
		table := l.NewTable()
		for name, element := range v {
			table.RawSetString(name, luaOf(l, element))
		}
		return table
	case []any:
		table := l.NewTable()
		for _, element := range v {
			table.Append(luaOf(l, element))
		}
		return table
	case string:
		return lua.LString(v)
	case int64:
		return lua.LNumber(v)
	case float64:
		return lua.LNumber(v)
	case bool:
		return lua.LBool(v)
	}
	return lua.LNil
}
