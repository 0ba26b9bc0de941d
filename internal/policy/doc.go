// Package policy is the model between the two planes: what compile makes of the Kubernetes objects, what the key set carries, and
// what the enforcer decides by. Both planes compute effective limits by the same functions, here.
//
// It imports the standard library and money only. Values are immutable once handed over. Nothing in it starts a goroutine.
package policy
