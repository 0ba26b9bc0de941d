package llm

import (
	"bytes"
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"net/textproto"
	"strings"
)

// maxParts bounds a form; an API call has a dozen fields.
const maxParts = 256

// part is one field of a form, its content as it came.
type part struct {
	header  textproto.MIMEHeader
	content []byte
	model   bool
}

// parseMultipart takes a form apart. It is always written anew for the provider, so that the provider reads the same as we do.
func parseMultipart(boundary string, body []byte) (*Request, error) {
	if boundary == "" {
		return nil, formError("", "the content-type multipart/form-data has no boundary")
	}
	reader := multipart.NewReader(bytes.NewReader(body), boundary)
	req := &Request{boundary: boundary}
	named := false
	for {
		p, err := reader.NextRawPart()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, formError("", "the body is not valid multipart/form-data: %s", quote(err.Error()))
		}
		if len(req.parts) == maxParts {
			return nil, formError("", "the form has more than %d fields", maxParts)
		}
		content, err := io.ReadAll(p)
		if err != nil {
			return nil, formError("", "the body is not valid multipart/form-data: %s", quote(err.Error()))
		}
		field, filename, err := nameOf(p.Header)
		if err != nil {
			return nil, err
		}
		next := part{header: p.Header, content: content}
		switch {
		case field == "model":
			if named {
				return nil, formError("model", "the form holds the field \"model\" twice: send it once")
			}
			if filename || p.Header.Get("Content-Transfer-Encoding") != "" {
				return nil, formError("model", "the form's field \"model\" must be plain text")
			}
			if err := checkModel(string(content)); err != nil {
				return nil, err
			}
			req.Model, named, next.model = string(content), true, true
		case strings.EqualFold(field, "model"):
			return nil, formError("model", "the field %s differs from \"model\" in upper and lower case: write \"model\"", quote(field))
		case field == "stream":
			req.Stream = strings.EqualFold(string(content), "true") || string(content) == "1"
		}
		req.parts = append(req.parts, next)
	}
	if !named {
		return nil, errNoModel
	}
	return req, nil
}

// nameOf reads a part's name, by the one header that a form's parts must have.
func nameOf(header textproto.MIMEHeader) (name string, isFile bool, err error) {
	dispositions := header.Values("Content-Disposition")
	if len(dispositions) != 1 {
		return "", false, formError("", "each part of a form has one content-disposition header")
	}
	disposition, params, parseErr := mime.ParseMediaType(dispositions[0])
	if parseErr != nil || disposition != "form-data" || params["name"] == "" {
		return "", false, formError("", "a part's content-disposition must be form-data with a name, not %s", quote(dispositions[0]))
	}
	_, isFile = params["filename"]
	return params["name"], isFile, nil
}

func (r *Request) writeMultipart(upstream string) ([]byte, string, error) {
	size := 0
	for _, p := range r.parts {
		size += len(p.content) + 256
	}
	out := bytes.NewBuffer(make([]byte, 0, size))
	w := multipart.NewWriter(out)
	// The caller's boundary is known not to stand in any part: the reader would have ended the part there.
	if err := w.SetBoundary(r.boundary); err != nil {
		return nil, "", formError("", "the form's boundary %s is not valid", quote(r.boundary))
	}
	for _, p := range r.parts {
		field, err := w.CreatePart(p.header)
		if err != nil {
			return nil, "", formError("", "the form cannot be written anew: %s", quote(err.Error()))
		}
		content := p.content
		if p.model {
			content = []byte(upstream)
		}
		if _, err := field.Write(content); err != nil {
			return nil, "", formError("", "the form cannot be written anew: %s", quote(err.Error()))
		}
	}
	if err := w.Close(); err != nil {
		return nil, "", formError("", "the form cannot be written anew: %s", quote(err.Error()))
	}
	return out.Bytes(), w.FormDataContentType(), nil
}
