// Package metrics tests what operators see of the running system: it starts the whole stack, makes requests of every outcome, and scrapes the
// manager and the enforcer as Prometheus does.
//
// Input: the binaries in bin/. Output: docs/metrics.md is compared with the scrapes; with -update its table is written anew. The one stack of
// the package is started by TestMain and ended by it; scrape gives what its processes show.
package metrics
