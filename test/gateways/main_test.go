package gateways

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/latchkey-dev/latchkey/test/ports"
	"github.com/latchkey-dev/latchkey/test/stack"
)

// patience is how long a test waits for something that takes moments. It is not what is tested.
const patience = 60 * time.Second

var (
	theStack    *stack.Stack
	theFront    *front
	theGateways []*gateway

	theControlPlanes []*grpc.Server // of the gateways that get their configuration over ADS
)

func TestMain(m *testing.M) {
	flag.Parse()
	if testing.Short() {
		fmt.Println("gateways: left out by -short")
		os.Exit(0)
	}
	code, err := runAll(m)
	if err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "gateways:", err)
		code = 1
	}
	os.Exit(code)
}

func runAll(m *testing.M) (code int, err error) {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "lk-gateways-")
	if err != nil {
		return 1, err
	}
	theStack, err = stack.Start(ctx, stack.Options{Dir: dir, Say: os.Stderr, NoEnvoy: true})
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, theStack.Stop()) }()
	if theFront, err = newFront(dir, theStack.ProviderURL()); err != nil {
		return 1, err
	}
	defer theFront.Close()
	if err := install(ctx); err != nil {
		return 1, err
	}
	defer func() {
		for _, server := range theControlPlanes {
			server.Stop()
		}
	}()
	if err := installCRDs(ctx); err != nil {
		return 1, err
	}
	theGateways = gatewaysUnderTest()
	for _, g := range theGateways {
		if err := g.start(ctx); err != nil {
			return 1, err
		}
		defer func() { err = errors.Join(err, g.stop()) }()
	}
	code = m.Run()
	if code == 0 {
		_ = os.RemoveAll(dir)
	} else {
		_, _ = fmt.Fprintln(os.Stderr, "gateways: logs are kept in", filepath.Join(dir, "logs"))
	}
	return code, nil
}

// install applies what the documentation has people apply: the policy and the models of the samples, and the providers as foreign
// gateways want them.
func install(ctx context.Context) error {
	for _, args := range [][]string{
		{"apply", "-f", filepath.Join(theStack.Root, "config/samples/systempolicy.yaml"), "-f", filepath.Join(theStack.Root, "config/samples/models.yaml")},
		{"apply", "--server-side", "-k", filepath.Join(theStack.Root, "config/gateways")},
		{"wait", "--for=condition=Ready", "--timeout=60s", "lkmodel", "--all"},
	} {
		if _, err := theStack.Kubectl(ctx, args...); err != nil {
			return err
		}
	}
	return nil
}

// gateway is one Envoy that Latchkey does not configure.
type gateway struct {
	name string
	// prepare writes Envoy's configuration for a gateway that listens on the port, and returns Envoy's arguments.
	prepare func(ctx context.Context, port int) (args []string, err error)
	// tellsOwnErrors says that Envoy's own errors have x-latchkey-gateway-error.
	tellsOwnErrors bool

	url     string
	process *stack.Process
}

func (g *gateway) start(ctx context.Context) error {
	binary := os.Getenv("ENVOY")
	if binary == "" {
		return errors.New("ENVOY is not set: run this through `make test`, which finds or installs Envoy")
	}
	port, err := ports.Free(ctx)
	if err != nil {
		return err
	}
	args, err := g.prepare(ctx, port)
	if err != nil {
		return fmt.Errorf("prepare %s: %w", g.name, err)
	}
	g.url = fmt.Sprintf("http://127.0.0.1:%d", port)
	g.process = &stack.Process{
		Name: g.name,
		Path: binary,
		Args: append(args, "--use-dynamic-base-id", "--log-level", "warning", "--concurrency", "2"),
		Env:  []string{"OPENAI_API_KEY=" + stack.OpenAICredential, "ANTHROPIC_API_KEY=" + stack.AnthropicCredential},
		Log:  theStack.LogFile(g.name),
	}
	if err := g.process.Start(); err != nil {
		return err
	}
	return g.await(ctx, http.StatusUnauthorized)
}

func (g *gateway) stop() error {
	if g.process == nil {
		return nil
	}
	return g.process.Stop()
}

// await polls until a request without a key is answered with the status: 401 says that Envoy listens and has the enforcer behind it.
func (g *gateway) await(ctx context.Context, status int) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	last := "nothing listens"
	err := wait.PollUntilContextCancel(ctx, 20*time.Millisecond, true, func(ctx context.Context) (bool, error) {
		select {
		case <-g.process.Ended():
			return false, errors.New("it ended")
		default:
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, g.url+"/v1/models", http.NoBody)
		if err != nil {
			return false, err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return false, nil // it is tried again
		}
		defer func() { _ = resp.Body.Close() }()
		body, _ := io.ReadAll(resp.Body)
		last = fmt.Sprintf("%s %s", resp.Status, body)
		return resp.StatusCode == status, nil
	})
	if err != nil {
		return fmt.Errorf("wait for %s to answer %d: %w (%s); see %s", g.name, status, err, last, g.process.Log)
	}
	return nil
}
