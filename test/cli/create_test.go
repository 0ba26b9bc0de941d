package cli

import (
	"context"
	"strings"
	"sync"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/google/go-cmp/cmp"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
)

func TestCreateKeyPrintsTheKeyAndNothingElse(t *testing.T) {
	ns := newNamespace(t)
	m := inPlaceOfManager(t, ns)
	got := latchkey(t, ns, "create", "key", "shop-backend", "--app", "shop", "--create-app", "--display-name", "Shop backend",
		"--capability", "textgeneration,Embeddings", "--model", "gpt-5-mini", "--model", "fast", "--rpm", "2k", "--tpm", "1m", "--concurrent", "4",
		"--daily-budget", "12.50", "--monthly-budget", "100", "--enforcement", "strict", "--expires", "2099-12-31T00:00:00Z", "--state", "enabled")
	got.want(t, 0)
	if want := m.of("shop-backend") + "\n"; got.stdout != want || len(want) < 20 {
		t.Errorf("stdout is %q, want the key and nothing else", got.stdout)
	}
	got.says(t, "application.latchkey.dev/shop created", "apikey.latchkey.dev/shop-backend created")
	if strings.Contains(got.stderr, "waiting") || strings.ContainsAny(got.stderr, "\r\x1b") {
		t.Errorf("progress is shown in a pipe: %q", got.stderr)
	}
	k := get(t, keyNamed(ns, "shop-backend"))
	if k.Spec.DisplayName != "Shop backend" || *k.Spec.RateLimits.RequestsPerMinute != 2000 || *k.Spec.RateLimits.TokensPerMinute != 1_000_000 ||
		*k.Spec.RateLimits.ConcurrentRequests != 4 || *k.Spec.Budgets.Daily != "12.50" || *k.Spec.Budgets.Monthly != "100" ||
		k.Spec.Budgets.Enforcement != v1alpha1.BudgetEnforcementStrict || k.Spec.ExpirationTime.UTC().Year() != 2099 {
		t.Errorf("spec: %+v", k.Spec)
	}
	if diff := cmp.Diff([]v1alpha1.Capability{"TextGeneration", "Embeddings"}, k.Spec.Capabilities); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(v1alpha1.ModelScope{Access: v1alpha1.ModelAccessList, Names: []v1alpha1.ModelName{"gpt-5-mini", "fast"}}, k.Spec.Models); diff != "" {
		t.Error(diff)
	}

	again := latchkey(t, ns, "reveal", "shop-backend")
	again.want(t, 1)
	again.silent(t)
	again.says(t, "has been taken", "kubectl latchkey rotate shop-backend -n "+ns)

	twice := latchkey(t, ns, "create", "key", "shop-backend", "--app", "shop")
	twice.want(t, 1)
	twice.silent(t)
	twice.says(t, "Error from server (AlreadyExists)", "kubectl latchkey reveal shop-backend -n "+ns)
}

func TestCreateKeyInOtherForms(t *testing.T) {
	ns := newNamespace(t)
	m := inPlaceOfManager(t, ns)
	latchkey(t, ns, "create", "app", "shop", "--max-keys", "9", "--description", "the shop").want(t, 0, "application.latchkey.dev/shop created")

	later := latchkey(t, ns, "create", "key", "later", "--app", "shop", "--reveal=false")
	later.want(t, 0, "apikey.latchkey.dev/later created\n")
	if latchkey(t, ns, "reveal", "apikey.latchkey.dev/later").stdout != m.of("later")+"\n" {
		t.Error("the key that was left for later cannot be taken")
	}

	env := latchkey(t, ns, "create", "key", "env", "--app", "shop", "--env", "--gateway", "http://gw.test/v1/")
	env.want(t, 0, "export OPENAI_BASE_URL=http://gw.test/v1\nexport OPENAI_API_KEY="+m.of("env")+"\n", "export ANTHROPIC_AUTH_TOKEN="+m.of("env"))

	link := latchkey(t, ns, "create", "key", "link", "--app", "shop", "--cc-switch=codex", "--gateway", "https://gw.test")
	link.want(t, 0, "ccswitch://v1/import?", "app=codex", "apiKey="+m.of("link"))
	if strings.Count(link.stdout, "\n") != 1 {
		t.Errorf("the link is not alone: %q", link.stdout)
	}

	missing := latchkey(t, ns, "create", "key", "homeless", "--app", "nosuch")
	missing.want(t, 1)
	missing.says(t, "--create-app")
	nowhere := latchkey(t, ns, "create", "key", "nowhere", "--app", "shop", "--env")
	nowhere.want(t, 1)
	nowhere.says(t, "--gateway URL")
	for _, name := range []string{"homeless", "nowhere"} {
		if err := server.client.Get(t.Context(), client.ObjectKey{Namespace: ns, Name: name}, &v1alpha1.APIKey{}); !apierrors.IsNotFound(err) {
			t.Errorf("%s has been created although the command failed: %v", name, err)
		}
	}
}

func TestDryRunsChangeNothing(t *testing.T) {
	ns := newNamespace(t)
	for _, strategy := range []string{"client", "server"} {
		got := latchkey(t, ns, "create", "key", "shop-backend", "--app", "shop", "--create-app", "--daily-budget", "5", "--dry-run="+strategy, "-o", "yaml")
		got.want(t, 0, "kind: Application\n", "---\n", "kind: APIKey\n", `daily: "5"`)
		if strings.Contains(got.stdout, "managedFields") {
			t.Errorf("managedFields are printed:\n%s", got.stdout)
		}
		latchkey(t, ns, "create", "key", "shop-backend", "--app", "shop", "--create-app", "--dry-run="+strategy).want(t, 0, "dry run)")
	}
	bad := latchkey(t, ns, "create", "app", "shop", "--display-name", "Shop\tshop", "--dry-run=server")
	bad.want(t, 1)
	bad.says(t, "Error from server (Invalid)", "control characters")
	var keys v1alpha1.APIKeyList
	var apps v1alpha1.ApplicationList
	if err := server.client.List(t.Context(), &keys, client.InNamespace(ns)); err != nil {
		t.Fatal(err)
	}
	if err := server.client.List(t.Context(), &apps, client.InNamespace(ns)); err != nil {
		t.Fatal(err)
	}
	if len(keys.Items)+len(apps.Items) != 0 {
		t.Errorf("a dry run has created %d keys and %d applications", len(keys.Items), len(apps.Items))
	}
}

func TestCreateKeyTellsWhatIsInTheWay(t *testing.T) {
	ns := newNamespace(t)
	got := latchkey(t, ns, "create", "key", "waits", "--app", "shop", "--create-app", "--timeout", "1s")
	got.want(t, 1)
	got.silent(t)
	got.says(t, "is the Latchkey manager running?", "kubectl latchkey reveal waits -n "+ns)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	interrupted := latchkeyWith(ctx, "", ns, "create", "key", "never", "--app", "shop")
	if interrupted.code != 130 || interrupted.stdout != "" {
		t.Errorf("interrupted: exit code %d, stdout %q, stderr %q", interrupted.code, interrupted.stdout, interrupted.stderr)
	}
}

func TestOneOfFiftyGetsTheKey(t *testing.T) {
	ns := newNamespace(t)
	m := inPlaceOfManager(t, ns)
	latchkey(t, ns, "create", "key", "race", "--app", "shop", "--create-app", "--reveal=false").want(t, 0)
	outcomes := make([]outcome, 50)
	var all sync.WaitGroup
	for i := range outcomes {
		all.Go(func() { outcomes[i] = latchkeyWith(t.Context(), "", ns, "reveal", "race") })
	}
	all.Wait()
	winners := 0
	for _, o := range outcomes {
		switch {
		case o.code == 0 && o.stdout == m.of("race")+"\n":
			winners++
		case o.code == 1 && o.stdout == "" && strings.Contains(o.stderr, "has been taken"):
		default:
			t.Errorf("neither won nor lost: %+v", o)
		}
	}
	if winners != 1 {
		t.Errorf("%d of 50 got the key, want one", winners)
	}
}
