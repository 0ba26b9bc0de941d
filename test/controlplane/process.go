package controlplane

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

// stopGrace is how long a program may take to end after SIGTERM before it is killed.
const stopGrace = 30 * time.Second

// logTail is how many bytes of a program's log an error quotes.
const logTail = 2000

// process is one running program.
type process struct {
	name string
	log  string // the file that stdout and stderr are appended to
	cmd  *exec.Cmd
	done chan struct{} // closed when the program has ended; err is set then
	err  error
}

// startProcess starts a program that ends when this process does, however that ends.
func startProcess(name, path, log string, args ...string) (*process, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p := &process{name: name, log: log, done: make(chan struct{})}
	p.cmd = exec.Command(path, args...) //nolint:noctx // its life is bound to stop and to this process, not to a context
	p.cmd.Stdout, p.cmd.Stderr = out, out
	p.cmd.SysProcAttr = processAttributes()
	started := make(chan error, 1)
	go func() {
		// The kernel counts as the parent's death that of the thread which started the child, and Go ends threads as it
		// pleases. This one is kept until the child has ended.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer func() { _ = out.Close() }()
		err := p.cmd.Start()
		started <- err
		if err != nil {
			return
		}
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	return p, nil
}

// stop asks the program to end and waits for it; it is killed if it does not, which is an error.
func (p *process) stop() error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop %s: %w", p.name, err)
	}
	// Not the caller's context: that one has often ended by now, and the program has to end all the same.
	ctx, cancel := context.WithTimeout(context.Background(), stopGrace)
	defer cancel()
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
	}
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill %s: %w", p.name, err)
	}
	<-p.done
	return fmt.Errorf("%s did not end within %s of SIGTERM and was killed", p.name, stopGrace)
}

// await polls until ready says so, the program ends, or the context does. The error quotes the end of the program's log.
func (p *process) await(ctx context.Context, ready func(context.Context) error) error {
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for {
		err := ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("%s ended while it was starting (%w); the end of %s:\n%s", p.name, p.err, p.log, endOf(p.log))
		case <-ctx.Done():
			return fmt.Errorf("%s was not ready in time (%w); the end of %s:\n%s", p.name, err, p.log, endOf(p.log))
		case <-ticker.C:
		}
	}
}

func endOf(path string) string {
	content, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(content[max(0, len(content)-logTail):])
}
