package provider

import (
	"bytes"
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"strings"
)

// form is a multipart body.
type form struct {
	values map[string]string // the last of several
	files  map[string][]file
}

type file struct {
	name string
	data []byte
}

// form reads a multipart body. Array names (image[]) are kept under the name without brackets.
func (x *exchange) form() (form, error) {
	media, params, err := mime.ParseMediaType(x.r.Header.Get("Content-Type"))
	if err != nil || media != "multipart/form-data" || params["boundary"] == "" {
		e := badRequest("", "Unsupported content type: '%s'. This API method only accepts 'multipart/form-data' requests.", x.r.Header.Get("Content-Type"))
		e.code = "unsupported_content_type"
		return form{}, e
	}
	f := form{values: map[string]string{}, files: map[string][]file{}}
	reader := multipart.NewReader(bytes.NewReader(x.body), params["boundary"])
	for {
		part, err := reader.NextPart()
		if errors.Is(err, io.EOF) {
			return f, nil
		}
		if err != nil {
			return form{}, badRequest("", "Could not parse multipart form")
		}
		data, err := io.ReadAll(part)
		if err != nil {
			return form{}, badRequest("", "Could not parse multipart form")
		}
		name := strings.TrimSuffix(part.FormName(), "[]")
		if part.FileName() != "" {
			f.files[name] = append(f.files[name], file{name: part.FileName(), data: data})
		} else {
			f.values[name] = string(data)
		}
	}
}
