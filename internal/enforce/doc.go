// Package enforce decides: (policy, request, ledger, now) → forward it, and to whom, or answer it; and has what was forwarded paid for.
//
// Input: a Table that follows the control plane, a ledger, and requests and their answers as an adapter took them from Envoy. Output:
// Forwards, Answers in the caller's own dialect, and what each request used. It knows neither Envoy nor Kubernetes and starts no goroutines.
package enforce
