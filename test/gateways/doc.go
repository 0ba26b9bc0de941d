// Package gateways runs the enforcer beside Envoys that Latchkey does not configure: the files of config/gateways, in a real Envoy, with
// the real API server, manager and enforcer, and the simulated provider behind TLS. One stack serves all gateways, and each goes through the
// same story. What Envoy Gateway and Istio take is also held against their CRDs, by a dry run on the API server.
//
// Input: config/gateways, config/samples and docs/gateways.md. Output: nothing; every process and server is ended by TestMain.
package gateways
