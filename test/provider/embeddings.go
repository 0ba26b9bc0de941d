package provider

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"hash/fnv"
	"math"
	"math/rand/v2"
)

// input is one of the inputs of embeddings, moderations and completions.
type input struct {
	text   string // empty for a list of token numbers
	tokens int
}

// readInputs reads a string, a list of strings, a list of token numbers, a list of such lists, or a list of content parts.
func readInputs(raw json.RawMessage, param string) ([]input, error) {
	if isNull(raw) {
		return nil, badRequest(param, "Missing required parameter: '%s'.", param)
	}
	var text string
	if json.Unmarshal(raw, &text) == nil {
		return []input{{text: text, tokens: countTokens(text)}}, nil
	}
	var texts []string
	if json.Unmarshal(raw, &texts) == nil && len(texts) > 0 {
		inputs := make([]input, len(texts))
		for i, text := range texts {
			inputs[i] = input{text: text, tokens: countTokens(text)}
		}
		return inputs, nil
	}
	var numbers []int
	if json.Unmarshal(raw, &numbers) == nil && len(numbers) > 0 {
		return []input{{tokens: len(numbers)}}, nil
	}
	var lists [][]int
	if json.Unmarshal(raw, &lists) == nil && len(lists) > 0 {
		inputs := make([]input, len(lists))
		for i, list := range lists {
			inputs[i] = input{tokens: len(list)}
		}
		return inputs, nil
	}
	c, err := readContent(raw, param)
	if err != nil || len(c.texts)+c.media == 0 {
		return nil, badRequest(param, "'$.%s' is invalid. Please check the API reference.", param)
	}
	var inputs []input
	for _, text := range c.texts {
		inputs = append(inputs, input{text: text, tokens: countTokens(text)})
	}
	for range c.media {
		inputs = append(inputs, input{tokens: mediaTokens})
	}
	return inputs, nil
}

// readInputField reads model and input of embeddings and moderations, and begins.
func (x *exchange) readInputField(f fields, missingModel string) (model string, inputs []input, err error) {
	model = missingModel
	if err := f.get("model", &model); err != nil {
		return "", nil, err
	}
	inputs, err = readInputs(f["input"], "input")
	if err != nil {
		return "", nil, err
	}
	last := ""
	for _, in := range inputs {
		if in.text != "" {
			last = in.text
		}
	}
	return model, inputs, x.begin(model, last)
}

func serveEmbeddings(x *exchange) error {
	f, err := x.fields()
	if err != nil {
		return err
	}
	const defaultDimensions, maxDimensions = 1536, 4096
	dimensions, encoding := defaultDimensions, "float"
	if err := f.getAll(map[string]any{"dimensions": &dimensions, "encoding_format": &encoding}); err != nil {
		return err
	}
	if dimensions < 1 || dimensions > maxDimensions {
		return badRequest("dimensions", "Invalid 'dimensions': expected a value from 1 to %d.", maxDimensions)
	}
	if encoding != "float" && encoding != "base64" {
		return badRequest("encoding_format", "Invalid 'encoding_format': expected 'float' or 'base64'.")
	}
	model, inputs, err := x.readInputField(f, "")
	if err != nil {
		return err
	}
	var usage Usage
	data := make([]any, len(inputs))
	for i, in := range inputs {
		usage.InputTokens += in.tokens
		vector := embed(in.text, dimensions)
		var embedding any = vector
		if encoding == "base64" {
			var b []byte
			for _, value := range vector {
				b = binary.LittleEndian.AppendUint32(b, math.Float32bits(value))
			}
			embedding = base64.StdEncoding.EncodeToString(b)
		}
		data[i] = object{"object": "embedding", "index": i, "embedding": embedding}
	}
	if x.d.inputTokens != unset {
		usage.InputTokens = x.d.inputTokens
	}
	document := object{"object": "list", "data": data, "model": model}
	x.putUsage(document, object{"prompt_tokens": usage.InputTokens, "total_tokens": usage.InputTokens})
	x.consume(func(u *Usage) { *u = usage })
	return x.answerJSON(document, &usage)
}

// embed makes a vector of length 1 that is always the same for a text.
func embed(text string, dimensions int) []float32 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(text)) // never fails
	random := rand.New(rand.NewPCG(h.Sum64(), uint64(dimensions)))
	values := make([]float64, dimensions)
	var square float64
	for i := range values {
		values[i] = random.NormFloat64()
		square += values[i] * values[i]
	}
	vector := make([]float32, dimensions)
	for i, value := range values {
		vector[i] = float32(value / math.Sqrt(square))
	}
	return vector
}

func moderationCategories() []string {
	return []string{
		"harassment", "harassment/threatening", "hate", "hate/threatening", "illicit", "illicit/violent", "self-harm", "self-harm/instructions",
		"self-harm/intent", "sexual", "sexual/minors", "violence", "violence/graphic",
	}
}

func serveModerations(x *exchange) error {
	f, err := x.fields()
	if err != nil {
		return err
	}
	model, inputs, err := x.readInputField(f, "omni-moderation-latest")
	if err != nil {
		return err
	}
	results := make([]any, len(inputs))
	for i, in := range inputs {
		categories, scores, applied := object{}, object{}, object{}
		for _, category := range moderationCategories() {
			categories[category], scores[category], applied[category] = false, 0.0001, []any{"text"}
		}
		if x.d.flag {
			categories["violence"], scores["violence"] = true, 0.98
		}
		if in.text == "" {
			applied["violence"] = []any{"image"}
		}
		results[i] = object{"flagged": x.d.flag, "categories": categories, "category_scores": scores, "category_applied_input_types": applied}
	}
	return x.answerJSON(object{"id": x.newID("modr-"), "model": model, "results": results}, nil)
}
