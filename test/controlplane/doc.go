// Package controlplane starts a real kube-apiserver on a real etcd, for tests and for `make run`.
//
// Input: the folder that holds the two programs, and a directory for their state and logs. Output: an address, the cluster
// administrator's credentials, and real ServiceAccount tokens. Everything listens on the loopback interface only.
//
// Nothing else of a cluster runs here: no kube-controller-manager, hence no garbage collection, no deletion of a namespace's
// content and no ServiceAccount that appears by itself; no scheduler and no kubelet, hence no pods.
//
// A [ControlPlane] owns one goroutine for each of the two programs. They end when the programs do, which [ControlPlane.Stop] sees to.
package controlplane
