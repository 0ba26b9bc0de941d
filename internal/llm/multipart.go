package llm

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"net/textproto"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	// maxParts bounds a form; an API call has a dozen fields, and images/edits at most 16 images besides.
	maxParts = 128

	// maxPartHeader is the most bytes that a part's header can have.
	maxPartHeader = 4096
)

// The fields of a form that are read. A name that differs from one of these in case only is refused.
var formFields = []string{fieldModel, fieldStream, fieldN}

// part is one field of a form.
type part struct {
	name        string
	filename    string
	file        bool
	contentType string // empty: none
	content     []byte // as it came
}

// parseMultipart takes a form apart. It is always written anew for the provider, so that the provider reads the same as we do.
func parseMultipart(boundary string, body []byte) (*Request, error) {
	switch {
	case boundary == "":
		return nil, formError("", "the content-type multipart/form-data has no boundary: add the one that parts the body")
	case len(body) == 0:
		return nil, formError("", "the body is empty: send multipart/form-data")
	}
	reader := multipart.NewReader(bytes.NewReader(body), boundary)
	contents := bytes.NewBuffer(make([]byte, 0, len(body)+bytes.MinRead)) // all parts share it, and it never has to grow
	req := &Request{}
	var read []string // those of formFields that there have been
	for {
		raw, err := reader.NextRawPart()
		if errors.Is(err, io.EOF) && ended(body, boundary) {
			break
		}
		if err != nil {
			return nil, malformed(err)
		}
		if len(req.form) == maxParts {
			return nil, formError("", "the form has more than %d parts: send fewer", maxParts)
		}
		p, err := readHeader(raw.Header)
		if err != nil {
			return nil, err
		}
		begin := contents.Len()
		if _, err := contents.ReadFrom(raw); err != nil {
			return nil, malformed(err)
		}
		p.content = contents.Bytes()[begin:]
		if err := req.readPart(&p, raw.Header, &read); err != nil {
			return nil, err
		}
		req.form = append(req.form, p)
	}
	if !slices.Contains(read, fieldModel) {
		return nil, noModel()
	}
	return req, nil
}

// ended reports whether the form has its last boundary: behind any other, its reader takes the end of the body for the form's.
func ended(body []byte, boundary string) bool {
	last := []byte("\n--" + boundary + "--")
	return bytes.HasPrefix(body, last[1:]) || bytes.Contains(body, last)
}

func malformed(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return formError("", "the body is not valid multipart/form-data: it ends before its last boundary")
	}
	return formError("", "the body is not valid multipart/form-data: %s", clip(err.Error(), 120))
}

// readHeader reads what of a part's header is kept: its name, its file's name, and its type.
func readHeader(header textproto.MIMEHeader) (part, error) {
	size := 0
	for name, values := range header {
		for _, value := range values {
			size += len(name) + len(value)
		}
	}
	if size > maxPartHeader {
		return part{}, formError("", "a part's header has more than %d bytes: shorten it", maxPartHeader)
	}
	dispositions := header.Values("Content-Disposition")
	if len(dispositions) != 1 {
		return part{}, formError("", "each part of a form has one content-disposition header: send it so")
	}
	disposition, params, err := mime.ParseMediaType(dispositions[0])
	name := params["name"]
	if err != nil || disposition != "form-data" || !plain(name) {
		return part{}, formError("", "a part's content-disposition must be form-data with a plain name, not %s", quote(dispositions[0]))
	}
	p := part{name: name}
	p.filename, p.file = params["filename"]
	switch types := header.Values("Content-Type"); {
	case len(types) > 1:
		return part{}, formError(name, "the form's part %s has two content-types: send one", quote(name))
	case len(types) == 1:
		p.contentType = types[0]
	}
	for _, encoding := range header.Values("Content-Transfer-Encoding") {
		if !slices.Contains([]string{"7bit", "8bit", "binary"}, strings.ToLower(encoding)) {
			return part{}, formError(name, "the form's part %s has content-transfer-encoding %s, which forms do not have: send the bytes as they are",
				quote(name), quote(encoding))
		}
	}
	return p, nil
}

// plain reports whether a field's name is one that every parser reads alike.
func plain(name string) bool {
	return name != "" && utf8.ValidString(name) && !strings.ContainsFunc(name, func(r rune) bool {
		return unicode.IsControl(r) || strings.ContainsRune(`"\;`, r)
	})
}

// readPart takes from a part what is known of its name.
func (r *Request) readPart(p *part, header textproto.MIMEHeader, read *[]string) error {
	if field, err := fieldOf([]byte(p.name), formFields); field == "" {
		return err
	}
	if slices.Contains(*read, p.name) {
		return formError(p.name, "the form holds the field %q twice: send it once", p.name)
	}
	*read = append(*read, p.name)
	if p.file || header.Get("Content-Transfer-Encoding") != "" {
		return formError(p.name, "the form's field %q must be plain text: send it without filename and content-transfer-encoding", p.name)
	}
	p.contentType = "" // it could declare another charset
	value := string(p.content)
	switch p.name {
	case fieldModel:
		r.Model = value
		return checkModel(value)
	case fieldStream:
		switch strings.ToLower(value) {
		case "true", "1":
			r.Stream = true
		case "false", "0", "":
		default:
			return formError(p.name, "the form's field \"stream\" must be true or false")
		}
	case fieldN:
		count, ok := wholeNumber(value)
		if value != "" && !ok {
			return formError(p.name, "the form's field \"n\" must be a whole number")
		}
		r.N = count
	}
	return nil
}

// writeMultipart writes the form anew. Its boundary is made from the body's hash: a body cannot hold its own, whereas the caller's boundary
// can stand in a part in a form that some parsers would take for a boundary and ours does not.
func (r *Request) writeMultipart(body []byte, upstream string) (written []byte, contentType string, err error) {
	sum := sha256.Sum256(body)
	size := 256
	for _, p := range r.form {
		size += len(p.content) + len(p.name) + len(p.filename) + len(p.contentType) + 256
	}
	out := bytes.NewBuffer(make([]byte, 0, size))
	w := multipart.NewWriter(out)
	if err := w.SetBoundary("latchkey-" + hex.EncodeToString(sum[:16])); err != nil {
		return nil, "", err
	}
	for _, p := range r.form {
		header := textproto.MIMEHeader{"Content-Disposition": {p.disposition()}}
		if p.contentType != "" {
			header["Content-Type"] = []string{p.contentType}
		}
		field, err := w.CreatePart(header)
		if err != nil {
			return nil, "", err
		}
		content := p.content
		if p.name == fieldModel {
			content = []byte(upstream)
		}
		if _, err := field.Write(content); err != nil {
			return nil, "", err
		}
	}
	if err := w.Close(); err != nil {
		return nil, "", err
	}
	return out.Bytes(), w.FormDataContentType(), nil
}

// disposition is the part's header, in the one form that every parser reads alike.
func (p *part) disposition() string {
	disposition := `form-data; name="` + p.name + `"`
	if !p.file {
		return disposition
	}
	return disposition + `; filename="` + strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == utf8.RuneError || strings.ContainsRune(`"\;`, r) {
			return '_'
		}
		return r
	}, p.filename) + `"`
}
