// Package llm reads requests of the OpenAI and Anthropic APIs: which endpoint they are for, which model they name, and what they ask of
// it. It is pure, and starts no goroutines.
//
// Input: method, path, content type and body as a caller sent them. Output: a Route and a Request, or an error that says how to mend the
// request; and the body as the provider shall get it, with the provider's own name for the model.
//
// Bodies are read strictly: where a lenient parser behind the gateway could read something else than this one, the request is refused. A
// JSON body keeps every byte but the model's name; a form is written anew in the one way that all parsers read alike.
package llm
