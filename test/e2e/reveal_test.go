package e2e

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	"github.com/latchkey-dev/latchkey/internal/cli"
	"github.com/latchkey-dev/latchkey/test/stack"
)

func TestOfManyWhoClaimOneGetsTheKey(t *testing.T) {
	tn := newTenant(t)
	k := tn.apply("raced")
	if err := await(t.Context(), k, func() bool { return k.Status.SecretName != "" }); err != nil {
		t.Fatal(err)
	}
	const claimants = 50
	var won, lost atomic.Int32
	var key string
	var wg sync.WaitGroup
	for range claimants {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			plaintext, err := cli.Claim(ctx, theStack.Client, client.ObjectKeyFromObject(k))
			switch {
			case err == nil:
				won.Add(1)
				key = plaintext.Reveal()
			case errors.Is(err, cli.ErrTaken):
				lost.Add(1)
			default:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 || lost.Load() != claimants-1 {
		t.Fatalf("%d got the key, %d were told that it was taken", won.Load(), lost.Load())
	}
	decided(t, key, request{}, http.StatusOK, "")
	if err := await(t.Context(), k, func() bool { return isTrue(k.Status.Conditions, v1alpha1.ConditionRevealed) }); err != nil {
		t.Fatal(err)
	}
}

func TestThePluginRevealsOnce(t *testing.T) {
	tn := newTenant(t)
	k := tn.apply("plugin")
	out, err := theStack.Latchkey(t.Context(), "reveal", k.Name, "-n", k.Namespace)
	if err != nil {
		t.Fatal(err)
	}
	decided(t, strings.TrimSuffix(out, "\n"), request{}, http.StatusOK, "")
	out, err = theStack.Latchkey(t.Context(), "reveal", k.Name, "-n", k.Namespace)
	if err == nil || out != "" || !strings.Contains(err.Error(), "has been taken") || !strings.Contains(err.Error(), "kubectl latchkey rotate") {
		t.Fatalf("the second reveal printed %q, %v", out, err)
	}
}

func TestTheAnnotationRemovesThePlaintext(t *testing.T) {
	tn := newTenant(t)
	k := tn.apply("by-hand")
	if err := await(t.Context(), k, func() bool { return k.Status.SecretName != "" }); err != nil {
		t.Fatal(err)
	}
	secret := &corev1.Secret{}
	if err := theStack.Client.Get(t.Context(), client.ObjectKey{Namespace: k.Namespace, Name: k.Status.SecretName}, secret); err != nil {
		t.Fatal(err)
	}
	key := string(secret.Data[v1alpha1.SecretDataAPIKey])
	if _, err := theStack.Kubectl(t.Context(), "annotate", "secret", secret.Name, "-n", k.Namespace, v1alpha1.AnnotationRevealed+"=true"); err != nil {
		t.Fatal(err)
	}
	if err := await(t.Context(), secret, func() bool { return secret.Data[v1alpha1.SecretDataAPIKey] == nil }); err != nil {
		t.Fatal(err)
	}
	decided(t, key, request{}, http.StatusOK, "")
}

// TestThePlaintextIsNowhereButInTheSecret looks for the canary everywhere it could have leaked to, before the reveal and after use.
func TestThePlaintextIsNowhereButInTheSecret(t *testing.T) {
	ctx := t.Context()
	tn := newTenant(t)
	k := tn.apply("canary")
	if err := await(ctx, k, func() bool { return isTrue(k.Status.Conditions, v1alpha1.ConditionEnforced) }); err != nil {
		t.Fatal(err)
	}
	secret := &corev1.Secret{}
	if err := theStack.Client.Get(ctx, client.ObjectKey{Namespace: k.Namespace, Name: k.Status.SecretName}, secret); err != nil {
		t.Fatal(err)
	}
	key := string(secret.Data[v1alpha1.SecretDataAPIKey])
	mark := "canary-" + k.Namespace
	decided(t, key, request{body: chat("gpt-5-mini", mark+" sim:echo-headers")}, http.StatusOK, "")
	decided(t, key, request{body: chat("no-such-model", mark)}, http.StatusNotFound, "model_not_found")
	decided(t, key, request{path: "/v1/nonsense"}, http.StatusNotFound, "")
	decided(t, key, request{headers: map[string]string{"x-copy": "is " + key, "cookie": "k=" + key}, body: chat("gpt-5-mini", mark+" sim:echo-headers")}, http.StatusOK, "")
	wrong := key[:len(key)-8] + "AAAAAAAA"
	decided(t, wrong, request{}, http.StatusUnauthorized, "invalid_api_key")

	// What is searched for: the key's random part, without the prefix that may be shown.
	canary := key[len(k.Status.KeyPrefix):]
	canary = canary[:len(canary)-8]
	look := func(where, text string) {
		t.Helper()
		if text == "" {
			t.Errorf("%s is empty: nothing was searched", where)
		}
		if i := strings.Index(text, canary); i >= 0 {
			t.Errorf("%s holds the plaintext: …%s…", where, text[max(0, i-200):min(len(text), i+20)])
		}
	}
	for _, kind := range []string{"apikeys.latchkey.dev", "applications.latchkey.dev", "events", "events.events.k8s.io", "leases.coordination.k8s.io", "configmaps"} {
		out, err := theStack.Kubectl(ctx, "get", kind, "-A", "-o", "yaml", "--show-managed-fields")
		if err != nil {
			t.Fatal(err)
		}
		look(kind, out)
	}
	secrets, err := theStack.Kubectl(ctx, "get", "secrets", "-A", "-o", "jsonpath={range .items[*]}{.metadata.namespace}/{.metadata.name} {.metadata.annotations}{.metadata.managedFields}{.data.keyHash}{.data.keyPrefix}\n{end}")
	if err != nil {
		t.Fatal(err)
	}
	look("the rest of the secrets", secrets)
	for where, url := range map[string]string{
		"the manager's metrics":  theStack.MetricsURL("manager-0"),
		"the enforcer's metrics": theStack.MetricsURL("enforcer"),
		"Envoy's config dump":    theStack.AdminURL() + "/config_dump?include_eds",
		"Envoy's stats":          theStack.AdminURL() + "/stats",
	} {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		a, err := send(t, req)
		if err != nil || a.status != http.StatusOK {
			t.Fatal(url, a, err)
		}
		look(where, a.body)
		if where == "Envoy's config dump" && strings.Contains(a.body, stack.OpenAICredential) {
			t.Error("Envoy's config dump holds the provider's credential")
		}
	}
	// Logs, the enforcer's disk copy, kubeconfigs: every file of the stack but etcd's and the API server's own.
	searched := 0
	err = filepath.WalkDir(theStack.Dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && d.Name() == "controlplane" {
			return fs.SkipDir
		}
		if !d.Type().IsRegular() {
			return nil
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		searched++
		if strings.Contains(string(content), canary) {
			t.Errorf("the file %s holds the plaintext", path)
		}
		return nil
	})
	if err != nil || searched < 5 {
		t.Fatalf("searched %d files, %v", searched, err)
	}
	// The provider never saw it, in no header and nowhere else.
	records := received(t, mark)
	if len(records) < 2 {
		t.Fatalf("the provider got %d requests", len(records))
	}
	for _, r := range records {
		for name, values := range r.Headers {
			look("the provider's request header "+name, strings.Join(values, ",")+" ")
		}
		look("the provider's request", r.Path+"?"+r.Query+r.Body)
		if got := r.Headers.Get("Authorization"); got != "Bearer "+stack.OpenAICredential {
			t.Errorf("the provider got the credential %q", got)
		}
	}
	keyset, err := stream(t, "enforcer", keysetType, "sync")
	if err != nil {
		t.Fatal(err)
	}
	look("the xDS stream", keyset)
	// Deleted with the key.
	if err := theStack.Client.Delete(ctx, k); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the Secret goes with its key", func() error {
		err := theStack.Client.Get(ctx, client.ObjectKeyFromObject(secret), secret)
		if client.IgnoreNotFound(err) != nil || err == nil {
			return errors.New("it is still there")
		}
		return nil
	})
}
