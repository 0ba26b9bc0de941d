package compile

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	"github.com/latchkey-dev/latchkey/internal/policy"
)

// The timeouts that apply where a Provider sets none. The CRD's texts name the same figures.
const (
	DefaultConnectTimeout = 5 * time.Second
	DefaultRequestTimeout = time.Hour
	DefaultIdleTimeout    = 10 * time.Minute
)

// pemCertificate is the type of a PEM block that holds a certificate.
const pemCertificate = "CERTIFICATE"

// Provider compiles a Provider with its credential's Secret (nil: there is none).
func Provider(p *v1alpha1.Provider, secret *corev1.Secret) (*policy.Provider, []Problem) {
	if !p.DeletionTimestamp.IsZero() {
		return nil, nil
	}
	out := &policy.Provider{
		Name:           p.Name,
		Format:         format(p.Spec.Format),
		ConnectTimeout: DefaultConnectTimeout,
		RequestTimeout: DefaultRequestTimeout,
		IdleTimeout:    DefaultIdleTimeout,
	}
	if out.Format == policy.FormatUnknown {
		return nil, []Problem{{v1alpha1.ReasonInvalid, fmt.Sprintf("spec.format: %q is unknown to this version of Latchkey: write %s or %s",
			p.Spec.Format, v1alpha1.ProviderFormatOpenAI, v1alpha1.ProviderFormatAnthropic), true}}
	}
	if err := address(p.Spec.URL, out); err != nil {
		return nil, []Problem{{v1alpha1.ReasonInvalid, fmt.Sprintf("spec.url: %v", err), true}}
	}
	if t := p.Spec.TLS; t != nil {
		out.CABundle, out.ServerName = t.CABundle, t.ServerName
		if err := checkBundle(t.CABundle); err != nil {
			return nil, []Problem{{v1alpha1.ReasonInvalid, fmt.Sprintf("spec.tls.caBundle: %v", err), true}}
		}
	}
	if out.Scheme == "https" && out.ServerName == "" {
		out.ServerName = out.Host
	}
	if t := p.Spec.Timeouts; t != nil {
		for _, d := range []struct {
			from *metav1.Duration
			into *time.Duration
		}{{t.Connect, &out.ConnectTimeout}, {t.Request, &out.RequestTimeout}, {t.Idle, &out.IdleTimeout}} {
			if d.from != nil {
				*d.into = d.from.Duration
			}
		}
	}
	if r := p.Spec.Retries; r != nil && r.Attempts != nil {
		out.RetryAttempts = *r.Attempts
	}
	if c := p.Spec.Credential; c != nil {
		if problem := credential(c, out, secret); problem != nil {
			return nil, []Problem{*problem}
		}
	}
	return out, nil
}

func credential(c *v1alpha1.ProviderCredential, out *policy.Provider, secret *corev1.Secret) *Problem {
	header := c.Header
	if header == "" {
		header = v1alpha1.CredentialHeaderAuthorization
		if out.Format == policy.FormatAnthropic {
			header = v1alpha1.CredentialHeaderXAPIKey
		}
	}
	out.CredentialHeader = strings.ToLower(string(header))
	if header == v1alpha1.CredentialHeaderAuthorization {
		out.CredentialPrefix = "Bearer "
	}
	name, key := c.SecretRef.Name, c.SecretRef.Key
	if key == "" {
		key = v1alpha1.SecretDataAPIKey
	}
	if secret == nil {
		return &Problem{v1alpha1.ReasonCredentialNotFound, fmt.Sprintf(
			"Secret %s does not exist in the namespace that Latchkey is installed in: create it there, with the provider's credential under the key %q", name, key), false}
	}
	if secret.Labels[v1alpha1.LabelAPIKey] != "" {
		return &Problem{v1alpha1.ReasonCredentialNotFound, fmt.Sprintf(
			"Secret %s holds a Latchkey API key, not a provider's credential: name another in spec.credential.secretRef", name), true}
	}
	value := strings.TrimRight(string(secret.Data[key]), "\r\n") // editors and echo leave one behind
	switch {
	case value == "":
		return &Problem{v1alpha1.ReasonCredentialNotFound, fmt.Sprintf(
			"Secret %s has nothing under the key %q: put the provider's credential there, or name its key in spec.credential.secretRef.key", name, key), false}
	case strings.ContainsFunc(value, func(r rune) bool { return r <= ' ' || r >= 0x7f }):
		return &Problem{v1alpha1.ReasonInvalid, fmt.Sprintf(
			"Secret %s: what stands under the key %q holds blanks, control characters or characters beyond ASCII, which no header can carry: store the credential alone", name, key), true}
	}
	out.Credential = policy.Sensitive(value)
	return nil
}

// address takes a base URL apart.
func address(raw string, out *policy.Provider) error {
	u, err := url.Parse(raw)
	if err != nil || u.Hostname() == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return fmt.Errorf("%q is not an absolute http or https URL with a host, such as https://api.openai.com/v1", raw)
	}
	out.Scheme, out.Host = u.Scheme, u.Hostname()
	out.Port = 443
	if u.Scheme == "http" {
		out.Port = 80
	}
	if p := u.Port(); p != "" {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil || n == 0 {
			return fmt.Errorf("port %s: a port is a number from 1 to 65535", p)
		}
		out.Port = uint16(n)
	}
	path := strings.TrimRight(u.EscapedPath(), "/")
	if out.Format == policy.FormatAnthropic {
		// Its SDK's base URL stands before /v1; many write it with /v1 all the same.
		path = strings.TrimSuffix(path, "/v1") + "/v1"
	}
	out.BasePath = path
	return nil
}

// checkBundle makes sure that Envoy can read all of a bundle: what pem.Decode passes over in silence, Envoy refuses.
func checkBundle(bundle string) error {
	found := 0
	for rest := []byte(bundle); ; found++ {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != pemCertificate {
			return fmt.Errorf("it holds a %s: leave in it certificates alone", block.Type)
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return fmt.Errorf("a certificate in it cannot be read: %w", err)
		}
	}
	begun := strings.Count(bundle, "-----BEGIN ")
	switch {
	case bundle != "" && begun == 0:
		return errors.New("it holds no certificate in PEM")
	case begun != found:
		return fmt.Errorf("%d of the %d certificates in it cannot be read as PEM: copy the whole of each, from its BEGIN line to its END line", begun-found, begun)
	}
	return nil
}
