package cli

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
)

// gatewayVariable names the gateway where --gateway does not.
const gatewayVariable = "LATCHKEY_GATEWAY"

// The tools that --env writes lines for.
const (
	toolAll        = "all"
	toolOpenAI     = "openai"
	toolAnthropic  = "anthropic"
	toolClaudeCode = "claude-code"
	toolCodex      = "codex"
)

// The tools that CC Switch knows.
const (
	switchClaude = "claude"
	switchCodex  = "codex"
)

// handover is how a key is handed out: bare, as lines for a shell, or as a link.
type handover struct {
	gateway  string
	env      []string
	ccSwitch string
	endpoint string // the gateway's URL, checked
}

func (h *handover) add(cmd *cobra.Command) {
	cmd.Flags().StringSliceVar(&h.env, "env", nil, "print lines for a shell instead of the key alone, for some of: openai, anthropic, claude-code, codex; without a value for all")
	cmd.Flags().Lookup("env").NoOptDefVal = toolAll
	cmd.Flags().StringVar(&h.ccSwitch, "cc-switch", "", "print a link that sets up CC Switch instead of the key alone, for claude (without a value) or codex; it holds the key")
	cmd.Flags().Lookup("cc-switch").NoOptDefVal = switchClaude
	cmd.Flags().StringVar(&h.gateway, "gateway", "", "URL that callers use, for --env and --cc-switch; $"+gatewayVariable+" when unset")
	complete(cmd, "env", toolAll, toolOpenAI, toolAnthropic, toolClaudeCode, toolCodex)
	complete(cmd, "cc-switch", switchClaude, switchCodex)
}

// needsObject reports whether the APIKey's own fields go into what is printed.
func (h *handover) needsObject() bool { return h.ccSwitch != "" }

// asked reports whether more than the bare key was asked for.
func (h *handover) asked() bool { return len(h.env) > 0 || h.ccSwitch != "" }

// check finds what is wrong with the flags, before a key is taken that could then not be printed.
func (h *handover) check(getenv func(string) string) (err error) {
	for _, tool := range h.env {
		if !slices.Contains([]string{toolAll, toolOpenAI, toolAnthropic, toolClaudeCode, toolCodex}, tool) {
			return fmt.Errorf("--env=%s: write some of openai, anthropic, claude-code, codex, or nothing for all", tool)
		}
	}
	if !slices.Contains([]string{"", switchClaude, switchCodex}, h.ccSwitch) {
		return fmt.Errorf("--cc-switch=%s: write claude or codex", h.ccSwitch)
	}
	if len(h.env) > 0 && h.ccSwitch != "" {
		return errors.New("--env and --cc-switch print different things, and a key is printed once: choose one")
	}
	if !h.asked() {
		return nil
	}
	h.endpoint, err = gatewayURL(h.gateway, getenv)
	return err
}

// gatewayURL is the URL that callers use, without /v1 and without a slash at its end.
func gatewayURL(flag string, getenv func(string) string) (string, error) {
	from, value := "--gateway", flag
	if value == "" {
		from, value = gatewayVariable, getenv(gatewayVariable)
	}
	if value == "" {
		return "", fmt.Errorf("say where the gateway is, with --gateway URL or %s: it is what callers use as their base URL", gatewayVariable)
	}
	u, err := url.Parse(value)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return "", fmt.Errorf("%s: %q is not the URL of a gateway: write one such as https://llm.example.com", from, value)
	}
	u.Path = strings.TrimSuffix(strings.TrimSuffix(strings.TrimRight(u.Path, "/"), "/v1"), "/")
	u.RawPath = ""
	return u.String(), nil
}

// of renders the plaintext as asked for.
func (h *handover) of(k *v1alpha1.APIKey) func(plaintext string) string {
	return func(plaintext string) string {
		switch {
		case len(h.env) > 0:
			return strings.TrimSuffix(envLines(h.env, h.endpoint, plaintext), "\n")
		case h.ccSwitch != "":
			return ccSwitchLink(h.ccSwitch, h.endpoint, plaintext, k)
		}
		return plaintext
	}
}

// envLines are lines that a POSIX shell can evaluate. The Anthropic SDKs and Claude Code send ANTHROPIC_AUTH_TOKEN as a bearer token, and
// ANTHROPIC_API_KEY as x-api-key: with both, and two keys, the gateway refuses to guess.
func envLines(tools []string, gateway, plaintext string) string {
	want := func(tool string) bool { return slices.Contains(tools, tool) || slices.Contains(tools, toolAll) }
	var b strings.Builder
	export := func(name, value string) { fmt.Fprintf(&b, "export %s=%s\n", name, quoteForShell(value)) }
	if want(toolOpenAI) {
		b.WriteString("# OpenAI SDKs\n")
		export("OPENAI_BASE_URL", gateway+"/v1")
	}
	if want(toolOpenAI) || want(toolCodex) {
		export("OPENAI_API_KEY", plaintext)
	}
	switch {
	case want(toolClaudeCode):
		b.WriteString("# Claude Code, and the Anthropic SDKs\nunset ANTHROPIC_API_KEY\n")
		export("ANTHROPIC_BASE_URL", gateway)
		export("ANTHROPIC_AUTH_TOKEN", plaintext)
	case want(toolAnthropic):
		b.WriteString("# Anthropic SDKs\nunset ANTHROPIC_AUTH_TOKEN\n")
		export("ANTHROPIC_BASE_URL", gateway)
		export("ANTHROPIC_API_KEY", plaintext)
	}
	if want(toolCodex) {
		fmt.Fprintf(&b, `# Codex: put this into ~/.codex/config.toml; it takes the key from OPENAI_API_KEY
#   model_provider = "latchkey"
#   [model_providers.latchkey]
#   name = "Latchkey"
#   base_url = "%s/v1"
#   env_key = "OPENAI_API_KEY"
#   wire_api = "responses"
`, gateway)
	}
	return b.String()
}

// quoteForShell quotes a word for a POSIX shell, where that is needed.
func quoteForShell(s string) string {
	const safe = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-./:@%+,="
	if s != "" && strings.Trim(s, safe) == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// balanceScript is what CC Switch runs to show what is left. It asks the gateway with the key itself; the first of the plans is the
// tightest window. {{baseUrl}} and {{apiKey}} are filled in by CC Switch.
const balanceScript = `({
  request: {
    url: "{{baseUrl}}/user/balance",
    method: "GET",
    headers: { "Authorization": "Bearer {{apiKey}}" }
  },
  extractor: function (response) {
    if (response.error) {
      return { isValid: false, invalidMessage: response.error.message };
    }
    if (response.plans && response.plans.length > 0) {
      return response.plans;
    }
    return { isValid: response.is_active, remaining: response.balance, unit: response.currency };
  }
})`

// ccSwitchLink is the link by which CC Switch takes over the gateway, the key, and the script that shows what is left.
func ccSwitchLink(app, gateway, plaintext string, k *v1alpha1.APIKey) string {
	endpoint := gateway
	if app == switchCodex {
		endpoint += "/v1"
	}
	q := url.Values{
		"resource":          {"provider"},
		"app":               {app},
		"name":              {string(k.Spec.DisplayName)},
		"endpoint":          {endpoint},
		"apiKey":            {plaintext},
		"usageEnabled":      {"true"},
		"usageAutoInterval": {"5"},
		"usageScript":       {base64.StdEncoding.EncodeToString([]byte(balanceScript))},
	}
	if len(k.Spec.Models.Names) > 0 {
		q.Set("model", string(k.Spec.Models.Names[0]))
	}
	return "ccswitch://v1/import?" + strings.ReplaceAll(q.Encode(), "+", "%20")
}
