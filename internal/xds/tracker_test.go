package xds

import (
	"fmt"
	"strings"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/go-logr/logr"
	"github.com/go-logr/logr/funcr"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"

	"github.com/latchkey-dev/latchkey/internal/keyset"
)

func newTestTracker(t *testing.T, log logr.Logger) *Tracker {
	t.Helper()
	tracker, err := newTracker(log, prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	return tracker
}

func response(typeURL, nonce, version string, resources int, removed ...string) *discovery.DeltaDiscoveryResponse {
	r := &discovery.DeltaDiscoveryResponse{TypeUrl: typeURL, Nonce: nonce, SystemVersionInfo: version, RemovedResources: removed}
	for i := range resources {
		r.Resources = append(r.Resources, &discovery.Resource{Name: fmt.Sprint(i)})
	}
	return r
}

func answer(typeURL, nonce, refusal string) *discovery.DeltaDiscoveryRequest {
	r := &discovery.DeltaDiscoveryRequest{TypeUrl: typeURL, ResponseNonce: nonce}
	if refusal != "" {
		r.ErrorDetail = &rpcstatus.Status{Message: refusal}
	}
	return r
}

func TestRefusalsAreLoggedOnce(t *testing.T) {
	t.Parallel()
	var lines []string
	tracker := newTestTracker(t, funcr.New(func(_, args string) {
		if strings.Contains(args, "refused") {
			lines = append(lines, args)
		}
	}, funcr.Options{}))
	tracker.opened(1, roleEnvoy, "peer")
	for i := range 3 * maxLogged {
		nonce := fmt.Sprint(i)
		tracker.sent(1, response(resource.ClusterType, nonce, "", 1))
		tracker.requested(1, answer(resource.ClusterType, nonce, []string{"first", "second", ""}[i%3]))
	}
	if len(lines) != 2 {
		t.Fatalf("%d lines, want one for each of two details: %v", len(lines), lines)
	}
	if got := testutil.ToFloat64(tracker.metrics.rejections.WithLabelValues(resource.ClusterType)); got != 2*maxLogged {
		t.Fatalf("%v refusals were counted, want %d", got, 2*maxLogged)
	}
	for i := range 3 * maxLogged {
		tracker.sent(1, response(resource.ClusterType, "n", "", 1))
		tracker.requested(1, answer(resource.ClusterType, "n", fmt.Sprint("detail ", i)))
	}
	if len(lines) != maxLogged {
		t.Fatalf("%d lines of one stream, want at most %d", len(lines), maxLogged)
	}
}

func TestRejectionsNameAtMostTwenty(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		sent *discovery.DeltaDiscoveryResponse
		want int
		last string
	}{
		"few":                     {response(resource.ClusterType, "1", "", 2, "gone"), 3, "gone"},
		"resources before others": {response(resource.ClusterType, "1", "", 30, "gone"), 20, "19"},
		"removed ones, too":       {response(resource.ClusterType, "1", "", 19, "gone", "left out"), 20, "gone"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tracker := newTestTracker(t, logr.Discard())
			tracker.opened(1, roleEnvoy, "peer")
			tracker.sent(1, tc.sent)
			tracker.requested(1, answer(resource.ClusterType, "1", "no"))
			got := tracker.Snapshot().Rejections[0].Resources
			if len(got) != tc.want || got[len(got)-1] != tc.last {
				t.Fatalf("it names %v", got)
			}
		})
	}
}

func TestPositionGoesByTheNonce(t *testing.T) {
	t.Parallel()
	tracker := newTestTracker(t, logr.Discard())
	tracker.opened(1, roleEnforcer, "peer")
	position := func(want uint64) {
		t.Helper()
		if got := tracker.Snapshot().Position; got != want {
			t.Fatalf("position %d, want %d", got, want)
		}
	}
	tracker.sent(1, response(keyset.TypeURL, "1", "7", 1))
	position(0)
	tracker.requested(1, answer(keyset.TypeURL, "", ""))
	tracker.requested(1, answer(keyset.TypeURL, "2", ""))
	position(0)
	tracker.requested(1, answer(keyset.TypeURL, "1", ""))
	position(7)
	tracker.sent(1, response(keyset.TypeURL, "2", "8", 1))
	tracker.requested(1, answer(keyset.TypeURL, "2", "no"))
	tracker.sent(1, response(keyset.TypeURL, "3", "7", 1))
	tracker.requested(1, answer(keyset.TypeURL, "3", ""))
	position(7)
	if n := len(tracker.Snapshot().Rejections); n != 1 {
		t.Fatalf("%d rejections stand, want that of what is still refused", n)
	}
	tracker.sent(1, response(keyset.TypeURL, "4", "9", 1))
	tracker.requested(1, answer(keyset.TypeURL, "4", ""))
	position(9)
	if diff := cmp.Diff(Acks{Enforcers: 1, Synced: 1, Position: 9}, tracker.Snapshot()); diff != "" {
		t.Fatal(diff)
	}
}

func TestResponsesThatNobodyAnswersAreForgotten(t *testing.T) {
	t.Parallel()
	tracker := newTestTracker(t, logr.Discard())
	tracker.opened(1, roleEnvoy, "peer")
	for i := range 10 * maxPending {
		tracker.sent(1, response(resource.ClusterType, fmt.Sprint(i), "", 1))
	}
	if got := len(tracker.streams[1].pending[resource.ClusterType]); got != maxPending {
		t.Fatalf("%d responses are remembered, want %d", got, maxPending)
	}
	tracker.closed(1)
	tracker.sent(1, response(resource.ClusterType, "late", "", 1))
	tracker.requested(1, answer(resource.ClusterType, "late", "no"))
	if diff := cmp.Diff(Acks{}, tracker.Snapshot()); diff != "" {
		t.Fatal(diff)
	}
}

func TestTheSameMetricsTwiceAreAnError(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	if _, err := newTracker(logr.Discard(), reg); err != nil {
		t.Fatal(err)
	}
	if _, err := newTracker(logr.Discard(), reg); err == nil {
		t.Fatal("no error")
	}
}

func TestServerWithoutTLSIsRefused(t *testing.T) {
	t.Parallel()
	if _, err := New(Config{Metrics: prometheus.NewRegistry()}); err == nil || !strings.Contains(err.Error(), "mutual TLS") {
		t.Fatalf("error %v", err)
	}
}
