package metrics

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// alertRule is one of the rules.
type alertRule struct {
	Alert       string            `json:"alert"`
	Expr        string            `json:"expr"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
}

func alertRules(t *testing.T) (rules []alertRule) {
	t.Helper()
	raw, err := os.ReadFile(alertsFile())
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Groups []struct {
			Rules []alertRule `json:"rules"`
		} `json:"groups"`
	}
	if err := yaml.Unmarshal(raw, &file); err != nil {
		t.Fatal(err)
	}
	for _, g := range file.Groups {
		rules = append(rules, g.Rules...)
	}
	if len(rules) == 0 {
		t.Fatal("there are no rules")
	}
	return rules
}

// TestDashboardAndAlerts has a real Prometheus scrape the running system, and every expression of the dashboard and of the rules find there
// what it asks for. The dashboard's give data, too.
func TestDashboardAndAlerts(t *testing.T) {
	p := startPrometheus(t)

	raw, err := os.ReadFile(filepath.Join(running.Root, "charts", "latchkey", "dashboards", "latchkey.json"))
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
		Templating struct {
			List []struct {
				Name  string
				Query any // an object, but for the data source
			}
		}
	}
	if err := json.Unmarshal(raw, &dashboard); err != nil {
		t.Fatal(err)
	}
	asked := 0
	// As Grafana puts in what is chosen.
	chosen := strings.NewReplacer("$namespace", ".*", "$__rate_interval", "10s")
	for _, panel := range dashboard.Panels {
		for _, target := range panel.Targets {
			asked++
			expr := chosen.Replace(target.Expr)
			if err := p.judge(t.Context(), expr); err != nil {
				t.Errorf("dashboard, %s: %v", panel.Title, err)
				continue
			}
			if series, err := p.query(t.Context(), expr); err != nil || len(series) == 0 {
				t.Errorf("dashboard, %s: %s gives no data, %v", panel.Title, expr, err)
			}
		}
	}
	for _, variable := range dashboard.Templating.List {
		if query, is := variable.Query.(map[string]any); is {
			asked++
			text, _ := query["query"].(string)
			metric, _, _ := strings.Cut(strings.TrimPrefix(text, "label_values("), ",")
			if err := p.judge(t.Context(), metric); err != nil {
				t.Errorf("dashboard, variable %s: %v", variable.Name, err)
			}
		}
	}
	if asked < 20 {
		t.Errorf("%d expressions: is the dashboard still read rightly?", asked)
	}
	for _, rule := range alertRules(t) {
		if err := p.judge(t.Context(), rule.Expr); err != nil {
			t.Errorf("%s: %v", rule.Alert, err)
		}
	}

	for what, expr := range map[string]string{
		"a name":           `rate(latchkey_enforcer_decision_total[1m])`,
		"a label":          `latchkey_enforcer_decisions_total{result="refused"}`,
		"a value":          `latchkey_enforcer_requests_ended_total{ending="credentials"}`,
		"a reason":         `latchkey_enforcer_decisions_total{reason=~"no_policy|ledger_gone"}`,
		"in one half":      `latchkey_usage_pending_rows and on (job) latchkey_usage_rows`,
		"a broken bracket": `sum(latchkey_usage_pending_rows`,
	} {
		if err := p.judge(t.Context(), expr); err == nil {
			t.Errorf("%s that is wrong was not noticed: %s", what, expr)
		}
	}
}

// TestAlerts has promtool check the rules, and fire and silence each; each has its severity, its words and its section in docs/alerts.md.
func TestAlerts(t *testing.T) {
	promtool(t, "check", "rules", alertsFile())

	dir := t.TempDir()
	tests := filepath.Join("testdata", "alerts_test.yaml")
	for name, from := range map[string]string{"latchkey.yaml": alertsFile(), "alerts_test.yaml": tests} {
		content, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	promtool(t, "test", "rules", filepath.Join(dir, "alerts_test.yaml"))

	unit, err := os.ReadFile(tests)
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(filepath.Join(running.Root, "docs", "alerts.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, rule := range alertRules(t) {
		for _, want := range []string{rule.Alert + " fires", rule.Alert + " is silent"} {
			if !strings.Contains(string(unit), "- name: "+want+"\n") {
				t.Errorf("testdata/alerts_test.yaml has no test that %s", want)
			}
		}
		section := "\n## " + rule.Alert + "\n\n`" + rule.Labels["severity"] + "`. "
		if !strings.Contains(string(page), section) {
			t.Errorf("docs/alerts.md has no section %q", section)
		}
		if want := "docs/alerts.md#" + strings.ToLower(rule.Alert); !strings.HasSuffix(rule.Annotations["runbook_url"], want) || rule.Annotations["summary"] == "" || rule.Annotations["description"] == "" {
			t.Errorf("%s: annotations %v; want a summary, a description and a runbook_url that ends with %s", rule.Alert, rule.Annotations, want)
		}
	}
}
