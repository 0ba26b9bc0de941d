// Package stack runs Latchkey whole on one machine: the real API server and etcd, the manager, the enforcer, the real Envoy and the
// simulated provider, each as a process of its own. `make run`, the end-to-end tests and the benchmarks share it.
//
// Input: the binaries that the Makefile builds and finds. Output: a running system with its kubeconfig, certificates, state and logs
// in one directory. Stop ends every process; each is also bound to the life of this one, so that a killed test leaves none behind.
package stack
