package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// State says whether an object is in force.
//
// +kubebuilder:validation:Enum=Enabled;Disabled
type State string

// The states of an Application or an APIKey.
const (
	StateEnabled  State = "Enabled"
	StateDisabled State = "Disabled"
)

// Capability is something that a key may be used for.
//
// +kubebuilder:validation:Enum=TextGeneration;ImageGeneration;Embeddings;TextToSpeech;SpeechToText;WebSearch
type Capability string

// The capabilities that a key can be granted.
const (
	// CapabilityTextGeneration covers chat completions, completions, responses, messages, token counting and moderation.
	CapabilityTextGeneration Capability = "TextGeneration"
	// CapabilityImageGeneration covers creating, editing and varying images.
	CapabilityImageGeneration Capability = "ImageGeneration"
	// CapabilityEmbeddings covers text embeddings.
	CapabilityEmbeddings Capability = "Embeddings"
	// CapabilityTextToSpeech covers audio made from text.
	CapabilityTextToSpeech Capability = "TextToSpeech"
	// CapabilitySpeechToText covers transcription and translation of audio.
	CapabilitySpeechToText Capability = "SpeechToText"
	// CapabilityWebSearch covers web search tools and options inside another request.
	CapabilityWebSearch Capability = "WebSearch"
)

// ModelAccess says whether a scope covers every model or a list of them.
//
// +kubebuilder:validation:Enum=All;List
type ModelAccess string

// The two forms of a model scope.
const (
	// ModelAccessAll covers every Model, those that are added later too.
	ModelAccessAll ModelAccess = "All"
	// ModelAccessList covers the models named, and no other.
	ModelAccessList ModelAccess = "List"
)

// ModelName is the name that callers send in a request's "model" field.
//
// +kubebuilder:validation:MinLength=1
// +kubebuilder:validation:MaxLength=200
// +kubebuilder:validation:XValidation:rule="self.matches('^[A-Za-z0-9]([A-Za-z0-9._:/@+-]*[A-Za-z0-9])?$')",message="a model name is made of letters, digits and ._:/@+- and begins and ends with a letter or a digit, for example gpt-5-mini or meta-llama/Llama-3.1-8B"
type ModelName string

// ModelScope says which models may be called.
//
// +kubebuilder:validation:XValidation:rule="self.access == 'List' ? has(self.names) : !has(self.names)",message="names goes with access: List, where it must hold at least one model; with access: All leave names out",fieldPath=".names"
type ModelScope struct {
	// access is All for every model, also those added later, or List for those in names.
	// +required
	Access ModelAccess `json:"access,omitempty"`

	// names are the models that may be called, by the names callers use. At least one, with access: List only.
	// A name without a Model behind it is kept, and is callable as soon as such a Model appears.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=256
	Names []ModelName `json:"names,omitempty"`
}

// Money is an amount in the currency of the SystemPolicy, as a decimal string such as "12.50": at most 9 digits
// before the point and at most 9 behind it. It is a string because a JSON number is a float to many tools.
//
// +kubebuilder:validation:MinLength=1
// +kubebuilder:validation:MaxLength=19
// +kubebuilder:validation:XValidation:rule="self.matches('^[0-9]{1,9}([.][0-9]{1,9})?$')",message="an amount of money is a decimal string that is not negative, with at most 9 digits before the point and at most 9 behind it, such as \"12.50\"; currency, sign, exponent and thousands separators are left out"
type Money string

// BudgetEnforcement says how a budget treats requests that are still under way.
//
// +kubebuilder:validation:Enum=UntilReached;Strict
type BudgetEnforcement string

// The ways to enforce a budget.
const (
	// BudgetEnforcementUntilReached refuses once what is spent and reserved has reached the cap. A request reserves what
	// similar ones really cost of late, so a cap can be passed by a bounded amount.
	BudgetEnforcementUntilReached BudgetEnforcement = "UntilReached"
	// BudgetEnforcementStrict reserves a request's worst case: the cap is never passed, and requests can be refused while
	// less than the cap is spent.
	BudgetEnforcementStrict BudgetEnforcement = "Strict"
)

// Budgets caps what may be spent. The caps are independent of each other; whichever is reached first refuses.
//
// +kubebuilder:validation:MinProperties=1
// +kubebuilder:validation:XValidation:rule="has(self.daily) || has(self.monthly)",message="budgets holds daily, monthly or both; leave budgets out for no cap"
type Budgets struct {
	// daily caps the spend of a calendar day in the SystemPolicy's time zone. Unset: no daily cap. "0" refuses everything.
	// +optional
	Daily *Money `json:"daily,omitempty"`

	// monthly caps the spend of a calendar month in the SystemPolicy's time zone. Unset: no monthly cap. "0" refuses everything.
	// +optional
	Monthly *Money `json:"monthly,omitempty"`

	// enforcement is UntilReached (the default), which refuses once the cap is reached, or Strict, which reserves each
	// request's worst case beforehand and so never passes the cap.
	// +optional
	// +kubebuilder:default=UntilReached
	Enforcement BudgetEnforcement `json:"enforcement,omitempty"`
}

// RateLimits caps how much may be asked for in any 60 seconds.
//
// +kubebuilder:validation:MinProperties=1
type RateLimits struct {
	// requestsPerMinute caps the requests in any 60 seconds. Unset on a key: the SystemPolicy's default. Above the
	// SystemPolicy's maximum: clamped to it, which status.effective shows. 0 refuses everything.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=1000000000
	RequestsPerMinute *int64 `json:"requestsPerMinute,omitempty"`

	// tokensPerMinute caps the tokens, of input and output together, in any 60 seconds. Unset on a key: the SystemPolicy's
	// default. Above the SystemPolicy's maximum: clamped to it, which status.effective shows. 0 refuses everything.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=1000000000000
	TokensPerMinute *int64 `json:"tokensPerMinute,omitempty"`

	// concurrentRequests caps the requests that are under way at one time. Unset: no cap. 0 refuses everything.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=1000000
	ConcurrentRequests *int64 `json:"concurrentRequests,omitempty"`
}

// UsageTotals is what was used in one day or month.
type UsageTotals struct {
	// period is the day or the month, in the SystemPolicy's time zone: 2026-11-23 or 2026-11.
	// +required
	// +kubebuilder:validation:MinLength=7
	// +kubebuilder:validation:MaxLength=10
	Period string `json:"period,omitempty"`

	// requests that providers answered, streams that broke off included.
	// +optional
	// +kubebuilder:validation:Minimum=0
	Requests int64 `json:"requests,omitempty"`

	// tokens of input and output together.
	// +optional
	// +kubebuilder:validation:Minimum=0
	Tokens int64 `json:"tokens,omitempty"`

	// spent is the price of it, in the SystemPolicy's currency.
	// +optional
	Spent Spend `json:"spent,omitempty"`

	// estimated is the part of spent that providers did not report, and that was reckoned from what was delivered. Unset: none.
	// +optional
	Estimated Spend `json:"estimated,omitempty"`
}

// Usage is what was used, as the enforcer's ledger last reported it. It can be some seconds behind, and minutes where thousands of keys
// are busy; GET /v1/key on the gateway, with the key itself, tells what the ledger knows now.
//
// +kubebuilder:validation:MinProperties=1
type Usage struct {
	// day is the latest day in which something was used.
	// +optional
	Day *UsageTotals `json:"day,omitempty"`

	// month is the latest month in which something was used.
	// +optional
	Month *UsageTotals `json:"month,omitempty"`

	// lastUsedTime is when a request was last answered.
	// +optional
	LastUsedTime *metav1.Time `json:"lastUsedTime,omitempty"`

	// blockedTime is when a budget was found to be used up. Unset: none is.
	// +optional
	BlockedTime *metav1.Time `json:"blockedTime,omitempty"`
}

// Spend is an amount that was spent, as a decimal string such as "12.5".
//
// +kubebuilder:validation:MinLength=1
// +kubebuilder:validation:MaxLength=20
// +kubebuilder:validation:XValidation:rule="self.matches('^[0-9]{1,10}([.][0-9]{1,9})?$')",message="an amount that was spent is a decimal string that is not negative"
type Spend string

// DisplayName is a name for people, of 2 to 50 characters. The upper bound is a rule and MaxLength lies above it, since the
// API server's own message for MaxLength speaks of bytes, which it does not count.
//
// +kubebuilder:validation:MinLength=2
// +kubebuilder:validation:MaxLength=200
// +kubebuilder:validation:XValidation:rule="size(self) <= 50",message="a display name has 2 to 50 characters: shorten it"
// +kubebuilder:validation:XValidation:rule="!self.matches(r'^[\\s\\pZ]|[\\s\\pZ]$|[\\p{Cc}\\p{Zl}\\p{Zp}]')",message="a display name neither begins nor ends with a space and holds no control characters"
type DisplayName string
