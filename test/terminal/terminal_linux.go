package terminal

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long is waited for something to be shown, or for the program's end.
const patience = 60 * time.Second

// Session is a program on a terminal.
type Session struct {
	t      *testing.T
	master *os.File
	done   chan error

	mu     sync.Mutex
	screen strings.Builder
	read   int // of the screen
}

// open opens a pseudo-terminal: the side of the person and that of the program. Where there are none the test is skipped.
func open(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no pseudo-terminals here: %v", err)
	}
	t.Cleanup(func() { _ = master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatalf("unlock the terminal: %v", err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatalf("find the terminal: %v", err)
	}
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatalf("open the terminal: %v", err)
	}
	return master, slave
}

// Start starts a command on a terminal of its own. If its stdout is set, only stdin and stderr are the terminal. The command's context
// has to end it: the session kills nothing.
func Start(t *testing.T, cmd *exec.Cmd) *Session {
	t.Helper()
	master, slave := open(t)
	defer func() { _ = slave.Close() }()
	s := &Session{t: t, master: master, done: make(chan error, 1)}
	cmd.Stdin, cmd.Stderr = slave, slave
	if cmd.Stdout == nil {
		cmd.Stdout = slave
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { s.done <- cmd.Wait() }()
	go func() {
		buffer := make([]byte, 4096)
		for {
			n, err := master.Read(buffer)
			s.mu.Lock()
			s.screen.Write(buffer[:n])
			s.mu.Unlock()
			if err != nil { // EIO: the program has ended
				return
			}
		}
	}()
	return s
}

// Text is all that was shown.
func (s *Session) Text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.screen.String()
}

// Expect waits until a text has appeared behind what was expected before.
func (s *Session) Expect(want string) {
	s.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		if at := strings.Index(s.Text()[s.read:], want); at >= 0 {
			s.read += at + len(want)
			return
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("the terminal does not show %q:\n%s", want, last(s.Text()))
		}
	}
}

// last is the end of a long text.
func last(text string) string {
	const most = 4000
	return text[max(0, len(text)-most):]
}

// Write types.
func (s *Session) Write(keys string) {
	s.t.Helper()
	if _, err := s.master.WriteString(keys); err != nil {
		s.t.Fatal(err)
	}
}

// Ends waits for the program's end, and fails the test unless it has ended with the code.
func (s *Session) Ends(code int) {
	s.t.Helper()
	err := <-s.done
	got := 0
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		got = exit.ExitCode()
	} else if err != nil {
		s.t.Fatal(err)
	}
	if got != code {
		s.t.Fatalf("exit code %d, want %d:\n%s", got, code, last(s.Text()))
	}
}
