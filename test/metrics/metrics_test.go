package metrics

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
)

// prefix begins the names of Latchkey's own metrics.
const prefix = "latchkey_"

// Between these lines docs/metrics.md is generated.
const (
	begin = "<!-- from here on it is written by: go test ./test/metrics -update -->\n"
	end   = "<!-- to here -->\n"
)

// TestDocumented compares docs/metrics.md with what the processes show.
func TestDocumented(t *testing.T) {
	path := filepath.Join(running.Root, "docs", "metrics.md")
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, found := strings.Cut(string(content), begin)
	written, after, foundToo := strings.Cut(rest, end)
	if !found || !foundToo {
		t.Fatalf("%s does not have the lines %q and %q", path, begin, end)
	}
	table := tableOf("Manager", own(scrape(t, manager))) + "\n" + tableOf("Enforcer", own(scrape(t, enforcer)))
	if *update {
		if err := os.WriteFile(path, []byte(before+begin+table+end+after), 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := gocmp.Diff(strings.Split(written, "\n"), strings.Split(table, "\n")); diff != "" {
		t.Errorf("docs/metrics.md is not what is shown: go test ./test/metrics -update mends it (-documented +shown):\n%s", diff)
	}
}

// TestNames holds the names to Prometheus' conventions.
func TestNames(t *testing.T) {
	for _, process := range []string{manager, enforcer} {
		page := scrape(t, process)
		problems, err := promlint.New(bytes.NewReader(page.text)).Lint()
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range problems {
			if strings.HasPrefix(p.Metric, prefix) {
				t.Errorf("%s: %s: %s", process, p.Metric, p.Text)
			}
		}
		if n := len(own(page)); n < 10 {
			t.Errorf("%s shows %d metrics of its own: is it still read rightly?", process, n)
		}
		for _, f := range own(page) {
			if f.GetHelp() == "" {
				t.Errorf("%s: %s has no help", process, f.GetName())
			}
		}
	}
}

// TestNoLabelGrowsWithTheKeys holds the number of series to what an operator has set up, not to how many use it.
func TestNoLabelGrowsWithTheKeys(t *testing.T) {
	forbidden := []string{"key", "key_id", "key_prefix", "prefix", "application", "namespace", "request_id", "user"}
	canaries := []string{"canary", running.stranger}
	for name, plaintext := range running.keys {
		canaries = append(canaries, name, plaintext, plaintext[:10])
	}
	for _, process := range []string{manager, enforcer} {
		page := scrape(t, process)
		for _, f := range own(page) {
			for _, label := range labelsOf(f) {
				if slices.Contains(forbidden, label) {
					t.Errorf("%s: %s has the label %s", process, f.GetName(), label)
				}
			}
		}
		for line := range strings.Lines(string(page.text)) {
			for _, canary := range canaries {
				if strings.Contains(line, canary) {
					t.Errorf("%s shows whom it serves: %s", process, line)
				}
			}
		}
	}
}

// TestNoDebugPagesAmongTheMetrics looks for them where Prometheus scrapes.
func TestNoDebugPagesAmongTheMetrics(t *testing.T) {
	for _, process := range []string{manager, enforcer} {
		for _, path := range []string{"/debug/pprof/", "/debug/pprof/heap", "/debug/policy"} {
			url := strings.TrimSuffix(running.MetricsURL(process), "/metrics") + path
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := running.http.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close()
			if resp.StatusCode != http.StatusNotFound {
				t.Errorf("%s%s: %s", process, path, resp.Status)
			}
		}
	}
}

// own are Latchkey's own metrics, by name.
func own(page *scraped) []*dto.MetricFamily {
	var list []*dto.MetricFamily
	for _, name := range slices.Sorted(maps.Keys(page.families)) {
		if strings.HasPrefix(name, prefix) {
			list = append(list, page.families[name])
		}
	}
	return list
}

// tableOf is the generated part of docs/metrics.md for one process.
func tableOf(title string, families []*dto.MetricFamily) string {
	var b strings.Builder
	fmt.Fprintf(&b, "### %s\n\n| metric | type | labels | unit | what it says |\n|---|---|---|---|---|\n", title)
	for _, f := range families {
		labels := labelsOf(f)
		for i := range labels {
			labels[i] = "`" + labels[i] + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s |\n", f.GetName(), strings.ToLower(f.GetType().String()),
			cmp.Or(strings.Join(labels, ", "), "–"), unitOf(f.GetName()), strings.ReplaceAll(f.GetHelp(), "|", `\|`))
	}
	return b.String()
}

// labelsOf are the names of the labels of all series of a family.
func labelsOf(f *dto.MetricFamily) []string {
	names := map[string]struct{}{}
	for _, m := range f.GetMetric() {
		for _, l := range m.GetLabel() {
			names[l.GetName()] = struct{}{}
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// unitOf reads the unit from a name, as the conventions have it.
func unitOf(name string) string {
	name = strings.TrimSuffix(name, "_total")
	for _, u := range []struct{ suffix, unit string }{
		{"_timestamp_seconds", "seconds since 1970"}, {"_seconds", "seconds"}, {"_bytes", "bytes"}, {"_spend", "currency"}, {"_tokens", "tokens"},
	} {
		if strings.HasSuffix(name, u.suffix) {
			return u.unit
		}
	}
	return "–"
}
