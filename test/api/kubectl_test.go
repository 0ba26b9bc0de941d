package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"
)

// kubectl runs the real kubectl as cluster administrator.
func kubectl(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	path, err := server.Kubectl()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), path, append([]string{"--kubeconfig", server.kubeconfig, "--cache-dir", filepath.Join(server.Dir(), "kubectl")}, args...)...)
	var out, errors bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errors
	err = cmd.Run()
	return out.String(), errors.String(), err
}

// mustKubectl is kubectl that has to succeed. It returns stdout.
func mustKubectl(t *testing.T, args ...string) string {
	t.Helper()
	stdout, stderr, err := kubectl(t, args...)
	if err != nil {
		t.Fatalf("kubectl %s: %v\n%s%s", strings.Join(args, " "), err, stdout, stderr)
	}
	return stdout
}

func TestKubectlApply(t *testing.T) {
	good := mustRead(t, "testdata/good/apikey-every-field.yaml")
	cases := map[string]struct {
		from, to   string
		want       []string
		serverSide []string // what is said instead by server-side apply, which has its own words for what does not fit the schema
	}{
		"a field that does not exist is named":                 {from: "displayName:", to: "displayname:", want: []string{`unknown field "spec.displayname"`}, serverSide: []string{".spec.displayname: field not declared in schema"}},
		"another application is refused":                       {from: "name: shop", to: "name: market", want: []string{"spec.applicationRef", "immutable", "create a new APIKey"}},
		"another secret is refused":                            {from: "shop.backend-key", to: "other-key", want: []string{"spec.secret.name", "immutable", "create a new APIKey"}},
		"money that is a number is refused":                    {from: `"12.50"`, to: "12.50", want: []string{"spec.budgets.daily", "must be of type string"}, serverSide: []string{".spec.budgets.daily: expected string"}},
		"money that is not decimal is refused with an example": {from: `"12.50"`, to: `"12,50"`, want: []string{"spec.budgets.daily", `such as "12.50"`}},
		"an unknown capability is refused with the known ones": {from: "WebSearch]", to: "Telepathy]", want: []string{"spec.capabilities[5]", `"Telepathy"`, `"WebSearch"`}},
	}
	for _, mode := range []string{"--server-side=false", "--server-side=true"} {
		t.Run(mode, func(t *testing.T) {
			namespace, path := newNamespace(t), filepath.Join(t.TempDir(), "key.yaml")
			// kubectlApply applies the text and returns what kubectl says of its refusal; "" when it has none.
			kubectlApply := func(t *testing.T, text string) string {
				t.Helper()
				if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
				_, stderr, err := kubectl(t, "apply", mode, "-n", namespace, "-f", path)
				if err == nil {
					return ""
				}
				return stderr
			}
			for _, occasion := range []string{"first", "second"} {
				if refusal := kubectlApply(t, good); refusal != "" {
					t.Fatalf("a good key, applied for the %s time: %s", occasion, refusal)
				}
			}
			for name, tc := range cases {
				t.Run(name, func(t *testing.T) {
					bad := strings.Replace(good, tc.from, tc.to, 1)
					if bad == good {
						t.Fatalf("the good key does not hold %q", tc.from)
					}
					refusal, wants := kubectlApply(t, bad), tc.want
					if refusal == "" {
						t.Fatal("it was accepted")
					}
					if mode == "--server-side=true" && tc.serverSide != nil {
						wants = tc.serverSide
					}
					for _, want := range wants {
						if !strings.Contains(refusal, want) {
							t.Errorf("the message does not say %q:\n%s", want, refusal)
						}
					}
				})
			}
		})
	}
}

func TestKubectlExplain(t *testing.T) {
	for name, tc := range map[string]struct {
		path string
		want []string
	}{
		"a key says what it is, and how to replace a lost one": {path: "apikey", want: []string{"shown once", "creating a new one"}},
		"a key's fields have defaults, ranges and units": {path: "apikey.spec", want: []string{
			"-required-", "2 to 50 characters", "Enabled (the default) or Disabled", "TextGeneration", "It cannot be changed", "RFC 3339",
		}},
		"budgets say when they begin anew":              {path: "apikey.spec.budgets", want: []string{"calendar day", "calendar month", "time zone", "UntilReached", `"0" refuses everything`}},
		"rate limits say how they are counted":          {path: "apikey.spec.rateLimits", want: []string{"any 60 seconds", "clamped", "0 refuses everything", "under way at one time"}},
		"a cap on keys says what becomes of the others": {path: "application.spec.maxKeys", want: []string{"Unset: no cap", "The oldest are", "unminted", "lowered"}},
		"prices have their units":                       {path: "model.spec.prices", want: []string{"1,000,000 tokens", "one image", "1,000,000 characters", "a minute of audio", "one web search call"}},
		"a price that is unset says what counts":        {path: "model.spec.prices.perMillionTokens", want: []string{"Unset: as input", "Unset: as cacheWrite", "Unset: as output", "reasoning included"}},
		"the price of an image says what it is for":     {path: "model.spec.prices.perImage", want: []string{"1024x1024", "such as hd", "Unset: any", "The first entry that fits"}},
		"the budgets' policy has its defaults":          {path: "systempolicy.spec.budgets", want: []string{"Refuse (the default) or CountAsFree", "Refuse (the default) or Allow"}},
		"usage says what its times are":                 {path: "apikey.status.usage", want: []string{"latest day", "latest month", "last answered", "used up"}},
		"usage of a day says what is in it":             {path: "application.status.usage.day", want: []string{"2026-11-23", "input and output together", "SystemPolicy's currency", "reckoned"}},
		"retention says what happens to plaintext":      {path: "apikey.spec.secret", want: []string{"-api-key", "reveal TTL", "Retain"}},
		"an application is who is billed":               {path: "application", want: []string{"who is billed"}},
		"a model's name has its reason":                 {path: "model.spec", want: []string{`request's "model" field`, "in tokens"}},
		"a provider's URL has examples":                 {path: "provider.spec", want: []string{"https://api.openai.com/v1", "https://api.anthropic.com"}},
		"timeouts have their defaults":                  {path: "provider.spec.timeouts", want: []string{"Unset: 5s", "Unset: 1h", "0s: no bound"}},
		"the system policy has its defaults":            {path: "systempolicy.spec.rateLimits", want: []string{"default 60, max 6000", "default 100000, max 10000000"}},
	} {
		t.Run(name, func(t *testing.T) {
			got := strings.Join(strings.Fields(mustKubectl(t, "explain", tc.path)), " ")
			for _, want := range tc.want {
				if !strings.Contains(got, want) {
					t.Errorf("kubectl explain %s does not say %q:\n%s", tc.path, want, got)
				}
			}
		})
	}
	t.Run("every field of every spec and status has a text", func(t *testing.T) {
		for _, schema := range schemas(t) {
			delete(schema.root.Properties, "metadata") // the API server puts the standard texts there
			withoutText(&schema.root, schema.kind, func(path string) { t.Errorf("%s has no description", path) })
		}
	})
}

func TestKubectlNames(t *testing.T) {
	namespace := newNamespace(t)
	for _, file := range []string{"application-least", "apikey-every-field", "model-least", "provider-least", "systempolicy-least"} {
		if err := apply(t, namespace, mustRead(t, filepath.Join("testdata", "good", file+".yaml"))); err != nil {
			t.Fatal(err)
		}
	}
	for name, tc := range map[string]struct{ resource, want string }{
		"the category lists all five kinds": {resource: "latchkey", want: "apikey.latchkey.dev/backend application.latchkey.dev/shop model.latchkey.dev/gpt-5-mini provider.latchkey.dev/openai systempolicy.latchkey.dev/default"},
		"lkapp is an application":           {resource: "lkapp", want: "application.latchkey.dev/shop"},
		"lkkey is a key":                    {resource: "lkkey", want: "apikey.latchkey.dev/backend"},
		"lkmodel is a model":                {resource: "lkmodel", want: "model.latchkey.dev/gpt-5-mini"},
		"lkprov is a provider":              {resource: "lkprov", want: "provider.latchkey.dev/openai"},
		"lkpolicy is the system policy":     {resource: "lkpolicy", want: "systempolicy.latchkey.dev/default"},
	} {
		t.Run(name, func(t *testing.T) {
			got := strings.Join(strings.Fields(mustKubectl(t, "get", tc.resource, "-n", namespace, "-o", "name")), " ")
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("kubectl get %s (-want +got):\n%s", tc.resource, diff)
			}
		})
	}
}

func TestKubectlWaitAndColumns(t *testing.T) {
	namespace := newNamespace(t)
	if err := apply(t, namespace, mustRead(t, "testdata/good/apikey-every-field.yaml")); err != nil {
		t.Fatal(err)
	}
	if _, stderr, err := kubectl(t, "wait", "-n", namespace, "--for=condition=Enforced", "--timeout=0s", "lkkey/backend"); err == nil {
		t.Error("kubectl wait for a condition that is not there: got no error")
	} else if !strings.Contains(stderr, "condition") {
		t.Errorf("kubectl wait for a condition that is not there: got %q", stderr)
	}
	lastUsed := time.Now().Add(-3*time.Hour - time.Minute).UTC().Format(time.RFC3339) // shown as its age
	status := `{"status":{"observedGeneration":1,"keyPrefix":"lk_abcdefgh","secretName":"shop.backend-key","revealDeadline":"2027-01-02T03:04:05Z",
		"effective":{"requestsPerMinute":600,"tokensPerMinute":200000,"dailyBudget":"12.50","monthlyBudget":"250","capabilities":["TextGeneration"],"models":{"access":"List"}},
		"usage":{"day":{"period":"2026-11-23","requests":41,"tokens":90210,"spent":"3.25","estimated":"0.05"},
			"month":{"period":"2026-11","requests":1041,"tokens":2090210,"spent":"81.125"},"lastUsedTime":"` + lastUsed + `"},
		"conditions":[` + condition("Ready", "True", "Reconciled") + "," + condition("Usable", "False", "ApplicationDisabled") + "," +
		condition("Enforced", "True", "Acknowledged") + "," + condition("Revealed", "False", "Pending") + `]}}`
	mustKubectl(t, "patch", "-n", namespace, "lkkey/backend", "--subresource=status", "--type=merge", "-p", status)
	mustKubectl(t, "wait", "-n", namespace, "--for=condition=Ready", "--timeout=10s", "lkkey/backend")
	mustKubectl(t, "wait", "-n", namespace, "--for=condition=Enforced", "--timeout=10s", "lkkey", "--all")

	got := tableOf(t, "apikeys", namespace)
	want := map[string]any{
		"Name": "backend", "Display Name": "Shop backend", "Application": "shop", "Key": "lk_abcdefgh", "Usable": "ApplicationDisabled", "Enforced": "True",
		"Revealed": "Pending", "RPM": float64(600), "TPM": float64(200000),
		"Day Spent": "3.25", "Daily": "12.50", "Month Spent": "81.125", "Monthly": "250", "Last Used": "3h1m", "Expires": "2027-12-31T23:59:59Z",
	}
	row := map[string]any{}
	for i, column := range got.ColumnDefinitions {
		if column.Name != "Age" {
			row[column.Name] = got.Rows[0].Cells[i]
		}
	}
	if diff := cmp.Diff(want, row); diff != "" {
		t.Errorf("the row of a key (-want +got):\n%s", diff)
	}
}

// TestColumns holds the columns of kubectl get; those in brackets appear with -o wide only.
func TestColumns(t *testing.T) {
	for name, tc := range map[string]struct{ resource, want string }{
		"applications": {resource: "applications", want: "Name, Display Name, State, Keys, Day Spent, Daily, Month Spent, Monthly, Ready, (Reason), Age"},
		"keys":         {resource: "apikeys", want: "Name, Display Name, Application, Key, Usable, Enforced, (Revealed), RPM, TPM, Day Spent, Daily, Month Spent, Monthly, Last Used, (Expires), Age"},
		"models":       {resource: "models", want: "Name, Model, Provider, (Upstream), (Capabilities), (Input), (Output), Ready, Reason, Age"},
		"providers":    {resource: "providers", want: "Name, Format, URL, Models, Ready, Reason, Age"},
		"the policy":   {resource: "systempolicies", want: "Name, Currency, Time Zone, RPM, Max RPM, TPM, Max TPM, Ready, Age"},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, column := range tableOf(t, tc.resource, "").ColumnDefinitions {
				if column.Priority > 0 {
					got = append(got, "("+column.Name+")")
					continue
				}
				got = append(got, column.Name)
			}
			if diff := cmp.Diff(tc.want, strings.Join(got, ", ")); diff != "" {
				t.Errorf("columns of %s (-want +got):\n%s", tc.resource, diff)
			}
		})
	}
}

// tableOf asks for objects as kubectl get does. An empty namespace: all of them.
func tableOf(t *testing.T, plural, namespace string) *metav1.Table {
	t.Helper()
	config := dynamic.ConfigFor(server.Config())
	config.GroupVersion, config.APIPath = new(resource(plural).GroupVersion()), "/apis"
	client, err := rest.RESTClientFor(config)
	if err != nil {
		t.Fatal(err)
	}
	content, err := client.Get().Resource(plural).NamespaceIfScoped(namespace, namespace != "").
		SetHeader("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io").Do(t.Context()).Raw()
	if err != nil {
		t.Fatal(err)
	}
	var table metav1.Table
	if err := json.Unmarshal(content, &table); err != nil {
		t.Fatal(err)
	}
	return &table
}

func condition(kind, status, reason string) string {
	return fmt.Sprintf(`{"type":%q,"status":%q,"reason":%q,"message":"for the test","lastTransitionTime":"2026-01-01T00:00:00Z"}`, kind, status, reason)
}

func mustRead(t *testing.T, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// decode reads the objects of a YAML text.
func decode(t *testing.T, text string) []*unstructured.Unstructured {
	t.Helper()
	var objects []*unstructured.Unstructured
	for doc := range strings.SplitSeq(text, "\n---\n") {
		obj := &unstructured.Unstructured{}
		if err := yaml.Unmarshal([]byte(doc), &obj.Object); err != nil {
			t.Fatal(err)
		}
		objects = append(objects, obj)
	}
	return objects
}
