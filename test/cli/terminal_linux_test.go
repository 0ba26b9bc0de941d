package cli

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	"github.com/latchkey-dev/latchkey/test/terminal"
)

// start starts the plugin on a terminal of its own. With a file as stdout only the other two are the terminal.
func start(t *testing.T, stdout *os.File, env []string, namespace string, args ...string) *terminal.Session {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, server.binary, append([]string{"--kubeconfig", server.kubeconfig, "-n", namespace}, args...)...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "TERM=xterm", "LANG=C.UTF-8"}, env...)
	if stdout != nil {
		cmd.Stdout = stdout
	}
	return terminal.Start(t, cmd)
}

func TestCreateKeyAsksOnATerminal(t *testing.T) {
	ns := newNamespace(t)
	m := inPlaceOfManager(t, ns)
	out, err := os.CreateTemp(t.TempDir(), "stdout")
	if err != nil {
		t.Fatal(err)
	}
	s := start(t, out, nil, ns, "create", "key")
	s.Expect("Name of the key: ")
	s.Write("Not A Name\n")
	s.Expect("is not a name")
	s.Expect("Name of the key: ")
	s.Write("asked\n")
	s.Expect("Application that it belongs to: ")
	s.Write("shop\n")
	s.Expect("Name for people [asked]: ")
	s.Write("Asked for\n")
	s.Expect("Capabilities, with commas [TextGeneration]: ")
	s.Write("\n")
	s.Expect("Models, with commas, or all [all]: ")
	s.Write("gpt-5-mini, fast\n")
	s.Expect("Create it? (y/N): ")
	s.Write("y\n")
	s.Expect("apikey.latchkey.dev/asked created")
	s.Ends(0)
	content, err := os.ReadFile(out.Name())
	if err != nil {
		t.Fatal(err)
	}
	if string(content) != m.of("asked")+"\n" {
		t.Errorf("stdout is %q, want the key and nothing else", content)
	}
	k := get(t, keyNamed(ns, "asked"))
	if k.Spec.DisplayName != "Asked for" || len(k.Spec.Models.Names) != 2 || k.Spec.ApplicationRef.Name != "shop" {
		t.Errorf("spec: %+v", k.Spec)
	}
}

func TestDeleteKeyAsksOnATerminal(t *testing.T) {
	ns := newNamespace(t)
	newKey(t, ns, "kept")
	s := start(t, nil, nil, ns, "delete", "key", "kept")
	s.Expect("will be deleted, for good")
	s.Expect(`Type "Key kept" to delete it: `)
	s.Write("Key other\n")
	s.Expect("nothing has been deleted")
	s.Ends(1)
	get(t, keyNamed(ns, "kept"))

	s = start(t, nil, nil, ns, "delete", "key", "kept")
	s.Expect("to delete it: ")
	s.Write("\x04") // end of input
	s.Expect("no answer")
	s.Ends(1)

	s = start(t, nil, nil, ns, "delete", "key", "kept")
	s.Expect("to delete it: ")
	s.Write("Key kept\n")
	s.Expect("apikey.latchkey.dev/kept deleted")
	s.Ends(0)
	if err := server.client.Get(t.Context(), client.ObjectKey{Namespace: ns, Name: "kept"}, &v1alpha1.APIKey{}); !apierrors.IsNotFound(err) {
		t.Errorf("the key is there: %v", err)
	}
}

// TestRotateOnATerminal: nothing is asked, what is waited for is shown on stderr and taken away again, and stdout is the key alone.
func TestRotateOnATerminal(t *testing.T) {
	ns := newNamespace(t)
	newKey(t, ns, "turned")
	out, err := os.CreateTemp(t.TempDir(), "stdout")
	if err != nil {
		t.Fatal(err)
	}
	s := start(t, out, nil, ns, "rotate", "turned")
	s.Expect("waiting until apikey " + ns + "/turned is rotated: no controller has looke") // as much as 80 columns hold
	m := inPlaceOfManager(t, ns)
	s.Expect("\r\x1b[K")
	s.Expect("apikey.latchkey.dev/turned rotated")
	s.Expect("the earlier one, lk_")
	s.Ends(0)
	content, err := os.ReadFile(out.Name())
	if err != nil {
		t.Fatal(err)
	}
	if string(content) != m.of("turned")+"\n" {
		t.Errorf("stdout is %q, want the key and nothing else", content)
	}
	if text := s.Text(); strings.Contains(text, m.of("turned")) || strings.Contains(text, "(y/N)") || strings.Contains(text, "Type ") {
		t.Errorf("the key, or a question, on stderr:\n%s", text)
	}
	s = start(t, nil, nil, ns, "rotate", "turned", "--force")
	s.Expect("lk_")
	s.Ends(0)
	s.Expect("This is the only time that the key is shown.")
}

func TestInterrupts(t *testing.T) {
	ns := newNamespace(t)
	newKey(t, ns, "kept")
	newKey(t, ns, "turned")
	for name, test := range map[string]struct {
		args   []string
		shows  string
		leaves string
	}{
		"at a question":                                            {[]string{"delete", "key", "kept"}, "to delete it: ", ""},
		"while a key is waited for, it says so":                    {[]string{"create", "key", "waits", "--app", "shop", "--yes"}, "waiting until", "kubectl latchkey reveal waits -n " + ns},
		"while a rotation is waited for, it says how things stand": {[]string{"rotate", "turned"}, "waiting until", "The rotation has been asked for, and is carried out without this command."},
		"in a watch": {[]string{"get", "keys", "-w"}, "kept", ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, nil, nil, ns, test.args...)
			s.Expect(test.shows)
			s.Write("\x03") // Ctrl-C
			s.Ends(130)
			if test.leaves != "" {
				s.Expect(test.leaves)
			}
			if strings.Contains(s.Text(), "error:") {
				t.Errorf("an interrupt is shown as an error:\n%s", s.Text())
			}
		})
	}
}

func TestColourIsForTerminals(t *testing.T) {
	ns := newNamespace(t)
	newKey(t, ns, "coloured")
	for name, test := range map[string]struct {
		env  []string
		want bool
	}{
		"a terminal has colour": {nil, true}, "NO_COLOR has none": {[]string{"NO_COLOR=1"}, false}, "a dumb terminal has none": {[]string{"TERM=dumb"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, nil, test.env, ns, "get", "keys")
			s.Expect("coloured")
			s.Ends(0)
			s.Expect("Active")
			if got := strings.Contains(s.Text(), "\x1b[32mActive"); got != test.want {
				t.Errorf("colour: %v, want %v\n%q", got, test.want, s.Text())
			}
		})
	}
}

func TestBarsFitTheTerminal(t *testing.T) {
	ns := newNamespace(t)
	used(t, newKey(t, ns, "barred", withBudget("5")), "2.5", "2.5")
	for name, test := range map[string]struct {
		env  []string
		want string
	}{
		"blocks in UTF-8": {nil, "██████████░░░░░░░░░░ 50%"}, "ASCII elsewhere": {[]string{"LC_ALL=C"}, "##########.......... 50%"},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, nil, test.env, ns, "usage", "barred")
			s.Ends(0)
			s.Expect(test.want)
		})
	}
}

// TestProgramInAPipe runs the program itself with stdin closed.
func TestProgramInAPipe(t *testing.T) {
	ns := newNamespace(t)
	newKey(t, ns, "piped")
	other := newNamespace(t)
	inPlaceOfManager(t, other)
	keyFor(t, other, "turned")
	keyFor(t, other, "turned-too")
	run := func(shell string) (string, int) {
		cmd := exec.CommandContext(t.Context(), "sh", "-c", shell)
		cmd.Env = append(os.Environ(), "KUBECONFIG="+server.kubeconfig, "LK="+server.binary+" -n "+ns, "OTHER="+server.binary+" -n "+other)
		out, err := cmd.CombinedOutput()
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			return string(out), exit.ExitCode()
		} else if err != nil {
			t.Fatal(err)
		}
		return string(out), 0
	}
	for name, test := range map[string]struct {
		shell, want string
		code        int
	}{
		"names go through xargs":            {"$LK get keys -o name | xargs $LK disable --wait=false", "apikey.latchkey.dev/piped disabled", 0},
		"keys rotate through xargs":         {"$OTHER get keys -o name | xargs $OTHER rotate --reveal=false --overlap 0s", "apikey.latchkey.dev/turned-too rotated", 0},
		"names of rotated keys go on":       {"$OTHER rotate --overlap 0s -o name turned turned-too <&- | xargs $OTHER rotate --overlap 0s -o name | xargs echo", "apikey.latchkey.dev/turned apikey.latchkey.dev/turned-too", 0},
		"rotate asks for nothing":           {"test lk_ = $($OTHER rotate --overlap 0s turned <&- 2>/dev/null | cut -c 1-3) && echo a key", "a key", 0},
		"a lost key is said to be lost":     {"$OTHER rotate --overlap 0s turned >/dev/full", "is lost; for a new one: kubectl latchkey rotate turned -n " + other, 1},
		"a key is not shown to nobody":      {"$OTHER rotate --overlap 0s turned >&-", "shown to nobody", 1},
		"nor thrown away":                   {"$OTHER rotate --overlap 0s turned 2>&1 >/dev/null", "kubectl latchkey reveal turned -n " + other, 1},
		"a closed stdin is no terminal":     {"$LK delete key piped <&-", "no terminal", 1},
		"an empty stdin is no prompt":       {"$LK try --gateway http://127.0.0.1:1 --key x </dev/null", "the prompt is missing", 1},
		"a pipe that is closed ends it":     {"$LK get keys -A --no-headers | head -c 1 >/dev/null; echo ended", "ended", 0},
		"an unknown command is an error":    {"$LK frobnicate", "unknown command", 1},
		"completion offers names":           {"$LK __complete why '' 2>/dev/null", "piped", 0},
		"completion offers columns":         {"$LK __complete get keys --sort-by '' 2>/dev/null", "last-used", 0},
		"the link's name is for completion": {"ln -sf ${LK%% *} $(dirname ${LK%% *})/kubectl_complete-latchkey; $(dirname ${LK%% *})/kubectl_complete-latchkey -n " + ns + " reveal '' 2>/dev/null", "piped", 0},
	} {
		t.Run(name, func(t *testing.T) {
			if out, code := run(test.shell); code != test.code || !strings.Contains(out, test.want) {
				t.Errorf("exit code %d, want %d with %q:\n%s", code, test.code, test.want, out)
			}
		})
	}
}
