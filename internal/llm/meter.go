package llm

import "github.com/latchkey-dev/latchkey/internal/policy"

// Metered is what an answer was found to have used.
type Metered struct {
	policy.Usage
	// Complete says that the answer came to its end in good order, error answers included.
	Complete bool
}
