package policy

import (
	"crypto/sha256"
	"encoding/hex"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/latchkey-dev/latchkey/internal/money"
)

// KeyHash is the SHA-256 of a plaintext key.
type KeyHash [sha256.Size]byte

// String is the hash in lower-case hex.
func (h KeyHash) String() string { return hex.EncodeToString(h[:]) }

// State says whether a key or an application is in force. The zero value is not Enabled, so that what is forgotten is refused.
type State uint8

// The states.
const (
	StateUnknown State = iota
	StateEnabled
	StateDisabled
)

// Format is the wire format that a provider speaks.
type Format uint8

// The wire formats.
const (
	FormatUnknown Format = iota
	FormatOpenAI
	FormatAnthropic
)

// String is the format's name as the API spells it.
func (f Format) String() string {
	switch f {
	case FormatOpenAI:
		return "OpenAI"
	case FormatAnthropic:
		return "Anthropic"
	case FormatUnknown:
	}
	return "unknown"
}

// Capability is something that a key may be used for.
type Capability uint8

// The capabilities, in the order in which they are listed everywhere.
const (
	TextGeneration Capability = iota
	ImageGeneration
	Embeddings
	TextToSpeech
	SpeechToText
	WebSearch
	capabilityCount
)

var capabilityNames = [capabilityCount]string{
	"TextGeneration", "ImageGeneration", "Embeddings", "TextToSpeech", "SpeechToText", "WebSearch",
}

// String is the capability's name as the API spells it.
func (c Capability) String() string {
	if c >= capabilityCount {
		return "unknown"
	}
	return capabilityNames[c]
}

// ParseCapability is the inverse of String.
func ParseCapability(s string) (Capability, bool) {
	i := slices.Index(capabilityNames[:], s)
	return Capability(max(i, 0)), i >= 0
}

// Capabilities is a set of capabilities. The zero value is the empty set.
type Capabilities uint8

// AllCapabilities holds every capability.
const AllCapabilities Capabilities = 1<<capabilityCount - 1

// CapabilitiesOf is the set of those given.
func CapabilitiesOf(cs ...Capability) Capabilities {
	var set Capabilities
	for _, c := range cs {
		set |= 1 << c
	}
	return set
}

// Has reports whether c is in the set.
func (s Capabilities) Has(c Capability) bool { return s&(1<<c) != 0 }

// Missing is what want holds and s does not.
func (s Capabilities) Missing(want Capabilities) Capabilities { return want &^ s }

// List is the set's members, in the order of the constants.
func (s Capabilities) List() []Capability {
	list := make([]Capability, 0, int(capabilityCount))
	for c := range capabilityCount {
		if s.Has(c) {
			list = append(list, c)
		}
	}
	return list
}

// String is the members' names, with commas between them.
func (s Capabilities) String() string {
	names := make([]string, 0, int(capabilityCount))
	for _, c := range s.List() {
		names = append(names, c.String())
	}
	return strings.Join(names, ", ")
}

// ModelScope says which models may be called. The zero value allows none.
type ModelScope struct {
	All   bool
	Names []string // sorted, without duplicates; of no meaning when All
}

// Allows reports whether the scope covers the model.
func (s ModelScope) Allows(model string) bool {
	if s.All {
		return true
	}
	_, found := slices.BinarySearch(s.Names, model)
	return found
}

// Intersect is the scope that both cover.
func (s ModelScope) Intersect(t ModelScope) ModelScope {
	switch {
	case s.All:
		return t
	case t.All:
		return s
	}
	var both []string
	for _, name := range s.Names {
		if t.Allows(name) {
			both = append(both, name)
		}
	}
	return ModelScope{Names: both}
}

// ScopeOf is the scope of the models named.
func ScopeOf(names ...string) ModelScope {
	names = slices.Clone(names)
	slices.Sort(names)
	return ModelScope{Names: slices.Compact(names)}
}

// Limit is a count per rolling minute, or Unset. 0 refuses everything.
type Limit int64

// Unset is a limit that is not set at this place.
const Unset Limit = -1

// IsSet reports whether the limit is set.
func (l Limit) IsSet() bool { return l >= 0 }

// Tighter is the lower of two limits, where one that is unset does not count.
func (l Limit) Tighter(m Limit) Limit {
	switch {
	case !l.IsSet():
		return m
	case !m.IsSet():
		return l
	}
	return min(l, m)
}

// RateLimits are the limits of any 60 seconds, and of any one moment.
type RateLimits struct {
	RequestsPerMinute  Limit
	TokensPerMinute    Limit // input and output together
	ConcurrentRequests Limit // under way at one time
}

// NoRateLimits sets none.
func NoRateLimits() RateLimits {
	return RateLimits{RequestsPerMinute: Unset, TokensPerMinute: Unset, ConcurrentRequests: Unset}
}

// NoBudget is a budget that is not set at this place.
const NoBudget money.Amount = -1

// Enforcement says how a budget treats requests that are under way.
type Enforcement uint8

// The ways to enforce a budget.
const (
	UntilReached Enforcement = iota
	Strict
)

// Budgets cap the spend of a calendar day and month in the system's time zone. NoBudget: no cap. 0 refuses everything.
type Budgets struct {
	Daily       money.Amount
	Monthly     money.Amount
	Enforcement Enforcement
}

// NoBudgets sets none.
func NoBudgets() Budgets { return Budgets{Daily: NoBudget, Monthly: NoBudget} }

// Range is the default of a limit for keys that do not set it, and the most that any key can have.
type Range struct {
	Default Limit
	Max     Limit
}

// Unpriced says what becomes of a request whose price is not known, under a budget.
type Unpriced uint8

// The two ways. The zero value refuses.
const (
	UnpricedRefuse Unpriced = iota
	UnpricedFree
)

// OnFailure says what becomes of requests while the ledger cannot answer.
type OnFailure uint8

// The two ways. The zero value refuses.
const (
	OnFailureRefuse OnFailure = iota
	OnFailureAllow            // rate limits still hold, from memory; spend is counted once the ledger answers again
)

// System is what applies to all keys.
type System struct {
	Currency          string // ISO 4217
	TimeZone          string // IANA
	RequestsPerMinute Range
	TokensPerMinute   Range
	UnpricedModels    Unpriced
	LedgerFailure     OnFailure
}

// Application is who is billed, with the ceilings for all its keys.
type Application struct {
	UID          string
	Namespace    string
	Name         string
	DisplayName  string
	State        State
	Capabilities Capabilities
	Models       ModelScope
	Limits       RateLimits
	Budgets      Budgets
}

// ID is the name under which keys find the application: namespace/name.
func (a *Application) ID() string { return a.Namespace + "/" + a.Name }

// Credential is one secret by which a key can be presented.
type Credential struct {
	Hash   KeyHash
	Prefix string    // the first characters of the plaintext
	Ends   time.Time // the moment from which this secret is refused, whatever the key's own state; zero: never
}

// EndedAt reports whether this secret is refused at that moment, the key having been rotated.
func (c *Credential) EndedAt(now time.Time) bool { return !c.Ends.IsZero() && !now.Before(c.Ends) }

// Key is one APIKey.
type Key struct {
	UID          string
	Namespace    string
	Name         string
	DisplayName  string
	Credentials  []Credential
	Application  string // name of the Application in Namespace
	State        State
	Expires      time.Time // the moment from which the key is refused; zero: never
	Capabilities Capabilities
	Models       ModelScope
	Limits       RateLimits
	Budgets      Budgets
}

// Credential is the one of that hash; nil: the key has none.
func (k *Key) Credential(hash KeyHash) *Credential {
	for i := range k.Credentials {
		if k.Credentials[i].Hash == hash {
			return &k.Credentials[i]
		}
	}
	return nil
}

// ApplicationID is the ID of the key's application.
func (k *Key) ApplicationID() string { return k.Namespace + "/" + k.Application }

// ExpiredAt reports whether the key is refused at that moment for having expired.
func (k *Key) ExpiredAt(now time.Time) bool { return !k.Expires.IsZero() && !now.Before(k.Expires) }

// Model is something that callers can name in a request.
type Model struct {
	Name            string
	Capabilities    Capabilities
	Provider        string
	Format          Format // of the provider
	UpstreamName    string
	MaxInputTokens  int64   // 0: not known
	MaxOutputTokens int64   // 0: not known
	Prices          *Prices // nil: none
	Created         time.Time
}

// Provider is an upstream API. It concerns Envoy only; enforcers know providers by name.
type Provider struct {
	Name             string
	Format           Format
	Scheme           string // http or https
	Host             string // name or address, without port and brackets
	Port             uint16
	BasePath         string // what takes the place of /v1 in the canonical path (/v1/chat/completions, /v1/messages); "" or "/…" without a slash at the end
	CredentialHeader string // lower case; empty: no credential
	CredentialPrefix string // "Bearer " or empty
	Credential       Sensitive
	CABundle         string // PEM; empty: the system's roots
	ServerName       string // for SNI and verification, https only
	ConnectTimeout   time.Duration
	RequestTimeout   time.Duration // 0: none
	IdleTimeout      time.Duration // 0: none
	RetryAttempts    int32
}

// Sensitive is a string that does not show itself when printed, logged or marshalled.
type Sensitive string

const redacted = "[redacted]"

// String hides the value.
func (Sensitive) String() string { return redacted }

// GoString hides the value from %#v.
func (Sensitive) GoString() string { return redacted }

// LogValue hides the value from slog.
func (Sensitive) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText hides the value from encoders.
func (Sensitive) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// Reveal is the value itself.
func (s Sensitive) Reveal() string { return string(s) }
