package certs

import (
	"crypto/tls"
	"net"
	"testing"
	"time"
)

func issue(t *testing.T, ca Bundle, id Identity, now time.Time) Bundle {
	t.Helper()
	b, err := Issue(ca, id, now)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func authority(t *testing.T, now time.Time) Bundle {
	t.Helper()
	ca, err := NewAuthority(now)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// handshake runs one between the two and returns the URI that the server saw, or the error of either side.
func handshake(t *testing.T, server *tls.Config, client *tls.Config) (string, error) {
	t.Helper()
	ln, err := tls.Listen("tcp", "127.0.0.1:0", server)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	type result struct {
		uri string
		err error
	}
	results := make(chan result, 1)
	go func() {
		conn, err := ln.Accept()
		if err != nil {
			results <- result{err: err}
			return
		}
		defer func() { _ = conn.Close() }()
		tc := conn.(*tls.Conn)
		if err := tc.HandshakeContext(t.Context()); err != nil {
			results <- result{err: err}
			return
		}
		uri := ""
		if uris := tc.ConnectionState().PeerCertificates[0].URIs; len(uris) > 0 {
			uri = uris[0].String()
		}
		results <- result{uri: uri}
	}()
	raw, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = raw.Close() }()
	clientErr := tls.Client(raw, client).HandshakeContext(t.Context())
	got := <-results
	if got.err == nil {
		got.err = clientErr
	}
	return got.uri, got.err
}

func TestMutualTLS(t *testing.T) {
	t.Parallel()
	now := time.Now()
	ca, foreign := authority(t, now), authority(t, now)
	server, enforcer, _ := Identities()
	good := issue(t, ca, server, now)
	source := func(b Bundle) Source { return func() (Bundle, error) { return b, nil } }
	clientOf := func(b Bundle, name string) *tls.Config {
		cfg, err := Client(source(b), name)
		if err != nil {
			t.Fatal(err)
		}
		return cfg
	}
	enforcerBundle := issue(t, ca, enforcer, now)
	stranger := issue(t, foreign, enforcer, now)
	stranger.CA = ca.Cert
	withoutCert := clientOf(enforcerBundle, ServerName)
	withoutCert.Certificates = nil
	oldTLS := clientOf(enforcerBundle, ServerName)
	oldTLS.MinVersion, oldTLS.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	expired := issue(t, ca, enforcer, now.Add(-2*LeafLifetime))
	for name, tc := range map[string]struct {
		client *tls.Config
		ok     bool
	}{
		"a client of the same authority is let in":            {clientOf(enforcerBundle, ServerName), true},
		"a client of another authority is refused":            {clientOf(stranger, ServerName), false},
		"a client without a certificate is refused":           {withoutCert, false},
		"a client with an expired certificate is refused":     {clientOf(expired, ServerName), false},
		"a client that expects another server turns away":     {clientOf(enforcerBundle, "somebody-else"), false},
		"a client that speaks TLS 1.2 at the most is refused": {oldTLS, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			uri, err := handshake(t, Server(source(good)), tc.client)
			if (err == nil) != tc.ok {
				t.Fatalf("handshake: %v", err)
			}
			if tc.ok && uri != EnforcerURI {
				t.Fatalf("the server saw %q", uri)
			}
		})
	}
}

func TestServerReadsRenewedCertificates(t *testing.T) {
	t.Parallel()
	now := time.Now()
	first, second := authority(t, now), authority(t, now)
	server, enforcer, _ := Identities()
	dir := t.TempDir()
	if err := issue(t, first, server, now).Write(dir); err != nil {
		t.Fatal(err)
	}
	cfg := Server(Dir(dir))
	connect := func(ca Bundle) error {
		client, err := Client(func() (Bundle, error) { return issue(t, ca, enforcer, now), nil }, ServerName)
		if err != nil {
			t.Fatal(err)
		}
		_, err = handshake(t, cfg, client)
		return err
	}
	if err := connect(first); err != nil {
		t.Fatal(err)
	}
	if err := issue(t, second, server, now).Write(dir); err != nil {
		t.Fatal(err)
	}
	if err := connect(second); err != nil {
		t.Fatalf("after the renewal: %v", err)
	}
	if err := connect(first); err == nil {
		t.Fatal("a client of the old authority was still let in after the renewal")
	}
}

func TestNeedsRenewal(t *testing.T) {
	t.Parallel()
	now := time.Now()
	ca := authority(t, now)
	server, _, _ := Identities()
	leaf := issue(t, ca, server, now)
	for name, tc := range map[string]struct {
		ca, leaf Bundle
		at       time.Time
		want     bool
	}{
		"a fresh certificate stays":                    {ca, leaf, now, false},
		"before two thirds of its time it stays":       {ca, leaf, now.Add(LeafLifetime*2/3 - time.Hour), false},
		"after two thirds of its time it is renewed":   {ca, leaf, now.Add(LeafLifetime*2/3 + time.Hour), true},
		"one of another authority is renewed":          {authority(t, now), leaf, now, true},
		"one that cannot be read is renewed":           {ca, Bundle{Cert: []byte("x")}, now, true},
		"one whose authority cannot be read is, too":   {Bundle{}, leaf, now, true},
		"one whose key cannot be read is renewed, too": {ca, Bundle{Cert: leaf.Cert, Key: []byte("x")}, now, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := NeedsRenewal(tc.ca, tc.leaf, tc.at); got != tc.want {
				t.Fatalf("NeedsRenewal = %v", got)
			}
		})
	}
	if Expired(ca, now) || !Expired(ca, now.Add(AuthorityLifetime)) || !Expired(Bundle{}, now) {
		t.Fatal("Expired is wrong")
	}
}
