package telemetry

import (
	"strings"
	"sync"
)

// mostModels is how many models' names of providers are told. A provider that makes up a new one for each answer shall not make as many
// series.
const mostModels = 500

// keyScheme begins every key.
const keyScheme = "lk_"

// names are the names seen so far, up to a number of them.
type names struct {
	most int

	mu   sync.RWMutex
	seen map[string]string
}

func newNames(most int) *names { return &names{most: most, seen: map[string]string{}} }

// name is the name as a string; empty when it is one too many, or could hold a key.
func (n *names) name(b []byte) string {
	if len(b) == 0 {
		return ""
	}
	n.mu.RLock()
	name, ok := n.seen[string(b)]
	n.mu.RUnlock()
	if ok {
		return name
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if name, ok := n.seen[string(b)]; ok {
		return name
	}
	if name = string(b); len(n.seen) >= n.most || strings.Contains(name, keyScheme) {
		return ""
	}
	n.seen[name] = name
	return name
}
