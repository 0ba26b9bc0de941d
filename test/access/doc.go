// Package access tests who may do what: the roles of config/rbac and the guards of config/guard, as a real API server enforces them.
//
// Each role is tried twice, by asking the API server (SubjectAccessReview) and by doing (requests under an assumed identity). No
// kube-controller-manager runs here; where one matters, the test does its part and says so. The commands in docs/access.md are run
// in the order in which they stand there.
package access
