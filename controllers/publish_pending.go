package controllers

import (
	"strconv"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
)

// watched counts the kinds whose changes are published.
type watched uint8

const (
	watchedAPIKey watched = iota
	watchedSecret
	watchedApplication
	watchedModel
	watchedProvider
	watchedSystemPolicy
	watchedCount
)

// watchedKind tells which of the watched kinds an object is of.
func watchedKind(obj client.Object) (watched, bool) {
	switch obj.(type) {
	case *v1alpha1.APIKey:
		return watchedAPIKey, true
	case *corev1.Secret:
		return watchedSecret, true
	case *v1alpha1.Application:
		return watchedApplication, true
	case *v1alpha1.Model:
		return watchedModel, true
	case *v1alpha1.Provider:
		return watchedProvider, true
	case *v1alpha1.SystemPolicy:
		return watchedSystemPolicy, true
	}
	return 0, false
}

// Watermarks holds, for each watched kind, the highest resource version up to which something is true. Resource versions are
// comparable as numbers since Kubernetes 1.35 (KEP-5504).
type Watermarks [watchedCount]uint64

// revision is an object's resource version as a number; 0 where there is none.
func revision(obj client.Object) uint64 {
	n, err := strconv.ParseUint(obj.GetResourceVersion(), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// batch is what has changed since the last flush.
type batch struct {
	urgentKeys map[types.NamespacedName]struct{} // revocations: before everything else
	urgentApps map[types.NamespacedName]struct{}
	keys       map[types.NamespacedName]struct{}
	apps       map[types.NamespacedName]struct{}
	lines      map[types.NamespacedName]struct{} // applications whose keys have come, gone or been minted
	models     bool                              // any Model or Provider
	envoy      bool                              // any Provider or credential
	system     bool
	seen       Watermarks // of all events taken in so far, this batch's included
}

func newBatch(seen Watermarks) batch {
	return batch{
		urgentKeys: map[types.NamespacedName]struct{}{},
		urgentApps: map[types.NamespacedName]struct{}{},
		keys:       map[types.NamespacedName]struct{}{},
		apps:       map[types.NamespacedName]struct{}{},
		lines:      map[types.NamespacedName]struct{}{},
		seen:       seen,
	}
}

// pending collects changes between flushes. It is written by informers and read by the publisher's goroutine.
type pending struct {
	mu     sync.Mutex
	batch  batch
	wake   chan struct{} // capacity 1: something has changed
	urgent chan struct{} // capacity 1: something was revoked
}

func newPending() *pending {
	return &pending{batch: newBatch(Watermarks{}), wake: make(chan struct{}, 1), urgent: make(chan struct{}, 1)}
}

// add takes in one event. A deleted object counts with its last known state.
func (p *pending) add(obj client.Object, deleted bool, namespace string) {
	kind, ok := watchedKind(obj)
	if !ok {
		return
	}
	name := client.ObjectKeyFromObject(obj)
	gone := deleted || obj.GetDeletionTimestamp() != nil

	p.mu.Lock()
	b := &p.batch
	b.seen[kind] = max(b.seen[kind], revision(obj))
	urgent := false
	switch o := obj.(type) {
	case *v1alpha1.APIKey:
		urgent = gone || o.Spec.State == v1alpha1.StateDisabled
		put(b.urgentKeys, b.keys, name, urgent)
	case *corev1.Secret:
		if owner := o.Labels[v1alpha1.LabelAPIKey]; owner != "" {
			urgent = gone
			put(b.urgentKeys, b.keys, types.NamespacedName{Namespace: name.Namespace, Name: owner}, urgent)
		} else if name.Namespace == namespace {
			b.envoy, b.models = true, true
		}
	case *v1alpha1.Application:
		// A maxKeys may have been lowered, which revokes keys.
		urgent = gone || o.Spec.State == v1alpha1.StateDisabled || o.Spec.MaxKeys != nil
		put(b.urgentApps, b.apps, name, urgent)
	case *v1alpha1.Model:
		b.models = true
	case *v1alpha1.Provider:
		b.models, b.envoy = true, true
	case *v1alpha1.SystemPolicy:
		b.system = true
	}
	p.mu.Unlock()

	signal(p.wake)
	if urgent {
		signal(p.urgent)
	}
}

func put(urgentSet, set map[types.NamespacedName]struct{}, name types.NamespacedName, urgent bool) {
	if urgent {
		urgentSet[name] = struct{}{}
	} else {
		set[name] = struct{}{}
	}
}

// take hands over everything collected.
func (p *pending) take() batch {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := p.batch
	p.batch = newBatch(b.seen)
	return b
}

// takeUrgent hands over the revocations only, so that they need not wait for the rest of a long flush.
func (p *pending) takeUrgent() (keys, apps map[types.NamespacedName]struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := &p.batch
	keys, apps = b.urgentKeys, b.urgentApps
	if len(keys) > 0 || len(apps) > 0 {
		b.urgentKeys, b.urgentApps = map[types.NamespacedName]struct{}{}, map[types.NamespacedName]struct{}{}
	}
	return keys, apps
}

func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}
