package main

// row is a heading with its panels.
type row struct {
	title   string
	columns int
	panels  []panel
}

// The series of the installation that is chosen. Where there is no label namespace, as without Kubernetes, every series is of it.
const (
	here = `{namespace=~"$namespace"}`
	// of joins the series of a process with those that only Latchkey's processes have.
	ofManager = ` and on (job, instance) latchkey_usage_connected_reporters` + here
	ofEither  = ` and on (job, instance) (latchkey_enforcer_build_info` + here + ` or latchkey_usage_connected_reporters` + here + `)`
)

func rate(name, matchers string) string {
	return "rate(" + name + `{namespace=~"$namespace"` + matchers + "}[$__rate_interval])"
}

func quantile(q, name string) string {
	return "histogram_quantile(" + q + ", sum by (le) (" + rate(name+"_bucket", "") + "))"
}

func one(expr, legend string) []query { return []query{{expr, legend}} }

func rows() []row {
	return []row{
		{"At a glance", 6, []panel{
			{title: "Requests", about: "Decided per second.", stat: true, unit: "reqps", queries: one("sum("+rate("latchkey_enforcer_decisions_total", "")+")", "")},
			{
				title: "Refused", about: "Share of the requests.", stat: true, unit: "percentunit",
				queries: one("sum("+rate("latchkey_enforcer_decisions_total", `, outcome="refused"`)+") / sum("+rate("latchkey_enforcer_decisions_total", "")+")", ""),
			},
			{title: "Spent in 24 hours", about: "In the SystemPolicy's currency. status.usage has it exactly.", stat: true, unit: "short", queries: one("sum(increase(latchkey_enforcer_spend_total"+here+"[24h]))", "")},
			{title: "Keys in use", about: "APIKeys that callers can use now.", stat: true, unit: "short", queries: one(`max(latchkey_api_keys{namespace=~"$namespace", state="Active"})`, "")},
			{title: "Changes not in force", about: "Keys whose latest change not every enforcer has taken over.", stat: true, unit: "short", queries: one("max(latchkey_api_keys_not_enforced"+here+")", "")},
			{title: "Enforcers with a control plane", about: "The others decide by the last policy.", stat: true, unit: "short", queries: one("sum(latchkey_enforcer_control_plane_connected"+here+")", "")},
		}},
		{"Requests", 3, []panel{
			{title: "By outcome", about: "forwarded: to a provider; answered: by the enforcer itself; refused.", unit: "reqps", stack: true, queries: one("sum by (outcome) ("+rate("latchkey_enforcer_decisions_total", "")+")", "{{outcome}}")},
			{title: "Refusals by reason", about: "docs/metrics.md and docs/limits.md say what each means.", unit: "reqps", stack: true, queries: one("sum by (reason) ("+rate("latchkey_enforcer_decisions_total", `, outcome="refused"`)+")", "{{reason}}")},
			{title: "By capability", about: "Of those let through.", unit: "reqps", stack: true, queries: one("sum by (capability) ("+rate("latchkey_enforcer_decisions_total", `, outcome="forwarded"`)+")", "{{capability}}")},
		}},
		{"Models", 3, []panel{
			{title: "Spend an hour", about: "In the SystemPolicy's currency, by model.", unit: "short", stack: true, queries: one("3600 * sum by (model) ("+rate("latchkey_enforcer_spend_total", "")+")", "{{model}}")},
			{title: "Tokens", about: "Input (cached included) and output, per second.", unit: "short", stack: true, queries: one("sum by (model, type) ("+rate("latchkey_enforcer_tokens_total", "")+")", "{{model}} {{type}}")},
			{title: "Requests", about: "Let through, by model.", unit: "reqps", stack: true, queries: one("sum by (model) ("+rate("latchkey_enforcer_requests_ended_total", "")+")", "{{model}}")},
			{title: "Endings other than an answer", about: "error: the provider's; unanswered: it was not reached; credential: it refused the platform's own; cut_off, hung_up: callers went, or the answer broke off.", unit: "reqps", stack: true, queries: one("sum by (model, ending) ("+rate("latchkey_enforcer_requests_ended_total", `, ending!="answered"`)+")", "{{model}} {{ending}}")},
			{title: "Billed by an estimate", about: "Share of the answers whose usage the provider did not report.", unit: "percentunit", queries: one("sum("+rate("latchkey_enforcer_estimated_answers_total", "")+") / sum("+rate("latchkey_enforcer_requests_ended_total", "")+")", "estimated")},
			{title: "Budgets passed", about: "By how much in an hour, in the currency; under UntilReached by less than a request each.", unit: "short", queries: one("sum(increase(latchkey_enforcer_budget_overrun_spend_total"+here+"[1h]))", "spend beyond budgets")},
		}},
		{"Latency and ledger", 3, []panel{
			{title: "Time to decide", about: "The engine's own, without Envoy and without the ledger's disk.", unit: "s", queries: []query{
				{quantile("0.5", "latchkey_enforcer_decision_duration_seconds"), "half below"}, {quantile("0.99", "latchkey_enforcer_decision_duration_seconds"), "99 % below"},
			}},
			{title: "Time of a ledger's commit", about: "Each request waits for two; many at once share one.", unit: "s", queries: []query{
				{quantile("0.5", "latchkey_enforcer_ledger_commit_duration_seconds"), "half below"}, {quantile("0.99", "latchkey_enforcer_ledger_commit_duration_seconds"), "99 % below"},
			}},
			{title: "Ledger", about: "Changes written, and failures.", unit: "ops", queries: []query{
				{"sum(" + rate("latchkey_enforcer_ledger_changes_total", "") + ")", "changes"}, {"sum(" + rate("latchkey_enforcer_ledger_failures_total", "") + ")", "failures"},
			}},
		}},
		{"Control plane", 3, []panel{
			{title: "Keys by state", about: "The reason of the condition Usable.", unit: "short", stack: true, queries: one("max by (state) (latchkey_api_keys"+here+") > 0", "{{state}}")},
			{title: "Models and providers that are not ready", about: "kubectl get lkmodel,lkprov says which.", unit: "short", queries: []query{
				{`max by (ready) (latchkey_models{namespace=~"$namespace", ready!="True"})`, "models, {{ready}}"}, {`max by (ready) (latchkey_providers{namespace=~"$namespace", ready!="True"})`, "providers, {{ready}}"},
			}},
			{title: "Connected", about: "Streams over the xDS port, by role, over all replicas of the manager.", unit: "short", queries: one("sum by (role) (latchkey_xds_connected_clients"+here+")", "{{role}}")},
			{title: "Policy in force", about: "Entries that enforcers hold.", unit: "short", queries: one("max by (kind) (latchkey_enforcer_policy_entries"+here+")", "{{kind}}")},
			{title: "Responses, and refusals of them", about: "What the manager sends over xDS; a refusal (NACK) leaves the client with what it had.", unit: "ops", queries: []query{
				{"sum(" + rate("latchkey_xds_responses_total", "") + ")", "sent"}, {"sum by (type) (" + rate("latchkey_xds_rejections_total", "") + ")", "refused {{type}}"},
			}},
			{title: "Usage on its way to status", about: "Rows reported by enforcers; accounts that are not written yet; writes.", unit: "short", queries: []query{
				{"sum(" + rate("latchkey_usage_rows_received_total", "") + ")", "rows a second"}, {"sum(latchkey_usage_pending_rows" + here + ")", "accounts waiting"},
				{"sum by (result) (" + rate("latchkey_usage_status_writes_total", "") + ")", "writes a second, {{result}}"},
			}},
			{title: "Reconciliations", about: "By controller and result.", unit: "ops", queries: one("sum by (controller, result) (rate(controller_runtime_reconcile_total[$__rate_interval])"+ofManager+")", "{{controller}} {{result}}")},
			{title: "Leader", about: "1 for the replica that writes Secrets and status.", unit: "short", queries: one(`leader_election_master_status{namespace=~"$namespace", name="latchkey-manager"}`, "{{instance}}")},
			{title: "Days until certificates end", about: "They are renewed a month before.", unit: "d", queries: []query{
				{"(min by (certificate) (latchkey_certificate_expiry_timestamp_seconds" + here + ") - time()) / 86400", "{{certificate}}"},
				{"(min(latchkey_enforcer_certificate_expiry_timestamp_seconds" + here + ") - time()) / 86400", "enforcer"},
			}},
		}},
		{"Processes", 3, []panel{
			{title: "CPU", about: "In cores.", unit: "short", queries: one("rate(process_cpu_seconds_total[$__rate_interval])"+ofEither, "{{job}} {{instance}}")},
			{title: "Memory", about: "Resident.", unit: "bytes", queries: one("process_resident_memory_bytes"+ofEither, "{{job}} {{instance}}")},
			{title: "Goroutines", about: "Each request under way has some.", unit: "short", queries: one("go_goroutines"+ofEither, "{{job}} {{instance}}")},
		}},
	}
}
