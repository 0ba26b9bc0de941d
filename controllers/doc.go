// Package controllers reconciles Latchkey's kinds, and publishes them to the data plane.
//
// Input: the API server's objects. Output: Secrets and status, written by the leader; and on every replica, through the Publisher,
// the key set and Envoy's configuration. The manager of controller-runtime owns all goroutines.
package controllers
