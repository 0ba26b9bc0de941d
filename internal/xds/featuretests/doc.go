// Package featuretests holds story tests of the xDS port: policy objects go in, and what comes out of a real delta stream with mutual
// TLS is looked at. No API server takes part. It has no code of its own.
package featuretests
