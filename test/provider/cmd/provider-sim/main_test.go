package main

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/latchkey-dev/latchkey/test/provider"
)

const testCredential = "sk-main-0123456789abcdef"

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

// running is the command, started in this process.
type running struct {
	api, control string
	stop         func() error
}

func startCommand(t *testing.T, args ...string) running {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	reader, writer := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		err := run(ctx, append([]string{"-credential", testCredential}, args...), writer, io.Discard)
		_ = writer.CloseWithError(err) // always nil
		ended <- err
	}()
	var r running
	lines := bufio.NewScanner(reader)
	for _, target := range []*string{&r.api, &r.control} {
		if !lines.Scan() {
			cancel()
			t.Fatalf("the command ended: %v", <-ended)
		}
		_, *target, _ = strings.Cut(lines.Text(), " ")
	}
	stopped := false
	r.stop = func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		return <-ended
	}
	t.Cleanup(func() {
		if err := r.stop(); err != nil {
			t.Errorf("the command ended with %v", err)
		}
	})
	return r
}

// ask makes a chat request and returns the protocol and the status of the answer.
func ask(t *testing.T, transport *http.Transport, url, text string) (string, int) {
	t.Helper()
	defer transport.CloseIdleConnections()
	body := `{"model":"m","messages":[{"role":"user","content":"` + text + `"}]}`
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Authorization", "Bearer "+testCredential)
	response, err := transport.RoundTrip(r)
	if err != nil {
		return "", 0
	}
	defer response.Body.Close()
	if _, err := io.Copy(io.Discard, response.Body); err != nil {
		t.Fatal(err)
	}
	return response.Proto, response.StatusCode
}

func TestCommandServesAndLogs(t *testing.T) {
	log := filepath.Join(t.TempDir(), "requests.jsonl")
	r := startCommand(t, "-models", "m, other", "-prefix", "/odd", "-base", "/v4", "-log", log)
	if proto, status := ask(t, &http.Transport{}, r.api+"/odd/v4/chat/completions", "hi"); proto != "HTTP/1.1" || status != http.StatusOK {
		t.Errorf("answer is %s %d", proto, status)
	}
	var unencrypted http.Protocols
	unencrypted.SetUnencryptedHTTP2(true)
	if proto, status := ask(t, &http.Transport{Protocols: &unencrypted}, r.api+"/odd/v4/chat/completions", "hi"); proto != "HTTP/2.0" || status != http.StatusOK {
		t.Errorf("answer is %s %d", proto, status)
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(content)), "\n")
	if len(lines) != 2 {
		t.Fatalf("log is %s", content)
	}
	for _, line := range lines {
		var record provider.Record
		if err := json.Unmarshal([]byte(line), &record); err != nil || record.Status != http.StatusOK || record.Reported == nil {
			t.Errorf("line is %s, error %v", line, err)
		}
	}
}

func TestCommandServesTLS(t *testing.T) {
	cert, key, pool := certificate(t)
	r := startCommand(t, "-tls-cert", cert, "-tls-key", key)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: true}
	if proto, status := ask(t, transport, r.api+"/v1/chat/completions", "hi"); proto != "HTTP/2.0" || status != http.StatusOK {
		t.Errorf("answer is %s %d", proto, status)
	}
	if proto, status := ask(t, &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}, r.api+"/v1/chat/completions", "hi"); proto != "HTTP/1.1" || status != http.StatusOK {
		t.Errorf("answer is %s %d", proto, status)
	}
}

func TestCommandStopsWhileAStreamIsHeld(t *testing.T) {
	r := startCommand(t)
	answered := make(chan int, 1)
	go func() {
		_, status := ask(t, &http.Transport{}, r.api+"/v1/chat/completions", "sim:hold")
		answered <- status
	}()
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	deadline := time.NewTimer(10 * time.Second)
	defer deadline.Stop()
	poll := time.NewTicker(5 * time.Millisecond)
	defer poll.Stop()
	for held := false; !held; {
		select {
		case <-poll.C:
		case <-deadline.C:
			t.Fatal("no request is held")
		}
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, r.control+"/_sim/requests?state=holding", nil)
		if err != nil {
			t.Fatal(err)
		}
		response, err := transport.RoundTrip(request)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(response.Body)
		response.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		held = strings.Contains(string(body), `"state":"holding"`)
	}
	if err := r.stop(); err != nil {
		t.Errorf("the command ended with %v", err)
	}
	if status := <-answered; status != 0 {
		t.Errorf("the held request got %d", status)
	}
}

func TestCommandRefusesBadArguments(t *testing.T) {
	busy, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	tests := map[string]struct {
		args []string
		want string
	}{
		"no credential":          {nil, "-credential is required"},
		"a certificate, no key":  {[]string{"-credential", "x", "-tls-cert", "x"}, "go together"},
		"a certificate not read": {[]string{"-credential", "x", "-tls-cert", "/nonexistent", "-tls-key", "/nonexistent"}, "load certificate"},
		"an argument too many":   {[]string{"-credential", "x", "y"}, `unexpected argument "y"`},
		"a busy port":            {[]string{"-credential", "x", "-listen", busy.Addr().String()}, "address already in use"},
		"a busy control port":    {[]string{"-credential", "x", "-control-listen", busy.Addr().String()}, "address already in use"},
		"a log in no directory":  {[]string{"-credential", "x", "-log", "/nonexistent/log"}, "open log"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			err := run(t.Context(), tc.args, io.Discard, io.Discard)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error is %v, want one with %q", err, tc.want)
			}
		})
	}
}

// certificate writes a certificate for the loopback address and its key, and returns their files and a pool that trusts it.
func certificate(t *testing.T) (certFile, keyFile string, pool *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, BasicConstraintsValid: true, IsCA: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	directory := t.TempDir()
	certFile, keyFile = filepath.Join(directory, "cert.pem"), filepath.Join(directory, "key.pem")
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	for file, content := range map[string][]byte{certFile: certPEM, keyFile: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})} {
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pool = x509.NewCertPool()
	if !pool.AppendCertsFromPEM(certPEM) {
		t.Fatal("the certificate was not added")
	}
	return certFile, keyFile, pool
}
