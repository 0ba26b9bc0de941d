package compile

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
)

func TestKeyPrefix(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ stored, want string }{
		"one that was minted":      {"lk_aB3dE6", "lk_aB3dE6"},
		"none":                     {"", ""},
		"one cut short":            {"lk_", "lk_"},
		"a whole key":              {"lk_" + strings.Repeat("a", 49), ""},
		"more than a prefix":       {strings.Repeat("a", maxKeyPrefix+1), ""},
		"something beyond letters": {"lk_<b>", ""},
		"a line's end":             {"lk_abc\n", ""},
		"bytes that are no text":   {"lk_\xff", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			secret := &corev1.Secret{Data: map[string][]byte{v1alpha1.SecretDataKeyPrefix: []byte(tc.stored)}}
			if got := KeyPrefix(secret); got != tc.want {
				t.Fatalf("got %q, want %q", got, tc.want)
			}
		})
	}
}

func TestASecretThatNeverHeldAKeyIsInTheWay(t *testing.T) {
	t.Parallel()
	k := &v1alpha1.APIKey{ObjectMeta: metav1.ObjectMeta{Name: "backend"}}
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "backend-api-key", Labels: map[string]string{v1alpha1.LabelAPIKey: "backend"}}}
	compiled, problems := Key(k, secret)
	if compiled != nil || len(problems) != 1 || problems[0].Reason != v1alpha1.ReasonSecretConflict || !problems[0].Stalled ||
		!strings.Contains(problems[0].Message, "delete that Secret") {
		t.Fatalf("got %+v, %+v", compiled, problems)
	}
	// Once a key has been minted, the same Secret means that it is lost.
	k.Status.SecretName = secret.Name
	if _, problems := Key(k, secret); len(problems) != 1 || problems[0].Reason != v1alpha1.ReasonSecretLost {
		t.Fatalf("got %+v", problems)
	}
}

func TestAFormatOfAnotherTimeIsInvalid(t *testing.T) {
	t.Parallel()
	p := &v1alpha1.Provider{Spec: v1alpha1.ProviderSpec{Format: "Gopher", URL: "https://host/v1"}}
	compiled, problems := Provider(p, nil)
	if compiled != nil || len(problems) != 1 || problems[0].Reason != v1alpha1.ReasonInvalid || !problems[0].Stalled ||
		!strings.Contains(problems[0].Message, "spec.format") {
		t.Fatalf("got %+v, %+v", compiled, problems)
	}
}

// FuzzProviderURL looks for a URL that is accepted and makes a path that cannot take the place of /v1.
func FuzzProviderURL(f *testing.F) {
	for _, url := range []string{"https://api.openai.com/v1", "http://[::1]:80//", "https://h/%2f/v1", "https://h/a?b#c", "http://u:p@h", "//", ""} {
		f.Add(url, true)
		f.Add(url, false)
	}
	f.Fuzz(func(t *testing.T, url string, anthropic bool) {
		object := &v1alpha1.Provider{Spec: v1alpha1.ProviderSpec{Format: v1alpha1.ProviderFormatOpenAI, URL: url}}
		if anthropic {
			object.Spec.Format = v1alpha1.ProviderFormatAnthropic
		}
		p, problems := Provider(object, nil)
		if (p == nil) != (len(problems) == 1) {
			t.Fatalf("%q: %+v, %+v", url, p, problems)
		}
		if p == nil {
			return
		}
		if p.Host == "" || p.Port == 0 || (p.Scheme != "http" && p.Scheme != "https") {
			t.Fatalf("%q: %+v", url, p)
		}
		if b := p.BasePath; b != "" && (!strings.HasPrefix(b, "/") || strings.HasSuffix(b, "/")) || strings.ContainsAny(b, "?# \n") {
			t.Fatalf("%q: base path %q", url, b)
		}
	})
}
