// Package xdsclient is the enforcer's stream to the control plane: it follows the key set, keeps the last good copy of it on disk, and
// hands every change to a Sink before it acknowledges it.
//
// Input: delta xDS with mutual TLS. Output: policy.Deltas. Run owns all its goroutines. It imports no Kubernetes.
package xdsclient
