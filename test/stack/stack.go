package stack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	"github.com/latchkey-dev/latchkey/internal/certs"
	"github.com/latchkey-dev/latchkey/test/controlplane"
	"github.com/latchkey-dev/latchkey/test/ports"
)

// Namespace is where the stack installs Latchkey.
const Namespace = "latchkey-system"

// The credentials that the simulated provider asks for; config/samples holds the same.
const (
	OpenAICredential    = "sim-openai-credential"
	AnthropicCredential = "sim-anthropic-credential"
)

// readyTimeout bounds the wait for each process to be ready. It is generous, for machines that are busy.
const readyTimeout = 90 * time.Second

// Options choose where a stack runs. The zero value is right for tests: everything on free ports, in a directory of its own.
type Options struct {
	Root          string    // the checkout; found from the working directory when empty
	Dir           string    // state, certificates and logs; required
	GatewayPort   int       // 0: a free one
	AdminPort     int       // 0: a free one
	ProviderPort  int       // 0: a free one
	Managers      int       // 0: one
	FollowManager int       // which of them the enforcer and Envoy connect to
	NoEnvoy       bool      // leave Envoy out, for tests that bring one of their own
	Say           io.Writer // progress for people; nil: none
}

// Stack is a running system.
type Stack struct {
	Options
	ControlPlane *controlplane.ControlPlane
	Client       client.Client // as cluster administrator
	Managers     []*Process
	Enforcer     *Process
	Envoy        *Process
	Provider     *Process

	ProviderControl string // base URL of the simulated provider's control API
	xdsPorts        []int
	metricsPorts    map[string]int
	http            *http.Client
}

// Start brings the whole stack up, in the order in which its parts depend on each other. On an error everything is stopped again.
func Start(ctx context.Context, opts Options) (_ *Stack, err error) {
	s := &Stack{Options: opts, metricsPorts: map[string]int{}, http: &http.Client{Timeout: 10 * time.Second}}
	if s.Options.Managers == 0 {
		s.Options.Managers = 1
	}
	if s.Root == "" {
		if s.Root, err = findRoot(); err != nil {
			return nil, err
		}
	}
	if s.Dir, err = filepath.Abs(s.Dir); err != nil {
		return nil, fmt.Errorf("resolve directory: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Stop())
		}
	}()
	for _, step := range []struct {
		say string
		do  func(context.Context) error
	}{
		{"choosing ports", s.choosePorts},
		{"starting etcd and kube-apiserver", s.startControlPlane},
		{"installing the CRDs, the namespace and the RBAC rules: kubectl apply -k config/default", s.install},
		{"starting the simulated provider", s.startProvider},
		{"starting the manager", s.startManagers},
		{"handing out the certificates", s.writeCertificates},
		{"starting the enforcer", s.startEnforcer},
		{"starting Envoy", s.startEnvoy},
	} {
		s.say(step.say)
		if err := step.do(ctx); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Stop ends every process, the ones that others depend on last.
func (s *Stack) Stop() error {
	var errs []error
	processes := append([]*Process{s.Envoy, s.Enforcer}, s.Managers...)
	for _, p := range append(processes, s.Provider) {
		if p != nil {
			errs = append(errs, p.Stop())
		}
	}
	if s.ControlPlane != nil {
		errs = append(errs, s.ControlPlane.Stop())
	}
	return errors.Join(errs...)
}

// GatewayURL is where callers go.
func (s *Stack) GatewayURL() string { return "http://127.0.0.1:" + strconv.Itoa(s.GatewayPort) }

// AdminURL is Envoy's admin interface.
func (s *Stack) AdminURL() string { return "http://127.0.0.1:" + strconv.Itoa(s.AdminPort) }

// ProviderURL is the simulated provider.
func (s *Stack) ProviderURL() string { return "http://127.0.0.1:" + strconv.Itoa(s.ProviderPort) }

// MetricsURL is where a process shows its metrics.
func (s *Stack) MetricsURL(process string) string {
	return "http://127.0.0.1:" + strconv.Itoa(s.metricsPorts[process]) + "/metrics"
}

// Kubeconfig is the cluster administrator's.
func (s *Stack) Kubeconfig() string { return filepath.Join(s.Dir, "kubeconfig") }

// LogFile is where a process writes.
func (s *Stack) LogFile(process string) string { return filepath.Join(s.Dir, "logs", process+".log") }

// Binary is one of the programs that the Makefile builds.
func (s *Stack) Binary(name string) string { return filepath.Join(s.Root, "bin", name) }

// Kubectl runs kubectl as cluster administrator and returns what it printed on stdout.
func (s *Stack) Kubectl(ctx context.Context, args ...string) (string, error) {
	return s.run(ctx, filepath.Join(s.assets(), "kubectl"), args...)
}

// Latchkey runs the kubectl plugin as cluster administrator and returns what it printed on stdout.
func (s *Stack) Latchkey(ctx context.Context, args ...string) (string, error) {
	return s.run(ctx, s.Binary("kubectl-latchkey"), args...)
}

func (s *Stack) run(ctx context.Context, path string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+s.Kubeconfig())
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s %s: %w: %s", filepath.Base(path), strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

func (s *Stack) say(what string) {
	if s.Say != nil {
		_, _ = fmt.Fprintf(s.Say, "==> %s\n", what)
	}
}

func (s *Stack) assets() string {
	if dir := os.Getenv("LATCHKEY_KUBECTL_DIR"); dir != "" {
		return dir
	}
	return filepath.Join(s.Root, "bin")
}

func (s *Stack) choosePorts(ctx context.Context) error {
	for _, p := range []struct {
		port *int
		env  string
		what string
	}{
		{&s.GatewayPort, "LATCHKEY_GATEWAY_PORT", "the gateway"},
		{&s.AdminPort, "LATCHKEY_ADMIN_PORT", "Envoy's admin interface"},
		{&s.ProviderPort, "LATCHKEY_PROVIDER_PORT", "the simulated provider"},
	} {
		if *p.port != 0 {
			if ports.Listens(ctx, *p.port) != nil {
				return fmt.Errorf("port %d, for %s, is in use: stop what listens there, or choose another with %s=PORT", *p.port, p.what, p.env)
			}
			continue
		}
		var err error
		if *p.port, err = ports.Free(ctx); err != nil {
			return err
		}
	}
	for i := range s.Options.Managers {
		port, err := ports.Free(ctx)
		if err != nil {
			return err
		}
		s.xdsPorts = append(s.xdsPorts, port)
		if s.metricsPorts["manager-"+strconv.Itoa(i)], err = ports.Free(ctx); err != nil {
			return err
		}
	}
	var err error
	s.metricsPorts["enforcer"], err = ports.Free(ctx)
	return err
}

func (s *Stack) startControlPlane(ctx context.Context) error {
	cp, err := controlplane.Start(ctx, controlplane.Options{Dir: filepath.Join(s.Dir, "controlplane")})
	if err != nil {
		return fmt.Errorf("start control plane: %w", err)
	}
	s.ControlPlane = cp
	if err := cp.WriteKubeconfig(s.Kubeconfig()); err != nil {
		return fmt.Errorf("write kubeconfig: %w", err)
	}
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		return fmt.Errorf("build scheme: %w", err)
	}
	config := rest.CopyConfig(cp.Config())
	config.QPS = -1 // the API server's own fairness is the limit
	s.Client, err = client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		return fmt.Errorf("make client: %w", err)
	}
	return nil
}

func (s *Stack) install(ctx context.Context) error {
	// Server-side, as the README has it: a CRD is too large for the annotation that client-side apply leaves behind.
	if _, err := s.Kubectl(ctx, "apply", "--server-side", "-k", filepath.Join(s.Root, "config", "default")); err != nil {
		return err
	}
	_, err := s.Kubectl(ctx, "wait", "--for=condition=Established", "--timeout=60s", "crd",
		"applications.latchkey.dev", "apikeys.latchkey.dev", "models.latchkey.dev", "providers.latchkey.dev", "systempolicies.latchkey.dev")
	return err
}

func (s *Stack) startProvider(ctx context.Context) error {
	control, err := ports.Free(ctx)
	if err != nil {
		return err
	}
	s.ProviderControl = "http://127.0.0.1:" + strconv.Itoa(control)
	s.Provider = s.process("provider", s.Binary("provider-sim"),
		"-listen", "127.0.0.1:"+strconv.Itoa(s.ProviderPort),
		"-control-listen", "127.0.0.1:"+strconv.Itoa(control),
		"-credential", OpenAICredential,
		"-anthropic-credential", AnthropicCredential,
		"-log", filepath.Join(s.Dir, "logs", "provider-requests.jsonl"),
	)
	if err := s.Provider.Start(); err != nil {
		return err
	}
	return s.await(ctx, s.Provider, s.ProviderControl+"/_sim/health")
}

func (s *Stack) startManagers(ctx context.Context) error {
	_, kubeconfig, err := s.ControlPlane.ServiceAccountConfig(ctx, Namespace, "latchkey-manager")
	if err != nil {
		return fmt.Errorf("get the manager's token: %w", err)
	}
	path := filepath.Join(s.Dir, "manager.kubeconfig")
	if err := os.WriteFile(path, kubeconfig, 0o600); err != nil {
		return fmt.Errorf("write the manager's kubeconfig: %w", err)
	}
	for i, xdsPort := range s.xdsPorts {
		name := "manager-" + strconv.Itoa(i)
		health, err := ports.Free(ctx)
		if err != nil {
			return err
		}
		p := s.process(name, s.Binary("manager"),
			"--kubeconfig", path,
			"--namespace", Namespace,
			"--identity", name,
			"--xds-address", "127.0.0.1:"+strconv.Itoa(xdsPort),
			"--metrics-address", "127.0.0.1:"+strconv.Itoa(s.metricsPorts[name]),
			"--health-address", "127.0.0.1:"+strconv.Itoa(health),
			"--self-signed",
			"--leader-elect",
			"--gateway-address", "127.0.0.1",
			"--gateway-port", strconv.Itoa(s.GatewayPort),
			"--enforcer-socket", s.socket(),
		)
		s.Managers = append(s.Managers, p)
		if err := p.Start(); err != nil {
			return err
		}
		if err := s.await(ctx, p, "http://127.0.0.1:"+strconv.Itoa(health)+"/readyz"); err != nil {
			return err
		}
	}
	return nil
}

// writeCertificates does what mounting the Secrets does in a cluster.
func (s *Stack) writeCertificates(ctx context.Context) error {
	for secretName, dir := range map[string]string{"latchkey-enforcer-tls": "enforcer", "latchkey-envoy-tls": "envoy"} {
		var secret corev1.Secret
		if err := s.Client.Get(ctx, client.ObjectKey{Namespace: Namespace, Name: secretName}, &secret); err != nil {
			return fmt.Errorf("get certificate secret %s: %w", secretName, err)
		}
		bundle := certs.Bundle{CA: secret.Data[certs.CAFile], Cert: secret.Data[certs.CertFile], Key: secret.Data[certs.KeyFile]}
		if err := bundle.Write(s.certDir(dir)); err != nil {
			return err
		}
	}
	return nil
}

func (s *Stack) startEnforcer(ctx context.Context) error {
	s.Enforcer = s.process("enforcer", s.Binary("enforcer"),
		"--xds-address", s.XDSAddress(s.FollowManager),
		"--cert-dir", s.certDir("enforcer"),
		"--socket", s.socket(),
		"--state-dir", filepath.Join(s.Dir, "enforcer"),
		"--node-id", "enforcer-0",
		"--metrics-address", "127.0.0.1:"+strconv.Itoa(s.metricsPorts["enforcer"]),
	)
	if err := s.Enforcer.Start(); err != nil {
		return err
	}
	return s.AwaitEnforcer(ctx)
}

// AwaitEnforcer waits until the enforcer answers.
func (s *Stack) AwaitEnforcer(ctx context.Context) error {
	return s.await(ctx, s.Enforcer, strings.TrimSuffix(s.MetricsURL("enforcer"), "/metrics")+"/readyz")
}

func (s *Stack) startEnvoy(ctx context.Context) error {
	if s.NoEnvoy {
		return nil
	}
	binary := os.Getenv("ENVOY")
	if binary == "" {
		return errors.New("ENVOY is not set: run this through `make run` or `make test`, which find or install Envoy")
	}
	bootstrap, err := s.run(ctx, s.Binary("manager"), "envoy-bootstrap",
		"--node-id", "envoy-0",
		"--xds-address", s.XDSAddress(s.FollowManager),
		"--cert-dir", s.certDir("envoy"),
		"--admin-address", "127.0.0.1",
		"--admin-port", strconv.Itoa(s.AdminPort),
	)
	if err != nil {
		return err
	}
	path := filepath.Join(s.Dir, "envoy.yaml")
	if err := os.WriteFile(path, []byte(bootstrap), 0o600); err != nil {
		return fmt.Errorf("write Envoy's bootstrap: %w", err)
	}
	s.Envoy = s.process("envoy", binary, "-c", path, "--use-dynamic-base-id", "--log-level", "warning", "--concurrency", "2")
	if err := s.Envoy.Start(); err != nil {
		return err
	}
	return s.AwaitEnvoy(ctx)
}

// AwaitEnvoy waits until Envoy has its configuration and listens.
func (s *Stack) AwaitEnvoy(ctx context.Context) error {
	if err := s.await(ctx, s.Envoy, s.AdminURL()+"/ready"); err != nil {
		return err
	}
	// A request without a key: the listener is there, and so is the enforcer behind it.
	return s.awaitStatus(ctx, s.Envoy, s.GatewayURL()+"/v1/models", http.StatusUnauthorized)
}

// EnforcerSocket is where the enforcer listens for Envoy.
func (s *Stack) EnforcerSocket() string { return s.socket() }

func (s *Stack) socket() string {
	// A unix socket's path holds 107 bytes at the most, and a test's directory can be longer than that.
	path := filepath.Join(s.Dir, "enforcer.sock")
	if len(path) > 100 {
		path = filepath.Join(os.TempDir(), "latchkey-"+strconv.Itoa(os.Getpid())+"-"+strconv.Itoa(s.GatewayPort), "enforcer.sock")
	}
	return path
}

func (s *Stack) certDir(of string) string { return filepath.Join(s.Dir, "certs", of) }

func (s *Stack) process(name, path string, args ...string) *Process {
	return &Process{Name: name, Path: path, Args: args, Log: s.LogFile(name), onDeath: func(p *Process, err error) {
		s.say(fmt.Sprintf("%s ended by itself (%v): see %s", p.Name, err, p.Log))
	}}
}

// await polls a readiness page until it answers 200, or the process ends.
func (s *Stack) await(ctx context.Context, p *Process, url string) error {
	return s.awaitStatus(ctx, p, url, http.StatusOK)
}

func (s *Stack) awaitStatus(ctx context.Context, p *Process, url string, status int) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	last := "nothing listens"
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
		if err != nil {
			return fmt.Errorf("ask %s: %w", url, err)
		}
		if resp, err := s.http.Do(req); err == nil {
			body, _ := io.ReadAll(io.LimitReader(resp.Body, 512))
			_ = resp.Body.Close()
			if resp.StatusCode == status {
				return nil
			}
			last = fmt.Sprintf("%s: %s", resp.Status, bytes.TrimSpace(body))
		}
		select {
		case <-p.Ended():
			return fmt.Errorf("%s ended while it was starting; the end of %s:\n%s", p.Name, p.Log, tail(p.Log))
		case <-ctx.Done():
			return fmt.Errorf("%s was not ready in time (%s); the end of %s:\n%s", p.Name, last, p.Log, tail(p.Log))
		case <-ticker.C:
		}
	}
}

func tail(path string) string {
	content, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(content[max(0, len(content)-2000):])
}

func findRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find the checkout: %w", err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "PROJECT")); err == nil {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("find the checkout: no PROJECT file in the working directory or above it")
		}
		dir = parent
	}
}

// XDSAddress is a manager's xDS port.
func (s *Stack) XDSAddress(manager int) string {
	return "127.0.0.1:" + strconv.Itoa(s.xdsPorts[manager])
}
