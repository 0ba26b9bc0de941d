// Package chart tests charts/latchkey with both Helms, the real API server, and the programs that its Pods would run.
//
// No kubelet runs on that API server, so the tests stand in for it: they start what the rendered Pods say, with their arguments, environment
// and volumes, as processes of this machine. Whatever is started is stopped by the test that did.
package chart
