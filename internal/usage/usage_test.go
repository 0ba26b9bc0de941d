package usage

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	usagev1 "github.com/latchkey-dev/latchkey/api/usage/v1"
	"github.com/latchkey-dev/latchkey/internal/certs"
	"github.com/latchkey-dev/latchkey/internal/money"
)

var moment = time.Date(2026, 11, 23, 12, 0, 0, 987654321, time.UTC)

func row(id string, requests int64) Row {
	return Row{
		ID: id, Day: 20261123, Month: 202611,
		DayUsage:   Totals{Requests: requests, Tokens: 10 * requests, Spent: money.Amount(requests), Estimated: 1},
		MonthUsage: Totals{Requests: 2 * requests, Tokens: 20 * requests, Spent: money.Amount(2 * requests), Estimated: 2},
		LastUsed:   moment, BlockedSince: moment.Add(time.Second),
	}
}

func manyRows(n int, requests int64) []Row {
	rows := make([]Row, 0, n)
	for i := range n {
		rows = append(rows, row(fmt.Sprintf("uid-%05d", i), requests))
	}
	return rows
}

// all says that the sink has n rows with so many requests.
func all(n int, requests int64) func(map[string]Row) bool {
	return func(rows map[string]Row) bool {
		count := 0
		for _, r := range rows {
			if r.DayUsage.Requests == requests {
				count++
			}
		}
		return count == n
	}
}

func TestRowsArriveAsTheyAre(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	p := start(t, a, newSink(), "127.0.0.1:0")
	b := newBook()
	blank := Row{ID: "never-used"}
	b.put(row("one", 1), blank)
	r := report(t, b, ReporterConfig{Address: p.addr, TLS: a.client(certs.EnforcerURI)})
	p.sink.wait(t, "both rows are there", func(rows map[string]Row) bool { return len(rows) == 2 })
	b.put(row("one", 2))
	p.sink.wait(t, "the change is there", all(1, 2))
	until(t, "the last one is acknowledged", func() bool { return r.Reported() == 3 })
	p.sink.mu.Lock()
	defer p.sink.mu.Unlock()
	if diff := cmp.Diff(map[string]Row{"one": row("one", 2), "never-used": blank}, p.sink.rows); diff != "" {
		t.Fatalf("rows (-want +got):\n%s", diff)
	}
	if got := p.metric("latchkey_usage_rows_received_total"); got != 3 {
		t.Errorf("received %v rows, want 3", got)
	}
	if got := p.metric("latchkey_usage_connected_reporters"); got != 1 || !r.Connected() {
		t.Errorf("%v reporters are connected, connected %v", got, r.Connected())
	}
}

func TestALedgersTroubleIsTold(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	p := start(t, a, newSink(), "127.0.0.1:0")
	var trouble atomic.Value
	trouble.Store("")
	says := func(ledgers int, trouble string) func() bool {
		return func() bool {
			n, said := p.ledgers()
			return n == ledgers && said == trouble
		}
	}
	cfg := ReporterConfig{Address: p.addr, TLS: a.client(certs.EnforcerURI), Interval: time.Millisecond}
	report(t, newBook(), cfg)
	cfg.Trouble = func() string { return trouble.Load().(string) }
	report(t, newBook(), cfg)
	until(t, "two ledgers are known, and in order", says(2, ""))
	trouble.Store("no space left\xff on device" + strings.Repeat(".", 1000)) // nothing else changes
	until(t, "what troubles one of them is known", says(2, ("no space left? on device" + strings.Repeat(".", 1000))[:maxTrouble]))
	trouble.Store("")
	until(t, "it is over", says(2, ""))
}

func TestManyRowsGoInPages(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	p := start(t, a, newSink(), "127.0.0.1:0")
	b := newBook()
	b.put(manyRows(2500, 1)...)
	report(t, b, ReporterConfig{Address: p.addr, TLS: a.client(certs.EnforcerURI), Interval: time.Hour}) // pages that are full do not wait for the next look
	p.sink.wait(t, "all rows are there", all(2500, 1))
	p.sink.mu.Lock()
	defer p.sink.mu.Unlock()
	if diff := cmp.Diff([]int{1000, 1000, 500}, p.sink.batches); diff != "" {
		t.Fatalf("pages (-want +got):\n%s", diff)
	}
}

func TestARestartedControlPlaneIsToldEverything(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	p := start(t, a, newSink(), "127.0.0.1:0")
	b := newBook()
	b.put(manyRows(1500, 1)...)
	r := report(t, b, ReporterConfig{Address: p.addr, TLS: a.client(certs.EnforcerURI)})
	until(t, "all rows are acknowledged", func() bool { return r.Reported() == 1500 })
	p.stop()
	// Nothing is sent now: only the receiving end can have noticed.
	until(t, "the loss is noticed", func() bool { return !r.Connected() })
	b.put(row("uid-00000", 2), row("new", 2))
	again := start(t, a, newSink(), p.addr)
	again.sink.wait(t, "all rows are there again", all(1499, 1))
	again.sink.wait(t, "so is what changed meanwhile", all(2, 2))
}

func TestRowsThatAreRefusedAreReportedAgain(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	s := newSink()
	s.refuse = 2
	p := start(t, a, s, "127.0.0.1:0")
	b := newBook()
	b.put(manyRows(10, 1)...)
	r := report(t, b, ReporterConfig{Address: p.addr, TLS: a.client(certs.EnforcerURI)})
	s.wait(t, "the rows are there", all(10, 1))
	until(t, "they are acknowledged", func() bool { return r.Reported() == 10 })
	if b.mu.Lock(); b.alls != 3 {
		t.Errorf("everything was asked for %d times, want once for each of 3 connections", b.alls)
	}
	b.mu.Unlock()
}

func TestASlowControlPlaneHoldsRowsBackAndGetsTheLatest(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	s := newSink()
	hold := make(chan struct{})
	s.hold = hold
	p := start(t, a, s, "127.0.0.1:0")
	b := newBook()
	b.put(manyRows(10, 1)...)
	r := report(t, b, ReporterConfig{Address: p.addr, TLS: a.client(certs.EnforcerURI)})
	until(t, "the first message is on its way", func() bool { b.mu.Lock(); defer b.mu.Unlock(); return b.alls == 1 && len(b.dirty) == 0 })
	for n := range int64(50) {
		b.put(manyRows(10, n+2)...)
	}
	if r.Reported() != 0 {
		t.Errorf("%d rows count as reported, and none was taken over", r.Reported())
	}
	close(hold)
	s.wait(t, "the latest rows are there", all(10, 51))
	s.mu.Lock()
	defer s.mu.Unlock()
	if diff := cmp.Diff([]int{10, 10}, s.batches); diff != "" {
		t.Errorf("messages (-want +got):\n%s", diff)
	}
}

func TestAControlPlaneThatDoesNotAnswerIsLeft(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	s := newSink()
	s.hold = make(chan struct{}) // for good
	p := start(t, a, s, "127.0.0.1:0")
	b := newBook()
	b.put(manyRows(10, 1)...)
	report(t, b, ReporterConfig{Address: p.addr, TLS: a.client(certs.EnforcerURI), AckTimeout: 10 * time.Millisecond})
	until(t, "it is tried a third time", func() bool { b.mu.Lock(); defer b.mu.Unlock(); return b.alls >= 3 })
	s.mu.Lock()
	s.hold = nil
	s.mu.Unlock()
	s.wait(t, "the rows are there", all(10, 1))
}

func TestRecallGivesBackWhatIsKnown(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	for name, n := range map[string]int{"nothing": 0, "less than a page": 3, "a page": 1000, "several pages": 2001} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSink()
			want := manyRows(n, 7)
			for _, r := range want {
				s.rows[r.ID] = r
			}
			s.refuse = 1
			p := start(t, a, s, "127.0.0.1:0")
			r := NewReporter(ReporterConfig{Address: p.addr, TLS: a.client(certs.EnforcerURI), Log: slog.New(slog.DiscardHandler)})
			if _, err := r.Recall(t.Context()); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), errSink.Error()) {
				t.Fatalf("error %v, want that of the sink", err)
			}
			got, err := r.Recall(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, append([]Row{}, got...)); diff != "" {
				t.Fatalf("rows (-want +got):\n%s", diff)
			}
			if got := p.metric("latchkey_usage_rows_recalled_total"); got != float64(n) {
				t.Errorf("metric %v, want %d", got, n)
			}
		})
	}
}

func TestOnlyEnforcersReportAndRecall(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	p := start(t, a, newSink(), "127.0.0.1:0")
	enforcer := a.client(certs.EnforcerURI)
	for name, tc := range map[string]struct {
		tls  func() (*tls.Config, error)
		code codes.Code
		want string
	}{
		"an Envoy is refused":                     {a.client(certs.EnvoyURI), codes.PermissionDenied, "role envoy"},
		"another role is refused":                 {a.client("spiffe://latchkey.dev/manager"), codes.PermissionDenied, "role none"},
		"a client without a certificate":          {func() (*tls.Config, error) { c, err := enforcer(); c.Certificates = nil; return c, err }, codes.Unavailable, ""},
		"a certificate of some other authority":   {newAuthorityFor(t, a), codes.Unavailable, ""},
		"an enforcer whose certificates are gone": {func() (*tls.Config, error) { return nil, errors.New("no such file") }, codes.Unknown, "no such file"},
		"an enforcer is let in":                   {enforcer, codes.OK, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBook()
			b.put(row(name, 1))
			r := NewReporter(ReporterConfig{Address: p.addr, TLS: tc.tls, Log: slog.New(slog.DiscardHandler), Source: b})
			_, err := r.Recall(t.Context())
			if status.Code(err) != tc.code || (err != nil && !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("recall: error %v, want %v with %q", err, tc.code, tc.want)
			}
			if tc.code == codes.OK {
				return
			}
			heard, err := r.connect(t.Context())
			if heard || status.Code(err) != tc.code || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("report: heard %v, error %v, want %v with %q", heard, err, tc.code, tc.want)
			}
		})
	}
	t.Cleanup(func() {
		if len(p.sink.rows) > 0 {
			t.Errorf("rows of strangers came in: %v", p.sink.rows)
		}
	})
}

// newAuthorityFor is an enforcer of another authority that trusts this one's server.
func newAuthorityFor(t *testing.T, a authority) func() (*tls.Config, error) {
	stranger := newAuthority(t).client(certs.EnforcerURI)
	ours := a.client(certs.EnforcerURI)
	return func() (*tls.Config, error) {
		c, err := stranger()
		if err != nil {
			return nil, err
		}
		trusting, err := ours()
		if err != nil {
			return nil, err
		}
		c.RootCAs = trusting.RootCAs
		return c, nil
	}
}

func TestRowsThatMakeNoSenseAreLeftOut(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*usagev1.Row){
		"no ID":                func(r *usagev1.Row) { r.Id = "" },
		"an ID that is long":   func(r *usagev1.Row) { r.Id = strings.Repeat("x", 65) },
		"a day that is not":    func(r *usagev1.Row) { r.Day = 20260230 },
		"a negative day":       func(r *usagev1.Row) { r.Day = -20261123 },
		"a month that is not":  func(r *usagev1.Row) { r.Month = 202613 },
		"a month of no year":   func(r *usagev1.Row) { r.Month = 214748 * 100 },
		"negative requests":    func(r *usagev1.Row) { r.DayUsage.Requests = -1 },
		"negative tokens":      func(r *usagev1.Row) { r.MonthUsage.Tokens = -1 },
		"a negative spend":     func(r *usagev1.Row) { r.DayUsage.SpentNanos = -1 },
		"a negative estimate":  func(r *usagev1.Row) { r.MonthUsage.EstimatedNanos = -1 },
		"an impossible moment": func(r *usagev1.Row) { r.LastUsed = &timestamppb.Timestamp{Nanos: -1} },
		"an impossible block":  func(r *usagev1.Row) { r.BlockedSince = &timestamppb.Timestamp{Seconds: 1 << 60} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			good := encodeRows([]Row{row("one", 1)})[0]
			if got, err := decodeRow(good); err != nil || !cmp.Equal(got, row("one", 1)) {
				t.Fatalf("decoded %+v, error %v", got, err)
			}
			bad := proto.CloneOf(good)
			change(bad)
			if got, err := decodeRow(bad); err == nil {
				t.Fatalf("decoded %+v", got)
			}
		})
	}
}

func TestABadRowDoesNotKeepTheOthers(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	p := start(t, a, newSink(), "127.0.0.1:0")
	b := newBook()
	bad := row("bad", 1)
	bad.Day = 1
	b.put(row("good", 1), bad)
	r := report(t, b, ReporterConfig{Address: p.addr, TLS: a.client(certs.EnforcerURI)})
	until(t, "both are acknowledged", func() bool { return r.Reported() == 2 })
	p.sink.wait(t, "the good row is there", func(rows map[string]Row) bool { return len(rows) == 1 && rows["good"].ID == "good" })
	if got := p.metric("latchkey_usage_rows_invalid_total"); got != 1 {
		t.Errorf("%v rows were left out, want 1", got)
	}
}
