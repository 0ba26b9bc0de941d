package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/discovery"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
)

const (
	managerAccount  = "latchkey-manager"
	labelReplica    = "latchkey.dev/replica" // on the Leases by which replicas of the manager report on their enforcers
	annotationState = "latchkey.dev/report"
)

// plurals are the kinds.
func plurals() []string {
	return []string{"applications", "apikeys", "models", "providers", "systempolicies"}
}

// reachable asks for something that the API server tells everybody.
func reachable(ctx context.Context, c client.Client) error {
	review := &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{
		ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: "list", Group: v1alpha1.GroupVersion.Group, Resource: "apikeys"},
	}}
	return c.Create(ctx, review)
}

// cannot is a finding about something that could not be read: for want of permission it is no fault of the installation.
func cannot(what string, err error) []finding {
	if apierrors.IsForbidden(err) {
		return []finding{{Level: levelNote, What: what, Says: "you may not read this, so it was not looked at"}}
	}
	return []finding{{levelMend, what, oneLine(err.Error()), orElse(hintFor(err), "try again, and look at the API server's log if it stays so")}}
}

// checkKinds finds out whether the kinds are served.
func (o *doctor) checkKinds(ctx context.Context, c *cluster) []finding {
	const mend = "install the CRDs: kubectl apply --server-side -k config/crd"
	var missing, off []string
	for _, plural := range plurals() {
		crd := &apiextensionsv1.CustomResourceDefinition{}
		err := c.Get(ctx, types.NamespacedName{Name: plural + "." + v1alpha1.GroupVersion.Group}, crd)
		switch {
		case apierrors.IsForbidden(err):
			return o.checkServed(ctx, c)
		case apierrors.IsNotFound(err):
			missing = append(missing, plural)
		case err != nil:
			return cannot("kinds", err)
		case !serves(crd):
			off = append(off, plural)
		}
	}
	switch {
	case len(missing) > 0:
		return []finding{{levelMend, "kinds", "not there: " + strings.Join(missing, ", "), mend}}
	case len(off) > 0:
		return []finding{{levelMend, "kinds", "not served: " + strings.Join(off, ", "), mend + ", and see: kubectl describe crd NAME." + v1alpha1.GroupVersion.Group}}
	}
	return []finding{{Level: levelOK, What: "kinds", Says: "all five are served"}}
}

func serves(crd *apiextensionsv1.CustomResourceDefinition) bool {
	established, served := false, false
	for _, c := range crd.Status.Conditions {
		established = established || (c.Type == apiextensionsv1.Established && c.Status == apiextensionsv1.ConditionTrue)
	}
	for _, v := range crd.Spec.Versions {
		served = served || (v.Name == v1alpha1.GroupVersion.Version && v.Served)
	}
	return established && served
}

// checkServed asks discovery, for whoever may not read CRDs.
func (o *doctor) checkServed(ctx context.Context, c *cluster) []finding {
	discover, err := discovery.NewDiscoveryClientForConfig(c.config)
	if err != nil {
		return cannot("kinds", err)
	}
	list, err := discover.ServerResourcesForGroupVersionWithContext(ctx, v1alpha1.GroupVersion.String())
	if err != nil && !apierrors.IsNotFound(err) {
		return cannot("kinds", err)
	}
	served := map[string]bool{}
	if list != nil {
		for _, r := range list.APIResources {
			served[r.Name] = true
		}
	}
	var missing []string
	for _, plural := range plurals() {
		if !served[plural] {
			missing = append(missing, plural)
		}
	}
	if len(missing) > 0 {
		return []finding{{levelMend, "kinds", "not served: " + strings.Join(missing, ", "), "have the CRDs installed: kubectl apply --server-side -k config/crd"}}
	}
	return []finding{{Level: levelOK, What: "kinds", Says: "all five are served"}}
}

// permission is something that somebody has to be allowed.
type permission struct{ verb, group, resource, subresource string }

func (p permission) String() string {
	resource := p.resource
	if p.subresource != "" {
		resource += "/" + p.subresource
	}
	return p.verb + " " + resource
}

// checkPermissions asks what the user may do, and what the manager may where its account is there.
func (o *doctor) checkPermissions(ctx context.Context, c *cluster) []finding {
	group := v1alpha1.GroupVersion.Group
	yours := []permission{
		{"get", group, "apikeys", ""}, {"list", group, "apikeys", ""}, {"create", group, "apikeys", ""}, {"patch", group, "apikeys", ""},
		{"delete", group, "apikeys", ""}, {"list", group, "applications", ""}, {"create", group, "applications", ""}, {"patch", group, "applications", ""},
		{"get", "", "secrets", ""}, {"patch", "", "secrets", ""}, {"list", group, "models", ""}, {"list", group, "providers", ""}, {"get", group, "systempolicies", ""},
	}
	var lacking []string
	for _, p := range yours {
		review := &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: p.in(c.namespace)}}
		if err := c.Create(ctx, review); err != nil {
			return cannot("your permissions", err)
		}
		if !review.Status.Allowed {
			lacking = append(lacking, p.String())
		}
	}
	findings := []finding{{Level: levelOK, What: "your permissions", Says: "in namespace " + c.namespace + " you may do all that the plugin does"}}
	if len(lacking) > 0 {
		findings[0] = finding{Level: levelNote, What: "your permissions", Says: "in namespace " + c.namespace + " you may not: " + strings.Join(lacking, ", ")}
	}
	return append(findings, o.checkManagerPermissions(ctx, c)...)
}

func (p permission) in(namespace string) *authorizationv1.ResourceAttributes {
	return &authorizationv1.ResourceAttributes{Namespace: namespace, Verb: p.verb, Group: p.group, Resource: p.resource, Subresource: p.subresource}
}

// checkManagerPermissions asks for the manager's ServiceAccount. Where it runs as somebody else, as on a developer's machine, nothing is said.
func (o *doctor) checkManagerPermissions(ctx context.Context, c *cluster) []finding {
	const what = "manager's permissions"
	if err := c.Get(ctx, types.NamespacedName{Namespace: o.namespace, Name: managerAccount}, &corev1.ServiceAccount{}); err != nil {
		if apierrors.IsNotFound(err) {
			return nil
		}
		return cannot(what, err)
	}
	group := v1alpha1.GroupVersion.Group
	var lacking []string
	for _, p := range []permission{
		{"list", group, "apikeys", ""}, {"watch", group, "apikeys", ""}, {"patch", group, "apikeys", "status"}, {"patch", group, "applications", "status"},
		{"list", group, "models", ""}, {"list", group, "providers", ""}, {"create", "", "secrets", ""}, {"patch", "", "secrets", ""}, {"delete", "", "secrets", ""},
	} {
		review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
			User: "system:serviceaccount:" + o.namespace + ":" + managerAccount,
			Groups: []string{
				"system:serviceaccounts", "system:serviceaccounts:" + o.namespace, "system:authenticated",
			},
			ResourceAttributes: p.in(""), // in all namespaces
		}}
		if err := c.Create(ctx, review); err != nil {
			return cannot(what, err)
		}
		if !review.Status.Allowed {
			lacking = append(lacking, p.String())
		}
	}
	if len(lacking) > 0 {
		return []finding{{levelMend, what, "ServiceAccount " + o.namespace + "/" + managerAccount + " may not: " + strings.Join(lacking, ", "), "kubectl apply --server-side -k config/rbac"}}
	}
	return []finding{{Level: levelOK, What: what, Says: "ServiceAccount " + o.namespace + "/" + managerAccount + " may do what it has to"}}
}

// checkManager reads the Leases of the manager's replicas.
func (o *doctor) checkManager(ctx context.Context, c *cluster) []finding {
	// A replica renews its report every 5 s: one that has just started, or that an enforcer has just come to, is given that time.
	const renewal = 7 * time.Second
	var findings []finding
	limited, cancel := context.WithTimeout(ctx, renewal)
	defer cancel()
	err := wait.PollUntilContextCancel(limited, pollEvery, true, func(context.Context) (bool, error) {
		var leases coordinationv1.LeaseList
		if err := c.List(ctx, &leases, client.InNamespace(o.namespace)); err != nil {
			return false, err
		}
		findings = managerFindings(leases.Items, o.namespace, o.p.now())
		last := findings[len(findings)-1]
		return last.Level == levelOK || last.What == managerFinding, nil
	})
	if err != nil && findings == nil {
		return cannot(managerFinding, err)
	}
	return findings
}

// What is found out from the Leases.
const (
	managerFinding   = "manager"
	enforcersFinding = "enforcers"
	ledgerFinding    = "ledger"
)

// managerFindings says whether a replica runs, whether one leads, and how many enforcers are connected.
func managerFindings(leases []coordinationv1.Lease, namespace string, now time.Time) []finding {
	const look = "is the manager running? See its log, and: kubectl get pods -n "
	replicas, enforcers, ledgers, trouble, leader := 0, 0, 0, "", ""
	for i := range leases {
		l := &leases[i]
		if !fresh(l, now) {
			continue
		}
		switch {
		case l.Labels[labelReplica] != "":
			replicas++
			var report struct {
				Enforcers int    `json:"enforcers"`
				Ledgers   int    `json:"ledgers"`
				Trouble   string `json:"ledgerTrouble"`
			}
			if err := json.Unmarshal([]byte(l.Annotations[annotationState]), &report); err == nil {
				enforcers += report.Enforcers
				ledgers += report.Ledgers
				trouble = cmp.Or(trouble, report.Trouble)
			}
		case l.Name == managerAccount && l.Spec.HolderIdentity != nil:
			leader = *l.Spec.HolderIdentity
		}
	}
	if replicas == 0 && leader == "" {
		return []finding{{levelMend, managerFinding, "no replica has renewed its Lease in namespace " + namespace,
			look + namespace + " (--installation-namespace names another)"}}
	}
	says := counted(int64(max(replicas, 1)), "replica")
	if says += " running"; leader != "" {
		says += ", " + oneLine(leader) + " leads"
	}
	findings := []finding{{Level: levelOK, What: managerFinding, Says: says}}
	switch {
	case replicas > 0 && enforcers == 0:
		findings = append(findings, finding{levelMend, enforcersFinding, "none is connected, so that what is edited reaches no gateway",
			"see the enforcers' log, that they reach the manager's xDS port, and that their certificate is of the same authority"})
	case replicas > 0:
		findings = append(findings, finding{Level: levelOK, What: enforcersFinding, Says: fmt.Sprintf("%d connected", enforcers)})
	}
	switch {
	case replicas == 0 || enforcers == 0:
	case trouble != "":
		findings = append(findings, finding{levelMend, ledgerFinding, "an enforcer cannot write down what is spent: " + oneLine(trouble),
			"see to the disk under the enforcer's --state-dir: is it full, or read-only? Requests are refused meanwhile, unless the SystemPolicy says otherwise"})
	case ledgers == 0:
		findings = append(findings, finding{levelMend, ledgerFinding, "no enforcer reports what is spent, so that status.usage stands still",
			"see the enforcers' log: they report to the manager's xDS port, with the same certificate"})
	default:
		findings = append(findings, finding{Level: levelOK, What: ledgerFinding, Says: "what is spent is reported by " + counted(int64(ledgers), "enforcer")})
	}
	return findings
}

// fresh reports whether a Lease is held.
func fresh(l *coordinationv1.Lease, now time.Time) bool {
	if l.Spec.RenewTime == nil || l.Spec.LeaseDurationSeconds == nil || l.Spec.HolderIdentity == nil || *l.Spec.HolderIdentity == "" {
		return false
	}
	return now.Before(l.Spec.RenewTime.Add(time.Duration(*l.Spec.LeaseDurationSeconds) * time.Second))
}
