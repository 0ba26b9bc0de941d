package metrics

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

var update = flag.Bool("update", false, "write the table of docs/metrics.md anew")

// running is the system that all tests look at.
var running *system

func TestMain(m *testing.M) {
	flag.Parse()
	if testing.Short() {
		fmt.Println("metrics: left out by -short")
		os.Exit(0)
	}
	code, err := runAll(m)
	if err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "metrics:", err)
		code = 1
	}
	os.Exit(code)
}

func runAll(m *testing.M) (code int, err error) {
	dir, err := os.MkdirTemp("", "lk-metrics-")
	if err != nil {
		return 1, err
	}
	running, err = startSystem(context.Background(), dir)
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, running.Stop()) }()
	code = m.Run()
	if code == 0 {
		_ = os.RemoveAll(dir)
	} else {
		_, _ = fmt.Fprintln(os.Stderr, "metrics: logs are kept in", filepath.Join(dir, "logs"))
	}
	return code, nil
}
