package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/latchkey-dev/latchkey/test/provider"
)

// answer is what the gateway gave.
type answer struct {
	status int
	header http.Header
	body   string
}

// code is error.code of an OpenAI error, or error.type of an Anthropic one.
func (a answer) code() string {
	var e struct {
		Error struct {
			Type string  `json:"type"`
			Code *string `json:"code"`
		} `json:"error"`
	}
	if json.Unmarshal([]byte(a.body), &e) != nil {
		return "not JSON"
	}
	if e.Error.Code != nil {
		return *e.Error.Code
	}
	return e.Error.Type
}

func (a answer) String() string { return fmt.Sprintf("%d %s", a.status, a.body) }

// request is one call of the gateway. The zero value is a small chat with gpt-5-mini.
type request struct {
	method  string
	path    string // may hold what net/url would mend; sent as it is
	body    string
	headers map[string]string // beside the defaults; an empty value removes one
}

func chat(model, text string) string {
	body, err := json.Marshal(map[string]any{"model": model, "messages": []map[string]string{{"role": "user", "content": text}}})
	if err != nil {
		panic(err) // strings always marshal
	}
	return string(body)
}

func streamed(model, text string) string {
	return strings.TrimSuffix(chat(model, text), "}") + `,"stream":true}`
}

func (r request) build(t *testing.T, key string) *http.Request {
	t.Helper()
	method, path, body := r.method, r.path, r.body
	if method == "" {
		method = http.MethodPost
	}
	if path == "" {
		path = "/v1/chat/completions"
	}
	if body == "" && method == http.MethodPost {
		body = chat("gpt-5-mini", "sim:reply=ok")
	}
	req, err := http.NewRequestWithContext(t.Context(), method, theStack.GatewayURL(), strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.URL = &url.URL{Scheme: req.URL.Scheme, Host: req.URL.Host, Opaque: path}
	req.Header.Set("Content-Type", "application/json")
	if key != "" {
		req.Header.Set("Authorization", "Bearer "+key)
	}
	for name, value := range r.headers {
		if value == "" {
			req.Header.Del(name)
		} else {
			req.Header.Set(name, value)
		}
	}
	return req
}

func send(t *testing.T, req *http.Request) (answer, error) {
	t.Helper()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return answer{}, err
	}
	return answer{resp.StatusCode, resp.Header, string(body)}, nil
}

// call sends the request and fails the test if there is no answer at all.
func call(t *testing.T, key string, r request) answer {
	t.Helper()
	a, err := send(t, r.build(t, key))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// decided waits until a call of the key is answered with the status and code.
func decided(t *testing.T, key string, r request, status int, code string) {
	t.Helper()
	eventually(t, fmt.Sprintf("the key is answered %d %s", status, code), func() error {
		a, err := send(t, r.build(t, key))
		if err != nil {
			return err
		}
		if a.status != status || (code != "" && a.code() != code) {
			return fmt.Errorf("got %v", a)
		}
		return nil
	})
}

// control asks the simulated provider's control API.
func control(t *testing.T, method, path string, into any) error {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, theStack.ProviderControl+path, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	a, err := send(t, req)
	if err != nil {
		return err
	}
	if a.status != http.StatusOK {
		return fmt.Errorf("%s %s: %v", method, path, a)
	}
	if into != nil {
		return json.NewDecoder(bytes.NewBufferString(a.body)).Decode(into)
	}
	return nil
}

// received is what the provider got of requests whose body holds the mark.
func received(t *testing.T, mark string) []provider.Record {
	t.Helper()
	var all struct {
		Requests []provider.Record `json:"requests"`
	}
	if err := control(t, http.MethodGet, "/_sim/requests", &all); err != nil {
		t.Fatal(err)
	}
	var found []provider.Record
	for _, r := range all.Requests {
		if strings.Contains(r.Body, mark) {
			found = append(found, r)
		}
	}
	return found
}
