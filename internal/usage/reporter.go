package usage

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	usagev1 "github.com/latchkey-dev/latchkey/api/usage/v1"
)

const (
	// How soon a lost connection is tried again.
	firstBackoff   = 100 * time.Millisecond
	longestBackoff = 5 * time.Second
	// defaultInterval is how often what has changed is sent.
	defaultInterval = time.Second
	// ackTimeout is how long the control plane may take to take rows over.
	ackTimeout = 30 * time.Second
)

// ErrNoAnswer is why a connection is given up whose other end takes nothing over any more.
var ErrNoAnswer = errors.New("the control plane did not take the rows over in time")

// Source hands out accounts to report. A ledger is one.
type Source interface {
	// Changed hands out accounts that have changed since they were last handed out, at most so many.
	Changed(most int) []Row
	// ChangedAll makes Changed hand out every account again.
	ChangedAll()
}

// ReporterConfig is what a Reporter needs.
type ReporterConfig struct {
	Address string                      // host:port
	TLS     func() (*tls.Config, error) // asked at each connection
	Source  Source                      // nil, for one that only recalls
	// Trouble is what keeps the ledger from writing, for people; empty: nothing does. nil: nothing ever does.
	Trouble  func() string
	Log      *slog.Logger
	Interval time.Duration // between two looks at what has changed; 0: a second
	// AckTimeout is how long the control plane may take to take rows over; 0: half a minute.
	AckTimeout time.Duration
}

// Reporter tells the control plane what was used. A control plane that is away or slow holds nothing up: what changes meanwhile is told
// later, as it stands then.
type Reporter struct {
	cfg       ReporterConfig
	connected atomic.Bool
	reported  atomic.Int64
	said      string // the last trouble logged; owned by Run
}

// NewReporter makes a reporter. Nothing happens before Run or Recall.
func NewReporter(cfg ReporterConfig) *Reporter {
	if cfg.Interval <= 0 {
		cfg.Interval = defaultInterval
	}
	if cfg.AckTimeout <= 0 {
		cfg.AckTimeout = ackTimeout
	}
	return &Reporter{cfg: cfg}
}

// Connected reports whether the control plane takes rows over.
func (r *Reporter) Connected() bool { return r.connected.Load() }

// Reported counts the rows that the control plane has taken over.
func (r *Reporter) Reported() int64 { return r.reported.Load() }

// Run reports until the context ends, over as many connections as it takes.
//
// What the control plane has taken over it holds in memory until it is written, so whenever a connection is lost everything is told
// again: rows that were on their way, and rows that a replica took down with it.
func (r *Reporter) Run(ctx context.Context) {
	backoff := firstBackoff
	for {
		heard, err := r.connect(ctx)
		r.connected.Store(false)
		if ctx.Err() != nil {
			return
		}
		if heard {
			backoff = firstBackoff
		}
		if r.said != err.Error() { // once, and not at every try
			r.said = err.Error()
			r.cfg.Log.Warn("no connection to report usage by; status is behind until there is one", slog.String("error", r.said))
		}
		timer := time.NewTimer(backoff/2 + rand.N(backoff/2)) // so that not all come at once after a restart
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		backoff = min(2*backoff, longestBackoff)
	}
}

// connect reports over one connection to its end, and tells whether anything was acknowledged. The error is never nil.
func (r *Reporter) connect(ctx context.Context) (heard bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	conn, err := r.dial()
	if err != nil {
		cancel(nil)
		return false, err
	}
	acks := make(chan uint64)
	ended := make(chan error, 1)
	receiving := false
	defer func() {
		cancel(nil)
		_ = conn.Close()
		if receiving {
			for range ended { // until it is closed
			}
		}
	}()
	desc := reportDescription(nil)
	raw, err := conn.NewStream(ctx, &desc, reportMethod)
	if err != nil {
		return false, fmt.Errorf("open stream to %s: %w", r.cfg.Address, err)
	}
	stream := &grpc.GenericClientStream[usagev1.ReportRequest, usagev1.ReportResponse]{ClientStream: raw}
	receiving = true
	go func() {
		defer close(ended)
		ended <- receiveAcks(ctx, stream, acks)
	}()
	r.cfg.Source.ChangedAll()
	return r.send(ctx, stream, acks, ended)
}

// receiveAcks hands on what the control plane acknowledges. It also is what notices that the other end has gone.
func receiveAcks(ctx context.Context, stream reportClient, acks chan<- uint64) error {
	for {
		resp, err := stream.Recv()
		if err != nil {
			return err
		}
		select {
		case acks <- resp.GetSequence():
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// send sends what changes, one message at a time: the next one waits until the control plane has taken the last one over.
func (r *Reporter) send(ctx context.Context, stream reportClient, acks <-chan uint64, ended <-chan error) (heard bool, err error) {
	tick := time.NewTicker(r.cfg.Interval)
	defer tick.Stop()
	// The first request says that the reporter is there, even if it has nothing to tell.
	told := ""
	for sequence := uint64(1); ; sequence++ {
		rows := r.cfg.Source.Changed(rowsPerPage)
		for len(rows) == 0 && heard && r.trouble() == told {
			select {
			case <-ctx.Done():
				return heard, ctx.Err()
			case err := <-ended:
				return heard, fmt.Errorf("report to %s: %w", r.cfg.Address, err)
			case <-tick.C:
			}
			rows = r.cfg.Source.Changed(rowsPerPage)
		}
		// Where the stream has ended, Send says just that, and Recv says why.
		told = r.trouble()
		if err := stream.Send(&usagev1.ReportRequest{Sequence: sequence, Rows: encodeRows(rows), Trouble: told}); err != nil && !errors.Is(err, io.EOF) {
			return heard, fmt.Errorf("report to %s: %w", r.cfg.Address, err)
		}
		if err := r.await(ctx, sequence, acks, ended); err != nil {
			return heard, fmt.Errorf("report to %s: %w", r.cfg.Address, err)
		}
		r.reported.Add(int64(len(rows)))
		if !heard {
			heard, r.said = true, ""
			r.connected.Store(true)
			r.cfg.Log.Info("reporting usage to the control plane", slog.String("address", r.cfg.Address))
		}
		if len(rows) == rowsPerPage {
			continue // there is more
		}
		select {
		case <-ctx.Done():
			return heard, ctx.Err()
		case err := <-ended:
			return heard, fmt.Errorf("report to %s: %w", r.cfg.Address, err)
		case <-tick.C:
		}
	}
}

func (r *Reporter) trouble() string {
	if r.cfg.Trouble == nil {
		return ""
	}
	return strings.ToValidUTF8(r.cfg.Trouble(), "?")
}

// await waits until the control plane has taken over what was sent up to the sequence.
func (r *Reporter) await(ctx context.Context, sequence uint64, acks <-chan uint64, ended <-chan error) error {
	timeout := time.NewTimer(r.cfg.AckTimeout)
	defer timeout.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-ended:
			return err
		case <-timeout.C:
			return ErrNoAnswer
		case got := <-acks:
			if got >= sequence {
				return nil
			}
		}
	}
}

// Recall asks the control plane for all accounts as it last knew them, for a ledger that has lost its own memory. Times are exact to
// the second. It tries once.
func (r *Reporter) Recall(ctx context.Context) ([]Row, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conn, err := r.dial()
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	desc := recallDescription(nil)
	raw, err := conn.NewStream(ctx, &desc, recallMethod)
	if err != nil {
		return nil, fmt.Errorf("recall usage from %s: %w", r.cfg.Address, err)
	}
	var stream recallClient = &grpc.GenericClientStream[usagev1.RecallRequest, usagev1.RecallResponse]{ClientStream: raw}
	if err := raw.SendMsg(&usagev1.RecallRequest{}); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("recall usage from %s: %w", r.cfg.Address, err)
	}
	if err := stream.CloseSend(); err != nil {
		return nil, fmt.Errorf("recall usage from %s: %w", r.cfg.Address, err)
	}
	var rows []Row
	for {
		page, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return rows, nil
		}
		if err != nil {
			return nil, fmt.Errorf("recall usage from %s: %w", r.cfg.Address, err)
		}
		for _, in := range page.GetRows() {
			row, err := decodeRow(in)
			if err != nil {
				// Better one account that begins anew than none that is known.
				r.cfg.Log.Warn("left out an account that the control plane recalled", slog.String("error", err.Error()))
				continue
			}
			rows = append(rows, row)
		}
	}
}

func (r *Reporter) dial() (*grpc.ClientConn, error) {
	tlsConfig, err := r.cfg.TLS()
	if err != nil {
		return nil, fmt.Errorf("load certificates: %w", err)
	}
	conn, err := grpc.NewClient("passthrough:///"+r.cfg.Address,
		grpc.WithTransportCredentials(credentials.NewTLS(tlsConfig)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second, PermitWithoutStream: true}),
		grpc.WithNoProxy(),
	)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", r.cfg.Address, err)
	}
	return conn, nil
}
