package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"
)

// The levels of a finding.
const (
	levelOK   = "ok"
	levelNote = "note" // worth knowing; nothing has to be done
	levelMend = "mend"
)

// finding is one thing that has been looked at.
type finding struct {
	Level string `json:"level"`
	What  string `json:"what"`
	Says  string `json:"says"`
	// Mend is what to do about it.
	Mend string `json:"mend,omitempty"`
}

type doctor struct {
	p         *plugin
	namespace string
	gateway   string
	format    string
	timeout   time.Duration
}

func (p *plugin) newDoctor() *cobra.Command {
	o := &doctor{p: p}
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check the installation end to end, and say how to mend what is wrong",
		Long: `Check the installation end to end: the kinds, what you and the manager may do, the SystemPolicy, providers and models, keys that are not
enforced, the certificates between manager, enforcers and Envoy, whether the manager runs and enforcers are connected, and with --gateway whether
the gateway decides.

Exit codes: 0, nothing needs mending; 1, something does, and it is listed with the way to mend it.`,
		Example: `  # The installation in its usual namespace
  kubectl latchkey doctor

  # Where it is installed elsewhere; the gateway too
  kubectl latchkey doctor --installation-namespace latchkey-system --gateway https://llm.example.com

  # For a program
  kubectl latchkey doctor -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context()) },
	}
	cmd.Flags().StringVar(&o.namespace, "installation-namespace", "latchkey-system", "namespace that Latchkey is installed in")
	cmd.Flags().StringVar(&o.gateway, "gateway", "", "URL that callers use, to be asked without a key; $"+gatewayVariable+" when unset")
	cmd.Flags().StringVarP(&o.format, "output", "o", "", "Output format. One of: (json, yaml).")
	cmd.Flags().DurationVar(&o.timeout, "timeout", time.Minute, "how long all of it may take")
	complete(cmd, "output", "json", "yaml")
	return cmd
}

func (o *doctor) run(ctx context.Context) error {
	if o.format != "" && o.format != "json" && o.format != "yaml" {
		return fmt.Errorf("--output: %q is neither json nor yaml", o.format)
	}
	base := ""
	if o.gateway != "" || o.p.getenv(gatewayVariable) != "" {
		var err error
		if base, err = gatewayURL(o.gateway, o.p.getenv); err != nil {
			return err
		}
	}
	limited, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	findings := o.examine(limited, base)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	mend := 0
	for _, f := range findings {
		if f.Level == levelMend {
			mend++
		}
	}
	if err := o.print(findings, mend); err != nil {
		return err
	}
	if mend > 0 {
		return &ExitError{Code: exitFailed}
	}
	return nil
}

// examine looks at one thing after the other. What hangs on the API server is left out when that does not answer.
func (o *doctor) examine(ctx context.Context, gatewayBase string) []finding {
	line := o.p.progress()
	defer line.clear()
	var findings []finding
	c, err := o.p.connect()
	if err == nil {
		line.show("asking the API server")
		err = reachable(ctx, c)
	}
	if err != nil {
		mend := hintFor(err)
		if mend == "" {
			mend = "check the kubeconfig: kubectl cluster-info"
		}
		findings = append(findings, finding{levelMend, "API server", oneLine(err.Error()), mend})
	} else {
		findings = append(findings, finding{Level: levelOK, What: "API server", Says: "it answers"})
		for _, part := range []struct {
			what  string
			check func(context.Context, *cluster) []finding
		}{
			{"kinds", o.checkKinds}, {"permissions", o.checkPermissions}, {"the manager", o.checkManager}, {"certificates", o.checkCertificates},
			{"the SystemPolicy", o.checkSystemPolicy}, {"providers", o.checkProviders}, {"models", o.checkModels}, {"keys", o.checkKeys},
		} {
			line.show("looking at " + part.what)
			found := part.check(ctx, c)
			findings = append(findings, found...)
			if part.what == "kinds" && found[0].Level == levelMend {
				break // nothing else can be read
			}
		}
	}
	if gatewayBase != "" {
		line.show("asking the gateway")
		findings = append(findings, checkGateway(ctx, gatewayBase))
	}
	return findings
}

func (o *doctor) print(findings []finding, mend int) error {
	switch o.format {
	case "json":
		encoder := json.NewEncoder(o.p.Out)
		encoder.SetIndent("", "    ")
		return encoder.Encode(map[string]any{"findings": findings, "healthy": mend == 0})
	case "yaml":
		content, err := yaml.Marshal(map[string]any{"findings": findings, "healthy": mend == 0})
		if err != nil {
			return fmt.Errorf("encode the findings: %w", err)
		}
		_, err = o.p.Out.Write(content)
		return err
	}
	colours := o.p.palette(o.p.Out)
	looks := map[string]style{levelOK: good, levelNote: warn, levelMend: bad}
	arrow := "-> "
	if o.p.unicode(o.p.Out) {
		arrow = "→ "
	}
	rows := make([][]cell, 0, len(findings))
	for _, f := range findings {
		rows = append(rows, []cell{{f.Level, looks[f.Level]}, text(f.What), text(f.Says)})
		if f.Mend != "" {
			rows = append(rows, []cell{text(""), text(""), {arrow + f.Mend, strong}})
		}
	}
	t := &table{header: []string{"", "", ""}}
	if err := t.write(o.p.Out, colours, false, rows); err != nil {
		return err
	}
	last := "Nothing needs mending."
	if mend > 0 {
		last = counted(int64(mend), "thing") + " to mend."
	}
	_, err := fmt.Fprintln(o.p.Out, "\n"+last)
	return err
}

// checkGateway asks without a key: whoever decides refuses that with 401.
func checkGateway(ctx context.Context, base string) finding {
	f := finding{Level: levelMend, What: "gateway"}
	client := &http.Client{Transport: &http.Transport{Proxy: http.ProxyFromEnvironment}}
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/v1/models", http.NoBody)
	if err == nil {
		var resp *http.Response
		if resp, err = client.Do(req); err == nil {
			defer func() { _ = resp.Body.Close() }()
			switch resp.StatusCode {
			case http.StatusUnauthorized:
				f.Level, f.Says = levelOK, "it refuses a request without a key, as it should"
			case http.StatusServiceUnavailable:
				f.Says, f.Mend = "it answers 503: Envoy runs, and the enforcer beside it does not answer", "look at the enforcer's log"
			default:
				f.Says = "it answers a request without a key with " + resp.Status + ", where 401 is due"
				f.Mend = "check that " + base + " is Latchkey's Envoy, and that nothing before it answers"
			}
			return f
		}
	}
	f.Says, f.Mend = oneLine(err.Error()), "check the address, and that Envoy runs"
	if errors.Is(err, context.DeadlineExceeded) || strings.Contains(err.Error(), "timeout") {
		f.Mend = "check that nothing between here and there drops the connection"
	}
	return f
}
