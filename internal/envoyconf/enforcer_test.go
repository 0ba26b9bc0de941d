package envoyconf

import (
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/grpc"

	"github.com/latchkey-dev/latchkey/internal/policy"
)

// plan is what the test's enforcer says to the requests of a test.
type plan struct {
	answer       *answer // given as soon as the request's head is there
	answerToBody *answer // given when the body is there
	provider     string  // empty: no provider is named
	path         string
	set          map[string]string
	remove       []string
	body         []byte  // nil: unchanged
	onResponse   *answer // takes the place of the provider's response
	silent       bool    // say nothing until Envoy has given up
	leave        bool    // end the stream once the response's head has been seen
}

type answer struct {
	status      int
	contentType string
	body        string
}

// enforcer is a small ext_proc server that does as planned and remembers what it was told.
type enforcer struct {
	extprocv3.UnimplementedExternalProcessorServer

	mu   sync.Mutex
	plan plan
	seen []told
}

// told is what the enforcer was told of one request.
type told struct {
	head         map[string][]string
	endStream    bool
	body         []byte
	response     map[string][]string
	responseBody []byte
}

// serve answers on the unix socket until stop is called.
func (e *enforcer) serve(t *testing.T, socket string) (stop func()) {
	t.Helper()
	_ = os.Remove(socket)
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.MaxRecvMsgSize(policy.DefaultMaxRequestBytes + 1<<20))
	extprocv3.RegisterExternalProcessorServer(server, e)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(listener)
	}()
	stop = sync.OnceFunc(func() {
		server.Stop()
		<-done
	})
	t.Cleanup(stop)
	return stop
}

func (e *enforcer) follow(p plan) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.plan, e.seen = p, nil
}

func (e *enforcer) planned() plan {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.plan
}

func (e *enforcer) last(t *testing.T) told {
	t.Helper()
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.seen) == 0 {
		t.Fatal("the enforcer was asked nothing")
	}
	return e.seen[len(e.seen)-1]
}

func (e *enforcer) asked() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.seen)
}

// Process implements the ext_proc service.
func (e *enforcer) Process(stream extprocv3.ExternalProcessor_ProcessServer) error {
	e.mu.Lock()
	p, index := e.plan, len(e.seen)
	e.seen = append(e.seen, told{})
	e.mu.Unlock()
	note := func(f func(*told)) {
		e.mu.Lock()
		defer e.mu.Unlock()
		if index < len(e.seen) {
			f(&e.seen[index])
		}
	}
	for {
		req, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if p.silent {
			<-stream.Context().Done()
			return stream.Context().Err()
		}
		var res *extprocv3.ProcessingResponse
		switch part := req.GetRequest().(type) {
		case *extprocv3.ProcessingRequest_RequestHeaders:
			note(func(s *told) {
				s.head = headerValues(part.RequestHeaders.GetHeaders())
				s.endStream = part.RequestHeaders.GetEndOfStream()
			})
			common := &extprocv3.CommonResponse{}
			if part.RequestHeaders.GetEndOfStream() {
				common = p.forward()
			}
			res = &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestHeaders{
				RequestHeaders: &extprocv3.HeadersResponse{Response: common},
			}}
			if p.answer != nil {
				res = p.answer.immediate()
			}
		case *extprocv3.ProcessingRequest_RequestBody:
			note(func(s *told) { s.body = part.RequestBody.GetBody() })
			res = &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestBody{
				RequestBody: &extprocv3.BodyResponse{Response: p.forward()},
			}}
			if p.answerToBody != nil {
				res = p.answerToBody.immediate()
			}
		case *extprocv3.ProcessingRequest_ResponseHeaders:
			note(func(s *told) { s.response = headerValues(part.ResponseHeaders.GetHeaders()) })
			res = &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ResponseHeaders{
				ResponseHeaders: &extprocv3.HeadersResponse{Response: &extprocv3.CommonResponse{}},
			}}
			if p.onResponse != nil {
				res = p.onResponse.immediate()
			}
		case *extprocv3.ProcessingRequest_ResponseBody:
			note(func(s *told) { s.responseBody = append(s.responseBody, part.ResponseBody.GetBody()...) })
			res = &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ResponseBody{
				ResponseBody: &extprocv3.BodyResponse{Response: &extprocv3.CommonResponse{}},
			}}
		case *extprocv3.ProcessingRequest_ResponseTrailers:
			res = &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ResponseTrailers{
				ResponseTrailers: &extprocv3.TrailersResponse{},
			}}
		default:
			return errors.New("an unplanned part")
		}
		if err := stream.Send(res); err != nil {
			return err
		}
		if _, ok := req.GetRequest().(*extprocv3.ProcessingRequest_ResponseHeaders); ok && p.leave {
			return nil
		}
	}
}

// forward is what makes Envoy send the request on to the provider.
func (p plan) forward() *extprocv3.CommonResponse {
	mutation := &extprocv3.HeaderMutation{RemoveHeaders: p.remove}
	set := func(name, value string) {
		mutation.SetHeaders = append(mutation.SetHeaders, &corev3.HeaderValueOption{
			Header:       &corev3.HeaderValue{Key: name, RawValue: []byte(value)},
			AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
		})
	}
	if p.provider != "" {
		set(policy.ProviderHeader, p.provider)
	}
	if p.path != "" {
		set(":path", p.path)
	}
	for name, value := range p.set {
		set(name, value)
	}
	common := &extprocv3.CommonResponse{HeaderMutation: mutation, ClearRouteCache: true}
	if p.body != nil {
		set("content-length", strconv.Itoa(len(p.body)))
		common.BodyMutation = &extprocv3.BodyMutation{Mutation: &extprocv3.BodyMutation_Body{Body: slices.Clone(p.body)}}
	}
	return common
}

func (a *answer) immediate() *extprocv3.ProcessingResponse {
	return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ImmediateResponse{
		ImmediateResponse: &extprocv3.ImmediateResponse{
			Status: &typev3.HttpStatus{Code: typev3.StatusCode(a.status)},
			Headers: &extprocv3.HeaderMutation{SetHeaders: []*corev3.HeaderValueOption{
				{Header: &corev3.HeaderValue{Key: "content-type", RawValue: []byte(a.contentType)}},
				{Header: &corev3.HeaderValue{Key: "x-request-id", RawValue: []byte("the-enforcers")}},
			}},
			Body:    []byte(a.body),
			Details: policy.AnswerDetails,
		},
	}}
}

func headerValues(headers *corev3.HeaderMap) map[string][]string {
	values := make(map[string][]string)
	for _, h := range headers.GetHeaders() {
		value := h.GetValue()
		if raw := h.GetRawValue(); len(raw) > 0 {
			value = string(raw)
		}
		values[h.GetKey()] = append(values[h.GetKey()], value)
	}
	return values
}
