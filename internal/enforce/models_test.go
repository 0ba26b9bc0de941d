package enforce

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/latchkey-dev/latchkey/internal/policy"
)

func TestListModels(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	openAI := func(id, owner string) string {
		return `{"id":"` + id + `","object":"model","created":1767323045,"owned_by":"` + owner + `"}`
	}
	anthropic := func(id string) string {
		return `{"type":"model","id":"` + id + `","display_name":"` + id + `","created_at":"2026-01-02T03:04:05Z"}`
	}
	version := []string{"anthropic-version", "2023-06-01"}
	for name, tc := range map[string]struct {
		call call
		want string
	}{
		"a key's scope": {call{key: keyText, method: "GET", path: "/v1/models"}, // embed is in its scope, but it may not call it
			`{"object":"list","data":[` + openAI("gpt", "openai-eu") + `]}`},
		"the scope of both": {call{key: keyBounded, method: "GET", path: "/models?limit=0"},
			`{"object":"list","data":[` + openAI("gpt", "openai-eu") + `]}`},
		"all, in order": {call{key: keyGood, method: "GET", path: "/models"},
			`{"object":"list","data":[` + strings.Join([]string{
				openAI("claude", "anthropic-eu"), openAI("ears", "openai-eu"), openAI("embed", "openai-eu"), openAI("gpt", "openai-eu"), openAI("org/odd name:1", "openai-eu"),
				openAI("paint", "openai-eu"), openAI("same", "openai-eu"), openAI("voice", "openai-eu"),
			}, ",") + `]}`},
		"one":               {call{key: keyText, method: "GET", path: "/v1/models/gpt"}, openAI("gpt", "openai-eu")},
		"one, by its head":  {call{key: keyText, method: "HEAD", path: "/v1/models/gpt"}, openAI("gpt", "openai-eu")},
		"one with a slash":  {call{key: keyGood, method: "GET", path: "/models/org/odd%20name:1"}, openAI("org/odd name:1", "openai-eu")},
		"one, all escaped":  {call{key: keyGood, method: "GET", path: "/models/org%2fodd%20name%3A1"}, openAI("org/odd name:1", "openai-eu")},
		"one, as Anthropic": {call{key: keyText, method: "GET", path: "/v1/models/gpt", headers: version}, anthropic("gpt")},
		"a key's scope, as Anthropic": {call{key: keyText, method: "GET", path: "/v1/models", headers: version},
			`{"data":[` + anthropic("gpt") + `],"has_more":false,"first_id":"gpt","last_id":"gpt"}`},
		"the first two": {call{key: keyGood, method: "GET", path: "/v1/models?limit=2", headers: version},
			`{"data":[` + anthropic("claude") + `,` + anthropic("ears") + `],"has_more":true,"first_id":"claude","last_id":"ears"}`},
		"the next two": {call{key: keyGood, method: "GET", path: "/v1/models?limit=2&after_id=ears", headers: version},
			`{"data":[` + anthropic("embed") + `,` + anthropic("gpt") + `],"has_more":true,"first_id":"embed","last_id":"gpt"}`},
		"the last": {call{key: keyGood, method: "GET", path: "/v1/models?limit=2&after_id=same", headers: version},
			`{"data":[` + anthropic("voice") + `],"has_more":false,"first_id":"voice","last_id":"voice"}`},
		"behind the last": {call{key: keyGood, method: "GET", path: "/v1/models?after_id=voice", headers: version},
			`{"data":[],"has_more":false,"first_id":null,"last_id":null}`},
		"behind one that is gone": {call{key: keyGood, method: "GET", path: "/v1/models?limit=1&after_id=eel", headers: version},
			`{"data":[` + anthropic("embed") + `],"has_more":true,"first_id":"embed","last_id":"embed"}`},
		"before one": {call{key: keyGood, method: "GET", path: "/v1/models?limit=1&before_id=embed", headers: version},
			`{"data":[` + anthropic("ears") + `],"has_more":true,"first_id":"ears","last_id":"ears"}`},
		"before the second": {call{key: keyGood, method: "GET", path: "/v1/models?limit=1&before_id=ears", headers: version},
			`{"data":[` + anthropic("claude") + `],"has_more":false,"first_id":"claude","last_id":"claude"}`},
		"before the first": {call{key: keyGood, method: "GET", path: "/v1/models?before_id=claude", headers: version},
			`{"data":[],"has_more":false,"first_id":null,"last_id":null}`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, _, answer := w.do(t, tc.call)
			w.checkAnswer(t, answer)
			if diff := cmp.Diff(tc.want, string(answer.Body)); diff != "" || answer.Status != 200 {
				t.Errorf("%d (-want +got):\n%s", answer.Status, diff)
			}
			if valueOf(answer.Headers, "x-request-id") != "req-1" {
				t.Errorf("headers %v", answer.Headers)
			}
		})
	}
}

func TestListModelsOfNone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	k, _, _ := w.table.find(policy.KeyHash(mint(t, keyGood).Hash()))
	nothing := *k
	nothing.Models = policy.ModelScope{}
	if err := w.table.Apply(&policy.Delta{Keys: []*policy.Key{&nothing}}); err != nil {
		t.Fatal(err)
	}
	_, _, answer := w.do(t, call{key: keyGood, method: "GET", path: "/v1/models"})
	if got := string(answer.Body); got != `{"object":"list","data":[]}` {
		t.Errorf("got %s", got)
	}
}

func TestListModelsRefuses(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for path, says := range map[string]string{
		"/v1/models?limit=0":                   "from 1 to 1000",
		"/v1/models?limit=1001":                "from 1 to 1000",
		"/v1/models?limit=x":                   "from 1 to 1000",
		"/v1/models?after_id=a&before_id=b":    "exclude each other",
		"/v1/models?after_id=%zz":              "percent-encode",
		"/v1/models/nonsense":                  "does not exist",
		"/v1/models/GPT":                       "does not exist",
		"/v1/models/gpt/":                      "does not exist",
		"/v1/models/formless":                  "does not exist",
		"/v1/models/" + strings.Repeat("x", 9): "does not exist",
	} {
		a := w.refused(t, call{key: keyGood, method: "GET", path: path, headers: []string{"anthropic-version", "2023-06-01"}})
		if message := messageOf(t, a); !strings.Contains(message, says) {
			t.Errorf("%s: %q does not say %q", path, message, says)
		}
	}
}

// Page by page, in either direction, a client gets each model once.
func TestPagesCoverTheList(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var many policy.Delta
	for i := range 45 {
		many.Models = append(many.Models, model(fmt.Sprintf("m-%02d", i), policy.FormatOpenAI, "x", policy.TextGeneration))
	}
	if err := w.table.Apply(&many); err != nil {
		t.Fatal(err)
	}
	type page struct {
		Data    []struct{ ID string }
		HasMore bool   `json:"has_more"`
		FirstID string `json:"first_id"`
		LastID  string `json:"last_id"`
	}
	get := func(query string) page {
		_, _, answer := w.do(t, call{key: keyGood, method: "GET", path: "/v1/models?" + query, headers: []string{"anthropic-version", "2023-06-01"}})
		var p page
		if err := json.Unmarshal(answer.Body, &p); err != nil {
			t.Fatalf("%s: %v", answer.Body, err)
		}
		return p
	}
	const total = 8 + 45
	var forth, back []string
	for query := ""; len(forth) <= total; {
		p := get(query)
		for _, m := range p.Data {
			forth = append(forth, m.ID)
		}
		if !p.HasMore {
			break
		}
		query = "after_id=" + p.LastID
	}
	for query := "limit=7&before_id=zzz"; len(back) <= total; {
		p := get(query)
		ids := make([]string, 0, len(p.Data)+len(back))
		for _, m := range p.Data {
			ids = append(ids, m.ID)
		}
		back = append(ids, back...)
		if !p.HasMore {
			break
		}
		query = "limit=7&before_id=" + strings.ReplaceAll(p.FirstID, " ", "%20")
	}
	if len(forth) != total {
		t.Errorf("%d models", len(forth))
	}
	if diff := cmp.Diff(forth, back); diff != "" {
		t.Errorf("forth and back differ (-forth +back):\n%s", diff)
	}
}
