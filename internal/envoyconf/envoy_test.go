package envoyconf

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	cachev3 "github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	serverv3 "github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/latchkey-dev/latchkey/internal/certs"
	"github.com/latchkey-dev/latchkey/internal/policy"
)

const patience = 30 * time.Second

// eventually polls until the condition holds, and fails with what it last said if it never does.
func eventually(t *testing.T, what string, condition func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := condition()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("waited in vain for %s: %v", what, err)
		case <-tick.C:
		}
	}
}

// envoyBinary is the real Envoy's, without which there is nothing to test here.
func envoyBinary(t *testing.T) string {
	t.Helper()
	binary := os.Getenv("ENVOY")
	if binary == "" {
		if testing.Short() {
			t.Skip("ENVOY is unset")
		}
		t.Fatal("ENVOY is unset: run `make test`, which finds Envoy, or set it to the binary's path, or leave these tests out with -short")
	}
	return binary
}

// controlPlane is go-control-plane's server over mTLS, watched for what Envoy acknowledges and rejects.
type controlPlane struct {
	cache cachev3.SnapshotCache

	mu     sync.Mutex
	sent   map[string]sentVersion // by nonce
	acked  map[string]string      // by type
	nacked []string
}

type sentVersion struct{ typeURL, version string }

type anyNode struct{}

func (anyNode) ID(*corev3.Node) string { return "envoy" }

func newControlPlane() *controlPlane {
	return &controlPlane{
		cache: cachev3.NewSnapshotCache(true, anyNode{}, nil),
		sent:  make(map[string]sentVersion),
		acked: make(map[string]string),
	}
}

// serve listens on the address (with port 0: any) until stop is called, and says where.
func (cp *controlPlane) serve(t *testing.T, address string, source certs.Source) (port uint32, stop func()) {
	t.Helper()
	listener, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(certs.Server(source))))
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(server, serverv3.NewServer(ctx, cp.cache, serverv3.CallbackFuncs{
		StreamDeltaResponseFunc: func(_ int64, _ *discoveryv3.DeltaDiscoveryRequest, res *discoveryv3.DeltaDiscoveryResponse) {
			cp.mu.Lock()
			defer cp.mu.Unlock()
			cp.sent[res.GetNonce()] = sentVersion{res.GetTypeUrl(), res.GetSystemVersionInfo()}
		},
		StreamDeltaRequestFunc: func(_ int64, req *discoveryv3.DeltaDiscoveryRequest) error {
			cp.mu.Lock()
			defer cp.mu.Unlock()
			sent, ok := cp.sent[req.GetResponseNonce()]
			switch {
			case !ok:
			case req.GetErrorDetail() != nil:
				cp.nacked = append(cp.nacked, sent.typeURL+": "+req.GetErrorDetail().GetMessage())
			default:
				cp.acked[sent.typeURL] = sent.version
			}
			return nil
		},
	}))
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(listener)
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		server.Stop()
		<-done
	})
	t.Cleanup(stop)
	return uint32(listener.Addr().(*net.TCPAddr).Port), stop
}

// set publishes the resources and waits until Envoy has taken them.
func (cp *controlPlane) set(t *testing.T, res Resources) {
	t.Helper()
	snapshot, err := res.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	if err := cp.cache.SetSnapshot(t.Context(), "envoy", snapshot); err != nil {
		t.Fatal(err)
	}
	eventually(t, "Envoy to acknowledge the resources", func() error {
		cp.mu.Lock()
		defer cp.mu.Unlock()
		if len(cp.nacked) > 0 {
			t.Fatalf("Envoy rejected: %s", strings.Join(cp.nacked, "\n"))
		}
		for _, typeURL := range []string{resourcev3.ClusterType, resourcev3.ListenerType, resourcev3.RouteType} {
			if cp.acked[typeURL] != snapshot.GetVersion(typeURL) {
				return fmt.Errorf("%s is at version %q, not %q", typeURL, cp.acked[typeURL], snapshot.GetVersion(typeURL))
			}
		}
		return nil
	})
}

// envoy is a running Envoy with its control plane.
type envoy struct {
	*controlPlane
	config  Config
	admin   string // base URL
	gateway string // host:port
	certDir string
	xdsPort uint32
	stopXDS func()
	now     time.Time
}

// publish builds and sets the resources for the providers.
func (e *envoy) publish(t *testing.T, providers ...policy.Provider) {
	t.Helper()
	res, err := Build(e.config, providers)
	if err != nil {
		t.Fatal(err)
	}
	e.set(t, res)
}

func startEnvoy(t *testing.T, config Config) *envoy {
	t.Helper()
	binary := envoyBinary(t)
	dir := shortDir(t)
	e := &envoy{controlPlane: newControlPlane(), config: config, now: time.Now()}

	// As Kubernetes lays out a Secret's volume: the files are links through ..data, which a renewal replaces by a move.
	e.certDir = filepath.Join(dir, "certs")
	if err := os.Mkdir(e.certDir, 0o700); err != nil {
		t.Fatal(err)
	}
	server := e.renew(t, "first")
	for _, name := range []string{certs.CAFile, certs.CertFile, certs.KeyFile} {
		if err := os.Symlink(filepath.Join("..data", name), filepath.Join(e.certDir, name)); err != nil {
			t.Fatal(err)
		}
	}
	e.xdsPort, e.stopXDS = e.serve(t, "127.0.0.1:0", server)

	boot := BootstrapConfig{
		NodeID: "envoy-1", XDSHost: "127.0.0.1", XDSPort: e.xdsPort, ServerName: certs.ServerName, CertDir: e.certDir, SDSDir: dir,
	}
	files, err := SDSFiles(boot)
	if err != nil {
		t.Fatal(err)
	}
	if files["bootstrap.yaml"], err = Bootstrap(boot); err != nil {
		t.Fatal(err)
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}

	var log lockedBuffer
	adminFile := filepath.Join(dir, "admin")
	cmd := exec.Command(binary, "-c", filepath.Join(dir, "bootstrap.yaml"), "--concurrency", "1", "--disable-hot-restart",
		"--admin-address-path", adminFile, "--log-level", "warning")
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.SysProcAttr = dieWithParent()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("Envoy's log:\n%s", log.String())
		}
	})

	eventually(t, "Envoy's admin interface", func() error {
		address, err := os.ReadFile(adminFile)
		if err != nil || len(address) == 0 {
			return fmt.Errorf("no address yet: %w", err)
		}
		e.admin = "http://" + string(address)
		return nil
	})
	e.publish(t)
	eventually(t, "Envoy's listener", func() error {
		var listeners struct {
			Statuses []struct {
				Name    string `json:"name"`
				Address struct {
					Socket struct {
						Port int `json:"port_value"`
					} `json:"socket_address"`
				} `json:"local_address"`
			} `json:"listener_statuses"`
		}
		if err := json.Unmarshal([]byte(e.ask(t, "/listeners?format=json")), &listeners); err != nil {
			return err
		}
		for _, l := range listeners.Statuses {
			if l.Name == ListenerName && l.Address.Socket.Port != 0 {
				e.gateway = net.JoinHostPort("127.0.0.1", strconv.Itoa(l.Address.Socket.Port))
				return nil
			}
		}
		return fmt.Errorf("listeners: %+v", listeners)
	})
	eventually(t, "the listener to be ready", func() error {
		conn, err := net.Dial("tcp", e.gateway)
		if err != nil {
			return err
		}
		return conn.Close()
	})
	return e
}

// renew puts certificates of a new authority into Envoy's directory and gives those for the control plane.
func (e *envoy) renew(t *testing.T, generation string) certs.Source {
	t.Helper()
	authority, err := certs.NewAuthority(e.now)
	if err != nil {
		t.Fatal(err)
	}
	serverID, _, envoyID := certs.Identities()
	own, err := certs.Issue(authority, envoyID, e.now)
	if err != nil {
		t.Fatal(err)
	}
	server, err := certs.Issue(authority, serverID, e.now)
	if err != nil {
		t.Fatal(err)
	}
	if err := own.Write(filepath.Join(e.certDir, generation)); err != nil {
		t.Fatal(err)
	}
	next := filepath.Join(e.certDir, "..data_next")
	if err := os.Symlink(generation, next); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, filepath.Join(e.certDir, "..data")); err != nil {
		t.Fatal(err)
	}
	return func() (certs.Bundle, error) { return server, nil }
}

// ask gets a page of Envoy's admin interface.
func (e *envoy) ask(t *testing.T, path string) string {
	t.Helper()
	client := newClient(t, nil)
	res, err := client.Get(e.admin + path)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

// newClient keeps nothing behind once the test is over.
func newClient(t *testing.T, transport *http.Transport) *http.Client {
	t.Helper()
	if transport == nil {
		transport = &http.Transport{}
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: patience}
}

// shortDir is a directory whose path leaves room for the name of a unix socket, which has about a hundred bytes.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "lk") //nolint:usetesting // t.TempDir's path is too long
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
