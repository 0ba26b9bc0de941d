package cli

import (
	"strings"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/latchkey-dev/latchkey/internal/certs"
)

func TestCertificateFinding(t *testing.T) {
	issued := theMoment()
	authority, err := certs.NewAuthority(issued)
	if err != nil {
		t.Fatal(err)
	}
	other, err := certs.NewAuthority(issued)
	if err != nil {
		t.Fatal(err)
	}
	identity, _, _ := certs.Identities()
	b, err := certs.Issue(authority, identity, issued)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := parseCertificate(b.Cert)
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		now      time.Time
		ca, cert []byte
		level    string
		says     string
	}{
		"in force":                       {issued, b.CA, b.Cert, levelOK, "in force"},
		"expired":                        {leaf.NotAfter.Add(time.Second), b.CA, b.Cert, levelMend, "it expired at"},
		"not renewed in time":            {leaf.NotAfter.Add(-time.Hour), b.CA, b.Cert, levelMend, "expires in 60m and has not been renewed"},
		"before its time":                {leaf.NotBefore.Add(-time.Hour), b.CA, b.Cert, levelMend, "not valid before"},
		"of another authority":           {issued, other.Cert, b.Cert, levelMend, "not of the authority"},
		"without an authority":           {issued, nil, b.Cert, levelMend, "ca.crt holds no certificate"},
		"not a certificate":              {issued, b.CA, []byte("x"), levelMend, "cannot be read"},
		"a PEM that is no certificate":   {issued, b.CA, b.Key, levelMend, "cannot be read"},
		"a Secret that has been emptied": {issued, nil, nil, levelMend, "cannot be read"},
	} {
		t.Run(name, func(t *testing.T) {
			secret := &corev1.Secret{
				ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "s"}, Data: map[string][]byte{certs.CAFile: test.ca, certs.CertFile: test.cert},
			}
			f := certificateFinding("c", secret, test.now)
			if f.Level != test.level || !strings.Contains(f.Says, test.says) {
				t.Errorf("%+v, want %s with %q", f, test.level, test.says)
			}
			if f.Level == levelMend && !strings.Contains(f.Mend, "kubectl delete secret s -n ns") {
				t.Errorf("it does not say how to mend it: %+v", f)
			}
		})
	}
}

func lease(name, holder string, renewed time.Time, replica bool, report string) coordinationv1.Lease {
	l := coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{annotationState: report}},
		Spec:       coordinationv1.LeaseSpec{HolderIdentity: &holder, LeaseDurationSeconds: new(int32(15)), RenewTime: new(metav1.NewMicroTime(renewed))},
	}
	if replica {
		l.Labels = map[string]string{labelReplica: "true"}
	}
	return l
}

func TestManagerFindings(t *testing.T) {
	now := theMoment()
	for name, test := range map[string]struct {
		leases []coordinationv1.Lease
		want   []string // level and beginning, by finding
	}{
		"nobody":                    {nil, []string{"mend no replica"}},
		"stale leases":              {[]coordinationv1.Lease{lease("latchkey-manager", "a", now.Add(-16*time.Second), false, ""), lease("latchkey-replica-a", "a", now.Add(-15*time.Second), true, `{"enforcers":3}`)}, []string{"mend no replica"}},
		"a lease that was given up": {[]coordinationv1.Lease{lease("latchkey-manager", "", now, false, "")}, []string{"mend no replica"}},
		"two replicas and their enforcers": {
			[]coordinationv1.Lease{
				lease("latchkey-manager", "a", now, false, ""), lease("latchkey-replica-a", "a", now, true, `{"enforcers":1}`), lease("latchkey-replica-b", "b", now, true, `{"enforcers":2,"ledgers":3}`),
			},
			[]string{"ok 2 replicas running, a leads", "ok 3 connected", "ok what is spent is reported by 3 enforcers"},
		},
		"nobody reports what is spent": {[]coordinationv1.Lease{lease("latchkey-replica-a", "a", now, true, `{"enforcers":1}`)},
			[]string{"ok 1 replica running", "ok 1 connected", "mend no enforcer reports"}},
		"a ledger that cannot write": {[]coordinationv1.Lease{lease("latchkey-replica-a", "a", now, true, `{"enforcers":1,"ledgers":1,"ledgerTrouble":"no space left\u001b on device"}`)},
			[]string{"ok 1 replica running", "ok 1 connected", "mend an enforcer cannot write down what is spent: no space left"}},
		"a replica without enforcers": {[]coordinationv1.Lease{lease("latchkey-replica-a", "a", now, true, `{}`)}, []string{"ok 1 replica running", "mend none is connected"}},
		"others' leases do not count": {[]coordinationv1.Lease{lease("something", "a", now, false, "")}, []string{"mend no replica"}},
	} {
		t.Run(name, func(t *testing.T) {
			got := managerFindings(test.leases, "ns", now)
			if len(got) != len(test.want) {
				t.Fatalf("%+v", got)
			}
			for i, f := range got {
				if !strings.HasPrefix(f.Level+" "+f.Says, test.want[i]) {
					t.Errorf("%+v, want %q", f, test.want[i])
				}
			}
		})
	}
}

func TestFindingsAreGathered(t *testing.T) {
	var each []finding
	for range 13 {
		each = append(each, finding{Level: levelMend, What: "key", Says: "bad", Mend: "do"})
	}
	each = append(each, finding{Level: levelOK})
	got := gather("keys", each)
	if len(got) != mostListed+2 || got[mostListed].Says != "and 3 more" || got[mostListed+1].Says != "1 of 14 in order" {
		t.Errorf("%d findings: %+v", len(got), got[mostListed:])
	}
	if f := readiness("x", nil, 1, "look"); f.Level != levelMend || !strings.Contains(f.Mend, "look") {
		t.Errorf("an object without a status: %+v", f)
	}
	old := []metav1.Condition{{Type: "Ready", Status: metav1.ConditionTrue, ObservedGeneration: 1}}
	if f := readiness("x", old, 2, "look"); f.Level != levelMend {
		t.Errorf("a status of before the edit: %+v", f)
	}
}
