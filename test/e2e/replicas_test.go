package e2e

import (
	"errors"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	coordinationv1 "k8s.io/api/coordination/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	"github.com/latchkey-dev/latchkey/test/stack"
)

// TestTwoManagers has one replica lead and the enforcer connected to the other: status comes from the one, what it says of enforcement from
// the other. Then the leader is killed, and the other goes on alone. It runs on a stack of its own.
func TestTwoManagers(t *testing.T) {
	previous := theStack
	defer func() { theStack = previous }()
	s, err := stack.Start(t.Context(), stack.Options{Dir: filepath.Join(t.TempDir(), "two"), Managers: 2, FollowManager: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	theStack = s
	if err := seed(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !leads(t, "manager-0") || leads(t, "manager-1") {
		t.Fatal("this test needs the replica that was started first to lead")
	}
	tn := newTenant(t)
	k, key := tn.newKey("followed") // waits until it is Enforced
	decided(t, key, request{}, http.StatusOK, "")
	var report coordinationv1.Lease
	if err := s.Client.Get(t.Context(), client.ObjectKey{Namespace: stack.Namespace, Name: "latchkey-replica-manager-1"}, &report); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(report.Annotations["latchkey.dev/report"], `"enforcers":1`) {
		t.Fatalf("the replica that the enforcer is connected to reports %v", report.Annotations)
	}

	// With the leader gone, the other replica still publishes: it does not take a leader to refuse a key.
	if err := s.Managers[0].Kill(); err != nil {
		t.Fatal(err)
	}
	patch(t, k, `{"spec":{"state":"Disabled"}}`)
	decided(t, key, request{}, http.StatusUnauthorized, "api_key_disabled")
	patch(t, k, `{"spec":{"state":"Enabled"}}`)
	decided(t, key, request{}, http.StatusOK, "")
	eventually(t, "the other replica leads", func() error {
		if !leads(t, "manager-1") {
			return errors.New("it does not")
		}
		return nil
	})
	_, fresh := tn.newKey("fresh")
	decided(t, fresh, request{}, http.StatusOK, "")

	// The first comes back as a follower.
	if err := s.Managers[0].Start(); err != nil {
		t.Fatal(err)
	}
	_, another := tn.newKey("another", func(spec *v1alpha1.APIKeySpec) { spec.DisplayName = "Another" })
	decided(t, another, request{}, http.StatusOK, "")
}

// leads reports whether a replica says of itself, in its metrics, that it leads.
func leads(t *testing.T, replica string) bool {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, theStack.MetricsURL(replica), http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	a, err := send(t, req)
	return err == nil && strings.Contains(a.body, `leader_election_master_status{name="latchkey-manager"} 1`)
}
