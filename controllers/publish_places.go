package controllers

import (
	"context"
	"maps"

	"k8s.io/apimachinery/pkg/types"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
)

// names is a set of objects.
type names = map[types.NamespacedName]struct{}

// observeLine takes in that the line of an application's keys may have changed. It goes before the key's own event: whoever takes that one
// has taken this one.
func (p *Publisher) observeLine(k *v1alpha1.APIKey) {
	p.pending.mu.Lock()
	defer p.pending.mu.Unlock()
	p.pending.batch.lines[types.NamespacedName{Namespace: k.Namespace, Name: k.Spec.ApplicationRef.Name}] = struct{}{}
}

// place finds out anew which keys of the named applications are crowded out by maxKeys. It returns those that have lost their place and
// those that have gained one.
func (p *Publisher) place(ctx context.Context, apps ...names) (lost, gained names) {
	lost, gained = names{}, names{}
	seen := names{}
	for _, set := range apps {
		for app := range set {
			if _, again := seen[app]; again {
				continue
			}
			seen[app] = struct{}{}
			before, after := p.crowdedOut[app], p.beyond(ctx, app)
			difference(lost, after, before)
			difference(gained, before, after)
			if len(after) > 0 {
				p.crowdedOut[app] = after
			} else {
				delete(p.crowdedOut, app)
			}
		}
	}
	return lost, gained
}

// difference adds to into what is in a and not in b.
func difference(into, a, b names) {
	for name := range a {
		if _, both := b[name]; !both {
			into[name] = struct{}{}
		}
	}
}

// beyond names the keys of an application beyond its maxKeys. An application that sets none costs one look-up.
func (p *Publisher) beyond(ctx context.Context, name types.NamespacedName) names {
	var app v1alpha1.Application
	if !p.get(ctx, name, &app) || app.Spec.MaxKeys == nil {
		return nil
	}
	keys, err := keysInLine(ctx, p.Cache, name)
	if err != nil {
		p.Log.Error(err, "could not find out which keys are in force", "application", name.String())
		return p.crowdedOut[name] // as it was
	}
	// A key that is published keeps its place until the status of another of its second says otherwise.
	out := without(places(keys, func(k *v1alpha1.APIKey) bool {
		_, published := p.published[types.NamespacedName{Namespace: k.Namespace, Name: k.Name}]
		return published
	}), *app.Spec.MaxKeys)
	all := make(names, len(out))
	for key := range out {
		all[types.NamespacedName{Namespace: name.Namespace, Name: key}] = struct{}{}
	}
	return all
}

// placeBatch puts those that have lost their place among the batch's revocations, and those that have gained one among its keys.
func (p *Publisher) placeBatch(ctx context.Context, b *batch) {
	lost, gained := p.place(ctx, b.urgentApps, b.apps, b.lines)
	maps.Copy(b.urgentKeys, lost)
	maps.Copy(b.keys, gained)
}

// isCrowdedOut reports whether the application's maxKeys keeps the candidate from being published.
func (p *Publisher) isCrowdedOut(name types.NamespacedName, c candidate) bool {
	_, out := p.crowdedOut[c.application][name]
	return out
}
