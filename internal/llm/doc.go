// Package llm reads requests and answers of the OpenAI and Anthropic APIs: which endpoint a request is for, which model it names, what it
// asks of it and can use at most; and what an answer used. It does no IO. The meter of an answer that is compressed has a goroutine, which
// ends with the meter's Result.
//
// Input: method, path, content type and body as a caller sent them. Output: a Route and a Request, or an error that says how to mend the
// request; and the body as the provider shall get it, with the provider's own name for the model.
//
// A Meter reads an answer as it passes, in pieces that can end anywhere, in bounded memory. What a provider did not report it estimates
// from the bytes of the text: three of ASCII, or two of anything else, are taken for a token, and a piece of a stream for one at least.
// Today's tokenizers make a token of about four bytes of English, and of two or three of other scripts: so the estimate is rarely too low,
// and at most about twice too high.
//
// Bodies of requests are read strictly: where a lenient parser behind the gateway could read something else than this one, the request is refused. A
// JSON body keeps every byte but the model's name; a form is written anew in the one way that all parsers read alike.
package llm
