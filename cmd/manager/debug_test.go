package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"sigs.k8s.io/controller-runtime/pkg/healthz"

	"github.com/latchkey-dev/latchkey/test/ports"
)

// kubeconfigOf is for an API server without access control.
const kubeconfigOf = `apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "%s"}}]
contexts: [{name: c, context: {cluster: c, user: u}}]
users: [{name: u, user: {}}]
current-context: c
`

// discovery is all that a manager without controllers asks an API server for.
func discovery(w http.ResponseWriter, r *http.Request) {
	group := func(name, version string) string {
		v := `{"groupVersion":"` + name + "/" + version + `","version":"` + version + `"}`
		return `{"name":"` + name + `","versions":[` + v + `],"preferredVersion":` + v + `}`
	}
	resources := func(groupVersion string, kinds ...string) string {
		list := make([]string, 0, len(kinds))
		for _, kind := range kinds {
			list = append(list, `{"name":"`+strings.ToLower(kind)+`s","kind":"`+kind+`","namespaced":true,"verbs":["list","watch"]}`)
		}
		return `{"kind":"APIResourceList","apiVersion":"v1","groupVersion":"` + groupVersion + `","resources":[` + strings.Join(list, ",") + `]}`
	}
	page, known := map[string]string{
		"/api":    `{"kind":"APIVersions","versions":["v1"]}`,
		"/api/v1": resources("v1", "Secret"),
		"/apis": `{"kind":"APIGroupList","apiVersion":"v1","groups":[` +
			group("latchkey.dev", "v1alpha1") + "," + group("coordination.k8s.io", "v1") + `]}`,
		"/apis/latchkey.dev/v1alpha1":  resources("latchkey.dev/v1alpha1", "APIKey", "Application"),
		"/apis/coordination.k8s.io/v1": resources("coordination.k8s.io/v1", "Lease"),
	}[r.URL.Path]
	if !known {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = io.WriteString(w, page)
}

func TestDebugPages(t *testing.T) {
	for name, tc := range map[string]struct {
		asked bool
		want  int // of /debug/pprof/heap; 0: nothing listens
	}{
		"by default there are none":        {asked: false},
		"with the flag they show the heap": {asked: true, want: http.StatusOK},
	} {
		t.Run(name, func(t *testing.T) {
			kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
			apiServer := httptest.NewServer(http.HandlerFunc(discovery))
			t.Cleanup(apiServer.Close)
			if err := os.WriteFile(kubeconfig, fmt.Appendf(nil, kubeconfigOf, apiServer.URL), 0o600); err != nil {
				t.Fatal(err)
			}
			address := map[string]string{}
			for _, of := range []string{"debug", "health"} {
				port, err := ports.Free(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				address[of] = "127.0.0.1:" + strconv.Itoa(port)
			}
			args := []string{"--self-signed", "--leader-elect=false", "--kubeconfig", kubeconfig, "--metrics-address", "0", "--health-address", address["health"]}
			if tc.asked {
				args = append(args, "--debug-address", address["debug"])
			}
			cfg, err := parseFlags(args, &bytes.Buffer{})
			if err != nil {
				t.Fatal(err)
			}
			mgr, err := newManager(cfg, logr.Discard())
			if err != nil {
				t.Fatal(err)
			}
			if err := mgr.AddHealthzCheck("alive", healthz.Ping); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- mgr.Start(ctx) }()
			t.Cleanup(func() {
				cancel()
				if err := <-ended; err != nil {
					t.Errorf("manager: %v", err)
				}
			})
			awaitPage(t, "http://"+address["health"]+"/healthz") // the servers are started together
			if tc.asked {
				awaitPage(t, "http://"+address["debug"]+"/debug/pprof/")
			}

			code, body, err := get(t.Context(), "http://"+address["debug"]+"/debug/pprof/heap")
			if tc.want == 0 {
				if _, ok := errors.AsType[*net.OpError](err); !ok {
					t.Errorf("without the flag: %d, %v; want that nothing listens", code, err)
				}
				return
			}
			if err != nil || code != tc.want || !strings.HasPrefix(body, "\x1f\x8b") {
				t.Errorf("/debug/pprof/heap: %d, %d bytes, %v; want a compressed profile", code, len(body), err)
			}
			if code, _, err := get(t.Context(), "http://"+address["debug"]+"/metrics"); code != http.StatusNotFound {
				t.Errorf("/metrics is among the debug pages: %d, %v", code, err)
			}
		})
	}
}

func TestOnLoopback(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]bool{
		"127.0.0.1:6060": true, "127.9.9.9:1": true, "[::1]:6060": true, "localhost:6060": true,
		":6060": false, "0.0.0.0:6060": false, "[::]:6060": false, "10.0.0.1:6060": false, "debug.example.com:6060": false,
	} {
		if got := onLoopback(address); got != want {
			t.Errorf("onLoopback(%q) = %t", address, got)
		}
	}
}

func awaitPage(t *testing.T, url string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for {
		code, _, err := get(ctx, url)
		if err == nil && code == http.StatusOK {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: %d, %v", url, code, err)
		case <-ticker.C:
		}
	}
}

func get(ctx context.Context, url string) (int, string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return 0, "", fmt.Errorf("ask for %s: %w", url, err)
	}
	transport := &http.Transport{DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body), err
}
