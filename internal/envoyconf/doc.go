// Package envoyconf turns the providers into what Envoy runs: one listener, one route table, a cluster and a credential for each
// provider, and the bootstrap by which Envoy finds the control plane.
//
// Input: a Config and the providers of the policy, sorted by name. Output: typed resources, or a snapshot of them for an xDS server,
// whose versions are hashes of their content, so that every replica of the control plane names the same content alike. The package is
// pure: it reads no file, keeps no state and starts no goroutine.
//
// The way of a request: early header mutation strips what only the gateway may say, ext_proc asks the enforcer, which names the provider
// in policy.ProviderHeader and sets the canonical path, the route table finds the provider's cluster by that header and strips the
// caller's credentials, and the cluster's own filter puts the provider's credential in. Where the enforcer has not decided, the last
// route refuses.
//
// The listener depends on Config only: a provider that comes, goes or changes never drains the callers' connections.
package envoyconf
