package extproc

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// socketDir is a directory whose path leaves room for the name of a unix socket.
func socketDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "lk") //nolint:usetesting // the path of t.TempDir can be too long
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

func TestServeTakesBodiesUpToTheMaximum(t *testing.T) {
	t.Parallel()
	const most = 6 << 20 // above gRPC's own maximum
	f := newFixture(t, fixtureOptions{max: most})
	d := f.begin(t)
	d.ask(f.post("/v1/chat/completions"))
	body := chat("same")
	body += strings.Repeat(" ", most-len(body))
	if d.ask(requestBody(body)).GetRequestBody() == nil {
		t.Fatal("a body of the maximum is not forwarded")
	}

	d = f.begin(t)
	d.ask(f.post("/v1/chat/completions"))
	if err := d.stream.Send(requestBody(body + strings.Repeat(" ", messageSlack))); err != nil {
		t.Fatal(err)
	}
	if resp, err := d.stream.Recv(); status.Code(err) != codes.ResourceExhausted {
		t.Fatalf("a body above the maximum: %v, %v", resp, err)
	}
}

func TestServeLetsRequestsUnderWayFinish(t *testing.T) {
	t.Parallel()
	f := newFixture(t, fixtureOptions{})
	d := f.begin(t)
	d.ask(f.post("/v1/chat/completions"))
	f.stop()
	waitFor(t, "the socket to go", func() bool {
		_, err := os.Lstat(f.socket)
		return os.IsNotExist(err)
	})
	if d.ask(requestBody(chat("same"))).GetRequestBody() == nil {
		t.Fatal("the request under way is not forwarded")
	}
	d.ask(responseHeaders(":status", "200"))
	d.ended()
	if err := <-f.stopped; err != nil {
		t.Fatal(err)
	}
}

func TestServeCutsOffWhatDoesNotFinish(t *testing.T) {
	t.Parallel()
	f := newFixture(t, fixtureOptions{stopGrace: time.Millisecond})
	d := f.begin(t)
	d.ask(f.post("/v1/chat/completions"))
	f.stop()
	if err := <-f.stopped; err != nil {
		t.Fatal(err)
	}
	if resp, err := d.stream.Recv(); err == nil || errors.Is(err, io.EOF) {
		t.Fatalf("the stream ended in good order, which Envoy would take for a pass: %v, %v", resp, err)
	}
}

func TestServeReportsALostListener(t *testing.T) {
	t.Parallel()
	ln, err := Listen(t.Context(), filepath.Join(socketDir(t), "s"))
	if err != nil {
		t.Fatal(err)
	}
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	adapter := NewAdapter(faulty(nil), &countedFaults{}, slog.New(slog.DiscardHandler))
	if err := Serve(t.Context(), ln, adapter, ServeOptions{MaxRequestBytes: 1, StopGrace: patience}); err == nil {
		t.Fatal("no error")
	}
}

// waitFor polls until the condition holds.
func waitFor(t *testing.T, what string, condition func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-ctx.Done():
			t.Fatalf("waited in vain for %s", what)
		case <-tick.C:
		}
	}
}
