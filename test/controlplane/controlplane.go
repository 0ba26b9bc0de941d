package controlplane

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/latchkey-dev/latchkey/test/ports"
)

// startTimeout bounds the start of each program. It is generous, for machines that are busy.
const startTimeout = 2 * time.Minute

// Options choose where a control plane runs. The zero value is right for tests.
type Options struct {
	// Assets is the folder with kube-apiserver and etcd. Empty: $KUBEBUILDER_ASSETS, else bin/k8s/<Version> below the module's root.
	Assets string
	// Dir holds state and logs. A directory that an earlier control plane used is carried on with. Empty: a temporary one, removed by Stop.
	Dir string
	// Log gets lines of progress for people. Nil: none.
	Log io.Writer
	// InstallCRDs installs config/crd/bases and waits until the kinds are served.
	InstallCRDs bool
}

// ControlPlane is a running kube-apiserver with its etcd. Its methods are not safe for concurrent use, Config's excepted.
type ControlPlane struct {
	assets, dir string
	temporary   bool // dir goes with Stop
	log         io.Writer

	etcdPort, peerPort, apiPort int
	etcd, apiServer             *process // nil while they do not run
	config                      *rest.Config
}

// Start starts etcd and kube-apiserver, and returns once the API server is ready. The context bounds the start alone; what
// has been started is ended by Stop. On an error nothing is left running.
func Start(ctx context.Context, opts Options) (_ *ControlPlane, err error) {
	c := &ControlPlane{log: opts.Log}
	if c.assets, err = findAssets(opts.Assets, os.Getenv); err != nil {
		return nil, err
	}
	if err := c.openDir(opts.Dir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Stop())
		}
	}()
	if err := choosePorts(ctx, &c.etcdPort, &c.peerPort, &c.apiPort); err != nil {
		return nil, err
	}
	token, err := ensureCredentials(c.dir)
	if err != nil {
		return nil, err
	}
	c.config = &rest.Config{
		Host:            "https://" + loopback(c.apiPort),
		BearerToken:     token,
		TLSClientConfig: rest.TLSClientConfig{CAFile: c.path(servingCertificateFile)},
	}
	if err := c.startEtcd(ctx); err != nil {
		return nil, err
	}
	if err := c.StartAPIServer(ctx); err != nil {
		return nil, err
	}
	if opts.InstallCRDs {
		if err := c.installCRDs(ctx); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// Config is the cluster administrator's. Each call returns a copy. It holds for all restarts of the API server.
func (c *ControlPlane) Config() *rest.Config { return rest.CopyConfig(c.config) }

// Dir is where state and logs are.
func (c *ControlPlane) Dir() string { return c.dir }

// Stop ends both programs and removes the directory if Start made it. It may be called again.
func (c *ControlPlane) Stop() error {
	errs := []error{c.StopAPIServer()}
	if c.etcd != nil {
		errs = append(errs, c.etcd.stop())
		c.etcd = nil
	}
	if c.temporary {
		errs = append(errs, os.RemoveAll(c.dir))
	}
	return errors.Join(errs...)
}

// StopAPIServer ends the API server and leaves etcd running. Nothing is done if it has been stopped already.
func (c *ControlPlane) StopAPIServer() error {
	if c.apiServer == nil {
		return nil
	}
	c.say("stopping kube-apiserver")
	err := c.apiServer.stop()
	c.apiServer = nil
	return err
}

// StartAPIServer starts the API server again after StopAPIServer, at the same address and on the same data, and returns once it is ready.
func (c *ControlPlane) StartAPIServer(ctx context.Context) error {
	if c.apiServer != nil {
		return errors.New("start kube-apiserver: it runs already")
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	p, err := startProcess("kube-apiserver", filepath.Join(c.assets, "kube-apiserver"), c.path("kube-apiserver.log"),
		"--etcd-servers=http://"+loopback(c.etcdPort),
		"--bind-address=127.0.0.1",
		"--advertise-address=127.0.0.1",
		"--secure-port="+strconv.Itoa(c.apiPort),
		"--cert-dir="+filepath.Dir(c.path(servingCertificateFile)), // it signs a certificate for itself there, unless there is one
		"--token-auth-file="+c.path(tokenFile),
		"--authorization-mode=RBAC",
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-signing-key-file="+c.path(signingKeyFile),
		"--service-account-key-file="+c.path(signingKeyFile),
		"--service-cluster-ip-range=10.0.0.0/24",
		"--endpoint-reconciler-type=none",            // a loopback address is refused as an endpoint of the service "kubernetes"
		"--disable-admission-plugins=ServiceAccount", // it asks for default ServiceAccounts, which nothing makes here
	)
	if err != nil {
		return err
	}
	c.apiServer = p
	if err := p.await(ctx, c.ready); err != nil {
		return errors.Join(err, c.StopAPIServer())
	}
	c.say("kube-apiserver listens on " + c.config.Host)
	return nil
}

func (c *ControlPlane) startEtcd(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	client, peer := "http://"+loopback(c.etcdPort), "http://"+loopback(c.peerPort)
	p, err := startProcess("etcd", filepath.Join(c.assets, "etcd"), c.path("etcd.log"),
		"--name=default",
		"--data-dir="+c.path("etcd"),
		"--listen-client-urls="+client,
		"--advertise-client-urls="+client,
		"--listen-peer-urls="+peer,
		"--initial-advertise-peer-urls="+peer,
		"--initial-cluster=default="+peer,
		"--log-level=warn",
		"--unsafe-no-fsync", // the data outlives this program's death, which is all that is wanted of it
	)
	if err != nil {
		return err
	}
	c.etcd = p
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	if err := p.await(ctx, func(ctx context.Context) error {
		return get(ctx, &http.Client{Transport: transport}, client+"/readyz")
	}); err != nil {
		return err
	}
	c.say("etcd listens on " + client)
	return nil
}

// ready asks the API server whether it is, the namespace "default" included, which it creates by itself a moment after it has begun to serve.
func (c *ControlPlane) ready(ctx context.Context) error {
	if _, err := os.Stat(c.path(servingCertificateFile)); err != nil {
		return fmt.Errorf("wait for the serving certificate: %w", err)
	}
	client, err := kubernetes.NewForConfig(c.config)
	if err != nil {
		return fmt.Errorf("make client: %w", err)
	}
	if err := client.RESTClient().Get().AbsPath("/readyz").Do(ctx).Error(); err != nil {
		return err
	}
	_, err = client.CoreV1().Namespaces().Get(ctx, metav1.NamespaceDefault, metav1.GetOptions{})
	return err
}

func (c *ControlPlane) openDir(dir string) (err error) {
	if dir == "" {
		c.temporary = true
		if dir, err = os.MkdirTemp("", "latchkey-controlplane-"); err != nil {
			return fmt.Errorf("make directory: %w", err)
		}
	}
	if c.dir, err = filepath.Abs(dir); err != nil {
		return fmt.Errorf("resolve %s: %w", dir, err)
	}
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	return nil
}

func (c *ControlPlane) path(name string) string { return filepath.Join(c.dir, name) }

func (c *ControlPlane) say(what string) {
	if c.log != nil {
		_, _ = fmt.Fprintln(c.log, what)
	}
}

func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// choosePorts finds ports that nothing listens on, no two of them the same.
func choosePorts(ctx context.Context, into ...*int) error {
	for _, port := range into {
		var err error
		if *port, err = ports.Free(ctx); err != nil {
			return err
		}
	}
	return nil
}

func get(ctx context.Context, client *http.Client, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return fmt.Errorf("ask %s: %w", url, err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("ask %s: %w", url, err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("ask %s: %s", url, resp.Status)
	}
	return nil
}
