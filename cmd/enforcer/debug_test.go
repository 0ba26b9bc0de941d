package main

import (
	"encoding/hex"
	"encoding/json"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestWithoutTheFlagThereAreNoDebugPages(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.serveControlPlane(t)
	r := w.start(t)
	r.awaitReady(t, sourceControlPlane)
	for _, path := range []string{"/debug/pprof/", "/debug/pprof/heap", "/debug/policy"} {
		if code, _ := r.get(t, path); code != http.StatusNotFound {
			t.Errorf("%s: %d", path, code)
		}
	}
	if strings.Contains(r.log.String(), "debug pages") {
		t.Error("the log speaks of debug pages")
	}
	select {
	case at := <-r.debugAt:
		t.Errorf("debug pages are served at %s", at)
	default:
	}
}

func TestDebugPages(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.cfg.debugAddress = "127.0.0.1:0"
	w.serveControlPlane(t)
	r := w.start(t)
	want := r.awaitReady(t, sourceControlPlane)

	code, body := read(t, r.debug+"/debug/pprof/heap")
	if code != http.StatusOK || !strings.HasPrefix(body, "\x1f\x8b") {
		t.Errorf("/debug/pprof/heap: %d, %d bytes; want a compressed profile", code, len(body))
	}
	for path, part := range map[string]string{
		"/debug/pprof/":                  "goroutine",
		"/debug/pprof/goroutine?debug=1": "cmd/enforcer.run+0x",
		"/debug/pprof/cmdline":           "enforcer.test",
		"/debug/pprof/symbol":            "num_symbols",
	} {
		if code, body := read(t, r.debug+path); code != http.StatusOK || !strings.Contains(body, part) {
			t.Errorf("%s: %d, without %q", path, code, part)
		}
	}

	code, body = read(t, r.debug+"/debug/policy")
	var got readiness
	if err := json.Unmarshal([]byte(body), &got); err != nil || code != http.StatusOK {
		t.Fatalf("/debug/policy: %d %q: %v", code, body, err)
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(readiness{}, "LastChangeAgeSeconds")); diff != "" || got.LastChangeAgeSeconds == nil {
		t.Errorf("/debug/policy against /readyz (-want +got):\n%s", diff)
	}
	for _, secret := range []string{w.plaintext.Reveal(), w.plaintext.Prefix(), hex.EncodeToString(hashOf(w.plaintext)), "shop-key"} {
		if strings.Contains(body, secret) {
			t.Errorf("/debug/policy holds %s", secret)
		}
	}
	for _, path := range []string{"/metrics", "/readyz", "/"} {
		if code, _ := read(t, r.debug+path); code != http.StatusNotFound {
			t.Errorf("%s is among the debug pages: %d", path, code)
		}
	}
	if log := r.log.String(); !strings.Contains(log, `"level":"INFO","msg":"serving debug pages"`) || strings.Contains(log, "without access control") {
		t.Errorf("the log of an address on the loopback:\n%s", log)
	}
}

func TestDebugPagesWarnWhereOthersCanReadThem(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		address string
		want    string
	}{
		"the loopback":        {address: "127.0.0.1:0", want: "INFO"},
		"the loopback's name": {address: "localhost:0", want: "INFO"},
		"every address":       {address: ":0", want: "WARN"},
		"every IPv4 address":  {address: "0.0.0.0:0", want: "WARN"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			log := &lockedBuffer{}
			ln, err := listenForDebug(t.Context(), tc.address, slog.New(slog.NewJSONHandler(log, nil)))
			if err != nil {
				t.Fatal(err)
			}
			_ = ln.Close()
			if !strings.Contains(log.String(), `"level":"`+tc.want+`","msg":"serving debug pages`) || strings.Count(log.String(), "\n") != 1 {
				t.Errorf("log: %s", log)
			}
		})
	}
}

func TestDebugAddressInUse(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	w.cfg.debugAddress = ln.Addr().String()
	err = run(t.Context(), w.cfg, dependencies{log: slog.New(slog.DiscardHandler), now: time.Now})
	if err == nil || !strings.Contains(err.Error(), "--debug-address") || !strings.Contains(err.Error(), "in use") {
		t.Errorf("run: %v", err)
	}
}
