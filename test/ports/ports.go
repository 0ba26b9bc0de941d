// Package ports finds TCP ports for programs that must be told their port before they listen on it.
//
// Port 0 would let the kernel choose, but a port found that way and given back lies in the range of outgoing connections: one of them can take it
// before the program does. So ports are taken from below that range, and each is reserved among all processes that use this package by a
// lock on a file, for as long as the process lives.
package ports

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
)

// The range to choose from: below Linux' outgoing ports (32768 and up), above most services.
const (
	lowest = 12000
	count  = 18000
)

// Free is a port on 127.0.0.1 that nobody listens on, and that no other caller gets while this process lives.
func Free(ctx context.Context) (int, error) {
	dir := filepath.Join(os.TempDir(), "latchkey-ports")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	const attempts = 1000
	for range attempts {
		port := lowest + rand.IntN(count)
		if reserve(filepath.Join(dir, strconv.Itoa(port))) && Listens(ctx, port) == nil {
			return port, nil
		}
	}
	return 0, fmt.Errorf("find a free port: none among %d tried", attempts)
}

// Listens reports, as an error, why nobody could listen on the port of 127.0.0.1 now.
func Listens(ctx context.Context, port int) error {
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return fmt.Errorf("try port %d: %w", port, err)
	}
	return ln.Close()
}

// reserve locks the file. The descriptor stays open on purpose: the lock goes with the process.
func reserve(path string) bool {
	fd, err := syscall.Open(path, syscall.O_CREAT|syscall.O_RDWR|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return false
	}
	if err := syscall.Flock(fd, syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			_ = os.Remove(path)
		}
		_ = syscall.Close(fd)
		return false
	}
	return true
}
