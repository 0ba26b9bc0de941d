package story

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
)

// TestLostKeyIsRotated: every command that meets a key whose Secret is gone offers a rotation, and that brings a new key.
func TestLostKeyIsRotated(t *testing.T) {
	namespace := newNamespace(t)
	s := newShell(t, namespace)
	s.must("export KUBECONFIG=$PWD/.run/kubeconfig PATH=$PWD/bin:$PATH LATCHKEY_GATEWAY=" + usualGateway)
	s.must("export OPENAI_API_KEY=$(kubectl latchkey create key lost --app shop --create-app)")
	s.must(`kubectl latchkey try --model gpt-5-mini "Say hello."`)

	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "lost-api-key"}}
	if err := system.Client.Delete(t.Context(), secret); err != nil {
		t.Fatal(err)
	}
	k := &v1alpha1.APIKey{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "lost"}}
	await(t, k, "the key is lost", func() bool {
		ready := meta.FindStatusCondition(k.Status.Conditions, v1alpha1.ConditionReady)
		return ready != nil && ready.Reason == v1alpha1.ReasonSecretLost
	})
	offer := "kubectl latchkey rotate lost -n " + namespace
	for _, line := range []string{
		"kubectl latchkey why lost", "kubectl latchkey doctor", "kubectl latchkey reveal lost", "kubectl latchkey describe key lost",
	} {
		out, code := s.run(line)
		if describes := strings.Contains(line, "describe"); (code == 0) != describes || !strings.Contains(out, offer) {
			t.Errorf("%s: exit code %d, and no %q:\n%s", line, code, offer, out)
		}
	}
	s.must("export OPENAI_API_KEY=$(kubectl latchkey rotate lost)")
	s.must(`kubectl latchkey try --model gpt-5-mini "Say hello."`)
	s.must("kubectl latchkey why lost")
	if err := system.Client.Get(t.Context(), client.ObjectKeyFromObject(k), k); err != nil || k.Spec.Rotation.Generation != 1 || meta.IsStatusConditionTrue(k.Status.Conditions, v1alpha1.ConditionStalled) {
		t.Errorf("%v: spec.rotation %+v, conditions %+v", err, k.Spec.Rotation, k.Status.Conditions)
	}
}

// must runs a line that has to go well.
func (s *shell) must(line string) {
	s.t.Helper()
	if out, code := s.run(line); code != 0 || codeOf(out) != 0 {
		s.t.Fatalf("%s: exit code %d\n%s", line, code, out)
	}
}
