package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	filterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/latchkey-dev/latchkey/internal/certs"
	"github.com/latchkey-dev/latchkey/internal/extproc"
	"github.com/latchkey-dev/latchkey/internal/key"
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

func TestAnEnforcerThatIsAskedToEndIsNotReady(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.serveControlPlane(t)
	r := w.start(t)
	r.awaitReady(t, sourceControlPlane)

	// A request under way holds the end up, so that the pages can be read meanwhile.
	conn, err := grpc.NewClient("unix://"+w.cfg.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	stream, err := extprocv3.NewExternalProcessorClient(conn).Process(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	headers := &corev3.HeaderMap{}
	for _, h := range [][2]string{{":method", "POST"}, {":path", "/v1/chat/completions"}, {"authorization", "Bearer " + w.plaintext.Reveal()}} {
		headers.Headers = append(headers.Headers, &corev3.HeaderValue{Key: h[0], RawValue: []byte(h[1])})
	}
	if err := stream.Send(&extprocv3.ProcessingRequest{
		Request:        &extprocv3.ProcessingRequest_RequestHeaders{RequestHeaders: &extprocv3.HttpHeaders{Headers: headers}},
		ProtocolConfig: &extprocv3.ProtocolConfiguration{RequestBodyMode: filterv3.ProcessingMode_BUFFERED, ResponseBodyMode: filterv3.ProcessingMode_STREAMED},
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}

	ended := make(chan error, 1)
	go func() { ended <- r.stop() }()
	eventually(t, "unreadiness", func() bool {
		code, page := r.ready(t)
		return code == http.StatusServiceUnavailable && !page.Ready && !page.Listening && page.Keys == 1
	})
	if code, _ := r.get(t, "/healthz"); code != http.StatusOK {
		t.Errorf("/healthz: %d", code)
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
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
		fmt.Sprintf("latchkey_enforcer_certificate_expiry_timestamp_seconds %g", float64(w.now.Add(certs.LeafLifetime).Unix())),
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

// The key stands in all places of a request that a log could quote.
func TestNoAccessLogHoldsAPlaintext(t *testing.T) {
	t.Parallel()
	for _, access := range []accessLog{accessLogRefused, accessLogAll, accessLogNone} {
		t.Run(string(access), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.cfg.accessLog = access
			w.serveControlPlane(t)
			r := w.start(t)
			r.awaitReady(t, sourceControlPlane)
			plaintext := w.plaintext.Reveal()
			stranger, err := key.Mint(rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			for _, k := range []string{plaintext, stranger.Reveal()} {
				w.send(t, `{"model":"gpt","messages":[]}`, [][2]string{{":path", "/v1/chat/completions"}, {"authorization", "Bearer " + k}, {"x-request-id", k}})
				w.send(t, `{"model":"`+k+`"}`, [][2]string{{":path", "/v1/chat/completions"}, {"x-api-key", k}, {"anthropic-version", k}})
				w.send(t, `{}`, [][2]string{{":path", "/v1/" + k}, {"authorization", "Bearer " + k}})
				w.send(t, `{}`, [][2]string{{":path", "/v1/chat/completions?key=" + k}, {"authorization", k}, {":method", k}})
			}
			eventually(t, "the requests to end", func() bool {
				_, page := r.get(t, "/metrics")
				return strings.Contains(page, `latchkey_enforcer_requests_ended_total{ending="hung_up",model="gpt"} 1`)
			})
			log := r.log.String()
			for _, k := range []key.Plaintext{w.plaintext, stranger} {
				for _, part := range []string{k.Reveal(), k.Reveal()[key.PrefixLength:], hex.EncodeToString(hashOf(k))} {
					if strings.Contains(log, part) {
						t.Errorf("the log holds %s", part)
					}
				}
			}
			wantRefusals, wantEnded := access != accessLogNone, access == accessLogAll
			if got := strings.Contains(log, `"level":"INFO","msg":"request decided","outcome":"refused"`); got != wantRefusals {
				t.Errorf("refusals are logged: %t", got)
			}
			if got := strings.Contains(log, `"level":"INFO","msg":"request ended"`); got != wantEnded {
				t.Errorf("what passes is logged: %t", got)
			}
			if got := strings.Contains(log, w.plaintext.Prefix()); got != wantRefusals {
				t.Errorf("the prefix is logged: %t", got)
			}
		})
	}
}

func hashOf(k key.Plaintext) []byte {
	h := k.Hash()
	return h[:]
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
