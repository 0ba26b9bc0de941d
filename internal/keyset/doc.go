// Package keyset turns the policy set into resources of the key-set type and back, and serves them by delta xDS.
//
// Input: policy objects, from the publisher. Output: resources for the wire, and from the wire a policy.Delta. The Cache stands behind
// go-control-plane's cache.Cache interface; its costs follow what changes, not what there is. It starts no goroutines but the clock's
// timers, for responses that are sent again after a refusal, and they end with their watch.
package keyset
