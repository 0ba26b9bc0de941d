// Package terminal runs a program on a pseudo-terminal of its own, as a person sees it: what is typed goes in, what is shown comes out.
// It is for Linux. A session owns two goroutines, which end with the program.
package terminal
