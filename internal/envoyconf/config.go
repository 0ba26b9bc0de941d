package envoyconf

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strings"
	"time"

	"github.com/latchkey-dev/latchkey/internal/policy"
)

// The names of the resources. A provider's cluster and credential are named by ProviderCluster and CredentialSecret.
const (
	ListenerName    = "gateway"
	RouteTableName  = "gateway"
	EnforcerCluster = "enforcer"
)

// What applies where Config leaves it open.
const (
	DefaultGatewayAddress  = "0.0.0.0"
	DefaultEnforcerTimeout = 10 * time.Second
	DefaultSystemRoots     = "/etc/ssl/certs/ca-certificates.crt"
)

// ProviderCluster is the name of a provider's cluster.
func ProviderCluster(provider string) string { return "provider/" + provider }

// CredentialSecret is the name of the secret that holds a provider's credential.
func CredentialSecret(provider string) string { return "credential/" + provider }

// Config is what concerns the gateway as a whole.
type Config struct {
	GatewayAddress  string        // the IP address that Envoy listens on; empty: DefaultGatewayAddress
	GatewayPort     uint32        // 0: the system picks one, which Envoy's admin interface tells
	EnforcerSocket  string        // path of the enforcer's unix socket on Envoy's machine
	EnforcerTimeout time.Duration // the most that one question to the enforcer can take; 0: DefaultEnforcerTimeout
	MaxRequestBytes uint32        // the most that a request's body can hold; 0: policy.DefaultMaxRequestBytes; at most 2^31-1, and over HTTP/2 never less than 65,535
	SystemRoots     string        // PEM file, on Envoy's machine, of the authorities that are trusted for providers without a bundle of their own; empty: DefaultSystemRoots
	AccessLog       bool          // one line of JSON for each request on Envoy's standard output; it holds neither keys nor queries
}

func (c Config) withDefaults() (Config, error) {
	if c.GatewayAddress == "" {
		c.GatewayAddress = DefaultGatewayAddress
	}
	if c.EnforcerTimeout == 0 {
		c.EnforcerTimeout = DefaultEnforcerTimeout
	}
	if c.MaxRequestBytes == 0 {
		c.MaxRequestBytes = policy.DefaultMaxRequestBytes
	}
	if c.SystemRoots == "" {
		c.SystemRoots = DefaultSystemRoots
	}
	var errs []error
	if _, err := netip.ParseAddr(c.GatewayAddress); err != nil {
		errs = append(errs, fmt.Errorf("parse gateway address: %w", err))
	}
	if c.GatewayPort > math.MaxUint16 {
		errs = append(errs, fmt.Errorf("gateway port %d is above %d", c.GatewayPort, math.MaxUint16))
	}
	if c.MaxRequestBytes > math.MaxInt32 {
		errs = append(errs, fmt.Errorf("limit of %d bytes for requests is above %d, the largest window of HTTP/2", c.MaxRequestBytes, math.MaxInt32))
	}
	if !strings.HasPrefix(c.EnforcerSocket, "/") {
		errs = append(errs, fmt.Errorf("enforcer socket %q is not an absolute path", c.EnforcerSocket))
	}
	if c.EnforcerTimeout < 0 {
		errs = append(errs, fmt.Errorf("enforcer timeout %v is negative", c.EnforcerTimeout))
	}
	return c, errors.Join(errs...)
}

// Check reports why Envoy could not take a provider. It is for those who must go on with the others, since Build refuses all.
func Check(p policy.Provider) error {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if p.Name == "" {
		fail("the name is empty")
	}
	if p.Format == policy.FormatUnknown {
		fail("the format is unknown")
	}
	if p.Scheme != schemeHTTP && p.Scheme != schemeHTTPS {
		fail("scheme %q is neither http nor https", p.Scheme)
	}
	if p.Host == "" || strings.ContainsAny(p.Host, "/[]@ ") {
		fail("host %q is neither a name nor an address", p.Host)
	}
	if p.Port == 0 {
		fail("the port is 0")
	}
	if p.BasePath != "" && (!strings.HasPrefix(p.BasePath, "/") || strings.HasSuffix(p.BasePath, "/") || strings.ContainsAny(p.BasePath, "?#")) {
		fail("base path %q does not start with a slash, ends with one, or has a query", p.BasePath)
	}
	if p.CredentialHeader != strings.ToLower(p.CredentialHeader) || strings.HasPrefix(p.CredentialHeader, ":") {
		fail("credential header %q is not a header's name in lower case", p.CredentialHeader)
	}
	if p.CredentialHeader != "" && (p.Credential == "" || strings.ContainsAny(p.Credential.Reveal(), "\r\n\x00")) {
		fail("the credential is empty or has characters that no header can have")
	}
	if p.ConnectTimeout < 0 || p.RequestTimeout < 0 || p.IdleTimeout < 0 || p.RetryAttempts < 0 {
		fail("a timeout or the number of retries is negative")
	}
	return errors.Join(errs...)
}
