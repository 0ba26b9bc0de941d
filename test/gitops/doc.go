// Package gitops tests what tools see that bring keys from Git: kstatus as Flux has it, Argo CD's health scripts, kubectl's diffs and owners of
// fields, and workloads that mount a key. It runs the whole system, and stops what it has started.
package gitops
