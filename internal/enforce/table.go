package enforce

import (
	"slices"
	"sync"

	"github.com/latchkey-dev/latchkey/internal/policy"
)

// Table is the policy set in force. It is safe for concurrent use; looking up costs no allocation.
type Table struct {
	mu      sync.RWMutex
	filled  bool
	system  policy.System
	apps    map[string]*policy.Application // by ID
	keys    map[string]*policy.Key         // by UID
	byHash  map[policy.KeyHash]*policy.Key
	waiting map[policy.KeyHash][]string // UIDs of keys that share a hash with the one in byHash, in the order in which they came
	models  map[string]*policy.Model
	sorted  []*policy.Model // by name; replaced, never changed
}

// NewTable makes an empty table: nobody is let through before it is filled.
func NewTable() *Table {
	t := &Table{}
	t.clear()
	return t
}

func (t *Table) clear() {
	t.system = policy.DefaultSystem()
	t.apps = map[string]*policy.Application{}
	t.keys = map[string]*policy.Key{}
	t.byHash = map[policy.KeyHash]*policy.Key{}
	t.waiting = map[policy.KeyHash][]string{}
	t.models = map[string]*policy.Model{}
	t.sorted = nil
}

// Replace puts a whole set in place of what there is, in one step.
func (t *Table) Replace(all *policy.Delta) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.clear()
	t.apply(all)
	t.filled = true
	return nil
}

// Apply changes what there is, in one step.
func (t *Table) Apply(change *policy.Delta) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.apply(change)
	return nil
}

// apply holds mu.
func (t *Table) apply(d *policy.Delta) {
	for _, ref := range d.Removed {
		switch ref.Kind {
		case policy.KindSystem:
			t.system = policy.DefaultSystem()
		case policy.KindApplication:
			delete(t.apps, ref.Name)
		case policy.KindKey:
			t.dropHashes(t.keys[ref.Name], nil)
			delete(t.keys, ref.Name)
		case policy.KindModel:
			delete(t.models, ref.Name)
			t.sorted = nil
		}
	}
	if d.System != nil {
		t.system = *d.System
	}
	for _, app := range d.Applications {
		t.apps[app.ID()] = app
	}
	for _, m := range d.Models {
		t.models[m.Name] = m
		t.sorted = nil
	}
	for _, k := range d.Keys {
		t.dropHashes(t.keys[k.UID], k)
		t.keys[k.UID] = k
		for _, c := range k.Credentials {
			switch holder := t.byHash[c.Hash]; {
			case holder == nil || holder.UID == k.UID:
				t.byHash[c.Hash] = k
			case !slices.Contains(t.waiting[c.Hash], k.UID):
				t.waiting[c.Hash] = append(t.waiting[c.Hash], k.UID)
			}
		}
	}
	if t.sorted == nil && len(t.models) > 0 {
		t.sorted = make([]*policy.Model, 0, len(t.models))
		for _, m := range t.models {
			t.sorted = append(t.sorted, m)
		}
		slices.SortFunc(t.sorted, func(a, b *policy.Model) int {
			if a.Name < b.Name {
				return -1
			}
			return 1
		})
	}
}

// dropHashes takes a key's hashes out, but those that its successor has too. It holds mu.
func (t *Table) dropHashes(old, successor *policy.Key) {
	if old == nil {
		return
	}
	for _, c := range old.Credentials {
		if successor != nil && slices.ContainsFunc(successor.Credentials, func(s policy.Credential) bool { return s.Hash == c.Hash }) {
			continue
		}
		queue := slices.DeleteFunc(t.waiting[c.Hash], func(uid string) bool { return uid == old.UID })
		if holder := t.byHash[c.Hash]; holder != nil && holder.UID == old.UID {
			delete(t.byHash, c.Hash)
			if len(queue) > 0 {
				t.byHash[c.Hash] = t.keys[queue[0]]
				queue = queue[1:]
			}
		}
		if len(queue) == 0 {
			delete(t.waiting, c.Hash)
		} else {
			t.waiting[c.Hash] = queue
		}
	}
}

// find looks a key up with its application, which is nil where the table has none.
func (t *Table) find(hash policy.KeyHash) (k *policy.Key, app *policy.Application, filled bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	k = t.byHash[hash]
	if k != nil {
		app = t.application(k)
	}
	return k, app, t.filled
}

func (t *Table) application(k *policy.Key) *policy.Application {
	// An application's ID, put together without allocating.
	var buf [160]byte
	id := append(append(append(buf[:0], k.Namespace...), '/'), k.Application...)
	return t.apps[string(id)]
}

func (t *Table) model(name string) *policy.Model {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.models[name]
}

// allModels is sorted by name, and must not be changed.
func (t *Table) allModels() []*policy.Model {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.sorted
}

// Counts tells how much the table holds.
func (t *Table) Counts() (keys, applications, models int) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.keys), len(t.apps), len(t.models)
}
