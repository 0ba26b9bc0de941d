// Package usage carries the ledger's accounts from the enforcer to the control plane, where they are shown, and back to an enforcer that
// has lost its ledger.
//
// Input: at the enforcer, the accounts that a ledger says have changed. Output: at the control plane, calls of a Sink. In between is
// one gRPC stream with mutual TLS, on the port of xDS. Reporter.Run owns the enforcer's goroutines; at the control plane each stream has
// one, which ends with it.
package usage
