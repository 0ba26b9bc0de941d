package compile

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	"github.com/latchkey-dev/latchkey/internal/money"
	"github.com/latchkey-dev/latchkey/internal/policy"
)

var hash = policy.KeyHash{1, 2, 3}

func apiKey(change ...func(*v1alpha1.APIKey)) *v1alpha1.APIKey {
	k := &v1alpha1.APIKey{
		ObjectMeta: metav1.ObjectMeta{Namespace: "demo", Name: "backend", UID: "uid-1"},
		Spec: v1alpha1.APIKeySpec{
			ApplicationRef: v1alpha1.ApplicationReference{Name: "shop"},
			DisplayName:    "Backend",
			State:          v1alpha1.StateEnabled,
			Capabilities:   []v1alpha1.Capability{v1alpha1.CapabilityWebSearch, v1alpha1.CapabilityTextGeneration},
			Models:         v1alpha1.ModelScope{Access: v1alpha1.ModelAccessList, Names: []v1alpha1.ModelName{"b", "a"}},
		},
		Status: v1alpha1.APIKeyStatus{SecretName: "backend-api-key", KeyFingerprint: Fingerprint(hash)},
	}
	for _, c := range change {
		c(k)
	}
	return k
}

func keySecret(change ...func(*corev1.Secret)) *corev1.Secret {
	s := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: "demo", Name: "backend-api-key", Labels: map[string]string{v1alpha1.LabelAPIKey: "backend"}},
		Data:       map[string][]byte{"keyHash": []byte(hash.String()), "keyPrefix": []byte("lk_abcdef")},
	}
	for _, c := range change {
		c(s)
	}
	return s
}

func TestKey(t *testing.T) {
	t.Parallel()
	expires := time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
	got, problems := Key(apiKey(func(k *v1alpha1.APIKey) {
		k.Spec.State = v1alpha1.StateDisabled
		k.Spec.ExpirationTime = &metav1.Time{Time: expires}
		k.Spec.RateLimits = &v1alpha1.RateLimits{RequestsPerMinute: new(int64(0))}
		k.Spec.Budgets = &v1alpha1.Budgets{Daily: new(v1alpha1.Money("0.5")), Enforcement: v1alpha1.BudgetEnforcementStrict}
	}), keySecret())
	want := &policy.Key{
		UID: "uid-1", Namespace: "demo", Name: "backend", DisplayName: "Backend", Application: "shop",
		Credentials:  []policy.Credential{{Hash: hash, Prefix: "lk_abcdef"}},
		State:        policy.StateDisabled,
		Expires:      expires,
		Capabilities: policy.CapabilitiesOf(policy.TextGeneration, policy.WebSearch),
		Models:       policy.ScopeOf("a", "b"),
		Limits:       policy.RateLimits{RequestsPerMinute: 0, TokensPerMinute: policy.Unset, ConcurrentRequests: policy.Unset},
		Budgets:      policy.Budgets{Daily: money.Unit / 2, Monthly: policy.NoBudget, Enforcement: policy.Strict},
	}
	if diff := cmp.Diff(want, got); diff != "" || problems != nil {
		t.Fatalf("problems %v, -want +got:\n%s", problems, diff)
	}
}

func TestKeysThatAreNotPublished(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		key    *v1alpha1.APIKey
		secret *corev1.Secret
		reason string // empty: no problem, just not published
		says   string
	}{
		"one that is being deleted": {apiKey(func(k *v1alpha1.APIKey) { k.DeletionTimestamp = &metav1.Time{Time: time.Now()} }), keySecret(), "", ""},
		"one that is not minted yet": {apiKey(func(k *v1alpha1.APIKey) { k.Status = v1alpha1.APIKeyStatus{} }), nil,
			v1alpha1.ReasonPending, "not been minted"},
		"one whose Secret is gone":          {apiKey(), nil, v1alpha1.ReasonSecretLost, "create a new one"},
		"one whose Secret is somebody's":    {apiKey(), keySecret(func(s *corev1.Secret) { s.Labels = nil }), v1alpha1.ReasonSecretConflict, "spec.secret.name"},
		"one whose Secret has lost the key": {apiKey(), keySecret(func(s *corev1.Secret) { delete(s.Data, "keyHash") }), v1alpha1.ReasonSecretLost, "keyHash"},
		"one whose hash is cut off":         {apiKey(), keySecret(func(s *corev1.Secret) { s.Data["keyHash"] = []byte("abcd") }), v1alpha1.ReasonSecretLost, "keyHash"},
		"one whose Secret holds another's hash": {apiKey(), keySecret(func(s *corev1.Secret) { s.Data["keyHash"] = []byte(policy.KeyHash{9}.String()) }),
			v1alpha1.ReasonSecretLost, "another key"},
		"one with money that is none": {apiKey(func(k *v1alpha1.APIKey) { k.Spec.Budgets = &v1alpha1.Budgets{Monthly: new(v1alpha1.Money("1e3"))} }), keySecret(),
			v1alpha1.ReasonInvalid, "spec.budgets.monthly"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, problems := Key(tc.key, tc.secret)
			if got != nil {
				t.Fatalf("published: %+v", got)
			}
			if tc.reason == "" {
				if problems != nil {
					t.Fatalf("problems %v", problems)
				}
				return
			}
			if len(problems) != 1 || problems[0].Reason != tc.reason || !strings.Contains(problems[0].Message, tc.says) {
				t.Fatalf("problems %v; want %s that says %q", problems, tc.reason, tc.says)
			}
		})
	}
}

func TestAKeyWithoutFingerprintIsAdopted(t *testing.T) {
	t.Parallel()
	got, problems := Key(apiKey(func(k *v1alpha1.APIKey) { k.Status = v1alpha1.APIKeyStatus{} }), keySecret())
	if got == nil || problems != nil || got.Credentials[0].Hash != hash {
		t.Fatalf("Key = %v, %v", got, problems)
	}
}

func TestApplication(t *testing.T) {
	t.Parallel()
	open := &v1alpha1.Application{ObjectMeta: metav1.ObjectMeta{Namespace: "demo", Name: "shop", UID: "u"}, Spec: v1alpha1.ApplicationSpec{DisplayName: "Shop"}}
	bounded := open.DeepCopy()
	bounded.Spec.State = v1alpha1.StateDisabled
	bounded.Spec.Capabilities = []v1alpha1.Capability{v1alpha1.CapabilityEmbeddings}
	bounded.Spec.Models = &v1alpha1.ModelScope{Access: v1alpha1.ModelAccessList, Names: []v1alpha1.ModelName{"m"}}
	bounded.DeletionTimestamp = &metav1.Time{Time: time.Now()}
	for name, tc := range map[string]struct {
		in   *v1alpha1.Application
		want policy.Application
	}{
		"one that sets no bounds bounds nothing": {open, policy.Application{
			UID: "u", Namespace: "demo", Name: "shop", DisplayName: "Shop", State: policy.StateEnabled,
			Capabilities: policy.AllCapabilities, Models: policy.ModelScope{All: true}, Limits: policy.NoRateLimits(), Budgets: policy.NoBudgets(),
		}},
		"one that is being deleted is published as it stands": {bounded, policy.Application{
			UID: "u", Namespace: "demo", Name: "shop", DisplayName: "Shop", State: policy.StateDisabled,
			Capabilities: policy.CapabilitiesOf(policy.Embeddings), Models: policy.ScopeOf("m"), Limits: policy.NoRateLimits(), Budgets: policy.NoBudgets(),
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, problems := Application(tc.in)
			if diff := cmp.Diff(&tc.want, got); diff != "" || problems != nil {
				t.Fatalf("problems %v, -want +got:\n%s", problems, diff)
			}
		})
	}
}

func TestWinner(t *testing.T) {
	t.Parallel()
	at := func(name string, second int64, deleting bool) *v1alpha1.Model {
		m := &v1alpha1.Model{ObjectMeta: metav1.ObjectMeta{Name: name, CreationTimestamp: metav1.Unix(second, 0)}}
		if deleting {
			m.DeletionTimestamp = &metav1.Time{Time: time.Now()}
		}
		return m
	}
	for name, tc := range map[string]struct {
		models []*v1alpha1.Model
		want   string
	}{
		"the oldest":                        {[]*v1alpha1.Model{at("b", 2, false), at("c", 1, false), at("a", 3, false)}, "c"},
		"of one second the first by name":   {[]*v1alpha1.Model{at("b", 1, false), at("a", 1, false)}, "a"},
		"one being deleted yields":          {[]*v1alpha1.Model{at("a", 1, true), at("b", 2, false)}, "b"},
		"if all are being deleted, the old": {[]*v1alpha1.Model{at("a", 2, true), at("b", 1, true)}, "b"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := Winner(tc.models).Name; got != tc.want {
				t.Fatalf("Winner = %s, want %s", got, tc.want)
			}
		})
	}
}

func TestModel(t *testing.T) {
	t.Parallel()
	m := &v1alpha1.Model{ObjectMeta: metav1.ObjectMeta{Name: "llama"}, Spec: v1alpha1.ModelSpec{
		Name: "meta-llama/Llama-3.1", ProviderRef: v1alpha1.ProviderReference{Name: "vllm"},
		Capabilities: []v1alpha1.Capability{v1alpha1.CapabilityTextGeneration}, MaxOutputTokens: new(int64(4096)),
	}}
	if got, problems := Model(m, nil); got != nil || len(problems) != 1 || problems[0].Reason != v1alpha1.ReasonProviderNotFound || problems[0].Stalled || !strings.Contains(problems[0].Message, "vllm") {
		t.Fatalf("without a provider: %v, %v", got, problems)
	}
	got, problems := Model(m, &v1alpha1.Provider{ObjectMeta: metav1.ObjectMeta{Name: "vllm"}, Spec: v1alpha1.ProviderSpec{Format: v1alpha1.ProviderFormatOpenAI}})
	want := &policy.Model{
		Name: "meta-llama/Llama-3.1", UpstreamName: "meta-llama/Llama-3.1", Provider: "vllm", Format: policy.FormatOpenAI,
		Capabilities: policy.CapabilitiesOf(policy.TextGeneration), MaxOutputTokens: 4096,
	}
	if diff := cmp.Diff(want, got); diff != "" || problems != nil {
		t.Fatalf("problems %v, -want +got:\n%s", problems, diff)
	}
}

func TestSystem(t *testing.T) {
	t.Parallel()
	defaults := policy.DefaultSystem()
	zoned := defaults
	zoned.Currency, zoned.TimeZone, zoned.RequestsPerMinute = "EUR", "Europe/Berlin", policy.Range{Default: 1, Max: 2}
	euro := defaults
	euro.Currency = "EUR"
	limits := &v1alpha1.SystemRateLimits{RequestsPerMinute: &v1alpha1.LimitRange{Default: new(int64(1)), Max: new(int64(2))}}
	for name, tc := range map[string]struct {
		in     *v1alpha1.SystemPolicy
		want   policy.System
		reason string
	}{
		"none means the defaults":                  {nil, defaults, ""},
		"one that says something":                  {&v1alpha1.SystemPolicy{Spec: v1alpha1.SystemPolicySpec{Currency: "EUR", TimeZone: "Europe/Berlin", RateLimits: limits}}, zoned, ""},
		"a time zone that is none leaves the rest": {&v1alpha1.SystemPolicy{Spec: v1alpha1.SystemPolicySpec{Currency: "EUR", TimeZone: "Mars/Olympus"}}, euro, v1alpha1.ReasonInvalid},
		"one that says nothing means the defaults": {&v1alpha1.SystemPolicy{}, defaults, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, problems := System(tc.in)
			if diff := cmp.Diff(&tc.want, got); diff != "" {
				t.Fatalf("-want +got:\n%s", diff)
			}
			if (tc.reason == "") != (problems == nil) || (problems != nil && (problems[0].Reason != tc.reason || !strings.Contains(problems[0].Message, "spec.timeZone"))) {
				t.Fatalf("problems %v", problems)
			}
		})
	}
}

func TestProviderAddresses(t *testing.T) {
	t.Parallel()
	for url, want := range map[string]string{
		"OpenAI https://api.openai.com/v1":           "https api.openai.com 443 /v1 api.openai.com",
		"OpenAI https://api.openai.com/v1/":          "https api.openai.com 443 /v1 api.openai.com",
		"OpenAI http://vllm.models.svc:8000":         "http vllm.models.svc 8000  ",
		"OpenAI https://openrouter.ai/api/v1":        "https openrouter.ai 443 /api/v1 openrouter.ai",
		"OpenAI http://[::1]:8000/v1":                "http ::1 8000 /v1 ",
		"Anthropic https://api.anthropic.com":        "https api.anthropic.com 443 /v1 api.anthropic.com",
		"Anthropic https://api.anthropic.com/v1":     "https api.anthropic.com 443 /v1 api.anthropic.com",
		"Anthropic http://127.0.0.1:18080/anthropic": "http 127.0.0.1 18080 /anthropic/v1 ",
	} {
		t.Run(url, func(t *testing.T) {
			t.Parallel()
			format, address, _ := strings.Cut(url, " ")
			p, problems := Provider(&v1alpha1.Provider{Spec: v1alpha1.ProviderSpec{Format: v1alpha1.ProviderFormat(format), URL: address}}, nil)
			if problems != nil {
				t.Fatal(problems)
			}
			if got := fmt.Sprintf("%s %s %d %s %s", p.Scheme, p.Host, p.Port, p.BasePath, p.ServerName); got != want {
				t.Fatalf("got %q, want %q", got, want)
			}
		})
	}
}

func TestProviderCredentials(t *testing.T) {
	t.Parallel()
	secret := func(value string) *corev1.Secret {
		return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "openai"}, Data: map[string][]byte{"token": []byte(value)}}
	}
	keys := secret("lk_abc")
	keys.Labels = map[string]string{v1alpha1.LabelAPIKey: "backend"}
	for name, tc := range map[string]struct {
		format v1alpha1.ProviderFormat
		header v1alpha1.CredentialHeader
		secret *corev1.Secret
		want   string // header: prefix + credential
		reason string
	}{
		"OpenAI's is a bearer token":              {v1alpha1.ProviderFormatOpenAI, "", secret("sk-1"), "authorization: Bearer sk-1", ""},
		"Anthropic's has a header of its own":     {v1alpha1.ProviderFormatAnthropic, "", secret("sk-1"), "x-api-key: sk-1", ""},
		"another header can be chosen":            {v1alpha1.ProviderFormatOpenAI, v1alpha1.CredentialHeaderAPIKey, secret("sk-1"), "api-key: sk-1", ""},
		"a line end behind it is left out":        {v1alpha1.ProviderFormatOpenAI, "", secret("sk-1\r\n"), "authorization: Bearer sk-1", ""},
		"a missing Secret":                        {v1alpha1.ProviderFormatOpenAI, "", nil, "", v1alpha1.ReasonCredentialNotFound},
		"an empty one":                            {v1alpha1.ProviderFormatOpenAI, "", secret("\n"), "", v1alpha1.ReasonCredentialNotFound},
		"a header within":                         {v1alpha1.ProviderFormatOpenAI, "", secret("sk-1\r\nx-evil: 1"), "", v1alpha1.ReasonInvalid},
		"a Latchkey key is no credential of ours": {v1alpha1.ProviderFormatOpenAI, "", keys, "", v1alpha1.ReasonCredentialNotFound},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, problems := Provider(&v1alpha1.Provider{Spec: v1alpha1.ProviderSpec{
				Format: tc.format, URL: "https://example.com",
				Credential: &v1alpha1.ProviderCredential{SecretRef: v1alpha1.SecretKeyReference{Name: "openai", Key: "token"}, Header: tc.header},
			}}, tc.secret)
			if tc.reason != "" {
				if p != nil || len(problems) != 1 || problems[0].Reason != tc.reason || !strings.Contains(problems[0].Message, "openai") || strings.Contains(problems[0].Message, "sk-1") {
					t.Fatalf("Provider = %v, %v", p, problems)
				}
				return
			}
			if problems != nil {
				t.Fatal(problems)
			}
			if got := p.CredentialHeader + ": " + p.CredentialPrefix + p.Credential.Reveal(); got != tc.want {
				t.Fatalf("got %q, want %q", got, tc.want)
			}
		})
	}
}

func TestProviderSettings(t *testing.T) {
	t.Parallel()
	spec := v1alpha1.ProviderSpec{Format: v1alpha1.ProviderFormatOpenAI, URL: "https://example.com/v1"}
	p, _ := Provider(&v1alpha1.Provider{Spec: spec}, nil)
	if p.ConnectTimeout != DefaultConnectTimeout || p.RequestTimeout != DefaultRequestTimeout || p.IdleTimeout != DefaultIdleTimeout || p.RetryAttempts != 0 || p.CredentialHeader != "" {
		t.Errorf("defaults: %+v", p)
	}
	spec.Timeouts = &v1alpha1.ProviderTimeouts{Connect: &metav1.Duration{Duration: time.Second}, Request: &metav1.Duration{}, Idle: &metav1.Duration{Duration: time.Minute}}
	spec.Retries = &v1alpha1.ProviderRetries{Attempts: new(int32(3))}
	spec.TLS = &v1alpha1.ProviderTLS{ServerName: "internal.example.com"}
	p, problems := Provider(&v1alpha1.Provider{Spec: spec}, nil)
	if problems != nil || p.ConnectTimeout != time.Second || p.RequestTimeout != 0 || p.IdleTimeout != time.Minute || p.RetryAttempts != 3 || p.ServerName != "internal.example.com" {
		t.Errorf("set: %+v, %v", p, problems)
	}
	spec.TLS = &v1alpha1.ProviderTLS{CABundle: "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"}
	if p, problems := Provider(&v1alpha1.Provider{Spec: spec}, nil); p != nil || len(problems) != 1 || !problems[0].Stalled || !strings.Contains(problems[0].Message, "spec.tls.caBundle") {
		t.Errorf("a bundle that cannot be read: %v, %v", p, problems)
	}
}
