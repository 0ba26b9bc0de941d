package controlplane

import "syscall"

// processAttributes puts a program into a group of its own, so that Ctrl-C on the terminal reaches this process only, which
// stops the programs in order; and has the kernel kill it if this process dies without doing so.
func processAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
