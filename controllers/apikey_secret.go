package controllers

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	"github.com/latchkey-dev/latchkey/internal/compile"
	"github.com/latchkey-dev/latchkey/internal/key"
	"github.com/latchkey-dev/latchkey/internal/policy"
)

// defaultRevealTTL applies where the SystemPolicy sets none. The CRD's text names the same figure.
const defaultRevealTTL = 24 * time.Hour

// findSecret looks for the key's Secret, past the cache where its absence would have consequences.
func (r *APIKeyReconciler) findSecret(ctx context.Context, s *keyScope) error {
	name := types.NamespacedName{Namespace: s.key.Namespace, Name: s.key.SecretName()}
	secret := &corev1.Secret{}
	err := r.Client.Get(ctx, name, secret)
	if missing := apierrors.IsNotFound(err); (missing || err == nil) && s.key.Status.SecretName != "" {
		if !missing {
			_, problem := compile.KeyHash(s.key, secret)
			missing = problem != nil
		}
		if missing {
			err = r.readPastCache(ctx, name, secret)
		}
	}
	if err != nil {
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("get secret %s: %w", name, err)
	}
	s.secret = secret
	return nil
}

// readPastCache reads a Secret from the API server. Its plaintext, if there is one, is forgotten at once, as the cache forgets it.
func (r *APIKeyReconciler) readPastCache(ctx context.Context, name types.NamespacedName, secret *corev1.Secret) error {
	if err := r.APIReader.Get(ctx, name, secret); err != nil {
		return err
	}
	forget(secret)
	return nil
}

// forget leaves of the plaintext no more than that there is one.
func forget(secret *corev1.Secret) {
	if _, there := secret.Data[v1alpha1.SecretDataAPIKey]; there {
		secret.Data[v1alpha1.SecretDataAPIKey] = []byte("x")
	}
}

// mayRetain reports whether the SystemPolicy lets keys keep their plaintext.
func (s *keyScope) mayRetain() bool {
	return s.policy != nil && s.policy.Spec.Reveal != nil && s.policy.Spec.Reveal.Retain == v1alpha1.RetainAllowed
}

// retains reports whether the key's plaintext stays where it is.
func (s *keyScope) retains() bool {
	return s.key.Retention() == v1alpha1.SecretRetentionRetain && s.mayRetain()
}

func (s *keyScope) ttl() time.Duration {
	if s.policy != nil && s.policy.Spec.Reveal != nil && s.policy.Spec.Reveal.TTL != nil {
		return s.policy.Spec.Reveal.TTL.Duration
	}
	return defaultRevealTTL
}

// mint makes the key, once in the life of the APIKey.
func (r *APIKeyReconciler) mint(ctx context.Context, s *keyScope) error {
	retainRefused := s.key.Retention() == v1alpha1.SecretRetentionRetain && !s.mayRetain()
	if s.secret != nil || s.status.SecretName != "" || s.app == nil || retainRefused {
		return nil
	}
	// The cache may not know yet that the key was minted, or that it goes. A second key would be minted behind the user's back.
	live := &v1alpha1.APIKey{}
	if err := r.APIReader.Get(ctx, client.ObjectKeyFromObject(s.key), live); err != nil {
		return fmt.Errorf("get apikey before minting: %w", err)
	}
	if live.UID != s.key.UID || !live.DeletionTimestamp.IsZero() {
		return apierrors.NewNotFound(v1alpha1.Resource("apikeys"), s.key.Name)
	}
	if live.Status.SecretName != "" {
		s.key, s.status = live, live.Status.DeepCopy()
		return r.findSecret(ctx, s)
	}
	plaintext, err := key.Mint(r.Random)
	if err != nil {
		return err
	}
	secret := r.newSecret(s, plaintext)
	err = r.Client.Create(ctx, secret)
	if apierrors.IsAlreadyExists(err) {
		// One that the cache does not know, for it is new or has no label of ours: it is looked at as it is, and never written over.
		existing := &corev1.Secret{}
		if err := r.readPastCache(ctx, client.ObjectKeyFromObject(secret), existing); err != nil {
			return fmt.Errorf("get secret %s/%s: %w", secret.Namespace, secret.Name, err)
		}
		s.secret = existing
		return nil
	}
	if err != nil {
		return fmt.Errorf("create secret %s/%s: %w", secret.Namespace, secret.Name, err)
	}
	forget(secret)
	s.secret = secret
	r.Recorder.Eventf(s.key, secret, corev1.EventTypeNormal, v1alpha1.ReasonKeyMinted, "Mint", "minted key %s… into Secret %s", plaintext.Prefix(), secret.Name)
	return nil
}

// newSecret is the key's Secret with a key that was just minted. What rotation generation was asked for counts as carried out by it.
func (r *APIKeyReconciler) newSecret(s *keyScope, plaintext key.Plaintext) *corev1.Secret {
	secret := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: s.key.Namespace,
			Name:      s.key.SecretName(),
			Labels:    map[string]string{v1alpha1.LabelAPIKey: s.key.Name, "app.kubernetes.io/managed-by": "latchkey-manager"},
			OwnerReferences: []metav1.OwnerReference{
				*metav1.NewControllerRef(s.key, v1alpha1.GroupVersion.WithKind("APIKey")),
			},
		},
		Type: corev1.SecretTypeOpaque,
		Data: map[string][]byte{
			v1alpha1.SecretDataAPIKey:    []byte(plaintext.Reveal()),
			v1alpha1.SecretDataKeyHash:   []byte(policy.KeyHash(plaintext.Hash()).String()),
			v1alpha1.SecretDataKeyPrefix: []byte(plaintext.Prefix()),
		},
	}
	marks := map[string]string{}
	if !s.retains() {
		marks[v1alpha1.AnnotationRevealDeadline] = r.deadline(s)
	}
	if generation := s.key.RotationGeneration(); generation > 0 {
		marks[v1alpha1.AnnotationRotationGeneration] = strconv.FormatInt(generation, 10)
	}
	if len(marks) > 0 {
		secret.Annotations = marks
	}
	return secret
}

func (r *APIKeyReconciler) deadline(s *keyScope) string {
	return r.Clock.Now().Add(s.ttl()).UTC().Format(time.RFC3339)
}

// adopt takes over a Secret that is the key's by its content: one that was just minted, or restored from a backup, or minted by a manager
// that did not live to say so.
func (r *APIKeyReconciler) adopt(ctx context.Context, s *keyScope) error {
	if s.secret == nil {
		return nil
	}
	labelled := s.secret.Labels[v1alpha1.LabelAPIKey] == s.key.Name
	owned := metav1.IsControlledBy(s.secret, s.key)
	if !labelled && !owned {
		return nil // somebody else's; conclude says so
	}
	trial := s.secret.DeepCopy()
	metav1.SetMetaDataLabel(&trial.ObjectMeta, v1alpha1.LabelAPIKey, s.key.Name)
	hash, problem := compile.KeyHash(s.key, trial)
	if problem != nil {
		return nil
	}
	if !labelled || !owned {
		references := []metav1.OwnerReference{*metav1.NewControllerRef(s.key, v1alpha1.GroupVersion.WithKind("APIKey"))}
		if err := r.patchSecret(ctx, s, map[string]any{
			"metadata": map[string]any{"labels": map[string]any{v1alpha1.LabelAPIKey: s.key.Name}, "ownerReferences": references},
		}); err != nil {
			return err
		}
	}
	s.status.Rotation = rotationAfter(s.key, s.secret, hash)
	s.status.SecretName = s.secret.Name
	s.status.KeyPrefix = compile.KeyPrefix(s.secret)
	s.status.KeyFingerprint = compile.Fingerprint(hash)
	return nil
}

// reveal looks after the plaintext: it goes once it has been taken or its time has passed, unless it is retained.
func (r *APIKeyReconciler) reveal(ctx context.Context, s *keyScope) error {
	s.status.RevealDeadline = nil
	if s.secret == nil || !ownedBy(s.secret, s.key) {
		return nil
	}
	_, there := s.secret.Data[v1alpha1.SecretDataAPIKey]
	annotated, hasDeadline := s.secret.Annotations[v1alpha1.AnnotationRevealDeadline]
	switch {
	case !there:
		return nil
	case s.retains():
		if hasDeadline { // left from a time in which it was not retained
			return r.patchSecret(ctx, s, annotations(v1alpha1.AnnotationRevealDeadline, nil))
		}
		return nil
	case s.secret.Annotations[v1alpha1.AnnotationRevealed] == "true":
		return r.removePlaintext(ctx, s, v1alpha1.ReasonClaimed)
	}
	deadline, err := time.Parse(time.RFC3339, annotated)
	if err != nil { // missing or garbled: its time begins now
		if err := r.patchSecret(ctx, s, annotations(v1alpha1.AnnotationRevealDeadline, r.deadline(s))); err != nil {
			return err
		}
		if deadline, err = time.Parse(time.RFC3339, s.secret.Annotations[v1alpha1.AnnotationRevealDeadline]); err != nil {
			return fmt.Errorf("read the reveal deadline: %w", err)
		}
	}
	if now := r.Clock.Now(); now.Before(deadline) {
		s.status.RevealDeadline = &metav1.Time{Time: deadline}
		s.wake(deadline.Sub(now))
		return nil
	}
	return r.removePlaintext(ctx, s, v1alpha1.ReasonRevealExpired)
}

func (r *APIKeyReconciler) removePlaintext(ctx context.Context, s *keyScope, why string) error {
	patch := annotations(v1alpha1.AnnotationRemoval, why)
	patch["data"] = map[string]any{v1alpha1.SecretDataAPIKey: nil}
	return r.patchSecret(ctx, s, patch)
}

func annotations(name string, value any) map[string]any {
	return map[string]any{"metadata": map[string]any{"annotations": map[string]any{name: value}}}
}

// patchSecret changes the Secret if it is still as it was read, and takes the outcome over.
func (r *APIKeyReconciler) patchSecret(ctx context.Context, s *keyScope, patch map[string]any) error {
	meta, ok := patch["metadata"].(map[string]any)
	if !ok {
		meta = map[string]any{}
		patch["metadata"] = meta
	}
	meta["resourceVersion"], meta["uid"] = s.secret.ResourceVersion, s.secret.UID
	raw, err := json.Marshal(patch)
	if err != nil {
		return fmt.Errorf("encode patch: %w", err)
	}
	updated := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: s.secret.Namespace, Name: s.secret.Name}}
	if err := r.Client.Patch(ctx, updated, client.RawPatch(types.MergePatchType, raw)); err != nil {
		return fmt.Errorf("patch secret %s/%s: %w", s.secret.Namespace, s.secret.Name, err)
	}
	forget(updated)
	s.secret = updated
	return nil
}

// ownedBy reports whether the Secret is the key's, by label and by owner.
func ownedBy(secret *corev1.Secret, k *v1alpha1.APIKey) bool {
	return secret.Labels[v1alpha1.LabelAPIKey] == k.Name && metav1.IsControlledBy(secret, k)
}
