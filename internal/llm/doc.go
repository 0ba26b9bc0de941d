// Package llm reads requests of the OpenAI and Anthropic APIs: which endpoint they are for, which model they name, and what they ask of
// it. It is pure.
//
// Input: method, path and body as a caller sent them. Output: a Route and a Request, or an error that says how to mend the request.
// Bodies are read strictly: where a lenient parser behind the gateway could read something else than this one, the request is refused.
package llm
