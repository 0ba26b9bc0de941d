package cli

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
)

// certificateSecrets hold the certificates between manager, enforcers and Envoy.
func certificateSecrets() []string {
	return []string{"latchkey-xds-tls", "latchkey-enforcer-tls", "latchkey-envoy-tls"}
}

func (o *doctor) checkCertificates(ctx context.Context, c *cluster) []finding {
	var findings []finding
	for _, name := range certificateSecrets() {
		what := "certificate " + name
		secret := &corev1.Secret{}
		err := c.Get(ctx, types.NamespacedName{Namespace: o.namespace, Name: name}, secret)
		switch {
		case apierrors.IsNotFound(err):
			findings = append(findings, finding{levelMend, what, "Secret " + o.namespace + "/" + name + " does not exist",
				"the manager makes it when it starts, unless --certificates tells it otherwise: see its log; with cert-manager, see: kubectl get certificates -n " + o.namespace})
		case err != nil:
			return append(findings, cannot("certificates", err)...)
		default:
			findings = append(findings, certificateFinding(what, secret, o.p.now()))
		}
	}
	return findings
}

// certificateFinding looks at one certificate: that it can be read, is in force, and is of the authority beside it.
func certificateFinding(what string, secret *corev1.Secret, now time.Time) finding {
	mend := "delete the Secret, and the manager makes a new one within the hour, or at its restart: kubectl delete secret " + secret.Name + " -n " + secret.Namespace
	leaf, err := parseCertificate(secret.Data[corev1.TLSCertKey])
	if err != nil {
		return finding{levelMend, what, fmt.Sprintf("its %s cannot be read: %v", corev1.TLSCertKey, err), mend}
	}
	const soon = 24 * time.Hour // the manager renews long before that
	switch {
	case now.After(leaf.NotAfter):
		return finding{levelMend, what, "it expired at " + leaf.NotAfter.UTC().Format(time.RFC3339), mend}
	case now.Before(leaf.NotBefore):
		return finding{levelMend, what, "it is not valid before " + leaf.NotBefore.UTC().Format(time.RFC3339), "check the clocks of the machines, or " + mend}
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(secret.Data[corev1.ServiceAccountRootCAKey]) {
		return finding{levelMend, what, "its " + corev1.ServiceAccountRootCAKey + " holds no certificate", mend}
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		return finding{levelMend, what, "it is not of the authority beside it: " + oneLine(err.Error()), mend}
	}
	if leaf.NotAfter.Sub(now) < soon {
		return finding{levelMend, what, "it expires " + in(now, leaf.NotAfter) + " and has not been renewed", mend}
	}
	return finding{Level: levelOK, What: what, Says: "in force, expires " + in(now, leaf.NotAfter)}
}

func parseCertificate(content []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(bytes.TrimSpace(content))
	if block == nil {
		return nil, errors.New("it holds no PEM")
	}
	return x509.ParseCertificate(block.Bytes)
}

func (o *doctor) checkSystemPolicy(ctx context.Context, c *cluster) []finding {
	const what = "SystemPolicy"
	sys := &v1alpha1.SystemPolicy{}
	err := c.Get(ctx, types.NamespacedName{Name: v1alpha1.SystemPolicyName}, sys)
	switch {
	case apierrors.IsNotFound(err):
		return []finding{{Level: levelOK, What: what, Says: "there is none, and the defaults apply"}}
	case err != nil:
		return cannot(what, err)
	}
	return []finding{readiness(what, sys.Status.Conditions, sys.Generation, "kubectl edit systempolicy "+sys.Name)}
}

func (o *doctor) checkProviders(ctx context.Context, c *cluster) []finding {
	var list v1alpha1.ProviderList
	if err := c.List(ctx, &list); err != nil {
		return cannot("providers", err)
	}
	if len(list.Items) == 0 {
		return []finding{{levelMend, "providers", "there is none, so that no request can go anywhere", "create a Provider and a Model; config/samples has some"}}
	}
	var each []finding
	for i := range list.Items {
		p := &list.Items[i]
		each = append(each, readiness("provider "+p.Name, p.Status.Conditions, p.Generation, "kubectl describe provider "+p.Name))
	}
	return gather("providers", each)
}

func (o *doctor) checkModels(ctx context.Context, c *cluster) []finding {
	var list v1alpha1.ModelList
	if err := c.List(ctx, &list); err != nil {
		return cannot("models", err)
	}
	if len(list.Items) == 0 {
		return []finding{{levelMend, "models", "there is none, so that no request names one", "create a Model; config/samples has some"}}
	}
	var each []finding
	for i := range list.Items {
		m := &list.Items[i]
		each = append(each, readiness("model "+m.Name, m.Status.Conditions, m.Generation, "kubectl describe model "+m.Name))
	}
	return gather("models", each)
}

// checkKeys looks at the keys of all namespaces, or where that is not allowed of the one at hand.
func (o *doctor) checkKeys(ctx context.Context, c *cluster) []finding {
	what := "keys"
	var list v1alpha1.APIKeyList
	err := c.List(ctx, &list)
	if apierrors.IsForbidden(err) {
		what = "keys in namespace " + c.namespace
		err = c.List(ctx, &list, client.InNamespace(c.namespace))
	}
	if err != nil {
		return cannot(what, err)
	}
	if len(list.Items) == 0 {
		return []finding{{Level: levelOK, What: what, Says: "there is none"}}
	}
	var each []finding
	for i := range list.Items {
		k := &list.Items[i]
		mend := fmt.Sprintf("kubectl latchkey describe key %s -n %s", k.Name, k.Namespace)
		if reasonOf(k.Status.Conditions, v1alpha1.ConditionReady) == v1alpha1.ReasonSecretLost {
			mend = rotateHint(k)
		}
		each = append(each, enforcement("key "+k.Namespace+"/"+k.Name, k.Status.Conditions, k.Generation, mend))
	}
	return gather(what, each)
}

// mostListed is how many of a kind are listed singly.
const mostListed = 10

// gather puts the findings about one kind together: those that need mending singly, up to a number, and the others as a count.
func gather(what string, each []finding) []finding {
	var out []finding
	healthy, more := 0, 0
	for _, f := range each {
		switch {
		case f.Level == levelOK:
			healthy++
		case len(out) < mostListed:
			out = append(out, f)
		default:
			more++
		}
	}
	if more > 0 {
		out = append(out, finding{levelMend, what, fmt.Sprintf("and %d more", more), out[len(out)-1].Mend})
	}
	if healthy > 0 {
		out = append(out, finding{Level: levelOK, What: what, Says: fmt.Sprintf("%d of %d in order", healthy, len(each))})
	}
	return out
}

// readiness looks at the Ready condition. Its message says what to mend.
func readiness(what string, conditions []metav1.Condition, generation int64, mend string) finding {
	return conditionFinding(what, v1alpha1.ConditionReady, conditions, generation, mend)
}

// enforcement looks at Ready and then at Enforced.
func enforcement(what string, conditions []metav1.Condition, generation int64, mend string) finding {
	if f := readiness(what, conditions, generation, mend); f.Level != levelOK {
		return f
	}
	return conditionFinding(what, v1alpha1.ConditionEnforced, conditions, generation, mend)
}

func conditionFinding(what, which string, conditions []metav1.Condition, generation int64, mend string) finding {
	found := meta.FindStatusCondition(conditions, which)
	switch {
	case found == nil || found.ObservedGeneration < generation:
		return finding{levelMend, what, "no controller has looked at it as it stands", "see the manager's log, and: " + mend}
	case found.Status != metav1.ConditionTrue:
		says := strings.TrimSpace(found.Reason + ": " + oneLine(found.Message))
		return finding{levelMend, what, "not " + which + ": " + says, mend}
	}
	return finding{Level: levelOK, What: what, Says: which}
}
