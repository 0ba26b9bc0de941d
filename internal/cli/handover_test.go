package cli

import (
	"encoding/base64"
	"net/url"
	"os/exec"
	"strings"
	"testing"

	"github.com/dop251/goja"
	"github.com/google/go-cmp/cmp"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
)

func nothingSet(string) string { return "" }

func TestGatewayURL(t *testing.T) {
	for name, test := range map[string]struct {
		flag, variable, want, err string
	}{
		"as it is":                   {"https://llm.test", "", "https://llm.test", ""},
		"/v1 is taken away":          {"http://llm.test:8080/v1/", "", "http://llm.test:8080", ""},
		"a prefix stays":             {"https://test/llm/v1", "", "https://test/llm", ""},
		"the variable stands in":     {"", "http://llm.test", "http://llm.test", ""},
		"the flag comes first":       {"http://a.test", "http://b.test", "http://a.test", ""},
		"neither is an error":        {"", "", "", "--gateway URL or LATCHKEY_GATEWAY"},
		"a host alone is no URL":     {"llm.test", "", "", "is not the URL of a gateway"},
		"a credential has no place":  {"http://u:p@llm.test", "", "", "is not the URL of a gateway"},
		"a query has no place":       {"", "http://llm.test?a=b", "", "LATCHKEY_GATEWAY: "},
		"another scheme is an error": {"ftp://llm.test", "", "", "is not the URL"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := gatewayURL(test.flag, func(string) string { return test.variable })
			if got != test.want || (err == nil) != (test.err == "") || (err != nil && !strings.Contains(err.Error(), test.err)) {
				t.Errorf("%q, %v; want %q, %q", got, err, test.want, test.err)
			}
		})
	}
}

// TestEnvLinesInAShell evaluates the lines, and looks at what a program then sees.
func TestEnvLinesInAShell(t *testing.T) {
	const gateway, plain = "http://gw.test/it's", "lk_secret"
	for name, test := range map[string]struct {
		tools []string
		want  string
	}{
		"all":         {[]string{toolAll}, "http://gw.test/it's/v1|lk_secret|http://gw.test/it's||lk_secret"},
		"openai":      {[]string{toolOpenAI}, "http://gw.test/it's/v1|lk_secret||old|old"},
		"anthropic":   {[]string{toolAnthropic}, "||http://gw.test/it's|lk_secret|"},
		"claude-code": {[]string{toolClaudeCode}, "||http://gw.test/it's||lk_secret"},
		"codex":       {[]string{toolCodex}, "|lk_secret||old|old"},
	} {
		t.Run(name, func(t *testing.T) {
			script := `eval "$LINES_TO_RUN"; echo "$OPENAI_BASE_URL|$OPENAI_API_KEY|$ANTHROPIC_BASE_URL|$ANTHROPIC_API_KEY|$ANTHROPIC_AUTH_TOKEN"`
			cmd := exec.CommandContext(t.Context(), "sh", "-c", script)
			cmd.Env = []string{"LINES_TO_RUN=" + envLines(test.tools, gateway, plain), "ANTHROPIC_API_KEY=old", "ANTHROPIC_AUTH_TOKEN=old"}
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			if got := strings.TrimSpace(string(out)); got != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
		})
	}
	if lines := envLines([]string{toolCodex}, "http://gw.test", plain); !strings.Contains(lines, `base_url = "http://gw.test/v1"`) {
		t.Errorf("Codex is not told where the gateway is:\n%s", lines)
	}
}

func TestHandoverFlags(t *testing.T) {
	for name, test := range map[string]struct {
		hand handover
		err  string
	}{
		"nothing asked":       {handover{}, ""},
		"env":                 {handover{env: []string{"codex"}, gateway: "http://gw.test"}, ""},
		"an unknown tool":     {handover{env: []string{"emacs"}, gateway: "http://gw.test"}, "--env=emacs"},
		"an unknown switch":   {handover{ccSwitch: "emacs", gateway: "http://gw.test"}, "--cc-switch=emacs"},
		"both":                {handover{env: []string{"all"}, ccSwitch: "claude", gateway: "http://gw.test"}, "choose one"},
		"without its gateway": {handover{env: []string{"all"}}, "--gateway URL"},
	} {
		t.Run(name, func(t *testing.T) {
			err := test.hand.check(nothingSet)
			if (err == nil) != (test.err == "") || (err != nil && !strings.Contains(err.Error(), test.err)) {
				t.Errorf("%v, want %q", err, test.err)
			}
		})
	}
}

func TestCCSwitchLink(t *testing.T) {
	k := &v1alpha1.APIKey{Spec: v1alpha1.APIKeySpec{DisplayName: "Shop & Söhne + more"}}
	k.Spec.Models.Names = []v1alpha1.ModelName{"claude-sonnet-4-5", "other"}
	link, err := url.Parse(ccSwitchLink(switchCodex, "https://gw.test", "lk_secret", k))
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for name, values := range link.Query() {
		got[name] = values[0]
	}
	script, err := base64.StdEncoding.DecodeString(got["usageScript"])
	if err != nil || string(script) != balanceScript {
		t.Errorf("the script has changed on its way: %v", err)
	}
	delete(got, "usageScript")
	want := map[string]string{
		"resource": "provider", "app": "codex", "name": "Shop & Söhne + more", "endpoint": "https://gw.test/v1", "apiKey": "lk_secret",
		"model": "claude-sonnet-4-5", "usageEnabled": "true", "usageAutoInterval": "5",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if link.Scheme != "ccswitch" || link.Host != "v1" || link.Path != "/import" {
		t.Errorf("link %s://%s%s", link.Scheme, link.Host, link.Path)
	}
}

// TestBalanceScript runs the script as CC Switch does: an object with a request and an extractor.
func TestBalanceScript(t *testing.T) {
	for name, test := range map[string]struct{ answer, want string }{
		"plans, the tightest first": {
			`{is_active:true,balance:2.5,currency:"USD",plans:[{planName:"day",remaining:2.5,used:1,total:3.5,unit:"USD",isValid:true}]}`,
			`[{"planName":"day","remaining":2.5,"used":1,"total":3.5,"unit":"USD","isValid":true}]`,
		},
		"a balance alone": {`{is_active:true,balance:2.5,currency:"EUR"}`, `{"isValid":true,"remaining":2.5,"unit":"EUR"}`},
		"an error":        {`{error:{message:"no"}}`, `{"isValid":false,"invalidMessage":"no"}`},
	} {
		t.Run(name, func(t *testing.T) {
			vm := goja.New()
			got, err := vm.RunString("JSON.stringify(" + balanceScript + ".extractor(" + test.answer + "))")
			if err != nil {
				t.Fatal(err)
			}
			if got.String() != test.want {
				t.Errorf("%s, want %s", got, test.want)
			}
		})
	}
	asked, err := goja.New().RunString("var r = " + balanceScript + ".request; [r.method, r.url, r.headers.Authorization].join(' ')")
	if err != nil || asked.String() != "GET {{baseUrl}}/user/balance Bearer {{apiKey}}" {
		t.Errorf("it asks %v, %v", asked, err)
	}
}
