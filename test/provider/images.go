package provider

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

const (
	defaultImageModel = "dall-e-2"
	maxImages         = 10
	maxPartialImages  = 3
	// pixel is a PNG of one transparent pixel.
	pixel = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)

// imageRequest is a request of any of the three image endpoints.
type imageRequest struct {
	Model          string `json:"model"`
	Prompt         string `json:"prompt"`
	N              int    `json:"n"`
	Size           string `json:"size"`
	Quality        string `json:"quality"`
	Background     string `json:"background"`
	OutputFormat   string `json:"output_format"`
	ResponseFormat string `json:"response_format"`
	Stream         bool   `json:"stream"`
	PartialImages  int    `json:"partial_images"`
	inputImages    int
	// events is the prefix of the names of its stream's events.
	events string
}

// imageTokens is what an image costs in output tokens; an automatic or unknown size counts as square, an automatic quality as medium.
func imageTokens(size, quality string) int {
	shape := 0
	switch size {
	case "1024x1536":
		shape = 1
	case "1536x1024":
		shape = 2
	}
	switch quality {
	case "low":
		return [...]int{272, 408, 400}[shape]
	case "high":
		return [...]int{4160, 6240, 6208}[shape]
	default:
		return [...]int{1056, 1584, 1568}[shape]
	}
}

// reportsUsage tells models with usage and base64 images from the older ones with neither.
func (r imageRequest) reportsUsage() bool {
	return !strings.HasPrefix(r.Model, "dall-e")
}

func serveImageGenerations(x *exchange) error {
	f, err := x.fields()
	if err != nil {
		return err
	}
	r, err := readImageFields(f)
	if err != nil {
		return err
	}
	r.events = "image_generation"
	return x.serveImages(r, r.Prompt, "prompt")
}

func serveImageEdits(x *exchange) error {
	var r imageRequest
	if strings.HasPrefix(x.r.Header.Get("Content-Type"), "application/json") {
		f, err := x.fields()
		if err != nil {
			return err
		}
		if r, err = readImageFields(f); err != nil {
			return err
		}
		var images []json.RawMessage
		if err := f.get("images", &images); err != nil {
			return err
		}
		r.inputImages = len(images)
	} else {
		f, err := x.form()
		if err != nil {
			return err
		}
		if r, err = readImageForm(f); err != nil {
			return err
		}
	}
	r.events = "image_edit"
	if r.inputImages == 0 {
		return badRequest("image", "Missing required parameter: 'image'.")
	}
	return x.serveImages(r, r.Prompt, "prompt")
}

func serveImageVariations(x *exchange) error {
	f, err := x.form()
	if err != nil {
		return err
	}
	r, err := readImageForm(f)
	if err != nil {
		return err
	}
	if r.inputImages == 0 {
		return badRequest("image", "Missing required parameter: 'image'.")
	}
	r.Stream = false
	return x.serveImages(r, f.values["user"], "")
}

func readImageFields(f fields) (imageRequest, error) {
	r := imageRequest{Model: defaultImageModel, N: 1}
	return r, f.getAll(map[string]any{
		"model": &r.Model, "prompt": &r.Prompt, "n": &r.N, "size": &r.Size, "quality": &r.Quality, "background": &r.Background,
		"output_format": &r.OutputFormat, "response_format": &r.ResponseFormat, "stream": &r.Stream, "partial_images": &r.PartialImages,
	})
}

func readImageForm(f form) (imageRequest, error) {
	r := imageRequest{
		Model: defaultImageModel, Prompt: f.values["prompt"], N: 1, Size: f.values["size"], Quality: f.values["quality"], Background: f.values["background"],
		OutputFormat: f.values["output_format"], ResponseFormat: f.values["response_format"], Stream: f.values["stream"] == "true",
		inputImages: len(f.files["image"]),
	}
	if model := f.values["model"]; model != "" {
		r.Model = model
	}
	for name, target := range map[string]*int{"n": &r.N, "partial_images": &r.PartialImages} {
		if f.values[name] == "" {
			continue
		}
		number, err := strconv.Atoi(f.values[name])
		if err != nil {
			return r, badRequest(name, "Invalid type for '%s': expected an integer.", name)
		}
		*target = number
	}
	return r, nil
}

// serveImages answers; required is the parameter whose text must not be empty, if any.
func (x *exchange) serveImages(r imageRequest, text, required string) error {
	if required != "" && text == "" {
		return badRequest(required, "Missing required parameter: '%s'.", required)
	}
	if r.N < 1 || r.N > maxImages {
		return badRequest("n", "Invalid 'n': expected a value from 1 to %d.", maxImages)
	}
	if r.PartialImages < 0 || r.PartialImages > maxPartialImages {
		return badRequest("partial_images", "Invalid 'partial_images': expected a value from 0 to %d.", maxPartialImages)
	}
	if err := x.begin(r.Model, text); err != nil {
		return err
	}
	usage := Usage{InputTokens: countTokens(r.Prompt) + r.inputImages*mediaTokens, Images: r.N}
	if r.reportsUsage() {
		usage.OutputTokens = r.N*imageTokens(r.Size, r.Quality) + r.PartialImages*100
		if x.d.inputTokens != unset {
			usage.InputTokens = x.d.inputTokens
		}
		if x.d.outputTokens != unset {
			usage.OutputTokens = x.d.outputTokens
		}
	} else {
		usage.InputTokens = 0
	}
	x.consume(func(u *Usage) { u.InputTokens, u.Images = usage.InputTokens, usage.Images })
	if r.Stream && r.reportsUsage() {
		return x.streamImages(r, usage)
	}
	data := make([]any, r.N)
	for i := range data {
		if r.reportsUsage() || r.ResponseFormat == "b64_json" {
			data[i] = object{"b64_json": pixel}
		} else {
			data[i] = object{"url": fmt.Sprintf("https://images.example.com/%s-%d.png", x.newID("img-"), i)}
		}
	}
	document := object{"created": x.now(), "data": data}
	x.consume(func(u *Usage) { *u = usage })
	if !r.reportsUsage() {
		return x.answerJSON(document, nil)
	}
	r.describe(document)
	x.putUsage(document, r.usage(usage))
	return x.answerJSON(document, &usage)
}

// describe adds what the answer says about its images.
func (r imageRequest) describe(document object) {
	or := func(value, missing string) string {
		if value == "" || value == "auto" {
			return missing
		}
		return value
	}
	document["size"] = or(r.Size, "1024x1024")
	document["quality"] = or(r.Quality, "medium")
	document["background"] = or(r.Background, "opaque")
	document["output_format"] = or(r.OutputFormat, "png")
}

func (r imageRequest) usage(u Usage) object {
	images := min(r.inputImages*mediaTokens, u.InputTokens)
	return object{
		"input_tokens": u.InputTokens, "output_tokens": u.OutputTokens, "total_tokens": u.InputTokens + u.OutputTokens,
		"input_tokens_details":  object{"text_tokens": u.InputTokens - images, "image_tokens": images},
		"output_tokens_details": object{"text_tokens": 0, "image_tokens": u.OutputTokens},
	}
}

func (x *exchange) streamImages(r imageRequest, usage Usage) error {
	if err := x.openStream(); err != nil {
		return err
	}
	frame := func(kind string) (string, object) {
		document := object{"type": r.events + "." + kind, "created_at": x.now(), "b64_json": pixel}
		r.describe(document)
		return r.events + "." + kind, document
	}
	for i := range r.PartialImages {
		name, document := frame("partial_image")
		document["partial_image_index"] = i
		if err := x.chunk(100, name, document); err != nil {
			return x.failOpenAI(err)
		}
	}
	name, document := frame("completed")
	x.putUsage(document, r.usage(usage))
	if err := x.chunk(0, name, document); err != nil {
		return x.failOpenAI(err)
	}
	x.consume(func(u *Usage) { *u = usage })
	x.report(&usage)
	if err := x.afterContent(); err != nil {
		return x.failOpenAI(err)
	}
	return nil
}
