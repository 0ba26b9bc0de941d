package e2e

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
)

// watchman calls with a key that must always be let through, and notes every call that was not.
type watchman struct {
	stop  chan struct{}
	done  sync.WaitGroup
	calls int
	bad   []string
}

func watch(t *testing.T, key string, want int) *watchman {
	t.Helper()
	w := &watchman{stop: make(chan struct{})}
	w.done.Go(func() {
		for {
			select {
			case <-w.stop:
				return
			default:
			}
			a, err := send(t, request{}.build(t, key))
			w.calls++
			switch {
			case err != nil:
				w.bad = append(w.bad, err.Error())
			case a.status != want:
				w.bad = append(w.bad, a.String())
			}
		}
	})
	return w
}

// end stops the calls and fails the test if any went wrong.
func (w *watchman) end(t *testing.T, what string) {
	t.Helper()
	close(w.stop)
	w.done.Wait()
	if len(w.bad) > 0 || w.calls == 0 {
		t.Fatalf("%s: %d of %d calls went wrong, the first: %v", what, len(w.bad), w.calls, w.bad[:min(3, len(w.bad))])
	}
	t.Logf("%s: %d calls, all as they should", what, w.calls)
}

func TestManagerKilled(t *testing.T) {
	ctx := t.Context()
	tn := newTenant(t)
	_, good := tn.newKey("good")
	bad, badKey := tn.newKey("bad", func(s *v1alpha1.APIKeySpec) { s.State = v1alpha1.StateDisabled })
	toRevoke, revoked := tn.newKey("revoked")
	toDelete, deleted := tn.newKey("deleted")
	decided(t, badKey, request{}, http.StatusUnauthorized, "api_key_disabled")

	manager := theStack.Managers[0]
	passing, refused := watch(t, good, http.StatusOK), watch(t, badKey, http.StatusUnauthorized)
	if err := manager.Kill(); err != nil {
		t.Fatal(err)
	}
	decided(t, good, request{}, http.StatusOK, "")
	passing.end(t, "while the manager was killed")

	// The enforcer comes back without a control plane, from its disk copy.
	if err := theStack.Enforcer.Restart(); err != nil {
		t.Fatal(err)
	}
	if err := theStack.AwaitEnforcer(ctx); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the good key passes after the enforcer's restart", func() error {
		a, err := send(t, request{}.build(t, good))
		if err == nil && a.status != http.StatusOK {
			err = fmt.Errorf("%v", a)
		}
		return err
	})
	decided(t, badKey, request{}, http.StatusUnauthorized, "api_key_disabled")
	refused.stopIgnoring503(t)

	// Edits made meanwhile hold as soon as the manager is back; the good key does not notice.
	patch(t, toRevoke, `{"spec":{"state":"Disabled"}}`)
	if _, err := theStack.Kubectl(ctx, "delete", "lkkey", toDelete.Name, "-n", toDelete.Namespace, "--wait=false"); err != nil {
		t.Fatal(err)
	}
	patch(t, bad, `{"spec":{"state":"Enabled"}}`)
	passing = watch(t, good, http.StatusOK)
	if err := manager.Start(); err != nil {
		t.Fatal(err)
	}
	decided(t, revoked, request{}, http.StatusUnauthorized, "api_key_disabled")
	decided(t, deleted, request{}, http.StatusUnauthorized, "invalid_api_key")
	decided(t, badKey, request{}, http.StatusOK, "")
	passing.end(t, "while the manager came back")
	_, fresh := tn.newKey("fresh")
	decided(t, fresh, request{}, http.StatusOK, "")
}

// stopIgnoring503 ends the calls of a key that must never pass; that nobody could decide is no fault here.
func (w *watchman) stopIgnoring503(t *testing.T) {
	t.Helper()
	close(w.stop)
	w.done.Wait()
	for _, b := range w.bad {
		if strings.HasPrefix(b, "200") {
			t.Fatalf("a refused key passed: %s", b)
		}
	}
}

func TestEnforcerKilled(t *testing.T) {
	_, key := newTenant(t).newKey("good")
	decided(t, key, request{}, http.StatusOK, "")
	if err := theStack.Enforcer.Kill(); err != nil {
		t.Fatal(err)
	}
	// Envoy resets the connection of an answer whose end the enforcer has not let go, though the caller has all of it.
	http.DefaultClient.CloseIdleConnections()
	a := call(t, key, request{})
	if a.status != http.StatusServiceUnavailable || a.code() != "server_error" {
		t.Fatalf("without an enforcer: %v", a)
	}
	a = call(t, key, request{path: "/v1/messages", headers: map[string]string{"anthropic-version": anthropicVersion}})
	if a.status != http.StatusServiceUnavailable || a.code() != "api_error" {
		t.Fatalf("without an enforcer, Anthropic: %v", a)
	}
	if err := theStack.Enforcer.Start(); err != nil {
		t.Fatal(err)
	}
	decided(t, key, request{}, http.StatusOK, "")
}

func TestEnvoyRestarted(t *testing.T) {
	k, key := newTenant(t).newKey("good")
	if err := theStack.Envoy.Kill(); err != nil {
		t.Fatal(err)
	}
	patch(t, k, `{"spec":{"displayName":"Renamed"}}`)
	if err := theStack.Envoy.Start(); err != nil {
		t.Fatal(err)
	}
	if err := theStack.AwaitEnvoy(t.Context()); err != nil {
		t.Fatal(err)
	}
	decided(t, key, request{}, http.StatusOK, "")
}

func TestAPIServerAway(t *testing.T) {
	ctx := t.Context()
	tn := newTenant(t)
	_, key := tn.newKey("good")
	passing := watch(t, key, http.StatusOK)
	if err := theStack.ControlPlane.StopAPIServer(); err != nil {
		t.Fatal(err)
	}
	decided(t, key, request{}, http.StatusOK, "")
	if err := theStack.Enforcer.Restart(); err != nil {
		t.Fatal(err)
	}
	if err := theStack.AwaitEnforcer(ctx); err != nil {
		t.Fatal(err)
	}
	decided(t, key, request{}, http.StatusOK, "")
	passing.stopIgnoring503(t)
	if err := theStack.ControlPlane.StartAPIServer(ctx); err != nil {
		t.Fatal(err)
	}
	// A manager that lost its lease ends, as it should, and is started again by whoever runs it.
	select {
	case <-theStack.Managers[0].Ended():
		if err := theStack.Managers[0].Start(); err != nil {
			t.Fatal(err)
		}
	default:
	}
	eventually(t, "the API server answers again", func() error {
		_, err := theStack.Kubectl(ctx, "get", "--raw", "/readyz")
		return err
	})
	for i := range 3 {
		_, fresh := tn.newKey("fresh-" + strconv.Itoa(i))
		decided(t, fresh, request{}, http.StatusOK, "")
	}
}
