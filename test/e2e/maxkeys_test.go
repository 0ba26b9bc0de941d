package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	"github.com/latchkey-dev/latchkey/internal/cli"
)

// reveal takes a key's plaintext.
func reveal(t *testing.T, k *v1alpha1.APIKey) string {
	t.Helper()
	plaintext, err := cli.Claim(t.Context(), theStack.Client, client.ObjectKeyFromObject(k))
	if err != nil {
		t.Fatal(err)
	}
	return plaintext.Reveal()
}

// crowdedOut waits until the key says that its application has no place for it, and that somebody has to act. It returns the message.
func crowdedOut(t *testing.T, k *v1alpha1.APIKey) string {
	t.Helper()
	message := keyCondition(t, k, v1alpha1.ConditionReady, metav1.ConditionFalse, v1alpha1.ReasonMaxKeysReached)
	keyCondition(t, k, v1alpha1.ConditionStalled, metav1.ConditionTrue, v1alpha1.ReasonMaxKeysReached)
	keyCondition(t, k, v1alpha1.ConditionUsable, metav1.ConditionFalse, v1alpha1.ReasonMaxKeysReached)
	return message
}

func inForce(t *testing.T, k *v1alpha1.APIKey) {
	t.Helper()
	keyCondition(t, k, v1alpha1.ConditionUsable, metav1.ConditionTrue, v1alpha1.ReasonActive)
	keyCondition(t, k, v1alpha1.ConditionEnforced, metav1.ConditionTrue, v1alpha1.ReasonAcknowledged)
	if meta.FindStatusCondition(k.Status.Conditions, v1alpha1.ConditionStalled) != nil {
		t.Fatalf("it is in force and still stalled: %s", describe(k))
	}
}

func TestMaxKeys(t *testing.T) {
	tn := newTenant(t, func(s *v1alpha1.ApplicationSpec) { s.MaxKeys = new(int32(2)) })
	keys := []*v1alpha1.APIKey{tn.apply("one"), tn.apply("two"), tn.apply("three")}
	// All three at once, most often within one second: any two of them get the places, and which ones does not change any more.
	var in, out []*v1alpha1.APIKey
	eventually(t, "each has a place or is told that there is none", func() error {
		in, out = nil, nil
		for _, k := range keys {
			if err := theStack.Client.Get(t.Context(), client.ObjectKeyFromObject(k), k); err != nil {
				return err
			}
			switch usable(k) {
			case v1alpha1.ReasonActive:
				in = append(in, k)
			case v1alpha1.ReasonMaxKeysReached:
				out = append(out, k)
			}
		}
		if len(in) != 2 || len(out) != 1 {
			return fmt.Errorf("%d are usable and %d crowded out", len(in), len(out))
		}
		return nil
	})
	waiting := out[0]
	if said := crowdedOut(t, waiting); !strings.Contains(said, "Application shop lets 2 APIKeys be in force (spec.maxKeys)") ||
		!strings.Contains(said, "raise spec.maxKeys or delete an older APIKey") {
		t.Errorf("message %q", said)
	}
	if waiting.Status.SecretName != "" {
		t.Fatalf("it was minted: %+v", waiting.Status)
	}
	if err := theStack.Client.Get(t.Context(), client.ObjectKey{Namespace: waiting.Namespace, Name: waiting.SecretName()}, secretOf(t, in[0])); !apierrors.IsNotFound(err) {
		t.Fatalf("its Secret: %v", err)
	}
	plain := map[string]string{}
	for _, k := range in {
		inForce(t, k)
		plain[k.Name] = reveal(t, k)
		decided(t, plain[k.Name], request{}, http.StatusOK, "")
	}

	// One goes, and the one that waited is minted by itself.
	if err := theStack.Client.Delete(t.Context(), in[0]); err != nil {
		t.Fatal(err)
	}
	decided(t, plain[in[0].Name], request{}, http.StatusUnauthorized, "invalid_api_key")
	inForce(t, waiting)
	plain[waiting.Name] = reveal(t, waiting)
	decided(t, plain[waiting.Name], request{}, http.StatusOK, "")
	decided(t, plain[in[1].Name], request{}, http.StatusOK, "")

	// One that comes later waits, and takes the place of none. Creation times have whole seconds: it is younger beyond doubt.
	eventually(t, "another second", func() error {
		if time.Now().Unix() <= waiting.CreationTimestamp.Unix() {
			return errors.New("not yet")
		}
		return nil
	})
	late := tn.apply("a-later-one-whose-name-comes-first")
	crowdedOut(t, late)
	for _, k := range []*v1alpha1.APIKey{in[1], waiting} {
		decided(t, plain[k.Name], request{}, http.StatusOK, "")
	}

	// The cap is lowered: the younger one is refused at once, and works again with the same secret once it is raised.
	pair := []*v1alpha1.APIKey{in[1], waiting}
	slices.SortFunc(pair, func(a, b *v1alpha1.APIKey) int {
		if byAge := a.CreationTimestamp.Compare(b.CreationTimestamp.Time); byAge != 0 {
			return byAge
		}
		return strings.Compare(a.Name, b.Name)
	})
	elder, younger := pair[0], pair[1]
	patch(t, tn.application, `{"spec":{"maxKeys":1}}`)
	decided(t, plain[younger.Name], request{}, http.StatusUnauthorized, "invalid_api_key")
	decided(t, plain[elder.Name], request{}, http.StatusOK, "")
	if said := crowdedOut(t, younger); !strings.Contains(said, "lets 1 APIKey be in force") || !strings.Contains(said, "with the same secret") {
		t.Errorf("message %q", said)
	}
	patch(t, tn.application, `{"spec":{"maxKeys":0}}`)
	decided(t, plain[elder.Name], request{}, http.StatusUnauthorized, "invalid_api_key")
	crowdedOut(t, elder)
	patch(t, tn.application, `{"spec":{"maxKeys":2}}`)
	for _, k := range pair {
		decided(t, plain[k.Name], request{}, http.StatusOK, "")
		inForce(t, k)
	}
	crowdedOut(t, late)

	// Without a cap all are in force.
	patch(t, tn.application, `{"spec":{"maxKeys":null}}`)
	inForce(t, late)
	decided(t, reveal(t, late), request{}, http.StatusOK, "")

	// The one that waited from its creation has been told so once, whatever happened to the cap meanwhile.
	eventually(t, "one warning event", func() error {
		got, err := theStack.Kubectl(t.Context(), "get", "events", "-n", late.Namespace, "-o", "name", "--field-selector",
			"reason=MaxKeysReached,type=Warning,involvedObject.name="+late.Name)
		if err == nil && strings.Count(got, "\n") != 1 {
			err = fmt.Errorf("got %q", got)
		}
		return err
	})
}

// TestMaxKeysUnderARush creates many keys at once under a small cap: no more than the cap are ever minted.
func TestMaxKeysUnderARush(t *testing.T) {
	const most, rush = 3, 24
	tn := newTenant(t, func(s *v1alpha1.ApplicationSpec) { s.MaxKeys = new(int32(most)) })
	failures := make(chan error, rush)
	for i := range rush {
		go func() {
			failures <- theStack.Client.Create(t.Context(), &v1alpha1.APIKey{
				ObjectMeta: metav1.ObjectMeta{Namespace: tn.namespace, Name: fmt.Sprintf("rush-%02d", rush-i)},
				Spec: v1alpha1.APIKeySpec{
					ApplicationRef: v1alpha1.ApplicationReference{Name: tn.application.Name}, DisplayName: "Rush",
					Capabilities: allCapabilities, Models: v1alpha1.ModelScope{Access: v1alpha1.ModelAccessAll},
				},
			})
		}()
	}
	for range rush {
		if err := <-failures; err != nil {
			t.Fatal(err)
		}
	}
	var keys v1alpha1.APIKeyList
	eventually(t, "all of them are decided on", func() error {
		if err := theStack.Client.List(t.Context(), &keys, client.InNamespace(tn.namespace)); err != nil {
			return err
		}
		reasons := map[string]int{}
		for i := range keys.Items {
			reasons[usable(&keys.Items[i])]++
		}
		if reasons[v1alpha1.ReasonActive] != most || reasons[v1alpha1.ReasonMaxKeysReached] != rush-most {
			return fmt.Errorf("reasons %v", reasons)
		}
		return nil
	})
	for i := range keys.Items {
		if k := &keys.Items[i]; (k.Status.SecretName != "") != (usable(k) == v1alpha1.ReasonActive) {
			t.Errorf("%s is %s and has the Secret %q", k.Name, usable(k), k.Status.SecretName)
		}
	}
	// All that are in force go at once, and as many others step forward.
	for i := range keys.Items {
		if k := &keys.Items[i]; usable(k) == v1alpha1.ReasonActive {
			if err := theStack.Client.Delete(t.Context(), k); err != nil {
				t.Fatal(err)
			}
		}
	}
	eventually(t, "the next in line are minted", func() error {
		if err := theStack.Client.List(t.Context(), &keys, client.InNamespace(tn.namespace)); err != nil {
			return err
		}
		active := 0
		for i := range keys.Items {
			if usable(&keys.Items[i]) == v1alpha1.ReasonActive {
				active++
			}
		}
		if active != most || len(keys.Items) != rush-most {
			return fmt.Errorf("%d of %d are usable", active, len(keys.Items))
		}
		return nil
	})
}
