// Package enforce decides: (policy, request, now) → forward it, and to whom, or answer it.
//
// Input: a Table that follows the control plane, and requests as an adapter took them from Envoy. Output: Forwards, and Answers in the caller's
// own dialect. It knows neither Envoy nor Kubernetes and starts no goroutines.
package enforce
