package policy

// What the enforcer and Envoy's configuration agree on.
const (
	// ProviderHeader is the request header by which the enforcer tells Envoy which provider a request goes to. Envoy strips it from
	// what callers send, and from what providers receive.
	ProviderHeader = "x-latchkey-provider"

	// AnswerDetails is the response code detail of the answers that the enforcer gives itself, so that Envoy's rewriting of its own
	// local replies leaves them alone.
	AnswerDetails = "latchkey_answer"

	// GatewayErrorHeader is in the responses that are Envoy's own errors, and in no other. GatewayErrorOfProvider is its value where a
	// request was let through, and its provider was not reached or did not answer.
	GatewayErrorHeader     = "x-latchkey-gateway-error"
	GatewayErrorOfProvider = "provider"

	// DefaultMaxRequestBytes is the most that a request's body can hold: room for the audio and images that OpenAI's API accepts (25 MB).
	DefaultMaxRequestBytes = 32 << 20
)
