package extproc

import "syscall"

// dieWithParent has the kernel end the child when the test's process goes, however it goes.
func dieWithParent() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
