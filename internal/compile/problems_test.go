package compile

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	"github.com/latchkey-dev/latchkey/internal/policy"
)

// TestEveryProblemNamesItsFieldAndItsMend holds each message against what a person needs of it: where it is, and what to do.
func TestEveryProblemNamesItsFieldAndItsMend(t *testing.T) {
	t.Parallel()
	keyProblem := func(k *v1alpha1.APIKey, s *corev1.Secret) []Problem { _, p := Key(k, s); return p }
	providerProblem := func(secret *corev1.Secret, change func(*v1alpha1.ProviderSpec)) []Problem {
		p := &v1alpha1.Provider{Spec: v1alpha1.ProviderSpec{Format: v1alpha1.ProviderFormatOpenAI, URL: "https://example.com/v1"}}
		change(&p.Spec)
		_, problems := Provider(p, secret)
		return problems
	}
	withCredential := func(s *v1alpha1.ProviderSpec) {
		s.Credential = &v1alpha1.ProviderCredential{SecretRef: v1alpha1.SecretKeyReference{Name: "openai"}}
	}
	badMoney := &v1alpha1.Budgets{Daily: new(v1alpha1.Money("ten"))}
	_, applicationProblems := Application(&v1alpha1.Application{Spec: v1alpha1.ApplicationSpec{Budgets: badMoney}})
	_, systemProblems := System(&v1alpha1.SystemPolicy{Spec: v1alpha1.SystemPolicySpec{TimeZone: "Mars/Olympus"}})
	_, modelProblems := Model(&v1alpha1.Model{Spec: v1alpha1.ModelSpec{ProviderRef: v1alpha1.ProviderReference{Name: "vllm"}}}, nil)
	for name, tc := range map[string]struct {
		problems []Problem
		reason   string
		stalled  bool
		says     []string
	}{
		"a key that is not minted yet": {keyProblem(apiKey(func(k *v1alpha1.APIKey) { k.Status = v1alpha1.APIKeyStatus{} }), nil),
			v1alpha1.ReasonPending, false, []string{"not been minted"}},
		"a key without its Secret": {keyProblem(apiKey(), nil),
			v1alpha1.ReasonSecretLost, true, []string{"backend-api-key", "delete this APIKey and create a new one"}},
		"a key with somebody's Secret": {keyProblem(apiKey(), keySecret(func(s *corev1.Secret) { s.Labels[v1alpha1.LabelAPIKey] = "other" })),
			v1alpha1.ReasonSecretConflict, true, []string{"backend-api-key", "latchkey.dev/api-key=backend", "delete that Secret", "spec.secret.name"}},
		"a key whose hash cannot be read": {keyProblem(apiKey(), keySecret(func(s *corev1.Secret) { s.Data["keyHash"] = []byte("zz") })),
			v1alpha1.ReasonSecretLost, true, []string{"backend-api-key", "keyHash", "SHA-256 in hex", "create a new one"}},
		"a key whose hash is another": {keyProblem(apiKey(), keySecret(func(s *corev1.Secret) { s.Data["keyHash"] = []byte(policy.KeyHash{9}.String()) })),
			v1alpha1.ReasonSecretLost, true, []string{"backend-api-key", "restore it", "create a new one"}},
		"a key's daily budget": {keyProblem(apiKey(func(k *v1alpha1.APIKey) { k.Spec.Budgets = badMoney }), keySecret()),
			v1alpha1.ReasonInvalid, true, []string{"spec.budgets.daily", "ten"}},
		"an application's daily budget": {applicationProblems, v1alpha1.ReasonInvalid, true, []string{"spec.budgets.daily", "ten"}},
		"a model without its provider":  {modelProblems, v1alpha1.ReasonProviderNotFound, false, []string{"vllm", "create it", "spec.providerRef.name"}},
		"a time zone":                   {systemProblems, v1alpha1.ReasonInvalid, true, []string{"spec.timeZone", "Mars/Olympus", "Europe/Berlin"}},
		"a URL without a host": {providerProblem(nil, func(s *v1alpha1.ProviderSpec) { s.URL = "https:///v1" }),
			v1alpha1.ReasonInvalid, true, []string{"spec.url", "https://api.openai.com/v1"}},
		"a URL of another scheme": {providerProblem(nil, func(s *v1alpha1.ProviderSpec) { s.URL = "ftp://example.com" }),
			v1alpha1.ReasonInvalid, true, []string{"spec.url", "ftp://example.com"}},
		"a port beyond the last": {providerProblem(nil, func(s *v1alpha1.ProviderSpec) { s.URL = "http://example.com:70000" }),
			v1alpha1.ReasonInvalid, true, []string{"spec.url", "70000", "1 to 65535"}},
		"port 0": {providerProblem(nil, func(s *v1alpha1.ProviderSpec) { s.URL = "http://example.com:0" }),
			v1alpha1.ReasonInvalid, true, []string{"spec.url", "1 to 65535"}},
		"a CA bundle without a certificate": {providerProblem(nil, func(s *v1alpha1.ProviderSpec) { s.TLS = &v1alpha1.ProviderTLS{CABundle: "hello"} }),
			v1alpha1.ReasonInvalid, true, []string{"spec.tls.caBundle", "PEM"}},
		"a credential that does not exist": {providerProblem(nil, withCredential),
			v1alpha1.ReasonCredentialNotFound, false, []string{"openai", "create it", `"apiKey"`}},
		"a credential under another key": {providerProblem(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "openai"}, Data: map[string][]byte{"token": []byte("x")}}, withCredential),
			v1alpha1.ReasonCredentialNotFound, false, []string{"openai", `"apiKey"`, "spec.credential.secretRef.key"}},
		"a credential that is a key of ours": {providerProblem(keySecret(func(s *corev1.Secret) { s.Name = "openai" }), withCredential),
			v1alpha1.ReasonCredentialNotFound, true, []string{"openai", "spec.credential.secretRef"}},
		"a credential that no header can carry": {providerProblem(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "openai"}, Data: map[string][]byte{"apiKey": []byte("a b")}}, withCredential),
			v1alpha1.ReasonInvalid, true, []string{"openai", `"apiKey"`, "store the credential alone"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if len(tc.problems) != 1 {
				t.Fatalf("%d problems: %v", len(tc.problems), tc.problems)
			}
			p := tc.problems[0]
			if p.Reason != tc.reason || p.Stalled != tc.stalled {
				t.Errorf("%s, stalled %v; want %s, %v", p.Reason, p.Stalled, tc.reason, tc.stalled)
			}
			for _, want := range tc.says {
				if !strings.Contains(p.Message, want) {
					t.Errorf("message %q does not say %q", p.Message, want)
				}
			}
		})
	}
}

func TestAllBadBudgetsAreNamedAtOnce(t *testing.T) {
	t.Parallel()
	_, problems := Key(apiKey(func(k *v1alpha1.APIKey) {
		k.Spec.Budgets = &v1alpha1.Budgets{Daily: new(v1alpha1.Money("x")), Monthly: new(v1alpha1.Money("y"))}
	}), keySecret())
	if len(problems) != 2 || !strings.Contains(problems[0].Message, "spec.budgets.daily") || !strings.Contains(problems[1].Message, "spec.budgets.monthly") {
		t.Fatalf("problems %v", problems)
	}
}

func TestHashesThatAreHonoured(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		hash string
		ok   bool
	}{
		"lower case":   {hash.String(), true},
		"upper case":   {strings.ToUpper(hash.String()), true},
		"a byte short": {hash.String()[2:], false},
		"a byte long":  {hash.String() + "00", false},
		"a line end":   {hash.String() + "\n", false},
		"no hex":       {strings.Repeat("g", 64), false},
		"nothing":      {"", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, problem := KeyHash(apiKey(), keySecret(func(s *corev1.Secret) { s.Data["keyHash"] = []byte(tc.hash) }))
			if (problem == nil) != tc.ok || (tc.ok && got != hash) {
				t.Fatalf("KeyHash = %v, %v", got, problem)
			}
		})
	}
}

func TestAddressesOfBothFormats(t *testing.T) {
	t.Parallel()
	for url, want := range map[string]string{
		"OpenAI https://example.com":                    "https example.com 443  example.com",
		"OpenAI https://example.com/":                   "https example.com 443  example.com",
		"OpenAI https://example.com/v1beta/openai//":    "https example.com 443 /v1beta/openai example.com",
		"OpenAI https://example.com/a%20b/v1":           "https example.com 443 /a%20b/v1 example.com",
		"OpenAI http://example.com":                     "http example.com 80  ",
		"OpenAI http://example.com:1":                   "http example.com 1  ",
		"OpenAI https://example.com:65535/v1":           "https example.com 65535 /v1 example.com",
		"OpenAI http://[fd00::1]/v1":                    "http fd00::1 80 /v1 ",
		"Anthropic https://[fd00::1]:8443":              "https fd00::1 8443 /v1 fd00::1",
		"Anthropic https://api.anthropic.com/":          "https api.anthropic.com 443 /v1 api.anthropic.com",
		"Anthropic https://api.anthropic.com/v1/":       "https api.anthropic.com 443 /v1 api.anthropic.com",
		"Anthropic https://example.com/proxy/anthropic": "https example.com 443 /proxy/anthropic/v1 example.com",
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

func TestCredentialsAsHeadersCarryThem(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		value  string
		want   string
		reason string
	}{
		"plain":                  {"sk-1", "sk-1", ""},
		"a newline":              {"sk-1\n", "sk-1", ""},
		"several line ends":      {"sk-1\r\n\r\n", "sk-1", ""},
		"a newline before":       {"\nsk-1", "", v1alpha1.ReasonInvalid},
		"a blank behind":         {"sk-1 ", "", v1alpha1.ReasonInvalid},
		"a tab":                  {"sk\t1", "", v1alpha1.ReasonInvalid},
		"a zero byte":            {"sk\x001", "", v1alpha1.ReasonInvalid},
		"a delete character":     {"sk\x7f1", "", v1alpha1.ReasonInvalid},
		"beyond ASCII":           {"sk-ü", "", v1alpha1.ReasonInvalid},
		"bytes that are no text": {"sk-\xff", "", v1alpha1.ReasonInvalid},
		"empty":                  {"", "", v1alpha1.ReasonCredentialNotFound},
		"line ends alone":        {"\r\n", "", v1alpha1.ReasonCredentialNotFound},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, problems := Provider(&v1alpha1.Provider{Spec: v1alpha1.ProviderSpec{
				Format: v1alpha1.ProviderFormatOpenAI, URL: "https://example.com",
				Credential: &v1alpha1.ProviderCredential{SecretRef: v1alpha1.SecretKeyReference{Name: "openai"}},
			}}, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "openai"}, Data: map[string][]byte{"apiKey": []byte(tc.value)}})
			if tc.reason != "" {
				if p != nil || len(problems) != 1 || problems[0].Reason != tc.reason || strings.Contains(problems[0].Message, "sk") {
					t.Fatalf("Provider = %v, %v", p, problems)
				}
				return
			}
			if problems != nil || p.Credential.Reveal() != tc.want || strings.Contains(fmt.Sprintf("%v %+v", p, *p), tc.want) {
				t.Fatalf("Provider = %+v, %v", p, problems)
			}
		})
	}
}

func certificate(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<33, 0), IsCA: true, BasicConstraintsValid: true}
	raw, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: raw}))
}

func TestCABundles(t *testing.T) {
	t.Parallel()
	one, two := certificate(t), certificate(t)
	for name, tc := range map[string]struct {
		bundle string
		ok     bool
	}{
		"one certificate":                   {one, true},
		"two":                               {one + two, true},
		"with comments between":             {"# first\n" + one + "# second\n" + two, true},
		"a certificate that is none":        {one + "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", false},
		"one that is cut off":               {one + two[:len(two)/2], false},
		"one whose base64 is garbled":       {one + strings.Replace(two, "M", "*", 1), false},
		"a private key, which is no secret": {string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte{1}})), false},
		"text":                              {"-----BEGIN CERTIFICATE-----", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, problems := Provider(&v1alpha1.Provider{Spec: v1alpha1.ProviderSpec{
				Format: v1alpha1.ProviderFormatOpenAI, URL: "https://example.com", TLS: &v1alpha1.ProviderTLS{CABundle: tc.bundle},
			}}, nil)
			if tc.ok {
				if problems != nil || p.CABundle != tc.bundle || p.ServerName != "example.com" {
					t.Fatalf("Provider = %+v, %v", p, problems)
				}
				return
			}
			if p != nil || len(problems) != 1 || problems[0].Reason != v1alpha1.ReasonInvalid || !problems[0].Stalled || !strings.Contains(problems[0].Message, "spec.tls.caBundle") {
				t.Fatalf("Provider = %v, %v", p, problems)
			}
		})
	}
}

func TestTimeZones(t *testing.T) {
	t.Parallel()
	for zone, want := range map[string]string{
		"": "UTC", "UTC": "UTC", "Europe/Berlin": "Europe/Berlin", "America/Argentina/Buenos_Aires": "America/Argentina/Buenos_Aires", "Etc/GMT+5": "Etc/GMT+5",
		"Local": "UTC", "../etc/passwd": "UTC", "Berlin": "UTC",
	} {
		t.Run(zone, func(t *testing.T) {
			t.Parallel()
			got, problems := System(&v1alpha1.SystemPolicy{Spec: v1alpha1.SystemPolicySpec{TimeZone: zone}})
			if got.TimeZone != want || (zone != "" && zone != want) != (len(problems) == 1) {
				t.Fatalf("zone %q, problems %v", got.TimeZone, problems)
			}
		})
	}
}

func TestDefaults(t *testing.T) {
	t.Parallel()
	t.Run("of a range that is half set", func(t *testing.T) {
		t.Parallel()
		want := policy.DefaultSystem()
		got, problems := System(&v1alpha1.SystemPolicy{Spec: v1alpha1.SystemPolicySpec{RateLimits: &v1alpha1.SystemRateLimits{
			RequestsPerMinute: &v1alpha1.LimitRange{Max: new(int64(5))}, TokensPerMinute: nil,
		}}})
		if diff := cmp.Diff(&want, got); diff != "" || problems != nil {
			t.Fatalf("problems %v, -want +got:\n%s", problems, diff)
		}
	})
	t.Run("of a key's state", func(t *testing.T) {
		t.Parallel()
		for state, want := range map[v1alpha1.State]policy.State{"": policy.StateEnabled, v1alpha1.StateEnabled: policy.StateEnabled, v1alpha1.StateDisabled: policy.StateDisabled, "Paused": policy.StateDisabled} {
			if got, _ := Key(apiKey(func(k *v1alpha1.APIKey) { k.Spec.State = state }), keySecret()); got.State != want {
				t.Errorf("%q: %v, want %v", state, got.State, want)
			}
		}
	})
	t.Run("of a model", func(t *testing.T) {
		t.Parallel()
		m := &v1alpha1.Model{ObjectMeta: metav1.ObjectMeta{Name: "gpt"}, Spec: v1alpha1.ModelSpec{UpstreamName: "gpt-4o-2024"}}
		got, _ := Model(m, &v1alpha1.Provider{Spec: v1alpha1.ProviderSpec{Format: v1alpha1.ProviderFormatAnthropic}})
		if got.Name != "gpt" || got.UpstreamName != "gpt-4o-2024" || got.Format != policy.FormatAnthropic || got.MaxOutputTokens != 0 {
			t.Fatalf("Model = %+v", got)
		}
		m.DeletionTimestamp = &metav1.Time{Time: time.Now()}
		if got, problems := Model(m, &v1alpha1.Provider{}); got != nil || problems != nil {
			t.Fatalf("one that is being deleted: %+v, %v", got, problems)
		}
	})
	t.Run("a provider that is being deleted is not published", func(t *testing.T) {
		t.Parallel()
		p := &v1alpha1.Provider{ObjectMeta: metav1.ObjectMeta{DeletionTimestamp: &metav1.Time{Time: time.Now()}}, Spec: v1alpha1.ProviderSpec{URL: "https://example.com"}}
		if got, problems := Provider(p, nil); got != nil || problems != nil {
			t.Fatalf("Provider = %v, %v", got, problems)
		}
	})
	t.Run("a key's policy needs no Secret", func(t *testing.T) {
		t.Parallel()
		got := Policy(apiKey())
		if !got.Limits.RequestsPerMinute.IsSet() && got.Budgets == policy.NoBudgets() && got.Capabilities == policy.CapabilitiesOf(policy.TextGeneration, policy.WebSearch) {
			return
		}
		t.Fatalf("Policy = %+v", got)
	})
	t.Run("a list of unknown capabilities allows nothing", func(t *testing.T) {
		t.Parallel()
		got, _ := Application(&v1alpha1.Application{Spec: v1alpha1.ApplicationSpec{Capabilities: []v1alpha1.Capability{"Telepathy"}}})
		if got.Capabilities != 0 {
			t.Fatalf("Application = %+v", got)
		}
	})
}
