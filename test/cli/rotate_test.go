package cli

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
)

// keyFor creates a key, and gives what its holder has.
func keyFor(t *testing.T, namespace, name string) (old string) {
	t.Helper()
	got := latchkey(t, namespace, "create", "key", name, "--app", "shop", "--create-app")
	got.want(t, 0)
	return strings.TrimSpace(got.stdout)
}

func TestRotatePrintsTheNewKeyAndNothingElse(t *testing.T) {
	ns := newNamespace(t)
	m := inPlaceOfManager(t, ns)
	old := keyFor(t, ns, "one")
	prefix := get(t, keyNamed(ns, "one")).Status.KeyPrefix

	got := latchkey(t, ns, "rotate", "one", "--overlap", "2d")
	got.want(t, 0)
	if want := m.of("one") + "\n"; got.stdout != want || strings.TrimSpace(got.stdout) == old {
		t.Errorf("stdout is %q, want the new key and nothing else", got.stdout)
	}
	k := get(t, keyNamed(ns, "one"))
	got.says(t, "apikey.latchkey.dev/one rotated\n", "The new key is "+k.Status.KeyPrefix+"…; the earlier one, "+prefix+"…, is honoured until ", "(in 4")
	if strings.Contains(got.stderr, "waiting") || strings.ContainsAny(got.stderr, "\r\x1b") || strings.Contains(got.stderr, m.of("one")) {
		t.Errorf("stderr: %q", got.stderr)
	}
	if k.Spec.Rotation.Generation != 1 || k.Spec.Rotation.Overlap.Duration != 48*time.Hour {
		t.Errorf("spec.rotation: %+v", k.Spec.Rotation)
	}
	again := latchkey(t, ns, "reveal", "one")
	again.want(t, 1)
	again.says(t, "has been taken", "kubectl latchkey rotate one -n "+ns)

	latchkey(t, ns, "get", "keys", "-o", "wide").want(t, 0, "EARLIER KEY", "ENDS", k.Status.KeyPrefix, prefix, "in 47h")
	latchkey(t, ns, "describe", "key", "one").want(t, 0, "Rotation:\n", "Generation:", "Overlap:            48h\n", "Earlier key:", prefix+" is honoured until ")
	why := latchkey(t, ns, "why", "one")
	why.want(t, 0, "earlier key", prefix+" is honoured until ", "A request would pass now")
	if strings.Contains(why.stdout, "refused") || strings.Contains(why.stdout, "  note") {
		t.Errorf("why complains of a rotation:\n%s", why.stdout)
	}
	doctor := latchkey(t, ns, "doctor")
	if strings.Contains(doctor.stdout, ns+"/one") {
		t.Errorf("doctor complains of a rotation:\n%s", doctor.stdout)
	}
}

func TestRotateAgainWithinTheOverlap(t *testing.T) {
	ns := newNamespace(t)
	m := inPlaceOfManager(t, ns)
	keyFor(t, ns, "one")
	first := get(t, keyNamed(ns, "one")).Status.KeyPrefix
	latchkey(t, ns, "rotate", "one").want(t, 0)
	second := get(t, keyNamed(ns, "one")).Status.KeyPrefix

	refused := latchkey(t, ns, "rotate", "one")
	refused.want(t, 1)
	refused.silent(t)
	refused.says(t, first+"…, is honoured until ", "Rotating again ends the earlier one now", second+"…", "--force", "--overlap 0s", "kubectl latchkey set key one --overlap 0s -n "+ns)
	latchkey(t, ns, "rotate", "one", "--overlap", "1h").want(t, 1)
	latchkey(t, ns, "rotate", "one", "--dry-run=server").want(t, 1)
	if g := get(t, keyNamed(ns, "one")).Spec.Rotation.Generation; g != 1 {
		t.Fatalf("the generation is %d although all was refused", g)
	}

	forced := latchkey(t, ns, "rotate", "one", "--force")
	forced.want(t, 0, m.of("one")+"\n")
	forced.says(t, "the earlier one, "+second+"…, is honoured until ")
	third := get(t, keyNamed(ns, "one")).Status.KeyPrefix

	ended := latchkey(t, ns, "rotate", "one", "--overlap", "0s")
	ended.want(t, 0, m.of("one")+"\n")
	ended.says(t, "the earlier one, "+third+"…, has been refused since ")
	latchkey(t, ns, "describe", "key", "one").want(t, 0, third+" has been refused since ", "  Overlap:            0s\n")
	if k := get(t, keyNamed(ns, "one")); k.Spec.Rotation.Generation != 3 || k.Spec.Rotation.Overlap.Duration != 0 {
		t.Errorf("spec.rotation: %+v", k.Spec.Rotation)
	}
	// Nothing is honoured that could end, and the overlap stays as it was set.
	latchkey(t, ns, "rotate", "one").want(t, 0)
	if k := get(t, keyNamed(ns, "one")); k.Spec.Rotation.Overlap.Duration != 0 {
		t.Errorf("the overlap was changed without a flag: %+v", k.Spec.Rotation)
	}
}

func TestSetOverlapEndsTheEarlierKey(t *testing.T) {
	ns := newNamespace(t)
	inPlaceOfManager(t, ns)
	keyFor(t, ns, "one")
	never := latchkey(t, ns, "set", "key", "one", "--overlap", "1h")
	never.want(t, 1)
	never.says(t, "--overlap: the key was never rotated", "kubectl latchkey rotate one -n "+ns)
	if r := get(t, keyNamed(ns, "one")).Spec.Rotation; r != nil {
		t.Fatalf("a refused edit has left %+v", r)
	}
	latchkey(t, ns, "rotate", "one").want(t, 0)
	longer := latchkey(t, ns, "set", "key", "one", "--overlap", "3d")
	longer.want(t, 0, "apikey.latchkey.dev/one changed\n")
	longer.says(t, "The key from before the rotation, lk_", "is honoured until", "(in 2d")
	now := latchkey(t, ns, "set", "key", "one", "--overlap", "0s")
	now.want(t, 0, "changed")
	now.says(t, "has been refused since")
	latchkey(t, ns, "set", "key", "one", "--overlap", "none").want(t, 0, "changed")
	if r := get(t, keyNamed(ns, "one")).Spec.Rotation; r == nil || r.Generation != 1 || r.Overlap != nil {
		t.Errorf("spec.rotation: %+v", r)
	}
}

func TestRotateInOtherForms(t *testing.T) {
	ns := newNamespace(t)
	m := inPlaceOfManager(t, ns)
	for _, name := range []string{"one", "two", "key"} {
		keyFor(t, ns, name)
	}
	for _, strategy := range []string{"client", "server"} {
		got := latchkey(t, ns, "rotate", "one", "--overlap", "0s", "--dry-run="+strategy, "-o", "yaml")
		got.want(t, 0, "kind: APIKey\n", "  rotation:\n    generation: 1\n    overlap: 0s\n")
		if strings.Contains(got.stdout, "managedFields") {
			t.Errorf("managedFields are printed:\n%s", got.stdout)
		}
		latchkey(t, ns, "rotate", "one", "--dry-run="+strategy).want(t, 0, "apikey.latchkey.dev/one rotated (")
	}
	if k := get(t, keyNamed(ns, "one")); k.Spec.Rotation != nil {
		t.Fatalf("a dry run has rotated: %+v", k.Spec.Rotation)
	}

	var k v1alpha1.APIKey
	asJSON := latchkey(t, ns, "rotate", "apikey.latchkey.dev/one", "-o", "json")
	asJSON.want(t, 0)
	if err := json.Unmarshal([]byte(asJSON.stdout), &k); err != nil || k.Kind != "APIKey" || k.Status.Rotation.Generation != 1 || k.Status.KeyPrefix != get(t, keyNamed(ns, "one")).Status.KeyPrefix {
		t.Errorf("%v: %s", err, asJSON.stdout)
	}
	if strings.Contains(asJSON.stdout+asJSON.stderr, m.of("one")) {
		t.Error("-o shows the key")
	}
	latchkey(t, ns, "reveal", "one").want(t, 0, m.of("one")+"\n")

	latchkey(t, ns, "rotate", "keys", "one", "two", "--overlap", "0s", "--reveal=false").want(t, 0, "apikey.latchkey.dev/one rotated\n", "apikey.latchkey.dev/two rotated\n")
	env := latchkey(t, ns, "rotate", "key", "two", "--force", "--env=openai", "--gateway", "http://gw.test")
	env.want(t, 0, "export OPENAI_BASE_URL=http://gw.test/v1\nexport OPENAI_API_KEY="+m.of("two")+"\n")
	latchkey(t, ns, "rotate", "two", "--force", "--cc-switch", "--gateway", "http://gw.test").want(t, 0, "ccswitch://v1/import?", "apiKey="+m.of("two"), "name=two")
	latchkey(t, ns, "rotate", "key").want(t, 0, m.of("key")+"\n") // a key of that name

	latchkey(t, ns, "rotate", "key", "--force", "--wait=false").want(t, 0, m.of("key")+"\n") // waits for the key itself all the same
	asked := latchkey(t, ns, "rotate", "one", "--reveal=false", "--wait=false", "--overlap", "0s")
	asked.want(t, 0, "apikey.latchkey.dev/one rot")

	generation := get(t, keyNamed(ns, "one")).Spec.Rotation.Generation
	for says, args := range map[string][]string{
		"one key is shown at a time":            {"rotate", "one", "two"},
		"the APIKey's NAME is missing":          {"rotate"},
		"--env and --cc-switch print the key":   {"rotate", "one", "--env", "--reveal=false"},
		"--gateway URL":                         {"rotate", "one", "--env"},
		"is an Application":                     {"rotate", "app/shop"},
		"Error from server (NotFound)":          {"rotate", "nosuch"},
		`--overlap: "a day" is no overlap`:      {"rotate", "one", "--overlap", "a day"},
		`--overlap: "721h" is no overlap`:       {"rotate", "one", "--overlap", "721h"},
		`--overlap: "31d" is no overlap`:        {"rotate", "one", "--overlap", "31d"},
		`--overlap: "-1d" is no overlap`:        {"rotate", "one", "--overlap=-1d"},
		"--dry-run=some: write none, client or": {"rotate", "one", "--dry-run=some"},
	} {
		got := latchkey(t, ns, args...)
		got.want(t, 1)
		got.silent(t)
		got.says(t, says)
	}
	if g := get(t, keyNamed(ns, "one")).Spec.Rotation.Generation; g != generation {
		t.Errorf("what was refused has rotated: generation %d, want %d", g, generation)
	}
}

// TestRotateReplacesWhatIsLost rotates keys that nobody has any more.
func TestRotateReplacesWhatIsLost(t *testing.T) {
	ns := newNamespace(t)
	m := inPlaceOfManager(t, ns)
	keyFor(t, ns, "lost")
	gone := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "lost-api-key"}}
	if err := server.client.Delete(t.Context(), gone); err != nil {
		t.Fatal(err)
	}
	told := latchkey(t, ns, "reveal", "lost")
	told.want(t, 1)
	told.says(t, "is gone", "kubectl latchkey rotate lost -n "+ns)
	latchkey(t, ns, "rotate", "lost").want(t, 0, m.of("lost")+"\n")

	latchkey(t, ns, "create", "key", "late", "--app", "shop", "--reveal=false").want(t, 0)
	secret := get(t, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "late-api-key"}})
	secret.Data, secret.Annotations = nil, map[string]string{v1alpha1.AnnotationRemoval: v1alpha1.ReasonRevealExpired}
	if err := server.client.Update(t.Context(), secret); err != nil {
		t.Fatal(err)
	}
	told = latchkey(t, ns, "reveal", "late")
	told.says(t, "was not taken before its deadline", "kubectl latchkey rotate late -n "+ns)
	latchkey(t, ns, "rotate", "late").want(t, 0, m.of("late")+"\n")
}

// TestRotateTellsWhatIsInTheWay rotates where no manager runs.
func TestRotateTellsWhatIsInTheWay(t *testing.T) {
	ns := newNamespace(t)
	k := newKey(t, ns, "one")
	slow := latchkey(t, ns, "rotate", "one", "--timeout", "1s")
	slow.want(t, 1)
	slow.silent(t)
	slow.says(t, "is not rotated after 1s", "is the Latchkey manager running?", "The rotation has been asked for", k.Status.KeyPrefix+"…, is honoured", "kubectl latchkey reveal one -n "+ns)

	under := latchkey(t, ns, "rotate", "one")
	under.want(t, 1)
	under.says(t, "is under way, to generation 1", "--force", "kubectl latchkey reveal one -n "+ns)
	latchkey(t, ns, "why", "one").want(t, 0, "a rotation has been asked for and not been carried out")
	latchkey(t, ns, "describe", "key", "one").want(t, 0, "1, of which 0 is carried out")

	unminted := &v1alpha1.APIKey{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "unminted"}, Spec: k.Spec}
	if err := server.client.Create(t.Context(), unminted); err != nil {
		t.Fatal(err)
	}
	latchkey(t, ns, "rotate", "unminted").says(t, "has no key yet that could be rotated", "is the Latchkey manager running?")

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	interrupted := latchkeyWith(ctx, "", ns, "rotate", "one", "--force")
	if interrupted.code != 130 || interrupted.stdout != "" {
		t.Errorf("interrupted: exit code %d, stdout %q, stderr %q", interrupted.code, interrupted.stdout, interrupted.stderr)
	}
	if g := get(t, k).Spec.Rotation.Generation; g != 1 {
		t.Errorf("generation %d, want 1: what was interrupted beforehand has rotated", g)
	}
}

// TestRotateThatIsNotEnforced leaves a key that was rotated and that the enforcers do not have.
func TestRotateThatIsNotEnforced(t *testing.T) {
	ns := newNamespace(t)
	newKey(t, ns, "one")
	m := &minted{keys: map[string]string{}}
	patched := false
	kubeconfig := through(t, func(r *http.Request) {
		if r.Method == http.MethodPatch {
			patched = true
			return
		}
		if k := get(t, keyNamed(ns, "one")); patched && k.Status.Rotation == nil {
			if err := m.rotate(t.Context(), k); err != nil {
				t.Error(err)
			}
			if err := server.client.Status().Update(t.Context(), k); err != nil {
				t.Error(err)
			}
		}
	})
	got := latchkey(t, ns, "--kubeconfig", kubeconfig, "rotate", "one", "--timeout", "1s")
	got.want(t, 1)
	got.silent(t)
	got.says(t, "is not rotated after 1s: the new key is minted; ", "The key has been rotated, and the new one, "+get(t, keyNamed(ns, "one")).Status.KeyPrefix+"…, not been shown. Take it with: kubectl latchkey reveal one -n "+ns)
	latchkey(t, ns, "reveal", "one").want(t, 0, m.of("one")+"\n")
}

// TestRotationsInARaceAreOne rotates at the same time.
func TestRotationsInARaceAreOne(t *testing.T) {
	ns := newNamespace(t)
	m := inPlaceOfManager(t, ns)
	keyFor(t, ns, "race")
	outcomes := make([]outcome, 12)
	var all sync.WaitGroup
	for i := range outcomes {
		all.Go(func() { outcomes[i] = latchkeyWith(t.Context(), "", ns, "rotate", "race") })
	}
	all.Wait()
	winners := 0
	for _, o := range outcomes {
		switch {
		case o.code == 0 && o.stdout == m.of("race")+"\n":
			winners++
		case o.code == 1 && o.stdout == "" && (strings.Contains(o.stderr, "changed by somebody else meanwhile") || strings.Contains(o.stderr, "is under way") || strings.Contains(o.stderr, "Rotating again ends")):
		default:
			t.Errorf("neither won nor lost: %+v", o)
		}
	}
	if k := get(t, keyNamed(ns, "race")); winners != 1 || k.Spec.Rotation.Generation != 1 {
		t.Errorf("%d of %d rotated, generation %d; want one", winners, len(outcomes), k.Spec.Rotation.Generation)
	}
}

// TestRotateWhenSomebodyElseIsQuicker has the key changed between the look at it and the write.
func TestRotateWhenSomebodyElseIsQuicker(t *testing.T) {
	for name, test := range map[string]struct {
		meanwhile func(t *testing.T, k *v1alpha1.APIKey)
		code      int
		says      string
		want      int64
	}{
		"another's rotation stops it": {func(t *testing.T, k *v1alpha1.APIKey) {
			k.Spec.Rotation = &v1alpha1.RotationSpec{Generation: 1}
			update(t, k)
		}, 1, "has been changed by somebody else meanwhile, and this command has rotated nothing", 1},
		"another's edit stops it": {func(t *testing.T, k *v1alpha1.APIKey) {
			k.Spec.State = v1alpha1.StateDisabled
			update(t, k)
		}, 1, "has been changed by somebody else meanwhile", 0},
		"what was spent meanwhile does not": {func(t *testing.T, k *v1alpha1.APIKey) { used(t, k, "1", "1") }, 0, "rotated", 1},
	} {
		t.Run(name, func(t *testing.T) {
			ns := newNamespace(t)
			inPlaceOfManager(t, ns)
			keyFor(t, ns, "one")
			first := true
			kubeconfig := through(t, func(r *http.Request) {
				if r.Method == http.MethodPatch && first {
					first = false
					test.meanwhile(t, get(t, keyNamed(ns, "one")))
				}
			})
			got := latchkey(t, ns, "--kubeconfig", kubeconfig, "rotate", "one")
			got.want(t, test.code)
			got.says(t, test.says)
			k := get(t, keyNamed(ns, "one"))
			if k.RotationGeneration() != test.want {
				t.Errorf("generation %d, want %d", k.RotationGeneration(), test.want)
			}
			if first {
				t.Error("no patch went through here")
			}
		})
	}
}

func update(t *testing.T, obj client.Object) {
	t.Helper()
	if err := server.client.Update(t.Context(), obj); err != nil {
		t.Error(err)
	}
}

// through is a kubeconfig of an API server before which look sees each request.
func through(t *testing.T, look func(r *http.Request)) string {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", server.kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	base, err := url.Parse(config.Host)
	if err != nil {
		t.Fatal(err)
	}
	transport, err := rest.TransportFor(config)
	if err != nil {
		t.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(base) }, Transport: transport}
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		look(r)
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(front.Close)
	path := filepath.Join(t.TempDir(), "kubeconfig")
	content, err := clientcmd.Write(clientcmdapi.Config{
		Clusters:       map[string]*clientcmdapi.Cluster{"front": {Server: front.URL}},
		Contexts:       map[string]*clientcmdapi.Context{"front": {Cluster: "front"}},
		CurrentContext: "front",
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
