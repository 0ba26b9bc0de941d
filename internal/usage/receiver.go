package usage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	usagev1 "github.com/latchkey-dev/latchkey/api/usage/v1"
)

// Sink takes accounts over at the control plane. Its methods are called from several goroutines.
type Sink interface {
	// Report takes rows over. The context ends with the reporter's connection: from then on the reporter tells everything anew to
	// whichever replica it finds, and its rows here are no longer the latest. An error ends the connection.
	Report(ctx context.Context, rows []Row) error
	// Recall sends all accounts that are known. It does not keep what it passes to send.
	Recall(ctx context.Context, send func([]Row) error) error
}

// Receiver serves the control plane's end.
type Receiver struct {
	sink      Sink
	received  prometheus.Counter
	invalid   prometheus.Counter
	recalled  prometheus.Counter
	reporters prometheus.Gauge

	mu      sync.Mutex
	ledgers map[*string]struct{} // of the reporters that are connected: each's trouble
}

var _ service = (*Receiver)(nil)

// NewReceiver makes a receiver, and registers its metrics.
func NewReceiver(sink Sink, reg prometheus.Registerer) (*Receiver, error) {
	r := &Receiver{
		sink:    sink,
		ledgers: map[*string]struct{}{},
		received: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "latchkey_usage_rows_received_total", Help: "Accounts that enforcers reported.",
		}),
		invalid: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "latchkey_usage_rows_invalid_total", Help: "Accounts that enforcers reported and that were left out, since they make no sense.",
		}),
		recalled: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "latchkey_usage_rows_recalled_total", Help: "Accounts told to enforcers that had lost their ledger.",
		}),
		reporters: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "latchkey_usage_connected_reporters", Help: "Enforcers that are connected to report usage.",
		}),
	}
	for _, c := range []prometheus.Collector{r.received, r.invalid, r.recalled, r.reporters} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("register usage metrics: %w", err)
		}
	}
	return r, nil
}

// Register adds the service to a server.
func (r *Receiver) Register(server grpc.ServiceRegistrar) { server.RegisterService(description(), r) }

// report takes rows over until the reporter leaves.
func (r *Receiver) report(stream reportServer) error {
	r.reporters.Inc()
	defer r.reporters.Dec()
	trouble := new(string)
	r.note(trouble, "")
	defer r.leave(trouble)
	// A wait for the next request does not end with the context by itself, if that is the server's: it ends when this returns.
	requests := make(chan *usagev1.ReportRequest)
	ended := make(chan error, 1)
	ctx := stream.Context()
	go func() {
		for {
			req, err := stream.Recv()
			if err != nil {
				ended <- err
				return
			}
			select {
			case requests <- req:
			case <-ctx.Done():
				return
			}
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return status.Error(codes.Unavailable, "the control plane is going away")
		case err := <-ended:
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		case req := <-requests:
			r.note(trouble, req.GetTrouble())
			rows := make([]Row, 0, len(req.GetRows()))
			for _, in := range req.GetRows() {
				row, err := decodeRow(in)
				if err != nil { // it would be no better the next time
					r.invalid.Inc()
					continue
				}
				rows = append(rows, row)
			}
			if err := r.sink.Report(ctx, rows); err != nil {
				return status.Errorf(codes.Unavailable, "take rows over: %v", err)
			}
			r.received.Add(float64(len(rows)))
			if err := stream.Send(&usagev1.ReportResponse{Sequence: req.GetSequence()}); err != nil {
				return err
			}
		}
	}
}

// maxTrouble bounds what is kept of a reporter's trouble, in bytes.
const maxTrouble = 300

func (r *Receiver) note(of *string, trouble string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	*of = strings.ToValidUTF8(trouble[:min(len(trouble), maxTrouble)], "")
	r.ledgers[of] = struct{}{}
}

func (r *Receiver) leave(of *string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.ledgers, of)
}

// Ledgers counts the ledgers that report here, and tells what keeps one of them from writing; empty: nothing does.
func (r *Receiver) Ledgers() (connected int, trouble string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for of := range r.ledgers {
		if *of > trouble { // always the same one
			trouble = *of
		}
	}
	return len(r.ledgers), trouble
}

// recall sends what is known, in pages.
func (r *Receiver) recall(stream recallServer) error {
	err := r.sink.Recall(stream.Context(), func(rows []Row) error {
		for len(rows) > 0 {
			page := rows[:min(len(rows), rowsPerPage)]
			rows = rows[len(page):]
			if err := stream.Send(&usagev1.RecallResponse{Rows: encodeRows(page)}); err != nil {
				return err
			}
			r.recalled.Add(float64(len(page)))
		}
		return nil
	})
	if err != nil {
		return status.Errorf(codes.Unavailable, "recall usage: %v", err)
	}
	return nil
}
