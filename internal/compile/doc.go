// Package compile turns Kubernetes objects into the policy set, and says what is wrong with them. It is pure: objects in, policy and
// problems out.
//
// A nil result is not published, and so nothing that depends on it is let through.
package compile
