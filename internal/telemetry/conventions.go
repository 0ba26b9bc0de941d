package telemetry

import (
	"strconv"

	"go.opentelemetry.io/otel/attribute"
	semconv "go.opentelemetry.io/otel/semconv/v1.41.0"

	"github.com/latchkey-dev/latchkey/internal/enforce"
	"github.com/latchkey-dev/latchkey/internal/llm"
)

// What the conventions have no names for.
const (
	keyProvider      attribute.Key = "latchkey.provider" // the Provider's name; the conventions' is that of the API it speaks
	keyPrefix        attribute.Key = "latchkey.key.prefix"
	keyApplication   attribute.Key = "latchkey.application"
	keyNamespace     attribute.Key = "latchkey.namespace"
	keyRequestID     attribute.Key = "latchkey.request.id"
	keyRefusalReason attribute.Key = "latchkey.refusal.reason"
	keyEnding        attribute.Key = "latchkey.ending"
	keyEstimated     attribute.Key = "latchkey.usage.estimated"
	keyCost          attribute.Key = "latchkey.cost"
	keyCurrency      attribute.Key = "latchkey.currency"
)

// operationOf is the conventions' name of what an endpoint does. Some endpoints do what those have no name for, and allow one of our own.
func operationOf(endpoint string) string {
	switch endpoint {
	case llm.ChatCompletions, llm.Responses, llm.Messages:
		return semconv.GenAIOperationNameChat.Value.AsString()
	case llm.Completions:
		return semconv.GenAIOperationNameTextCompletion.Value.AsString()
	case llm.Embeddings:
		return semconv.GenAIOperationNameEmbeddings.Value.AsString()
	case llm.ImagesGenerations, llm.ImagesEdits, llm.ImagesVariations:
		return semconv.GenAIOperationNameGenerateContent.Value.AsString()
	case llm.AudioSpeech:
		return "text_to_speech"
	case llm.AudioTranscriptions, llm.AudioTranslations:
		return "speech_to_text"
	case llm.Moderations:
		return "moderation"
	case llm.CountTokens:
		return "count_tokens"
	case llm.Models:
		return "list_models"
	}
	return ""
}

// errorOf is what the conventions call error.type; empty: the request did not fail.
func errorOf(m *enforce.Metering) string {
	switch m.Ending {
	case enforce.EndingAnswered, enforce.EndingNotWatched: // of the latter nobody knows
		return ""
	case enforce.EndingError:
		return strconv.Itoa(m.AnswerStatus)
	case enforce.EndingCredential:
		return "provider_credential"
	case enforce.EndingUnanswered, enforce.EndingCutOff, enforce.EndingHungUp:
	}
	return string(m.Ending)
}

// common are the attributes that metrics and spans have alike, of which there are few. A model or a provider is there only when the policy
// knows it.
func common(d *enforce.Decision, room int) attributes {
	a := make(attributes, 0, room)
	if operation := operationOf(d.Endpoint); operation != "" {
		a.text(semconv.GenAIOperationNameKey, operation)
		a.text(semconv.GenAIProviderNameKey, d.Dialect)
	}
	a.text(semconv.GenAIRequestModelKey, d.Model)
	a.text(keyProvider, d.Provider)
	return a
}
