package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// SystemPolicyName is the name of the one SystemPolicy that counts.
const SystemPolicyName = "default"

// LimitRange is the default of a limit for keys that do not set it, and the most that any key can have.
//
// +kubebuilder:validation:XValidation:rule="self.default <= self.max",message="default must not be above max: raise max or lower default",fieldPath=".default"
type LimitRange struct {
	// default applies to keys that do not set the limit.
	// +required
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=1000000000000
	Default *int64 `json:"default,omitempty"`

	// max is the most that any key can have; what is set above it is clamped to it.
	// +required
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=1000000000000
	Max *int64 `json:"max,omitempty"`
}

// SystemRateLimits are the defaults and caps of rate limits for all keys.
//
// +kubebuilder:validation:MinProperties=1
type SystemRateLimits struct {
	// requestsPerMinute of keys. Unset: default 60, max 6000.
	// +optional
	RequestsPerMinute *LimitRange `json:"requestsPerMinute,omitempty"`

	// tokensPerMinute of keys. Unset: default 100000, max 10000000.
	// +optional
	TokensPerMinute *LimitRange `json:"tokensPerMinute,omitempty"`
}

// RetainPolicy says whether keys may ask for secret.retention: Retain.
//
// +kubebuilder:validation:Enum=Forbidden;Allowed
type RetainPolicy string

// The two answers.
const (
	RetainForbidden RetainPolicy = "Forbidden"
	RetainAllowed   RetainPolicy = "Allowed"
)

// RevealPolicy says how plaintext keys are handed out.
//
// +kubebuilder:validation:MinProperties=1
type RevealPolicy struct {
	// ttl is how long a plaintext waits in its Secret to be taken, from "10s" to "720h". Unset: 24h. Once it has passed, the
	// plaintext is removed and the key has to be created anew.
	// +optional
	// +kubebuilder:validation:XValidation:rule="self.matches('^([0-9]+([.][0-9]+)?(ns|us|ms|s|m|h))+$') && duration(self) >= duration('10s') && duration(self) <= duration('720h')",message="ttl is a duration from 10s to 720h, such as 24h"
	TTL *metav1.Duration `json:"ttl,omitempty"`

	// retain is Forbidden (the default) or Allowed: whether a key may keep its plaintext in its Secret, for workloads that mount it.
	// +optional
	// +kubebuilder:default=Forbidden
	Retain RetainPolicy `json:"retain,omitempty"`
}

// UnpricedPolicy says what becomes of a request whose price is not known, under a budget.
//
// +kubebuilder:validation:Enum=Refuse;CountAsFree
type UnpricedPolicy string

// The two ways.
const (
	UnpricedRefuse      UnpricedPolicy = "Refuse"
	UnpricedCountAsFree UnpricedPolicy = "CountAsFree"
)

// LedgerFailurePolicy says what becomes of requests while the ledger cannot answer.
//
// +kubebuilder:validation:Enum=Refuse;Allow
type LedgerFailurePolicy string

// The two ways.
const (
	LedgerFailureRefuse LedgerFailurePolicy = "Refuse"
	LedgerFailureAllow  LedgerFailurePolicy = "Allow"
)

// BudgetPolicy says how budgets treat what they cannot know.
//
// +kubebuilder:validation:MinProperties=1
type BudgetPolicy struct {
	// unpricedModels is Refuse (the default) or CountAsFree: what becomes of a request, under a budget of its key or application, whose
	// model has no price for what it asks for.
	// +optional
	// +kubebuilder:default=Refuse
	UnpricedModels UnpricedPolicy `json:"unpricedModels,omitempty"`

	// onLedgerFailure is Refuse (the default) or Allow: what becomes of requests while the ledger cannot write, as with a full disk.
	// Allow lets them pass by what is in memory; should the enforcer end before the ledger can write again, their cost is forgotten.
	// +optional
	// +kubebuilder:default=Refuse
	OnLedgerFailure LedgerFailurePolicy `json:"onLedgerFailure,omitempty"`
}

// SystemPolicySpec holds what applies to all keys.
//
// +kubebuilder:validation:MinProperties=1
type SystemPolicySpec struct {
	// currency of all amounts of money, as an ISO 4217 code. Unset: USD. It is a label: changing it converts nothing.
	// +optional
	// +kubebuilder:default=USD
	// +kubebuilder:validation:MinLength=3
	// +kubebuilder:validation:MaxLength=3
	// +kubebuilder:validation:XValidation:rule="self.matches('^[A-Z]{3}$')",message="currency is an ISO 4217 code of three capital letters, such as USD or EUR"
	Currency string `json:"currency,omitempty"`

	// timeZone in which a budget's day and month begin, by its name in the IANA time zone database, such as Europe/Berlin. Unset: UTC.
	// +optional
	// +kubebuilder:default=UTC
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=64
	// +kubebuilder:validation:XValidation:rule="self.matches('^[A-Za-z0-9_+/-]+$') && self != 'Local'",message="timeZone is a name in the IANA time zone database, such as UTC or Europe/Berlin"
	TimeZone string `json:"timeZone,omitempty"`

	// rateLimits are the defaults and caps of rate limits for all keys.
	// +optional
	RateLimits *SystemRateLimits `json:"rateLimits,omitempty"`

	// budgets says how budgets treat what they cannot know.
	// +optional
	Budgets *BudgetPolicy `json:"budgets,omitempty"`

	// reveal says how plaintext keys are handed out.
	// +optional
	Reveal *RevealPolicy `json:"reveal,omitempty"`
}

// SystemPolicyStatus says how far the spec has been carried out.
//
// +kubebuilder:validation:MinProperties=1
type SystemPolicyStatus struct {
	// observedGeneration is the metadata.generation that this status speaks of. -1: no controller has looked at the object yet.
	// +optional
	// +kubebuilder:validation:Minimum=-1
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`

	// conditions are Ready, Enforced and, where something needs mending, Stalled.
	// +optional
	// +listType=map
	// +listMapKey=type
	// +kubebuilder:validation:MaxItems=8
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// SystemPolicy holds what applies to all keys of the installation. There is one, named "default"; without it the defaults of its fields apply.
//
// +genclient
// +genclient:nonNamespaced
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,path=systempolicies,shortName=lkpolicy,categories=latchkey
// +kubebuilder:printcolumn:name="Currency",type=string,JSONPath=`.spec.currency`
// +kubebuilder:printcolumn:name="Time Zone",type=string,JSONPath=`.spec.timeZone`
// +kubebuilder:printcolumn:name="RPM",type=integer,JSONPath=`.spec.rateLimits.requestsPerMinute.default`
// +kubebuilder:printcolumn:name="Max RPM",type=integer,JSONPath=`.spec.rateLimits.requestsPerMinute.max`
// +kubebuilder:printcolumn:name="TPM",type=integer,JSONPath=`.spec.rateLimits.tokensPerMinute.default`
// +kubebuilder:printcolumn:name="Max TPM",type=integer,JSONPath=`.spec.rateLimits.tokensPerMinute.max`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="self.metadata.name == 'default'",message="there is one SystemPolicy, and its metadata.name is default"
type SystemPolicy struct {
	metav1.TypeMeta `json:",inline"`
	// metadata is the standard object's metadata.
	// +optional
	metav1.ObjectMeta `json:"metadata,omitempty,omitzero"`

	// spec holds what applies to all keys.
	// +required
	Spec SystemPolicySpec `json:"spec,omitempty,omitzero"`

	// status says how far the spec has been carried out.
	// +optional
	// +kubebuilder:default={observedGeneration:-1}
	Status SystemPolicyStatus `json:"status,omitempty,omitzero"`
}

// SystemPolicyList is a list of SystemPolicies.
//
// +kubebuilder:object:root=true
type SystemPolicyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []SystemPolicy `json:"items"`
}
