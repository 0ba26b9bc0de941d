package controllers

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/events"
	clocktesting "k8s.io/utils/clock/testing"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	"github.com/latchkey-dev/latchkey/internal/compile"
	"github.com/latchkey-dev/latchkey/internal/policy"
	"github.com/latchkey-dev/latchkey/test/controlplane"
)

var errKilled = errors.New("the manager was killed")

// mortal is a client of a manager that is killed at one of its writes, either before or after the API server has taken it in. It finds
// Secrets by hash, which the API server cannot.
type mortal struct {
	client.Client
	left  int  // writes that succeed; negative: all do
	taken bool // the write that kills is taken in
}

func (m *mortal) write(do func() error) error {
	if m.left == 0 {
		if m.taken {
			if err := do(); err != nil {
				return err
			}
			m.taken = false
		}
		return errKilled
	}
	m.left--
	return do()
}

func (m *mortal) Create(ctx context.Context, obj client.Object, opts ...client.CreateOption) error {
	return m.write(func() error { return m.Client.Create(ctx, obj, opts...) })
}

func (m *mortal) Patch(ctx context.Context, obj client.Object, patch client.Patch, opts ...client.PatchOption) error {
	return m.write(func() error { return m.Client.Patch(ctx, obj, patch, opts...) })
}

func (m *mortal) Status() client.SubResourceWriter { return mortalStatus{m.Client.Status(), m} }

type mortalStatus struct {
	client.SubResourceWriter
	m *mortal
}

func (s mortalStatus) Apply(ctx context.Context, obj runtime.ApplyConfiguration, opts ...client.SubResourceApplyOption) error {
	return s.m.write(func() error { return s.SubResourceWriter.Apply(ctx, obj, opts...) })
}

func (m *mortal) List(ctx context.Context, list client.ObjectList, opts ...client.ListOption) error {
	var o client.ListOptions
	o.ApplyOptions(opts)
	secrets, ok := list.(*corev1.SecretList)
	if !ok || o.FieldSelector == nil {
		return m.Client.List(ctx, list, opts...)
	}
	hash, found := o.FieldSelector.RequiresExactMatch(indexKeyHash)
	if !found {
		return fmt.Errorf("no such index: %s", o.FieldSelector)
	}
	if err := m.Client.List(ctx, secrets); err != nil {
		return err
	}
	secrets.Items = slices.DeleteFunc(secrets.Items, func(s corev1.Secret) bool { return !slices.Contains(hashesIn(&s), hash) })
	return nil
}

// rotationPlane is a real API server, at which reconciles are made one by one.
type rotationPlane struct {
	t      *testing.T
	client client.Client
	clock  *clocktesting.FakePassiveClock
	events *events.FakeRecorder
	space  string
}

func startRotationPlane(t *testing.T) *rotationPlane {
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
	c, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	return &rotationPlane{t: t, client: c}
}

// fresh is the same API server with an empty namespace and another clock.
func (p *rotationPlane) fresh(t *testing.T) *rotationPlane {
	t.Helper()
	space := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "rotation-"}}
	p.create(space)
	q := &rotationPlane{
		t: t, client: p.client, space: space.Name, events: events.NewFakeRecorder(100),
		clock: clocktesting.NewFakePassiveClock(time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)),
	}
	q.create(&v1alpha1.Application{ObjectMeta: metav1.ObjectMeta{Namespace: q.space, Name: "shop"}, Spec: v1alpha1.ApplicationSpec{DisplayName: "Shop"}})
	return q
}

func (p *rotationPlane) create(obj client.Object) {
	p.t.Helper()
	if err := p.client.Create(p.t.Context(), obj); err != nil {
		p.t.Fatal(err)
	}
}

// reconcileBy makes one reconcile by a manager of that client, which knows nothing of those before it.
func (p *rotationPlane) reconcileBy(m *mortal, name string) (ctrl.Result, error) {
	r := &APIKeyReconciler{Client: m, APIReader: p.client, Recorder: p.events, Clock: p.clock, Random: rand.Reader, Acks: allAcked{}, Namespace: "default"}
	return r.Reconcile(p.t.Context(), request(p.space, name))
}

// settle reconciles until nothing more is written, and returns when the last reconcile wants the next.
func (p *rotationPlane) settle(name string) time.Duration {
	p.t.Helper()
	for range 10 {
		m := &mortal{Client: p.client, left: -1}
		result, err := p.reconcileBy(m, name)
		if err != nil {
			p.t.Fatal(err)
		}
		if m.left == -1 {
			return result.RequeueAfter
		}
	}
	p.t.Fatal("it does not settle")
	return 0
}

func (p *rotationPlane) newKey(name string, change ...func(*v1alpha1.APIKeySpec)) *v1alpha1.APIKey {
	p.t.Helper()
	k := &v1alpha1.APIKey{ObjectMeta: metav1.ObjectMeta{Namespace: p.space, Name: name}, Spec: v1alpha1.APIKeySpec{
		ApplicationRef: v1alpha1.ApplicationReference{Name: "shop"}, DisplayName: "Backend",
		Capabilities: []v1alpha1.Capability{v1alpha1.CapabilityTextGeneration}, Models: v1alpha1.ModelScope{Access: v1alpha1.ModelAccessAll},
	}}
	for _, c := range change {
		c(&k.Spec)
	}
	p.create(k)
	p.settle(name)
	return k
}

func (p *rotationPlane) rotate(name string, generation int64, overlap time.Duration) {
	p.t.Helper()
	k := &v1alpha1.APIKey{ObjectMeta: metav1.ObjectMeta{Namespace: p.space, Name: name}}
	body := fmt.Sprintf(`{"spec":{"rotation":{"generation":%d,"overlap":%q}}}`, generation, overlap.String())
	if err := p.client.Patch(p.t.Context(), k, client.RawPatch("application/merge-patch+json", []byte(body))); err != nil {
		p.t.Fatal(err)
	}
}

// look reads the key, its Secret (nil: there is none), and what the enforcers would be told.
func (p *rotationPlane) look(name string) (*v1alpha1.APIKey, *corev1.Secret, []policy.Credential) {
	p.t.Helper()
	k, secret := &v1alpha1.APIKey{}, &corev1.Secret{}
	if err := p.client.Get(p.t.Context(), client.ObjectKey{Namespace: p.space, Name: name}, k); err != nil {
		p.t.Fatal(err)
	}
	if err := p.client.Get(p.t.Context(), client.ObjectKey{Namespace: p.space, Name: k.SecretName()}, secret); client.IgnoreNotFound(err) != nil {
		p.t.Fatal(err)
	} else if err != nil {
		secret = nil
	}
	credentials, _ := compile.Credentials(k, secret)
	return k, secret, credentials
}

func hashOf(secret *corev1.Secret) policy.KeyHash {
	hash, _ := compile.ParseHash(secret.Data[v1alpha1.SecretDataKeyHash])
	return hash
}

func honoured(credentials []policy.Credential, hash policy.KeyHash) *policy.Credential {
	for i := range credentials {
		if credentials[i].Hash == hash {
			return &credentials[i]
		}
	}
	return nil
}

func (p *rotationPlane) eventsOf(reason string) (said []string) {
	for {
		select {
		case e := <-p.events.Events:
			if strings.Contains(e, reason) {
				said = append(said, e)
			}
		default:
			return said
		}
	}
}

func TestRotation(t *testing.T) {
	plane := startRotationPlane(t)

	t.Run("the earlier key is honoured for the overlap", func(t *testing.T) {
		p := plane.fresh(t)
		p.newKey("backend")
		first, secret, _ := p.look("backend")
		old := hashOf(secret)
		if err := p.client.Patch(t.Context(), secret, client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"annotations":{"latchkey.dev/revealed":"true"}}}`))); err != nil {
			t.Fatal(err)
		}
		p.settle("backend")
		p.clock.SetTime(p.clock.Now().Add(time.Hour + 300*time.Millisecond))
		rotated := p.clock.Now().Truncate(time.Second)
		p.rotate("backend", 1, 30*time.Minute)
		next := p.settle("backend")

		k, secret, credentials := p.look("backend")
		if honoured(credentials, hashOf(secret)) == nil || hashOf(secret) == old || len(credentials) != 2 {
			t.Fatalf("credentials %+v", credentials)
		}
		if c := honoured(credentials, old); c == nil || !c.Ends.Equal(rotated.Add(30*time.Minute)) || c.Prefix != first.Status.KeyPrefix {
			t.Fatalf("the earlier one: %+v", c)
		}
		if next != rotated.Add(30*time.Minute).Sub(p.clock.Now()) {
			t.Errorf("it looks again after %s", next)
		}
		status := k.Status.Rotation
		if status.Generation != 1 || status.PreviousKeyPrefix != first.Status.KeyPrefix || k.Status.KeyPrefix == first.Status.KeyPrefix ||
			!status.PreviousEndTime.Time.Equal(rotated.Add(30*time.Minute)) || status.PendingKeyFingerprint != "" {
			t.Errorf("status %+v", status)
		}
		if c := meta.FindStatusCondition(k.Status.Conditions, v1alpha1.ConditionRotating); c == nil || c.Status != metav1.ConditionTrue ||
			!strings.Contains(c.Message, first.Status.KeyPrefix) || !strings.Contains(c.Message, "2026-05-04T13:30:00Z") {
			t.Errorf("condition %+v", c)
		}
		// The new key waits to be taken, as the first did.
		if _, there := secret.Data[v1alpha1.SecretDataAPIKey]; !there || secret.Annotations[v1alpha1.AnnotationRevealed] != "" || secret.Annotations[v1alpha1.AnnotationRemoval] != "" {
			t.Errorf("the Secret's marks: %v", secret.Annotations)
		}
		if c := meta.FindStatusCondition(k.Status.Conditions, v1alpha1.ConditionRevealed); c == nil || c.Reason != v1alpha1.ReasonPending || k.Status.RevealDeadline == nil {
			t.Errorf("condition %+v, deadline %v", c, k.Status.RevealDeadline)
		}
		if said := p.eventsOf(v1alpha1.ReasonKeyRotated); len(said) != 1 || !strings.Contains(said[0], first.Status.KeyPrefix) || !strings.Contains(said[0], k.Status.KeyPrefix) {
			t.Errorf("events %q", said)
		}

		p.clock.SetTime(rotated.Add(30*time.Minute - time.Nanosecond))
		p.settle("backend")
		if _, secret, _ := p.look("backend"); secret.Data[v1alpha1.SecretDataPreviousKeyHash] == nil {
			t.Error("the earlier key has gone before its time")
		}
		p.clock.SetTime(rotated.Add(30 * time.Minute))
		p.settle("backend")
		k, secret, credentials = p.look("backend")
		if len(credentials) != 1 || secret.Data[v1alpha1.SecretDataPreviousKeyHash] != nil || secret.Data[v1alpha1.SecretDataPreviousKeyPrefix] != nil {
			t.Errorf("after its end: %+v", credentials)
		}
		if c := meta.FindStatusCondition(k.Status.Conditions, v1alpha1.ConditionRotating); c == nil || c.Status != metav1.ConditionFalse || c.Reason != v1alpha1.ReasonPreviousKeyEnded {
			t.Errorf("condition %+v", c)
		}
		if k.Status.Rotation.PreviousKeyPrefix != first.Status.KeyPrefix || !k.Status.Rotation.PreviousEndTime.Time.Equal(rotated.Add(30*time.Minute)) {
			t.Errorf("status %+v", k.Status.Rotation)
		}
		if said := p.eventsOf(v1alpha1.ReasonPreviousKeyEnded); len(said) != 1 {
			t.Errorf("events %q", said)
		}
	})

	t.Run("without an overlap the earlier key ends at once", func(t *testing.T) {
		p := plane.fresh(t)
		p.newKey("leaked")
		p.rotate("leaked", 7, 0)
		p.settle("leaked")
		k, secret, credentials := p.look("leaked")
		if len(credentials) != 1 || credentials[0].Hash != hashOf(secret) || secret.Data[v1alpha1.SecretDataPreviousKeyHash] != nil {
			t.Errorf("credentials %+v", credentials)
		}
		if k.Status.Rotation.Generation != 7 || k.Status.Rotation.PreviousEndTime == nil || k.Status.Rotation.PreviousKeyPrefix == "" {
			t.Errorf("status %+v", k.Status.Rotation)
		}
	})

	t.Run("an overlap that runs is cut short and prolonged by the spec", func(t *testing.T) {
		p := plane.fresh(t)
		p.newKey("edited")
		p.rotate("edited", 1, time.Hour)
		p.settle("edited")
		rotated := p.clock.Now()
		p.clock.SetTime(rotated.Add(30 * time.Minute))
		p.rotate("edited", 1, 2*time.Hour)
		if next := p.settle("edited"); next != 90*time.Minute {
			t.Errorf("prolonged: it looks again after %s", next)
		}
		if _, _, credentials := p.look("edited"); len(credentials) != 2 || !credentials[1].Ends.Equal(rotated.Add(2*time.Hour)) {
			t.Errorf("prolonged: %+v", credentials)
		}
		p.rotate("edited", 1, 10*time.Minute) // has passed
		p.settle("edited")
		k, _, credentials := p.look("edited")
		if len(credentials) != 1 || !k.Status.Rotation.PreviousEndTime.Time.Equal(rotated.Add(30*time.Minute)) {
			t.Errorf("cut short: %+v, %+v", credentials, k.Status.Rotation)
		}
		p.rotate("edited", 1, 10*time.Hour)
		p.settle("edited")
		if _, _, credentials := p.look("edited"); len(credentials) != 1 {
			t.Errorf("what has ended came back: %+v", credentials)
		}
	})

	t.Run("a second rotation within the overlap ends the one before", func(t *testing.T) {
		p := plane.fresh(t)
		p.newKey("twice")
		_, secret, _ := p.look("twice")
		first := hashOf(secret)
		p.rotate("twice", 1, time.Hour)
		p.settle("twice")
		_, secret, _ = p.look("twice")
		second := hashOf(secret)
		p.rotate("twice", 2, time.Hour)
		p.settle("twice")
		_, secret, credentials := p.look("twice")
		if len(credentials) != 2 || honoured(credentials, first) != nil || honoured(credentials, second) == nil || honoured(credentials, hashOf(secret)) == nil {
			t.Errorf("credentials %+v", credentials)
		}
	})

	t.Run("a generation given at creation rotates nothing, and a lower one neither", func(t *testing.T) {
		p := plane.fresh(t)
		p.newKey("born", func(s *v1alpha1.APIKeySpec) { s.Rotation = &v1alpha1.RotationSpec{Generation: 5} })
		k, secret, _ := p.look("born")
		if k.Status.Rotation == nil || k.Status.Rotation.Generation != 5 || k.Status.Rotation.RotationTime != nil || len(p.eventsOf(v1alpha1.ReasonKeyRotated)) != 0 {
			t.Errorf("status %+v", k.Status.Rotation)
		}
		hash := hashOf(secret)
		p.rotate("born", 6, time.Hour)
		p.settle("born")
		if _, secret, _ := p.look("born"); hashOf(secret) == hash {
			t.Error("a higher one did not rotate")
		}
	})

	t.Run("a Secret that comes back from a backup is not rotated anew", func(t *testing.T) {
		p := plane.fresh(t)
		k := p.newKey("restored")
		p.rotate("restored", 3, time.Hour)
		p.settle("restored")
		_, secret, before := p.look("restored")
		hash := hashOf(secret)
		live, _, _ := p.look("restored")
		live.Finalizers = nil
		if err := p.client.Update(t.Context(), live); err != nil {
			t.Fatal(err)
		}
		if err := p.client.Delete(t.Context(), live); err != nil {
			t.Fatal(err)
		}
		again := &v1alpha1.APIKey{ObjectMeta: metav1.ObjectMeta{Namespace: p.space, Name: k.Name}, Spec: live.Spec}
		p.create(again) // its status is empty, its uid another
		owners := []byte(`{"metadata":{"ownerReferences":null}}`)
		if err := p.client.Patch(t.Context(), secret, client.RawPatch("application/merge-patch+json", owners)); err != nil {
			t.Fatal(err)
		}
		p.settle("restored")
		k, secret, after := p.look("restored")
		if hashOf(secret) != hash || k.Status.Rotation == nil || k.Status.Rotation.Generation != 3 {
			t.Errorf("rotated anew: %+v", k.Status.Rotation)
		}
		if len(after) != 2 || after[1] != before[1] {
			t.Errorf("credentials %+v; before %+v", after, before)
		}
	})

	t.Run("a lost key comes back as another", func(t *testing.T) {
		p := plane.fresh(t)
		p.newKey("lost")
		_, secret, _ := p.look("lost")
		old := hashOf(secret)
		if err := p.client.Delete(t.Context(), secret); err != nil {
			t.Fatal(err)
		}
		p.settle("lost")
		p.rotate("lost", 1, time.Hour)
		p.settle("lost")
		k, secret, credentials := p.look("lost")
		if secret == nil || hashOf(secret) == old || len(credentials) != 1 || !meta.IsStatusConditionTrue(k.Status.Conditions, v1alpha1.ConditionReady) {
			t.Errorf("credentials %+v, conditions %+v", credentials, k.Status.Conditions)
		}
	})

	t.Run("a Secret of somebody else's is left alone", func(t *testing.T) {
		p := plane.fresh(t)
		p.newKey("foreign")
		_, secret, _ := p.look("foreign")
		if err := p.client.Delete(t.Context(), secret); err != nil {
			t.Fatal(err)
		}
		p.create(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: p.space, Name: secret.Name}, StringData: map[string]string{"password": "theirs"}})
		p.rotate("foreign", 1, time.Hour)
		p.settle("foreign")
		k, secret, _ := p.look("foreign")
		if string(secret.Data["password"]) != "theirs" || len(secret.Data) != 1 {
			t.Error("it was written over")
		}
		if c := meta.FindStatusCondition(k.Status.Conditions, v1alpha1.ConditionStalled); c == nil || c.Reason != v1alpha1.ReasonSecretConflict {
			t.Errorf("condition %+v", c)
		}
	})

	t.Run("a key that may not keep its plaintext is not rotated", func(t *testing.T) {
		p := plane.fresh(t)
		p.newKey("retained")
		_, secret, _ := p.look("retained")
		hash := hashOf(secret)
		k := &v1alpha1.APIKey{ObjectMeta: metav1.ObjectMeta{Namespace: p.space, Name: "retained"}}
		if err := p.client.Patch(t.Context(), k, client.RawPatch("application/merge-patch+json", []byte(`{"spec":{"secret":{"retention":"Retain"}}}`))); err != nil {
			t.Fatal(err)
		}
		p.rotate("retained", 1, time.Hour)
		p.settle("retained")
		k, secret, _ = p.look("retained")
		if hashOf(secret) != hash {
			t.Error("it was rotated")
		}
		if c := meta.FindStatusCondition(k.Status.Conditions, v1alpha1.ConditionReady); c == nil || c.Reason != v1alpha1.ReasonRetainNotAllowed {
			t.Errorf("condition %+v", c)
		}
	})
}

// Whichever write is a manager's last, the earlier key is honoured throughout, and the next manager ends with one rotation.
func TestARotationSurvivesItsManager(t *testing.T) {
	plane := startRotationPlane(t)
	for _, taken := range []bool{false, true} {
		for dies := 0; ; dies++ {
			p := plane.fresh(t)
			p.newKey("backend")
			_, secret, _ := p.look("backend")
			old := hashOf(secret)
			p.rotate("backend", 1, time.Hour)
			m := &mortal{Client: p.client, left: dies, taken: taken}
			_, err := p.reconcileBy(m, "backend")
			if err == nil {
				if dies < 3 {
					t.Fatalf("a rotation takes %d writes: that cannot be all", dies)
				}
				break
			}
			if !errors.Is(err, errKilled) {
				t.Fatal(err)
			}
			said := fmt.Sprintf("killed at write %d, taken in: %v", dies+1, taken)
			if _, _, credentials := p.look("backend"); honoured(credentials, old) == nil {
				t.Errorf("%s: the earlier key is not honoured: %+v", said, credentials)
			}
			p.clock.SetTime(p.clock.Now().Add(10 * time.Second))
			p.settle("backend")
			k, secret, credentials := p.look("backend")
			if len(credentials) != 2 || honoured(credentials, old) == nil || honoured(credentials, hashOf(secret)) == nil || hashOf(secret) == old {
				t.Errorf("%s: then %+v", said, credentials)
			}
			if s := k.Status.Rotation; s == nil || s.Generation != 1 || s.PendingKeyFingerprint != "" {
				t.Errorf("%s: then %+v", said, s)
			}
			if n := len(p.eventsOf(v1alpha1.ReasonKeyRotated)); n > 1 {
				t.Errorf("%s: %d events of rotations", said, n)
			}
		}
	}
}
