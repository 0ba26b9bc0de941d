package extproc

import (
	"context"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// socketDir is a directory whose path leaves room for the name of a unix socket.
func socketDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "lk")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func TestListen(t *testing.T) {
	t.Parallel()
	leaveStale := func(t *testing.T, path string) {
		ln, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		ln.(*net.UnixListener).SetUnlinkOnClose(false) // as a killed process leaves it
		if err := ln.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for name, tc := range map[string]struct {
		file    string // below the directory
		prepare func(t *testing.T, path string)
		wantErr string // empty: it listens
	}{
		"a path that is free is taken": {file: "s"},
		"a directory that is missing is created": {
			file: "a/b/s",
		},
		"a stale socket is replaced": {file: "s", prepare: leaveStale},
		"a socket that is listened on is left alone": {
			file: "s",
			prepare: func(t *testing.T, path string) {
				ln, err := Listen(t.Context(), path)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = ln.Close() })
			},
			wantErr: "another process listens there",
		},
		"a file of another kind is left alone": {
			file: "s",
			prepare: func(t *testing.T, path string) {
				if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
					t.Fatal(err)
				}
			},
			wantErr: "a file of another kind",
		},
		"a path that is too long is explained": {
			file:    strings.Repeat("x", maxSocketPath),
			wantErr: "choose a shorter one",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(socketDir(t), tc.file)
			if tc.prepare != nil {
				tc.prepare(t, path)
			}
			ln, err := Listen(t.Context(), path)
			if tc.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tc.wantErr) {
					t.Fatalf("Listen: %v; want an error with %q", err, tc.wantErr)
				}
				if tc.prepare != nil {
					if _, err := os.Lstat(path); err != nil {
						t.Fatalf("what was there is gone: %v", err)
					}
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			info, err := os.Lstat(path)
			if err != nil {
				t.Fatal(err)
			}
			if got, want := info.Mode(), fs.ModeSocket|socketMode; got != want {
				t.Errorf("mode of the socket is %v, want %v", got, want)
			}
			conn, err := (&net.Dialer{}).DialContext(t.Context(), "unix", path)
			if err != nil {
				t.Fatalf("connect: %v", err)
			}
			_ = conn.Close()
			if err := ln.Close(); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Lstat(path); !os.IsNotExist(err) {
				t.Errorf("the socket file is still there after Close: %v", err)
			}
		})
	}
}

func TestListenMakesItsDirectoryForTheGroup(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(socketDir(t), "run")
	ln, err := Listen(t.Context(), filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	info, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode().Perm(); got&0o027 != 0 {
		t.Fatalf("others may use the directory: %v", got)
	}
}

// Several processes that start at the same moment beside a stale socket: one gets it, and keeps it.
func TestListenHasOneWinner(t *testing.T) {
	t.Parallel()
	path := filepath.Join(socketDir(t), "s")
	stale, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	stale.(*net.UnixListener).SetUnlinkOnClose(false)
	_ = stale.Close()

	const contenders = 8
	results := make(chan net.Listener, contenders)
	for range contenders {
		go func() {
			ln, err := Listen(context.Background(), path)
			if err != nil {
				ln = nil
			}
			results <- ln
		}()
	}
	winners := 0
	for range contenders {
		if ln := <-results; ln != nil {
			winners++
			defer func() { _ = ln.Close() }()
		}
	}
	if winners != 1 {
		t.Fatalf("%d listen, want 1", winners)
	}
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "unix", path)
	if err != nil {
		t.Fatalf("connect to the winner: %v", err)
	}
	_ = conn.Close()
}
