package controllers

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/funcr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	"github.com/latchkey-dev/latchkey/internal/certs"
)

// cacheReader is a cache that fails, or that fails a test in which all objects of a kind are copied.
type cacheReader struct {
	client.Reader
	t    *testing.T
	fail error
}

func (r *cacheReader) List(ctx context.Context, list client.ObjectList, opts ...client.ListOption) error {
	if r.fail != nil {
		return r.fail
	}
	var options client.ListOptions
	options.ApplyOptions(opts)
	if options.UnsafeDisableDeepCopy == nil || !*options.UnsafeDisableDeepCopy {
		r.t.Errorf("%T is listed with a copy of each object", list)
	}
	return r.Reader.List(ctx, list, opts...)
}

// conditionsOf reads "Type=Status/Reason".
func conditionsOf(said ...string) []metav1.Condition {
	list := make([]metav1.Condition, 0, len(said))
	for _, s := range said {
		kind, rest, _ := strings.Cut(s, "=")
		status, reason, _ := strings.Cut(rest, "/")
		list = append(list, metav1.Condition{Type: kind, Status: metav1.ConditionStatus(status), Reason: reason})
	}
	return list
}

func TestInventory(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	authority, err := certs.NewAuthority(now)
	if err != nil {
		t.Fatal(err)
	}
	identity, _, _ := certs.Identities()
	server, err := certs.Issue(authority, identity, now)
	if err != nil {
		t.Fatal(err)
	}
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	named := func(n int) metav1.ObjectMeta {
		return metav1.ObjectMeta{Namespace: "team", Name: fmt.Sprintf("o-%d", n)}
	}
	var objects []client.Object
	for n, conditions := range [][]metav1.Condition{
		conditionsOf("Usable=True/Active", "Enforced=True/Acknowledged"),
		conditionsOf("Usable=True/Active", "Enforced=False/NoEnforcers"),
		conditionsOf("Usable=False/BudgetExhausted", "Enforced=True/Acknowledged"),
		conditionsOf("Usable=False/made-up-7f3a", "Enforced=Unknown/Pending"),
		nil,
	} {
		objects = append(objects, &v1alpha1.APIKey{ObjectMeta: named(n), Status: v1alpha1.APIKeyStatus{Conditions: conditions}})
	}
	for n, conditions := range [][]metav1.Condition{conditionsOf("Usable=True/Active"), conditionsOf("Usable=False/Disabled"), nil} {
		objects = append(objects, &v1alpha1.Application{ObjectMeta: named(n), Status: v1alpha1.ApplicationStatus{Conditions: conditions}})
	}
	for n, conditions := range [][]metav1.Condition{conditionsOf("Ready=True/Reconciled"), conditionsOf("Ready=False/ProviderNotFound"), nil, conditionsOf("Ready=odd/x")} {
		objects = append(objects, &v1alpha1.Model{ObjectMeta: named(n), Status: v1alpha1.ModelStatus{Conditions: conditions}})
	}
	objects = append(objects, &v1alpha1.Provider{ObjectMeta: named(0), Status: v1alpha1.ProviderStatus{Conditions: conditionsOf("Ready=True/Reconciled")}})
	whole := fake.NewClientBuilder().WithScheme(scheme).WithObjects(objects...).Build()

	const ofKeys = `
# HELP latchkey_api_keys APIKeys, by what their callers meet: the reason of the condition Usable.
# TYPE latchkey_api_keys gauge
latchkey_api_keys{state="Active"} 2
latchkey_api_keys{state="ApplicationDisabled"} 0
latchkey_api_keys{state="ApplicationNotFound"} 0
latchkey_api_keys{state="BudgetExhausted"} 1
latchkey_api_keys{state="Disabled"} 0
latchkey_api_keys{state="DuplicateKey"} 0
latchkey_api_keys{state="Expired"} 0
latchkey_api_keys{state="Invalid"} 0
latchkey_api_keys{state="MaxKeysReached"} 0
latchkey_api_keys{state="Other"} 1
latchkey_api_keys{state="Pending"} 1
latchkey_api_keys{state="SecretConflict"} 0
latchkey_api_keys{state="SecretLost"} 0
# HELP latchkey_api_keys_not_enforced APIKeys whose latest change not every enforcer has taken over.
# TYPE latchkey_api_keys_not_enforced gauge
latchkey_api_keys_not_enforced 3
# HELP latchkey_applications Applications, by what the callers of their keys meet: the reason of the condition Usable.
# TYPE latchkey_applications gauge
latchkey_applications{state="Active"} 1
latchkey_applications{state="BudgetExhausted"} 0
latchkey_applications{state="Disabled"} 1
latchkey_applications{state="Other"} 0
latchkey_applications{state="Pending"} 1
# HELP latchkey_models Models, by their condition Ready.
# TYPE latchkey_models gauge
latchkey_models{ready="False"} 1
latchkey_models{ready="True"} 1
latchkey_models{ready="Unknown"} 2
# HELP latchkey_providers Providers, by their condition Ready.
# TYPE latchkey_providers gauge
latchkey_providers{ready="False"} 0
latchkey_providers{ready="True"} 1
latchkey_providers{ready="Unknown"} 0
`
	ofCertificates := fmt.Sprintf(`
# HELP latchkey_certificate_expiry_timestamp_seconds When the xDS port's own certificate and its authority's end, in seconds since 1970.
# TYPE latchkey_certificate_expiry_timestamp_seconds gauge
latchkey_certificate_expiry_timestamp_seconds{certificate="ca"} %d
latchkey_certificate_expiry_timestamp_seconds{certificate="server"} %d
`, now.Add(certs.AuthorityLifetime).Unix(), now.Add(certs.LeafLifetime).Unix())

	for name, tc := range map[string]struct {
		cache        error
		certificates error
		want         string
		complaints   int
	}{
		"all is counted, by states that are known beforehand":             {want: ofKeys + ofCertificates},
		"before the cache is there only the certificates are, in silence": {cache: &cache.ErrCacheNotStarted{}, want: ofCertificates},
		"a cache that fails is complained of":                             {cache: errServer, want: ofCertificates, complaints: 4},
		"certificates that cannot be read leave the counts":               {certificates: errors.New("no file"), want: ofKeys, complaints: 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			complaints := 0
			log := logr.New(funcr.New(func(string, string) { complaints++ }, funcr.Options{}).GetSink())
			source := func() (certs.Bundle, error) { return server, tc.certificates }
			inventory := NewInventory(&cacheReader{Reader: whole, t: t, fail: tc.cache}, source, log)
			registry := prometheus.NewPedanticRegistry()
			if err := registry.Register(inventory); err != nil {
				t.Fatal(err)
			}
			if err := testutil.GatherAndCompare(registry, strings.NewReader(tc.want)); err != nil {
				t.Error(err)
			}
			if complaints != tc.complaints {
				t.Errorf("%d complaints, want %d", complaints, tc.complaints)
			}
		})
	}
}
