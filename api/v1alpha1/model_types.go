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

	// maxOutputTokens is the most that one answer of the model can hold, in tokens.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=100000000
	MaxOutputTokens *int64 `json:"maxOutputTokens,omitempty"`
}

// ModelStatus says how far the spec has been carried out.
//
// +kubebuilder:validation:MinProperties=1
type ModelStatus struct {
	// observedGeneration is the metadata.generation that this status speaks of.
	// +optional
	// +kubebuilder:validation:Minimum=1
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
