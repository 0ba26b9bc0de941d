package extproc

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"runtime/debug"

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

// Adapter implements Envoy's external processor with the engine. It holds no state of its own; each stream has its own.
type Adapter struct {
	extprocv3.UnimplementedExternalProcessorServer

	engine Engine
	faults Faults
	log    *slog.Logger
}

// NewAdapter makes the adapter. All arguments are required.
func NewAdapter(engine Engine, faults Faults, log *slog.Logger) *Adapter {
	return &Adapter{engine: engine, faults: faults, log: log}
}

// Process handles one HTTP request, from its headers to its response's.
func (a *Adapter) Process(server extprocv3.ExternalProcessor_ProcessServer) error {
	s := stream{adapter: a}
	for {
		req, err := server.Recv()
		if errors.Is(err, io.EOF) {
			return nil // Envoy is done with the request
		}
		// To Envoy a stream that ends in good order is a pass, and one that ends with an error a refusal: any doubt is an error.
		if err != nil {
			return err // a gRPC status, which wrapping would hide
		}
		resp, done := s.guard(req)
		if err := server.Send(resp); err != nil {
			return err
		}
		if done {
			return nil
		}
	}
}

// stage is how far a request has come.
type stage uint8

const (
	stageNew     stage = iota // nothing received
	stageBody                 // the headers are known, the decision waits for the body
	stageDecided              // the request was forwarded
)

// stream is the state of one HTTP request. One goroutine uses it.
type stream struct {
	adapter  *Adapter
	stage    stage
	head     enforce.Head
	exchange *enforce.Exchange
	// headersOnly says that Envoy's configuration lets nothing follow the response's headers.
	headersOnly bool
}

// errProtocol is what Envoy did and must not.
type errProtocol string

func (e errProtocol) Error() string { return string(e) }

// guard handles a message, and refuses the request when that fails in any way. done tells to end the stream.
func (s *stream) guard(req *extprocv3.ProcessingRequest) (resp *extprocv3.ProcessingResponse, done bool) {
	defer func() {
		if cause := recover(); cause != nil {
			s.adapter.faults.Panicked()
			s.adapter.log.Error("engine panicked, the request is refused",
				slog.String("cause", describePanic(cause)), slog.String("stack", string(debug.Stack())))
			resp, done = immediate(unable(s.head)), true
		}
	}()
	resp, done, err := s.handle(req)
	if err != nil {
		s.adapter.faults.Violated()
		s.adapter.log.Error("unexpected message from Envoy, the request is refused", slog.String("violation", err.Error()))
		return immediate(unable(s.head)), true
	}
	return resp, done
}

// describePanic says what a panic was about. A value that is no run-time error may quote the request, and is named by its type only.
func describePanic(cause any) string {
	if err, ok := cause.(runtime.Error); ok {
		return err.Error()
	}
	return fmt.Sprintf("%T", cause)
}

func (s *stream) handle(req *extprocv3.ProcessingRequest) (resp *extprocv3.ProcessingResponse, done bool, err error) {
	if err := s.checkModes(req.GetProtocolConfig()); err != nil {
		return nil, false, err
	}
	switch msg := req.GetRequest().(type) {
	case *extprocv3.ProcessingRequest_RequestHeaders:
		return s.requestHeaders(msg.RequestHeaders)
	case *extprocv3.ProcessingRequest_RequestBody:
		return s.requestBody(msg.RequestBody)
	case *extprocv3.ProcessingRequest_ResponseHeaders:
		return s.responseHeaders(msg.ResponseHeaders)
	case *extprocv3.ProcessingRequest_RequestTrailers:
		return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestTrailers{
			RequestTrailers: &extprocv3.TrailersResponse{},
		}}, false, nil
	case *extprocv3.ProcessingRequest_ResponseBody:
		return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ResponseBody{
			ResponseBody: &extprocv3.BodyResponse{},
		}}, false, nil
	case *extprocv3.ProcessingRequest_ResponseTrailers:
		return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ResponseTrailers{
			ResponseTrailers: &extprocv3.TrailersResponse{},
		}}, false, nil
	}
	return nil, false, errProtocol("a message of an unknown kind")
}

// checkModes refuses an Envoy that would show less of a request than the decision needs: with a streamed body, each piece would pass
// for the whole. Envoy tells its modes with a stream's first message.
func (s *stream) checkModes(modes *extprocv3.ProtocolConfiguration) error {
	if modes == nil {
		return nil
	}
	s.headersOnly = modes.GetResponseBodyMode() == filterv3.ProcessingMode_NONE
	if mode := modes.GetRequestBodyMode(); mode != filterv3.ProcessingMode_BUFFERED {
		return errProtocol("request body mode " + mode.String() + ": BUFFERED is needed")
	}
	return nil
}

func (s *stream) requestHeaders(msg *extprocv3.HttpHeaders) (*extprocv3.ProcessingResponse, bool, error) {
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
	forward, answer := exchange.Body(nil)
	if answer != nil {
		return immediate(answer), true, nil
	}
	s.stage = stageDecided
	return requestHeadersResponse(forwarded(forward)), false, nil
}

// requestBody takes the message for the whole body, whatever its end_of_stream says: in BUFFERED mode that is false when trailers follow.
func (s *stream) requestBody(msg *extprocv3.HttpBody) (*extprocv3.ProcessingResponse, bool, error) {
	switch s.stage {
	case stageNew:
		return nil, false, errProtocol("request body before the headers")
	case stageDecided:
		return nil, false, errProtocol("request body after the decision")
	case stageBody:
	}
	forward, answer := s.exchange.Body(msg.GetBody())
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
	case stageBody:
		// Envoy holds the request back until its body is decided, so this is Envoy's own answer: the body is too large, or did not
		// arrive in time.
		return responseHeadersResponse(nil), s.headersOnly, nil
	case stageDecided:
	}
	code, headers, err := responseHead(msg)
	if err != nil {
		return nil, false, err
	}
	answer, change := s.exchange.ResponseHead(code, headers)
	if answer != nil {
		return immediate(answer), true, nil
	}
	// Ending the stream here, where nothing can follow, frees Envoy's response from it: an enforcer that restarts does not cut off
	// the answers that providers are still streaming.
	return responseHeadersResponse(change), s.headersOnly, nil
}
