package xdsclient

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"github.com/latchkey-dev/latchkey/internal/keyset"
	"github.com/latchkey-dev/latchkey/internal/policy"
)

// How soon a lost connection is tried again: soon enough that a restarted control plane is followed within a second or so.
const (
	backoffMin = 100 * time.Millisecond
	backoffMax = 3 * time.Second
	// maxResponseBytes is far above the pages that the control plane sends.
	maxResponseBytes = 64 << 20
)

// Sink takes the policy set over. Its methods are called from one goroutine.
type Sink interface {
	// Replace puts the whole set in place of what there is.
	Replace(all *policy.Delta) error
	// Apply changes what there is.
	Apply(change *policy.Delta) error
}

// Config is what a Client needs.
type Config struct {
	Address string                      // host:port
	TLS     func() (*tls.Config, error) // asked at each connection
	NodeID  string
	Store   *Store
	Sink    Sink
	Log     *slog.Logger
	// StartGrace is how long a client that is connected, but has not been told everything, keeps the enforcer from answering by
	// its copy on disk.
	StartGrace time.Duration
	Now        func() time.Time
}

// Source says where the policy in force comes from.
type Source string

// The sources.
const (
	SourceNone         Source = "none"          // nothing is known yet: nobody can be let through
	SourceDisk         Source = "disk"          // the last good copy; the control plane has not been heard since the start
	SourceControlPlane Source = "control-plane" // synchronised since the start
)

// Status is what the client is doing.
type Status struct {
	Connected  bool
	Synced     bool // with the present connection
	Source     Source
	LastChange time.Time // zero: none since the start
	Entries    int
}

// Client follows the key set.
type Client struct {
	cfg Config

	held     map[string]string // versions by name; owned by Run
	complete bool              // held is a whole set, and the sink has it; owned by Run

	mu     sync.Mutex
	status Status
	usable chan struct{} // closed once the enforcer may answer
}

// New makes a client. Nothing happens before Run.
func New(cfg Config) *Client {
	return &Client{cfg: cfg, usable: make(chan struct{}), status: Status{Source: SourceNone}}
}

// Status tells what the client is doing.
func (c *Client) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.status
}

func (c *Client) update(change func(*Status)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change(&c.status)
}

// WaitUsable waits until the enforcer may answer: it has been told everything; or it has a good copy on disk and the control plane
// cannot be reached, or has not told everything within the start grace. A copy alone is not enough while the control plane can be
// asked, since a key may have been revoked meanwhile.
func (c *Client) WaitUsable(ctx context.Context) (Source, error) {
	select {
	case <-c.usable:
		return c.Status().Source, nil
	case <-ctx.Done():
		return SourceNone, fmt.Errorf("wait for the policy set: %w", ctx.Err())
	}
}

func (c *Client) setUsable(source Source) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.status.Source != SourceControlPlane {
		c.status.Source = source
	}
	select {
	case <-c.usable:
	default:
		close(c.usable)
	}
}

// Run follows the key set until the context ends, over as many connections as it takes.
func (c *Client) Run(ctx context.Context) error {
	versions, all, complete, err := c.cfg.Store.Load()
	if err != nil {
		return err
	}
	c.held, c.complete = versions, complete
	c.update(func(s *Status) { s.Entries = len(versions) })
	if complete {
		if err := c.cfg.Sink.Replace(all); err != nil {
			return fmt.Errorf("take over the copy on disk: %w", err)
		}
		grace := time.AfterFunc(c.cfg.StartGrace, func() { c.setUsable(SourceDisk) })
		defer grace.Stop()
	}
	backoff := backoffMin
	for {
		connected, err := c.connect(ctx)
		c.update(func(s *Status) { s.Connected, s.Synced = false, false })
		if ctx.Err() != nil {
			return nil
		}
		if connected {
			backoff = backoffMin
		} else if c.complete {
			c.setUsable(SourceDisk)
		}
		c.cfg.Log.Warn("no connection to the control plane; the policy set stays as it is", "error", err, "retry_in", backoff.String())
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(backoff/2 + rand.N(backoff)):
		}
		backoff = min(2*backoff, backoffMax)
	}
}

// connect follows one connection to its end, and reports whether it stood at all.
func (c *Client) connect(ctx context.Context) (connected bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	tlsConfig, err := c.cfg.TLS()
	if err != nil {
		return false, fmt.Errorf("load certificates: %w", err)
	}
	conn, err := grpc.NewClient("passthrough:///"+c.cfg.Address,
		grpc.WithTransportCredentials(credentials.NewTLS(tlsConfig)),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxResponseBytes)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second, PermitWithoutStream: true}),
		grpc.WithNoProxy(),
	)
	if err != nil {
		return false, fmt.Errorf("connect to %s: %w", c.cfg.Address, err)
	}
	defer func() { _ = conn.Close() }()
	stream, err := discovery.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		return false, fmt.Errorf("open stream to %s: %w", c.cfg.Address, err)
	}
	if err := stream.Send(&discovery.DeltaDiscoveryRequest{
		Node:                    &core.Node{Id: c.cfg.NodeID},
		TypeUrl:                 keyset.TypeURL,
		ResourceNamesSubscribe:  []string{"*"},
		InitialResourceVersions: c.held,
	}); err != nil {
		return false, fmt.Errorf("subscribe at %s: %w", c.cfg.Address, err)
	}
	c.cfg.Log.Info("connected to the control plane", "address", c.cfg.Address, "entries_held", len(c.held))
	c.update(func(s *Status) { s.Connected = true })
	for {
		resp, err := stream.Recv()
		if err != nil {
			return connected, fmt.Errorf("receive from %s: %w", c.cfg.Address, err)
		}
		connected = true
		ack := &discovery.DeltaDiscoveryRequest{TypeUrl: keyset.TypeURL, ResponseNonce: resp.GetNonce()}
		var refused *refusal
		switch err := c.take(resp); {
		case errors.As(err, &refused):
			c.cfg.Log.Error("refused a part of the policy set; what was in force stays", "error", err)
			ack.ErrorDetail = &rpcstatus.Status{Code: int32(codes.InvalidArgument), Message: err.Error()}
		case err != nil: // our own disk or table failed: not acknowledged, and tried again with a new connection
			return connected, err
		}
		if err := stream.Send(ack); err != nil {
			return connected, fmt.Errorf("acknowledge to %s: %w", c.cfg.Address, err)
		}
	}
}

// refusal is a fault of what was sent.
type refusal struct{ err error }

func (r *refusal) Error() string { return r.err.Error() }
func (r *refusal) Unwrap() error { return r.err }

// take takes one response over: all of it or nothing.
func (c *Client) take(resp *discovery.DeltaDiscoveryResponse) error {
	var change policy.Delta
	upserts := make([]keyset.Resource, 0, len(resp.GetResources()))
	marker := false
	for _, r := range resp.GetResources() {
		if r.GetName() == keyset.SyncName {
			marker = true
			continue
		}
		if got := r.GetResource().GetTypeUrl(); got != keyset.TypeURL {
			return &refusal{fmt.Errorf("resource %q has type %q", r.GetName(), got)}
		}
		if err := keyset.Decode(r.GetName(), r.GetResource().GetValue(), &change); err != nil {
			return &refusal{err}
		}
		upserts = append(upserts, keyset.Resource{Name: r.GetName(), Version: r.GetVersion(), Body: r.GetResource().GetValue()})
	}
	for _, name := range resp.GetRemovedResources() {
		ref, err := keyset.RefOf(name)
		if err != nil {
			return &refusal{err}
		}
		change.Removed = append(change.Removed, ref)
	}
	if c.complete {
		// With a whole set in force each page is a change of it: applied before it is stored, so that a revocation holds at once.
		if err := c.cfg.Sink.Apply(&change); err != nil {
			return fmt.Errorf("apply change: %w", err)
		}
	}
	if err := c.cfg.Store.Commit(upserts, resp.GetRemovedResources(), marker); err != nil {
		return err
	}
	for _, r := range upserts {
		c.held[r.Name] = r.Version
	}
	for _, name := range resp.GetRemovedResources() {
		delete(c.held, name)
	}
	if marker && !c.complete {
		_, all, _, err := c.cfg.Store.Load()
		if err != nil {
			return err
		}
		if err := c.cfg.Sink.Replace(all); err != nil {
			return fmt.Errorf("take over the policy set: %w", err)
		}
		c.complete = true
	}
	c.update(func(s *Status) {
		s.Entries = len(c.held)
		if !change.Empty() {
			s.LastChange = c.cfg.Now()
		}
		if marker {
			s.Synced = true
			s.Source = SourceControlPlane
		}
	})
	if marker {
		c.cfg.Log.Info("the policy set is complete", "entries", len(c.held))
		c.setUsable(SourceControlPlane)
	}
	return nil
}
