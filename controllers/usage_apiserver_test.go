package controllers

import (
	"context"
	"crypto/rand"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/utils/clock"
	clocktesting "k8s.io/utils/clock/testing"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	"github.com/latchkey-dev/latchkey/internal/money"
	"github.com/latchkey-dev/latchkey/internal/usage"
	"github.com/latchkey-dev/latchkey/test/controlplane"
)

// allAcked is Acks of an enforcer that has always followed.
type allAcked struct{}

func (allAcked) Check(client.Object) AckState { return AckState{Enforcers: 1, Acknowledged: true} }

func (allAcked) Events(client.Object) <-chan event.GenericEvent {
	return make(chan event.GenericEvent)
}

// usagePlane is an API server with the reconcilers of keys and applications and the usage writer before it.
type usagePlane struct {
	t      *testing.T
	writer *UsageWriter
	client client.Client // past the cache
	midday time.Time     // what it is, for the reconcilers
}

func startUsagePlane(t *testing.T) *usagePlane {
	t.Helper()
	if testing.Short() {
		t.Skip("it starts an API server")
	}
	plane, err := controlplane.Start(t.Context(), controlplane.Options{InstallCRDs: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := plane.Stop(); err != nil {
			t.Error(err)
		}
	})
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	config := plane.Config()
	config.QPS = -1
	ctrl.SetLogger(logr.Discard())
	mgr, err := ctrl.NewManager(config, ctrl.Options{
		Scheme: scheme, Logger: logr.Discard(), Metrics: metricsserver.Options{BindAddress: "0"},
		Cache: cache.Options{DefaultTransform: cache.TransformStripManagedFields()},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	if err := SetupIndexes(ctx, mgr.GetFieldIndexer()); err != nil {
		t.Fatal(err)
	}
	p := &usagePlane{t: t, writer: &UsageWriter{
		Client: mgr.GetClient(), Recorder: mgr.GetEventRecorder("latchkey-usage"), Clock: clock.RealClock{}, Log: logr.Discard(),
		Metrics: prometheus.NewRegistry(), WritesPerSecond: 100,
	}}
	if err := p.writer.Init(); err != nil {
		t.Fatal(err)
	}
	if p.client, err = client.New(config, client.Options{Scheme: scheme}); err != nil {
		t.Fatal(err)
	}
	// No day ends during the test.
	p.midday = time.Now().UTC().Truncate(24 * time.Hour).Add(12 * time.Hour)
	midday := clocktesting.NewFakePassiveClock(p.midday)
	recorder := mgr.GetEventRecorder("latchkey-manager")
	for _, r := range []interface{ SetupWithManager(ctrl.Manager) error }{
		&ApplicationReconciler{Client: mgr.GetClient(), Recorder: recorder, Clock: midday, Acks: allAcked{}},
		&APIKeyReconciler{
			Client: mgr.GetClient(), APIReader: mgr.GetAPIReader(), Recorder: recorder, Clock: midday, Random: rand.Reader,
			Acks: allAcked{}, Namespace: "default",
		},
	} {
		if err := r.SetupWithManager(mgr); err != nil {
			t.Fatal(err)
		}
	}
	if err := mgr.Add(p.writer); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- mgr.Start(ctx) }()
	t.Cleanup(func() { // before the API server stops
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	if !mgr.GetCache().WaitForCacheSync(t.Context()) {
		t.Fatal("the cache did not synchronise")
	}
	return p
}

func (p *usagePlane) create(o client.Object) {
	p.t.Helper()
	if err := p.client.Create(p.t.Context(), o); err != nil {
		p.t.Fatal(err)
	}
}

// patch changes an object's spec.
func (p *usagePlane) patch(o client.Object, spec string) {
	p.t.Helper()
	if err := p.client.Patch(p.t.Context(), o, client.RawPatch("application/merge-patch+json", []byte(`{"spec":`+spec+`}`))); err != nil {
		p.t.Fatal(err)
	}
}

// wait reads the object until it is as asked.
func (p *usagePlane) wait(o client.Object, what string, ok func() bool) {
	p.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(time.Minute); ; <-tick.C {
		if err := p.client.Get(p.t.Context(), client.ObjectKeyFromObject(o), o); err != nil {
			p.t.Fatal(err)
		}
		if ok() {
			return
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("waited in vain until %s: %+v", what, o)
		}
	}
}

// usableIs reports whether the condition has the reason.
func usableIs(list *[]metav1.Condition, reason string) func() bool {
	return func() bool {
		c := meta.FindStatusCondition(*list, v1alpha1.ConditionUsable)
		return c != nil && c.Reason == reason
	}
}

// owners are the field managers of the status, each with the fields it owns.
func owners(o client.Object) map[string]string {
	out := map[string]string{}
	for _, m := range o.GetManagedFields() {
		if m.Subresource == "status" {
			out[m.Manager] = m.FieldsV1.GetRawString()
		}
	}
	return out
}

func TestUsageAndTheRestOfStatusDoNotFight(t *testing.T) {
	t.Parallel()
	p := startUsagePlane(t)
	app := &v1alpha1.Application{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "shop"},
		Spec:       v1alpha1.ApplicationSpec{DisplayName: "Shop", Budgets: budgetsOf("1000", "")},
	}
	key := &v1alpha1.APIKey{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "backend"},
		Spec: v1alpha1.APIKeySpec{
			ApplicationRef: v1alpha1.ApplicationReference{Name: "shop"}, DisplayName: "Backend", Budgets: budgetsOf("10", ""),
			Capabilities: []v1alpha1.Capability{v1alpha1.CapabilityTextGeneration}, Models: v1alpha1.ModelScope{Access: v1alpha1.ModelAccessAll},
		},
	}
	p.create(app)
	p.create(key)
	p.wait(key, "the key is active", usableIs(&key.Status.Conditions, "Active"))

	today := usage.DayOf(p.midday, time.UTC).Name
	day, _ := usage.ParseDay(today)
	row := func(o client.Object, spent money.Amount, blocked bool) usage.Row {
		r := usage.Row{ID: string(o.GetUID()), Day: day, Month: day / 100, LastUsed: time.Now()}
		r.DayUsage = usage.Totals{Requests: int64(spent), Tokens: 10, Spent: spent * money.Unit}
		r.MonthUsage = r.DayUsage
		if blocked {
			r.BlockedSince = time.Now()
		}
		return r
	}
	spent := func(u **v1alpha1.Usage, want v1alpha1.Spend) func() bool {
		return func() bool { return *u != nil && (*u).Day.Spent == want && (*u).Day.Period == today }
	}

	told(t, p.writer, row(key, 4, false), row(app, 40, false))
	p.wait(key, "the key's usage is there", spent(&key.Status.Usage, "4"))
	p.wait(app, "the application's usage is there", spent(&app.Status.Usage, "40"))

	// The key's budget is used up, and then raised.
	told(t, p.writer, row(key, 10, true))
	p.wait(key, "the key is used up", usableIs(&key.Status.Conditions, "BudgetExhausted"))
	if key.Status.Usage == nil || key.Status.Usage.BlockedTime == nil || key.Status.Usage.Day.Spent != "10" {
		t.Errorf("its usage is %+v", key.Status.Usage)
	}
	p.patch(key, `{"budgets":{"daily":"20"}}`)
	p.wait(key, "the key is active again", usableIs(&key.Status.Conditions, "Active"))
	if key.Status.Usage == nil || key.Status.Usage.Day.Spent != "10" {
		t.Errorf("its usage is %+v after the change of the spec", key.Status.Usage)
	}
	told(t, p.writer, row(key, 11, false))
	p.wait(key, "the block is gone", func() bool { return key.Status.Usage != nil && key.Status.Usage.BlockedTime == nil })

	// The application's is, and its key with it.
	told(t, p.writer, row(app, 1000, false))
	p.wait(app, "the application is used up", usableIs(&app.Status.Conditions, "BudgetExhausted"))
	p.wait(key, "its key is, too", usableIs(&key.Status.Conditions, "BudgetExhausted"))
	if c := meta.FindStatusCondition(key.Status.Conditions, v1alpha1.ConditionUsable); !strings.Contains(c.Message, "Application shop is used up: 1000 of 1000 USD") {
		t.Errorf("message %q", c.Message)
	}
	if !meta.IsStatusConditionTrue(key.Status.Conditions, v1alpha1.ConditionReady) {
		t.Error("a key without budget is not ready")
	}
	p.patch(app, `{"budgets":{"daily":"2000"}}`)
	p.wait(key, "the key is active once more", usableIs(&key.Status.Conditions, "Active"))
	p.wait(app, "the application is, too", usableIs(&app.Status.Conditions, "Active"))

	for o, manager := range map[client.Object]string{key: "latchkey-apikey", app: "latchkey-application"} {
		fields := owners(o)
		if len(fields) != 2 || !strings.Contains(fields["latchkey-usage"], "f:usage") || strings.Contains(fields["latchkey-usage"], "f:conditions") {
			t.Errorf("the owners of %T's status are %v", o, fields)
		}
		if got := fields[manager]; !strings.Contains(got, "f:conditions") || strings.Contains(got, "f:usage") {
			t.Errorf("%s owns %s", manager, got)
		}
	}

	// Each mark of each budget was told once.
	want := map[string]int{}
	for _, budget := range []string{"10", "1000"} {
		for _, reason := range []string{v1alpha1.ReasonBudgetNearlyExhausted, v1alpha1.ReasonBudgetExhausted} {
			want[reason+" "+budget] = 1
		}
	}
	p.wait(key, fmt.Sprintf("the events are %v", want), func() bool {
		var list eventsv1.EventList
		if err := p.client.List(t.Context(), &list, client.InNamespace("default")); err != nil {
			t.Fatal(err)
		}
		got := map[string]int{}
		for _, e := range list.Items {
			if _, after, ok := strings.Cut(e.Note, " of "); ok && strings.HasPrefix(e.Reason, "Budget") && e.Type == corev1.EventTypeWarning {
				_, limit, _ := strings.Cut(after, ": ")
				fields := strings.Fields(limit)
				if e.Series != nil || fields[0] != fields[2] && e.Reason == v1alpha1.ReasonBudgetExhausted {
					t.Fatalf("event %+v", e)
				}
				got[e.Reason+" "+fields[2]]++
			}
		}
		return fmt.Sprint(got) == fmt.Sprint(want)
	})

	// An object of the same name that is another one does not take its predecessor's usage over.
	old := key.DeepCopy()
	if err := p.client.Delete(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	again := &v1alpha1.APIKey{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "backend"}, Spec: old.Spec}
	for deadline := time.Now().Add(time.Minute); ; {
		err := p.client.Create(t.Context(), again)
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		again.ResourceVersion = ""
	}
	told(t, p.writer, row(old, 19, false), row(again, 1, false))
	p.wait(again, "its own usage is there", spent(&again.Status.Usage, "1"))
	if err := (kubeUsage{p.client}).apply(t.Context(), keyAccount(old), spentUsage(19)); !isRace(err) {
		t.Errorf("usage of an object that has gone was written: %v", err)
	}

	// What was written is recalled.
	var recalled []usage.Row
	if err := p.writer.Recall(t.Context(), func(rows []usage.Row) error { recalled = append(recalled, rows...); return nil }); err != nil {
		t.Fatal(err)
	}
	got := map[string]money.Amount{}
	for _, r := range recalled {
		got[r.ID] = r.DayUsage.Spent
	}
	if len(got) != 2 || got[string(again.UID)] != money.Unit || got[string(app.UID)] != 1000*money.Unit {
		t.Errorf("recalled %v", got)
	}

	// A block that came without any use goes without leaving anything.
	fresh := &v1alpha1.APIKey{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "fresh"}, Spec: *old.Spec.DeepCopy()}
	p.create(fresh)
	told(t, p.writer, usage.Row{ID: string(fresh.UID), BlockedSince: time.Now()})
	p.wait(fresh, "the block is there", func() bool { return fresh.Status.Usage != nil })
	told(t, p.writer, usage.Row{ID: string(fresh.UID)})
	p.wait(fresh, "it is gone", func() bool { return fresh.Status.Usage == nil })
}
