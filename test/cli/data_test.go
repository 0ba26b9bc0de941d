package cli

import (
	"context"
	"crypto/rand"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	"github.com/latchkey-dev/latchkey/internal/key"
)

// minted are the plaintexts that a test has handed out, by the key's name.
type minted struct {
	mu   sync.Mutex
	keys map[string]string
}

func (m *minted) of(name string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.keys[name]
}

// inPlaceOfManager mints the keys of a namespace and writes that all is enforced, until the test ends.
func inPlaceOfManager(t *testing.T, namespace string) *minted {
	t.Helper()
	m := &minted{keys: map[string]string{}}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = wait.PollUntilContextCancel(ctx, 20*time.Millisecond, true, func(ctx context.Context) (bool, error) {
			m.carryOut(ctx, t, namespace)
			return false, nil
		})
	}()
	t.Cleanup(func() { cancel(); <-done })
	return m
}

func (m *minted) carryOut(ctx context.Context, t *testing.T, namespace string) {
	var keys v1alpha1.APIKeyList
	if err := server.client.List(ctx, &keys, client.InNamespace(namespace)); err != nil {
		return // the test ends
	}
	for i := range keys.Items {
		k := &keys.Items[i]
		if k.Status.ObservedGeneration == k.Generation {
			continue
		}
		if err := m.mint(ctx, k); err != nil && ctx.Err() == nil && !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
			t.Errorf("mint: %v", err)
		}
	}
	var apps v1alpha1.ApplicationList
	if err := server.client.List(ctx, &apps, client.InNamespace(namespace)); err != nil {
		return
	}
	for i := range apps.Items {
		a := &apps.Items[i]
		if a.Status.ObservedGeneration == a.Generation {
			continue
		}
		a.Status.ObservedGeneration = a.Generation
		inOrder(&a.Status.Conditions, a.Generation)
		if err := server.client.Status().Update(ctx, a); err != nil && ctx.Err() == nil && !apierrors.IsConflict(err) {
			t.Errorf("write the status: %v", err)
		}
	}
}

func (m *minted) mint(ctx context.Context, k *v1alpha1.APIKey) error {
	if k.Status.SecretName == "" {
		plaintext, err := key.Mint(rand.Reader)
		if err != nil {
			return err
		}
		secret := &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Namespace: k.Namespace, Name: k.SecretName(), Labels: map[string]string{v1alpha1.LabelAPIKey: k.Name}},
			Data:       map[string][]byte{v1alpha1.SecretDataAPIKey: []byte(plaintext.Reveal())},
		}
		if err := server.client.Create(ctx, secret); err != nil && !apierrors.IsAlreadyExists(err) {
			return err
		} else if err == nil {
			m.mu.Lock()
			m.keys[k.Name] = plaintext.Reveal()
			m.mu.Unlock()
		}
		k.Status.SecretName, k.Status.KeyPrefix = secret.Name, plaintext.Prefix()
		if g := k.RotationGeneration(); g > 0 {
			k.Status.Rotation = &v1alpha1.RotationStatus{Generation: g}
		}
	}
	if err := m.rotate(ctx, k); err != nil {
		return err
	}
	k.Status.ObservedGeneration = k.Generation
	inOrder(&k.Status.Conditions, k.Generation)
	return server.client.Status().Update(ctx, k)
}

// rotate replaces the key where a higher generation asks for it, and writes until when the earlier one is honoured.
func (m *minted) rotate(ctx context.Context, k *v1alpha1.APIKey) error {
	r := k.Status.Rotation
	if k.RotationGeneration() == 0 {
		return nil
	}
	if r == nil {
		r = &v1alpha1.RotationStatus{}
	}
	if k.RotationGeneration() > r.Generation {
		plaintext, err := key.Mint(rand.Reader)
		if err != nil {
			return err
		}
		secret := &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Namespace: k.Namespace, Name: k.Status.SecretName, Labels: map[string]string{v1alpha1.LabelAPIKey: k.Name}},
			Data:       map[string][]byte{v1alpha1.SecretDataAPIKey: []byte(plaintext.Reveal())},
		}
		if err := server.client.Update(ctx, secret); apierrors.IsNotFound(err) {
			err = server.client.Create(ctx, secret)
			if err != nil {
				return err
			}
		} else if err != nil {
			return err
		}
		m.mu.Lock()
		m.keys[k.Name] = plaintext.Reveal()
		m.mu.Unlock()
		r = &v1alpha1.RotationStatus{
			Generation: k.RotationGeneration(), RotationTime: new(metav1.NewTime(time.Now().Truncate(time.Second))),
			PreviousKeyPrefix: k.Status.KeyPrefix, PreviousKeyFingerprint: "0123456789abcdef",
		}
		k.Status.KeyPrefix = plaintext.Prefix()
	}
	if r.RotationTime != nil {
		r.PreviousEndTime = new(metav1.NewTime(r.RotationTime.Add(k.Overlap())))
		if !time.Now().Before(r.PreviousEndTime.Time) {
			r.PreviousKeyFingerprint = ""
		}
	}
	k.Status.Rotation = r
	return nil
}

// inOrder writes that all has been carried out.
func inOrder(conditions *[]metav1.Condition, generation int64) {
	for which, reason := range map[string]string{
		v1alpha1.ConditionReady: v1alpha1.ReasonReconciled, v1alpha1.ConditionUsable: v1alpha1.ReasonActive, v1alpha1.ConditionEnforced: v1alpha1.ReasonAcknowledged,
	} {
		meta.SetStatusCondition(conditions, metav1.Condition{
			Type: which, Status: metav1.ConditionTrue, Reason: reason, Message: "in order", ObservedGeneration: generation,
		})
	}
}

// newKey creates an application and a key of it, in order.
func newKey(t *testing.T, namespace, name string, change ...func(*v1alpha1.APIKey)) *v1alpha1.APIKey {
	t.Helper()
	app := &v1alpha1.Application{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "shop"}, Spec: v1alpha1.ApplicationSpec{DisplayName: "Shop"}}
	if err := server.client.Create(t.Context(), app); err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	k := &v1alpha1.APIKey{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec: v1alpha1.APIKeySpec{
			ApplicationRef: v1alpha1.ApplicationReference{Name: "shop"}, DisplayName: v1alpha1.DisplayName("Key " + name),
			Capabilities: []v1alpha1.Capability{v1alpha1.CapabilityTextGeneration}, Models: v1alpha1.ModelScope{Access: v1alpha1.ModelAccessAll},
		},
	}
	for _, c := range change {
		c(k)
	}
	if err := server.client.Create(t.Context(), k); err != nil {
		t.Fatal(err)
	}
	if err := (&minted{keys: map[string]string{}}).mint(t.Context(), k); err != nil {
		t.Fatal(err)
	}
	return k
}

// used writes what a key has used today and this month, in UTC.
func used(t *testing.T, k *v1alpha1.APIKey, day, month v1alpha1.Spend) {
	t.Helper()
	now := time.Now().UTC()
	k.Status.Usage = &v1alpha1.Usage{
		Day:          &v1alpha1.UsageTotals{Period: now.Format(time.DateOnly), Requests: 12, Tokens: 3456, Spent: day},
		Month:        &v1alpha1.UsageTotals{Period: now.Format("2006-01"), Requests: 120, Tokens: 34567, Spent: month},
		LastUsedTime: new(metav1.NewTime(now.Truncate(time.Second))),
	}
	if err := server.client.Status().Update(t.Context(), k); err != nil {
		t.Fatal(err)
	}
}

// get reads an object again.
func get[T client.Object](t *testing.T, obj T) T {
	t.Helper()
	if err := server.client.Get(t.Context(), client.ObjectKeyFromObject(obj), obj); err != nil {
		t.Fatal(err)
	}
	return obj
}

func keyNamed(namespace, name string) *v1alpha1.APIKey {
	return &v1alpha1.APIKey{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
}
