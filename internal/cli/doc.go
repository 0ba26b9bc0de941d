// Package cli holds the commands of the kubectl plugin, "kubectl latchkey".
//
// Input: arguments, a kubeconfig and the API server. Output: on stdout nothing but what was asked for, so that it can be piped; all
// else on stderr. Nothing in it outlives the command.
package cli
