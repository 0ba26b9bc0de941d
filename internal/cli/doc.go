// Package cli holds the commands of the kubectl plugin, "kubectl latchkey".
//
// Input: arguments, a kubeconfig and the API server; for "try" also the gateway. Output: on stdout nothing but what was asked for, so
// that it can be piped; all else on stderr. What a command decides or formats is a pure function of the objects it has read; reading and
// writing stand apart. Nothing in it outlives the command, but a reader of stdin that nobody can wake.
package cli
