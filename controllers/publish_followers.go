package controllers

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/logr"
	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	coordinationac "k8s.io/client-go/applyconfigurations/coordination/v1"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"

	"github.com/latchkey-dev/latchkey/internal/xds"
)

// Followers knows how far the enforcers that are connected, to this replica and to the others, have followed the configuration.
//
// An enforcer is connected to one replica only, and only the leader writes status. So each replica that does not lead says in a
// Lease of its own up to which resource versions its enforcers have acknowledged; the leader puts that together with what it
// knows of its own. A Lease that is not renewed stops counting after leaseDuration.
type Followers struct {
	Tracker   *xds.Tracker
	Client    client.Client
	Cache     cache.Cache
	Namespace string
	Identity  string
	Leading   <-chan struct{}                        // closed once this replica leads
	Ledgers   func() (connected int, trouble string) // that report to this replica; nil: none does
	Clock     clock.WithTicker
	Log       logr.Logger

	changed chan struct{}

	mu      sync.Mutex
	flushes []flushed // not yet acknowledged, oldest first
	own     report
	reached uint64 // position of the newest flush in own
	peers   map[string]peer
	waiting [watchedCount]map[types.NamespacedName]waiter
	events  [watchedCount]chan event.GenericEvent
}

const (
	leaseDuration = 15 * time.Second
	renewEvery    = 5 * time.Second
	reportEvery   = 250 * time.Millisecond
	eventBuffer   = 1024

	// labelReplica marks the Leases by which replicas report on their enforcers.
	labelReplica = "latchkey.dev/replica"
	// annotationReport holds the report.
	annotationReport = "latchkey.dev/report"

	followersManager = client.FieldOwner("latchkey-followers")
)

// flushed is a state of the configuration: once position is acknowledged, so is everything through the watermarks.
type flushed struct {
	position uint64
	through  Watermarks
}

// report is what one replica knows of its enforcers.
type report struct {
	Enforcers int        `json:"enforcers"`
	Syncing   bool       `json:"syncing,omitempty"` // an enforcer has connected and not caught up yet
	Through   Watermarks `json:"through"`
	Rejection string     `json:"rejection,omitempty"`
	Ledgers   int        `json:"ledgers,omitempty"`       // that report what is spent
	Trouble   string     `json:"ledgerTrouble,omitempty"` // what keeps one of them from writing
}

// behind reports whether an enforcer of the replica has yet to acknowledge what the revision brought.
func (r report) behind(kind watched, rev uint64) bool {
	return r.Enforcers > 0 && (r.Syncing || r.Through[kind] < rev)
}

type peer struct {
	report  report
	renewed time.Time
}

// waiter is an object that somebody wants to hear of, once its resource version is acknowledged.
type waiter struct {
	object   client.Object
	revision uint64
	state    AckState // as it was when it was asked for
}

// Init prepares the followers; it is called once, before anything else.
func (f *Followers) Init() {
	f.changed = make(chan struct{}, 1)
	f.peers = map[string]peer{}
	for kind := range f.waiting {
		f.waiting[kind] = map[types.NamespacedName]waiter{}
		f.events[kind] = make(chan event.GenericEvent, eventBuffer)
	}
}

// Flushed takes in that the configuration of that position contains everything through the watermarks.
func (f *Followers) Flushed(position uint64, through Watermarks) {
	f.mu.Lock()
	if n := len(f.flushes); n > 0 && f.flushes[n-1].position == position {
		f.flushes[n-1].through = through
	} else {
		f.flushes = append(f.flushes, flushed{position, through})
	}
	f.mu.Unlock()
	signal(f.changed)
}

// Check tells how far the connected enforcers have followed the object at its resource version. If they have not, it is sent on
// Events of its kind once they have, or once there is other news of it.
func (f *Followers) Check(obj client.Object) AckState {
	kind, ok := watchedKind(obj)
	if !ok {
		return AckState{}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	rev := revision(obj)
	state := f.state(kind, rev)
	name := client.ObjectKeyFromObject(obj)
	if state.Acknowledged {
		delete(f.waiting[kind], name)
		return state
	}
	stub := obj.DeepCopyObject().(client.Object)
	f.waiting[kind][name] = waiter{object: stub, revision: rev, state: state}
	return state
}

// Events is where objects of the example's kind are sent that Check found not acknowledged.
func (f *Followers) Events(example client.Object) <-chan event.GenericEvent {
	kind, ok := watchedKind(example)
	if !ok {
		return nil
	}
	return f.events[kind]
}

// state puts the reports of all replicas together. It holds mu.
func (f *Followers) state(kind watched, rev uint64) AckState {
	state := AckState{Enforcers: f.own.Enforcers, Rejection: f.own.Rejection}
	behind := f.own.behind(kind, rev)
	for _, p := range f.peers {
		if f.Clock.Since(p.renewed) > leaseDuration {
			continue
		}
		state.Enforcers += p.report.Enforcers
		behind = behind || p.report.behind(kind, rev)
		if state.Rejection == "" {
			state.Rejection = p.report.Rejection
		}
	}
	state.Acknowledged = state.Enforcers > 0 && !behind
	return state
}

// NeedLeaderElection says that every replica reports.
func (*Followers) NeedLeaderElection() bool { return false }

// Start follows the tracker and the other replicas' Leases until the context ends.
func (f *Followers) Start(ctx context.Context) error {
	informer, err := f.Cache.GetInformer(ctx, &coordinationv1.Lease{})
	if err != nil {
		return fmt.Errorf("watch leases: %w", err)
	}
	if _, err := informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { f.observe(obj, false) },
		UpdateFunc: func(_, obj any) { f.observe(obj, false) },
		DeleteFunc: func(obj any) { f.observe(obj, true) },
	}); err != nil {
		return fmt.Errorf("watch leases: %w", err)
	}
	ticker := f.Clock.NewTicker(reportEvery)
	defer ticker.Stop()
	var sent report
	var sentAt time.Time
	for {
		select {
		case <-ctx.Done():
			f.withdraw(context.WithoutCancel(ctx))
			return nil
		case <-f.Tracker.Changed():
		case <-f.changed:
		case <-ticker.C():
			// News is for the leader only, who has its own at hand; the renewal is for whoever leads next.
			if now := f.ownReport(); f.Clock.Since(sentAt) >= renewEvery || (now != sent && !f.leading()) {
				if err := f.send(ctx, now); err != nil {
					f.Log.Error(err, "could not report to the leader")
					continue
				}
				sent, sentAt = now, f.Clock.Now()
			}
		}
		f.advance(ctx)
	}
}

func (f *Followers) leading() bool {
	select {
	case <-f.Leading:
		return true
	default:
		return false
	}
}

func (f *Followers) ownReport() report {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.own
}

// advance takes the tracker's news in and wakes whoever waits for them.
func (f *Followers) advance(ctx context.Context) {
	acks := f.Tracker.Snapshot()
	f.mu.Lock()
	f.own.Enforcers = acks.Enforcers
	f.own.Rejection = rejection(acks)
	if f.Ledgers != nil {
		f.own.Ledgers, f.own.Trouble = f.Ledgers()
	}
	for len(f.flushes) > 0 && (acks.Enforcers == 0 || f.flushes[0].position <= acks.Position) {
		f.own.Through, f.reached = f.flushes[0].through, f.flushes[0].position
		f.flushes = f.flushes[1:]
	}
	f.own.Syncing = acks.Enforcers > 0 && acks.Position < f.reached
	var news []client.Object
	var kinds []watched
	for kind := range watchedCount {
		for name, w := range f.waiting[kind] {
			if now := f.state(kind, w.revision); now != w.state {
				delete(f.waiting[kind], name)
				news, kinds = append(news, w.object), append(kinds, kind)
			}
		}
	}
	f.mu.Unlock()
	leading := f.leading()
	for i, obj := range news {
		if !leading { // nobody reads: the reconcilers run on the leader only, and look anew when they start
			continue
		}
		select {
		case f.events[kinds[i]] <- event.GenericEvent{Object: obj}:
		case <-ctx.Done():
			return
		}
	}
}

func rejection(acks xds.Acks) string {
	said := make([]string, 0, len(acks.Rejections))
	for _, r := range acks.Rejections {
		said = append(said, r.Node+": "+r.Detail)
	}
	return strings.Join(said, "; ")
}

func (f *Followers) observe(obj any, deleted bool) {
	if gone, ok := obj.(toolscache.DeletedFinalStateUnknown); ok {
		obj = gone.Obj
	}
	lease, ok := obj.(*coordinationv1.Lease)
	if !ok || lease.Labels[labelReplica] == "" || lease.Name == f.leaseName() {
		return
	}
	var r report
	if !deleted {
		if err := json.Unmarshal([]byte(lease.Annotations[annotationReport]), &r); err != nil {
			f.Log.Error(err, "could not read another replica's report", "lease", lease.Name)
			return
		}
	}
	f.mu.Lock()
	if deleted || lease.Spec.RenewTime == nil {
		delete(f.peers, lease.Name)
	} else {
		f.peers[lease.Name] = peer{report: r, renewed: lease.Spec.RenewTime.Time}
	}
	f.mu.Unlock()
	signal(f.changed)
}

func (f *Followers) leaseName() string { return "latchkey-replica-" + f.Identity }

func (f *Followers) send(ctx context.Context, r report) error {
	content, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode report: %w", err)
	}
	lease := coordinationac.Lease(f.leaseName(), f.Namespace).
		WithLabels(map[string]string{labelReplica: "true"}).
		WithAnnotations(map[string]string{annotationReport: string(content)}).
		WithSpec(coordinationac.LeaseSpec().
			WithHolderIdentity(f.Identity).
			WithLeaseDurationSeconds(int32(leaseDuration.Seconds())).
			WithRenewTime(metav1.NewMicroTime(f.Clock.Now())))
	if err := f.Client.Apply(ctx, lease, followersManager, client.ForceOwnership); err != nil {
		return fmt.Errorf("apply lease %s: %w", f.leaseName(), err)
	}
	return nil
}

// withdraw removes the report at shutdown, so that nobody waits for this replica's enforcers. If it fails, the Lease runs out.
func (f *Followers) withdraw(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	lease := &coordinationv1.Lease{}
	lease.Name, lease.Namespace = f.leaseName(), f.Namespace
	if err := f.Client.Delete(ctx, lease); client.IgnoreNotFound(err) != nil {
		f.Log.Info("could not withdraw the report; it runs out by itself", "lease", lease.Name, "reason", err.Error())
	}
}
