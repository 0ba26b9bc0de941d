package cli

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	"github.com/latchkey-dev/latchkey/internal/certs"
)

// TestDoctor mends one thing after the other until nothing is left.
func TestDoctor(t *testing.T) {
	ns := newNamespace(t)
	var others v1alpha1.APIKeyList // that other tests have left as they were
	if err := server.client.List(t.Context(), &others); err != nil {
		t.Fatal(err)
	}
	for i := range others.Items {
		if err := server.client.Delete(t.Context(), &others.Items[i]); err != nil {
			t.Fatal(err)
		}
	}
	doctor := func() outcome { return latchkey(t, ns, "doctor", "--installation-namespace", ns) }

	broken := doctor()
	broken.want(t, 1, "no replica has renewed its Lease", "Secret "+ns+"/latchkey-xds-tls does not exist", "providers", "things to mend")

	now := time.Now()
	authority, err := certs.NewAuthority(now)
	if err != nil {
		t.Fatal(err)
	}
	server1, enforcer, envoy := certs.Identities()
	for name, id := range map[string]certs.Identity{"latchkey-xds-tls": server1, "latchkey-enforcer-tls": enforcer, "latchkey-envoy-tls": envoy} {
		b, err := certs.Issue(authority, id, now)
		if err != nil {
			t.Fatal(err)
		}
		if err := server.client.Create(t.Context(), &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}, Type: corev1.SecretTypeTLS,
			Data: map[string][]byte{certs.CAFile: b.CA, certs.CertFile: b.Cert, certs.KeyFile: b.Key},
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := server.client.Create(t.Context(), &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: ns, Name: "latchkey-replica-a", Labels: map[string]string{"latchkey.dev/replica": "true"},
			Annotations: map[string]string{"latchkey.dev/report": `{"enforcers":2,"ledgers":2}`},
		},
		Spec: coordinationv1.LeaseSpec{HolderIdentity: new("a"), LeaseDurationSeconds: new(int32(3600)), RenewTime: new(metav1.NowMicro())},
	}); err != nil {
		t.Fatal(err)
	}
	provider := &v1alpha1.Provider{ObjectMeta: metav1.ObjectMeta{Name: "doctored"}, Spec: v1alpha1.ProviderSpec{Format: v1alpha1.ProviderFormatOpenAI, URL: "https://provider.test/v1"}}
	model := &v1alpha1.Model{
		ObjectMeta: metav1.ObjectMeta{Name: "doctored"},
		Spec: v1alpha1.ModelSpec{
			ProviderRef: v1alpha1.ProviderReference{Name: "doctored"}, Capabilities: []v1alpha1.Capability{v1alpha1.CapabilityTextGeneration},
		},
	}
	if err := server.client.Create(t.Context(), provider); err != nil {
		t.Fatal(err)
	}
	if err := server.client.Create(t.Context(), model); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // they belong to no namespace
		for _, obj := range []client.Object{provider, model} {
			if err := server.client.Delete(context.WithoutCancel(t.Context()), obj); err != nil {
				t.Errorf("delete %s: %v", obj.GetName(), err)
			}
		}
	})
	doctor().want(t, 1, "provider doctored", "no controller has looked at it as it stands", "2 connected", "reported by 2 enforcers")

	provider.Status.ObservedGeneration, model.Status.ObservedGeneration = provider.Generation, model.Generation
	inOrder(&provider.Status.Conditions, provider.Generation)
	inOrder(&model.Status.Conditions, model.Generation)
	if err := server.client.Status().Update(t.Context(), provider); err != nil {
		t.Fatal(err)
	}
	if err := server.client.Status().Update(t.Context(), model); err != nil {
		t.Fatal(err)
	}
	well := latchkey(t, ns, "doctor", "--installation-namespace", ns, "-o", "json")
	well.want(t, 0, `"healthy": true`)
	latchkey(t, ns, "get", "models").want(t, 0, "doctored", "Ready")

	newKey(t, ns, "lagging")
	k := get(t, keyNamed(ns, "lagging"))
	k.Spec.State = v1alpha1.StateDisabled // nobody acts on it
	if err := server.client.Update(t.Context(), k); err != nil {
		t.Fatal(err)
	}
	doctor().want(t, 1, "key "+ns+"/lagging", "kubectl latchkey describe key lagging -n "+ns, "1 thing to mend.")
	if err := server.client.Delete(t.Context(), k); err != nil {
		t.Fatal(err)
	}

	gateway := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/models" && r.Header.Get("Authorization") == "" {
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	latchkey(t, ns, "doctor", "--installation-namespace", ns, "--gateway", gateway.URL).want(t, 0, "refuses a request without a key")
	gateway.Close()
	latchkey(t, ns, "doctor", "--installation-namespace", ns, "--gateway", gateway.URL).want(t, 1, "check the address")
}
