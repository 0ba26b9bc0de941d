package controlplane

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// Files below the control plane's directory.
const (
	servingCertificateFile = "pki/apiserver.crt"
	signingKeyFile         = "pki/service-account.key"
	tokenFile              = "pki/tokens.csv"
)

// tokenLifetime is that of ServiceAccount tokens: longer than anybody leaves `make run` up.
const tokenLifetime = 30 * 24 * time.Hour

// WriteKubeconfig writes the cluster administrator's kubeconfig, which holds everything that it needs.
func (c *ControlPlane) WriteKubeconfig(path string) error {
	content, err := kubeconfig(c.config, "default")
	if err != nil {
		return err
	}
	if err := os.WriteFile(path, content, 0o600); err != nil {
		return fmt.Errorf("write kubeconfig: %w", err)
	}
	return nil
}

// ServiceAccountConfig asks the API server for a token of a ServiceAccount, which has to exist, as the kubelet does for a pod:
// what is done with it is subject to the ServiceAccount's RBAC rules. The same comes as a kubeconfig with everything in it.
func (c *ControlPlane) ServiceAccountConfig(ctx context.Context, namespace, name string) (*rest.Config, []byte, error) {
	client, err := kubernetes.NewForConfig(c.config)
	if err != nil {
		return nil, nil, fmt.Errorf("make client: %w", err)
	}
	answer, err := client.CoreV1().ServiceAccounts(namespace).CreateToken(ctx, name, &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: new(int64(tokenLifetime / time.Second))},
	}, metav1.CreateOptions{})
	if err != nil {
		return nil, nil, fmt.Errorf("request a token of service account %s/%s: %w", namespace, name, err)
	}
	config := c.Config()
	config.BearerToken = answer.Status.Token
	content, err := kubeconfig(config, namespace)
	if err != nil {
		return nil, nil, err
	}
	return config, content, nil
}

func kubeconfig(config *rest.Config, namespace string) ([]byte, error) {
	const name = "latchkey"
	ca, err := os.ReadFile(config.CAFile)
	if err != nil {
		return nil, fmt.Errorf("write kubeconfig: %w", err)
	}
	content, err := clientcmd.Write(clientcmdapi.Config{
		Clusters:       map[string]*clientcmdapi.Cluster{name: {Server: config.Host, CertificateAuthorityData: ca}},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{name: {Token: config.BearerToken}},
		Contexts:       map[string]*clientcmdapi.Context{name: {Cluster: name, AuthInfo: name, Namespace: namespace}},
		CurrentContext: name,
	})
	if err != nil {
		return nil, fmt.Errorf("write kubeconfig: %w", err)
	}
	return content, nil
}

// ensureCredentials makes what the API server needs to know its callers, unless an earlier control plane left it in the
// directory: the key that signs ServiceAccount tokens, and the administrator's token, which is returned.
func ensureCredentials(dir string) (token string, err error) {
	if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, tokenFile)), 0o700); err != nil {
		return "", fmt.Errorf("make credentials: %w", err)
	}
	_, err = ensureFile(filepath.Join(dir, signingKeyFile), func() ([]byte, error) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		der, err := x509.MarshalECPrivateKey(key)
		if err != nil {
			return nil, err
		}
		return pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), nil
	})
	if err != nil {
		return "", fmt.Errorf("make the ServiceAccount signing key: %w", err)
	}
	line, err := ensureFile(filepath.Join(dir, tokenFile), func() ([]byte, error) {
		return []byte(rand.Text() + `,admin,admin,"system:masters"` + "\n"), nil
	})
	if err != nil {
		return "", fmt.Errorf("make the administrator's token: %w", err)
	}
	token, _, _ = strings.Cut(string(line), ",")
	return token, nil
}

// ensureFile reads a file, which is made first if it is not there.
func ensureFile(path string, content func() ([]byte, error)) ([]byte, error) {
	existing, err := os.ReadFile(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return existing, err
	}
	made, err := content()
	if err != nil {
		return nil, err
	}
	return made, os.WriteFile(path, made, 0o600)
}
