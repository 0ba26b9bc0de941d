//go:build !linux

package envoyconf

import "syscall"

func dieWithParent() *syscall.SysProcAttr { return nil }
