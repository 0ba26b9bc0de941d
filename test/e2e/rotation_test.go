package e2e

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	"github.com/latchkey-dev/latchkey/internal/cli"
)

// rotate raises the key's generation, waits until the new secret is enforced, and reveals it.
func rotate(t *testing.T, k *v1alpha1.APIKey, generation int64, overlap time.Duration) string {
	t.Helper()
	patch(t, k, fmt.Sprintf(`{"spec":{"rotation":{"generation":%d,"overlap":%q}}}`, generation, overlap))
	wanted := k.Generation
	if err := await(t.Context(), k, func() bool {
		return k.Status.ObservedGeneration >= wanted && k.Status.Rotation != nil && k.Status.Rotation.Generation == generation &&
			isTrue(k.Status.Conditions, v1alpha1.ConditionEnforced)
	}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	plaintext, err := cli.Claim(ctx, theStack.Client, client.ObjectKeyFromObject(k))
	if err != nil {
		t.Fatal(err)
	}
	return plaintext.Reveal()
}

func TestRotationKeepsIdentityAndLedger(t *testing.T) {
	m := pricedModel(t, perMillion{input: "0", output: "10"}.spec())
	tn := newTenant(t)
	k, first := tn.newKey("rotated", func(s *v1alpha1.APIKeySpec) { s.Budgets = &v1alpha1.Budgets{Daily: new(v1alpha1.Money("0.003"))} })
	r := request{body: chat(m.Name, "sim:output-tokens=100")}
	if a := call(t, first, r); a.status != http.StatusOK {
		t.Fatal(a)
	}
	uid := k.UID
	second := rotate(t, k, 1, time.Hour)
	if first == second || k.UID != uid {
		t.Fatal("not rotated")
	}
	// At once, since the condition said so.
	if a := call(t, second, r); a.status != http.StatusOK {
		t.Fatal(a)
	}
	for name, key := range map[string]string{"earlier": first, "new": second} {
		if got := state(t, key).Data.UsageDaily.String(); got != "0.002" {
			t.Errorf("spent as the %s key is told: %s", name, got)
		}
	}
	if a := call(t, first, r); a.status != http.StatusOK {
		t.Fatal(a)
	}
	// Used up by the two of them: neither passes, nor does one that is minted now.
	third := rotate(t, k, 2, time.Hour)
	for name, key := range map[string]string{"earlier": second, "new": third} {
		if a := call(t, key, r); a.status != http.StatusTooManyRequests || a.code() != "insufficient_quota" {
			t.Errorf("the %s key: %v", name, a)
		}
	}
	if a := call(t, first, r); a.status != http.StatusUnauthorized || a.code() != "invalid_api_key" {
		t.Errorf("the key before the earlier one: %v", a)
	}
	if err := await(t.Context(), k, func() bool {
		return k.Status.Usage != nil && k.Status.Usage.Day != nil && k.Status.Usage.Day.Spent == "0.003"
	}); err != nil {
		t.Error(err)
	}
	eventually(t, "an event for each rotation", func() error {
		out, err := theStack.Kubectl(t.Context(), "get", "events", "-n", k.Namespace, "--field-selector", "reason=KeyRotated,type=Normal", "-o", "name")
		if err == nil && strings.Count(out, "\n") != 2 {
			err = fmt.Errorf("got %q", out)
		}
		return err
	})
}

func TestTheEarlierKeyPassesWhileItIsReplaced(t *testing.T) {
	tn := newTenant(t)
	for i := range 5 {
		k, first := tn.newKey(fmt.Sprintf("in-use-%d", i))
		decided(t, first, request{}, http.StatusOK, "")
		passing := watch(t, first, http.StatusOK)
		rotate(t, k, 1, time.Hour)
		passing.end(t, "with the earlier key")
	}
}

func TestAKeyWithoutOverlapEndsAtOnce(t *testing.T) {
	tn := newTenant(t)
	k, leaked := tn.newKey("leaked")
	decided(t, leaked, request{}, http.StatusOK, "")
	fresh := rotate(t, k, 1, 0)
	for key, status := range map[string]int{leaked: http.StatusUnauthorized, fresh: http.StatusOK} {
		if a := call(t, key, request{}); a.status != status {
			t.Errorf("got %v, want %d", a, status)
		}
	}
}

// The control plane is away when the overlap ends, and the enforcer has come back from its disk meanwhile.
func TestAnEarlierKeyEndsOnTimeWithoutAControlPlane(t *testing.T) {
	tn := newTenant(t)
	k, first := tn.newKey("on-time")
	second := rotate(t, k, 1, 10*time.Second)
	ends := k.Status.Rotation.PreviousEndTime.Time
	if c := k.Status.Conditions; !isTrue(c, v1alpha1.ConditionRotating) {
		t.Fatalf("conditions %+v", c)
	}
	manager := theStack.Managers[0]
	if err := manager.Kill(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // for the tests that follow, if this one fails
		if manager.PID() == 0 {
			_ = manager.Start()
		}
	})
	if err := theStack.Enforcer.Restart(); err != nil {
		t.Fatal(err)
	}
	if err := theStack.AwaitEnforcer(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the new key passes after the enforcer's restart", func() error {
		a, err := send(t, request{}.build(t, second))
		if err == nil && a.status != http.StatusOK {
			err = fmt.Errorf("%v", a)
		}
		return err
	})
	var before, after int
	for after < 20 {
		if time.Now().After(ends.Add(patience)) {
			t.Fatal("its end has long passed")
		}
		sent := time.Now()
		a := call(t, first, request{})
		switch got := time.Now(); {
		case got.Before(ends): // decided before the end, whenever that was
			before++
			if a.status != http.StatusOK {
				t.Fatalf("%s before its end: %v", ends.Sub(sent), a)
			}
		case !sent.Before(ends):
			after++
			if a.status != http.StatusUnauthorized || a.code() != "api_key_expired" || !strings.Contains(a.body, ends.UTC().Format(time.RFC3339)+": use the new one") {
				t.Fatalf("%s after its end: %v", sent.Sub(ends), a)
			}
		}
	}
	t.Logf("%d calls before its end passed, %d after it were refused", before, after)
	decided(t, second, request{}, http.StatusOK, "")
	if err := manager.Start(); err != nil {
		t.Fatal(err)
	}
	keyCondition(t, k, v1alpha1.ConditionRotating, metav1.ConditionFalse, v1alpha1.ReasonPreviousKeyEnded)
	if secret := secretOf(t, k); secret.Data[v1alpha1.SecretDataPreviousKeyHash] != nil {
		t.Error("the earlier hash is still there")
	}
	decided(t, first, request{}, http.StatusUnauthorized, "invalid_api_key") // unknown by now
	decided(t, second, request{}, http.StatusOK, "")
}

// Many keys are rotated at once, and each has both of its secrets as soon as its conditions say so.
func TestManyRotations(t *testing.T) {
	tn := newTenant(t)
	keys := make([]*v1alpha1.APIKey, 30)
	firsts := make([]string, len(keys))
	for i := range keys {
		keys[i], firsts[i] = tn.newKey(fmt.Sprintf("key-%d", i))
	}
	for _, k := range keys {
		patch(t, k, `{"spec":{"rotation":{"generation":1}}}`)
	}
	for i, k := range keys {
		if err := await(t.Context(), k, func() bool {
			return k.Status.Rotation != nil && k.Status.Rotation.Generation == 1 && isTrue(k.Status.Conditions, v1alpha1.ConditionEnforced) && k.Status.ObservedGeneration == k.Generation
		}); err != nil {
			t.Fatal(err)
		}
		second := string(secretOf(t, k).Data[v1alpha1.SecretDataAPIKey])
		for _, key := range []string{firsts[i], second} {
			if a := call(t, key, request{}); a.status != http.StatusOK {
				t.Errorf("%s: %v", k.Name, a)
			}
		}
	}
}
