package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/latchkey-dev/latchkey/test/stack"
)

// tale is the story of config/samples: a key that may call, and one that may not.
type tale struct {
	stack *stack.Stack
	key   string
}

const (
	namespace    = "demo"
	goodKey      = "shop-backend"
	disabledKey  = "shop-disabled"
	model        = "gpt-5-mini"
	replyTimeout = 30 * time.Second
)

// tell plays the story. Every step is checked: an error means that Latchkey does not do its main job on this machine.
func (t *tale) tell(ctx context.Context) error {
	s := t.stack
	samples := filepath.Join(s.Root, "config", "samples")
	say("applying the samples: kubectl apply -k config/samples")
	if err := t.applySamples(ctx, samples); err != nil {
		return err
	}
	say("waiting until the keys are enforced: kubectl wait --for=condition=Enforced lkkey --all -n " + namespace)
	if _, err := s.Kubectl(ctx, "wait", "--for=condition=Enforced", "--timeout=60s", "lkkey", "--all", "-n", namespace); err != nil {
		return err
	}
	if _, err := s.Kubectl(ctx, "wait", "--for=condition=Ready", "--timeout=60s", "lkmodel,lkprov", "--all"); err != nil {
		return err
	}
	say("revealing a key, once: kubectl latchkey reveal " + goodKey + " -n " + namespace)
	good, err := t.reveal(ctx, goodKey)
	if err != nil {
		return err
	}
	t.key = good
	disabled, err := t.reveal(ctx, disabledKey)
	if err != nil {
		return err
	}
	if _, err := t.reveal(ctx, goodKey); err == nil {
		return fmt.Errorf("the key of %s was revealed twice", goodKey)
	}

	say("calling through Envoy with the key")
	status, answer, err := t.call(ctx, good)
	if err != nil {
		return err
	}
	fmt.Printf("    POST /v1/chat/completions → %d\n    %s\n", status, answer)
	if status != http.StatusOK || !strings.Contains(answer, `"choices"`) {
		return fmt.Errorf("the call with a good key got %d; expected 200 with choices", status)
	}
	say("asking with the key what it has spent: GET /v1/key")
	state, err := t.state(ctx, good)
	if err != nil {
		return err
	}
	fmt.Printf("    %s: %s of %s spent today, %s left\n", state.Data.State, state.Data.UsageDaily, state.Data.Limit, state.Data.LimitRemaining)
	if state.Data.UsageDaily == "" || state.Data.UsageDaily == "0" {
		return fmt.Errorf("the call has cost nothing: %+v", state)
	}
	say("calling with a key that is disabled")
	status, answer, err = t.call(ctx, disabled)
	if err != nil {
		return err
	}
	fmt.Printf("    POST /v1/chat/completions → %d\n    %s\n", status, answer)
	if status != http.StatusUnauthorized || !strings.Contains(answer, "api_key_disabled") {
		return fmt.Errorf("the call with a disabled key got %d; expected 401 api_key_disabled", status)
	}
	say("waiting until what was spent shows in status: kubectl wait --for=jsonpath='{.status.usage.day.spent}' lkkey/" + goodKey + " -n " + namespace)
	if _, err := s.Kubectl(ctx, "wait", "--for=jsonpath={.status.usage.day.spent}", "--timeout=60s", "lkkey/"+goodKey, "-n", namespace); err != nil {
		return err
	}
	keys, err := s.Kubectl(ctx, "get", "lkkey", "-n", namespace)
	if err != nil {
		return err
	}
	fmt.Printf("\n$ kubectl get lkkey -n %s\n%s\nOne call was let through and billed, one refused, as they should.\n", namespace, keys)
	return nil
}

// applySamples applies config/samples. They name the simulated provider at its default port; another port is put in its place.
func (t *tale) applySamples(ctx context.Context, dir string) error {
	const defaultAddress = "127.0.0.1:18080"
	rendered, err := t.stack.Kubectl(ctx, "kustomize", dir)
	if err != nil {
		return err
	}
	rendered = strings.ReplaceAll(rendered, defaultAddress, strings.TrimPrefix(t.stack.ProviderURL(), "http://"))
	path := filepath.Join(t.stack.Dir, "samples.yaml")
	if err := os.WriteFile(path, []byte(rendered), 0o600); err != nil {
		return fmt.Errorf("write the samples: %w", err)
	}
	_, err = t.stack.Kubectl(ctx, "apply", "-f", path)
	return err
}

func (t *tale) reveal(ctx context.Context, name string) (string, error) {
	out, err := t.stack.Latchkey(ctx, "reveal", name, "-n", namespace)
	return strings.TrimSpace(out), err
}

// keyState is what GET /v1/key says, as far as it is told here.
type keyState struct {
	Data struct {
		State          string      `json:"state"`
		UsageDaily     json.Number `json:"usage_daily"`
		Limit          json.Number `json:"limit"`
		LimitRemaining json.Number `json:"limit_remaining"`
	} `json:"data"`
}

func (t *tale) state(ctx context.Context, key string) (keyState, error) {
	status, answer, err := t.send(ctx, key, http.MethodGet, "/v1/key", nil)
	if err != nil {
		return keyState{}, err
	}
	var state keyState
	if err := json.Unmarshal([]byte(answer), &state); err != nil || status != http.StatusOK {
		return keyState{}, fmt.Errorf("GET /v1/key got %d: %s", status, answer)
	}
	return state, nil
}

func (t *tale) call(ctx context.Context, key string) (status int, answer string, err error) {
	body, err := json.Marshal(map[string]any{
		"model": model, "messages": []map[string]string{{"role": "user", "content": "Say hello."}},
	})
	if err != nil {
		return 0, "", fmt.Errorf("encode request: %w", err)
	}
	return t.send(ctx, key, http.MethodPost, "/v1/chat/completions", body)
}

func (t *tale) send(ctx context.Context, key, method, path string, body []byte) (status int, answer string, err error) {
	ctx, cancel := context.WithTimeout(ctx, replyTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, t.stack.GatewayURL()+path, bytes.NewReader(body))
	if err != nil {
		return 0, "", fmt.Errorf("make request: %w", err)
	}
	req.Header.Set("Authorization", "Bearer "+key)
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", fmt.Errorf("call the gateway: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	content, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return 0, "", fmt.Errorf("read the gateway's answer: %w", err)
	}
	return resp.StatusCode, string(bytes.TrimSpace(content)), nil
}

func (t *tale) showHowToGoOn() {
	s := t.stack
	bin, kubeconfig := fromHere(s.Binary("")), fromHere(s.Kubeconfig())
	fmt.Printf(`
Latchkey is up. In another terminal, from this directory:

  export KUBECONFIG=%[1]s PATH=%[2]s:$PATH LATCHKEY_GATEWAY=%[3]s
  export OPENAI_BASE_URL=%[3]s/v1 OPENAI_API_KEY=%[4]s

  curl -s $OPENAI_BASE_URL/models -H "Authorization: Bearer $OPENAI_API_KEY"
  curl -s $OPENAI_BASE_URL/chat/completions -H "Authorization: Bearer $OPENAI_API_KEY" \
    -H 'content-type: application/json' -d '{"model":"%[5]s","messages":[{"role":"user","content":"Say hello."}]}'

  curl -s %[3]s/v1/key -H "Authorization: Bearer $OPENAI_API_KEY"      # limits, spent, left

  kubectl latchkey try "Say hello."
  kubectl latchkey get keys -A                                         # who spends what
  kubectl latchkey why %[6]s -n %[7]s                            # would a request pass?
  kubectl latchkey create key checkout --app store --create-app -n %[7]s
  kubectl latchkey --help                                              # docs/story.md: a key's life, in one line each

  kubectl get latchkey -A
  kubectl describe lkkey %[6]s -n %[7]s
  kubectl patch lkkey %[6]s -n %[7]s --type merge -p '{"spec":{"state":"Disabled"}}'   # refused from now on
  kubectl patch lkkey %[6]s -n %[7]s --type merge -p '{"spec":{"state":"Enabled"}}'    # and back again
  kubectl patch lkkey %[6]s -n %[7]s --type merge -p '{"spec":{"budgets":{"daily":"0.000001"}}}'   # less than is spent: 429
  kubectl delete lkkey %[6]s -n %[7]s                                                  # for good

Gateway %[3]s · Envoy's admin %[8]s · logs in %[9]s · Ctrl-C stops everything.
`, kubeconfig, bin, s.GatewayURL(), t.key, model, goodKey, namespace, s.AdminURL(), filepath.Join(s.Options.Dir, "logs"))
}

func say(what string) { fmt.Printf("==> %s\n", what) }

// fromHere writes a path by $PWD where it is below the working directory, so that the line can be pasted and read.
func fromHere(path string) string {
	here, err := os.Getwd()
	if err != nil {
		return path
	}
	relative, err := filepath.Rel(here, path)
	if err != nil || !filepath.IsLocal(relative) {
		return path
	}
	return "$PWD/" + relative
}
