package extproc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"runtime/debug"
	"sync"

	filterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"

	"github.com/latchkey-dev/latchkey/internal/enforce"
)

// Engine decides. *enforce.Engine is the one in use.
type Engine interface {
	Begin(head enforce.Head) (*enforce.Exchange, *enforce.Answer)
}

// Faults is told of what should never happen, from any stream's goroutine.
type Faults interface {
	// Panicked is called when the engine panicked; the request at hand was refused.
	Panicked()
	// Violated is called when Envoy sent what the protocol does not allow; the request at hand was refused.
	Violated()
}

// Adapter implements Envoy's external processor with the engine. Each stream has a state of its own.
type Adapter struct {
	extprocv3.UnimplementedExternalProcessorServer

	engine Engine
	faults Faults
	log    *slog.Logger

	letGo    chan struct{} // closed when answers are no longer watched
	letGoing sync.Once
}

// NewAdapter makes the adapter. All arguments are required.
func NewAdapter(engine Engine, faults Faults, log *slog.Logger) *Adapter {
	return &Adapter{engine: engine, faults: faults, log: log, letGo: make(chan struct{})}
}

// LetGo ends the streams of requests whose answers are on their way, in good order: Envoy goes on with the answers, and callers notice
// nothing. What they use is charged by what is known by then. Requests that are still to be decided go on.
func (a *Adapter) LetGo() { a.letGoing.Do(func() { close(a.letGo) }) }

// Process handles one HTTP request, from its headers to the end of its response. The stream's messages are handled in a goroutine of
// their own, which has nothing more to do once Process has returned, and ends with the stream.
func (a *Adapter) Process(server extprocv3.ExternalProcessor_ProcessServer) error {
	s := &stream{adapter: a}
	ended := make(chan error, 1)
	go func() { ended <- s.run(server) }()
	letGo := a.letGo
	for {
		select {
		case err := <-ended:
			s.end(true)
			return err
		case <-letGo:
			if s.release() {
				return nil
			}
			letGo = nil // it is still to be decided
		}
	}
}

// run handles messages until there are no more.
func (s *stream) run(server extprocv3.ExternalProcessor_ProcessServer) error {
	for {
		req, err := server.Recv()
		if errors.Is(err, io.EOF) {
			return nil // Envoy is done with the request
		}
		// To Envoy a stream that ends in good order is a pass, and one that ends with an error a refusal: any doubt is an error.
		if err != nil {
			return err // a gRPC status, which wrapping would hide
		}
		if done, err := s.answer(server, req); done || err != nil {
			return err
		}
	}
}

// answer handles one message, unless the stream has been let go.
func (s *stream) answer(server extprocv3.ExternalProcessor_ProcessServer, req *extprocv3.ProcessingRequest) (done bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.released {
		return true, nil
	}
	resp, done := s.guard(server.Context(), req)
	if err := server.Send(resp); err != nil {
		return true, err
	}
	if !done && s.stage == stageAnswering && s.adapter.lettingGo() {
		s.released = true
		s.finish(false)
		return true, nil
	}
	return done, nil
}

func (a *Adapter) lettingGo() bool {
	select {
	case <-a.letGo:
		return true
	default:
		return false
	}
}

// release lets the stream go if its answer is on its way.
func (s *stream) release() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stage != stageAnswering {
		return false
	}
	s.released = true
	s.finish(false)
	return true
}

// end tells the engine that there is nothing more to come.
func (s *stream) end(watched bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.finish(watched)
}

// finish tells the engine that there is nothing more to come. It holds mu.
func (s *stream) finish(watched bool) {
	defer func() {
		if cause := recover(); cause != nil {
			s.panicked(cause)
		}
	}()
	if s.exchange != nil {
		s.exchange.End(watched)
	}
}

// stage is how far a request has come.
type stage uint8

const (
	stageNew       stage = iota // nothing received
	stageBody                   // the headers are known, the decision waits for the body
	stageDecided                // the request was forwarded
	stageAnswering              // the answer's head has passed
)

// stream is the state of one HTTP request.
type stream struct {
	adapter *Adapter

	mu       sync.Mutex // of what follows
	released bool       // nobody watches the answer any more
	stage    stage
	head     enforce.Head
	exchange *enforce.Exchange
}

// errProtocol is what Envoy did and must not.
type errProtocol string

func (e errProtocol) Error() string { return string(e) }

// guard handles a message, and refuses the request when that fails in any way. done tells to end the stream.
func (s *stream) guard(ctx context.Context, req *extprocv3.ProcessingRequest) (resp *extprocv3.ProcessingResponse, done bool) {
	defer func() {
		if cause := recover(); cause != nil {
			s.panicked(cause)
			resp, done = immediate(unable(s.head)), true
		}
	}()
	resp, done, err := s.handle(ctx, req)
	if err != nil {
		s.adapter.faults.Violated()
		s.adapter.log.Error("unexpected message from Envoy, the request is refused", slog.String("violation", err.Error()))
		return immediate(unable(s.head)), true
	}
	return resp, done
}

func (s *stream) panicked(cause any) {
	s.adapter.faults.Panicked()
	s.adapter.log.Error("engine panicked, the request is refused",
		slog.String("cause", describePanic(cause)), slog.String("stack", string(debug.Stack())))
}

// describePanic says what a panic was about. A value that is no run-time error may quote the request, and is named by its type only.
func describePanic(cause any) string {
	if err, ok := cause.(runtime.Error); ok {
		return err.Error()
	}
	return fmt.Sprintf("%T", cause)
}

func (s *stream) handle(ctx context.Context, req *extprocv3.ProcessingRequest) (resp *extprocv3.ProcessingResponse, done bool, err error) {
	if err := checkModes(req.GetProtocolConfig()); err != nil {
		return nil, false, err
	}
	switch msg := req.GetRequest().(type) {
	case *extprocv3.ProcessingRequest_RequestHeaders:
		return s.requestHeaders(ctx, msg.RequestHeaders)
	case *extprocv3.ProcessingRequest_RequestBody:
		return s.requestBody(ctx, msg.RequestBody)
	case *extprocv3.ProcessingRequest_ResponseHeaders:
		return s.responseHeaders(msg.ResponseHeaders)
	case *extprocv3.ProcessingRequest_ResponseBody:
		return s.responseBody(msg.ResponseBody)
	case *extprocv3.ProcessingRequest_RequestTrailers:
		return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestTrailers{
			RequestTrailers: &extprocv3.TrailersResponse{},
		}}, false, nil
	case *extprocv3.ProcessingRequest_ResponseTrailers:
		if s.stage == stageAnswering {
			s.exchange.ResponseEnd()
		}
		return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ResponseTrailers{
			ResponseTrailers: &extprocv3.TrailersResponse{},
		}}, false, nil
	}
	return nil, false, errProtocol("a message of an unknown kind")
}

// checkModes refuses an Envoy that would show less of a request or its answer than is needed: with a streamed request body, each piece
// would pass for the whole; without the answer's body, nothing would be billed. Envoy tells its modes with a stream's first message.
func checkModes(modes *extprocv3.ProtocolConfiguration) error {
	if modes == nil {
		return nil
	}
	if mode := modes.GetRequestBodyMode(); mode != filterv3.ProcessingMode_BUFFERED {
		return errProtocol("request body mode " + mode.String() + ": BUFFERED is needed")
	}
	if mode := modes.GetResponseBodyMode(); mode != filterv3.ProcessingMode_STREAMED {
		return errProtocol("response body mode " + mode.String() + ": STREAMED is needed")
	}
	return nil
}

func (s *stream) requestHeaders(ctx context.Context, msg *extprocv3.HttpHeaders) (*extprocv3.ProcessingResponse, bool, error) {
	if s.stage != stageNew {
		return nil, false, errProtocol("request headers for the second time")
	}
	s.head = headOf(msg)
	exchange, answer := s.adapter.engine.Begin(s.head)
	if answer != nil {
		return immediate(answer), true, nil
	}
	s.exchange = exchange
	if !s.head.EndStream {
		s.stage = stageBody
		return requestHeadersResponse(&extprocv3.CommonResponse{}), false, nil
	}
	forward, answer := exchange.Body(ctx, nil)
	if answer != nil {
		return immediate(answer), true, nil
	}
	s.stage = stageDecided
	return requestHeadersResponse(forwarded(forward)), false, nil
}

// requestBody takes the message for the whole body, whatever its end_of_stream says: in BUFFERED mode that is false when trailers follow.
func (s *stream) requestBody(ctx context.Context, msg *extprocv3.HttpBody) (*extprocv3.ProcessingResponse, bool, error) {
	switch s.stage {
	case stageNew:
		return nil, false, errProtocol("request body before the headers")
	case stageDecided, stageAnswering:
		return nil, false, errProtocol("request body after the decision")
	case stageBody:
	}
	forward, answer := s.exchange.Body(ctx, msg.GetBody())
	if answer != nil {
		return immediate(answer), true, nil
	}
	s.stage = stageDecided
	return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestBody{
		RequestBody: &extprocv3.BodyResponse{Response: forwarded(forward)},
	}}, false, nil
}

func (s *stream) responseHeaders(msg *extprocv3.HttpHeaders) (*extprocv3.ProcessingResponse, bool, error) {
	switch s.stage {
	case stageNew:
		return nil, false, errProtocol("response headers before the request's")
	case stageAnswering:
		return nil, false, errProtocol("response headers for the second time")
	case stageBody:
		// Envoy holds the request back until its body is decided, so this is Envoy's own answer: the body is too large, or did not
		// arrive in time.
		return responseHeadersResponse(nil), false, nil
	case stageDecided:
	}
	code, headers, err := responseHead(msg)
	if err != nil {
		return nil, false, err
	}
	s.stage = stageAnswering
	answer, change := s.exchange.ResponseHead(code, headers, msg.GetEndOfStream())
	if answer != nil {
		return immediate(answer), true, nil
	}
	return responseHeadersResponse(change), false, nil
}

func (s *stream) responseBody(msg *extprocv3.HttpBody) (*extprocv3.ProcessingResponse, bool, error) {
	resp := &extprocv3.CommonResponse{}
	if s.stage == stageAnswering { // else it is the body of Envoy's own answer
		if out, changed := s.exchange.ResponseBody(msg.GetBody(), msg.GetEndOfStream()); changed {
			resp.BodyMutation = bodyMutation(out)
		}
	}
	return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ResponseBody{
		ResponseBody: &extprocv3.BodyResponse{Response: resp},
	}}, false, nil
}
