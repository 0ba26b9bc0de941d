package enforce

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/latchkey-dev/latchkey/internal/policy"
)

func TestForward(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	always := []string{
		"authorization", "x-api-key", "api-key", "x-goog-api-key", "proxy-authorization", "cookie",
		"openai-organization", "openai-project", "anthropic-organization-id",
	}
	and := func(names ...string) []string { return append(slices.Clone(always), names...) }
	for name, tc := range map[string]struct {
		call call
		want Forward
	}{
		"a model with another name at the provider": {
			call{key: keyGood, body: chat("gpt")},
			Forward{Provider: "openai-eu", Path: "/v1/chat/completions", Remove: always, Body: []byte(chat("gpt-upstream"))},
		},
		"a model with the same name": {
			call{key: keyGood, body: chat("same")},
			Forward{Provider: "openai-eu", Path: "/v1/chat/completions", Remove: always},
		},
		"without /v1, with a query": {
			call{key: keyGood, path: "/chat/completions?api-version=1&x=%20?", body: chat("same")},
			Forward{Provider: "openai-eu", Path: "/v1/chat/completions?api-version=1&x=%20?", Remove: always},
		},
		"a message": {
			call{key: keyGood, path: "/messages?beta=true", headers: []string{"anthropic-version", "2023-06-01"}, body: chat("claude")},
			Forward{Provider: "anthropic-eu", Path: "/v1/messages?beta=true", Remove: always, Body: []byte(chat("claude-upstream"))},
		},
		"tokens of a message": {
			call{key: keyGood, path: "/v1/messages/count_tokens", body: chat("claude")},
			Forward{Provider: "anthropic-eu", Path: "/v1/messages/count_tokens", Remove: always, Body: []byte(chat("claude-upstream"))},
		},
		"a search that is granted": {
			call{key: keyGood, path: "/v1/responses", body: `{"model":"gpt","tools":[{"type":"web_search"}]}`},
			Forward{Provider: "openai-eu", Path: "/v1/responses", Remove: always, Body: []byte(`{"model":"gpt-upstream","tools":[{"type":"web_search"}]}`)},
		},
		"within a key's scope": {
			call{key: keyText, body: chat("gpt")},
			Forward{Provider: "openai-eu", Path: "/v1/chat/completions", Remove: always, Body: []byte(chat("gpt-upstream"))},
		},
		"within the scope of both": {
			call{key: keyBounded, body: chat("gpt")},
			Forward{Provider: "openai-eu", Path: "/v1/chat/completions", Remove: always, Body: []byte(chat("gpt-upstream"))},
		},
		"headers that hold the key, and the gateway's own": {
			call{key: keyGood, headers: []string{
				"x-latchkey-provider", "anthropic-eu", "x-other", "a{good}b", "x-other", "c", "referer", "https://x/?k={good}", "x-encoded", "%6ck_" + w.keys[keyGood][3:], "x-fine", "lk_", "accept", "*/*",
			}, body: chat("same")},
			Forward{Provider: "openai-eu", Path: "/v1/chat/completions", Remove: and("x-latchkey-provider", "x-other", "referer", "x-encoded")},
		},
		"no content-type": {
			call{key: keyGood, headers: []string{"content-type", ""}, body: chat("same")},
			Forward{Provider: "openai-eu", Path: "/v1/chat/completions", Remove: always, Set: []Header{{"content-type", "application/json"}}},
		},
		"a content-type that holds the key": {
			call{key: keyGood, headers: []string{"content-type", "application/json; x={good}"}, body: chat("same")},
			Forward{Provider: "openai-eu", Path: "/v1/chat/completions", Remove: and("content-type"), Set: []Header{{"content-type", "application/json"}}},
		},
		"a content-type twice": {
			call{key: keyGood, headers: []string{"content-type", "application/json", "content-type", "application/json"}, body: chat("same")},
			Forward{Provider: "openai-eu", Path: "/v1/chat/completions", Remove: always},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, forward, answer := w.do(t, tc.call)
			if answer != nil {
				t.Fatalf("refused: %d %s", answer.Status, answer.Body)
			}
			tc.want.Set = append([]Header{{"accept-encoding", "identity"}}, tc.want.Set...) // so that the answer can be read
			if diff := cmp.Diff(&tc.want, forward); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestForwardOfAForm(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	_, forward, answer := w.do(t, call{key: keyGood, path: "/audio/transcriptions", headers: []string{"content-type", "multipart/form-data; boundary={text}"}, body: "--{text}\r\n" +
		"Content-Disposition: form-data; name=\"model\"\r\n\r\nears\r\n--{text}--\r\n"})
	if answer != nil {
		t.Fatalf("refused: %s", answer.Body)
	}
	contentType := valueOf(forward.Set, "content-type")
	_, boundary, _ := strings.Cut(contentType, "boundary=")
	want := "--" + boundary + "\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nears-upstream\r\n--" + boundary + "--\r\n"
	if string(forward.Body) != want || !strings.HasPrefix(contentType, "multipart/form-data; boundary=latchkey-") || forward.Path != "/v1/audio/transcriptions" {
		t.Errorf("got %s %q %q", forward.Path, contentType, forward.Body)
	}
}

func TestNameThatCannotBeWritten(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if err := w.table.Apply(&policy.Delta{Models: []*policy.Model{model("gpt", policy.FormatOpenAI, "\xff", policy.TextGeneration)}}); err != nil {
		t.Fatal(err)
	}
	a := w.refused(t, call{key: keyGood, body: chat("gpt")})
	if a.Status != 500 || !strings.Contains(string(a.Body), "server_error") || valueOf(a.Headers, "x-should-retry") != "false" {
		t.Errorf("%d %v %s", a.Status, a.Headers, a.Body)
	}
}

func TestForwardDoesNotShareItsHeaders(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	_, first, _ := w.do(t, call{key: keyGood, body: chat("same")})
	clear(first.Remove)
	if _, second, _ := w.do(t, call{key: keyGood, body: chat("same")}); second.Remove[0] != "authorization" {
		t.Errorf("removes %q", second.Remove)
	}
}

func TestCredentials(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for name, tc := range map[string]struct {
		headers []string
		reason  string // empty: let through
	}{
		"a bearer":                                {[]string{"authorization", "Bearer {good}"}, ""},
		"a bearer in other letters":               {[]string{"authorization", "bEARER   {good} "}, ""},
		"x-api-key":                               {[]string{"x-api-key", "{good}"}, ""},
		"api-key":                                 {[]string{"api-key", " {good}\t"}, ""},
		"the same in all three":                   {[]string{"api-key", "{good}", "authorization", "Bearer {good}", "x-api-key", "{good}"}, ""},
		"one that is empty":                       {[]string{"x-api-key", "", "authorization", "Bearer {good}"}, ""},
		"a bearer of nothing, and another":        {[]string{"authorization", "Bearer ", "x-api-key", "{good}"}, ""},
		"an authorization of nothing":             {[]string{"authorization", "", "x-api-key", "{good}"}, ""},
		"a key with a colon in a header's name":   {[]string{"x-api-key:", "{good}"}, "no_key"},
		"nothing but a bearer":                    {[]string{"authorization", "Bearer"}, "no_key"},
		"x-goog-api-key":                          {[]string{"x-goog-api-key", "{good}"}, "no_key"},
		"a cookie":                                {[]string{"cookie", "api-key={good}"}, "no_key"},
		"Basic":                                   {[]string{"authorization", "Basic dTpw"}, "no_key"},
		"Basic beside a good key":                 {[]string{"authorization", "Basic dTpw", "x-api-key", "{good}"}, "no_key"},
		"a key with a scheme where none is":       {[]string{"x-api-key", "Bearer {good}"}, "ambiguous_key"},
		"two that differ":                         {[]string{"authorization", "Bearer {good}", "x-api-key", "{text}"}, "ambiguous_key"},
		"two that differ, the last two":           {[]string{"x-api-key", "{good}", "api-key", "{text}"}, "ambiguous_key"},
		"two that differ, the first one is bad":   {[]string{"authorization", "Bearer nonsense", "x-api-key", "{good}"}, "ambiguous_key"},
		"two that differ, the second one is bad":  {[]string{"authorization", "Bearer {good}", "x-api-key", "nonsense"}, "ambiguous_key"},
		"a header twice":                          {[]string{"authorization", "Bearer {good}", "authorization", "Bearer {text}"}, "ambiguous_key"},
		"a header twice, with the same":           {[]string{"authorization", "Bearer {good}", "authorization", "Bearer {good}"}, "ambiguous_key"},
		"a header twice, the second time empty":   {[]string{"x-api-key", "{good}", "x-api-key", ""}, "ambiguous_key"},
		"a header twice, the first with a scheme": {[]string{"authorization", "Basic dTpw", "authorization", "Bearer {good}"}, "ambiguous_key"},
		"a list":                    {[]string{"authorization", "Bearer {good}, Bearer {text}"}, "ambiguous_key"},
		"a list of the same":        {[]string{"x-api-key", "{good},{good}"}, "ambiguous_key"},
		"a list with nothing in it": {[]string{"x-api-key", "{good},"}, "ambiguous_key"},
		"two behind one scheme":     {[]string{"authorization", "Bearer {good} {text}"}, "ambiguous_key"},
		"a scheme twice":            {[]string{"authorization", "Bearer Bearer {good}"}, "ambiguous_key"},
		"a zero byte behind":        {[]string{"x-api-key", "{good}\x00"}, "key_malformed"},
		"quotes around it":          {[]string{"x-api-key", `"{good}"`}, "key_malformed"},
		"in capitals":               {[]string{"x-api-key", strings.ToUpper(w.keys[keyGood])}, "key_malformed"},
		"another's":                 {[]string{"x-api-key", "sk-ant-123"}, "key_malformed"},
		"one that is not known":     {[]string{"x-api-key", "{unknown}"}, "key_unknown"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, forward, answer := w.do(t, call{headers: tc.headers, body: chat("same")})
			switch {
			case tc.reason == "" && answer != nil:
				t.Errorf("refused: %s %s", answer.Reason, answer.Body)
			case tc.reason != "" && (forward != nil || answer.Reason != tc.reason):
				t.Errorf("got %+v %+v, want %s", forward, answer, tc.reason)
			}
			if answer != nil {
				w.checkAnswer(t, answer)
			}
		})
	}
}

// A key is refused before its body is waited for wherever the head alone tells.
func TestRefusedByTheHead(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for name, tc := range map[string]struct {
		call call
		want string
	}{
		"a key that is disabled":       {call{key: keyDisabled, body: chat("gpt")}, "api_key_disabled"},
		"a key that is unknown":        {call{key: keyUnknown, body: chat("gpt")}, "key_unknown"},
		"an unknown path":              {call{key: keyGood, path: "/v1/x", body: chat("gpt")}, "unknown_path"},
		"a capability of the path":     {call{key: keyText, path: "/v1/audio/speech", body: chat("voice")}, "capability_not_allowed"},
		"a list of models with a body": {call{key: keyText, method: "GET", path: "/v1/models", body: "x"}, "models_listed"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			x, answer := w.engine.Begin(w.head(tc.call))
			if x != nil || answer == nil || answer.Reason != tc.want {
				t.Errorf("got %v, %+v; want %s", x, answer, tc.want)
			}
		})
	}
}

// A key that is revoked while its body is on the way is refused.
func TestRevokedBetweenHeadAndBody(t *testing.T) {
	t.Parallel()
	disabled := func(w *world) *policy.Delta {
		k, _, _ := w.table.find(policy.KeyHash(mint(t, keyGood).Hash()))
		changed := *k
		changed.State = policy.StateDisabled
		return &policy.Delta{Keys: []*policy.Key{&changed}}
	}
	for name, tc := range map[string]struct {
		change func(w *world) *policy.Delta
		want   string
	}{
		"disabled": {disabled, "api_key_disabled"},
		"deleted": {func(*world) *policy.Delta {
			return &policy.Delta{Removed: []policy.Ref{{Kind: policy.KindKey, Name: "uid-good"}}}
		}, "key_unknown"},
		"its application deleted": {func(*world) *policy.Delta {
			return &policy.Delta{Removed: []policy.Ref{{Kind: policy.KindApplication, Name: "team/shop"}}}
		}, "application_disabled"},
		"its model deleted": {func(*world) *policy.Delta {
			return &policy.Delta{Removed: []policy.Ref{{Kind: policy.KindModel, Name: "gpt"}}}
		}, "model_not_found"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			c := call{key: keyGood, body: chat("gpt")}
			x, answer := w.engine.Begin(w.head(c))
			if answer != nil {
				t.Fatalf("refused: %s", answer.Body)
			}
			if err := w.table.Apply(tc.change(w)); err != nil {
				t.Fatal(err)
			}
			if forward, answer := x.Body(t.Context(), []byte(c.body)); forward != nil || answer.Reason != tc.want {
				t.Errorf("got %+v, %+v; want %s", forward, answer, tc.want)
			}
		})
	}
}

func TestResponseHead(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, tc := range []struct {
		path, model, typeName, provider string
	}{
		{"/v1/chat/completions", "gpt", `"type":"server_error","param":null,"code":null`, "openai-eu"},
		{"/v1/messages", "claude", `"type":"api_error"`, "anthropic-eu"},
	} {
		begin := func() *Exchange {
			x, _, answer := w.do(t, call{key: keyGood, path: tc.path, body: chat(tc.model)})
			if answer != nil {
				t.Fatalf("refused: %s", answer.Body)
			}
			return x
		}
		for _, status := range []int{200, 201, 301, 400, 404, 408, 413, 429, 500, 503, 529} {
			x := begin()
			answer, change := x.ResponseHead(status, []Header{{"x-ratelimit-remaining-requests", "7"}, {"anthropic-ratelimit-tokens-limit", "9"}, {"server", "x"}}, false)
			if answer != nil {
				t.Errorf("%d does not pass: %+v", status, answer)
			}
			if diff := cmp.Diff([]string{"x-ratelimit-remaining-requests", "anthropic-ratelimit-tokens-limit"}, change.Remove); diff != "" {
				t.Errorf("removed (-want +got):\n%s", diff)
			}
			x.End(true)
			if m := w.observed.lastMetered(t); m.Status != status {
				t.Errorf("%d is observed as %d", status, m.Status)
			}
		}
		for _, status := range []int{401, 403} {
			x := begin()
			answer, change := x.ResponseHead(status, []Header{{"www-authenticate", "Bearer sk-secret"}}, false)
			if answer == nil || change != nil {
				t.Fatalf("%d passes", status)
			}
			w.checkAnswer(t, answer)
			body := string(answer.Body)
			if answer.Status != 502 || valueOf(answer.Headers, "x-should-retry") != "false" || valueOf(answer.Headers, "x-request-id") != "req-1" ||
				!strings.Contains(body, tc.typeName) || !strings.Contains(body, tc.provider) || strings.Contains(body, "sk-secret") {
				t.Errorf("%d became %d %v %s", status, answer.Status, answer.Headers, body)
			}
			if m := w.observed.lastMetered(t); m.Ending != EndingCredential || m.Status != 502 || m.Cost != 0 || m.Provider != tc.provider {
				t.Errorf("observed %+v", m)
			}
		}
	}
}

// Envoy answers itself where a body does not get through, and shows that to the engine.
func TestResponseHeadBeforeADecision(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	x, _ := w.engine.Begin(w.head(call{key: keyGood, body: chat("gpt")}))
	if answer, change := x.ResponseHead(401, nil, false); answer != nil || change != nil {
		t.Errorf("got %+v, %+v", answer, change)
	}
}

func TestObserved(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	prefix := w.keys[keyGood][:9]
	for name, tc := range map[string]struct {
		call call
		want Decision
	}{
		"forwarded": {call{key: keyGood, body: chat("gpt")}, Decision{
			Outcome: OutcomeForwarded, KeyPrefix: prefix, Namespace: "team", Key: "good", Application: "shop",
			Capability: "TextGeneration", Model: "gpt", Provider: "openai-eu", Dialect: "openai", RequestID: "req-1", Endpoint: "/v1/chat/completions", Began: noon(),
		}},
		"a list": {call{key: keyGood, method: "GET", path: "/v1/models", headers: []string{"anthropic-version", "x"}}, Decision{
			Outcome: OutcomeAnswered, Reason: "models_listed", Status: 200, KeyPrefix: prefix, Namespace: "team", Key: "good", Application: "shop",
			Dialect: "anthropic", RequestID: "req-1", Endpoint: "/v1/models", Began: noon(),
		}},
		"a model that there is not": {call{key: keyGood, path: "/v1/embeddings", body: chat("x")}, Decision{
			Outcome: OutcomeRefused, Reason: "model_not_found", Status: 404, KeyPrefix: prefix, Namespace: "team", Key: "good", Application: "shop",
			Capability: "Embeddings", Dialect: "openai", RequestID: "req-1", Endpoint: "/v1/embeddings", Began: noon(),
		}},
		"a key that there is not": {call{key: keyUnknown, body: chat("gpt")}, Decision{
			Outcome: OutcomeRefused, Reason: "key_unknown", Status: 401, Dialect: "openai", RequestID: "req-1", Began: noon(),
		}},
	} {
		t.Run(name, func(t *testing.T) {
			w.do(t, tc.call)
			if diff := cmp.Diff(tc.want, w.observed.last(t)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestNewNeedsAllOptions(t *testing.T) {
	t.Parallel()
	for _, o := range []Options{
		{}, {Observer: &decisions{}, Now: noon}, {Table: NewTable(), Now: noon}, {Table: NewTable(), Observer: &decisions{}},
	} {
		if _, err := New(o); err == nil {
			t.Errorf("made an engine of %+v", o)
		}
	}
}
