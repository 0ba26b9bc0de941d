package v1alpha1

import (
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ApplicationReference names an Application in the key's own namespace.
type ApplicationReference struct {
	// name of the Application.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:XValidation:rule="self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')",message="applicationRef.name is the metadata.name of an Application in the same namespace: lower-case letters, digits, '-' and '.'"
	Name string `json:"name,omitempty"`
}

// SecretRetention says how long the plaintext of a key stays in its Secret.
//
// +kubebuilder:validation:Enum=UntilRevealed;Retain
type SecretRetention string

// The two retentions.
const (
	// SecretRetentionUntilRevealed removes the plaintext once it has been taken, or when the reveal TTL has passed.
	SecretRetentionUntilRevealed SecretRetention = "UntilRevealed"
	// SecretRetentionRetain keeps the plaintext in the Secret, for workloads that mount it.
	SecretRetentionRetain SecretRetention = "Retain"
)

// SecretSpec says where the key is put and how long its plaintext stays there.
type SecretSpec struct {
	// name of the Secret that the controller creates for the key, in the key's namespace. Unset: the APIKey's name followed by "-api-key".
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:XValidation:rule="self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')",message="secret.name is the name of a Secret: lower-case letters, digits, '-' and '.'"
	Name string `json:"name,omitempty"`

	// retention is UntilRevealed (the default): the plaintext is removed once taken, or when the SystemPolicy's reveal TTL has
	// passed; or Retain: it stays, for a workload that mounts the Secret. Retain needs the SystemPolicy's permission. A change from
	// Retain to UntilRevealed removes the plaintext after the TTL; a change the other way brings nothing back.
	// +optional
	// +kubebuilder:default=UntilRevealed
	Retention SecretRetention `json:"retention,omitempty"`
}

// RotationSpec replaces the secret of a key: the APIKey, its identity, its limits and what it has spent stay.
type RotationSpec struct {
	// generation is a number that you raise to rotate, by any amount: the key is then replaced by a new one, which is shown once like the
	// first. status.rotation.generation follows it. It is never lowered. A number given when the APIKey is created rotates nothing.
	// +required
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=2147483647
	Generation int64 `json:"generation,omitempty"`

	// overlap is how long the earlier key is honoured beside the new one, counted from the rotation: from "0s", at once refused, to
	// "720h". Unset: 24h. A change counts for an overlap that still runs; what has ended does not come back. One earlier key at the
	// most is honoured: to rotate again within the overlap ends the one before.
	// +optional
	// +kubebuilder:validation:XValidation:rule="self.matches('^([0-9]+([.][0-9]+)?(ns|us|ms|s|m|h))+$') && duration(self) <= duration('720h')",message="overlap is a duration from 0s to 720h, such as 24h"
	Overlap *metav1.Duration `json:"overlap,omitempty"`
}

// APIKeySpec declares one credential and what it may be used for.
//
// +kubebuilder:validation:XValidation:rule="self.applicationRef.name == oldSelf.applicationRef.name",message="applicationRef is immutable: a key belongs to one Application for good; create a new APIKey for the other Application and delete this one",fieldPath=".applicationRef"
// +kubebuilder:validation:XValidation:rule="has(self.secret) && has(self.secret.name) ? has(oldSelf.secret) && has(oldSelf.secret.name) && self.secret.name == oldSelf.secret.name : !has(oldSelf.secret) || !has(oldSelf.secret.name)",message="secret.name is immutable: the plaintext cannot be moved; create a new APIKey with the other name and delete this one",fieldPath=".secret.name"
// +kubebuilder:validation:XValidation:rule="!has(oldSelf.rotation) || (has(self.rotation) && self.rotation.generation >= oldSelf.rotation.generation)",message="rotation.generation may only rise, and rotation cannot be taken away: a rotation cannot be undone; write the present generation, or a higher one to rotate again",fieldPath=".rotation"
type APIKeySpec struct {
	// applicationRef names the Application, in the key's namespace, that all usage of the key is billed to. It cannot be changed.
	// +required
	ApplicationRef ApplicationReference `json:"applicationRef,omitempty,omitzero"`

	// displayName is the key's name for people, 2 to 50 characters.
	// +required
	DisplayName DisplayName `json:"displayName,omitempty"`

	// state is Enabled (the default) or Disabled. Disabled refuses the key's requests at once; nothing is lost by it.
	// +optional
	// +kubebuilder:default=Enabled
	State State `json:"state,omitempty"`

	// capabilities are what the key may be used for, at least one of TextGeneration, ImageGeneration, Embeddings, TextToSpeech,
	// SpeechToText and WebSearch. The Application's list bounds it.
	// +required
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=6
	Capabilities []Capability `json:"capabilities,omitempty"`

	// models says which models the key may call: {access: All}, or {access: List, names: […]}. The Application's scope bounds it.
	// +required
	Models ModelScope `json:"models,omitempty,omitzero"`

	// budgets caps what the key spends in a day and in a month. Unset: no cap but the Application's.
	// +optional
	Budgets *Budgets `json:"budgets,omitempty"`

	// rateLimits caps how much the key asks for in any 60 seconds. Unset: the SystemPolicy's defaults.
	// +optional
	RateLimits *RateLimits `json:"rateLimits,omitempty"`

	// expirationTime is the moment, in RFC 3339, from which the key is refused. Unset: never. A later time given afterwards makes the key valid again.
	// +optional
	ExpirationTime *metav1.Time `json:"expirationTime,omitempty"`

	// secret says where the key is put and how long its plaintext stays there.
	// +optional
	Secret *SecretSpec `json:"secret,omitempty"`

	// rotation replaces the key by a new one under the same APIKey, and honours the earlier one for a while. Unset: never rotated.
	// +optional
	Rotation *RotationSpec `json:"rotation,omitempty"`
}

// RotationStatus says how far rotations have been carried out.
//
// +kubebuilder:validation:MinProperties=1
type RotationStatus struct {
	// generation is the spec's rotation.generation that has been carried out.
	// +optional
	// +kubebuilder:validation:Minimum=1
	Generation int64 `json:"generation,omitempty"`

	// rotationTime is when the key was last replaced. Unset: it is the first.
	// +optional
	RotationTime *metav1.Time `json:"rotationTime,omitempty"`

	// previousKeyPrefix is the beginning of the earlier key, for people to tell it from the present one.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=32
	PreviousKeyPrefix string `json:"previousKeyPrefix,omitempty"`

	// previousEndTime is the moment from which the earlier key is refused.
	// +optional
	PreviousEndTime *metav1.Time `json:"previousEndTime,omitempty"`

	// previousKeyFingerprint binds the earlier key's hash in the Secret to this APIKey. Unset: no earlier key is honoured.
	// +optional
	// +kubebuilder:validation:MinLength=16
	// +kubebuilder:validation:MaxLength=64
	PreviousKeyFingerprint string `json:"previousKeyFingerprint,omitempty"`

	// pendingKeyFingerprint is the fingerprint of a key that is about to be put into the Secret.
	// +optional
	// +kubebuilder:validation:MinLength=16
	// +kubebuilder:validation:MaxLength=64
	PendingKeyFingerprint string `json:"pendingKeyFingerprint,omitempty"`
}

// EffectivePolicy is what applies to a key once its own spec, its Application's and the SystemPolicy's are put together.
type EffectivePolicy struct {
	// requestsPerMinute that applies to the key.
	// +optional
	// +kubebuilder:validation:Minimum=0
	RequestsPerMinute *int64 `json:"requestsPerMinute,omitempty"`

	// tokensPerMinute that applies to the key.
	// +optional
	// +kubebuilder:validation:Minimum=0
	TokensPerMinute *int64 `json:"tokensPerMinute,omitempty"`

	// concurrentRequests that applies to the key. Unset: no cap.
	// +optional
	// +kubebuilder:validation:Minimum=0
	ConcurrentRequests *int64 `json:"concurrentRequests,omitempty"`

	// dailyBudget is the tightest daily cap, the key's or the Application's. Unset: none.
	// +optional
	DailyBudget *Money `json:"dailyBudget,omitempty"`

	// monthlyBudget is the tightest monthly cap, the key's or the Application's. Unset: none.
	// +optional
	MonthlyBudget *Money `json:"monthlyBudget,omitempty"`

	// capabilities that both the key and its Application allow. Empty: none are left.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=6
	Capabilities []Capability `json:"capabilities,omitempty"`

	// models that both the key and its Application allow. access: List without names: none are left.
	// +optional
	Models *EffectiveModels `json:"models,omitempty"`
}

// EffectiveModels is a model scope as it comes out; unlike a spec's, its list can be empty.
type EffectiveModels struct {
	// access is All, or List for those in names.
	// +required
	Access ModelAccess `json:"access,omitempty"`

	// names are the models that may be called.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=256
	Names []ModelName `json:"names,omitempty"`
}

// APIKeyStatus says how far the spec has been carried out and what a caller meets.
//
// +kubebuilder:validation:MinProperties=1
type APIKeyStatus struct {
	// observedGeneration is the metadata.generation that this status speaks of. -1: no controller has looked at the object yet.
	// +optional
	// +kubebuilder:validation:Minimum=-1
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`

	// secretName is the Secret that holds the key until it is revealed, and its hash from then on.
	// Once set, the key is never minted again.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	SecretName string `json:"secretName,omitempty"`

	// keyPrefix is the beginning of the key, for people to tell keys apart.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=32
	KeyPrefix string `json:"keyPrefix,omitempty"`

	// keyFingerprint is the beginning of the SHA-256 of the key's hash. It binds the Secret to this APIKey: a Secret with another hash is not honoured.
	// +optional
	// +kubebuilder:validation:MinLength=16
	// +kubebuilder:validation:MaxLength=64
	KeyFingerprint string `json:"keyFingerprint,omitempty"`

	// rotation says how far rotations have been carried out. Unset: the key is the first, and no generation was ever given.
	// +optional
	Rotation *RotationStatus `json:"rotation,omitempty"`

	// revealDeadline is when a plaintext that nobody has taken is removed. Unset: it has been taken or removed, or is retained.
	// +optional
	RevealDeadline *metav1.Time `json:"revealDeadline,omitempty"`

	// effective is what applies once the key's spec, its Application's and the SystemPolicy's are put together.
	// +optional
	Effective *EffectivePolicy `json:"effective,omitempty"`

	// usage is what the key has used.
	// +optional
	Usage *Usage `json:"usage,omitempty"`

	// conditions are Ready, Usable, Enforced, Revealed, once the key was rotated Rotating and, where something needs mending, Stalled.
	// +optional
	// +listType=map
	// +listMapKey=type
	// +kubebuilder:validation:MaxItems=8
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// APIKey is one credential for LLM APIs, bound to one Application for good. The key itself is shown once, from the Secret that
// status.secretName names; a lost key is replaced by rotating it, or by deleting the APIKey and creating a new one.
//
// +genclient
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=lkkey,categories=latchkey
// +kubebuilder:printcolumn:name="Display Name",type=string,JSONPath=`.spec.displayName`
// +kubebuilder:printcolumn:name="Application",type=string,JSONPath=`.spec.applicationRef.name`
// +kubebuilder:printcolumn:name="Key",type=string,JSONPath=`.status.keyPrefix`
// +kubebuilder:printcolumn:name="Usable",type=string,JSONPath=`.status.conditions[?(@.type=="Usable")].reason`
// +kubebuilder:printcolumn:name="Enforced",type=string,JSONPath=`.status.conditions[?(@.type=="Enforced")].status`
// +kubebuilder:printcolumn:name="Revealed",type=string,priority=1,JSONPath=`.status.conditions[?(@.type=="Revealed")].reason`
// +kubebuilder:printcolumn:name="RPM",type=integer,JSONPath=`.status.effective.requestsPerMinute`
// +kubebuilder:printcolumn:name="TPM",type=integer,JSONPath=`.status.effective.tokensPerMinute`
// +kubebuilder:printcolumn:name="Day Spent",type=string,JSONPath=`.status.usage.day.spent`
// +kubebuilder:printcolumn:name="Daily",type=string,JSONPath=`.status.effective.dailyBudget`
// +kubebuilder:printcolumn:name="Month Spent",type=string,JSONPath=`.status.usage.month.spent`
// +kubebuilder:printcolumn:name="Monthly",type=string,JSONPath=`.status.effective.monthlyBudget`
// +kubebuilder:printcolumn:name="Last Used",type=date,JSONPath=`.status.usage.lastUsedTime`
// +kubebuilder:printcolumn:name="Expires",type=string,priority=1,JSONPath=`.spec.expirationTime`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="size(self.metadata.name) <= 63",message="metadata.name of an APIKey has at most 63 characters"
type APIKey struct {
	metav1.TypeMeta `json:",inline"`
	// metadata is the standard object's metadata.
	// +optional
	metav1.ObjectMeta `json:"metadata,omitempty,omitzero"`

	// spec declares the credential and what it may be used for.
	// +required
	Spec APIKeySpec `json:"spec,omitempty,omitzero"`

	// status says how far the spec has been carried out and what a caller meets.
	// +optional
	// +kubebuilder:default={observedGeneration:-1}
	Status APIKeyStatus `json:"status,omitempty,omitzero"`
}

// APIKeyList is a list of APIKeys.
//
// +kubebuilder:object:root=true
type APIKeyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []APIKey `json:"items"`
}

// SecretName is the name of the Secret that holds the key: the spec's, else the APIKey's name followed by "-api-key".
func (k *APIKey) SecretName() string {
	if k.Spec.Secret != nil && k.Spec.Secret.Name != "" {
		return k.Spec.Secret.Name
	}
	return k.Name + "-api-key"
}

// Retention is the spec's secret.retention, UntilRevealed when unset.
func (k *APIKey) Retention() SecretRetention {
	if k.Spec.Secret != nil && k.Spec.Secret.Retention != "" {
		return k.Spec.Secret.Retention
	}
	return SecretRetentionUntilRevealed
}

// DefaultOverlap is how long an earlier key is honoured where spec.rotation.overlap is unset.
const DefaultOverlap = 24 * time.Hour

// Overlap is the spec's rotation.overlap, DefaultOverlap when unset.
func (k *APIKey) Overlap() time.Duration {
	if k.Spec.Rotation != nil && k.Spec.Rotation.Overlap != nil {
		return k.Spec.Rotation.Overlap.Duration
	}
	return DefaultOverlap
}

// RotationGeneration is the spec's rotation.generation, 0 when unset.
func (k *APIKey) RotationGeneration() int64 {
	if k.Spec.Rotation == nil {
		return 0
	}
	return k.Spec.Rotation.Generation
}
