package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	"github.com/latchkey-dev/latchkey/test/stack"
)

const (
	namespace = "bench"
	writers   = 16
	patience  = 15 * time.Minute
)

type measurer struct {
	stack   *stack.Stack
	rounds  int
	watcher client.WithWatch
	filled  []throughput
}

type throughput struct {
	keys    int
	created time.Duration
	settled time.Duration
}

func (m *measurer) prepare(ctx context.Context) error {
	c, err := client.NewWithWatch(m.stack.ControlPlane.Config(), client.Options{Scheme: m.stack.Client.Scheme()})
	if err != nil {
		return fmt.Errorf("make client: %w", err)
	}
	m.watcher = c
	for _, obj := range []client.Object{
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}},
		&v1alpha1.Application{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "shop"}, Spec: v1alpha1.ApplicationSpec{DisplayName: "Shop"}},
	} {
		if err := c.Create(ctx, obj); err != nil {
			return fmt.Errorf("create %s: %w", obj.GetName(), err)
		}
	}
	return nil
}

func newKey(name string) *v1alpha1.APIKey {
	return &v1alpha1.APIKey{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec: v1alpha1.APIKeySpec{
			ApplicationRef: v1alpha1.ApplicationReference{Name: "shop"}, DisplayName: "Bench",
			Capabilities: []v1alpha1.Capability{v1alpha1.CapabilityTextGeneration},
			Models:       v1alpha1.ModelScope{Access: v1alpha1.ModelAccessAll},
		},
	}
}

// fill brings the number of keys up, and notes how long the controllers took.
func (m *measurer) fill(ctx context.Context, from, to int) error {
	if to <= from {
		return nil
	}
	started := time.Now()
	var next, failed atomic.Int64
	next.Store(int64(from))
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for {
				i := next.Add(1) - 1
				if i >= int64(to) || ctx.Err() != nil {
					return
				}
				if err := m.stack.Client.Create(ctx, newKey(fmt.Sprintf("filler-%06d", i))); err != nil {
					failed.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if n := failed.Load(); n > 0 {
		return fmt.Errorf("create keys: %d failed", n)
	}
	created := time.Since(started)
	if err := m.awaitEnforced(ctx, to); err != nil {
		return err
	}
	m.filled = append(m.filled, throughput{to - from, created, time.Since(started)})
	return nil
}

// awaitEnforced follows the keys by a watch, which costs the API server less than listing them again and again, until so many are Enforced.
func (m *measurer) awaitEnforced(ctx context.Context, count int) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	enforced := map[string]bool{}
	for {
		events, err := m.watcher.Watch(ctx, &v1alpha1.APIKeyList{}, client.InNamespace(namespace)) // begins with all there are
		if err != nil {
			return fmt.Errorf("watch keys: %w", err)
		}
		for e := range events.ResultChan() {
			if k, ok := e.Object.(*v1alpha1.APIKey); ok && meta.IsStatusConditionTrue(k.Status.Conditions, v1alpha1.ConditionEnforced) {
				enforced[k.Name] = true
			}
			if len(enforced) >= count {
				events.Stop()
				return nil
			}
		}
		if ctx.Err() != nil {
			return fmt.Errorf("wait until %d keys are enforced: %d are: %w", count, len(enforced), ctx.Err())
		}
	}
}

// effects measures each kind of edit, one at a time.
func (m *measurer) effects(ctx context.Context, present int) error {
	durations := map[string][]time.Duration{}
	note := func(edit string, d time.Duration) { durations[edit] = append(durations[edit], d) }
	for i := range m.rounds {
		k := newKey(fmt.Sprintf("probe-%d-%d", present, i))
		plaintext, answered, err := m.create(ctx, k)
		if err != nil {
			return err
		}
		if err := m.until(ctx, plaintext, http.StatusOK); err != nil {
			return err
		}
		note("new key", time.Since(answered))

		before := time.Now()
		if _, err := m.ask(ctx, plaintext); err != nil {
			return err
		}
		note("request", time.Since(before))

		for _, edit := range []struct {
			name, patch string
			want        int
		}{
			{"disable", `{"spec":{"state":"Disabled"}}`, http.StatusUnauthorized},
			{"re-enable", `{"spec":{"state":"Enabled"}}`, http.StatusOK},
		} {
			if err := m.stack.Client.Patch(ctx, k, client.RawPatch(types.MergePatchType, []byte(edit.patch))); err != nil {
				return fmt.Errorf("patch key: %w", err)
			}
			answered := time.Now()
			if err := m.until(ctx, plaintext, edit.want); err != nil {
				return err
			}
			note(edit.name, time.Since(answered))
		}
		if err := m.stack.Client.Delete(ctx, k); err != nil {
			return fmt.Errorf("delete key: %w", err)
		}
		answered = time.Now()
		if err := m.until(ctx, plaintext, http.StatusUnauthorized); err != nil {
			return err
		}
		note("delete", time.Since(answered))
	}
	request := percentile(durations["request"], 50)
	for _, edit := range []string{"request", "new key", "disable", "re-enable", "delete"} {
		d := durations[edit]
		fmt.Printf("| %d | %s | %.1f | %.1f | %.1f | %.1f |\n", present, edit,
			ms(percentile(d, 50)), ms(percentile(d, 99)), ms(slices.Max(d)), float64(percentile(d, 50))/float64(request))
	}
	return nil
}

// create creates a key and reads its plaintext as soon as it is there.
func (m *measurer) create(ctx context.Context, k *v1alpha1.APIKey) (plaintext string, answered time.Time, err error) {
	secrets, err := m.watcher.Watch(ctx, &corev1.SecretList{}, client.InNamespace(namespace), client.MatchingLabels{v1alpha1.LabelAPIKey: k.Name})
	if err != nil {
		return "", time.Time{}, fmt.Errorf("watch secrets: %w", err)
	}
	defer secrets.Stop()
	if err := m.stack.Client.Create(ctx, k); err != nil {
		return "", time.Time{}, fmt.Errorf("create key: %w", err)
	}
	answered = time.Now()
	deadline := time.After(time.Minute)
	for {
		select {
		case <-ctx.Done():
			return "", time.Time{}, ctx.Err()
		case <-deadline:
			return "", time.Time{}, errors.New("no key was minted within a minute")
		case e, ok := <-secrets.ResultChan():
			if !ok {
				return "", time.Time{}, errors.New("the watch of secrets ended")
			}
			if secret, isSecret := e.Object.(*corev1.Secret); isSecret && e.Type == watch.Added {
				return string(secret.Data[v1alpha1.SecretDataAPIKey]), answered, nil
			}
		}
	}
}

// until asks without a pause until the answer has the status.
func (m *measurer) until(ctx context.Context, key string, status int) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		got, err := m.ask(ctx, key)
		if err != nil {
			return fmt.Errorf("wait for a request to be answered %d: %w", status, err)
		}
		if got == status {
			return nil
		}
	}
}

// ask lists models: a request that Envoy and the enforcer decide, and no provider takes part in.
func (m *measurer) ask(ctx context.Context, key string) (int, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, m.stack.GatewayURL()+"/v1/models", http.NoBody)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Authorization", "Bearer "+key)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, err
}

func (m *measurer) printThroughput() {
	fmt.Printf("\n## Creating keys\n\n%d writers; \"settled\" is when all are Enforced.\n\n| keys | created after, s | settled after, s | keys a second |\n|---|---|---|---|\n", writers)
	for _, f := range m.filled {
		fmt.Printf("| %d | %.1f | %.1f | %.0f |\n", f.keys, f.created.Seconds(), f.settled.Seconds(), float64(f.keys)/f.settled.Seconds())
	}
}

func percentile(d []time.Duration, p int) time.Duration {
	sorted := slices.Clone(d)
	slices.Sort(sorted)
	return sorted[min(len(sorted)*p/100, len(sorted)-1)]
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
