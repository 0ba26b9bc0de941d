// Package e2e holds the tests that run the whole system: real API server, manager, enforcer, Envoy and SDKs, by test/stack. One stack
// serves all tests; those that stop parts of it run one after another, and put back what they stopped.
package e2e
