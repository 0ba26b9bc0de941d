package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	"github.com/latchkey-dev/latchkey/test/stack"
)

const meteredModel = "bench-model"

// prepareMetering sets up a provider, a model with prices, and limits that the measurements do not meet.
func (m *measurer) prepareMetering(ctx context.Context) error {
	limits := func(limit int64) *v1alpha1.LimitRange {
		return &v1alpha1.LimitRange{Default: new(limit), Max: new(limit)}
	}
	for _, obj := range []client.Object{
		&v1alpha1.SystemPolicy{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.SystemPolicyName}, Spec: v1alpha1.SystemPolicySpec{
			RateLimits: &v1alpha1.SystemRateLimits{RequestsPerMinute: limits(100_000_000), TokensPerMinute: limits(100_000_000_000)},
		}},
		&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: stack.Namespace, Name: "openai"}, StringData: map[string]string{"apiKey": stack.OpenAICredential}},
		&v1alpha1.Provider{ObjectMeta: metav1.ObjectMeta{Name: "openai"}, Spec: v1alpha1.ProviderSpec{
			Format: v1alpha1.ProviderFormatOpenAI, URL: m.stack.ProviderURL() + "/v1",
			Credential: &v1alpha1.ProviderCredential{SecretRef: v1alpha1.SecretKeyReference{Name: "openai", Key: "apiKey"}},
		}},
		&v1alpha1.Model{ObjectMeta: metav1.ObjectMeta{Name: meteredModel}, Spec: v1alpha1.ModelSpec{
			ProviderRef: v1alpha1.ProviderReference{Name: "openai"}, Capabilities: []v1alpha1.Capability{v1alpha1.CapabilityTextGeneration},
			Prices: &v1alpha1.Prices{PerMillionTokens: &v1alpha1.TokenPrices{Input: new(v1alpha1.Money("2.5")), Output: new(v1alpha1.Money("10"))}},
		}},
	} {
		if err := m.watcher.Create(ctx, obj); err != nil {
			return fmt.Errorf("create %s: %w", obj.GetName(), err)
		}
	}
	return nil
}

// metering measures what a request takes through the gateway, reserved, metered and settled, beside what it takes straight to the provider.
// The two alternate, so that whatever else the machine does meets both.
func (m *measurer) metering(ctx context.Context) error {
	k := newKey("metered")
	k.Spec.Budgets = &v1alpha1.Budgets{Daily: new(v1alpha1.Money("1000000"))}
	plaintext, _, err := m.create(ctx, k)
	if err != nil {
		return err
	}
	through := way{m.stack.GatewayURL() + "/v1/chat/completions", plaintext}
	straight := way{m.stack.ProviderURL() + "/v1/chat/completions", stack.OpenAICredential}
	ask := fmt.Sprintf(`{"model":%q,"messages":[{"role":"user","content":"sim:chunks=20 hello"}]`, meteredModel)
	whole, streamed := ask+"}", ask+`,"stream":true}`
	ready := time.Now().Add(time.Minute)
	for {
		if _, _, err = through.call(ctx, whole); err == nil {
			break
		}
		if time.Now().After(ready) {
			return fmt.Errorf("wait for the model: %w", err)
		}
	}
	fmt.Print("\n## What counting costs a request\n\nMilliseconds, one caller, straight to the simulated provider and through the gateway in turn. Through the gateway a request is parsed and decided, " +
		"its reservation is written to disk before it is forwarded, its answer is read, and its cost is written to disk before the answer ends.\n\n" +
		"| request | measured | straight p50 | p99 | through p50 | p99 | difference p50 |\n|---|---|---|---|---|---|---|\n")
	for _, kind := range []struct{ name, body string }{{"JSON", whole}, {"stream of 20 pieces", streamed}} {
		var first, last [2][]time.Duration
		for range m.rounds * 10 {
			for i, w := range []way{straight, through} {
				f, l, err := w.call(ctx, kind.body)
				if err != nil {
					return err
				}
				first[i], last[i] = append(first[i], f), append(last[i], l)
			}
		}
		for _, row := range []struct {
			what string
			d    [2][]time.Duration
		}{{"first byte", first}, {"last byte", last}} {
			fmt.Printf("| %s | %s | %.2f | %.2f | %.2f | %.2f | %.2f |\n", kind.name, row.what, ms(percentile(row.d[0], 50)), ms(percentile(row.d[0], 99)),
				ms(percentile(row.d[1], 50)), ms(percentile(row.d[1], 99)), ms(percentile(row.d[1], 50))-ms(percentile(row.d[0], 50)))
		}
	}
	fmt.Print("\n## Requests a second with 64 callers\n\n| way | JSON requests a second |\n|---|---|\n")
	for _, w := range []struct {
		name string
		way  way
	}{{"straight to the simulated provider", straight}, {"through the gateway", through}} {
		rate, err := w.way.throughput(ctx, whole, 5*time.Second)
		if err != nil {
			return err
		}
		fmt.Printf("| %s | %.0f |\n", w.name, rate)
	}
	return nil
}

// way is where requests go, and with which credential.
type way struct{ url, credential string }

var busyClient = &http.Client{Transport: &http.Transport{MaxIdleConns: 128, MaxIdleConnsPerHost: 128}}

// call returns the time until the answer's first byte and until its last.
func (w way) call(ctx context.Context, body string) (first, last time.Duration, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url, strings.NewReader(body))
	if err != nil {
		return 0, 0, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+w.credential)
	started := time.Now()
	resp, err := busyClient.Do(req)
	if err != nil {
		return 0, 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		answer, _ := io.ReadAll(io.LimitReader(resp.Body, 512))
		return 0, 0, fmt.Errorf("%s: %s", resp.Status, answer)
	}
	r := bufio.NewReader(resp.Body)
	if _, err := r.ReadByte(); err != nil {
		return 0, 0, err
	}
	first = time.Since(started)
	_, err = io.Copy(io.Discard, r)
	return first, time.Since(started), err
}

func (w way) throughput(ctx context.Context, body string, during time.Duration) (float64, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var done atomic.Int64
	started := time.Now()
	var callers sync.WaitGroup
	for range 64 {
		callers.Go(func() {
			for time.Since(started) < during && ctx.Err() == nil {
				if _, _, err := w.call(ctx, body); err != nil {
					cancel(err)
					return
				}
				done.Add(1)
			}
		})
	}
	callers.Wait()
	return float64(done.Load()) / time.Since(started).Seconds(), context.Cause(ctx)
}
