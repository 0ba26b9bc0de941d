//go:build unix && !linux

package controlplane

import "syscall"

// processAttributes puts a program into a group of its own, so that Ctrl-C on the terminal reaches this process only, which
// stops the programs in order. Only Linux has a signal for the parent's death: elsewhere the programs outlive a killed test.
func processAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true}
}
