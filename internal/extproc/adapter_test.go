package extproc

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	filterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/latchkey-dev/latchkey/internal/enforce"
	"github.com/latchkey-dev/latchkey/internal/policy"
)

const (
	buffered = filterv3.ProcessingMode_BUFFERED
	streamed = filterv3.ProcessingMode_STREAMED
)

// chat asks for a model in as few bytes as it takes.
func chat(model string) string { return `{"model":"` + model + `","messages":[]}` }

// setOf is what a mutation sets, by name. Each must overwrite.
func setOf(t *testing.T, m *extprocv3.HeaderMutation) map[string]string {
	t.Helper()
	set := map[string]string{}
	for _, o := range m.GetSetHeaders() {
		if o.GetAppendAction() != corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD {
			t.Errorf("header %s is set with action %v", o.GetHeader().GetKey(), o.GetAppendAction())
		}
		if _, twice := set[o.GetHeader().GetKey()]; twice {
			t.Errorf("header %s is set twice", o.GetHeader().GetKey())
		}
		set[o.GetHeader().GetKey()] = string(o.GetHeader().GetRawValue())
	}
	return set
}

// wantAnswer checks that the response is an answer of the status, with a JSON body, and returns the body.
func wantAnswer(t *testing.T, resp *extprocv3.ProcessingResponse, status int) string {
	t.Helper()
	answer := resp.GetImmediateResponse()
	if answer == nil {
		t.Fatalf("got %v, want an answer with status %d", resp, status)
	}
	if got := int(answer.GetStatus().GetCode()); got != status {
		t.Errorf("status %d, want %d: %s", got, status, answer.GetBody())
	}
	if got := answer.GetDetails(); got != policy.AnswerDetails {
		t.Errorf("details %q, want %q", got, policy.AnswerDetails)
	}
	if got := setOf(t, answer.GetHeaders())["content-type"]; got != "application/json" {
		t.Errorf("content-type %q", got)
	}
	if !json.Valid(answer.GetBody()) {
		t.Errorf("the body is not JSON: %s", answer.GetBody())
	}
	return string(answer.GetBody())
}

func TestForwardedRequest(t *testing.T) {
	t.Parallel()
	f := newFixture(t, fixtureOptions{})
	for name, tc := range map[string]struct {
		path     string
		body     string
		want     map[string]string
		wantBody string // empty: not changed
	}{
		"a model with another name upstream has its body rewritten, with the new length": {
			path: "/v1/chat/completions?beta=1",
			body: chat("gpt"),
			want: map[string]string{
				policy.ProviderHeader: "alpha", ":path": "/v1/chat/completions?beta=1", "content-length": "43",
			},
			wantBody: chat("gpt-upstream-2026"),
		},
		"a model of the same name upstream keeps its body and its length": {
			path: "/chat/completions",
			body: chat("same"),
			want: map[string]string{policy.ProviderHeader: "alpha", ":path": "/v1/chat/completions"},
		},
		"a model of the other dialect goes to its own provider": {
			path: "/v1/messages",
			body: chat("claude"),
			want: map[string]string{policy.ProviderHeader: "beta", ":path": "/v1/messages"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := f.begin(t)
			got := d.ask(f.post(tc.path))
			if diff := cmp.Diff(&extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestHeaders{
				RequestHeaders: &extprocv3.HeadersResponse{Response: &extprocv3.CommonResponse{}},
			}}, got, protocmp.Transform()); diff != "" {
				t.Errorf("answer to the head (-want +got):\n%s", diff)
			}
			body := d.ask(requestBody(tc.body)).GetRequestBody().GetResponse()
			if body == nil {
				t.Fatal("the request is not forwarded")
			}
			tc.want["accept-encoding"] = "identity"
			if diff := cmp.Diff(tc.want, setOf(t, body.GetHeaderMutation())); diff != "" {
				t.Errorf("headers set (-want +got):\n%s", diff)
			}
			if !slices.Contains(body.GetHeaderMutation().GetRemoveHeaders(), "authorization") {
				t.Errorf("the caller's key stays: only %v are removed", body.GetHeaderMutation().GetRemoveHeaders())
			}
			if !body.GetClearRouteCache() {
				t.Error("the route is not chosen anew")
			}
			if got := string(body.GetBodyMutation().GetBody()); got != tc.wantBody {
				t.Errorf("body %q, want %q", got, tc.wantBody)
			}
			pass := d.ask(responseHeaders(":status", "200", "content-type", "text/event-stream"))
			if pass.GetResponseHeaders() == nil || len(setOf(t, pass.GetResponseHeaders().GetResponse().GetHeaderMutation())) == 0 {
				t.Errorf("the response does not pass, with the limits in its headers: %v", pass)
			}
			if err := d.stream.CloseSend(); err != nil {
				t.Fatal(err)
			}
			d.ended()
		})
	}
}

func TestAnswers(t *testing.T) {
	t.Parallel()
	f := newFixture(t, fixtureOptions{})
	for name, tc := range map[string]struct {
		head   *extprocv3.ProcessingRequest
		body   string // empty: answered by the head
		status int
		want   string // in the body
	}{
		"no key is refused by the head": {
			head:   requestHeaders(false, ":method", "POST", ":path", "/v1/chat/completions"),
			status: 401, want: "no API key",
		},
		"a list of models is answered by the head": {
			head:   requestHeaders(true, ":method", "GET", ":path", "/v1/models", "x-api-key", f.plaintext),
			status: 200, want: `"gpt"`,
		},
		"a request that ends with its head is answered, where it needs a body": {
			head:   requestHeaders(true, ":method", "POST", ":path", "/v1/chat/completions", "x-api-key", f.plaintext),
			status: 400,
		},
		"an unknown model is refused by the body": {
			head: f.post("/v1/chat/completions"), body: chat("nonsense"), status: 404, want: "model_not_found",
		},
		"a body that is no JSON is refused": {
			head: f.post("/v1/chat/completions"), body: "model=gpt", status: 400, want: "invalid_request_error",
		},
		"two keys in headers of the same name are both seen": {
			head: f.post("/v1/chat/completions", "authorization", "Bearer lk_other"), status: 400, want: "more than one API key",
		},
		"an answer in Anthropic's dialect is so": {
			head:   requestHeaders(false, ":method", "POST", ":path", "/v1/messages"),
			status: 401, want: "authentication_error",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := f.begin(t)
			resp := d.ask(tc.head)
			if tc.body != "" {
				if resp.GetImmediateResponse() != nil {
					t.Fatalf("answered by the head: %v", resp)
				}
				resp = d.ask(requestBody(tc.body))
			}
			if body := wantAnswer(t, resp, tc.status); !strings.Contains(body, tc.want) {
				t.Errorf("body %s has no %s", body, tc.want)
			}
			d.ended()
		})
	}
}

func TestProviderThatRefusesTheGatewaysCredential(t *testing.T) {
	t.Parallel()
	f := newFixture(t, fixtureOptions{})
	d := f.begin(t)
	d.ask(f.post("/v1/chat/completions"))
	d.ask(requestBody(chat("gpt")))
	body := wantAnswer(t, d.ask(responseHeaders(":status", "401")), 502)
	if !strings.Contains(body, "alpha") {
		t.Errorf("body %s does not name the provider", body)
	}
	d.ended()
}

func TestHeaderValuesAreTakenFromEitherField(t *testing.T) {
	t.Parallel()
	msg := &extprocv3.HttpHeaders{EndOfStream: true, Headers: &corev3.HeaderMap{Headers: []*corev3.HeaderValue{
		{Key: ":method", Value: "GET"},
		{Key: ":path", RawValue: []byte("/v1/models?x=\xff")},
		{Key: ":authority", Value: "gw"},
		{Key: "Accept", Value: "a"},
		{Key: "accept", RawValue: []byte("b")},
		{Key: "x-empty"},
	}}}
	want := enforce.Head{
		Method: "GET", Path: "/v1/models?x=\xff", EndStream: true,
		Headers: []enforce.Header{{Name: "accept", Value: "a"}, {Name: "accept", Value: "b"}, {Name: "x-empty", Value: ""}},
	}
	if diff := cmp.Diff(want, headOf(msg)); diff != "" {
		t.Fatalf("head (-want +got):\n%s", diff)
	}
}

// In BUFFERED mode Envoy says that a body does not end the stream when trailers follow; it is whole all the same.
func TestBodyBeforeTrailersIsTheWhole(t *testing.T) {
	t.Parallel()
	f := newFixture(t, fixtureOptions{})
	d := f.begin(t)
	d.ask(f.post("/v1/chat/completions"))
	body := requestBody(chat("same"))
	body.GetRequestBody().EndOfStream = false
	if d.ask(body).GetRequestBody() == nil {
		t.Fatal("not forwarded")
	}
	trailers := &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_RequestTrailers{RequestTrailers: &extprocv3.HttpTrailers{}}}
	if got := d.ask(trailers); got.GetRequestTrailers() == nil {
		t.Fatalf("trailers do not pass: %v", got)
	}
}

func TestEnvoysOwnAnswerPasses(t *testing.T) {
	t.Parallel()
	f := newFixture(t, fixtureOptions{})
	d := f.begin(t)
	d.ask(f.post("/v1/chat/completions"))
	if got := d.ask(responseHeaders(":status", "413")); got.GetResponseHeaders() == nil {
		t.Fatalf("got %v", got)
	}
	if err := d.stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	d.ended()
	if n := f.faults.violations.Load(); n != 0 {
		t.Fatalf("%d violations", n)
	}
}

func TestOtherMessagesPass(t *testing.T) {
	t.Parallel()
	f := newFixture(t, fixtureOptions{})
	d := f.begin(t)
	head := f.post("/v1/chat/completions")
	d.ask(head)
	d.ask(requestBody(chat("same")))
	d.ask(responseHeaders(":status", "200"))
	for range 2 {
		got := d.ask(&extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_ResponseBody{ResponseBody: &extprocv3.HttpBody{}}})
		if got.GetResponseBody() == nil {
			t.Fatalf("got %v for a response body", got)
		}
	}
	got := d.ask(&extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_ResponseTrailers{ResponseTrailers: &extprocv3.HttpTrailers{}}})
	if got.GetResponseTrailers() == nil {
		t.Fatalf("got %v for response trailers", got)
	}
	if err := d.stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	d.ended()
}

func TestViolationsAreRefused(t *testing.T) {
	t.Parallel()
	f := newFixture(t, fixtureOptions{})
	head := f.post("/v1/chat/completions")
	pieces, unseen := f.post("/v1/chat/completions"), f.post("/v1/chat/completions")
	pieces.ProtocolConfig = &extprocv3.ProtocolConfiguration{RequestBodyMode: streamed, ResponseBodyMode: streamed}
	unseen.ProtocolConfig = &extprocv3.ProtocolConfiguration{RequestBodyMode: buffered, ResponseBodyMode: filterv3.ProcessingMode_NONE}
	answered := responseHeaders(":status", "200")
	body := requestBody(chat("same"))
	for name, before := range map[string][]*extprocv3.ProcessingRequest{
		"a body before the head":                  {body},
		"a response before the request":           {responseHeaders(":status", "200")},
		"two heads":                               {head, head},
		"a head after the body":                   {head, body, head},
		"two bodies":                              {head, body, body},
		"a body that is shown in pieces":          {pieces},
		"an answer whose body is not shown":       {unseen},
		"two heads of the answer":                 {head, body, answered, answered},
		"a request body behind the answer":        {head, body, answered, body},
		"a message of no kind":                    {{}},
		"a message of no kind after the head":     {head, {}},
		"a response without a status":             {head, body, responseHeaders("x", "y")},
		"a response whose status is not a number": {head, body, responseHeaders(":status", "ok")},
	} {
		t.Run(name, func(t *testing.T) {
			d := f.begin(t)
			violations := f.faults.violations.Load()
			for _, req := range before[:len(before)-1] {
				if resp := d.ask(req); resp.GetImmediateResponse() != nil {
					t.Fatalf("refused too early: %v", resp)
				}
			}
			if body := wantAnswer(t, d.ask(before[len(before)-1]), 503); !strings.Contains(body, "server_error") {
				t.Errorf("body %s", body)
			}
			d.ended()
			if got := f.faults.violations.Load(); got != violations+1 {
				t.Errorf("%d violations counted, want %d", got, violations+1)
			}
		})
	}
}

// faulty is an engine with a bug.
type faulty func() (*enforce.Exchange, *enforce.Answer)

func (f faulty) Begin(enforce.Head) (*enforce.Exchange, *enforce.Answer) { return f() }

func TestPanicsAreRefused(t *testing.T) {
	t.Parallel()
	const canary = "lk_canary"
	for name, tc := range map[string]struct {
		engine faulty
		path   string
		want   string // in the body
		log    string
	}{
		"a panic in Begin": {
			engine: func() (*enforce.Exchange, *enforce.Answer) { panic("cannot decide on " + canary) },
			path:   "/v1/chat/completions", want: "server_error", log: `"cause":"string"`,
		},
		"a panic in Begin, of Anthropic's dialect": {
			engine: func() (*enforce.Exchange, *enforce.Answer) { panic(errors.New(canary)) },
			path:   "/v1/messages?x=1", want: `"api_error"`, log: `"cause":"*errors.errorString"`,
		},
		"a panic in Body": {
			engine: func() (*enforce.Exchange, *enforce.Answer) { return nil, nil },
			path:   "/v1/chat/completions", want: "server_error", log: "nil pointer dereference",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, fixtureOptions{engine: tc.engine})
			for i := range int64(2) { // the process goes on
				d := f.begin(t)
				resp := d.ask(f.post(tc.path))
				if resp.GetImmediateResponse() == nil {
					resp = d.ask(requestBody(chat("gpt")))
				}
				body := wantAnswer(t, resp, 503)
				if !strings.Contains(body, tc.want) {
					t.Errorf("body %s has no %s", body, tc.want)
				}
				if got := setOf(t, resp.GetImmediateResponse().GetHeaders())["x-request-id"]; got != "req-1" {
					t.Errorf("x-request-id %q", got)
				}
				d.ended()
				if got := f.faults.panics.Load(); got != i+1 {
					t.Errorf("%d panics counted, want %d", got, i+1)
				}
			}
			if log := f.log.String(); !strings.Contains(log, tc.log) || strings.Contains(log, canary) || strings.Contains(log, f.plaintext) {
				t.Errorf("the log lacks %s, or says what it must not: %s", tc.log, log)
			}
		})
	}
}
