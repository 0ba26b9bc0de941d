// Package cli tests the kubectl plugin against a real kube-apiserver, in a pipe and on a pseudo-terminal.
//
// No manager runs here. Where a command waits for one, the test mints the key and writes the status itself, as data.
package cli
