package compile

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	"github.com/latchkey-dev/latchkey/internal/policy"
)

// The Secret and the status are watched apart: for a moment, either can be ahead of the other, and whoever may write the one may not be
// believed without the other.
func TestCredentialsAroundARotation(t *testing.T) {
	t.Parallel()
	earlier, present, foreign := policy.KeyHash{1}, policy.KeyHash{2}, policy.KeyHash{3}
	rotated := time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)
	status := func(now policy.KeyHash, rotation *v1alpha1.RotationStatus) func(*v1alpha1.APIKey) {
		return func(k *v1alpha1.APIKey) {
			k.Spec.Rotation = &v1alpha1.RotationSpec{Generation: 2, Overlap: &metav1.Duration{Duration: time.Hour}}
			k.Status.KeyFingerprint, k.Status.Rotation = Fingerprint(now), rotation
		}
	}
	settled := &v1alpha1.RotationStatus{Generation: 2, RotationTime: &metav1.Time{Time: rotated}, PreviousKeyFingerprint: Fingerprint(earlier)}
	pending := &v1alpha1.RotationStatus{Generation: 1, PendingKeyFingerprint: Fingerprint(present)}
	ended := &v1alpha1.RotationStatus{Generation: 2, RotationTime: &metav1.Time{Time: rotated}}
	before := func(s *corev1.Secret) {
		s.Data = map[string][]byte{"keyHash": []byte(earlier.String()), "keyPrefix": []byte("lk_old")}
	}
	after := func(s *corev1.Secret) {
		s.Annotations = map[string]string{v1alpha1.AnnotationRotationTime: rotated.Format(time.RFC3339)}
		s.Data = map[string][]byte{
			"keyHash": []byte(present.String()), "keyPrefix": []byte("lk_new"),
			"previousKeyHash": []byte(earlier.String()), "previousKeyPrefix": []byte("lk_old"),
		}
	}
	isPresent := policy.Credential{Hash: present, Prefix: "lk_new"}
	isEarlier := policy.Credential{Hash: earlier, Prefix: "lk_old", Ends: rotated.Add(time.Hour)}
	for name, tc := range map[string]struct {
		key    *v1alpha1.APIKey
		secret *corev1.Secret
		want   []policy.Credential
		lost   bool // the present key is
	}{
		"both are settled": {apiKey(status(present, settled)), keySecret(after), []policy.Credential{isPresent, isEarlier}, false},
		"the status vouches, the Secret is yet to come":                {apiKey(status(earlier, pending)), keySecret(before), []policy.Credential{{Hash: earlier, Prefix: "lk_old"}}, false},
		"the Secret has come, and the status vouches":                  {apiKey(status(earlier, pending)), keySecret(after), []policy.Credential{isPresent, isEarlier}, false},
		"the Secret is ahead of all that the status says":              {apiKey(status(earlier, nil)), keySecret(after), []policy.Credential{isEarlier}, true},
		"the status is ahead of the Secret":                            {apiKey(status(present, settled)), keySecret(before), []policy.Credential{isEarlier}, true},
		"the earlier key has ended, and its hash is brought back":      {apiKey(status(present, ended)), keySecret(after), []policy.Credential{isPresent}, false},
		"the earlier key has ended, and an old Secret is brought back": {apiKey(status(present, ended)), keySecret(before), nil, true},
		"somebody puts another's hash beside the present one": {apiKey(status(present, settled)), keySecret(after, func(s *corev1.Secret) {
			s.Data["previousKeyHash"] = []byte(foreign.String())
		}), []policy.Credential{isPresent}, false},
		"somebody puts another's hash in the present one's place": {apiKey(status(present, settled)), keySecret(after, func(s *corev1.Secret) {
			s.Data["keyHash"] = []byte(foreign.String())
		}), []policy.Credential{isEarlier}, true},
		"somebody moves the annotated time, which the status knows better": {apiKey(status(present, settled)), keySecret(after, func(s *corev1.Secret) {
			s.Annotations[v1alpha1.AnnotationRotationTime] = "2099-01-01T00:00:00Z"
		}), []policy.Credential{isPresent, isEarlier}, false},
		"no time is known of": {apiKey(status(earlier, pending)), keySecret(after, func(s *corev1.Secret) { s.Annotations = nil }), []policy.Credential{isPresent}, false},
		"the overlap is the default": {apiKey(status(present, settled), func(k *v1alpha1.APIKey) { k.Spec.Rotation.Overlap = nil }), keySecret(after),
			[]policy.Credential{isPresent, {Hash: earlier, Prefix: "lk_old", Ends: rotated.Add(24 * time.Hour)}}, false},
		"the Secret is another key's": {apiKey(status(present, settled)), keySecret(after, func(s *corev1.Secret) { s.Labels[v1alpha1.LabelAPIKey] = "other" }), nil, true},
		"a prefix that is none is not shown": {apiKey(status(present, settled)), keySecret(after, func(s *corev1.Secret) {
			s.Data["previousKeyPrefix"] = []byte("lk_waytoolongtobeaprefix")
		}), []policy.Credential{isPresent, {Hash: earlier, Ends: rotated.Add(time.Hour)}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, problem := Credentials(tc.key, tc.secret)
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("credentials (-want +got):\n%s", diff)
			}
			if (problem != nil) != tc.lost {
				t.Errorf("problem %v", problem)
			}
			compiled, _ := Key(tc.key, tc.secret)
			if (compiled != nil) != (len(tc.want) > 0) {
				t.Errorf("compiled %+v", compiled)
			}
		})
	}
}
