package llm

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/latchkey-dev/latchkey/internal/policy"
)

const formType = "multipart/form-data; boundary=b"

// formOf puts parts, each its header and content with a blank line between, into a form with the boundary b.
func formOf(parts ...string) []byte {
	var form strings.Builder
	for _, p := range parts {
		form.WriteString("--b\r\n" + p + "\r\n")
	}
	return []byte(form.String() + "--b--\r\n")
}

func textPart(name, value string) string {
	return fmt.Sprintf("Content-Disposition: form-data; name=%q\r\n\r\n%s", name, value)
}

const filePart = "Content-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\nContent-Type: audio/wav\r\n\r\nRIFF\x00\xff\r\n\n--\r\n--c"

// formPart is a part as a provider reads it.
type formPart struct {
	Header  map[string][]string
	Content string
}

// read takes a form apart as a provider would.
func read(t testing.TB, contentType string, body []byte) []formPart {
	t.Helper()
	_, params, err := mime.ParseMediaType(contentType)
	if err != nil {
		t.Fatalf("content-type %q: %v", contentType, err)
	}
	reader := multipart.NewReader(bytes.NewReader(body), params["boundary"])
	var parts []formPart
	for {
		p, err := reader.NextRawPart()
		if errors.Is(err, io.EOF) {
			return parts
		}
		if err != nil {
			t.Fatalf("read %q: %v", body, err)
		}
		content, err := io.ReadAll(p)
		if err != nil {
			t.Fatalf("read %q: %v", body, err)
		}
		parts = append(parts, formPart{p.Header, string(content)})
	}
}

func TestMultipartIsWrittenAnew(t *testing.T) {
	t.Parallel()
	plainField := func(name, value string) formPart {
		return formPart{map[string][]string{"Content-Disposition": {fmt.Sprintf(`form-data; name="%s"`, name)}}, value}
	}
	wav := formPart{map[string][]string{"Content-Disposition": {`form-data; name="file"; filename="a.wav"`}, "Content-Type": {"audio/wav"}}, "RIFF\x00\xff\r\n\n--\r\n--c"}
	for name, tc := range map[string]struct {
		body []byte
		want []formPart
		n    int64
		on   bool
	}{
		"a file and a model": {body: formOf(filePart, textPart("model", "m")), want: []formPart{wav, plainField("model", "upstream")}},
		"a model first, in other words": {
			body: formOf("content-type: text/plain; charset=utf-16\r\ncontent-disposition: FORM-DATA; name=model\r\nX-Other: x\r\n\r\nm", filePart),
			want: []formPart{plainField("model", "upstream"), wav},
		},
		"fields that are read": {
			body: formOf(textPart("stream", "True"), textPart("model", "m"), textPart("n", "4"), textPart("timestamp_granularities[]", "word"), textPart("timestamp_granularities[]", "segment")),
			want: []formPart{plainField("stream", "True"), plainField("model", "upstream"), plainField("n", "4"),
				plainField("timestamp_granularities[]", "word"), plainField("timestamp_granularities[]", "segment")},
			n: 4, on: true,
		},
		"what is before and behind is dropped": {
			body: []byte("preamble\r\n--bb\r\n" + string(formOf(textPart("model", "m"))) + "--b\r\n" + textPart("model", "n") + "\r\n--b--"),
			want: []formPart{plainField("model", "upstream")},
		},
		"line feeds alone": {
			body: []byte("--b\nContent-Disposition: form-data; name=\"model\"\n\nm\n--b--"),
			want: []formPart{plainField("model", "upstream")},
		},
		"a file's name that could be read in two ways": {
			body: formOf(textPart("model", "m"), "Content-Disposition: form-data; name=\"file\"; filename=\"a\\\"; name=\\\"model\"\r\n\r\nx"),
			want: []formPart{plainField("model", "upstream"),
				{map[string][]string{"Content-Disposition": {`form-data; name="file"; filename="a__ name=_model"`}}, "x"}},
		},
		"a file's name in another alphabet": {
			body: formOf(textPart("model", "m"), "Content-Disposition: form-data; name=\"file\"; filename*=utf-8''%C3%A4%0D.wav\r\n\r\nx"),
			want: []formPart{plainField("model", "upstream"),
				{map[string][]string{"Content-Disposition": {`form-data; name="file"; filename="ä_.wav"`}}, "x"}},
		},
		"an encoding that is none": {
			body: formOf("Content-Transfer-Encoding: Binary\r\n"+filePart, textPart("model", "m")),
			want: []formPart{wav, plainField("model", "upstream")},
		},
		"what some parsers would take for the boundary": {
			body: formOf(textPart("prompt", "x\n--b\nContent-Disposition: form-data; name=\"model\"\n\nn\n--bc\r\n--bd"), textPart("model", "m")),
			want: []formPart{plainField("prompt", "x\n--b\nContent-Disposition: form-data; name=\"model\"\n\nn\n--bc\r\n--bd"), plainField("model", "upstream")},
		},
		"empty contents": {
			body: formOf(textPart("prompt", ""), textPart("model", "m"), textPart("stream", ""), textPart("n", "")),
			want: []formPart{plainField("prompt", ""), plainField("model", "upstream"), plainField("stream", ""), plainField("n", "")},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			before := bytes.Clone(tc.body)
			req, err := parser.Parse(routeTo(t, ImagesEdits), formType, "", tc.body)
			if err != nil {
				t.Fatal(err)
			}
			if req.Model != "m" || req.Stream != tc.on || req.N != tc.n || req.Capabilities != policy.CapabilitiesOf(policy.ImageGeneration) {
				t.Errorf("read %+v", req)
			}
			written, contentType, err := req.Forwarded(tc.body, "upstream")
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, read(t, contentType, written)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if !bytes.Equal(before, tc.body) {
				t.Error("the caller's body was changed")
			}
			if _, params, _ := mime.ParseMediaType(contentType); bytes.Contains(tc.body, []byte(params["boundary"])) {
				t.Error("the new boundary stands in the caller's body")
			}
		})
	}
}

func TestMultipartRefuses(t *testing.T) {
	t.Parallel()
	model := textPart("model", "m")
	many := make([]string, maxParts+1)
	for i := range many {
		many[i] = textPart("x", "")
	}
	for name, tc := range map[string]struct {
		body  []byte
		param string
		says  []string
	}{
		"nothing":                         {nil, "", []string{"empty"}},
		"JSON in its place":               {[]byte(`{"model":"m"}`), "", []string{"ends before its last boundary"}},
		"another boundary":                {[]byte("--c\r\n" + model + "\r\n--c--"), "", []string{"ends before its last boundary"}},
		"no last boundary":                {[]byte("--b\r\n" + model + "\r\n--b\r\n"), "", []string{"ends before its last boundary"}},
		"a last boundary without its end": {[]byte("--b\r\n" + model + "\r\n--b"), "", []string{"ends before its last boundary"}},
		"cut off in a content":            {[]byte("--b\r\n" + model), "", []string{"ends before its last boundary"}},
		"cut off in a header":             {[]byte("--b\r\nContent-Disp"), "", []string{"not valid"}},
		"no parts":                        {[]byte("--b--\r\n"), "model", []string{"names no model"}},
		"no model":                        {formOf(filePart), "model", []string{"names no model"}},
		"two models":                      {formOf(model, textPart("model", "n")), "model", []string{"twice"}},
		"the same model twice":            {formOf(model, model), "model", []string{"twice"}},
		"an empty model":                  {formOf(textPart("model", "")), "model", []string{"empty"}},
		"a model that is too long":        {formOf(textPart("model", strings.Repeat("m", 254))), "model", []string{"longer than 253"}},
		"a model that is not UTF-8":       {formOf(textPart("model", "\xff")), "model", []string{"UTF-8"}},
		"a model in a file":               {formOf("Content-Disposition: form-data; name=model; filename=\"\"\r\n\r\nm"), "model", []string{"plain text"}},
		"a model in base64":               {formOf("Content-Transfer-Encoding: base64\r\nContent-Disposition: form-data; name=model\r\n\r\nbQ=="), "model", []string{"base64"}},
		"a model with an encoding":        {formOf("Content-Transfer-Encoding: 8bit\r\nContent-Disposition: form-data; name=model\r\n\r\nm"), "model", []string{"plain text"}},
		"a file in quoted-printable":      {formOf(model, "Content-Transfer-Encoding: quoted-printable\r\n"+filePart), "file", []string{"quoted-printable", "as they are"}},
		"Model":                           {formOf(model, textPart("Model", "n")), "model", []string{`"Model"`, "upper and lower case"}},
		"STREAM":                          {formOf(model, textPart("STREAM", "true")), "stream", []string{"upper and lower case"}},
		"the long s, which folds to s":    {formOf(model, textPart("ſtream", "true")), "stream", []string{"upper and lower case"}},
		"stream twice":                    {formOf(model, textPart("stream", "true"), textPart("stream", "false")), "stream", []string{"twice"}},
		"stream in words":                 {formOf(model, textPart("stream", "yes")), "stream", []string{"true or false"}},
		"n in words":                      {formOf(model, textPart("n", "two")), "n", []string{"whole number"}},
		"n that is no number":             {formOf(model, textPart("n", "nan")), "n", []string{"whole number"}},
		"a part without a name":           {formOf(model, "Content-Disposition: form-data\r\n\r\nx"), "", []string{"content-disposition"}},
		"a part with an empty name":       {formOf(model, textPart("", "x")), "", []string{"content-disposition"}},
		"a part without a disposition":    {formOf(model, "Content-Type: text/plain\r\n\r\nx"), "", []string{"content-disposition"}},
		"a part with two dispositions":    {formOf("Content-Disposition: form-data; name=\"x\"\r\n" + model), "", []string{"one content-disposition"}},
		"a part with two names":           {formOf(model, "Content-Disposition: form-data; name=x; name=model\r\n\r\nx"), "", []string{"content-disposition"}},
		"an attachment":                   {formOf(model, "Content-Disposition: attachment; name=\"x\"\r\n\r\nx"), "", []string{"form-data"}},
		"a name with a quote":             {formOf(model, "Content-Disposition: form-data; name=\"x\\\"; name=\\\"model\"\r\n\r\nn"), "", []string{"plain name"}},
		"a name that is not UTF-8":        {formOf(model, "Content-Disposition: form-data; name=\"\xff\"\r\n\r\nn"), "", []string{"content-disposition"}},
		"a part with two types":           {formOf(model, "Content-Type: a/b\r\nContent-Type: c/d\r\n"+textPart("x", "")), "x", []string{"two content-types"}},
		"a type that holds a line of its own": {formOf(model, "Content-Type: a/b\rContent-Disposition: form-data; name=model\r\n"+textPart("x", "")),
			"", []string{"malformed"}},
		"a type with a control character": {formOf(model, "Content-Type: a/\x01\r\n"+textPart("x", "")), "", []string{"malformed"}},
		"too many parts":                  {formOf(many...), "", []string{"more than 128 parts"}},
		"a header that is too big":        {formOf(model, "X-Long: "+strings.Repeat("x", maxPartHeader)+"\r\n"+textPart("x", "")), "", []string{"more than 4096 bytes"}},
		"a header that is none":           {formOf(model, "what\r\n\r\nx"), "", []string{"not valid"}},
		"something between parts":         {[]byte("--b\r\n" + model + "\r\n--b x\r\n--b--"), "", []string{"not valid"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := parser.Parse(routeTo(t, AudioTranscriptions), formType, "", tc.body)
			wantFormError(t, err, tc.param, tc.says...)
		})
	}
}

// An extended name overrides the plain one for us. That does no harm, because the provider gets but one.
func TestExtendedNameIsResolved(t *testing.T) {
	t.Parallel()
	body := formOf(textPart("prompt", "x"), "Content-Disposition: form-data; name*=utf-8''mod%65l\r\n\r\nm")
	req, err := parser.Parse(routeTo(t, ImagesEdits), formType, "", body)
	if err != nil {
		t.Fatal(err)
	}
	written, contentType, err := req.Forwarded(body, "upstream")
	if err != nil {
		t.Fatal(err)
	}
	parts := read(t, contentType, written)
	if got := parts[1]; got.Content != "upstream" || got.Header["Content-Disposition"][0] != `form-data; name="model"` {
		t.Errorf("got %v", parts)
	}
}

func FuzzParseMultipart(f *testing.F) {
	for _, seed := range [][]byte{
		formOf(filePart, textPart("model", "m")), formOf(textPart("model", "m"), textPart("stream", "true"), textPart("n", "2")),
		formOf(textPart("model", "m"), textPart("model", "n")), []byte("--b\nContent-Disposition: form-data; name=\"model\"\n\nm\n--b--"),
		formOf(textPart("prompt", "\n--b\n\r\n--bc"), textPart("model", "m")), []byte("--b"), []byte("--b--"),
		formOf("Content-Disposition: form-data; name*=utf-8''model; filename=x\r\n\r\nm"),
	} {
		f.Add(seed, "upstream")
	}
	f.Fuzz(func(t *testing.T, body []byte, upstream string) {
		before := bytes.Clone(body)
		req, err := parser.Parse(routeTo(t, ImagesEdits), formType, "", body)
		if !bytes.Equal(before, body) {
			t.Fatalf("the body was changed from %q to %q", before, body)
		}
		if err != nil {
			form := new(FormError)
			if !errors.As(err, &form) || form.Message == "" || len(form.Message) > 600 || len(form.Param) > 100 {
				t.Fatalf("error %#v", err)
			}
			return
		}
		written, contentType, err := req.Forwarded(body, upstream)
		if err != nil {
			t.Fatalf("forward: %v", err)
		}
		sent, got := read(t, formType, body), read(t, contentType, written)
		if len(sent) != len(got) {
			t.Fatalf("%d parts became %d", len(sent), len(got))
		}
		models := 0
		for i := range sent {
			name, want := nameOf(t, sent[i]), sent[i].Content
			if name == "model" {
				if models++; want != req.Model {
					t.Fatalf("read model %q; the form has %q", req.Model, want)
				}
				want = upstream
			}
			if nameOf(t, got[i]) != name || got[i].Content != want {
				t.Fatalf("part %q with %q became %q with %q", name, want, nameOf(t, got[i]), got[i].Content)
			}
			if len(got[i].Header) > 2 {
				t.Fatalf("header %q", got[i].Header)
			}
		}
		if models != 1 {
			t.Fatalf("%d models", models)
		}
	})
}

func nameOf(t *testing.T, p formPart) string {
	t.Helper()
	_, params, err := mime.ParseMediaType(p.Header["Content-Disposition"][0])
	if err != nil {
		t.Fatal(err)
	}
	return params["name"]
}
