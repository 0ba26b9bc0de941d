package llm

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/latchkey-dev/latchkey/internal/policy"
)

// The fields that are read. A name that differs from one of these in case only is refused: some upstreams would take it.
var (
	requestFields = []string{
		"model", "stream", "tools", "web_search_options", "plugins", "enable_search", "search_parameters", "modalities", "background",
	}
	toolFields   = []string{"type", "function"}
	nameFields   = []string{"name"}
	pluginFields = []string{"id"}
	searchFields = []string{"mode"}
)

// parseJSON reads a JSON body.
func parseJSON(route Route, body []byte) (*Request, error) {
	if len(bytes.TrimSpace(body)) == 0 {
		return nil, formError("", "the body is empty: send a JSON object")
	}
	dec := jsontext.NewDecoder(bytes.NewBuffer(body))
	if dec.PeekKind() != '{' {
		if _, err := dec.ReadValue(); err != nil {
			return nil, syntaxError(err)
		}
		return nil, formError("", "the body must be a JSON object")
	}
	req := &Request{}
	named := false
	err := eachField(dec, requestFields, func(name string) error {
		switch name {
		case "model":
			value, err := dec.ReadValue()
			if err != nil {
				return err
			}
			if value.Kind() != '"' {
				return formError("model", "the field \"model\" must be a string")
			}
			req.end = int(dec.InputOffset())
			req.start = req.end - len(value)
			unquoted, err := jsontext.AppendUnquote(nil, value)
			if err != nil {
				return err
			}
			req.Model, named = string(unquoted), true
			return checkModel(req.Model)
		case "stream":
			on, err := readTrue(dec)
			req.Stream = on
			return err
		case "background":
			on, err := readTrue(dec)
			if on && route.Path == "/v1/responses" {
				return formError("background", "background responses are not available through this gateway: leave \"background\" out")
			}
			return err
		case "tools":
			return req.readTools(dec)
		case "modalities":
			return req.readModalities(dec)
		default:
			return req.readSearch(dec, name)
		}
	})
	if err != nil {
		return nil, asFormError(err)
	}
	if _, err := dec.ReadToken(); !errors.Is(err, io.EOF) {
		return nil, formError("", "there is something behind the body's JSON object, at byte %d: send one object", dec.InputOffset())
	}
	if !named {
		return nil, errNoModel
	}
	return req, nil
}

// need notes a capability that the body asks for.
func (r *Request) need(c policy.Capability) { r.Capabilities |= policy.CapabilitiesOf(c) }

// readTools looks for tools that are capabilities of their own: web search of both APIs' names, and image generation.
func (r *Request) readTools(dec *jsontext.Decoder) error {
	if dec.PeekKind() == 'n' {
		return dec.SkipValue()
	}
	return eachElement(dec, "tools", func() error {
		kind, function := "", ""
		if dec.PeekKind() != '{' {
			return dec.SkipValue() // the provider will say so
		}
		err := eachField(dec, toolFields, func(name string) error {
			switch {
			case name == "type":
				return readString(dec, &kind)
			case name == "function" && dec.PeekKind() == '{':
				return eachField(dec, nameFields, func(string) error { return readString(dec, &function) })
			}
			return dec.SkipValue()
		})
		switch {
		case err != nil:
			return err
		case strings.HasPrefix(kind, "web_search"), strings.HasPrefix(kind, "web_fetch"), kind == "builtin_function" && function == "$web_search":
			r.need(policy.WebSearch)
		case kind == "image_generation":
			r.need(policy.ImageGeneration)
		}
		return nil
	})
}

// readModalities looks for answers that are not text.
func (r *Request) readModalities(dec *jsontext.Decoder) error {
	if dec.PeekKind() != '[' {
		return dec.SkipValue()
	}
	return eachElement(dec, "modalities", func() error {
		modality := ""
		if err := readString(dec, &modality); err != nil {
			return err
		}
		switch modality {
		case "image":
			r.need(policy.ImageGeneration)
		case "audio":
			r.need(policy.TextToSpeech)
		}
		return nil
	})
}

// readSearch looks for the options by which various APIs turn web search on.
func (r *Request) readSearch(dec *jsontext.Decoder, name string) error {
	switch kind := dec.PeekKind(); {
	case kind == 'n' || kind == 'f':
		return dec.SkipValue()
	case name == "web_search_options":
		r.need(policy.WebSearch)
	case name == "enable_search" && kind == 't':
		r.need(policy.WebSearch)
	case name == "plugins" && kind == '[':
		return eachElement(dec, name, func() error {
			if dec.PeekKind() != '{' {
				return dec.SkipValue()
			}
			id := ""
			err := eachField(dec, pluginFields, func(string) error { return readString(dec, &id) })
			if id == "web" {
				r.need(policy.WebSearch)
			}
			return err
		})
	case name == "search_parameters" && kind == '{':
		mode := ""
		err := eachField(dec, searchFields, func(string) error { return readString(dec, &mode) })
		if mode != "off" {
			r.need(policy.WebSearch)
		}
		return err
	}
	return dec.SkipValue()
}

// eachField walks an object and calls visit, which must read the value, for each of the fields named. It skips the others, and refuses a
// name that differs from one of them in case only.
func eachField(dec *jsontext.Decoder, fields []string, visit func(name string) error) error {
	if _, err := dec.ReadToken(); err != nil { // {
		return err
	}
	for dec.PeekKind() != '}' {
		token, err := dec.ReadToken()
		if err != nil {
			return err
		}
		name, known := token.String(), ""
		for _, field := range fields {
			if name == field {
				known = field
				break
			}
			if strings.EqualFold(name, field) {
				return formError(field, "the field %s differs from %q in upper and lower case: write %q", quote(name), field, field)
			}
		}
		if known == "" {
			err = dec.SkipValue()
		} else {
			err = visit(known)
		}
		if err != nil {
			return err
		}
	}
	_, err := dec.ReadToken() // }
	return err
}

// eachElement walks an array; visit must read the element.
func eachElement(dec *jsontext.Decoder, field string, visit func() error) error {
	if dec.PeekKind() != '[' {
		if err := dec.SkipValue(); err != nil {
			return err
		}
		return formError(field, "the field %q must be a list", field)
	}
	if _, err := dec.ReadToken(); err != nil {
		return err
	}
	for dec.PeekKind() != ']' {
		if err := visit(); err != nil {
			return err
		}
	}
	_, err := dec.ReadToken()
	return err
}

// readString reads a string; any other value is skipped, and the provider will say what it thinks of it.
func readString(dec *jsontext.Decoder, into *string) error {
	if dec.PeekKind() != '"' {
		return dec.SkipValue()
	}
	token, err := dec.ReadToken()
	if err == nil {
		*into = token.String()
	}
	return err
}

func readTrue(dec *jsontext.Decoder) (bool, error) {
	on := dec.PeekKind() == 't'
	return on, dec.SkipValue()
}

func asFormError(err error) error {
	var form *FormError
	if errors.As(err, &form) {
		return form
	}
	return syntaxError(err)
}

func syntaxError(err error) error {
	var syntactic *jsontext.SyntacticError
	if !errors.As(err, &syntactic) {
		return formError("", "the body is not valid JSON: %v", io.ErrUnexpectedEOF)
	}
	switch {
	case errors.Is(err, jsontext.ErrDuplicateName):
		field := syntactic.JSONPointer.LastToken()
		return formError(field, "the body holds the field %s twice: send it once", quote(field))
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return formError("", "the body is not valid JSON: it ends at byte %d before the object does", syntactic.ByteOffset)
	}
	return formError("", "the body is not valid JSON, at byte %d: %s", syntactic.ByteOffset, quote(syntactic.Err.Error()))
}

// replaceModel puts another name in the model's place, and leaves every other byte as it is.
func (r *Request) replaceModel(body []byte, upstream string) []byte {
	name, err := json.Marshal(upstream)
	if err != nil {
		name = []byte(`""`) // cannot happen: a string always marshals
	}
	out := make([]byte, 0, len(body)+len(name))
	out = append(out, body[:r.start]...)
	out = append(out, name...)
	return append(out, body[r.end:]...)
}
