package controllers

import (
	"context"
	"fmt"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	"github.com/latchkey-dev/latchkey/internal/compile"
	"github.com/latchkey-dev/latchkey/internal/key"
	"github.com/latchkey-dev/latchkey/internal/policy"
)

// rotate replaces the key where a higher generation asks for it, and lets the earlier one go once its time has passed.
//
// First the status vouches for the new key by its fingerprint, then the Secret takes it in beside the earlier one's hash, then the status
// calls it the present one. Each write names the version that it was decided on. Whichever is the last that a manager lived to make, the
// next one goes on from there, and at no moment is a key believed that nobody vouched for.
func (r *APIKeyReconciler) rotate(ctx context.Context, s *keyScope) error {
	if rotationIsDue(s) {
		if err := r.replaceKey(ctx, s); err != nil {
			return err
		}
	}
	return r.endPrevious(ctx, s)
}

// rotationIsDue reports whether a generation was asked for that has not been carried out. A key that has not been minted yet is minted
// instead, and one that may not keep its plaintext as it asks to is left as it is.
func rotationIsDue(s *keyScope) bool {
	done := int64(0)
	if s.status.Rotation != nil {
		done = s.status.Rotation.Generation
	}
	retainRefused := s.key.Retention() == v1alpha1.SecretRetentionRetain && !s.mayRetain()
	return s.status.SecretName != "" && s.key.RotationGeneration() > done && !retainRefused
}

func (r *APIKeyReconciler) replaceKey(ctx context.Context, s *keyScope) error {
	// What the cache has not heard of yet could be a rotation that was carried out.
	name := types.NamespacedName{Namespace: s.key.Namespace, Name: s.key.SecretName()}
	live := &corev1.Secret{}
	switch err := r.readPastCache(ctx, name, live); {
	case apierrors.IsNotFound(err):
		s.secret = nil
	case err != nil:
		return fmt.Errorf("get secret %s: %w", name, err)
	default:
		s.secret = live
		if live.Labels[v1alpha1.LabelAPIKey] != s.key.Name && !metav1.IsControlledBy(live, s.key) {
			return nil // somebody else's; conclude says so
		}
		if hash, problem := compile.KeyHash(s.key, live); problem == nil && isPending(s.key, hash) {
			return r.adopt(ctx, s) // put there by a manager that did not live to say so
		}
	}
	plaintext, err := key.Mint(r.Random)
	if err != nil {
		return err
	}
	if s.status.Rotation == nil {
		s.status.Rotation = &v1alpha1.RotationStatus{}
	}
	s.status.Rotation.PendingKeyFingerprint = compile.Fingerprint(policy.KeyHash(plaintext.Hash()))
	if err := r.applyStatus(ctx, s); err != nil {
		return err
	}
	s.key.Status = *s.status.DeepCopy()
	if err := r.putNewKey(ctx, s, plaintext); err != nil {
		return err
	}
	until := "is refused from now on"
	if earlier := compile.EarlierKey(s.key, s.secret); earlier != nil {
		until = "is honoured until " + earlier.Ends.UTC().Format(time.RFC3339)
	}
	r.Recorder.Eventf(s.key, s.secret, corev1.EventTypeNormal, v1alpha1.ReasonKeyRotated, "Rotate",
		"rotated: Secret %s holds the new key %s…, and the earlier one, %s…, %s", s.secret.Name, plaintext.Prefix(), s.status.KeyPrefix, until)
	return r.adopt(ctx, s)
}

// putNewKey writes the new key into the Secret, as something that nobody has taken yet. Where the Secret is gone it is made anew.
func (r *APIKeyReconciler) putNewKey(ctx context.Context, s *keyScope, plaintext key.Plaintext) error {
	secret := r.newSecret(s, plaintext)
	now := r.Clock.Now().UTC().Truncate(time.Second)
	if secret.Annotations == nil {
		secret.Annotations = map[string]string{}
	}
	secret.Annotations[v1alpha1.AnnotationRotationTime] = now.Format(time.RFC3339)
	if s.secret == nil {
		if err := r.Client.Create(ctx, secret); err != nil {
			return fmt.Errorf("create secret %s/%s: %w", secret.Namespace, secret.Name, err)
		}
		forget(secret)
		s.secret = secret
		return nil
	}
	marks := map[string]any{v1alpha1.AnnotationRevealed: nil, v1alpha1.AnnotationRemoval: nil, v1alpha1.AnnotationRevealDeadline: nil}
	for name, value := range secret.Annotations {
		marks[name] = value
	}
	data := map[string]any{v1alpha1.SecretDataPreviousKeyHash: nil, v1alpha1.SecretDataPreviousKeyPrefix: nil}
	for name, value := range secret.Data {
		data[name] = value
	}
	if hash, prefix := presentKey(s); hash != nil && s.key.Overlap() > 0 {
		data[v1alpha1.SecretDataPreviousKeyHash], data[v1alpha1.SecretDataPreviousKeyPrefix] = hash, prefix
	}
	return r.patchSecret(ctx, s, map[string]any{
		"metadata": map[string]any{"annotations": marks},
		"data":     data,
	})
}

// presentKey finds in the Secret the hash and the prefix of the key that the status calls the present one; nil: the Secret has lost it.
func presentKey(s *keyScope) (hash, prefix []byte) {
	for _, field := range [...]struct{ hash, prefix string }{
		{v1alpha1.SecretDataKeyHash, v1alpha1.SecretDataKeyPrefix},
		{v1alpha1.SecretDataPreviousKeyHash, v1alpha1.SecretDataPreviousKeyPrefix},
	} {
		if h, valid := compile.ParseHash(s.secret.Data[field.hash]); valid && compile.Fingerprint(h) == s.key.Status.KeyFingerprint {
			return s.secret.Data[field.hash], s.secret.Data[field.prefix]
		}
	}
	return nil, nil
}

func isPending(k *v1alpha1.APIKey, hash policy.KeyHash) bool {
	return k.Status.Rotation != nil && k.Status.Rotation.PendingKeyFingerprint == compile.Fingerprint(hash)
}

// rotationAfter is what the status says of rotations once the key in the Secret, of that hash, is the present one.
func rotationAfter(k *v1alpha1.APIKey, secret *corev1.Secret, hash policy.KeyHash) *v1alpha1.RotationStatus {
	now := k.Status.Rotation.DeepCopy()
	first, rotated := k.Status.KeyFingerprint == "", isPending(k, hash)
	if !first && !rotated {
		return now
	}
	generation, err := strconv.ParseInt(secret.Annotations[v1alpha1.AnnotationRotationGeneration], 10, 64)
	if err != nil || generation < 1 {
		return now // the first key of an APIKey that nobody asked to rotate
	}
	if now == nil {
		now = &v1alpha1.RotationStatus{}
	}
	now.Generation = max(now.Generation, min(generation, k.RotationGeneration()))
	now.PendingKeyFingerprint, now.PreviousKeyFingerprint = "", ""
	at, err := time.Parse(time.RFC3339, secret.Annotations[v1alpha1.AnnotationRotationTime])
	if err != nil { // minted with that generation
		if *now == (v1alpha1.RotationStatus{}) {
			return nil
		}
		return now
	}
	now.RotationTime = &metav1.Time{Time: at}
	now.PreviousEndTime = &metav1.Time{Time: at}
	if rotated {
		now.PreviousKeyPrefix = k.Status.KeyPrefix
	}
	if previous, valid := compile.ParseHash(secret.Data[v1alpha1.SecretDataPreviousKeyHash]); valid {
		if fingerprint := compile.Fingerprint(previous); first || fingerprint == k.Status.KeyFingerprint {
			now.PreviousKeyFingerprint = fingerprint
			now.PreviousKeyPrefix = compile.PreviousKeyPrefix(secret)
			now.PreviousEndTime = &metav1.Time{Time: at.Add(k.Overlap())}
		}
	}
	return now
}

// endPrevious removes the earlier key's hash once its time has passed. The enforcers have refused it from that moment on.
func (r *APIKeyReconciler) endPrevious(ctx context.Context, s *keyScope) error {
	rotation := s.status.Rotation
	if rotation == nil || rotation.RotationTime == nil || rotation.PreviousKeyFingerprint == "" {
		return nil
	}
	now, end := r.Clock.Now(), rotation.RotationTime.Add(s.key.Overlap())
	if now.Before(end) {
		rotation.PreviousEndTime = &metav1.Time{Time: end}
		s.wake(end.Sub(now))
		return nil
	}
	if s.secret != nil && ownedBy(s.secret, s.key) {
		if _, there := s.secret.Data[v1alpha1.SecretDataPreviousKeyHash]; there {
			if err := r.patchSecret(ctx, s, map[string]any{"data": map[string]any{
				v1alpha1.SecretDataPreviousKeyHash: nil, v1alpha1.SecretDataPreviousKeyPrefix: nil,
			}}); err != nil {
				return err
			}
		}
	}
	if was := rotation.PreviousEndTime; was != nil && now.Before(was.Time) && end.Before(was.Time) { // the overlap was cut short meanwhile
		end = now
	}
	rotation.PreviousEndTime = &metav1.Time{Time: end.Truncate(time.Second)}
	rotation.PreviousKeyFingerprint = ""
	return nil
}

// rotatingOf says whether an earlier key is honoured; ok: the key was rotated at all.
func rotatingOf(s *keyScope) (v verdict, ok bool) {
	rotation := s.status.Rotation
	if rotation == nil || rotation.RotationTime == nil || rotation.PreviousEndTime == nil {
		return verdict{}, false
	}
	end := rotation.PreviousEndTime.UTC().Format(time.RFC3339)
	if rotation.PreviousKeyFingerprint != "" {
		return yes(v1alpha1.ReasonOverlap, fmt.Sprintf("the earlier key %s… is honoured beside %s… until %s", rotation.PreviousKeyPrefix, s.status.KeyPrefix, end)), true
	}
	return no(v1alpha1.ReasonPreviousKeyEnded, fmt.Sprintf("the earlier key %s… is refused from %s on", rotation.PreviousKeyPrefix, end)), true
}
