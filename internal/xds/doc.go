// Package xds serves the key set to enforcers and Envoy's own resources to Envoys: one delta-ADS port, with mutual TLS. What a client may
// have goes by the URI in its certificate.
//
// Input: a keyset.Cache and a snapshot cache. Output: streams, and a Tracker that knows what clients acknowledged and refused. Run owns
// all its goroutines. The tests of what comes out of a stream are in featuretests.
package xds
