//go:build !linux

package extproc

import "syscall"

func dieWithParent() *syscall.SysProcAttr { return nil }
