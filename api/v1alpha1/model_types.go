package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ProviderReference names a Provider.
type ProviderReference struct {
	// name of the Provider.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:XValidation:rule="self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')",message="providerRef.name is the metadata.name of a Provider: lower-case letters, digits, '-' and '.'"
	Name string `json:"name,omitempty"`
}

// ModelSpec says what callers name, and where their requests go.
type ModelSpec struct {
	// name is what callers send in a request's "model" field. Unset: metadata.name. Set it where the name holds characters that
	// metadata.name cannot, such as capitals, ':' or '/'. If two Models claim one name, the older has it.
	// +optional
	Name ModelName `json:"name,omitempty"`

	// capabilities are what the model can do. WebSearch beside TextGeneration says that web search may be used with it.
	// +required
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=6
	Capabilities []Capability `json:"capabilities,omitempty"`

	// providerRef names the Provider that serves the model.
	// +required
	ProviderRef ProviderReference `json:"providerRef,omitempty,omitzero"`

	// upstreamName is the provider's own name for the model, put in place of the caller's. Unset: the same name.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=200
	// +kubebuilder:validation:XValidation:rule="!self.matches('[[:space:][:cntrl:]]')",message="upstreamName holds no spaces and no control characters"
	UpstreamName string `json:"upstreamName,omitempty"`

	// maxInputTokens is the most that a request to the model can hold, in tokens. It bounds the cost of requests that refer to what lies
	// outside of them, such as files and earlier answers, for keys with a Strict budget.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=100000000
	MaxInputTokens *int64 `json:"maxInputTokens,omitempty"`

	// maxOutputTokens is the most that one answer of the model can hold, in tokens. It bounds the cost of requests that set no maximum of
	// their own, for keys with a Strict budget.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=100000000
	MaxOutputTokens *int64 `json:"maxOutputTokens,omitempty"`

	// prices are what the model costs, in the SystemPolicy's currency. Unset: under a budget the SystemPolicy decides whether requests
	// are refused or free.
	// +optional
	Prices *Prices `json:"prices,omitempty"`
}

// Prices are what a model costs, in the units in which providers publish them. A request's cost is summed exactly and rounded up once to
// 10⁻⁹ of the currency.
//
// +kubebuilder:validation:MinProperties=1
type Prices struct {
	// perMillionTokens holds the prices of 1,000,000 tokens.
	// +optional
	PerMillionTokens *TokenPrices `json:"perMillionTokens,omitempty"`

	// perImage holds the prices of one image made, for models that do not report tokens. The first entry that fits the request's size and quality counts.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=32
	PerImage []ImagePrice `json:"perImage,omitempty"`

	// perMillionCharacters is the price of 1,000,000 characters of text to speak, for models that do not report tokens.
	// +optional
	PerMillionCharacters *Money `json:"perMillionCharacters,omitempty"`

	// perMinute is the price of a minute of audio transcribed, billed by the millisecond, for models that do not report tokens.
	// +optional
	PerMinute *Money `json:"perMinute,omitempty"`

	// perSearch is the price of one web search call.
	// +optional
	PerSearch *Money `json:"perSearch,omitempty"`
}

// TokenPrices are the prices of 1,000,000 tokens by their kind.
//
// +kubebuilder:validation:MinProperties=1
type TokenPrices struct {
	// input is the price of input tokens.
	// +optional
	Input *Money `json:"input,omitempty"`

	// cachedInput is the price of input tokens read from the provider's cache. Unset: as input.
	// +optional
	CachedInput *Money `json:"cachedInput,omitempty"`

	// cacheWrite is the price of input tokens written to the provider's cache. Unset: as input.
	// +optional
	CacheWrite *Money `json:"cacheWrite,omitempty"`

	// cacheWriteOneHour is the price of input tokens written to the provider's cache for an hour. Unset: as cacheWrite.
	// +optional
	CacheWriteOneHour *Money `json:"cacheWriteOneHour,omitempty"`

	// output is the price of output tokens, reasoning included.
	// +optional
	Output *Money `json:"output,omitempty"`

	// audioInput is the price of input tokens of audio. Unset: as input.
	// +optional
	AudioInput *Money `json:"audioInput,omitempty"`

	// audioOutput is the price of output tokens of audio. Unset: as output.
	// +optional
	AudioOutput *Money `json:"audioOutput,omitempty"`

	// imageInput is the price of input tokens of images, where the provider reports them apart. Unset: as input.
	// +optional
	ImageInput *Money `json:"imageInput,omitempty"`

	// imageOutput is the price of output tokens of images, where the provider reports them apart. Unset: as output.
	// +optional
	ImageOutput *Money `json:"imageOutput,omitempty"`
}

// ImagePrice is the price of one image.
type ImagePrice struct {
	// size that the price is for, as requests name it, such as 1024x1024. Unset: any.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=32
	Size string `json:"size,omitempty"`

	// quality that the price is for, as requests name it, such as hd. Unset: any.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=32
	Quality string `json:"quality,omitempty"`

	// price of one image.
	// +required
	Price Money `json:"price,omitempty"`
}

// ModelStatus says how far the spec has been carried out.
//
// +kubebuilder:validation:MinProperties=1
type ModelStatus struct {
	// observedGeneration is the metadata.generation that this status speaks of. -1: no controller has looked at the object yet.
	// +optional
	// +kubebuilder:validation:Minimum=-1
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`

	// name is what callers send in a request's "model" field.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name,omitempty"`

	// conditions are Ready, Enforced and, where something needs mending, Stalled.
	// +optional
	// +listType=map
	// +listMapKey=type
	// +kubebuilder:validation:MaxItems=8
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// Model is something that callers can name in a request, and the Provider that serves it.
//
// +genclient
// +genclient:nonNamespaced
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=lkmodel,categories=latchkey
// +kubebuilder:printcolumn:name="Model",type=string,JSONPath=`.status.name`
// +kubebuilder:printcolumn:name="Provider",type=string,JSONPath=`.spec.providerRef.name`
// +kubebuilder:printcolumn:name="Upstream",type=string,priority=1,JSONPath=`.spec.upstreamName`
// +kubebuilder:printcolumn:name="Capabilities",type=string,priority=1,JSONPath=`.spec.capabilities`
// +kubebuilder:printcolumn:name="Input",type=string,priority=1,JSONPath=`.spec.prices.perMillionTokens.input`
// +kubebuilder:printcolumn:name="Output",type=string,priority=1,JSONPath=`.spec.prices.perMillionTokens.output`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="size(self.metadata.name) <= 200",message="metadata.name of a Model has at most 200 characters; set spec.name to what callers send"
type Model struct {
	metav1.TypeMeta `json:",inline"`
	// metadata is the standard object's metadata.
	// +optional
	metav1.ObjectMeta `json:"metadata,omitempty,omitzero"`

	// spec says what callers name, and where their requests go.
	// +required
	Spec ModelSpec `json:"spec,omitempty,omitzero"`

	// status says how far the spec has been carried out.
	// +optional
	// +kubebuilder:default={observedGeneration:-1}
	Status ModelStatus `json:"status,omitempty,omitzero"`
}

// ModelList is a list of Models.
//
// +kubebuilder:object:root=true
type ModelList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Model `json:"items"`
}

// CallName is what callers send in a request's "model" field: the spec's name, else the object's.
func (m *Model) CallName() string {
	if m.Spec.Name != "" {
		return string(m.Spec.Name)
	}
	return m.Name
}
