package story

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"k8s.io/client-go/tools/clientcmd"
)

// marker stands before the exit code of a line.
const marker = "=== exit code "

// shell is one bash that lines are given to, as a person has it in front of them: what a line sets is there for the next. What a line
// reads from stdin has ended.
type shell struct {
	t     *testing.T
	cmd   *exec.Cmd
	lines io.WriteCloser
	out   *bufio.Reader
}

// environment is a shell's. Its directory is as that of `make run`: the kubeconfig is in .run and the programs are in bin. Without a
// namespace the kubeconfig names none.
func environment(t *testing.T, namespace string) (dir string, env []string) {
	t.Helper()
	dir = t.TempDir()
	kubectl, err := system.ControlPlane.Kubectl()
	if err != nil {
		t.Fatal(err)
	}
	for _, sub := range []string{".run", "bin"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, program := range []string{kubectl, system.Binary("kubectl-latchkey")} {
		if err := os.Symlink(program, filepath.Join(dir, "bin", filepath.Base(program))); err != nil {
			t.Fatal(err)
		}
	}
	config, err := clientcmd.LoadFromFile(system.Kubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range config.Contexts {
		c.Namespace = namespace
	}
	if err := clientcmd.WriteToFile(*config, filepath.Join(dir, ".run", "kubeconfig")); err != nil {
		t.Fatal(err)
	}
	return dir, []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "LANG=C.UTF-8", "TERM=dumb", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null",
	}
}

func newShell(t *testing.T, namespace string) *shell {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 2*patience)
	s := &shell{t: t, cmd: exec.CommandContext(ctx, "bash", "--norc", "--noprofile")}
	s.cmd.Dir, s.cmd.Env = environment(t, namespace)
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	s.cmd.Cancel = func() error { return syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL) } // what it has started, too
	var err error
	if s.lines, err = s.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	reader, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	s.out = bufio.NewReader(reader)
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = s.lines.Close()
		_ = s.cmd.Wait()
		cancel()
	})
	return s
}

// run runs a line, with the gateway where it is, and returns what it wrote on stdout and stderr together, and its exit code.
func (s *shell) run(line string) (out string, code int) {
	s.t.Helper()
	line = strings.ReplaceAll(line, usualGateway, system.GatewayURL())
	if _, err := fmt.Fprintf(s.lines, "{ %s\n} </dev/null 2>&1; printf '\\n%s%%d\\n' $?\n", line, marker); err != nil {
		s.t.Fatalf("%s: %v", line, err)
	}
	var b strings.Builder
	for {
		read, err := s.out.ReadString('\n')
		if err != nil {
			s.t.Fatalf("%s: the shell has ended: %v\n%s%s", line, err, b.String(), read)
		}
		if text, ok := strings.CutPrefix(read, marker); ok {
			if code, err = strconv.Atoi(strings.TrimSpace(text)); err != nil {
				s.t.Fatalf("%s: %v", line, err)
			}
			return strings.TrimSuffix(b.String(), "\n"), code
		}
		b.WriteString(read)
	}
}
