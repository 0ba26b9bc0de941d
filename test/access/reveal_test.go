package access

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	"github.com/latchkey-dev/latchkey/internal/cli"
	"github.com/latchkey-dev/latchkey/internal/key"
)

// mint does the manager's part, with the manager's rights: a Secret with a key in it, and the status that names it.
func mint(t *testing.T, of *v1alpha1.APIKey) string {
	t.Helper()
	config, _, err := server.ServiceAccountConfig(t.Context(), installationNamespace, managerAccount)
	if err != nil {
		t.Fatal(err)
	}
	manager, err := clientFor(config)
	if err != nil {
		t.Fatal(err)
	}
	plaintext, err := key.Mint(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	hash := plaintext.Hash()
	secret := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: of.Namespace, Name: of.SecretName(), Labels: map[string]string{v1alpha1.LabelAPIKey: of.Name}},
		Data: map[string][]byte{
			v1alpha1.SecretDataAPIKey:  []byte(plaintext.Reveal()),
			v1alpha1.SecretDataKeyHash: []byte(hex.EncodeToString(hash[:])),
		},
	}
	if err := manager.Create(t.Context(), secret); err != nil {
		t.Fatal(err)
	}
	before := of.DeepCopy()
	of.Status.SecretName = secret.Name
	if err := manager.Status().Patch(t.Context(), of, client.MergeFrom(before)); err != nil {
		t.Fatal(err)
	}
	return plaintext.Reveal()
}

// TestReveal takes keys as somebody with a role would.
func TestReveal(t *testing.T) {
	namespace, ada, c := newUser(t)
	other := newNamespace(t, nil)

	t.Run("a user creates a key, takes it once, and deletes it", func(t *testing.T) {
		made := newKey(namespace, "made", "Made by Ada")
		if err := c.Create(t.Context(), made); err != nil {
			t.Fatal(err)
		}
		minted := mint(t, made)
		plaintext, err := claim(t, c, made)
		if err != nil || plaintext != minted {
			t.Fatalf("the first claim: %v, the key that was minted: %t", err, plaintext == minted)
		}
		if _, err := claim(t, c, made); !errors.Is(err, cli.ErrTaken) {
			t.Errorf("the second claim: %v, want %v", err, cli.ErrTaken)
		}
		before := made.DeepCopy()
		made.Annotations = map[string]string{annotationConfirm: string(made.Spec.DisplayName)}
		if err := c.Patch(t.Context(), made, client.MergeFrom(before)); err != nil {
			t.Fatal(err)
		}
		if err := c.Delete(t.Context(), made); err != nil {
			t.Error(err)
		}
	})

	t.Run("the plugin reveals for the user", func(t *testing.T) {
		plugged := newKey(namespace, "plugged", "By the plugin")
		mustCreate(t, plugged)
		minted := mint(t, plugged)
		out, err := shell(t.Context(), "kubectl latchkey reveal plugged -n "+namespace+" --as "+ada)
		if err != nil || strings.TrimSpace(out) != minted {
			t.Errorf("err %v, the key that was minted: %t", err, strings.TrimSpace(out) == minted)
		}
	})

	t.Run("a user takes no key of another namespace", func(t *testing.T) {
		theirs := newKey(other, "theirs", "Theirs")
		mustCreate(t, theirs)
		minted := mint(t, theirs)
		if _, err := claim(t, c, theirs); !apierrors.IsForbidden(err) {
			t.Errorf("the claim: %v, want a refusal", err)
		}
		stays(t, theirs, minted)
	})

	t.Run("those whose roles have no Secrets take no key", func(t *testing.T) {
		for role, namespaceOfBinding := range map[string]string{
			"latchkey-key-editor": namespace, "latchkey-application-editor": namespace, "view": namespace, "latchkey-auditor": "", "latchkey-operator": "",
		} {
			t.Run(role, func(t *testing.T) {
				user := role + "-of-" + namespace
				bind(t, user, role, namespaceOfBinding)
				awaitBindings(t, user, map[place]string{{"applications", namespace}: ""})
				kept := newKey(namespace, "kept-from-"+role, "Kept")
				mustCreate(t, kept)
				minted := mint(t, kept)
				if _, err := claim(t, clientAs(t, user), kept); !apierrors.IsForbidden(err) {
					t.Errorf("the claim: %v, want a refusal", err)
				}
				stays(t, kept, minted)
			})
		}
	})

	t.Run("where each reveal is granted by name, others stay closed", func(t *testing.T) {
		eve := "eve-of-" + namespace
		granted, not := newKey(namespace, "granted", "Granted"), newKey(namespace, "not-granted", "Not granted")
		mustCreate(t, granted, not)
		minted, others := mint(t, granted), mint(t, not)
		bind(t, eve, "latchkey-key-editor", namespace)
		allowByName(t, eve, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: granted.SecretName()}})
		c := clientAs(t, eve)
		if plaintext, err := claim(t, c, granted); err != nil || plaintext != minted {
			t.Errorf("the claim that is granted: %v, the key that was minted: %t", err, plaintext == minted)
		}
		if _, err := claim(t, c, not); !apierrors.IsForbidden(err) {
			t.Errorf("the claim that is not granted: %v, want a refusal", err)
		}
		stays(t, not, others)
	})
}

func claim(t *testing.T, c client.Client, of *v1alpha1.APIKey) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	plaintext, err := cli.Claim(ctx, c, client.ObjectKeyFromObject(of))
	if err != nil {
		return "", err
	}
	return plaintext.Reveal(), nil
}

// stays checks that a key has not been taken.
func stays(t *testing.T, of *v1alpha1.APIKey, minted string) {
	t.Helper()
	secret := &corev1.Secret{}
	if err := server.admin.Get(t.Context(), types.NamespacedName{Namespace: of.Namespace, Name: of.SecretName()}, secret); err != nil {
		t.Fatal(err)
	}
	if string(secret.Data[v1alpha1.SecretDataAPIKey]) != minted {
		t.Error("the key has gone from its Secret")
	}
}
