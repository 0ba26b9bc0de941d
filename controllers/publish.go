package controllers

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	"github.com/latchkey-dev/latchkey/internal/compile"
	"github.com/latchkey-dev/latchkey/internal/keyset"
	"github.com/latchkey-dev/latchkey/internal/policy"
)

const (
	// coalesce is the least time between two flushes. The first change after a quiet time goes out at once.
	coalesce = 20 * time.Millisecond
	// flushChunk is how many keys go out before the publisher looks for revocations again.
	flushChunk = 500
)

// Publisher is the one bridge from events to the policy set. It runs on every replica, leader or not.
//
// A key's event compiles one object. An application is an entry of its own, which the enforcers join to its keys, so that disabling
// one costs one entry however many keys it has. Models and providers are few and are compiled anew together. Revocations go first.
type Publisher struct {
	Cache     cache.Cache
	KeySet    *keyset.Cache
	Envoy     func(ctx context.Context, providers []policy.Provider) error // takes the providers over into Envoy's configuration
	Flushed   func(position uint64, through Watermarks)                    // told after each flush
	Namespace string                                                       // the installation's, where credentials are
	Clock     clock.WithTicker
	Log       logr.Logger

	pending *pending
	ready   chan struct{}

	// Owned by the goroutine of Start.
	candidates map[types.NamespacedName]candidate
	byHash     map[policy.KeyHash]map[types.NamespacedName]struct{}
	published  map[types.NamespacedName]string // resource name of the key as it was sent
	models     map[string]struct{}             // resource names of the models sent
	crowdedOut map[types.NamespacedName]names  // by application: the keys that its maxKeys keeps from being published
}

// candidate is a key that compiles. It is published unless an older key holds the same secret, or its application has as many older
// keys as its maxKeys allows.
type candidate struct {
	resource    keyset.Resource
	hashes      []policy.KeyHash
	created     time.Time
	application types.NamespacedName
}

// Init prepares the publisher; it is called once, before Start.
func (p *Publisher) Init() {
	p.pending = newPending()
	p.ready = make(chan struct{})
	p.candidates = map[types.NamespacedName]candidate{}
	p.byHash = map[policy.KeyHash]map[types.NamespacedName]struct{}{}
	p.published = map[types.NamespacedName]string{}
	p.models = map[string]struct{}{}
	p.crowdedOut = map[types.NamespacedName]names{}
}

// Ready is closed once everything that existed at the start has been compiled: not before that may anybody be served, since an
// empty answer would revoke every key.
func (p *Publisher) Ready() <-chan struct{} { return p.ready }

// NeedLeaderElection says that every replica publishes.
func (*Publisher) NeedLeaderElection() bool { return false }

// Start publishes until the context ends.
func (p *Publisher) Start(ctx context.Context) error {
	synced, err := p.watch(ctx)
	if err != nil {
		return err
	}
	if !toolscache.WaitForCacheSync(ctx.Done(), synced...) {
		return nil // the context has ended
	}
	p.signalAll()
	p.flush(ctx)
	close(p.ready)
	p.Log.Info("first compile done", "keys", len(p.published), "models", len(p.models))

	last := p.Clock.Now()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.pending.wake:
		}
		if !p.rest(ctx, coalesce-p.Clock.Since(last)) {
			return nil
		}
		p.flush(ctx)
		last = p.Clock.Now()
	}
}

// rest waits, unless something is revoked. It reports whether to go on.
func (p *Publisher) rest(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	timer := p.Clock.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C():
	case <-p.pending.urgent:
	}
	return true
}

// signalAll makes the first flush compile what has no event of its own: the built-in system policy and an empty set of providers.
func (p *Publisher) signalAll() {
	p.pending.mu.Lock()
	defer p.pending.mu.Unlock()
	b := &p.pending.batch
	b.system, b.models, b.envoy = true, true, true
}

func (p *Publisher) watch(ctx context.Context) ([]toolscache.InformerSynced, error) {
	handler := toolscache.ResourceEventHandlerFuncs{
		AddFunc: func(obj any) {
			if k, isKey := obj.(*v1alpha1.APIKey); isKey {
				p.observeLine(k)
			}
			p.observe(obj, false)
		},
		UpdateFunc: func(before, obj any) {
			if was, isKey := before.(*v1alpha1.APIKey); isKey {
				if k, stillIs := obj.(*v1alpha1.APIKey); stillIs && movesInLine(was, k) {
					p.observeLine(k)
				}
			}
			if changedHands(before, obj) { // the key that it was has lost it
				p.observe(before, false)
			}
			p.observe(obj, false)
		},
		DeleteFunc: func(obj any) { p.observe(obj, true) },
	}
	objects := []client.Object{
		&v1alpha1.APIKey{}, &corev1.Secret{}, &v1alpha1.Application{}, &v1alpha1.Model{}, &v1alpha1.Provider{}, &v1alpha1.SystemPolicy{},
	}
	synced := make([]toolscache.InformerSynced, 0, len(objects))
	for _, obj := range objects {
		informer, err := p.Cache.GetInformer(ctx, obj)
		if err != nil {
			return nil, fmt.Errorf("watch %T: %w", obj, err)
		}
		registration, err := informer.AddEventHandler(handler)
		if err != nil {
			return nil, fmt.Errorf("watch %T: %w", obj, err)
		}
		synced = append(synced, registration.HasSynced)
	}
	return synced, nil
}

// changedHands reports whether a Secret was another key's before, or a key's at all.
func changedHands(before, after any) bool {
	b, isSecret := before.(*corev1.Secret)
	a, stillIs := after.(*corev1.Secret)
	return isSecret && stillIs && b.Labels[v1alpha1.LabelAPIKey] != a.Labels[v1alpha1.LabelAPIKey]
}

func (p *Publisher) observe(obj any, deleted bool) {
	if gone, ok := obj.(toolscache.DeletedFinalStateUnknown); ok {
		obj = gone.Obj
	}
	if k, isKey := obj.(*v1alpha1.APIKey); isKey && deleted {
		p.observeLine(k)
	}
	if o, ok := obj.(client.Object); ok {
		p.pending.add(o, deleted, p.Namespace)
	}
}

// flush publishes everything pending: revocations, then what keys depend on, then keys.
func (p *Publisher) flush(ctx context.Context) {
	b := p.pending.take()
	p.placeBatch(ctx, &b)
	position := p.update(ctx, b.urgentKeys, b.urgentApps)
	if b.envoy {
		if err := p.publishEnvoy(ctx); err != nil {
			p.Log.Error(err, "could not take over providers into Envoy's configuration")
		}
	}
	var upserts []keyset.Resource
	var removed []string
	if b.system {
		upserts = append(upserts, keyset.EncodeSystem(p.compileSystem(ctx)))
	}
	if b.models {
		u, r := p.compileModels(ctx)
		upserts, removed = append(upserts, u...), append(removed, r...)
	}
	if len(upserts)+len(removed) > 0 {
		position = p.KeySet.Update(upserts, removed)
	}
	position = max(position, p.update(ctx, nil, b.apps))
	for chunk := range slices.Chunk(slices.Collect(maps.Keys(b.keys)), flushChunk) {
		if keys, apps := p.pending.takeUrgent(); len(keys)+len(apps) > 0 {
			lost, gained := p.place(ctx, apps)
			maps.Copy(keys, lost)
			position = max(position, p.update(ctx, keys, apps))
			position = max(position, p.update(ctx, gained, nil))
		}
		position = max(position, p.update(ctx, setOf(chunk), nil))
	}
	if p.Flushed != nil {
		p.Flushed(position, b.seen)
	}
}

// update publishes what the named keys and applications have become.
func (p *Publisher) update(ctx context.Context, keys, apps map[types.NamespacedName]struct{}) uint64 {
	var upserts []keyset.Resource
	var removed []string
	for name := range apps {
		if app := p.compileApplication(ctx, name); app != nil {
			upserts = append(upserts, keyset.EncodeApplication(app))
		} else {
			removed = append(removed, keyset.NameOf(policy.Ref{Kind: policy.KindApplication, Name: name.String()}))
		}
	}
	touched := maps.Clone(keys)
	for name := range keys {
		// Keys that share a secret with this one may have to step forward or back.
		for _, hash := range p.candidates[name].hashes {
			maps.Copy(touched, p.byHash[hash])
		}
		p.compileKey(ctx, name)
		for _, hash := range p.candidates[name].hashes {
			maps.Copy(touched, p.byHash[hash])
		}
	}
	for name := range touched {
		before, was := p.published[name]
		now, is := p.candidates[name]
		is = is && p.oldest(name, now) && !p.isCrowdedOut(name, now)
		if was && (!is || before != now.resource.Name) {
			removed = append(removed, before)
			delete(p.published, name)
		}
		if is {
			upserts = append(upserts, now.resource)
			p.published[name] = now.resource.Name
		}
	}
	return p.KeySet.Update(upserts, removed)
}

// oldest reports whether no older key holds one of the candidate's secrets.
func (p *Publisher) oldest(name types.NamespacedName, c candidate) bool {
	for _, hash := range c.hashes {
		for other := range p.byHash[hash] {
			if other == name {
				continue
			}
			o := p.candidates[other]
			if o.created.Before(c.created) || (o.created.Equal(c.created) && other.String() < name.String()) {
				return false
			}
		}
	}
	return true
}

// compileKey brings the candidate of that name up to date.
func (p *Publisher) compileKey(ctx context.Context, name types.NamespacedName) {
	for _, hash := range p.candidates[name].hashes {
		delete(p.byHash[hash], name)
		if len(p.byHash[hash]) == 0 {
			delete(p.byHash, hash)
		}
	}
	delete(p.candidates, name)

	var apiKey v1alpha1.APIKey
	if !p.get(ctx, name, &apiKey) {
		return
	}
	var secret *corev1.Secret
	if s := (&corev1.Secret{}); p.get(ctx, types.NamespacedName{Namespace: name.Namespace, Name: apiKey.SecretName()}, s) {
		secret = s
	}
	compiled, _ := compile.Key(&apiKey, secret) // problems are the reconciler's to report
	if compiled == nil {
		return
	}
	c := candidate{
		resource: keyset.EncodeKey(compiled), created: apiKey.CreationTimestamp.Time,
		application: types.NamespacedName{Namespace: name.Namespace, Name: apiKey.Spec.ApplicationRef.Name},
	}
	for _, credential := range compiled.Credentials {
		c.hashes = append(c.hashes, credential.Hash)
		if p.byHash[credential.Hash] == nil {
			p.byHash[credential.Hash] = map[types.NamespacedName]struct{}{}
		}
		p.byHash[credential.Hash][name] = struct{}{}
	}
	p.candidates[name] = c
}

func (p *Publisher) compileApplication(ctx context.Context, name types.NamespacedName) *policy.Application {
	var app v1alpha1.Application
	if !p.get(ctx, name, &app) {
		return nil
	}
	compiled, _ := compile.Application(&app)
	return compiled
}

func (p *Publisher) compileSystem(ctx context.Context) *policy.System {
	var object *v1alpha1.SystemPolicy
	if o := (&v1alpha1.SystemPolicy{}); p.get(ctx, types.NamespacedName{Name: v1alpha1.SystemPolicyName}, o) {
		object = o
	}
	compiled, _ := compile.System(object)
	return compiled
}

// compileModels compiles all models anew: they are few, and a name can pass from one to another.
func (p *Publisher) compileModels(ctx context.Context) (upserts []keyset.Resource, removed []string) {
	var models v1alpha1.ModelList
	var providers v1alpha1.ProviderList
	if err := p.Cache.List(ctx, &models); err != nil {
		p.Log.Error(err, "could not list models")
		return nil, nil
	}
	if err := p.Cache.List(ctx, &providers); err != nil {
		p.Log.Error(err, "could not list providers")
		return nil, nil
	}
	byName := map[string]*v1alpha1.Provider{}
	for i := range providers.Items {
		byName[providers.Items[i].Name] = &providers.Items[i]
	}
	claims := map[string][]*v1alpha1.Model{}
	for i := range models.Items {
		m := &models.Items[i]
		claims[m.CallName()] = append(claims[m.CallName()], m)
	}
	now := map[string]struct{}{}
	for _, claimants := range claims {
		winner := compile.Winner(claimants)
		if compiled, _ := compile.Model(winner, byName[winner.Spec.ProviderRef.Name]); compiled != nil {
			resource := keyset.EncodeModel(compiled)
			upserts = append(upserts, resource)
			now[resource.Name] = struct{}{}
		}
	}
	for name := range p.models {
		if _, still := now[name]; !still {
			removed = append(removed, name)
		}
	}
	p.models = now
	return upserts, removed
}

func (p *Publisher) publishEnvoy(ctx context.Context) error {
	var providers v1alpha1.ProviderList
	if err := p.Cache.List(ctx, &providers); err != nil {
		return fmt.Errorf("list providers: %w", err)
	}
	compiled := make([]policy.Provider, 0, len(providers.Items))
	for i := range providers.Items {
		provider := &providers.Items[i]
		var secret *corev1.Secret
		if c := provider.Spec.Credential; c != nil {
			if s := (&corev1.Secret{}); p.get(ctx, types.NamespacedName{Namespace: p.Namespace, Name: c.SecretRef.Name}, s) {
				secret = s
			}
		}
		if one, _ := compile.Provider(provider, secret); one != nil {
			compiled = append(compiled, *one)
		}
	}
	slices.SortFunc(compiled, func(a, b policy.Provider) int { return strings.Compare(a.Name, b.Name) })
	return p.Envoy(ctx, compiled)
}

// get reads from the cache and reports whether the object is there.
func (p *Publisher) get(ctx context.Context, name types.NamespacedName, into client.Object) bool {
	err := p.Cache.Get(ctx, name, into)
	if err != nil && !apierrors.IsNotFound(err) {
		p.Log.Error(err, "could not read from the cache", "object", name.String())
	}
	return err == nil
}

func setOf(names []types.NamespacedName) map[types.NamespacedName]struct{} {
	set := make(map[types.NamespacedName]struct{}, len(names))
	for _, name := range names {
		set[name] = struct{}{}
	}
	return set
}
