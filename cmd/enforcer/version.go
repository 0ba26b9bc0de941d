package main

import (
	"runtime"
	"runtime/debug"
)

// version is set by the linker (-X main.version=…). Empty: the module's own, as `go install` records it.
var version string

// buildVersion is the version of this binary.
func buildVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}

// buildRevision is the commit that this binary was built from, as far as the build recorded it.
func buildRevision() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				return s.Value
			}
		}
	}
	return "unknown"
}

func goVersion() string { return runtime.Version() }
