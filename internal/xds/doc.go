// Package xds serves the key set to enforcers and Envoy's own resources to Envoys: one delta-ADS port, with mutual TLS.
//
// Input: a keyset.Cache and a snapshot cache. Output: streams, and a Tracker that knows what clients acknowledged and refused. Run owns
// all its goroutines.
package xds
