package controllers

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/latchkey-dev/latchkey/internal/certs"
)

// The Secrets, in the installation's namespace, that hold the certificates of the manager's own authority. Each has ca.crt, tls.crt
// and tls.key, as cert-manager's have, so that either can be mounted.
const (
	SecretAuthority = "latchkey-authority"
	SecretXDS       = "latchkey-xds-tls"
	SecretEnforcer  = "latchkey-enforcer-tls"
	SecretEnvoy     = "latchkey-envoy-tls"
)

const certificateCheckEvery = time.Hour

// Certificates keeps the certificates of the xDS port, where no cert-manager does. Every replica runs it, since each needs the
// server's before it can serve; of two who issue at the same time one wins and the other takes over what it finds.
//
// An authority is renewed by deleting its Secret: the leaves follow at the next check or restart.
type Certificates struct {
	Client    client.Client // writes
	Reader    client.Reader // reads past the cache, which may lag behind
	Namespace string
	Clock     clock.WithTicker
	Log       logr.Logger
}

// NeedLeaderElection says that every replica needs certificates.
func (*Certificates) NeedLeaderElection() bool { return false }

// Start renews certificates until the context ends. Ensure has been called before.
func (c *Certificates) Start(ctx context.Context) error {
	ticker := c.Clock.NewTicker(certificateCheckEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C():
			if err := c.Ensure(ctx); err != nil {
				c.Log.Error(err, "could not renew certificates; trying again at the next check")
			}
		}
	}
}

// Ensure creates what is missing and renews what runs out.
func (c *Certificates) Ensure(ctx context.Context) error {
	authority, err := c.ensure(ctx, SecretAuthority,
		func(b certs.Bundle) bool { return certs.Expired(b, c.Clock.Now()) },
		func() (certs.Bundle, error) { return certs.NewAuthority(c.Clock.Now()) })
	if err != nil {
		return err
	}
	server, enforcer, envoy := certs.Identities()
	for name, id := range map[string]certs.Identity{SecretXDS: server, SecretEnforcer: enforcer, SecretEnvoy: envoy} {
		if _, err := c.ensure(ctx, name,
			func(b certs.Bundle) bool {
				return !bytes.Equal(b.CA, authority.Cert) || certs.NeedsRenewal(authority, b, c.Clock.Now())
			},
			func() (certs.Bundle, error) { return certs.Issue(authority, id, c.Clock.Now()) }); err != nil {
			return err
		}
	}
	return nil
}

// Source reads the current certificates from one of the Secrets; the reader is best a cache, since it is asked at each handshake.
func (c *Certificates) Source(ctx context.Context, reader client.Reader, name string) certs.Source {
	return func() (certs.Bundle, error) {
		var secret corev1.Secret
		if err := reader.Get(ctx, client.ObjectKey{Namespace: c.Namespace, Name: name}, &secret); err != nil {
			return certs.Bundle{}, fmt.Errorf("get certificate secret %s/%s: %w", c.Namespace, name, err)
		}
		return bundleOf(&secret), nil
	}
}

func bundleOf(secret *corev1.Secret) certs.Bundle {
	return certs.Bundle{CA: secret.Data[certs.CAFile], Cert: secret.Data[certs.CertFile], Key: secret.Data[certs.KeyFile]}
}

func (c *Certificates) ensure(ctx context.Context, name string, stale func(certs.Bundle) bool, issue func() (certs.Bundle, error)) (certs.Bundle, error) {
	const attempts = 5 // of two replicas that issue at once, the slower reads what the faster wrote
	for range attempts {
		secret := &corev1.Secret{}
		err := c.Reader.Get(ctx, client.ObjectKey{Namespace: c.Namespace, Name: name}, secret)
		missing := apierrors.IsNotFound(err)
		if err != nil && !missing {
			return certs.Bundle{}, fmt.Errorf("get certificate secret %s/%s: %w", c.Namespace, name, err)
		}
		if !missing && !stale(bundleOf(secret)) {
			return bundleOf(secret), nil
		}
		bundle, err := issue()
		if err != nil {
			return certs.Bundle{}, fmt.Errorf("issue certificate %s: %w", name, err)
		}
		data := map[string][]byte{certs.CAFile: bundle.CA, certs.CertFile: bundle.Cert, certs.KeyFile: bundle.Key}
		if missing {
			secret = &corev1.Secret{
				ObjectMeta: metav1.ObjectMeta{
					Namespace: c.Namespace, Name: name,
					Labels: map[string]string{"app.kubernetes.io/name": "latchkey", "app.kubernetes.io/managed-by": "latchkey-manager"},
				},
				Type: corev1.SecretTypeTLS, Data: data,
			}
			err = c.Client.Create(ctx, secret)
		} else {
			before := secret.DeepCopy()
			secret.Data = data
			err = c.Client.Patch(ctx, secret, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
		}
		switch {
		case err == nil:
			c.Log.Info("issued certificate", "secret", name)
			return bundle, nil
		case apierrors.IsAlreadyExists(err), apierrors.IsConflict(err), apierrors.IsNotFound(err) && !missing:
			continue
		case apierrors.IsNotFound(err):
			return certs.Bundle{}, fmt.Errorf("create certificate secret: namespace %s does not exist; create it, or name the right one with --namespace: %w", c.Namespace, err)
		default:
			return certs.Bundle{}, fmt.Errorf("write certificate secret %s/%s: %w", c.Namespace, name, err)
		}
	}
	return certs.Bundle{}, fmt.Errorf("write certificate secret %s/%s: it changed %d times while it was written", c.Namespace, name, attempts)
}
