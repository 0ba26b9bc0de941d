package xdsclient

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"strconv"
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
	firstBackoff   = 100 * time.Millisecond
	longestBackoff = 2 * time.Second
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
	Connected  bool // the control plane answers
	Synced     bool // with the present connection
	Source     Source
	LastChange time.Time // zero: none since the start
	Position   uint64    // of the control plane that is, or was last, connected: everything up to it is in force
	Entries    int
	Keys       int // of the entries
}

// Client follows the key set.
type Client struct {
	cfg Config

	// Owned by Run.
	held     map[string]string // versions by name
	keys     int               // of those held
	complete bool              // held is a whole set, and the sink has it
	said     string            // the last trouble logged

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

// setUsable lets the enforcer answer. A source that has been the control plane stays so: what it said is in force.
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

// Run follows the key set until the context ends, over as many connections as it takes. An error means that the copy on disk could not
// be read or taken over.
func (c *Client) Run(ctx context.Context) error {
	versions, all, complete, err := c.cfg.Store.Load()
	if err != nil {
		return err
	}
	c.held, c.keys = versions, len(all.Keys)
	c.update(func(s *Status) { s.Entries, s.Keys = len(c.held), c.keys })
	if complete {
		if err := c.cfg.Sink.Replace(all); err != nil {
			return fmt.Errorf("take over the copy on disk: %w", err)
		}
		c.complete = true
		grace := time.AfterFunc(c.cfg.StartGrace, func() { c.setUsable(SourceDisk) })
		defer grace.Stop()
	}
	backoff := firstBackoff
	for {
		heard, err := c.connect(ctx)
		c.update(func(s *Status) { s.Connected, s.Synced = false, false })
		if ctx.Err() != nil {
			return nil
		}
		switch {
		case heard:
			backoff = firstBackoff
		case c.complete:
			c.setUsable(SourceDisk)
		}
		if c.said != err.Error() { // once, and not at every try
			c.said = err.Error()
			c.cfg.Log.Warn("no connection to the control plane; the policy set stays as it is", slog.String("error", c.said))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(backoff/2 + rand.N(backoff/2)): // so that not all come at once after a restart
		}
		backoff = min(2*backoff, longestBackoff)
	}
}

// connect follows one connection to its end, and reports whether anything was taken over. The error is never nil.
func (c *Client) connect(ctx context.Context) (heard bool, err error) {
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
	request := &discovery.DeltaDiscoveryRequest{
		Node:                    &core.Node{Id: c.cfg.NodeID},
		TypeUrl:                 keyset.TypeURL,
		ResourceNamesSubscribe:  []string{"*"},
		InitialResourceVersions: c.held,
	}
	for first := true; ; first = false {
		// Where the stream has ended, Send says just that, and Recv says why.
		if err := stream.Send(request); err != nil && !errors.Is(err, io.EOF) {
			return heard, fmt.Errorf("send to %s: %w", c.cfg.Address, err)
		}
		resp, err := stream.Recv()
		if err != nil {
			return heard, fmt.Errorf("receive from %s: %w", c.cfg.Address, err)
		}
		if first {
			c.said = ""
			c.update(func(s *Status) { s.Connected, s.Position = true, 0 })
			c.cfg.Log.Info("connected to the control plane", slog.String("address", c.cfg.Address), slog.Int("entriesHeld", len(c.held)))
		}
		request = &discovery.DeltaDiscoveryRequest{TypeUrl: keyset.TypeURL, ResponseNonce: resp.GetNonce()}
		var refused *refusal
		switch err := c.take(resp); {
		case errors.As(err, &refused):
			if c.said != err.Error() { // it is sent again and again
				c.said = err.Error()
				c.cfg.Log.Error("refused a part of the policy set; what was in force stays", slog.String("error", c.said))
			}
			if request.ErrorDetail, err = refused.status(); err != nil {
				return heard, err
			}
		case err != nil: // our own disk or table failed: not acknowledged, and tried again with a new connection
			return heard, err
		default:
			heard = true
		}
	}
}

// refusal is a fault of what was sent.
type refusal struct {
	first error    // of one resource
	names []string // of all that are at fault
}

func (r *refusal) add(name string, err error) *refusal {
	if r == nil {
		r = &refusal{first: err}
	}
	r.names = append(r.names, name)
	return r
}

func (r *refusal) Error() string {
	if others := len(r.names) - 1; others > 0 {
		return fmt.Sprintf("%v (and %d more)", r.first, others)
	}
	return r.first.Error()
}

func (r *refusal) Unwrap() error { return r.first }

// status is the refusal as it is sent: with the names, so that the rest of the page comes again without them.
func (r *refusal) status() (*rpcstatus.Status, error) {
	details, err := keyset.RefusalDetails(r.names)
	if err != nil {
		return nil, fmt.Errorf("refuse: %w", err)
	}
	return &rpcstatus.Status{Code: int32(codes.InvalidArgument), Message: r.Error(), Details: details}, nil
}

// page is a response that was read.
type page struct {
	change   policy.Delta
	upserts  []keyset.Resource
	removed  []string
	position uint64
	marker   bool // it ends the synchronisation
}

// read reads a response: all of it, or it is a refusal.
func read(resp *discovery.DeltaDiscoveryResponse) (*page, error) {
	p := &page{upserts: make([]keyset.Resource, 0, len(resp.GetResources())), removed: resp.GetRemovedResources()}
	var refused *refusal
	if got := resp.GetTypeUrl(); got != keyset.TypeURL {
		return nil, refused.add(got, fmt.Errorf("response of type %q: only the key set was subscribed to", got))
	}
	for _, r := range resp.GetResources() {
		if got := r.GetResource().GetTypeUrl(); got != keyset.TypeURL {
			refused = refused.add(r.GetName(), fmt.Errorf("resource %q has type %q", r.GetName(), got))
			continue
		}
		if r.GetName() == keyset.SyncName {
			p.marker = true
			continue
		}
		body := r.GetResource().GetValue()
		if err := keyset.Decode(r.GetName(), body, &p.change); err != nil {
			refused = refused.add(r.GetName(), err)
			continue
		}
		p.upserts = append(p.upserts, keyset.Resource{Name: r.GetName(), Version: r.GetVersion(), Body: body})
	}
	for _, name := range p.removed {
		ref, err := keyset.RefOf(name)
		if err != nil {
			refused = refused.add(name, err)
			continue
		}
		p.change.Removed = append(p.change.Removed, ref)
	}
	if refused != nil {
		return nil, refused
	}
	p.position, _ = strconv.ParseUint(resp.GetSystemVersionInfo(), 10, 64) // for the status only
	return p, nil
}

// take takes one response over: all of it or nothing.
func (c *Client) take(resp *discovery.DeltaDiscoveryResponse) error {
	p, err := read(resp)
	if err != nil {
		return err
	}
	if c.complete && !p.change.Empty() {
		// With a whole set in force each page is a change of it: applied before it is stored, so that a revocation holds at once.
		if err := c.cfg.Sink.Apply(&p.change); err != nil {
			return fmt.Errorf("apply change: %w", err)
		}
	}
	if !p.change.Empty() || p.marker {
		if err := c.cfg.Store.Commit(p.upserts, p.removed, p.marker); err != nil {
			return err
		}
	}
	c.remember(p)
	if p.marker && !c.complete {
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
		s.Entries, s.Keys, s.Position = len(c.held), c.keys, p.position
		if !p.change.Empty() {
			s.LastChange = c.cfg.Now()
		}
		if p.marker {
			s.Synced = true
		}
	})
	if p.marker {
		c.cfg.Log.Info("the policy set is complete", slog.Int("entries", len(c.held)))
		c.setUsable(SourceControlPlane)
	}
	return nil
}

// remember notes what is held now.
func (c *Client) remember(p *page) {
	for _, r := range p.upserts {
		ref, _ := keyset.RefOf(r.Name) // read has seen to that
		if _, had := c.held[r.Name]; !had && ref.Kind == policy.KindKey {
			c.keys++
		}
		c.held[r.Name] = r.Version
	}
	for i, name := range p.removed {
		if _, had := c.held[name]; had && p.change.Removed[i].Kind == policy.KindKey {
			c.keys--
		}
		delete(c.held, name)
	}
}
