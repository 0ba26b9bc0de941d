package enforce

import (
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/latchkey-dev/latchkey/internal/policy"
)

// Table is the policy set in force. It is safe for concurrent use; looking up costs no allocation.
//
// Two keys with one hash, which the control plane does not publish, do no harm: the first to come is found, and the next in line once that
// one is gone.
type Table struct {
	mu     sync.RWMutex
	filled bool
	set    *policySet
}

// policySet is what a Table holds. Whoever changes it holds the table's mu, or is the only one to know it.
type policySet struct {
	system  policy.System
	zone    *time.Location                 // of the system's budgets
	apps    map[string]*policy.Application // by ID
	keys    map[string]*policy.Key         // by UID
	byHash  map[policy.KeyHash]*policy.Key
	waiting map[policy.KeyHash][]string // UIDs of keys that share a hash with the one in byHash, in the order in which they came
	models  map[string]*policy.Model
	sorted  []*policy.Model // by name; replaced, never changed
}

func newPolicySet(keys int) *policySet {
	return &policySet{
		system:  policy.DefaultSystem(),
		zone:    time.UTC,
		apps:    map[string]*policy.Application{},
		keys:    make(map[string]*policy.Key, keys),
		byHash:  make(map[policy.KeyHash]*policy.Key, keys),
		waiting: map[policy.KeyHash][]string{},
		models:  map[string]*policy.Model{},
	}
}

// NewTable makes an empty table: nobody is let through before it is filled.
func NewTable() *Table { return &Table{set: newPolicySet(0)} }

// Replace puts a whole set in place of what there is, in one step. Decisions go on by the old set while the new one is built. It never fails.
func (t *Table) Replace(all *policy.Delta) error {
	set := newPolicySet(len(all.Keys))
	set.apply(all)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.set, t.filled = set, true
	return nil
}

// Apply changes what there is, in one step: removals first. It never fails.
func (t *Table) Apply(change *policy.Delta) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.set.apply(change)
	return nil
}

func (s *policySet) apply(d *policy.Delta) {
	for _, ref := range d.Removed {
		switch ref.Kind {
		case policy.KindSystem:
			s.system, s.zone = policy.DefaultSystem(), time.UTC
		case policy.KindApplication:
			delete(s.apps, ref.Name)
		case policy.KindKey:
			s.dropHashes(s.keys[ref.Name], nil)
			delete(s.keys, ref.Name)
		case policy.KindModel:
			delete(s.models, ref.Name)
			s.sorted = nil
		}
	}
	if d.System != nil {
		s.system, s.zone = *d.System, zoneOf(d.System.TimeZone)
	}
	for _, app := range d.Applications {
		s.apps[app.ID()] = app
	}
	for _, m := range d.Models {
		s.models[m.Name] = m
		s.sorted = nil
	}
	for _, k := range d.Keys {
		s.putKey(k)
	}
	if s.sorted == nil {
		s.sorted = slices.SortedFunc(maps.Values(s.models), func(a, b *policy.Model) int { return strings.Compare(a.Name, b.Name) })
	}
}

func (s *policySet) putKey(k *policy.Key) {
	s.dropHashes(s.keys[k.UID], k)
	s.keys[k.UID] = k
	for _, c := range k.Credentials {
		switch holder := s.byHash[c.Hash]; {
		case holder == nil || holder.UID == k.UID:
			s.byHash[c.Hash] = k
		case !slices.Contains(s.waiting[c.Hash], k.UID):
			s.waiting[c.Hash] = append(s.waiting[c.Hash], k.UID)
		}
	}
}

// dropHashes takes a key's hashes out, but those that its successor has too.
func (s *policySet) dropHashes(old, successor *policy.Key) {
	if old == nil {
		return
	}
	for _, c := range old.Credentials {
		if successor != nil && slices.ContainsFunc(successor.Credentials, func(n policy.Credential) bool { return n.Hash == c.Hash }) {
			continue
		}
		queue := slices.DeleteFunc(s.waiting[c.Hash], func(uid string) bool { return uid == old.UID })
		if holder := s.byHash[c.Hash]; holder != nil && holder.UID == old.UID {
			delete(s.byHash, c.Hash)
			if len(queue) > 0 {
				s.byHash[c.Hash] = s.keys[queue[0]]
				queue = queue[1:]
			}
		}
		if len(queue) == 0 {
			delete(s.waiting, c.Hash)
		} else {
			s.waiting[c.Hash] = queue
		}
	}
}

// find looks a key up with its application, which is nil where the table has none.
func (t *Table) find(hash policy.KeyHash) (k *policy.Key, app *policy.Application, filled bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if k = t.set.byHash[hash]; k != nil {
		app = t.set.applicationOf(k)
	}
	return k, app, t.filled
}

func (s *policySet) applicationOf(k *policy.Key) *policy.Application {
	// The application's ID, put together without allocating.
	var buf [160]byte
	id := append(append(append(buf[:0], k.Namespace...), '/'), k.Application...)
	return s.apps[string(id)]
}

// zoneOf is the time zone of that name. The control plane sends none that it does not know itself; should this machine's database lack it,
// the budgets' days are UTC's.
func zoneOf(name string) *time.Location {
	zone, err := time.LoadLocation(name)
	if err != nil {
		return time.UTC
	}
	return zone
}

// systemPolicy is what applies to all keys, and the time zone of the budgets.
func (t *Table) systemPolicy() (policy.System, *time.Location) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.set.system, t.set.zone
}

func (t *Table) model(name string) *policy.Model {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.set.models[name]
}

// allModels is sorted by name, and must not be changed.
func (t *Table) allModels() []*policy.Model {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.set.sorted
}

// Counts tells how much the table holds.
func (t *Table) Counts() (keys, applications, models int) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.set.keys), len(t.set.apps), len(t.set.models)
}
