package certs

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"time"
)

// The names that certificates of the xDS port carry.
const (
	// ServerName is the DNS name in the control plane's certificate.
	ServerName = "latchkey-xds"
	// EnforcerURI is the URI in an enforcer's certificate. It may receive the key set.
	EnforcerURI = "spiffe://latchkey.dev/enforcer"
	// EnvoyURI is the URI in an Envoy's certificate. It may receive Envoy's own resources, providers' credentials among them.
	EnvoyURI = "spiffe://latchkey.dev/envoy"
)

// How long certificates of the manager's own authority hold.
const (
	AuthorityLifetime = 10 * 365 * 24 * time.Hour
	LeafLifetime      = 90 * 24 * time.Hour
	// backdated covers clocks that differ between machines.
	backdated = 5 * time.Minute
)

// Bundle is a certificate with its key and the authority that the other side's certificate is checked against, each in PEM.
type Bundle struct {
	CA, Cert, Key []byte
}

// Identity is what a leaf certificate is issued for: a server by its DNS name, or a client by its URI.
type Identity struct {
	CommonName string
	DNSName    string // server
	URI        string // client
}

// Identities of the three parties on the xDS port.
func Identities() (server, enforcer, envoy Identity) {
	return Identity{CommonName: ServerName, DNSName: ServerName},
		Identity{CommonName: "latchkey-enforcer", URI: EnforcerURI},
		Identity{CommonName: "latchkey-envoy", URI: EnvoyURI}
}

// NewAuthority makes a self-signed authority.
func NewAuthority(now time.Time) (Bundle, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Bundle{}, fmt.Errorf("generate authority key: %w", err)
	}
	template, err := newTemplate("latchkey-authority", now, AuthorityLifetime)
	if err != nil {
		return Bundle{}, err
	}
	template.IsCA = true
	template.BasicConstraintsValid = true
	template.MaxPathLenZero = true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return Bundle{}, fmt.Errorf("create authority certificate: %w", err)
	}
	return encodeBundle(nil, der, key)
}

// Issue makes a leaf certificate signed by the authority.
func Issue(authority Bundle, id Identity, now time.Time) (Bundle, error) {
	ca, caKey, err := parsePair(authority)
	if err != nil {
		return Bundle{}, fmt.Errorf("read authority: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Bundle{}, fmt.Errorf("generate key of %s: %w", id.CommonName, err)
	}
	template, err := newTemplate(id.CommonName, now, LeafLifetime)
	if err != nil {
		return Bundle{}, err
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	if id.DNSName != "" {
		template.DNSNames = []string{id.DNSName}
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	} else {
		uri, err := url.Parse(id.URI)
		if err != nil {
			return Bundle{}, fmt.Errorf("parse identity of %s: %w", id.CommonName, err)
		}
		template.URIs = []*url.URL{uri}
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca, key.Public(), caKey)
	if err != nil {
		return Bundle{}, fmt.Errorf("create certificate of %s: %w", id.CommonName, err)
	}
	return encodeBundle(authority.Cert, der, key)
}

// NeedsRenewal reports whether a leaf must be issued anew: it is unreadable, was not signed by the authority, or has passed two
// thirds of its time.
func NeedsRenewal(authority, leaf Bundle, now time.Time) bool {
	cert, _, err := parsePair(leaf)
	if err != nil {
		return true
	}
	ca, _, err := parsePair(authority)
	if err != nil || cert.CheckSignatureFrom(ca) != nil {
		return true
	}
	return now.After(cert.NotBefore.Add(cert.NotAfter.Sub(cert.NotBefore) * 2 / 3))
}

// Expired reports whether an authority cannot be used any more: it is unreadable or a leaf would outlive it.
func Expired(authority Bundle, now time.Time) bool {
	ca, _, err := parsePair(authority)
	return err != nil || now.Add(LeafLifetime).After(ca.NotAfter)
}

func newTemplate(name string, now time.Time, lifetime time.Duration) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 126))
	if err != nil {
		return nil, fmt.Errorf("choose serial number: %w", err)
	}
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    now.Add(-backdated),
		NotAfter:     now.Add(lifetime),
	}, nil
}

func encodeBundle(ca, der []byte, key *ecdsa.PrivateKey) (Bundle, error) {
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return Bundle{}, fmt.Errorf("encode private key: %w", err)
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if ca == nil {
		ca = cert
	}
	return Bundle{CA: ca, Cert: cert, Key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})}, nil
}

func parsePair(b Bundle) (*x509.Certificate, crypto.PrivateKey, error) {
	block, _ := pem.Decode(b.Cert)
	if block == nil {
		return nil, nil, errors.New("no certificate in PEM")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, nil, fmt.Errorf("parse certificate: %w", err)
	}
	block, _ = pem.Decode(b.Key)
	if block == nil {
		return nil, nil, errors.New("no private key in PEM")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, nil, fmt.Errorf("parse private key: %w", err)
	}
	return cert, key, nil
}
