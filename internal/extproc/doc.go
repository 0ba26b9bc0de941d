// Package extproc is the adapter between Envoy's external processing filter and the engine: it carries what Envoy says about a request
// to internal/enforce, and what the engine decided back to Envoy. It decides nothing itself, but for one thing: whatever goes wrong on
// the way ends in an answer that refuses, never in a request that passes.
//
// Input: streams of envoy.service.ext_proc.v3.ExternalProcessor over a unix socket, one for each HTTP request, with the modes request
// headers SEND, request body BUFFERED, response headers SEND, response body STREAMED, response trailers SEND. Output: the mutations and
// immediate answers by which Envoy acts, and pieces of answers on their way.
//
// gRPC owns a goroutine for each stream, besides its connections', and each stream one that reads it, which ends with it. Serve has stopped
// them all when it returns.
package extproc
