package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// gateway is the gateway, asked with a key as a caller asks it.
type gateway struct {
	base   string // without /v1
	key    string
	client *http.Client
}

// maxAnswer bounds what is read of answers that are no stream.
const maxAnswer = 4 << 20

func (g *gateway) do(ctx context.Context, method, path string, body []byte) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, g.base+path, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("ask the gateway: %w", err)
	}
	req.Header.Set("Authorization", "Bearer "+g.key)
	if len(body) > 0 {
		req.Header.Set("Content-Type", "application/json")
	}
	if strings.HasPrefix(path, "/v1/messages") {
		req.Header.Set("Anthropic-Version", "2023-06-01")
	}
	resp, err := g.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask the gateway: %w", err)
	}
	return resp, nil
}

// post sends a request whose answer is a stream. The caller closes it.
func (g *gateway) post(ctx context.Context, path string, body []byte) (io.ReadCloser, error) {
	resp, err := g.do(ctx, http.MethodPost, path, body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode == http.StatusOK {
		return resp.Body, nil
	}
	defer func() { _ = resp.Body.Close() }()
	return nil, refusalOf(resp)
}

// refusalOf is what a refusal says.
func refusalOf(resp *http.Response) error {
	content, _ := io.ReadAll(io.LimitReader(resp.Body, maxAnswer)) // what came says more than why no more came
	who := "the gateway answers"
	if after := resp.Header.Get("Retry-After"); after != "" {
		return fmt.Errorf("%s %s: %s (try again in %s s)", who, resp.Status, errorMessage(content), oneLine(after))
	}
	return fmt.Errorf("%s %s: %s", who, resp.Status, errorMessage(content))
}

// firstModel is the first of the models that the key may call.
func (g *gateway) firstModel(ctx context.Context) (string, error) {
	resp, err := g.do(ctx, http.MethodGet, "/v1/models", nil)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return "", refusalOf(resp)
	}
	var models struct {
		Data []struct {
			ID string `json:"id"`
		} `json:"data"`
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(&models); err != nil {
		return "", fmt.Errorf("read the models that the key may call: %w", err)
	}
	if len(models.Data) == 0 {
		return "", fmt.Errorf("the key may call no model: change that with kubectl latchkey set key NAME --model MODEL")
	}
	return models.Data[0].ID, nil
}

// keyInfo is what GET /v1/key answers, as far as it is of use here. null: unlimited.
type keyInfo struct {
	Data *struct {
		Limit     *json.Number `json:"limit"`
		Remaining *json.Number `json:"limit_remaining"`
		Reset     *string      `json:"limit_reset"`
		Daily     *json.Number `json:"usage_daily"`
		Monthly   *json.Number `json:"usage_monthly"`
	} `json:"data"`
}

// left is what is left of the key's budget, as the gateway's ledger knows it now.
func (g *gateway) left(ctx context.Context) string {
	const unknown = "left: "
	resp, err := g.do(ctx, http.MethodGet, "/v1/key", nil)
	if err != nil {
		return unknown + "the gateway did not tell: " + oneLine(err.Error())
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode == http.StatusNotFound {
		return unknown + "this gateway has no GET /v1/key and does not tell"
	}
	var info keyInfo
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(&info); err != nil || resp.StatusCode != http.StatusOK || info.Data == nil {
		return unknown + "the gateway did not tell (" + resp.Status + ")"
	}
	return leftText(&info)
}

// leftText puts what is left into words.
func leftText(info *keyInfo) string {
	d := info.Data
	text := "left: no budget"
	if d.Remaining != nil {
		text = "left: " + d.Remaining.String()
		if d.Limit != nil {
			text += " of " + d.Limit.String()
		}
		if d.Reset != nil && *d.Reset != "" {
			text += ", resets " + oneLine(*d.Reset)
		}
	}
	if d.Daily != nil {
		text += " · spent today: " + d.Daily.String()
	}
	if d.Monthly != nil {
		text += " · this month: " + d.Monthly.String()
	}
	return text
}
