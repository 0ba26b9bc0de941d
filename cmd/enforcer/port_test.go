package main

import (
	"net"
	"sync"
	"testing"
)

// port is the control plane's, through its whole life: it stays taken while the control plane is away, so that nobody else can get
// it, and connections are then closed at once.
type port struct {
	net.Listener

	mu     sync.Mutex
	tenant *lease
}

// lease is the listener of one control plane.
type lease struct {
	port  *port
	conns chan net.Conn
	done  chan struct{}
	close func()
}

func newPort(t *testing.T) *port {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &port{Listener: ln}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			p.handOver(conn)
		}
	}()
	t.Cleanup(func() { _ = ln.Close(); <-ended })
	return p
}

func (p *port) handOver(conn net.Conn) {
	p.mu.Lock()
	tenant := p.tenant
	p.mu.Unlock()
	if tenant != nil {
		select {
		case tenant.conns <- conn:
			return
		case <-tenant.done:
		}
	}
	_ = conn.Close()
}

// lease gives the port to a control plane, until that closes its listener.
func (p *port) lease() net.Listener {
	l := &lease{port: p, conns: make(chan net.Conn), done: make(chan struct{})}
	l.close = sync.OnceFunc(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.tenant == l {
			p.tenant = nil
		}
		close(l.done)
	})
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tenant = l
	return l
}

// Accept implements net.Listener.
func (l *lease) Accept() (net.Conn, error) {
	select {
	case conn := <-l.conns:
		return conn, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *lease) Close() error { l.close(); return nil }

// Addr implements net.Listener.
func (l *lease) Addr() net.Addr { return l.port.Addr() }
