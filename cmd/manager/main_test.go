package main

import (
	"bytes"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
)

func TestParseFlags(t *testing.T) {
	for name, tc := range map[string]struct {
		args []string
		says string // empty: accepted
	}{
		"certificates of a directory":       {[]string{"--cert-dir", "/certs"}, ""},
		"certificates of its own":           {[]string{"--self-signed"}, ""},
		"no certificates":                   {nil, "--self-signed"},
		"both":                              {[]string{"--self-signed", "--cert-dir", "/certs"}, "either"},
		"an argument":                       {[]string{"--self-signed", "serve"}, "\"serve\""},
		"a port out of range":               {[]string{"--self-signed", "--gateway-port", "65536"}, "from 1 to 65535"},
		"a limit of nothing":                {[]string{"--self-signed", "--max-request-bytes", "0"}, "--max-request-bytes"},
		"a limit that Envoy could not hold": {[]string{"--self-signed", "--max-request-bytes", "2147483648"}, "1 GiB"},
		"no writes of usage":                {[]string{"--self-signed", "--usage-writes-per-second", "0"}, "above 0"},
		"writes of usage that are none":     {[]string{"--self-signed", "--usage-writes-per-second", "NaN"}, "above 0"},
		"too many writes of usage":          {[]string{"--self-signed", "--usage-writes-per-second", "1001"}, "1000"},
		"a write of usage every two":        {[]string{"--self-signed", "--usage-writes-per-second", "0.5"}, ""},
		"no namespace":                      {[]string{"--self-signed", "--namespace", ""}, "--namespace"},
		"debug pages":                       {[]string{"--self-signed", "--debug-address", "localhost:6060"}, ""},
		"debug pages without a port":        {[]string{"--self-signed", "--debug-address", "6060"}, "--debug-address must be host:port"},
		"an unknown level":                  {[]string{"--self-signed", "--log-level", "LOUD"}, "log-level"},
		"an unknown flag":                   {[]string{"--self-singed"}, "self-singed"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("POD_NAMESPACE", "")
			var stderr bytes.Buffer
			_, err := parseFlags(tc.args, &stderr)
			if (err == nil) != (tc.says == "") || (err != nil && !strings.Contains(err.Error(), tc.says)) {
				t.Fatalf("parseFlags = %v; want an error that says %q", err, tc.says)
			}
		})
	}
}

func TestThePodTellsNamespaceAndIdentity(t *testing.T) {
	t.Setenv("POD_NAMESPACE", "platform")
	t.Setenv("POD_NAME", "latchkey-manager-0")
	cfg, err := parseFlags([]string{"--self-signed"}, &bytes.Buffer{})
	if err != nil || cfg.namespace != "platform" || cfg.identity != "latchkey-manager-0" {
		t.Fatalf("namespace %q, identity %q, %v", cfg.namespace, cfg.identity, err)
	}
}

func TestEnvoyBootstrap(t *testing.T) {
	t.Parallel()
	var stdout, stderr bytes.Buffer
	args := []string{"envoy-bootstrap", "--xds-address", "manager:18000", "--cert-dir", "/certs", "--node-id", "gateway-0"}
	if err := command(t.Context(), args, &stdout, &stderr); err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"gateway-0", "manager", "18000", "/certs/tls.key", "DELTA_GRPC"} {
		if !strings.Contains(stdout.String(), part) {
			t.Errorf("the bootstrap does not hold %q:\n%s", part, stdout.String())
		}
	}
	for _, address := range []string{"manager", "manager:0x1", "manager:99999"} {
		if err := command(t.Context(), []string{"envoy-bootstrap", "--xds-address", address}, &stdout, &stderr); err == nil || !strings.Contains(err.Error(), "--xds-address") {
			t.Errorf("%s: %v", address, err)
		}
	}
}

func TestTheCacheHoldsNoPlaintext(t *testing.T) {
	t.Parallel()
	secret := func(label string) *corev1.Secret {
		s := &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "m"}}},
			Data:       map[string][]byte{"apiKey": []byte("lk_plaintext"), "keyHash": []byte("abc")},
		}
		if label != "" {
			s.Labels = map[string]string{v1alpha1.LabelAPIKey: label}
		}
		return s
	}
	for name, tc := range map[string]struct {
		in   *corev1.Secret
		want string
	}{
		"a key's plaintext is replaced by a mark of its presence": {secret("shop-backend"), "x"},
		"a provider's credential is kept, since Envoy needs it":   {secret(""), "lk_plaintext"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			out, err := withoutPlaintext(tc.in)
			if err != nil {
				t.Fatal(err)
			}
			got := out.(*corev1.Secret)
			if string(got.Data["apiKey"]) != tc.want || string(got.Data["keyHash"]) != "abc" || got.ManagedFields != nil {
				t.Fatalf("cached as %v", got)
			}
		})
	}
	revealed := secret("shop-backend")
	delete(revealed.Data, "apiKey")
	out, err := withoutPlaintext(revealed)
	if err != nil {
		t.Fatal(err)
	}
	if _, there := out.(*corev1.Secret).Data["apiKey"]; there {
		t.Fatal("a revealed Secret seems to hold a plaintext")
	}
}
