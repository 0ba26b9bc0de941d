package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	"github.com/latchkey-dev/latchkey/internal/key"
)

// pollEvery is how often a key that is not minted yet is looked at again.
const pollEvery = 200 * time.Millisecond

// claimTimeout bounds the one request that takes the key.
const claimTimeout = 10 * time.Second

// ErrTaken says that the plaintext is not there any more.
var ErrTaken = errors.New("nothing to reveal")

// Claim takes the plaintext of an APIKey out of its Secret: of several who try, one gets it and the others get ErrTaken. It waits
// until the key has been minted, as long as the context allows.
//
// The claim is one patch that removes the plaintext on condition that the Secret is as it was when it was read. The plaintext is
// not part of the patch, so that no audit log can hold it. A retained plaintext is read and stays.
func Claim(ctx context.Context, c client.Client, name types.NamespacedName) (key.Plaintext, error) {
	apiKey, err := awaitMinted(ctx, c, name)
	if err != nil {
		return key.Plaintext{}, err
	}
	for {
		secret := &corev1.Secret{}
		err := c.Get(ctx, types.NamespacedName{Namespace: name.Namespace, Name: apiKey.Status.SecretName}, secret)
		if apierrors.IsNotFound(err) {
			return key.Plaintext{}, fmt.Errorf("secret %s/%s is gone, and the key with it; %s", name.Namespace, apiKey.Status.SecretName, rotateHint(apiKey))
		}
		if err != nil {
			return key.Plaintext{}, fmt.Errorf("get secret %s/%s: %w", name.Namespace, apiKey.Status.SecretName, err)
		}
		stored, there := secret.Data[v1alpha1.SecretDataAPIKey]
		if !there {
			return key.Plaintext{}, taken(apiKey, secret)
		}
		plaintext, err := key.Parse(string(stored))
		if err != nil {
			return key.Plaintext{}, fmt.Errorf("secret %s/%s does not hold a key of Latchkey's: %w", name.Namespace, secret.Name, err)
		}
		if revealed := meta.FindStatusCondition(apiKey.Status.Conditions, v1alpha1.ConditionRevealed); revealed != nil && revealed.Reason == v1alpha1.ReasonRetained {
			return plaintext, nil
		}
		patch, err := json.Marshal(map[string]any{
			"metadata": map[string]any{"resourceVersion": secret.ResourceVersion},
			"data":     map[string]any{v1alpha1.SecretDataAPIKey: nil},
		})
		if err != nil {
			return key.Plaintext{}, fmt.Errorf("encode claim: %w", err)
		}
		err = claim(ctx, c, secret, patch)
		switch {
		case err == nil:
			return plaintext, nil
		case apierrors.IsConflict(err):
			continue // somebody was quicker, or the Secret changed otherwise: look again
		default:
			return key.Plaintext{}, fmt.Errorf("claim the key in secret %s/%s: %w", name.Namespace, secret.Name, err)
		}
	}
}

// claim sends the patch. It is not broken off with the context: a claim whose answer nobody waits for loses the key.
func claim(ctx context.Context, c client.Client, secret *corev1.Secret, patch []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), claimTimeout)
	defer cancel()
	return c.Patch(ctx, secret, client.RawPatch(types.MergePatchType, patch))
}

// awaitMinted waits until the APIKey names its Secret, and gives up early where waiting cannot help.
func awaitMinted(ctx context.Context, c client.Client, name types.NamespacedName) (*v1alpha1.APIKey, error) {
	apiKey := &v1alpha1.APIKey{}
	err := wait.PollUntilContextCancel(ctx, pollEvery, true, func(ctx context.Context) (bool, error) {
		if err := c.Get(ctx, name, apiKey); err != nil {
			return false, fmt.Errorf("get apikey %s: %w", name, err)
		}
		if apiKey.Status.SecretName != "" {
			return true, nil
		}
		if stalled := meta.FindStatusCondition(apiKey.Status.Conditions, v1alpha1.ConditionStalled); stalled != nil {
			return false, fmt.Errorf("apikey %s cannot be minted: %s", name, stalled.Message)
		}
		return false, nil
	})
	if wait.Interrupted(err) {
		reason := "no controller has looked at it yet: is the Latchkey manager running?"
		if ready := meta.FindStatusCondition(apiKey.Status.Conditions, v1alpha1.ConditionReady); ready != nil {
			reason = ready.Message
		}
		return nil, fmt.Errorf("apikey %s was not minted in time: %s", name, reason)
	}
	return apiKey, err
}

func taken(apiKey *v1alpha1.APIKey, secret *corev1.Secret) error {
	became := "has been taken"
	if secret.Annotations[v1alpha1.AnnotationRemoval] == v1alpha1.ReasonRevealExpired {
		became = "was not taken before its deadline, and has been removed"
	}
	return fmt.Errorf("%w: the key of apikey %s/%s %s. A key is shown once; %s", ErrTaken, apiKey.Namespace, apiKey.Name, became, rotateHint(apiKey))
}
