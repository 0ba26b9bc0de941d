package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestPrepareKeepsForeignFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "thesis.txt")
	if err := os.WriteFile(file, []byte("years of work"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := prepare(dir); err == nil || !strings.Contains(err.Error(), "LATCHKEY_RUN_DIR") {
		t.Fatalf("prepare = %v; want it to refuse and to name the variable", err)
	}
	if _, err := os.Stat(file); err != nil {
		t.Fatal(err)
	}
}

func TestPrepareEmptiesItsOwnDirectoryAndLocksIt(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "run")
	unlock, err := prepare(dir)
	if err != nil {
		t.Fatal(err)
	}
	left := filepath.Join(dir, "logs")
	if err := os.Mkdir(left, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := prepare(dir); err == nil || !strings.Contains(err.Error(), "another `make run`") {
		t.Fatalf("a second run gave %v", err)
	}
	unlock()
	if unlock, err = prepare(dir); err != nil {
		t.Fatal(err)
	}
	defer unlock()
	if _, err := os.Stat(left); !os.IsNotExist(err) {
		t.Fatalf("what an earlier run left is still there: %v", err)
	}
}

func TestOptionsRefuseWhatIsNoPort(t *testing.T) {
	for _, value := range []string{"http", "0", "65536", "-1"} {
		t.Run(value, func(t *testing.T) {
			t.Setenv("LATCHKEY_GATEWAY_PORT", value)
			if _, err := options(); err == nil || !strings.Contains(err.Error(), "LATCHKEY_GATEWAY_PORT="+value) {
				t.Fatalf("options = %v", err)
			}
		})
	}
	t.Setenv("LATCHKEY_GATEWAY_PORT", "8081")
	t.Setenv("LATCHKEY_RUN_DIR", "/tmp/elsewhere")
	opts, err := options()
	if err != nil || opts.GatewayPort != 8081 || opts.AdminPort != 9901 || opts.Dir != "/tmp/elsewhere" {
		t.Fatalf("options = %+v, %v", opts, err)
	}
}
