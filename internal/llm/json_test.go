package llm

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.uber.org/goleak"

	"github.com/latchkey-dev/latchkey/internal/policy"
)

func routeTo(t testing.TB, path string) Route {
	t.Helper()
	route, err := Match("POST", path)
	if err != nil {
		t.Fatal(err)
	}
	return route
}

// parser is one for all tests, so that they meet what other bodies have left in it.
var parser Parser

// wantFormError checks that an error is a FormError about the field that says all of the words.
func wantFormError(t *testing.T, err error, param string, says ...string) {
	t.Helper()
	var form *FormError
	if !errors.As(err, &form) {
		t.Fatalf("got error %v; want a FormError", err)
	}
	if form.Param != param {
		t.Errorf("param %q, want %q: %v", form.Param, param, form)
	}
	for _, word := range says {
		if !strings.Contains(form.Message, word) {
			t.Errorf("%q does not say %q", form.Message, word)
		}
	}
	if len(form.Message) > 350 {
		t.Errorf("the message has %d bytes: %q", len(form.Message), form.Message)
	}
}

func TestParseJSONRefuses(t *testing.T) {
	t.Parallel()
	nested := func(depth int) string {
		return `{"model":"m","x":` + strings.Repeat("[", depth) + strings.Repeat("]", depth) + "}"
	}
	for name, tc := range map[string]struct {
		body  string
		param string
		says  []string
	}{
		"nothing":                          {"", "", []string{"empty"}},
		"blanks":                           {" \r\n\t", "", []string{"empty"}},
		"a form in its place":              {"model=gpt", "", []string{"not valid JSON", "at byte 0"}},
		"a byte order mark":                {byteOrderMark + `{"model":"m"}`, "", []string{"byte order mark"}},
		"UTF-16":                           {"{\x00\"\x00m\x00", "", []string{"not valid JSON", "at byte 1"}},
		"a list":                           {`[{"model":"m"}]`, "", []string{"must be a JSON object", ChatCompletions}},
		"a string":                         {`"model"`, "", []string{"must be a JSON object"}},
		"null":                             {`null`, "", []string{"must be a JSON object"}},
		"cut off":                          {`{"model":"m"`, "", []string{"ends at byte 12"}},
		"cut off in a string":              {`{"model":"m`, "", []string{"ends at byte"}},
		"a comma too many":                 {`{"model":"m",}`, "", []string{"not valid JSON", "at byte"}},
		"a comment":                        {`{"model":"m"/*,"model":"n"*/}`, "", []string{"not valid JSON"}},
		"a single quote":                   {`{'model':"m"}`, "", []string{"not valid JSON"}},
		"NaN":                              {`{"model":"m","top_p":NaN}`, "", []string{"not valid JSON"}},
		"a line break in a string":         {"{\"model\":\"m\n\"}", "", []string{"not valid JSON"}},
		"bytes that are not UTF-8":         {"{\"model\":\"m\",\"x\":\"\xff\"}", "", []string{"at byte 18", "UTF-8"}},
		"a name that is not UTF-8":         {"{\"model\":\"m\",\"\xff\":1}", "", []string{"UTF-8"}},
		"half a surrogate pair":            {`{"model":"m","x":"\ud800"}`, "", []string{"surrogate"}},
		"another object behind":            {`{"model":"m"}{"model":"n"}`, "", []string{"behind", "at byte 13"}},
		"a brace behind":                   {`{"model":"m"}}`, "", []string{"behind"}},
		"a zero byte behind":               {"{\"model\":\"m\"}\x00", "", []string{"behind"}},
		"a model twice":                    {`{"model":"m","model":"n"}`, "model", []string{`"model" twice`, "at byte 13"}},
		"the same model twice":             {`{"model":"m","model":"m"}`, "model", []string{"twice"}},
		"a model twice, once escaped":      {`{"model":"m","mod\u0065l":"n"}`, "model", []string{"twice"}},
		"another field twice":              {`{"model":"m","x":1,"x":2}`, "x", []string{`"x" twice`}},
		"a field twice, deep down":         {`{"model":"m","messages":[{"content":[{"a":1,"a":2}]}]}`, "a", []string{`"a" twice`}},
		"a tool's type twice":              {`{"model":"m","tools":[{"type":"function","type":"web_search"}]}`, "type", []string{"twice"}},
		"a long name twice":                {`{"model":"m","` + strings.Repeat("x", 9999) + `":1,"` + strings.Repeat("x", 9999) + `":1}`, strings.Repeat("x", 80) + "…", []string{"twice"}},
		"Model in its place":               {`{"Model":"m"}`, "model", []string{`"Model"`, "upper and lower case"}},
		"MODEL beside it":                  {`{"model":"m","MODEL":"n"}`, "model", []string{`"MODEL"`}},
		"the long s, which folds to s":     {`{"model":"m","ſtream":true}`, "stream", []string{"upper and lower case"}},
		"the Kelvin sign, which folds":     {`{"model":"m","bac\u212Aground":true}`, "background", []string{"upper and lower case"}},
		"Tools":                            {`{"model":"m","Tools":[]}`, "tools", nil},
		"a tool's Type":                    {`{"model":"m","tools":[{"Type":"web_search"}]}`, "type", nil},
		"a tool's function's Name":         {`{"model":"m","tools":[{"type":"builtin_function","function":{"Name":"$web_search"}}]}`, "name", nil},
		"a plugin's ID":                    {`{"model":"m","plugins":[{"ID":"web"}]}`, "id", nil},
		"search parameters' Mode":          {`{"model":"m","search_parameters":{"mode":"off","Mode":"on"}}`, "mode", nil},
		"stream options' Include_Usage":    {`{"model":"m","stream_options":{"Include_Usage":true}}`, "include_usage", nil},
		"no model":                         {`{"messages":[]}`, "model", []string{"names no model", "GET /v1/models"}},
		"an empty object":                  {`{}`, "model", []string{"names no model"}},
		"a model only below":               {`{"x":{"model":"m"}}`, "model", []string{"names no model"}},
		"a model that is a number":         {`{"model":5}`, "model", []string{"must be a string"}},
		"a model that is null":             {`{"model":null}`, "model", []string{"must be a string"}},
		"a model that is a list":           {`{"model":["m"]}`, "model", []string{"must be a string"}},
		"an empty model":                   {`{"model":""}`, "model", []string{"empty"}},
		"a model that is too long":         {`{"model":"` + strings.Repeat("m", 254) + `"}`, "model", []string{"longer than 253"}},
		"tools that are an object":         {`{"model":"m","tools":{"type":"web_search"}}`, "tools", []string{"must be a list"}},
		"stream as a string":               {`{"model":"m","stream":"true"}`, "stream", []string{"true or false"}},
		"stream as a number":               {`{"model":"m","stream":1}`, "stream", []string{"true or false"}},
		"max_tokens as a string":           {`{"model":"m","max_tokens":"5"}`, "max_tokens", []string{"whole number"}},
		"max_tokens with a fraction":       {`{"model":"m","max_tokens":5.5}`, "max_tokens", []string{"whole number"}},
		"n as a list":                      {`{"model":"m","n":[1]}`, "n", []string{"whole number"}},
		"a value cut off where it matters": {`{"model":"m","stream":tru}`, "", []string{"not valid JSON"}},
		"lists that nest too deep":         {nested(10_001), "", []string{"10000 levels", "flatter"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := parser.Parse(routeTo(t, ChatCompletions), "application/json", "", []byte(tc.body))
			wantFormError(t, err, tc.param, tc.says...)
		})
	}
	if _, err := parser.Parse(routeTo(t, ChatCompletions), "application/json", "", []byte(nested(9_000))); err != nil {
		t.Errorf("what does not nest too deep: %v", err)
	}
}

func TestParseJSONReads(t *testing.T) {
	t.Parallel()
	text := policy.CapabilitiesOf(policy.TextGeneration)
	search := text | policy.CapabilitiesOf(policy.WebSearch)
	image := text | policy.CapabilitiesOf(policy.ImageGeneration)
	speech := text | policy.CapabilitiesOf(policy.TextToSpeech)
	for name, tc := range map[string]struct {
		path string // empty: chat/completions
		body string // without the model
		want Request
	}{
		"nothing but a model":                 {"", ``, Request{Capabilities: text}},
		"blanks all over":                     {"", "\n,\t\"stream\" :\r\n true ", Request{Capabilities: text, Stream: true}},
		"no stream":                           {"", `,"stream":false`, Request{Capabilities: text}},
		"a stream that is null":               {"", `,"stream":null`, Request{Capabilities: text}},
		"a stream with usage":                 {"", `,"stream":true,"stream_options":{"x":1,"include_usage":true}`, Request{Capabilities: text, Stream: true, IncludeUsage: true}},
		"stream options that are null":        {"", `,"stream_options":null`, Request{Capabilities: text}},
		"n":                                   {"", `,"n":3`, Request{Capabilities: text, N: 3}},
		"both bounds, of which either counts": {"", `,"max_tokens":100,"max_completion_tokens":50`, Request{Capabilities: text, MaxTokens: 100}},
		"a bound of another endpoint":         {"", `,"max_output_tokens":100`, Request{Capabilities: text}},
		"a bound of a response":               {Responses, `,"max_output_tokens":100,"max_tokens":7`, Request{Capabilities: text, MaxTokens: 100}},
		"a bound of a message":                {Messages, `,"max_tokens":1024,"max_completion_tokens":4096`, Request{Capabilities: text, MaxTokens: 1024}},
		"a bound of a completion":             {Completions, `,"max_tokens":16`, Request{Capabilities: text, MaxTokens: 16}},
		"a bound with an exponent":            {"", `,"max_tokens":1.5e3`, Request{Capabilities: text, MaxTokens: 1500}},
		"a bound below zero":                  {"", `,"max_tokens":-1`, Request{Capabilities: text}},
		"a bound beyond all bounds":           {"", `,"max_tokens":1e999`, Request{Capabilities: text, MaxTokens: 1 << 53}},
		"a bound that is null":                {"", `,"max_tokens":null`, Request{Capabilities: text}},
		"no tools":                            {"", `,"tools":null`, Request{Capabilities: text}},
		"functions only":                      {"", `,"tools":[{"type":"function","function":{"name":"web_search","parameters":{"Name":1}}}]`, Request{Capabilities: text}},
		"a custom tool of Anthropic's":        {Messages, `,"tools":[{"name":"web_search","input_schema":{"type":"web_search"}}]`, Request{Capabilities: text}},
		"OpenAI's search":                     {Responses, `,"tools":[{"type":"web_search"}]`, Request{Capabilities: search}},
		"OpenAI's search, dated":              {Responses, `,"tools":[{"type":"file_search"},{"type":"web_search_preview_2025_03_11"}]`, Request{Capabilities: search}},
		"Anthropic's search":                  {Messages, `,"tools":[{"type":"web_search_20250305","name":"web_search"}]`, Request{Capabilities: search}},
		"Anthropic's fetch":                   {Messages, `,"tools":[{"type":"web_fetch_20250910","name":"web_fetch"}]`, Request{Capabilities: search}},
		"a search in capitals":                {"", `,"tools":[{"type":"WEB_SEARCH"}]`, Request{Capabilities: search}},
		"a search, escaped":                   {"", `,"tools":[{"typ\u0065":"web\u005fsearch"}]`, Request{Capabilities: search}},
		"Moonshot's search":                   {"", `,"tools":[{"function":{"name":"$web_search"},"type":"builtin_function"}]`, Request{Capabilities: search}},
		"a builtin function that is another":  {"", `,"tools":[{"type":"builtin_function","function":{"name":"$calculate"}}]`, Request{Capabilities: text}},
		"search options":                      {"", `,"web_search_options":{}`, Request{Capabilities: search}},
		"search options that are null":        {"", `,"web_search_options":null`, Request{Capabilities: text}},
		"the web plugin":                      {"", `,"plugins":[{"id":"file-parser"},{"id":"web","max_results":1}]`, Request{Capabilities: search}},
		"other plugins":                       {"", `,"plugins":[{"id":"file-parser"}, 5]`, Request{Capabilities: text}},
		"plugins that are no list":            {"", `,"plugins":{"id":"x"}`, Request{Capabilities: text}},
		"search enabled":                      {"", `,"enable_search":true`, Request{Capabilities: search}},
		"search enabled in words":             {"", `,"enable_search":"true"`, Request{Capabilities: search}},
		"search disabled":                     {"", `,"enable_search":false`, Request{Capabilities: text}},
		"search parameters that are on":       {"", `,"search_parameters":{"mode":"on"}`, Request{Capabilities: search}},
		"search parameters left to default":   {"", `,"search_parameters":{"sources":[]}`, Request{Capabilities: search}},
		"search parameters that are off":      {"", `,"search_parameters":{"mode":"off"}`, Request{Capabilities: text}},
		"search parameters that are null":     {"", `,"search_parameters":null`, Request{Capabilities: text}},
		"search parameters of another kind":   {"", `,"search_parameters":"on"`, Request{Capabilities: search}},
		"an image tool":                       {Responses, `,"tools":[{"type":"image_generation"}]`, Request{Capabilities: image}},
		"images asked for":                    {"", `,"modalities":["text","image"]`, Request{Capabilities: image}},
		"audio asked for":                     {"", `,"modalities":["text","audio"]`, Request{Capabilities: speech}},
		"text asked for":                      {"", `,"modalities":["text"]`, Request{Capabilities: text}},
		"one modality without a list":         {"", `,"modalities":"image"`, Request{Capabilities: image}},
		"modalities that are null":            {"", `,"modalities":null`, Request{Capabilities: text}},
		"background off":                      {Responses, `,"background":false`, Request{Capabilities: text}},
		"background where it has no meaning":  {"", `,"background":true`, Request{Capabilities: text}},
		"an image endpoint's own capability":  {ImagesGenerations, `,"n":2`, Request{Capabilities: policy.CapabilitiesOf(policy.ImageGeneration), N: 2}},
		"all of it at once": {"", `,"modalities":["audio"],"tools":[{"type":"image_generation"},{"type":"web_search"}]`,
			Request{Capabilities: search | image | speech}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := tc.path
			if path == "" {
				path = ChatCompletions
			}
			tc.want.Model = `a"é/b`
			for _, body := range []string{
				`{"model":"a\"\u00e9/b"` + tc.body + `}`,
				" {" + strings.TrimPrefix(strings.TrimSpace(tc.body+`,"model" : "a\"é\/b"`), ",") + "}\n",
			} {
				got, err := parser.Parse(routeTo(t, path), "application/json", "", []byte(body))
				if err != nil {
					t.Fatalf("%s: %v", body, err)
				}
				if diff := cmp.Diff(&tc.want, got, cmpopts.IgnoreUnexported(Request{})); diff != "" {
					t.Errorf("%s (-want +got):\n%s", body, diff)
				}
			}
		})
	}
}

func TestBackgroundResponsesAreRefused(t *testing.T) {
	t.Parallel()
	for _, body := range []string{`{"background":true,"model":"m"}`, `{"model":"m","background":"true"}`} {
		_, err := parser.Parse(routeTo(t, Responses), "application/json", "", []byte(body))
		wantFormError(t, err, "background")
	}
}

func TestModelsToFallBackOnAreRefused(t *testing.T) {
	t.Parallel()
	for body, param := range map[string]string{
		`{"model":"m","models":["m","gpt-5"]}`:       "models",
		`{"model":"m","models":"gpt-5"}`:             "models",
		`{"model":"m","fallbacks":[{"model":"m2"}]}`: "fallbacks",
	} {
		_, err := parser.Parse(routeTo(t, ChatCompletions), "application/json", "", []byte(body))
		wantFormError(t, err, param, "name one in")
	}
	if _, err := parser.Parse(routeTo(t, ChatCompletions), "application/json", "", []byte(`{"model":"m","models":null}`)); err != nil {
		t.Error(err)
	}
}

func TestReplacedModelLeavesTheRest(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ body, upstream, want string }{
		"first":                      {`{"model":"m","n":1}`, "longer-name", `{"model":"longer-name","n":1}`},
		"last, with blanks":          {"{ \"n\" : 1.0,\n\t\"model\" :\t\"m\" }\n", "x", "{ \"n\" : 1.0,\n\t\"model\" :\t\"x\" }\n"},
		"the same name elsewhere":    {`{"messages":["model","m",{"model":"m"}],"model":"m"}`, "x", `{"messages":["model","m",{"model":"m"}],"model":"x"}`},
		"a name with quotes":         {`{"model":"m"}`, `a"b\c/d`, `{"model":"a\"b\\c/d"}`},
		"a name with line breaks":    {`{"model":"m"}`, "a\nb", `{"model":"a\nb"}`},
		"escapes that stay":          {`{"x":"\u00e9\/","model":"\u006d"}`, "é<&>", `{"x":"\u00e9\/","model":"é<&>"}`},
		"a model with an escape":     {`{"mod\u0065l":"\u006d"}`, "n", `{"mod\u0065l":"n"}`},
		"a number that no float has": {`{"seed":12345678901234567890,"model":"m"}`, "x", `{"seed":12345678901234567890,"model":"x"}`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			body := []byte(tc.body)
			req, err := parser.Parse(routeTo(t, ChatCompletions), "application/json", "", body)
			if err != nil {
				t.Fatal(err)
			}
			got, contentType, err := req.Forwarded(body, tc.upstream)
			if err != nil || string(got) != tc.want || contentType != "" {
				t.Errorf("got %s, content-type %q, %v; want %s", got, contentType, err, tc.want)
			}
			if string(body) != tc.body {
				t.Errorf("the caller's body became %s", body)
			}
			if got, _, err := req.Forwarded(body, req.Model); err != nil || got != nil {
				t.Errorf("the same name: got %s, %v", got, err)
			}
		})
	}
}

func TestUpstreamNameThatIsNotUTF8(t *testing.T) {
	t.Parallel()
	body := []byte(`{"model":"m"}`)
	req, err := parser.Parse(routeTo(t, ChatCompletions), "application/json", "", body)
	if err != nil {
		t.Fatal(err)
	}
	if got, _, err := req.Forwarded(body, "\xff"); err == nil {
		t.Errorf("got %s", got)
	}
}

func TestContentTypes(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		path, contentType, encoding string
		want                        string // content-type set; of a refusal, what it says
		refused                     bool
	}{
		"JSON":                               {ChatCompletions, "application/json", "", "", false},
		"JSON with a charset":                {ChatCompletions, "application/json; charset=utf-8", "", "application/json", false},
		"JSON in capitals":                   {ChatCompletions, "Application/JSON;Charset=\"UTF-8\"", "", "application/json", false},
		"a kind of JSON":                     {ChatCompletions, "application/vnd.api+json", "", "application/json", false},
		"none":                               {ChatCompletions, "", "", "application/json", false},
		"none, where a form would do too":    {ImagesEdits, "", "", "application/json", false},
		"JSON, where a form would do too":    {ImagesEdits, "application/json", "", "", false},
		"identity":                           {ChatCompletions, "application/json", "identity", "", false},
		"text":                               {ChatCompletions, "text/plain", "", `with content-type application/json, not "text/plain"`, true},
		"a form":                             {ChatCompletions, "application/x-www-form-urlencoded", "", "application/json", true},
		"JSON of another type":               {ChatCompletions, "text/json", "", "application/json", true},
		"multipart for JSON":                 {ChatCompletions, "multipart/form-data; boundary=b", "", "must be JSON", true},
		"JSON for multipart":                 {AudioTranscriptions, "application/json", "", "must be multipart/form-data", true},
		"none for multipart":                 {AudioTranscriptions, "", "", "must be multipart/form-data", true},
		"text where either would do":         {ImagesEdits, "text/plain", "", "application/json or multipart/form-data", true},
		"no boundary":                        {AudioTranscriptions, "multipart/form-data", "", "boundary", true},
		"two boundaries":                     {AudioTranscriptions, "multipart/form-data; boundary=a; boundary=b", "", "cannot be read", true},
		"a boundary in two ways":             {AudioTranscriptions, "multipart/form-data; boundary=a; boundary*=utf-8''b", "", "not valid", true},
		"two types in one":                   {ChatCompletions, "application/json, text/plain", "", "cannot be read", true},
		"another charset":                    {ChatCompletions, "application/json; charset=utf-16", "", "UTF-8", true},
		"gzip":                               {ChatCompletions, "application/json", "gzip", "uncompressed", true},
		"identity and more":                  {ChatCompletions, "application/json", "identity, br", "uncompressed", true},
		"a body of an endpoint without":      {Models, "application/json", "", "takes no body", true},
		"a type that does not look like one": {ChatCompletions, "json", "", "application/json", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			endpoint, _ := endpointAt(tc.path)
			body := []byte(`{"model":"m"}`)
			req, err := parser.Parse(Route{Endpoint: endpoint}, tc.contentType, tc.encoding, body)
			if tc.refused {
				wantFormError(t, err, "", tc.want)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if _, got, err := req.Forwarded(body, "n"); err != nil || got != tc.want {
				t.Errorf("content-type %q, %v; want %q", got, err, tc.want)
			}
		})
	}
}

// A parser goes on reading well, also from several goroutines, behind bodies that it gave up on.
func TestParserIsNotSpoiled(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	var p Parser
	route := routeTo(t, ChatCompletions)
	bad := []string{``, `{`, `{"model":"m","a":{"b":[{`, `{"model":"m","model":"m"}`, `{"model":"m"}{`, `{"model":"m","x":` + strings.Repeat(`{"a":`, 20_000)}
	var readers sync.WaitGroup
	for i := range 4 {
		readers.Go(func() {
			want := fmt.Sprintf("model-%d", i)
			for _, body := range bad {
				if req, err := p.Parse(route, "application/json", "", []byte(body)); err == nil {
					t.Errorf("%.40s: read %+v", body, req)
				}
				req, err := p.Parse(route, "application/json", "", []byte(`{"x":{"model":1},"model":"`+want+`"}`))
				if err != nil || req.Model != want || req.Stream || req.Capabilities != policy.CapabilitiesOf(policy.TextGeneration) {
					t.Errorf("behind %.40s: read %+v, %v", body, req, err)
				}
			}
		})
	}
	readers.Wait()
}

// lenient is how a provider could read a request that is written in Go.
type lenient struct {
	Model  string          `json:"model"`
	Stream bool            `json:"stream"`
	Tools  json.RawMessage `json:"tools"`
}

func FuzzParseJSON(f *testing.F) {
	for _, seed := range []string{
		`{"model":"m"}`, `{"model":"m","stream":true,"stream_options":{"include_usage":true},"max_tokens":5,"n":2}`,
		`{"model":"m","tools":[{"type":"web_search"},{"type":"builtin_function","function":{"name":"$web_search"}}]}`,
		`{"plugins":[{"id":"web"}],"search_parameters":{"mode":"off"},"modalities":["image"],"model":"\u006d"}`,
		`{"model":"m","enable_search":1,"modalities":"audio","web_search_options":null,"tools":[{"type":"IMAGE_generation"},7]}`,
		`{"Model":"m","model":"n"}`, `{"model":"m","model":"n"}`, `{"model":"m"}{}`, "\xef\xbb\xbf{}", "{\"model\":\"\xff\"}", `[`, `{"model":"m","x":[{"a":{"a":1}}]}`,
	} {
		f.Add([]byte(seed), "up/stream:1")
	}
	f.Fuzz(func(t *testing.T, body []byte, upstream string) {
		before := bytes.Clone(body)
		req, err := parser.Parse(routeTo(t, ChatCompletions), "application/json", "", body)
		if !bytes.Equal(before, body) {
			t.Fatalf("the body was changed from %q to %q", before, body)
		}
		if err != nil {
			wantForm := new(FormError)
			if !errors.As(err, &wantForm) || wantForm.Message == "" || len(wantForm.Message) > 600 || len(wantForm.Param) > 100 {
				t.Fatalf("error %#v", err)
			}
			return
		}
		var folded lenient
		if err := json.Unmarshal(body, &folded); err != nil {
			t.Fatalf("encoding/json refuses what was accepted: %v", err)
		}
		var exact map[string]any
		decode(t, body, &exact)
		if req.Model == "" || folded.Model != req.Model || exact["model"] != req.Model || folded.Stream != req.Stream {
			t.Fatalf("read model %q, stream %v; encoding/json %q, %v and %v", req.Model, req.Stream, folded.Model, folded.Stream, exact["model"])
		}
		for name := range exact {
			if field, err := fieldOf([]byte(name), requestFields); err != nil || (field != "" && field != name) {
				t.Fatalf("accepted the field %q, which some read as another: %q, %v", name, field, err)
			}
		}
		if want := capabilitiesOf(exact); req.Capabilities != want {
			t.Fatalf("read capabilities %v; the document asks for %v", req.Capabilities, want)
		}
		changed, _, err := req.Forwarded(body, upstream)
		switch {
		case err != nil:
			if upstream == strings.ToValidUTF8(upstream, "") {
				t.Fatalf("forward: %v", err)
			}
			return
		case changed == nil:
			if upstream != req.Model {
				t.Fatalf("model %q was not replaced by %q", req.Model, upstream)
			}
			return
		}
		if !bytes.HasPrefix(changed, body[:req.start]) || !bytes.HasSuffix(changed, body[req.end:]) {
			t.Fatalf("bytes around the model have changed: %q became %q", body, changed)
		}
		var replaced map[string]any
		decode(t, changed, &replaced)
		exact["model"] = upstream
		if diff := cmp.Diff(exact, replaced); diff != "" {
			t.Fatalf("more than the model was changed:\n%s", diff)
		}
		if upstream != "" && len(upstream) <= maxModelLength {
			again, err := parser.Parse(routeTo(t, ChatCompletions), "application/json", "", changed)
			if err != nil || again.Model != upstream || again.Capabilities != req.Capabilities {
				t.Fatalf("what is forwarded reads as %v, %v", again, err)
			}
		}
	})
}

// capabilitiesOf is what a chat completion asks for, read from the decoded document.
func capabilitiesOf(document map[string]any) policy.Capabilities {
	asked := []policy.Capability{policy.TextGeneration}
	list := func(v any) []any { l, _ := v.([]any); return l }
	field := func(v any, name string) string { m, _ := v.(map[string]any); s, _ := m[name].(string); return s }
	for _, tool := range list(document["tools"]) {
		object, _ := tool.(map[string]any)
		kind := strings.ToLower(field(tool, "type"))
		if strings.HasPrefix(kind, "web_search") || strings.HasPrefix(kind, "web_fetch") ||
			(kind == "builtin_function" && strings.EqualFold(field(object["function"], "name"), "$web_search")) {
			asked = append(asked, policy.WebSearch)
		}
		if kind == "image_generation" {
			asked = append(asked, policy.ImageGeneration)
		}
	}
	modalities := list(document["modalities"])
	if one, single := document["modalities"].(string); single {
		modalities = []any{one}
	}
	for _, modality := range modalities {
		switch s, _ := modality.(string); strings.ToLower(s) {
		case "image":
			asked = append(asked, policy.ImageGeneration)
		case "audio":
			asked = append(asked, policy.TextToSpeech)
		}
	}
	for _, plugin := range list(document["plugins"]) {
		if strings.EqualFold(field(plugin, "id"), "web") {
			asked = append(asked, policy.WebSearch)
		}
	}
	enabled := document["enable_search"]
	if document["web_search_options"] != nil || (enabled != nil && enabled != false) ||
		(document["search_parameters"] != nil && field(document["search_parameters"], "mode") != "off") {
		asked = append(asked, policy.WebSearch)
	}
	return policy.CapabilitiesOf(asked...)
}

// decode keeps numbers as they are written.
func decode(t *testing.T, body []byte, into any) {
	t.Helper()
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber()
	if err := dec.Decode(into); err != nil {
		t.Fatalf("decode %q: %v", body, err)
	}
}
