// Package certs makes and loads the certificates of the xDS port, where both sides authenticate each other.
//
// Input: a directory with ca.crt, tls.crt and tls.key (cert-manager's names), or an Authority of the manager's own. Output: TLS
// configurations that read their certificates anew at each handshake, so that a renewal needs no restart. Nothing in it starts a
// goroutine.
package certs
