package main

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/latchkey-dev/latchkey/internal/enforce"
	"github.com/latchkey-dev/latchkey/internal/telemetry"
)

// told is an observer that notes what it is told in a list that others share.
type told struct {
	name string
	all  *[]string
}

func (o told) note(what string) { *o.all = append(*o.all, o.name+" "+what) }

func (o told) Decided(d enforce.Decision) { o.note("decided " + d.RequestID) }
func (o told) Metered(m enforce.Metering) { o.note("metered " + m.RequestID) }
func (o told) LedgerFailed(err error)     { o.note(err.Error()) }

func TestObserversAreToldInTurn(t *testing.T) {
	t.Parallel()
	var all []string
	o := observers{told{"a", &all}, told{"b", &all}}
	d := enforce.Decision{RequestID: "1"}
	o.Decided(d)
	o.Metered(enforce.Metering{Decision: d})
	o.LedgerFailed(errors.New("failed"))
	if diff := cmp.Diff([]string{"a decided 1", "b decided 1", "a metered 1", "b metered 1", "a failed", "b failed"}, all); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestNothingStandsBetweenWithoutTelemetry(t *testing.T) {
	t.Parallel()
	var all []string
	first := told{"a", &all}
	if got := observedBy(first, nil); got != enforce.Observer(first) {
		t.Errorf("requests are observed by %T", got)
	}
	second := &telemetry.Telemetry{}
	if got, ok := observedBy(first, second).(observers); !ok || len(got) != 2 || got[0] != enforce.Observer(first) || got[1] != enforce.Observer(second) {
		t.Errorf("with telemetry, requests are observed by %v", got)
	}
}
