package xdsclient

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/latchkey-dev/latchkey/internal/keyset"
	"github.com/latchkey-dev/latchkey/internal/policy"
	"github.com/latchkey-dev/latchkey/internal/xds"
)

func TestFirstSynchronisationAndWhatFollows(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	keys := keyset.NewCache(keyset.SystemClock{})
	keys.Update(append(keyRange(0, 20_000), keyset.EncodeSystem(new(policy.DefaultSystem()))), nil)
	tracker, _ := w.controlPlane(keys)
	e := w.enforcer(newTable())
	e.waitUsable(t, SourceControlPlane)
	steps := e.table.history()
	if len(steps) != 1 || !steps[0].replace || len(steps[0].keys) != 20_000 || steps[0].delta.System == nil {
		t.Fatalf("%d steps; want one that puts the whole set in force", len(steps))
	}
	keys.Update([]keyset.Resource{keyResource("u000000", policy.StateDisabled)}, []string{"key/u000001"})
	e.table.wait(t, "the change is in force", func(keys map[string]policy.State) bool { return len(keys) == 19_999 })
	last := e.table.history()[1]
	if last.replace || len(last.delta.Keys) != 1 || last.keys["u000000"] != policy.StateDisabled {
		t.Fatalf("the change came as %+v", last.delta)
	}
	eventually(t, "the change is acknowledged", func() bool { return tracker.Snapshot().Position == keys.Position() })
	got := e.Status()
	if got.LastChange.IsZero() || time.Since(got.LastChange) > deadline {
		t.Errorf("last change %v", got.LastChange)
	}
	got.LastChange = time.Time{}
	want := Status{Connected: true, Synced: true, Source: SourceControlPlane, Position: keys.Position(), Entries: 20_000, Keys: 19_999}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
}

func TestControlPlaneRestarts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	before := keyset.NewCache(keyset.SystemClock{})
	before.Update(append(keyRange(0, 10_000), keyResource("good", policy.StateEnabled), keyResource("disabled", policy.StateEnabled),
		keyResource("deleted", policy.StateEnabled)), nil)
	_, stop := w.controlPlane(before)
	e := w.enforcer(newTable())
	e.waitSynced(t)
	stop()
	eventually(t, "the client has noticed", func() bool { return !e.Status().Connected })
	if got := e.Status(); got.Source != SourceControlPlane || got.Synced {
		t.Fatalf("status %+v while the control plane is away", got)
	}

	// Another control plane, with another history, and more than a page of news.
	after := keyset.NewCache(keyset.SystemClock{})
	after.Update(append(keyRange(5_000, 25_000), keyResource("good", policy.StateEnabled), keyResource("disabled", policy.StateDisabled)), nil)
	tracker, _ := w.controlPlane(after)
	eventually(t, "the client is in sync again", func() bool {
		return e.Status().Synced && tracker.Snapshot().Position == after.Position()
	})
	steps := e.table.history()
	if len(steps) < 3 {
		t.Fatalf("%d steps, want the first and at least two pages", len(steps))
	}
	for i, s := range steps {
		if s.replace != (i == 0) {
			t.Errorf("step %d puts a whole set in place: %v", i, s.replace)
		}
		if s.keys["good"] != policy.StateEnabled {
			t.Errorf("the good key is refused at step %d", i)
		}
		_, deleted := s.keys["deleted"]
		if i > 0 && (s.keys["disabled"] != policy.StateDisabled || deleted) {
			t.Errorf("a revoked key passes at step %d", i)
		}
	}
	if got := len(steps[len(steps)-1].keys); got != 20_002 {
		t.Errorf("%d keys in the end, want 20002", got)
	}
}

func TestEnforcerRestarts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	keys := keyset.NewCache(keyset.SystemClock{})
	keys.Update(append(keyRange(0, 1_000), keyResource("good", policy.StateEnabled), keyResource("revoked", policy.StateEnabled)), nil)
	tracker, _ := w.controlPlane(keys)
	e := w.enforcer(newTable())
	e.waitSynced(t)
	e.stop()
	eventually(t, "it is gone", func() bool { return tracker.Snapshot().Enforcers == 0 })
	keys.Update([]keyset.Resource{keyResource("new", policy.StateEnabled)}, []string{"key/revoked"})
	e = w.enforcer(newTable())
	// The copy may be in the table by then, but nobody asks it before the control plane has been heard.
	e.waitUsable(t, SourceControlPlane)
	steps := e.table.history()
	if len(steps) != 2 || !steps[0].replace || len(steps[0].keys) != 1_002 || steps[1].replace || len(steps[1].delta.Keys) != 1 {
		t.Fatalf("%d steps, want the copy and the difference", len(steps))
	}
	if _, still := steps[1].keys["revoked"]; still {
		t.Fatal("the revoked key passes when the enforcer begins to answer")
	}
}

func TestControlPlaneAwayAtTheStart(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	keys := keyset.NewCache(keyset.SystemClock{})
	keys.Update([]keyset.Resource{keyResource("good", policy.StateEnabled)}, nil)

	// Without a copy nobody is let through, however often the control plane is tried.
	e := w.enforcer(newTable())
	eventually(t, "it has tried three times", func() bool { return w.gate.turnedAway() >= 3 })
	if e.isUsable() || len(e.table.history()) != 0 {
		t.Fatal("the enforcer may answer, and knows nothing")
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := e.WaitUsable(ended); !errors.Is(err, context.Canceled) {
		t.Fatalf("error %v", err)
	}
	_, stop := w.controlPlane(keys)
	e.waitUsable(t, SourceControlPlane)
	stop()
	e.stop()
	if n := strings.Count(e.logs.String(), "no connection to the control plane"); n > 4 {
		t.Errorf("%d lines about the connection, which should be one for each trouble", n)
	}

	// With one it goes on by that, and follows once the control plane is back.
	e = w.enforcer(newTable())
	e.waitUsable(t, SourceDisk)
	if got := e.table.history()[0].keys; got["good"] != policy.StateEnabled {
		t.Fatalf("in force are %v", got)
	}
	keys.Update([]keyset.Resource{keyResource("new", policy.StateEnabled)}, nil)
	w.controlPlane(keys)
	e.waitSynced(t)
	if got := e.Status(); got.Source != SourceControlPlane || got.Keys != 2 {
		t.Fatalf("status %+v", got)
	}
}

// silent accepts streams and says nothing.
func silent(reached chan<- *discovery.DeltaDiscoveryRequest) func(deltaStream) error {
	return func(stream deltaStream) error {
		req, err := stream.Recv()
		if err != nil {
			return err
		}
		reached <- req
		<-stream.Context().Done()
		return nil
	}
}

func TestSilentControlPlane(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		copied bool
		grace  time.Duration
		usable bool
	}{
		"with a copy it goes on after the grace":       {true, time.Millisecond, true},
		"with a copy it waits for the grace":           {true, time.Hour, false},
		"without a copy it does not go on in any case": {false, time.Millisecond, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.grace = tc.grace
			if tc.copied {
				keys := keyset.NewCache(keyset.SystemClock{})
				keys.Update([]keyset.Resource{keyResource("good", policy.StateEnabled)}, nil)
				_, stop := w.controlPlane(keys)
				e := w.enforcer(newTable())
				e.waitSynced(t)
				e.stop()
				stop()
			}
			reached := make(chan *discovery.DeltaDiscoveryRequest, 1)
			w.scripted(silent(reached))
			e := w.enforcer(newTable())
			req := <-reached
			if got := len(req.GetInitialResourceVersions()); (got == 1) != tc.copied {
				t.Fatalf("it says that it has %d entries", got)
			}
			if tc.usable {
				e.waitUsable(t, SourceDisk)
			} else if e.isUsable() {
				t.Fatal("it answers before it may")
			}
		})
	}
}

func TestEntryThatCannotBeRead(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	keys := keyset.NewCache(keyset.SystemClock{})
	bad := keyset.Resource{Name: "key/bad", Version: "1", Body: []byte("what is this")}
	keys.Update(append(keyRange(0, 100), bad), nil)
	tracker, _ := w.controlPlane(keys)
	e := w.enforcer(newTable())
	e.waitUsable(t, SourceControlPlane) // one bad entry does not keep the others out
	if got := len(e.table.history()[0].keys); got != 100 {
		t.Fatalf("%d keys are in force, want 100", got)
	}
	var rejections []xds.Rejection
	eventually(t, "the refusal is known", func() bool { rejections = tracker.Snapshot().Rejections; return len(rejections) == 1 })
	r := rejections[0]
	if r.Node != "enforcer-1" || !strings.Contains(r.Detail, `"key/bad"`) || !slices.Equal(r.Resources, []string{"key/bad"}) {
		t.Fatalf("the control plane knows of %+v", r)
	}
	// A revocation comes through while the entry is still refused.
	keys.Update(nil, []string{"key/u000000"})
	e.table.wait(t, "the revocation is in force", func(keys map[string]policy.State) bool { _, there := keys["u000000"]; return !there })
	if got := tracker.Snapshot().Position; got != 0 {
		t.Fatalf("position %d is acknowledged with an entry refused", got)
	}
	keys.Update([]keyset.Resource{keyResource("bad", policy.StateEnabled)}, nil)
	e.table.wait(t, "the mended entry is in force", func(keys map[string]policy.State) bool { return keys["bad"] == policy.StateEnabled })
	eventually(t, "everything is acknowledged", func() bool {
		acks := tracker.Snapshot()
		return acks.Position == keys.Position() && len(acks.Rejections) == 0
	})
}

func TestReadRefusesPagesAsAWhole(t *testing.T) {
	t.Parallel()
	good := keyResource("good", policy.StateEnabled)
	resource := func(name string, typeURL string, body []byte) *discovery.Resource {
		return &discovery.Resource{Name: name, Version: "1", Resource: &anypb.Any{TypeUrl: typeURL, Value: body}}
	}
	page := func(removed []string, more ...*discovery.Resource) *discovery.DeltaDiscoveryResponse {
		return &discovery.DeltaDiscoveryResponse{
			TypeUrl: keyset.TypeURL, RemovedResources: removed,
			Resources: append([]*discovery.Resource{resource(good.Name, keyset.TypeURL, good.Body)}, more...),
		}
	}
	foreign := page(nil)
	foreign.TypeUrl = "type.googleapis.com/x"
	for name, tc := range map[string]struct {
		resp *discovery.DeltaDiscoveryResponse
		want []string // names refused
	}{
		"a body that is no entry":           {page(nil, resource("key/x", keyset.TypeURL, []byte{0xff})), []string{"key/x"}},
		"a resource of another type":        {page(nil, resource("key/x", "x", nil)), []string{"key/x"}},
		"a marker of another type":          {page(nil, resource("sync", "x", nil)), []string{"sync"}},
		"a resource without content":        {page(nil, &discovery.Resource{Name: "key/x"}), []string{"key/x"}},
		"an entry under another's name":     {page(nil, resource("key/x", keyset.TypeURL, good.Body)), []string{"key/x"}},
		"a removal of what no entry can be": {page([]string{"key/y", "nothing"}), []string{"nothing"}},
		"a response of another type":        {foreign, []string{"type.googleapis.com/x"}},
		"several are all named": {
			page([]string{"nothing"}, resource("key/x", "x", nil), resource("key/z", keyset.TypeURL, nil)), []string{"key/x", "key/z", "nothing"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, err := read(tc.resp)
			var refused *refusal
			if p != nil || !errors.As(err, &refused) {
				t.Fatalf("read %v, %v", p, err)
			}
			status, err := refused.status()
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, keyset.RefusedNames(status.GetDetails())); diff != "" {
				t.Fatal(diff)
			}
			if !strings.Contains(status.GetMessage(), tc.want[0]) {
				t.Fatalf("the message %q does not name %s", status.GetMessage(), tc.want[0])
			}
		})
	}
}

func TestFailingTableIsTriedAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	keys := keyset.NewCache(keyset.SystemClock{})
	keys.Update(keyRange(0, 10), nil)
	tracker, _ := w.controlPlane(keys)
	sink := newTable()
	sink.fail = errors.New("no room")
	e := w.enforcer(sink)
	e.waitUsable(t, SourceControlPlane)
	sink.mu.Lock()
	sink.fail = errors.New("no room, again")
	sink.mu.Unlock()
	position := keys.Update([]keyset.Resource{keyResource("late", policy.StateEnabled)}, nil)
	e.table.wait(t, "the change is in force", func(keys map[string]policy.State) bool { return len(keys) == 11 })
	eventually(t, "it is acknowledged", func() bool { return tracker.Snapshot().Position == position })
	if acks := tracker.Snapshot(); len(acks.Rejections) != 0 {
		t.Fatalf("our own trouble was told as %+v", acks.Rejections)
	}
	if !strings.Contains(e.logs.String(), "no room, again") {
		t.Error("the log does not tell of it")
	}
}

func TestInterruptedFirstSynchronisationGoesOn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	keys := keyset.NewCache(keyset.SystemClock{})
	all := keyRange(0, 10)
	keys.Update(all, nil)
	half := &discovery.DeltaDiscoveryResponse{TypeUrl: keyset.TypeURL, Nonce: "1"}
	for _, r := range all[:5] {
		half.Resources = append(half.Resources, &discovery.Resource{
			Name: r.Name, Version: r.Version, Resource: &anypb.Any{TypeUrl: keyset.TypeURL, Value: r.Body},
		})
	}
	acknowledged := make(chan *discovery.DeltaDiscoveryRequest, 1)
	stop := w.scripted(func(stream deltaStream) error {
		if _, err := stream.Recv(); err != nil {
			return err
		}
		if err := stream.Send(half); err != nil {
			return err
		}
		req, err := stream.Recv()
		if err != nil {
			return err
		}
		select {
		case acknowledged <- req:
		default: // connected once more before the control plane is gone
		}
		return errors.New("gone")
	})
	e := w.enforcer(newTable())
	if req := <-acknowledged; req.GetErrorDetail() != nil || req.GetResponseNonce() != "1" {
		t.Fatalf("answered %v", req)
	}
	stop()
	if e.isUsable() || len(e.table.history()) != 0 {
		t.Fatal("half a set is in force")
	}
	// Not even after a restart.
	e.stop()
	turned := w.gate.turnedAway()
	e = w.enforcer(newTable())
	eventually(t, "it has tried", func() bool { return w.gate.turnedAway() > turned+1 })
	if e.isUsable() || len(e.table.history()) != 0 {
		t.Fatal("half a set is in force after a restart")
	}
	if got := e.Status(); got.Entries != 5 || got.Keys != 5 {
		t.Fatalf("status %+v, want what was kept", got)
	}
	w.controlPlane(keys)
	e.waitUsable(t, SourceControlPlane)
	if steps := e.table.history(); len(steps) != 1 || len(steps[0].keys) != 10 {
		t.Fatalf("%d steps, the last with %d keys", len(steps), len(steps[len(steps)-1].keys))
	}
}

func TestDamagedCopyIsNotUsed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	keys := keyset.NewCache(keyset.SystemClock{})
	keys.Update(keyRange(0, 100), nil)
	_, stop := w.controlPlane(keys)
	e := w.enforcer(newTable())
	e.waitSynced(t)
	e.stop()
	stop()
	damageFile(t, w.dir, []byte("u000042"))
	turned := w.gate.turnedAway()
	e = w.enforcer(newTable())
	eventually(t, "it has tried", func() bool { return w.gate.turnedAway() > turned+1 })
	if e.isUsable() || len(e.table.history()) != 0 || !strings.Contains(e.logs.String(), "set aside") {
		t.Fatalf("a damaged copy is in force; the log says %s", e.logs)
	}
	w.controlPlane(keys)
	e.waitUsable(t, SourceControlPlane)
	if got := len(e.table.history()[0].keys); got != 100 {
		t.Fatalf("%d keys are in force", got)
	}
}
