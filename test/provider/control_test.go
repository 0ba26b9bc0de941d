package provider

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
)

func TestControl(t *testing.T) {
	s := start(t, Config{})
	control := httptest.NewServer(s.Control())
	t.Cleanup(control.Close)
	call := func(method, path string) (int, []byte) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, control.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		response, err := control.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		return response.StatusCode, body
	}
	requests := func(query string) []Record {
		t.Helper()
		_, body := call(http.MethodGet, "/_sim/requests"+query)
		var list struct{ Requests []Record }
		if err := json.Unmarshal(body, &list); err != nil {
			t.Fatalf("decode %q: %v", body, err)
		}
		return list.Requests
	}
	if status, _ := call(http.MethodGet, "/_sim/health"); status != http.StatusOK {
		t.Errorf("health is %d", status)
	}
	if status, _ := call(http.MethodPost, "/_sim/release?id=none"); status != http.StatusNotFound {
		t.Errorf("release of nothing gives %d", status)
	}
	s.post(t, "/v1/chat/completions", chat("first"))
	s.last(t)
	answer := make(chan result, 1)
	request := s.request(t, "/v1/chat/completions", chat("sim:hold"))
	go func() { answer <- s.do(t, request) }()
	waitUntil(t, "the second request holds", func() bool { return len(requests("?state=holding")) == 1 })
	all := requests("")
	if len(all) != 2 || all[0].State != StateDone || all[0].Body == "" || all[0].Headers.Get("Authorization") == "" {
		t.Errorf("requests are %+v", all)
	}
	if status, body := call(http.MethodPost, "/_sim/release?id="+all[1].ID); status != http.StatusOK {
		t.Errorf("release gives %d: %s", status, body)
	}
	if got := <-answer; got.status != http.StatusOK {
		t.Errorf("released request gives %+v", got)
	}
	if status, _ := call(http.MethodPost, "/_sim/reset"); status != http.StatusOK || len(requests("")) != 0 {
		t.Errorf("reset gives %d and leaves %d", status, len(requests("")))
	}
	if got := s.post(t, "/_sim/reset", object{}); got.status != http.StatusNotFound {
		t.Errorf("the provider's port answers the control API with %d", got.status)
	}
}
