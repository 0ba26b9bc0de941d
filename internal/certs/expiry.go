package certs

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"
)

// Expiry says when the bundle's certificate ends, and when the authority behind it does. Of several authorities it is the one that signed the
// certificate, and where none of them did so itself, the first to end.
func Expiry(b Bundle) (authority, leaf time.Time, err error) {
	leaves, err := parseAll(b.Cert)
	if err != nil {
		return time.Time{}, time.Time{}, fmt.Errorf("read certificate: %w", err)
	}
	authorities, err := parseAll(b.CA)
	if err != nil {
		return time.Time{}, time.Time{}, fmt.Errorf("read authority: %w", err)
	}
	first := authorities[0]
	for _, ca := range authorities {
		if leaves[0].CheckSignatureFrom(ca) == nil {
			return ca.NotAfter, leaves[0].NotAfter, nil
		}
		if ca.NotAfter.Before(first.NotAfter) {
			first = ca
		}
	}
	return first.NotAfter, leaves[0].NotAfter, nil
}

// parseAll gives at least one certificate, or an error.
func parseAll(content []byte) ([]*x509.Certificate, error) {
	var all []*x509.Certificate
	for block, rest := pem.Decode(content); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("parse certificate: %w", err)
		}
		all = append(all, cert)
	}
	if len(all) == 0 {
		return nil, errors.New("no certificate in PEM")
	}
	return all, nil
}
