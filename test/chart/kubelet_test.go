package chart

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/latchkey-dev/latchkey/test/ports"
	"github.com/latchkey-dev/latchkey/test/stack"
)

// node stands in for a machine of the cluster: it runs Pods as processes, each with the folders and ports that it is given here in place
// of those it names, and forwards what is sent to a Service to one of its Pods that are ready.
type node struct {
	t    *testing.T
	dir  string
	pods map[string]*pod

	mu       sync.Mutex
	services map[string]string // "name.namespace.svc:port" to where it listens here
}

// pod is a Pod that runs.
type pod struct {
	*corev1.Pod
	kubeconfig string            // its ServiceAccount's; empty: it has no token
	folders    map[string]string // mountPath to folder
	ports      map[string]int    // a port's name to the one here
	processes  []*stack.Process
}

func newNode(t *testing.T) *node {
	t.Helper()
	dir, err := os.MkdirTemp("", "lk-node-") //nolint:usetesting // short: a unix socket's path holds 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, dir: dir, pods: map[string]*pod{}, services: map[string]string{}}
	t.Cleanup(func() {
		for _, p := range n.pods {
			for _, process := range slices.Backward(p.processes) {
				if err := process.Stop(); err != nil {
					t.Error(err)
				}
			}
		}
		if t.Failed() {
			t.Logf("logs are kept in %s", dir)
			return
		}
		_ = os.RemoveAll(dir)
	})
	return n
}

// binaries are what the images hold.
func (n *node) binary(container *corev1.Container) string {
	n.t.Helper()
	switch command := strings.Join(container.Command, " "); command {
	case "/manager":
		return filepath.Join(server.root, "bin", "manager")
	case "/enforcer":
		return filepath.Join(server.root, "bin", "enforcer")
	case "/usr/local/bin/envoy":
		return os.Getenv("ENVOY")
	default:
		n.t.Fatalf("container %s: no image holds the command %q", container.Name, command)
		return ""
	}
}

// admit prepares a Pod: its folders, filled from Secrets, and its ports. gatewayPort is one that another Pod's arguments name.
func (n *node) admit(made *corev1.Pod) *pod {
	n.t.Helper()
	p := &pod{Pod: made, folders: map[string]string{}, ports: map[string]int{}}
	n.pods[made.Name] = p
	volumes := map[string]string{}
	for _, v := range made.Spec.Volumes {
		folder := filepath.Join(n.dir, made.Name, v.Name)
		if err := os.MkdirAll(folder, 0o700); err != nil {
			n.t.Fatal(err)
		}
		volumes[v.Name] = folder
		switch {
		case v.Secret != nil:
			var secret corev1.Secret
			until(n.t, "Secret "+v.Secret.SecretName, func(ctx context.Context) error {
				return server.client.Get(ctx, client.ObjectKey{Namespace: made.Namespace, Name: v.Secret.SecretName}, &secret)
			})
			for name, content := range secret.Data {
				if err := os.WriteFile(filepath.Join(folder, name), content, 0o600); err != nil {
					n.t.Fatal(err)
				}
			}
		case v.EmptyDir != nil, v.PersistentVolumeClaim != nil:
		default:
			n.t.Fatalf("volume %s is of a kind that this node does not know", v.Name)
		}
	}
	for _, c := range slices.Concat(made.Spec.InitContainers, made.Spec.Containers) {
		for _, m := range c.VolumeMounts {
			folder, there := volumes[m.Name]
			if !there {
				n.t.Fatalf("container %s mounts %s, which is no volume", c.Name, m.Name)
			}
			p.folders[m.MountPath] = folder
		}
		for _, port := range c.Ports {
			free, err := ports.Free(n.t.Context())
			if err != nil {
				n.t.Fatal(err)
			}
			p.ports[port.Name] = free
		}
	}
	if made.Spec.AutomountServiceAccountToken == nil || *made.Spec.AutomountServiceAccountToken {
		_, kubeconfig, err := server.ServiceAccountConfig(n.t.Context(), made.Namespace, made.Spec.ServiceAccountName)
		if err != nil {
			n.t.Fatal(err)
		}
		p.kubeconfig = filepath.Join(n.dir, made.Name+".kubeconfig")
		if err := os.WriteFile(p.kubeconfig, kubeconfig, 0o600); err != nil {
			n.t.Fatal(err)
		}
	}
	return p
}

// start runs the Pod's containers in their order, as a kubelet does.
func (n *node) start(p *pod) {
	n.t.Helper()
	for i := range p.Spec.InitContainers {
		c := &p.Spec.InitContainers[i]
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			n.run(p, c)
			continue
		}
		env := append(n.environment(p, c), "PATH="+os.Getenv("PATH"))
		if _, err := run(n.t.Context(), env, n.binary(c), n.arguments(p, c)...); err != nil {
			n.t.Fatalf("init container %s: %v", c.Name, err)
		}
	}
	for i := range p.Spec.Containers {
		n.run(p, &p.Spec.Containers[i])
	}
}

func (n *node) run(p *pod, c *corev1.Container) {
	n.t.Helper()
	process := &stack.Process{
		Name: p.Name + "-" + c.Name, Path: n.binary(c), Args: n.arguments(p, c), Env: n.environment(p, c), Log: filepath.Join(n.dir, p.Name+"-"+c.Name+".log"),
	}
	p.processes = append(p.processes, process)
	if err := process.Start(); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) environment(p *pod, c *corev1.Container) []string {
	n.t.Helper()
	var env []string
	for name, value := range n.variables(p, c) {
		env = append(env, name+"="+value)
	}
	return append(env, "KUBECONFIG="+p.kubeconfig)
}

func (n *node) variables(p *pod, c *corev1.Container) map[string]string {
	n.t.Helper()
	out := map[string]string{}
	for _, e := range c.Env {
		switch {
		case e.ValueFrom == nil:
			out[e.Name] = e.Value
		case e.ValueFrom.FieldRef != nil && e.ValueFrom.FieldRef.FieldPath == "metadata.name":
			out[e.Name] = p.Name
		case e.ValueFrom.FieldRef != nil && e.ValueFrom.FieldRef.FieldPath == "metadata.namespace":
			out[e.Name] = p.Namespace
		default:
			n.t.Fatalf("variable %s comes from where this node does not know", e.Name)
		}
	}
	return out
}

// arguments are the container's, with what is here in place of what is in a cluster: folders, ports and Services.
func (n *node) arguments(p *pod, c *corev1.Container) []string {
	n.t.Helper()
	args := make([]string, 0, len(c.Args))
	for _, arg := range c.Args {
		for name, value := range n.variables(p, c) {
			arg = strings.ReplaceAll(arg, "$("+name+")", value)
		}
		for service, here := range n.services {
			arg = strings.ReplaceAll(arg, service, here)
		}
		for _, port := range c.Ports {
			if address, found := strings.CutSuffix(arg, "=:"+strconv.Itoa(int(port.ContainerPort))); found {
				arg = address + "=127.0.0.1:" + strconv.Itoa(p.ports[port.Name])
			}
		}
		// The socket between Envoy and the enforcer is named to the manager, too, which does not mount it.
		for _, other := range n.pods {
			for _, mountPath := range slices.Sorted(maps.Keys(other.folders)) {
				if other == p || !mounts(p, mountPath) {
					arg = replacePath(arg, mountPath, other.folders[mountPath])
				}
			}
		}
		args = append(args, arg)
	}
	return args
}

func mounts(p *pod, path string) bool {
	_, there := p.folders[path]
	return there
}

// replacePath puts a folder in the place of another at the beginning of a path, where that stands behind "=" or alone.
func replacePath(arg, from, to string) string {
	flag, path, found := strings.Cut(arg, "=")
	if !found {
		flag, path = "", arg
	} else {
		flag += "="
	}
	if rest, under := strings.CutPrefix(path, from); under && (rest == "" || rest[0] == '/') {
		return flag + to + rest
	}
	return arg
}

// port is a container's port by the name or number that a probe or a Service gives.
func (p *pod) port(of intstr.IntOrString) (int, error) {
	if of.Type == intstr.String {
		if here, there := p.ports[of.StrVal]; there {
			return here, nil
		}
	}
	return 0, fmt.Errorf("pod %s has no port %s", p.Name, of.String())
}

// awaitReady waits until every readiness probe of the Pod succeeds, and its liveness probes, too.
func (n *node) awaitReady(p *pod) {
	n.t.Helper()
	for _, c := range slices.Concat(p.Spec.InitContainers, p.Spec.Containers) {
		for kind, probe := range map[string]*corev1.Probe{"readiness": c.ReadinessProbe, "liveness": c.LivenessProbe} {
			if probe == nil {
				continue
			}
			until(n.t, fmt.Sprintf("%s of %s in %s", kind, c.Name, p.Name), func(ctx context.Context) error { return p.probe(ctx, probe) })
		}
	}
}

func (p *pod) probe(ctx context.Context, probe *corev1.Probe) error {
	switch {
	case probe.HTTPGet != nil:
		port, err := p.port(probe.HTTPGet.Port)
		if err != nil {
			return err
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1:"+strconv.Itoa(port)+probe.HTTPGet.Path, http.NoBody)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return errors.New(resp.Status)
		}
		return nil
	case probe.TCPSocket != nil:
		port, err := p.port(probe.TCPSocket.Port)
		if err != nil {
			return err
		}
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			return err
		}
		return conn.Close()
	}
	return errors.New("a probe of a kind that this node does not know")
}

// serve stands in for a Service: what connects to it is forwarded to a Pod of its selector that listens.
func (n *node) serve(s *corev1.Service) {
	n.t.Helper()
	for _, port := range s.Spec.Ports {
		ln, err := (&net.ListenConfig{}).Listen(n.t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			n.t.Fatal(err)
		}
		var connections sync.WaitGroup
		ctx, cancel := context.WithCancel(context.WithoutCancel(n.t.Context()))
		n.t.Cleanup(func() {
			cancel()
			_ = ln.Close()
			connections.Wait()
		})
		connections.Go(func() {
			for {
				conn, err := ln.Accept()
				if err != nil {
					return
				}
				connections.Go(func() { n.forward(ctx, conn, s, port.TargetPort) })
			}
		})
		n.services[fmt.Sprintf("%s.%s.svc:%d", s.Name, s.Namespace, port.Port)] = ln.Addr().String()
	}
}

func (n *node) forward(ctx context.Context, conn net.Conn, s *corev1.Service, target intstr.IntOrString) {
	defer func() { _ = conn.Close() }()
	n.mu.Lock()
	var backends []*pod
	for _, name := range slices.Sorted(maps.Keys(n.pods)) {
		p := n.pods[name]
		matches := true
		for label, value := range s.Spec.Selector {
			matches = matches && p.Labels[label] == value
		}
		if matches {
			backends = append(backends, p)
		}
	}
	n.mu.Unlock()
	for _, p := range backends {
		port, err := p.port(target)
		if err != nil {
			continue
		}
		back, err := (&net.Dialer{}).DialContext(ctx, "tcp", "127.0.0.1:"+strconv.Itoa(port))
		if err != nil {
			continue // not ready
		}
		stop := context.AfterFunc(ctx, func() { _, _ = conn.Close(), back.Close() })
		defer stop()
		var both sync.WaitGroup
		both.Go(func() { pipe(back, conn) })
		both.Go(func() { pipe(conn, back) })
		both.Wait()
		return
	}
}

func pipe(to, from net.Conn) {
	_, _ = io.Copy(to, from)
	_ = to.Close()
	_ = from.Close()
}
