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
	say("calling with a key that is disabled")
	status, answer, err = t.call(ctx, disabled)
	if err != nil {
		return err
	}
	fmt.Printf("    POST /v1/chat/completions → %d\n    %s\n", status, answer)
	if status != http.StatusUnauthorized || !strings.Contains(answer, "api_key_disabled") {
		return fmt.Errorf("the call with a disabled key got %d; expected 401 api_key_disabled", status)
	}
	keys, err := s.Kubectl(ctx, "get", "lkkey", "-n", namespace)
	if err != nil {
		return err
	}
	fmt.Printf("\n$ kubectl get lkkey -n %s\n%s\nOne call was let through, one refused, as they should.\n", namespace, keys)
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

func (t *tale) call(ctx context.Context, key string) (status int, answer string, err error) {
	ctx, cancel := context.WithTimeout(ctx, replyTimeout)
	defer cancel()
	body, err := json.Marshal(map[string]any{
		"model": model, "messages": []map[string]string{{"role": "user", "content": "Say hello."}},
	})
	if err != nil {
		return 0, "", fmt.Errorf("encode request: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, t.stack.GatewayURL()+"/v1/chat/completions", bytes.NewReader(body))
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

  export KUBECONFIG=%[1]s PATH=%[2]s:$PATH
  export OPENAI_BASE_URL=%[3]s/v1 OPENAI_API_KEY=%[4]s

  curl -s $OPENAI_BASE_URL/models -H "Authorization: Bearer $OPENAI_API_KEY"
  curl -s $OPENAI_BASE_URL/chat/completions -H "Authorization: Bearer $OPENAI_API_KEY" \
    -H 'content-type: application/json' -d '{"model":"%[5]s","messages":[{"role":"user","content":"Say hello."}]}'

  kubectl get latchkey -A
  kubectl describe lkkey %[6]s -n %[7]s
  kubectl patch lkkey %[6]s -n %[7]s --type merge -p '{"spec":{"state":"Disabled"}}'   # refused from now on
  kubectl patch lkkey %[6]s -n %[7]s --type merge -p '{"spec":{"state":"Enabled"}}'    # and back again
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
