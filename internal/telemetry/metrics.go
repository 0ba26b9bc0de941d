package telemetry

import (
	"context"
	"fmt"
	"slices"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	semconv "go.opentelemetry.io/otel/semconv/v1.41.0"
	"go.opentelemetry.io/otel/semconv/v1.41.0/genaiconv"

	"github.com/latchkey-dev/latchkey/internal/enforce"
	"github.com/latchkey-dev/latchkey/internal/money"
)

// instruments are the metrics.
type instruments struct {
	duration  genaiconv.ServerRequestDuration
	firstText genaiconv.ServerTimeToFirstToken
	tokens    genaiconv.ClientTokenUsage
	cost      metric.Float64Counter
	refusals  metric.Int64Counter
}

// newInstruments makes the metrics, with the bounds of buckets that the conventions advise.
func newInstruments(m metric.Meter) (*instruments, error) {
	i := &instruments{}
	var err error
	if i.duration, err = genaiconv.NewServerRequestDuration(m, metric.WithExplicitBucketBoundaries(
		0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)); err != nil {
		return nil, fmt.Errorf("make %s: %w", i.duration.Name(), err)
	}
	if i.firstText, err = genaiconv.NewServerTimeToFirstToken(m, metric.WithExplicitBucketBoundaries(
		0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)); err != nil {
		return nil, fmt.Errorf("make %s: %w", i.firstText.Name(), err)
	}
	if i.tokens, err = genaiconv.NewClientTokenUsage(m, metric.WithExplicitBucketBoundaries(
		1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864)); err != nil {
		return nil, fmt.Errorf("make %s: %w", i.tokens.Name(), err)
	}
	if i.cost, err = m.Float64Counter("latchkey.cost", metric.WithUnit("{currency}"),
		metric.WithDescription("What requests were charged, estimates included, in the currency of latchkey.currency.")); err != nil {
		return nil, fmt.Errorf("make latchkey.cost: %w", err)
	}
	if i.refusals, err = m.Int64Counter("latchkey.refusals", metric.WithUnit("{request}"),
		metric.WithDescription("Requests that were refused, and never got to a provider.")); err != nil {
		return nil, fmt.Errorf("make latchkey.refusals: %w", err)
	}
	return i, nil
}

// refused counts a request that was not let through. It has no duration among those of requests that a model worked on.
func (i *instruments) refused(ctx context.Context, d *enforce.Decision) {
	a := common(d, 5)
	a.text(keyRefusalReason, d.Reason)
	i.refusals.Add(ctx, 1, metric.WithAttributes(a...))
}

// ended measures a request that was let through.
func (i *instruments) ended(ctx context.Context, m *enforce.Metering, answeredBy string) {
	a := common(&m.Decision, 6)
	if m.Cost > 0 {
		i.cost.Add(ctx, float64(m.Cost)/float64(money.Unit), metric.WithAttributes(append(slices.Clip(a), keyCurrency.String(m.Currency))...))
	}
	a.text(semconv.GenAIResponseModelKey, answeredBy)
	// The conventions have tokens told only where the provider has told them.
	if !m.Usage.Estimated {
		i.used(ctx, m.Usage.InputTokens, a, semconv.GenAITokenTypeInput)
		i.used(ctx, m.Usage.OutputTokens, a, semconv.GenAITokenTypeOutput)
	}
	failed := errorOf(m)
	if failed == "" && m.FirstText > 0 {
		i.firstText.RecordSet(ctx, m.FirstText.Seconds(), attribute.NewSet(slices.Clone(a)...))
	}
	if m.Ending == enforce.EndingNotWatched {
		return // it goes on
	}
	a.text(semconv.ErrorTypeKey, failed)
	i.duration.RecordSet(ctx, m.Took.Seconds(), attribute.NewSet(a...))
}

func (i *instruments) used(ctx context.Context, tokens int64, a attributes, kind attribute.KeyValue) {
	if tokens > 0 {
		i.tokens.RecordSet(ctx, tokens, attribute.NewSet(append(slices.Clip(a), kind)...))
	}
}
