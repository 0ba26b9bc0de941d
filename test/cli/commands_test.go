package cli

import (
	"context"
	"encoding/json"
	"io"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	plugin "github.com/latchkey-dev/latchkey/internal/cli"
)

func withBudget(daily v1alpha1.Money) func(*v1alpha1.APIKey) {
	return func(k *v1alpha1.APIKey) { k.Spec.Budgets = &v1alpha1.Budgets{Daily: &daily} }
}

// column is the field of a table's line, by its header.
func column(t *testing.T, table, name, header string) string {
	t.Helper()
	lines := strings.Split(strings.TrimRight(table, "\n"), "\n")
	at := strings.Index(lines[0], header)
	if at < 0 {
		t.Fatalf("no column %s in:\n%s", header, table)
	}
	for _, l := range lines[1:] {
		if strings.Contains(l, name) && len(l) > at {
			value, _, _ := strings.Cut(l[at:], "   ")
			return strings.TrimSpace(value)
		}
	}
	t.Fatalf("no line %s in:\n%s", name, table)
	return ""
}

func TestGetKeys(t *testing.T) {
	ns, other := newNamespace(t), newNamespace(t)
	used(t, newKey(t, ns, "busy", withBudget("5"), func(k *v1alpha1.APIKey) { k.Labels = map[string]string{"team": "a"} }), "3.1", "9")
	used(t, newKey(t, ns, "spent", withBudget("2")), "2", "2")
	newKey(t, ns, "idle", func(k *v1alpha1.APIKey) { k.Spec.State = v1alpha1.StateDisabled })
	newKey(t, other, "elsewhere")

	got := latchkey(t, ns, "get", "keys")
	got.want(t, 0)
	for name, want := range map[string][3]string{"busy": {"Active", "3.1/5", "9"}, "spent": {"BudgetExhausted", "2/2", "2"}, "idle": {"Disabled", "0", "0"}} {
		for i, header := range []string{"STATE", "DAY", "MONTH"} {
			if value := column(t, got.stdout, name, header); value != want[i] {
				t.Errorf("%s of %s is %q, want %q", header, name, value, want[i])
			}
		}
	}
	if strings.Contains(got.stdout, "\x1b") {
		t.Error("colour in a pipe")
	}
	order := func(args ...string) string {
		o := latchkey(t, ns, append([]string{"get", "keys", "-o", "name"}, args...)...)
		o.want(t, 0)
		return strings.ReplaceAll(strings.ReplaceAll(o.stdout, "apikey.latchkey.dev/", ""), "\n", " ")
	}
	for _, test := range []struct {
		args []string
		want string
	}{
		{nil, "busy idle spent "}, {[]string{"--sort-by", "spent"}, "busy spent idle "}, {[]string{"--sort-by", ".spec.displayName"}, "busy idle spent "},
		{[]string{"--sort-by", "{.status.usage.day.spent}"}, "idle spent busy "}, {[]string{"-l", "team=a"}, "busy "}, {[]string{"spent", "idle"}, "idle spent "},
		{[]string{"--app", "nosuch"}, ""},
	} {
		if names := order(test.args...); names != test.want {
			t.Errorf("%v: %q, want %q", test.args, names, test.want)
		}
	}
	latchkey(t, ns, "get", "keys", "-A", "-o", "wide").want(t, 0, "NAMESPACE", other, "elsewhere", "ENFORCED")
	latchkey(t, ns, "get", "keys", "busy", "-o", "jsonpath={.spec.displayName}").want(t, 0, "Key busy")
	var list struct {
		Kind  string
		Items []struct{ Kind, APIVersion string }
	}
	if err := json.Unmarshal([]byte(latchkey(t, ns, "get", "keys", "-o", "json").stdout), &list); err != nil || list.Kind != "List" || len(list.Items) != 3 || list.Items[0].Kind != "APIKey" {
		t.Errorf("-o json: %+v, %v", list, err)
	}
	some := latchkey(t, ns, "get", "keys", "busy", "nosuch")
	some.want(t, 1, "busy")
	some.says(t, "Error from server (NotFound)", "nosuch")
	none := latchkey(t, newNamespace(t), "get", "keys")
	none.want(t, 0)
	none.silent(t)
	none.says(t, "No apikeys found in namespace")
	latchkey(t, ns, "get", "keys", "-o", "xml").want(t, 1)
	latchkey(t, ns, "get", "keys", "--sort-by", "colour").says(t, "no column", "last-used")
	latchkey(t, ns, "get", "apps").want(t, 0, "shop")
	latchkey(t, ns, "describe", "key", "busy").want(t, 0, "3.1 of 5 USD (62 %), 12 requests, 3,456 tokens", "Enforced")
	app := latchkey(t, ns, "describe", "app", "shop")
	app.want(t, 0, "busy", "spent", "idle")
	if strings.Contains(app.stdout, "elsewhere") {
		t.Errorf("the application shows another namespace's key:\n%s", app.stdout)
	}
	latchkey(t, ns, "usage").want(t, 0, "app/shop", "############........ 62%", "#################### 100%")
}

// TestGetKeysWatches reads what a watch prints until an edit has shown up.
func TestGetKeysWatches(t *testing.T) {
	ns := newNamespace(t)
	k := newKey(t, ns, "watched")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	reader, writer := io.Pipe()
	code := make(chan int, 1)
	go func() {
		code <- plugin.Run(ctx, []string{"--kubeconfig", server.kubeconfig, "-n", ns, "get", "keys", "-w"},
			genericiooptions.IOStreams{In: strings.NewReader(""), Out: writer, ErrOut: io.Discard})
		_ = writer.Close()
	}()
	seen, edited := "", false
	buffer := make([]byte, 4096)
	for !strings.Contains(seen, "Disabled") {
		n, err := reader.Read(buffer)
		if err != nil {
			t.Fatalf("the watch has ended: %v\n%s", err, seen)
		}
		seen += string(buffer[:n])
		if !edited && strings.Contains(seen, "watched") {
			k = get(t, k)
			k.Spec.State = v1alpha1.StateDisabled
			if err := server.client.Update(t.Context(), k); err != nil {
				t.Fatal(err)
			}
			edited = true
		}
	}
	if strings.Count(seen, "NAME") != 1 {
		t.Errorf("headers again:\n%s", seen)
	}
	cancel()
	if got := <-code; got != 130 {
		t.Errorf("exit code %d after the interrupt, want 130", got)
	}
}

func TestDisableEnableAndSet(t *testing.T) {
	ns := newNamespace(t)
	newKey(t, ns, "one", withBudget("5"))
	newKey(t, ns, "two")
	inPlaceOfManager(t, ns)
	names := strings.Fields(latchkey(t, ns, "get", "keys", "-o", "name").stdout)
	latchkey(t, ns, append([]string{"disable", "app/shop"}, names...)...).want(t, 0,
		"application.latchkey.dev/shop disabled", "apikey.latchkey.dev/one disabled", "apikey.latchkey.dev/two disabled")
	if s := get(t, keyNamed(ns, "two")).Spec.State; s != v1alpha1.StateDisabled {
		t.Errorf("state is %s", s)
	}
	latchkey(t, ns, "disable", "one").want(t, 0, "disabled already")
	latchkey(t, ns, "enable", "one", "--dry-run=server").want(t, 0, "enabled (server dry run)")
	if s := get(t, keyNamed(ns, "one")).Spec.State; s != v1alpha1.StateDisabled {
		t.Errorf("a dry run has made the state %s", s)
	}
	latchkey(t, ns, "enable", "one", "two").want(t, 0)
	partly := latchkey(t, ns, "disable", "nosuch", "two")
	partly.want(t, 1, "apikey.latchkey.dev/two disabled")
	partly.says(t, "nosuch")

	latchkey(t, ns, "set", "key", "one", "--rpm", "120", "--daily-budget", "none", "--monthly-budget", "50", "--model", "a,b", "--expires", "30d").want(t, 0, "apikey.latchkey.dev/one changed")
	k := get(t, keyNamed(ns, "one"))
	if *k.Spec.RateLimits.RequestsPerMinute != 120 || k.Spec.Budgets.Daily != nil || *k.Spec.Budgets.Monthly != "50" || len(k.Spec.Models.Names) != 2 || k.Spec.ExpirationTime == nil {
		t.Errorf("spec: %+v", k.Spec)
	}
	latchkey(t, ns, "set", "key", "one", "--rpm", "120").want(t, 0, "unchanged")
	latchkey(t, ns, "set", "key", "one", "--rpm", "none", "--monthly-budget", "none", "--expires", "none", "--model", "all").want(t, 0)
	if k = get(t, k); k.Spec.RateLimits != nil || k.Spec.Budgets != nil || k.Spec.ExpirationTime != nil || k.Spec.Models.Access != v1alpha1.ModelAccessAll {
		t.Errorf("spec: %+v", k.Spec)
	}
	latchkey(t, ns, "set", "app", "shop", "--capability", "all", "--max-keys", "3", "--display-name", "The shop", "-o", "jsonpath={.spec.maxKeys}").want(t, 0, "3")
	latchkey(t, ns, "set", "app", "shop", "--capability", "none", "--max-keys", "none").want(t, 0)
	app := get(t, &v1alpha1.Application{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "shop"}})
	if app.Spec.Capabilities != nil || app.Spec.MaxKeys != nil || app.Spec.DisplayName != "The shop" {
		t.Errorf("spec: %+v", app.Spec)
	}
	for want, args := range map[string][]string{
		"nothing to change":                {"set", "key", "one"},
		"--rpm: \"fast\" is not a limit":   {"set", "key", "one", "--rpm", "fast"},
		"--model: a key says which models": {"set", "key", "one", "--model", "none"},
		"goes with a budget":               {"set", "key", "one", "--enforcement", "Strict"},
		"Error from server (NotFound)":     {"set", "key", "nosuch", "--rpm", "1"},
		"is an Application":                {"set", "key", "app/shop", "--rpm", "1"},
	} {
		got := latchkey(t, ns, args...)
		got.want(t, 1)
		got.says(t, want)
	}
}

func TestHelp(t *testing.T) {
	root := latchkey(t, "default", "--help")
	root.want(t, 0, "Exit codes:", "130  Ctrl-C", "kubectl latchkey options")
	if strings.Contains(root.stdout, "--certificate-authority") {
		t.Error("the flags of all commands hide the commands")
	}
	latchkey(t, "default", "options").want(t, 0, "--certificate-authority", "--namespace")
	latchkey(t, "default", "create").want(t, 0, "Create an APIKey and show its key, once")
	latchkey(t, "default", "why", "--help").want(t, 0, "Exit codes: 0, a request would pass")
	for want, args := range map[string][]string{
		"See: kubectl latchkey get keys --help": {"get", "keys", "--nosuch"},
		"See: kubectl latchkey get --help":      {"get", "pods"},
		"the APIKey's NAME is missing":          {"reveal"},
		"is one argument too many":              {"reveal", "a", "b"},
	} {
		got := latchkey(t, "default", args...)
		got.want(t, 1)
		got.says(t, want)
	}
}

func TestDeleteKeyInAScript(t *testing.T) {
	ns := newNamespace(t)
	used(t, newKey(t, ns, "gone"), "1.5", "7.25")
	refused := latchkey(t, ns, "delete", "key", "gone")
	refused.want(t, 1)
	refused.silent(t)
	refused.says(t, "spent 7.25 USD in 120 requests", "last used", `--confirm 'Key gone'`)
	wrong := latchkey(t, ns, "delete", "key", "gone", "--confirm", "Key another")
	wrong.want(t, 1)
	wrong.says(t, "nothing has been deleted")
	latchkey(t, ns, "delete", "key", "gone", "--confirm", "gone", "--dry-run=server").want(t, 0, "(server dry run)")
	get(t, keyNamed(ns, "gone"))
	latchkey(t, ns, "delete", "key", "gone", "--confirm", "Key gone").want(t, 0, "apikey.latchkey.dev/gone deleted\n")
	if err := server.client.Get(t.Context(), client.ObjectKey{Namespace: ns, Name: "gone"}, &v1alpha1.APIKey{}); !apierrors.IsNotFound(err) {
		t.Errorf("the key is there: %v", err)
	}
}

func TestWhy(t *testing.T) {
	ns := newNamespace(t)
	used(t, newKey(t, ns, "spent", withBudget("2")), "2", "2")
	used(t, newKey(t, ns, "good", withBudget("2")), "1", "1")
	got := latchkey(t, ns, "why", "spent", "-o", "json")
	got.want(t, 1)
	var v struct {
		Passes bool
		Status int
		Reason string
		Resets time.Time
	}
	if err := json.Unmarshal([]byte(got.stdout), &v); err != nil || v.Passes || v.Status != 429 || !strings.Contains(v.Reason, "daily budget of the key: 2 of 2 USD used") || !v.Resets.After(time.Now()) {
		t.Errorf("%+v, %v", v, err)
	}
	latchkey(t, ns, "why", "good").want(t, 0, "A request would pass now", "1 of 2 USD used (50 %)")
	latchkey(t, ns, "why", "good", "--model", "nosuch").want(t, 1, "404", "no Model answers to that name")
	latchkey(t, ns, "why", "good", "--path", "/v1/embeddings").want(t, 1, "403", "the key is not allowed Embeddings")
	for _, args := range [][]string{{"why"}, {"why", "nosuch"}, {"why", "good", "--nosuch"}, {"why", "good", "-o", "xml"}} {
		latchkey(t, ns, args...).want(t, 2)
	}
}
