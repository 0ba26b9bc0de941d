package enforce

import (
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/latchkey-dev/latchkey/internal/llm"
	"github.com/latchkey-dev/latchkey/internal/policy"
)

// The paging of Anthropic's list.
const (
	defaultPage = 20
	maxPage     = 1000
)

type openAIModel struct {
	ID      string `json:"id"`
	Object  string `json:"object"`
	Created int64  `json:"created"`
	OwnedBy string `json:"owned_by"`
}

type anthropicModel struct {
	Type        string `json:"type"`
	ID          string `json:"id"`
	DisplayName string `json:"display_name"`
	CreatedAt   string `json:"created_at"`
}

// listModels answers which models the key may call: those in scope that can do something the key may do.
func (x *Exchange) listModels() *Answer {
	granted := x.key.Capabilities & x.app.Capabilities
	var mine []*policy.Model
	for _, m := range x.engine.table.allModels() {
		if x.mayCall(m) && m.Capabilities&granted != 0 {
			mine = append(mine, m)
		}
	}
	if x.route.ModelID != "" {
		i := slices.IndexFunc(mine, func(m *policy.Model) bool { return m.Name == x.route.ModelID })
		if i < 0 {
			return x.refuse(modelNotFound(x.route.ModelID))
		}
		if x.dialect == llm.Anthropic {
			return x.listed(anthropicOf(mine[i]))
		}
		return x.listed(openAIOf(mine[i]))
	}
	if x.dialect == llm.Anthropic {
		return x.anthropicPage(mine)
	}
	list := make([]openAIModel, 0, len(mine))
	for _, m := range mine {
		list = append(list, openAIOf(m))
	}
	return x.listed(struct {
		Object string        `json:"object"`
		Data   []openAIModel `json:"data"`
	}{"list", list})
}

// anthropicPage is the page of the list that the query asks for, as https://docs.anthropic.com/en/api/models-list has it. An ID that has
// gone since the last page keeps its place in the order.
func (x *Exchange) anthropicPage(mine []*policy.Model) *Answer {
	query, err := url.ParseQuery(strings.TrimPrefix(x.query, "?"))
	if err != nil {
		return x.refuse(badRequest("bad_request", "", "the query cannot be read: percent-encode it"))
	}
	limit := defaultPage
	if given := query.Get("limit"); given != "" {
		if limit, err = strconv.Atoi(given); err != nil || limit < 1 || limit > maxPage {
			return x.refuse(badRequest("bad_request", "limit", "limit must be a number from 1 to 1000"))
		}
	}
	after, before := query.Get("after_id"), query.Get("before_id")
	if after != "" && before != "" {
		return x.refuse(badRequest("bad_request", "before_id", "after_id and before_id exclude each other: send one of them"))
	}
	at := func(id string) (int, bool) {
		return slices.BinarySearchFunc(mine, id, func(m *policy.Model, id string) int { return strings.Compare(m.Name, id) })
	}
	var more bool
	if before != "" {
		end, _ := at(before)
		begin := max(end-limit, 0)
		more, mine = begin > 0, mine[begin:end]
	} else {
		begin := 0
		if after != "" {
			var found bool
			if begin, found = at(after); found {
				begin++
			}
		}
		end := min(begin+limit, len(mine))
		more, mine = end < len(mine), mine[begin:end]
	}
	page := struct {
		Data    []anthropicModel `json:"data"`
		HasMore bool             `json:"has_more"`
		FirstID *string          `json:"first_id"`
		LastID  *string          `json:"last_id"`
	}{Data: make([]anthropicModel, 0, len(mine)), HasMore: more}
	for _, m := range mine {
		page.Data = append(page.Data, anthropicOf(m))
	}
	if len(mine) > 0 {
		page.FirstID, page.LastID = &mine[0].Name, &mine[len(mine)-1].Name
	}
	return x.listed(page)
}

func (x *Exchange) listed(body any) *Answer {
	answer := x.reply(http.StatusOK, body)
	answer.Reason = "models_listed"
	return answer
}

func openAIOf(m *policy.Model) openAIModel {
	return openAIModel{m.Name, "model", unix(m.Created), m.Provider}
}

func anthropicOf(m *policy.Model) anthropicModel {
	return anthropicModel{"model", m.Name, m.Name, m.Created.UTC().Format(time.RFC3339)}
}

func unix(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}
