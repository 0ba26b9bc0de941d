package cli

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
)

// TestReaderOfOneNamespace has somebody who may read the keys of one namespace, and nothing else.
func TestReaderOfOneNamespace(t *testing.T) {
	ns := newNamespace(t)
	used(t, newKey(t, ns, "mine", withBudget("5")), "1", "1")
	role := &rbacv1.Role{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "reader"},
		Rules: []rbacv1.PolicyRule{{
			APIGroups: []string{v1alpha1.GroupVersion.Group}, Resources: []string{"apikeys", "applications"}, Verbs: []string{"get", "list", "watch"},
		}},
	}
	binding := &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "reader"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: "reader"},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: "rita"}},
	}
	if err := server.client.Create(t.Context(), role); err != nil {
		t.Fatal(err)
	}
	if err := server.client.Create(t.Context(), binding); err != nil {
		t.Fatal(err)
	}
	rita := func(args ...string) outcome { return latchkey(t, ns, append([]string{"--as", "rita"}, args...)...) }
	list := rita("get", "keys")
	for deadline := time.Now().Add(patience); list.code != 0 && time.Now().Before(deadline); list = rita("get", "keys") {
		time.Sleep(20 * time.Millisecond) // until the authorizer has seen the role
	}
	list.want(t, 0, "mine", "1/5")
	list.says(t, "you may not read the SystemPolicy")
	rita("why", "mine").want(t, 0, "1 of 5 USD used")
	rita("describe", "key", "mine").want(t, 0, "Key mine")
	for name, test := range map[string]struct {
		args []string
		code int
	}{
		"all namespaces": {[]string{"get", "keys", "-A"}, 1}, "disable": {[]string{"disable", "mine"}, 1}, "reveal": {[]string{"reveal", "mine"}, 1},
		"create": {[]string{"create", "key", "new", "--app", "shop"}, 1}, "delete": {[]string{"delete", "key", "mine", "--confirm", "mine"}, 1},
		"why, for a model": {[]string{"why", "mine", "--model", "x"}, 2},
	} {
		got := rita(test.args...)
		if got.code != test.code || got.stdout != "" {
			t.Errorf("%s: exit code %d, stdout %q", name, got.code, got.stdout)
		}
		got.says(t, "Error from server (Forbidden)", "You lack this permission")
	}
	doctor := rita("doctor", "--installation-namespace", ns)
	for _, want := range []string{"all five are served", "you may not: create apikeys", "you may not read this"} {
		if !strings.Contains(doctor.stdout, want) {
			t.Errorf("doctor lacks %q:\n%s", want, doctor.stdout)
		}
	}
}

func TestAKeyThatCannotBeEnforcedIsNotWaitedFor(t *testing.T) {
	ns := newNamespace(t)
	k := newKey(t, ns, "stuck")
	meta.SetStatusCondition(&k.Status.Conditions, metav1.Condition{
		Type: v1alpha1.ConditionStalled, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonSecretLost, Message: "the Secret is gone", ObservedGeneration: 2,
	})
	if err := server.client.Status().Update(t.Context(), k); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	got := latchkey(t, ns, "disable", "stuck", "--timeout", "10m")
	got.want(t, 1, "disabled")
	got.says(t, "cannot be enforced: the Secret is gone")
	if time.Since(began) > patience {
		t.Error("it was waited for")
	}
}

func TestDescribeShowsEvents(t *testing.T) {
	ns := newNamespace(t)
	k := newKey(t, ns, "eventful")
	if err := server.client.Create(t.Context(), &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Namespace: ns, Name: "eventful.1"},
		InvolvedObject: corev1.ObjectReference{Kind: "APIKey", Namespace: ns, Name: k.Name, UID: k.UID, APIVersion: v1alpha1.GroupVersion.String()},
		Type:           corev1.EventTypeWarning, Reason: v1alpha1.ReasonLimitClamped, Message: "clamped to\n6000", LastTimestamp: metav1.Now(),
	}); err != nil {
		t.Fatal(err)
	}
	latchkey(t, ns, "describe", "key", "eventful").want(t, 0, "Events:", "LimitClamped   clamped to 6000")
}
