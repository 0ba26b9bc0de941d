package enforce

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/latchkey-dev/latchkey/internal/policy"
)

func hash(n int) policy.KeyHash {
	return policy.KeyHash{byte(n), byte(n >> 8), byte(n >> 16), byte(n >> 24)}
}

// naiveTable is what a Table does, in the plainest words: a list of claims to hashes, in the order in which they were made.
type naiveTable struct {
	claims []claim
	keys   map[string]*policy.Key
	apps   map[string]*policy.Application
	models map[string]*policy.Model
}

func newNaiveTable() *naiveTable {
	return &naiveTable{keys: map[string]*policy.Key{}, apps: map[string]*policy.Application{}, models: map[string]*policy.Model{}}
}

type claim struct {
	hash policy.KeyHash
	uid  string
}

func (n *naiveTable) apply(d *policy.Delta) {
	for _, ref := range d.Removed {
		switch ref.Kind {
		case policy.KindKey:
			n.claims = slices.DeleteFunc(n.claims, func(c claim) bool { return c.uid == ref.Name })
			delete(n.keys, ref.Name)
		case policy.KindApplication:
			delete(n.apps, ref.Name)
		case policy.KindModel:
			delete(n.models, ref.Name)
		case policy.KindSystem:
		}
	}
	for _, k := range d.Keys {
		n.keys[k.UID] = k
		n.claims = slices.DeleteFunc(n.claims, func(c claim) bool {
			return c.uid == k.UID && !slices.ContainsFunc(k.Credentials, func(cr policy.Credential) bool { return cr.Hash == c.hash })
		})
		for _, cr := range k.Credentials {
			if c := (claim{cr.Hash, k.UID}); !slices.Contains(n.claims, c) {
				n.claims = append(n.claims, c)
			}
		}
	}
	for _, a := range d.Applications {
		n.apps[a.ID()] = a
	}
	for _, m := range d.Models {
		n.models[m.Name] = m
	}
}

func (n *naiveTable) find(h policy.KeyHash) (*policy.Key, *policy.Application) {
	for _, c := range n.claims {
		if c.hash == h {
			k := n.keys[c.uid]
			return k, n.apps[k.Namespace+"/"+k.Application]
		}
	}
	return nil, nil
}

// TestTableAgainstNaive changes a small world at random, with many keys that share hashes, and compares after each change.
func TestTableAgainstNaive(t *testing.T) {
	t.Parallel()
	const uids, hashes, names = 5, 4, 3
	for seed := range uint64(300) {
		random := rand.New(rand.NewPCG(seed, 1))
		table := NewTable()
		naive := newNaiveTable()
		for step := range 60 {
			d := randomDelta(random, uids, hashes, names, step)
			if random.IntN(20) == 0 {
				d.Removed = nil
				naive = newNaiveTable()
				naive.apply(d)
				if err := table.Replace(d); err != nil {
					t.Fatal(err)
				}
			} else {
				naive.apply(d)
				if err := table.Apply(d); err != nil {
					t.Fatal(err)
				}
			}
			for h := range hashes {
				key, app, _ := table.find(hash(h))
				if wantKey, wantApp := naive.find(hash(h)); key != wantKey || app != wantApp {
					t.Fatalf("seed %d, step %d, hash %d: found %+v of %+v, want %+v of %+v", seed, step, h, key, app, wantKey, wantApp)
				}
			}
			var names []string
			for _, m := range table.allModels() {
				if table.model(m.Name) != m || naive.models[m.Name] != m {
					t.Fatalf("seed %d, step %d: model %s differs", seed, step, m.Name)
				}
				names = append(names, m.Name)
			}
			if diff := cmp.Diff(slices.Sorted(maps.Keys(naive.models)), names); diff != "" {
				t.Fatalf("seed %d, step %d: models (-want +got):\n%s", seed, step, diff)
			}
			keys, apps, models := table.Counts()
			if keys != len(naive.keys) || apps != len(naive.apps) || models != len(naive.models) {
				t.Fatalf("seed %d, step %d: counts %d, %d, %d", seed, step, keys, apps, models)
			}
		}
		for uid := range uids { // nothing is left behind once all keys are gone
			if err := table.Apply(&policy.Delta{Removed: []policy.Ref{{Kind: policy.KindKey, Name: fmt.Sprint(uid)}}}); err != nil {
				t.Fatal(err)
			}
		}
		if s := table.set; len(s.keys)+len(s.byHash)+len(s.waiting) != 0 {
			t.Fatalf("seed %d: %d keys, %d hashes, %d queues are left", seed, len(s.keys), len(s.byHash), len(s.waiting))
		}
	}
}

func randomDelta(random *rand.Rand, uids, hashes, names, step int) *policy.Delta {
	d := &policy.Delta{}
	for range random.IntN(4) {
		switch name := fmt.Sprint(random.IntN(names)); random.IntN(6) {
		case 0, 1:
			k := &policy.Key{UID: fmt.Sprint(random.IntN(uids)), Namespace: "team", Application: name, DisplayName: fmt.Sprint(step)}
			for range random.IntN(4) { // none, some, or one of them twice
				k.Credentials = append(k.Credentials, policy.Credential{Hash: hash(random.IntN(hashes))})
			}
			d.Keys = append(d.Keys, k)
		case 2:
			d.Removed = append(d.Removed, policy.Ref{Kind: policy.KindKey, Name: fmt.Sprint(random.IntN(uids))})
		case 3:
			d.Applications = append(d.Applications, &policy.Application{Namespace: "team", Name: name})
		case 4:
			d.Models = append(d.Models, &policy.Model{Name: name})
		case 5:
			d.Removed = append(d.Removed, policy.Ref{Kind: policy.KindModel, Name: name}, policy.Ref{Kind: policy.KindApplication, Name: "team/" + name})
		}
	}
	return d
}

func TestLookingUpCostsNoAllocation(t *testing.T) {
	w := newWorld(t)
	h := policy.KeyHash(mint(t, keyGood).Hash())
	if n := testing.AllocsPerRun(100, func() {
		if k, app, _ := w.table.find(h); k == nil || app == nil || w.table.model("gpt") == nil {
			t.Fatal("nothing found")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestChangesDuringDecisions never refuses the key that is always there, whatever happens to the others and to the set as a whole.
func TestChangesDuringDecisions(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	w := newWorld(t)
	k, app, _ := w.table.find(policy.KeyHash(mint(t, keyGood).Hash()))
	system, _ := w.table.systemPolicy()
	whole := &policy.Delta{System: &system, Keys: []*policy.Key{k}, Applications: []*policy.Application{app}, Models: w.table.allModels()}
	var stop atomic.Bool
	var changing, deciding sync.WaitGroup
	changing.Go(func() {
		for i := 0; !stop.Load(); i++ {
			other := &policy.Key{UID: "other", Namespace: "team", Application: "shop", Credentials: []policy.Credential{{Hash: hash(i % 3)}, k.Credentials[0]}}
			for _, change := range []*policy.Delta{{Keys: []*policy.Key{other, k}}, {Removed: []policy.Ref{{Kind: policy.KindKey, Name: "other"}}}} {
				if err := w.table.Apply(change); err != nil {
					t.Error(err)
				}
			}
			if err := w.table.Replace(whole); err != nil {
				t.Error(err)
			}
		}
	})
	for range 4 {
		deciding.Go(func() {
			for range 500 {
				x, answer := w.engine.Begin(w.head(call{key: keyGood, body: chat("gpt")}))
				if answer != nil {
					t.Errorf("refused: %s", answer.Body)
					return
				}
				if forward, answer := x.Body(t.Context(), []byte(chat("gpt"))); forward == nil {
					t.Errorf("refused: %s", answer.Body)
					return
				}
				w.table.Counts()
			}
		})
	}
	deciding.Wait()
	stop.Store(true)
	changing.Wait()
}
