package metrics

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestEveryRequestHasOneLine reads the access log, which shows all requests here.
func TestEveryRequestHasOneLine(t *testing.T) {
	byID := map[string]string{}
	err := until(t.Context(), "a line for each request", func(context.Context) error {
		content, err := os.ReadFile(running.LogFile(enforcer))
		if err != nil {
			return err
		}
		clear(byID)
		lines := map[string]int{}
		for text := range strings.Lines(string(content)) {
			var line struct {
				Msg        string `json:"msg"`
				Level      string `json:"level"`
				RequestID  string `json:"requestId"`
				Reason     string `json:"reason"`
				Ending     string `json:"ending"`
				KeyPrefix  string `json:"keyPrefix"`
				Key        string `json:"key"`
				Estimated  bool   `json:"estimated"`
				Cost       string `json:"cost"`
				Status     int    `json:"status"`
				Capability string `json:"capability"`
			}
			if err := json.Unmarshal([]byte(text), &line); err != nil {
				return fmt.Errorf("read line %q: %w", text, err)
			}
			// The stack itself asks without a key, to see whether the gateway is there.
			if line.Msg != "request decided" && line.Msg != "request ended" || line.Reason == "no_key" {
				continue
			}
			lines[line.Msg]++
			if other, twice := byID[line.RequestID]; twice || line.RequestID == "" {
				t.Errorf("one request has two lines:\n%s%s", other, text)
			}
			byID[line.RequestID] = text
			if line.Status == 0 && line.Ending != "hung_up" {
				t.Errorf("no status: %s", text)
			}
			if (line.Key == "") != (line.KeyPrefix == "") || line.Msg == "request ended" && (line.Key != "canary-open" || line.Cost == "") {
				t.Errorf("it does not say whose request it was: %s", text)
			}
			if warn := line.Ending == "credential"; warn != (line.Level == "WARN") {
				t.Errorf("level %s: %s", line.Level, text)
			}
		}
		if diff := cmp.Diff(running.asked, lines); diff != "" {
			return fmt.Errorf("lines (-want +got):\n%s", diff)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestNoLogHoldsAKey reads what all processes have written.
func TestNoLogHoldsAKey(t *testing.T) {
	for _, process := range []string{manager, enforcer, "envoy", "provider"} {
		content, err := os.ReadFile(running.LogFile(process))
		if err != nil {
			t.Fatal(err)
		}
		for name, plaintext := range running.keys {
			if strings.Contains(string(content), plaintext[12:]) {
				t.Errorf("the log of %s holds key %s", process, name)
			}
		}
		if strings.Contains(string(content), running.stranger) {
			t.Errorf("the log of %s holds a key that is not known", process)
		}
	}
}
