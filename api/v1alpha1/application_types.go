package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ApplicationSpec says who is billed, and the ceilings for all its keys together.
type ApplicationSpec struct {
	// displayName is the application's name for people, 2 to 50 characters.
	// +required
	DisplayName DisplayName `json:"displayName,omitempty"`

	// description says what the application is for, up to 500 characters.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=500
	Description string `json:"description,omitempty"`

	// state is Enabled (the default) or Disabled. Disabled refuses the requests of all its keys at once; nothing is lost by it.
	// +optional
	// +kubebuilder:default=Enabled
	State State `json:"state,omitempty"`

	// capabilities bounds what any of its keys may be used for. Unset: no bound; a key's own list decides.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=6
	Capabilities []Capability `json:"capabilities,omitempty"`

	// models bounds which models any of its keys may call. Unset: no bound; a key's own scope decides.
	// +optional
	Models *ModelScope `json:"models,omitempty"`

	// budgets caps what all its keys spend together.
	// +optional
	Budgets *Budgets `json:"budgets,omitempty"`

	// rateLimits caps what all its keys ask for together. Unset: no common limit; each key's own applies.
	// +optional
	RateLimits *RateLimits `json:"rateLimits,omitempty"`

	// maxKeys caps how many APIKeys the application can have in force. Unset: no cap. The oldest are; the others wait, unminted, until
	// there is room, or stop being in force when the cap is lowered below their place.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=100000
	MaxKeys *int32 `json:"maxKeys,omitempty"`
}

// ApplicationStatus says how far the spec has been carried out.
//
// +kubebuilder:validation:MinProperties=1
type ApplicationStatus struct {
	// observedGeneration is the metadata.generation that this status speaks of. -1: no controller has looked at the object yet.
	// +optional
	// +kubebuilder:validation:Minimum=-1
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`

	// keys counts the APIKeys that name this application.
	// +optional
	// +kubebuilder:validation:Minimum=0
	Keys *int32 `json:"keys,omitempty"`

	// usage is what all its keys have used together, those that are gone by now included.
	// +optional
	Usage *Usage `json:"usage,omitempty"`

	// conditions are Ready, Usable, Enforced and, where something needs mending, Stalled.
	// +optional
	// +listType=map
	// +listMapKey=type
	// +kubebuilder:validation:MaxItems=8
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// Application is who is billed: a product or team whose API keys share ceilings.
//
// +genclient
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=lkapp,categories=latchkey
// +kubebuilder:printcolumn:name="Display Name",type=string,JSONPath=`.spec.displayName`
// +kubebuilder:printcolumn:name="State",type=string,JSONPath=`.spec.state`
// +kubebuilder:printcolumn:name="Keys",type=integer,JSONPath=`.status.keys`
// +kubebuilder:printcolumn:name="Day Spent",type=string,JSONPath=`.status.usage.day.spent`
// +kubebuilder:printcolumn:name="Daily",type=string,JSONPath=`.spec.budgets.daily`
// +kubebuilder:printcolumn:name="Month Spent",type=string,JSONPath=`.status.usage.month.spent`
// +kubebuilder:printcolumn:name="Monthly",type=string,JSONPath=`.spec.budgets.monthly`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,priority=1,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="size(self.metadata.name) <= 63",message="metadata.name of an Application has at most 63 characters"
type Application struct {
	metav1.TypeMeta `json:",inline"`
	// metadata is the standard object's metadata.
	// +optional
	metav1.ObjectMeta `json:"metadata,omitempty,omitzero"`

	// spec says who is billed, and the ceilings for all keys together.
	// +required
	Spec ApplicationSpec `json:"spec,omitempty,omitzero"`

	// status says how far the spec has been carried out.
	// +optional
	// +kubebuilder:default={observedGeneration:-1}
	Status ApplicationStatus `json:"status,omitempty,omitzero"`
}

// ApplicationList is a list of Applications.
//
// +kubebuilder:object:root=true
type ApplicationList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Application `json:"items"`
}
