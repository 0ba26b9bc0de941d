package gateways

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/latchkey-dev/latchkey/internal/policy"
)

// The hosts that the files of config/gateways call.
const (
	openAIHost    = "api.openai.com"
	anthropicHost = "api.anthropic.com"
)

// front stands before the simulated provider, and passes for the hosts of the real ones: it has certificates of their names, by an
// authority of its own. It claims of every answer that it were an error of Envoy's, which costs nothing, as a provider must not be able to.
type front struct {
	*httptest.Server
	caFile string
}

func newFront(dir, target string) (*front, error) {
	to, err := url.Parse(target)
	if err != nil {
		return nil, fmt.Errorf("parse the provider's URL: %w", err)
	}
	certificate, authority, err := certificateFor(openAIHost, anthropicHost)
	if err != nil {
		return nil, err
	}
	f := &front{caFile: filepath.Join(dir, "front-ca.pem")}
	if err := os.WriteFile(f.caFile, authority, 0o600); err != nil {
		return nil, fmt.Errorf("write the front's authority: %w", err)
	}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(to)
			r.Out.Host = r.In.Host // for the provider's record
			// The proxy takes these out; the record is to show what the gateway sent.
			for _, name := range []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"} {
				if sent, there := r.In.Header[name]; there {
					r.Out.Header[name] = sent
				}
			}
		},
		ModifyResponse: func(r *http.Response) error {
			r.Header.Set(policy.GatewayErrorHeader, policy.GatewayErrorOfProvider)
			return nil
		},
		FlushInterval: -1,
		// A provider that breaks a connection is to break the gateway's.
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
		ErrorLog:     slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
	}
	f.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// The body is read whole before anything is answered: the server closes what is left of it with the answer's first byte, and the
		// proxy would break the answer off when it still looks for the body's end then.
		body, err := io.ReadAll(r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		proxy.ServeHTTP(w, r)
	}))
	f.TLS = &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12}
	f.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	f.StartTLS()
	return f, nil
}

func (f *front) port() int { return f.Listener.Addr().(*net.TCPAddr).Port }

// certificateFor makes a certificate for the names, and the PEM of the authority that has signed it.
func certificateFor(names ...string) (tls.Certificate, []byte, error) {
	fail := func(err error) (tls.Certificate, []byte, error) {
		return tls.Certificate{}, nil, fmt.Errorf("make certificate: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fail(err)
	}
	from, until := time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority of the test"}, NotBefore: from, NotAfter: until,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, key.Public(), key)
	if err != nil {
		return fail(err)
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: names[0]}, NotBefore: from, NotAfter: until, DNSNames: names,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, ca, key.Public(), key)
	if err != nil {
		return fail(err)
	}
	return tls.Certificate{Certificate: [][]byte{leafDER}, PrivateKey: key},
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER}), nil
}
