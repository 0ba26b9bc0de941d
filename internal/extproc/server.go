package extproc

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
)

const (
	// maxSocketPath is the longest path that the kernel takes for a unix socket.
	maxSocketPath = 107
	// messageSlack is room in a message beside the body: Envoy's headers hold 60 KiB by default, 8 MiB at the most.
	messageSlack = 1 << 20

	socketMode    = 0o660 // Envoy runs under another user of the same group
	directoryMode = 0o750
)

// Listen opens the unix socket at the path, and creates its directory where it is missing. A socket file that a killed process left
// behind is replaced. One that somebody listens on is not, nor is a file of another kind: those are errors. Closing the listener
// removes the file.
func Listen(ctx context.Context, path string) (net.Listener, error) {
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("listen on socket %s: the path has %d bytes, and the system takes at most %d: choose a shorter one",
			path, len(path), maxSocketPath)
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, directoryMode); err != nil {
		return nil, fmt.Errorf("create directory of socket: %w", err)
	}
	unlock, err := lockDirectory(dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := removeStale(ctx, path); err != nil {
		return nil, err
	}
	ln, err := (&net.ListenConfig{}).Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on socket: %w", err)
	}
	if err := os.Chmod(path, socketMode); err != nil {
		return nil, errors.Join(fmt.Errorf("set mode of socket: %w", err), ln.Close())
	}
	return ln, nil
}

// lockDirectory keeps two processes that start together from both finding the socket stale, and one from removing the other's new one.
func lockDirectory(dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("open directory of socket: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("lock directory of socket: %w", err), f.Close())
	}
	return func() { _ = f.Close() }, nil // closing gives the lock up
}

func removeStale(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("examine socket: %w", err)
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("listen on socket %s: a file of another kind is there: remove it, or choose another path", path)
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	switch {
	case err == nil:
		_ = conn.Close()
		return fmt.Errorf("listen on socket %s: another process listens there: stop it, or choose another path", path)
	case errors.Is(err, syscall.ECONNREFUSED):
	default:
		return fmt.Errorf("find out whether socket is in use: %w", err)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("remove stale socket: %w", err)
	}
	return nil
}

// ServeOptions bound what Serve takes in and how long it takes to end.
type ServeOptions struct {
	MaxRequestBytes int           // the largest request body, in bytes; the same as Envoy's buffer
	StopGrace       time.Duration // how long the requests under way have to be decided once ctx is done
	WatchGrace      time.Duration // how long answers that are on their way go on being watched by then; at most StopGrace
}

// Serve answers Envoy on the listener until ctx is done, then takes no new requests, gives those under way the grace to finish, lets
// answers go on without it once WatchGrace has passed, and cuts off the rest. It closes the listener. It returns nil when it was ctx that ended it, and all its goroutines have ended by then.
func Serve(ctx context.Context, ln net.Listener, adapter *Adapter, opts ServeOptions) error {
	server := grpc.NewServer(
		grpc.MaxRecvMsgSize(opts.MaxRequestBytes+messageSlack),
		// An Envoy that hangs, or a pod's that was frozen, must not hold its streams for ever.
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: time.Minute, Timeout: 20 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
		grpc.WaitForHandlers(true),
	)
	extprocv3.RegisterExternalProcessorServer(server, adapter)
	served := make(chan error, 1)
	go func() { served <- server.Serve(ln) }()
	select {
	case err := <-served:
		server.Stop()
		return fmt.Errorf("serve Envoy: %w", err)
	case <-ctx.Done():
	}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		server.GracefulStop()
	}()
	watch, grace := time.NewTimer(opts.WatchGrace), time.NewTimer(opts.StopGrace)
	defer watch.Stop()
	defer grace.Stop()
	for ended := false; !ended; {
		select {
		case <-stopped:
			ended = true
		case <-watch.C:
			adapter.LetGo()
		case <-grace.C:
			server.Stop()
			<-stopped
			ended = true
		}
	}
	if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("serve Envoy: %w", err)
	}
	return nil
}
