package keyset

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/stream/v3"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// res is a resource with made-up content.
func res(name, content string) Resource {
	return Resource{Name: name, Version: versionOf([]byte(content)), Body: []byte(content)}
}

func many(n, size int) []Resource {
	list := make([]Resource, 0, n)
	for i := range n {
		list = append(list, res(fmt.Sprintf("key/%06d", i), fmt.Sprintf("%0*d", size, i)))
	}
	return list
}

func wantNames(t *testing.T, k *testClient, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, namesOf(k.receive())); diff != "" {
		t.Fatalf("sent (-want +got):\n%s", diff)
	}
}

// wantInSync checks that the client holds what the cache does.
func wantInSync(t *testing.T, c *Cache, k *testClient) {
	t.Helper()
	want := map[string]string{}
	for name, e := range c.entries {
		want[name] = e.version
	}
	if !maps.Equal(want, k.held) {
		t.Fatalf("the client holds %d entries, want the cache's %d: %s", len(k.held), len(want), cmp.Diff(want, k.held))
	}
}

func TestFirstRequestGetsEverythingInPages(t *testing.T) {
	t.Parallel()
	c := NewCache(newManualClock())
	c.Update(many(6_000, 1_000), nil)
	k := connect(t, c, nil)
	got := map[string]bool{}
	for pages := 1; ; pages++ {
		r := k.receive()
		if size := sizeOf(r); size > pageBytes {
			t.Fatalf("page %d has %d bytes, more than %d", pages, size, pageBytes)
		}
		for _, one := range r.GetResources() {
			got[one.GetName()] = true
		}
		if got[SyncName] {
			if r.GetSystemVersionInfo() != "2" || pages != 4 {
				t.Fatalf("the marker came with position %s on page %d, want 2 and 4", r.GetSystemVersionInfo(), pages)
			}
			break
		}
		if r.GetSystemVersionInfo() != "0" {
			t.Fatalf("page %d has position %s before everything was sent", pages, r.GetSystemVersionInfo())
		}
		k.quiet() // until it is acknowledged
		k.mustAck()
	}
	if len(got) != 6_001 {
		t.Fatalf("got %d resources, want 6000 and the marker", len(got))
	}
	k.mustAck()
	k.quiet()
	wantInSync(t, c, k)
}

func TestFirstRequestWithVersionsGetsTheDifference(t *testing.T) {
	t.Parallel()
	fill := func() *Cache {
		c := NewCache(newManualClock())
		c.Update([]Resource{res("key/a", "1"), res("key/b", "1"), res("key/c", "1")}, nil)
		return c
	}
	versions := func(rs ...Resource) map[string]string {
		m := map[string]string{}
		for _, r := range rs {
			m[r.Name] = r.Version
		}
		return m
	}
	for name, tc := range map[string]struct {
		held map[string]string
		want []string
	}{
		"what is changed, new and gone is sent": {
			versions(res("key/a", "1"), res("key/b", "old"), res("key/gone", "1")), []string{"-key/gone", "key/b", "key/c", "sync"},
		},
		"a client that has it all gets the marker only, from any replica": {
			versions(res("key/a", "1"), res("key/b", "1"), res("key/c", "1")), []string{"sync"},
		},
		"a marker that a client remembers is nothing to remove": {
			map[string]string{"sync": "x", "key/a": res("", "1").Version, "key/b": res("", "1").Version, "key/c": res("", "1").Version}, []string{"sync"},
		},
		"a name that looks like our own note is one that is gone": {
			map[string]string{"session2": "1"}, []string{"-session2", "key/a", "key/b", "key/c", "sync"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := connect(t, fill(), tc.held)
			wantNames(t, k, tc.want...)
			k.mustAck()
			k.quiet()
		})
	}
}

func TestUpdateSendsWhatChanged(t *testing.T) {
	t.Parallel()
	c := NewCache(newManualClock())
	first := c.Update([]Resource{res("key/a", "1"), res("key/b", "1")}, nil)
	k, other := connect(t, c, nil), connect(t, c, nil)
	k.sync()
	other.sync()

	if got := c.Update([]Resource{res("key/a", "1")}, []string{"key/none"}); got != first {
		t.Fatalf("an update that changes nothing moved the position from %d to %d", first, got)
	}
	k.quiet()
	second := c.Update([]Resource{res("key/a", "2"), res("key/c", "1")}, []string{"key/b"})
	if second <= first || c.Position() != second || c.Len() != 2 {
		t.Fatalf("position %d after %d, %d entries", second, first, c.Len())
	}
	for _, one := range []*testClient{k, other} {
		wantNames(t, one, "-key/b", "key/a", "key/c")
		if got := one.last.GetSystemVersionInfo(); got != strconv.FormatUint(second, 10) {
			t.Fatalf("the response says position %s, want %d", got, second)
		}
	}
	// Changes before the acknowledgement are put together in one response.
	c.Update([]Resource{res("key/d", "1")}, nil)
	c.Update([]Resource{res("key/d", "2")}, []string{"key/a"})
	k.quiet()
	k.mustAck()
	wantNames(t, k, "-key/a", "key/d")
	k.mustAck()
	k.quiet()
	wantInSync(t, c, k)
}

func TestChangesGoBeforeTheRestOfASynchronisation(t *testing.T) {
	t.Parallel()
	c := NewCache(newManualClock())
	all := many(8_000, 1_000)
	c.Update(all, nil)
	k := connect(t, c, nil)
	first := map[string]bool{}
	for _, r := range k.receive().GetResources() {
		first[r.GetName()] = true
	}
	var sent, unsent string
	for _, r := range all {
		if first[r.Name] {
			sent = r.Name
		} else {
			unsent = r.Name
		}
	}
	disabled := res(unsent, "disabled")
	disabled.Revokes = true
	c.Update(many(3_000, 1_001), nil) // more than a page of changes that let through
	c.Update([]Resource{disabled}, []string{sent})
	k.mustAck()
	second := k.receive()
	if !slices.Contains(second.GetRemovedResources(), sent) {
		t.Fatal("the removal is not on the next page")
	}
	if r := second.GetResources()[0]; r.GetName() != unsent || r.GetVersion() != disabled.Version {
		t.Fatalf("the next page begins with %s, want the revocation of %s", r.GetName(), unsent)
	}
	if sizeOf(second) > pageBytes {
		t.Fatal("the page is too large")
	}
	k.mustAck()
	k.sync()
	wantInSync(t, c, k)
}

func TestResynchronisationBeginsWithRevocations(t *testing.T) {
	t.Parallel()
	c := NewCache(newManualClock())
	held := map[string]string{"key/gone": "1", "key/disabled": "1"}
	disabled := res("key/disabled", "2")
	disabled.Revokes = true
	c.Update(append(many(8_000, 1_000), disabled), nil)
	k := connect(t, c, held)
	r := k.receive()
	if r.GetResources()[0].GetName() != "key/disabled" || !slices.Equal(r.GetRemovedResources(), []string{"key/gone"}) {
		t.Fatal("the first page does not hold what is revoked")
	}
}

func TestRefusedPageIsSentAgainAfterAPause(t *testing.T) {
	t.Parallel()
	clock := newManualClock()
	c := NewCache(clock)
	k, other := connect(t, c, nil), connect(t, c, nil)
	k.sync()
	other.sync()
	before := k.last.GetSystemVersionInfo()
	c.Update([]Resource{res("key/a", "1"), res("key/b", "1")}, nil)
	wantNames(t, k, "key/a", "key/b")
	k.nack()
	for _, pause := range []time.Duration{firstRetry, 2 * firstRetry, 4 * firstRetry} {
		clock.advance(pause - 1)
		k.quiet()
		clock.advance(1)
		wantNames(t, k, "key/a", "key/b")
		k.nack()
	}
	// Meanwhile neither this client nor others wait for changes, and the position stays before what was refused.
	other.sync()
	c.Update(nil, []string{"key/b"})
	wantNames(t, k, "-key/b")
	if got := k.last.GetSystemVersionInfo(); got != before {
		t.Fatalf("the position is %s with an entry refused, want %s still", got, before)
	}
	wantNames(t, other, "-key/b")
	k.mustAck()
	// What was refused goes out at once when it changes.
	position := c.Update([]Resource{res("key/a", "2")}, nil)
	wantNames(t, k, "key/a")
	if got := k.last.GetSystemVersionInfo(); got != strconv.FormatUint(position, 10) {
		t.Fatalf("the position is %s once nothing is refused, want %d", got, position)
	}
	k.mustAck()
	// A new content that is refused pauses as if for the first time.
	c.Update([]Resource{res("key/a", "3")}, nil)
	k.receive()
	for i := range 3 {
		k.nack()
		clock.advance(firstRetry << i)
		wantNames(t, k, "key/a")
	}
	k.nack()
	c.Update([]Resource{res("key/a", "4")}, nil)
	k.receive()
	k.nack()
	clock.advance(firstRetry)
	wantNames(t, k, "key/a")
	k.mustAck()
	clock.advance(longestRetry)
	k.quiet()
	if clock.waiting() != 0 {
		t.Fatal("a timer is left")
	}
	wantInSync(t, c, k)
}

func TestRefusalThatNamesTheCulpritLetsTheOthersPass(t *testing.T) {
	t.Parallel()
	clock := newManualClock()
	c := NewCache(clock)
	c.Update([]Resource{res("key/a", "1"), res("key/bad", "1"), res("key/c", "1")}, nil)
	k := connect(t, c, nil)
	k.receive()
	k.nack("key/bad", "key/unheard-of")
	wantNames(t, k, "key/a", "key/c", "sync")
	if got := k.last.GetSystemVersionInfo(); got != "0" {
		t.Fatalf("the position is %s with an entry refused, want 0", got)
	}
	k.mustAck()
	clock.advance(firstRetry)
	wantNames(t, k, "key/bad")
	k.nack("key/bad")
	clock.advance(2*firstRetry - 1)
	k.quiet()
	clock.advance(1)
	wantNames(t, k, "key/bad")
	k.mustAck() // a new version of the client, say
	wantInSync(t, c, k)
	if got := k.last.GetSystemVersionInfo(); got != "2" {
		t.Fatalf("the position is %s, want 2", got)
	}
	clock.advance(longestRetry)
	k.quiet()
}

func TestPauseHasABound(t *testing.T) {
	t.Parallel()
	clock := newManualClock()
	c := NewCache(clock)
	k := connect(t, c, nil)
	for range 100 {
		k.receive()
		k.nack()
		clock.advance(longestRetry)
	}
	k.receive()
}

func TestOnlyTheOwnNonceAcknowledges(t *testing.T) {
	t.Parallel()
	c := NewCache(newManualClock())
	c.Update(many(3_000, 1_000), nil)
	k := connect(t, c, nil)
	nonce := k.receive().GetNonce()
	for _, other := range []string{"", "99"} {
		if err := k.request(&cache.DeltaRequest{ResponseNonce: other}); err != nil {
			t.Fatal(err)
		}
		k.quiet()
	}
	k.mustAck()
	k.sync()
	c.Update([]Resource{res("key/new", "1")}, nil)
	k.receive()
	if err := k.request(&cache.DeltaRequest{ResponseNonce: nonce}); err != nil { // of a page long acknowledged
		t.Fatal(err)
	}
	c.Update([]Resource{res("key/newer", "1")}, nil)
	k.quiet()
	k.mustAck()
	wantNames(t, k, "key/newer")
}

func TestClientFurtherBehindThanTheLogStartsOver(t *testing.T) {
	t.Parallel()
	c := NewCache(newManualClock())
	c.Update([]Resource{res("key/a", "1")}, nil)
	waiting, busy := connect(t, c, nil), connect(t, c, nil)
	waiting.sync()
	busy.receive() // and takes its time
	c.Update(many(2*logLength+1, 6), []string{"key/a"})
	if len(c.log) != logLength {
		t.Fatalf("the log has %d changes, want %d", len(c.log), logLength)
	}
	waiting.sync()
	wantInSync(t, c, waiting)

	if err := busy.ack(); err == nil || !strings.Contains(err.Error(), "too far behind") {
		t.Fatalf("the client that fell behind got %v, want an error", err)
	}
	busy.close()
	again := connect(t, c, busy.held)
	again.sync()
	wantInSync(t, c, again)
}

func TestWatchesThatCannotBe(t *testing.T) {
	t.Parallel()
	c := NewCache(newManualClock())
	out := make(chan cache.DeltaResponse, 1)
	wildcard := stream.NewDeltaSubscription([]string{"*"}, nil, nil, true)
	part := stream.NewDeltaSubscription([]string{"key/a"}, nil, nil, true)
	both := stream.NewDeltaSubscription([]string{"*", "key/a"}, nil, nil, true)
	forged := stream.NewDeltaSubscription([]string{"*"}, nil, map[string]string{sessionKey: "1"}, true)
	for name, tc := range map[string]struct {
		typeURL string
		sub     stream.Subscription
		want    string
	}{
		"another type":                    {"type.googleapis.com/x", wildcard, "this cache serves"},
		"single resources":                {TypeURL, part, "subscribe to everything"},
		"everything and single resources": {TypeURL, both, "subscribe to everything"},
		"a session that is not its own":   {TypeURL, forged, "forgotten"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if _, err := c.CreateDeltaWatch(&cache.DeltaRequest{TypeUrl: tc.typeURL}, tc.sub, out); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("error %v, want one with %q", err, tc.want)
			}
		})
	}
	if _, err := c.CreateWatch(nil, wildcard, nil); err == nil {
		t.Error("the state-of-the-world protocol was not refused")
	}
	if _, err := c.Fetch(t.Context(), nil); err == nil {
		t.Error("a fetch was not refused")
	}
}

func TestSessionsOfEndedStreamsAreForgotten(t *testing.T) {
	t.Parallel()
	clock := newManualClock()
	c := NewCache(clock)
	lively := connect(t, c, nil)
	lively.sync()
	for range 50 {
		connect(t, c, nil).close()
		clock.advance(forgetAfter/2 + 1)
	}
	if n := len(c.sessions); n > 4 {
		t.Fatalf("%d sessions are kept, of one stream that lives", n)
	}
	c.Update([]Resource{res("key/a", "1")}, nil)
	wantNames(t, lively, "key/a")
}

func TestChannelWithoutRoomBlocksNobody(t *testing.T) {
	t.Parallel()
	clock := newManualClock()
	c := NewCache(clock)
	full := &testClient{t: t, cache: c, out: make(chan cache.DeltaResponse, 1), held: map[string]string{}}
	full.out <- nil
	full.sub = stream.NewDeltaSubscription([]string{"*"}, nil, nil, true)
	if err := full.request(&cache.DeltaRequest{}); err != nil {
		t.Fatal(err)
	}
	k := connect(t, c, nil)
	k.sync()
	c.Update([]Resource{res("key/a", "1")}, nil)
	wantNames(t, k, "key/a")
	<-full.out
	clock.advance(fullChannelPause)
	wantNames(t, full, "key/a", "sync")
	full.mustAck()
	wantInSync(t, c, full)
}
