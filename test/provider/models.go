package provider

// modelsCreated is when every model was created: a fixed time, so that lists can be compared.
const (
	modelsCreated   = 1735689600
	modelsCreatedAt = "2025-01-01T00:00:00Z"
)

func (x *exchange) modelDocument(model string) object {
	if x.dialect == anthropic {
		return object{"type": "model", "id": model, "display_name": model, "created_at": modelsCreatedAt}
	}
	return object{"id": model, "object": "model", "created": modelsCreated, "owned_by": "sim-org"}
}

func serveModels(x *exchange) error {
	models := x.server.config.Models
	data := make([]any, len(models))
	for i, model := range models {
		data[i] = x.modelDocument(model)
	}
	if x.dialect == openAI {
		return x.answerJSON(object{"object": "list", "data": data}, nil)
	}
	document := object{"data": data, "has_more": false, "first_id": nil, "last_id": nil}
	if len(models) > 0 {
		document["first_id"], document["last_id"] = models[0], models[len(models)-1]
	}
	return x.answerJSON(document, nil)
}

func serveModel(x *exchange, model string) error {
	x.update(func(r *Record) { r.Model = model })
	if !x.server.hasModel(model) {
		return modelError(x.dialect, model)
	}
	return x.answerJSON(x.modelDocument(model), nil)
}
