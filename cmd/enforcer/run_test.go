package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/latchkey-dev/latchkey/internal/extproc"
	"github.com/latchkey-dev/latchkey/internal/policy"
	"github.com/latchkey-dev/latchkey/internal/xdsclient"
)

func TestEnforcerWaitsForItsFirstPolicy(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.start(t)

	if code, body := r.get(t, "/healthz"); code != http.StatusOK {
		t.Errorf("/healthz: %d %s", code, body)
	}
	code, page := r.ready(t)
	if code != http.StatusServiceUnavailable || page.Ready || page.Source != sourceNone || page.Listening || page.LastChangeAgeSeconds != nil {
		t.Errorf("before the policy: %d %+v", code, page)
	}
	if _, err := os.Lstat(w.cfg.socket); !os.IsNotExist(err) {
		t.Errorf("Envoy could ask before the policy is there: %v", err)
	}

	w.serveControlPlane(t)
	page = r.awaitReady(t, sourceControlPlane)
	if !page.Connected || !page.Listening || page.Keys != 1 || page.Applications != 1 || page.Models != 1 {
		t.Errorf("with the policy: %+v", page)
	}
	if page.LastChangeAgeSeconds == nil || *page.LastChangeAgeSeconds < 0 {
		t.Errorf("age of the last change: %v", page.LastChangeAgeSeconds)
	}
	if status, provider := w.call(t, w.plaintext.Reveal()); status != 0 || provider != "alpha" {
		t.Errorf("a good key: status %d, provider %q", status, provider)
	}

	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(w.cfg.socket); !os.IsNotExist(err) {
		t.Errorf("the socket stays behind: %v", err)
	}
}

func TestEnforcerEndsWhileItWaits(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if err := w.start(t).stop(); err != nil {
		t.Fatal(err)
	}
}

func TestEnforcerFollowsTheControlPlane(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.serveControlPlane(t)
	r := w.start(t)
	r.awaitReady(t, sourceControlPlane)
	for _, step := range []struct {
		state policy.State
		want  int
	}{{policy.StateDisabled, 401}, {policy.StateEnabled, 0}} {
		w.publish(step.state)
		eventually(t, "the key's change", func() bool {
			status, _ := w.call(t, w.plaintext.Reveal())
			return status == step.want
		})
	}
}

func TestEnforcerRestartsWithoutTheControlPlane(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	stopControlPlane := w.serveControlPlane(t)
	first := w.start(t)
	first.awaitReady(t, sourceControlPlane)

	stopControlPlane()
	eventually(t, "the loss to show", func() bool { _, page := first.ready(t); return !page.Connected })
	if status, _ := w.call(t, w.plaintext.Reveal()); status != 0 {
		t.Errorf("without the control plane a good key gets %d", status)
	}
	if err := first.stop(); err != nil {
		t.Fatal(err)
	}

	second := w.start(t)
	page := second.awaitReady(t, sourceDisk)
	if page.Connected || page.Keys != 1 {
		t.Errorf("from the disk: %+v", page)
	}
	if status, provider := w.call(t, w.plaintext.Reveal()); status != 0 || provider != "alpha" {
		t.Errorf("from the disk a good key gets %d, provider %q", status, provider)
	}
	if status, _ := w.call(t, "lk_nobody"); status != 401 {
		t.Errorf("from the disk a bad key gets %d", status)
	}

	w.publish(policy.StateDisabled) // while nobody could be told
	w.serveControlPlane(t)
	eventually(t, "the revocation", func() bool {
		status, _ := w.call(t, w.plaintext.Reveal())
		return status == 401
	})
	second.awaitReady(t, sourceControlPlane)
}

func TestEnforcerReadsRenewedCertificates(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	stopControlPlane := w.serveControlPlane(t)
	r := w.start(t)
	r.awaitReady(t, sourceControlPlane)
	stopControlPlane()

	w.renewCertificates(t) // of another authority: the old ones are worth nothing now
	w.publish(policy.StateDisabled)
	w.serveControlPlane(t)
	eventually(t, "the change to come through", func() bool {
		status, _ := w.call(t, w.plaintext.Reveal())
		return status == 401
	})
}

func TestStartErrorsSayWhatToMend(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		prepare func(t *testing.T, w *world)
		want    []string
	}{
		"a certificate that is missing": {
			prepare: func(t *testing.T, w *world) {
				if err := os.Remove(filepath.Join(w.cfg.certDir, "tls.key")); err != nil {
					t.Fatal(err)
				}
			},
			want: []string{"--cert-dir", "tls.key", "no such file"},
		},
		"a certificate that is none": {
			prepare: func(t *testing.T, w *world) {
				if err := os.WriteFile(filepath.Join(w.cfg.certDir, "ca.crt"), []byte("x"), 0o600); err != nil {
					t.Fatal(err)
				}
			},
			want: []string{"--cert-dir", "authority"},
		},
		"a state directory that cannot be made": {
			prepare: func(t *testing.T, w *world) {
				if err := os.WriteFile(w.cfg.stateDir, nil, 0o600); err != nil {
					t.Fatal(err)
				}
			},
			want: []string{"--state-dir", "not a directory"},
		},
		"a state directory that another enforcer uses": {
			prepare: func(t *testing.T, w *world) {
				store, err := xdsclient.OpenStore(w.cfg.stateDir, slog.New(slog.DiscardHandler), time.Now())
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = store.Close() })
			},
			want: []string{"--state-dir", "another enforcer"},
		},
		"an address of the pages that is in use": {
			prepare: func(t *testing.T, w *world) {
				ln, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = ln.Close() })
				w.cfg.metricsAddress = ln.Addr().String()
			},
			want: []string{"--metrics-address", "in use"},
		},
		"a socket that is in use": {
			prepare: func(t *testing.T, w *world) {
				ln, err := extproc.Listen(t.Context(), w.cfg.socket)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = ln.Close() })
			},
			want: []string{"--socket", "another process listens there"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.serveControlPlane(t)
			tc.prepare(t, w)
			err := run(t.Context(), w.cfg, dependencies{log: slog.New(slog.DiscardHandler), now: time.Now})
			if err == nil {
				t.Fatal("run ended without an error")
			}
			for _, part := range tc.want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("error %q has no %q", err, part)
				}
			}
		})
	}
}

func TestMetricsAndLog(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.serveControlPlane(t)
	r := w.start(t)
	r.awaitReady(t, sourceControlPlane)
	plaintext := w.plaintext.Reveal()
	w.call(t, plaintext)
	w.publish(policy.StateDisabled)
	eventually(t, "the key to be refused", func() bool { status, _ := w.call(t, plaintext); return status == 401 })

	code, page := r.get(t, "/metrics")
	if code != http.StatusOK {
		t.Fatalf("/metrics: %d", code)
	}
	for _, want := range []string{
		`latchkey_enforcer_decisions_total{capability="TextGeneration",outcome="forwarded",reason=""} `,
		`latchkey_enforcer_decisions_total{capability="",outcome="refused",reason="api_key_disabled"} 1`,
		`latchkey_enforcer_decision_duration_seconds_bucket{le="+Inf"} `,
		`latchkey_enforcer_policy_entries{kind="key"} 1`,
		`latchkey_enforcer_policy_entries{kind="application"} 1`,
		`latchkey_enforcer_policy_entries{kind="model"} 1`,
		"latchkey_enforcer_control_plane_connected 1",
		"latchkey_enforcer_policy_last_change_timestamp_seconds 1.",
		"latchkey_enforcer_panics_total 0",
		"latchkey_enforcer_protocol_violations_total 0",
		`latchkey_enforcer_build_info{goversion="go1.`,
		"process_open_fds ",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("no metric %s", want)
		}
	}
	problems, err := promlint.New(strings.NewReader(page)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, metricsPrefix) {
			t.Errorf("metric %s: %s", p.Metric, p.Text)
		}
	}
	for _, secret := range []string{plaintext, w.plaintext.Prefix(), "shop-key", "key-1"} {
		if strings.Contains(page, secret) {
			t.Errorf("the metrics name a key: %s", secret)
		}
	}

	log := r.log.String()
	if strings.Contains(log, plaintext) {
		t.Error("the log holds a plaintext key")
	}
	for _, want := range []string{
		`"level":"DEBUG","msg":"request decided","outcome":"forwarded"`,
		`"level":"INFO","msg":"request decided","outcome":"refused","reason":"api_key_disabled","status":401,"requestId":"req-1","keyPrefix":"` +
			w.plaintext.Prefix() + `","namespace":"team","key":"shop-key","application":"shop"`,
	} {
		if !strings.Contains(log, want) {
			t.Errorf("the log has no %s:\n%s", want, log)
		}
	}
}

func TestCauseOf(t *testing.T) {
	t.Parallel()
	failure, waiting := errors.New("the disk is full"), errors.New("wait for the policy set: context canceled")
	for name, tc := range map[string]struct {
		asked bool  // to end
		task  error // failure of a background task
		err   error
		want  error
	}{
		"an enforcer that was asked to end ends well":            {asked: true, err: waiting},
		"a task that failed is the reason, not what followed":    {task: failure, err: waiting, want: failure},
		"a task that failed is the reason where nothing else is": {task: failure, want: failure},
		"what fails while all goes on is the reason":             {err: waiting, want: waiting},
		"a task that fails when asked to end does not matter":    {asked: true, task: failure},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			asked, ask := context.WithCancel(t.Context())
			defer ask()
			serving, stop := context.WithCancelCause(asked)
			defer stop(nil)
			if tc.asked {
				ask()
			}
			if tc.task != nil {
				stop(tc.task)
			}
			if got := causeOf(asked, serving, tc.err); !errors.Is(got, tc.want) {
				t.Errorf("causeOf = %v, want %v", got, tc.want)
			}
		})
	}
}
