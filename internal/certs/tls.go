package certs

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// The files of a certificate directory, by cert-manager's names.
const (
	CAFile   = "ca.crt"
	CertFile = "tls.crt"
	KeyFile  = "tls.key"
)

// Source gives the certificates that are current. It is asked at each handshake.
type Source func() (Bundle, error)

// Dir reads the certificates from a directory's files.
func Dir(dir string) Source {
	return func() (Bundle, error) {
		var b Bundle
		for file, into := range map[string]*[]byte{CAFile: &b.CA, CertFile: &b.Cert, KeyFile: &b.Key} {
			content, err := os.ReadFile(filepath.Join(dir, file))
			if err != nil {
				return Bundle{}, fmt.Errorf("read certificate directory (it must hold %s, %s and %s): %w", CAFile, CertFile, KeyFile, err)
			}
			*into = content
		}
		return b, nil
	}
}

// Write puts the bundle into a directory's files, for processes that read them by Dir. The key is readable by the owner only.
func (b Bundle) Write(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("create certificate directory: %w", err)
	}
	for file, content := range map[string][]byte{CAFile: b.CA, CertFile: b.Cert, KeyFile: b.Key} {
		if err := os.WriteFile(filepath.Join(dir, file), content, 0o600); err != nil {
			return fmt.Errorf("write certificate: %w", err)
		}
	}
	return nil
}

// Server is a TLS 1.3 configuration that demands a client certificate of the authority and reads its certificates at each handshake.
func Server(source Source) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			pair, pool, err := load(source)
			if err != nil {
				return nil, err
			}
			return &tls.Config{
				MinVersion:   tls.VersionTLS13,
				Certificates: []tls.Certificate{pair},
				ClientAuth:   tls.RequireAndVerifyClientCert,
				ClientCAs:    pool,
				NextProtos:   []string{"h2"},
				// A resumed session would skip the reading of renewed certificates.
				SessionTicketsDisabled: true,
			}, nil
		},
	}
}

// Client is a TLS 1.3 configuration that presents the bundle and expects the server to be serverName.
func Client(source Source, serverName string) (*tls.Config, error) {
	pair, pool, err := load(source)
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{pair},
		RootCAs:      pool,
		ServerName:   serverName,
		NextProtos:   []string{"h2"},
	}, nil
}

func load(source Source) (tls.Certificate, *x509.CertPool, error) {
	bundle, err := source()
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	pair, err := tls.X509KeyPair(bundle.Cert, bundle.Key)
	if err != nil {
		return tls.Certificate{}, nil, fmt.Errorf("load certificate and key: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(bundle.CA) {
		return tls.Certificate{}, nil, errors.New("load authority: no certificate in PEM")
	}
	return pair, pool, nil
}
