package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ProviderFormat is the wire format that an upstream speaks.
//
// +kubebuilder:validation:Enum=OpenAI;Anthropic
type ProviderFormat string

// The wire formats.
const (
	// ProviderFormatOpenAI is OpenAI's API and the many that follow it.
	ProviderFormatOpenAI ProviderFormat = "OpenAI"
	// ProviderFormatAnthropic is Anthropic's Messages API.
	ProviderFormatAnthropic ProviderFormat = "Anthropic"
)

// CredentialHeader is the request header that carries the provider's credential.
//
// +kubebuilder:validation:Enum=Authorization;X-API-Key;API-Key
type CredentialHeader string

// The headers in which providers take their credential.
const (
	// CredentialHeaderAuthorization sends "Authorization: Bearer CREDENTIAL".
	CredentialHeaderAuthorization CredentialHeader = "Authorization"
	// CredentialHeaderXAPIKey sends "x-api-key: CREDENTIAL".
	CredentialHeaderXAPIKey CredentialHeader = "X-API-Key"
	// CredentialHeaderAPIKey sends "api-key: CREDENTIAL".
	CredentialHeaderAPIKey CredentialHeader = "API-Key"
)

// SecretKeyReference names a key in a Secret of the installation's namespace.
type SecretKeyReference struct {
	// name of the Secret, in the namespace that Latchkey is installed in.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:XValidation:rule="self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')",message="secretRef.name is the name of a Secret in the namespace that Latchkey is installed in: lower-case letters, digits, '-' and '.'"
	Name string `json:"name,omitempty"`

	// key in the Secret's data. Unset: "apiKey".
	// +optional
	// +kubebuilder:default=apiKey
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:XValidation:rule="self.matches('^[-._a-zA-Z0-9]+$')",message="secretRef.key is a key in the Secret's data: letters, digits, '-', '_' and '.'"
	Key string `json:"key,omitempty"`
}

// ProviderCredential says which credential Envoy presents to the provider, and how.
type ProviderCredential struct {
	// secretRef names the Secret that holds the credential, in the namespace that Latchkey is installed in.
	// +required
	SecretRef SecretKeyReference `json:"secretRef,omitempty,omitzero"`

	// header that carries the credential: Authorization (as a bearer token), X-API-Key or API-Key. Unset: Authorization for the
	// format OpenAI, X-API-Key for the format Anthropic.
	// +optional
	Header CredentialHeader `json:"header,omitempty"`
}

// ProviderTLS says how the provider's certificate is verified. It is always verified.
//
// +kubebuilder:validation:MinProperties=1
type ProviderTLS struct {
	// caBundle holds the certificates, in PEM, of the authorities that may have signed the provider's. Unset: the gateway's system roots.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=262144
	// +kubebuilder:validation:XValidation:rule="self.contains('-----BEGIN CERTIFICATE-----')",message="caBundle holds certificates in PEM: text with -----BEGIN CERTIFICATE-----"
	CABundle string `json:"caBundle,omitempty"`

	// serverName is the name expected in the provider's certificate and sent as SNI. Unset: the URL's host.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:XValidation:rule="self.matches('^[A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?$')",message="serverName is a host name without scheme, port and path, such as api.openai.com"
	ServerName string `json:"serverName,omitempty"`
}

// ProviderTimeouts bounds how long the gateway waits for the provider. Each is a duration such as "500ms", "30s" or "10m".
//
// +kubebuilder:validation:MinProperties=1
type ProviderTimeouts struct {
	// connect bounds the time to connect. Unset: 5s.
	// +optional
	// +kubebuilder:validation:XValidation:rule="self.matches('^([0-9]+([.][0-9]+)?(ns|us|ms|s|m|h))+$') && duration(self) > duration('0s') && duration(self) <= duration('5m')",message="connect is a duration above 0s and up to 5m, such as 5s"
	Connect *metav1.Duration `json:"connect,omitempty"`

	// request bounds a request as a whole, its streamed answer included. Unset: 1h. 0s: no bound.
	// +optional
	// +kubebuilder:validation:XValidation:rule="self.matches('^([0-9]+([.][0-9]+)?(ns|us|ms|s|m|h))+$') && duration(self) >= duration('0s') && duration(self) <= duration('24h')",message="request is a duration from 0s (no bound) to 24h, such as 10m"
	Request *metav1.Duration `json:"request,omitempty"`

	// idle bounds the time in which nothing moves in either direction. Unset: 10m. 0s: no bound.
	// +optional
	// +kubebuilder:validation:XValidation:rule="self.matches('^([0-9]+([.][0-9]+)?(ns|us|ms|s|m|h))+$') && duration(self) >= duration('0s') && duration(self) <= duration('24h')",message="idle is a duration from 0s (no bound) to 24h, such as 5m"
	Idle *metav1.Duration `json:"idle,omitempty"`
}

// ProviderRetries says what is tried again when the provider cannot be reached or refuses for being busy, before any answer was passed on.
type ProviderRetries struct {
	// attempts beyond the first. 0: none. Connection failures, resets before an answer, and the statuses 502, 503 and 504 are tried again.
	// +required
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=10
	Attempts *int32 `json:"attempts,omitempty"`
}

// ProviderSpec describes an upstream API.
type ProviderSpec struct {
	// format is the wire format that the upstream speaks: OpenAI or Anthropic.
	// +required
	Format ProviderFormat `json:"format,omitempty"`

	// url is the API's base URL, as one would give it to the format's SDK: for OpenAI it usually ends in /v1
	// (https://api.openai.com/v1), for Anthropic it does not (https://api.anthropic.com).
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=2048
	// +kubebuilder:validation:XValidation:rule="isURL(self) && url(self).getScheme() in ['http', 'https'] && url(self).getHostname() != ''",message="url is an absolute http or https URL with a host, such as https://api.openai.com/v1"
	// +kubebuilder:validation:XValidation:rule="!self.contains('?') && !self.contains('#') && !self.contains('@')",message="url holds neither a query, nor a fragment, nor a user; put the credential in a Secret and name it in credential.secretRef"
	// +kubebuilder:validation:XValidation:rule="!isURL(self) || size(url(self).getPort()) == 0 || (int(url(self).getPort()) >= 1 && int(url(self).getPort()) <= 65535)",message="the port in url is a number from 1 to 65535"
	URL string `json:"url,omitempty"`

	// credential says which credential the gateway presents to the provider. Unset: none, for upstreams that ask for none.
	// +optional
	Credential *ProviderCredential `json:"credential,omitempty"`

	// tls says how the provider's certificate is verified, for https URLs.
	// +optional
	TLS *ProviderTLS `json:"tls,omitempty"`

	// timeouts bounds how long the gateway waits for the provider.
	// +optional
	Timeouts *ProviderTimeouts `json:"timeouts,omitempty"`

	// retries says what is tried again. Unset: nothing is, since the SDKs retry by themselves.
	// +optional
	Retries *ProviderRetries `json:"retries,omitempty"`
}

// ProviderStatus says how far the spec has been carried out.
//
// +kubebuilder:validation:MinProperties=1
type ProviderStatus struct {
	// observedGeneration is the metadata.generation that this status speaks of. -1: no controller has looked at the object yet.
	// +optional
	// +kubebuilder:validation:Minimum=-1
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`

	// models counts the Models that name this provider.
	// +optional
	// +kubebuilder:validation:Minimum=0
	Models *int32 `json:"models,omitempty"`

	// conditions are Ready and, where something needs mending, Stalled.
	// +optional
	// +listType=map
	// +listMapKey=type
	// +kubebuilder:validation:MaxItems=8
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// Provider is an upstream LLM API.
//
// +genclient
// +genclient:nonNamespaced
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=lkprov,categories=latchkey
// +kubebuilder:printcolumn:name="Format",type=string,JSONPath=`.spec.format`
// +kubebuilder:printcolumn:name="URL",type=string,JSONPath=`.spec.url`
// +kubebuilder:printcolumn:name="Models",type=integer,JSONPath=`.status.models`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="size(self.metadata.name) <= 63",message="metadata.name of a Provider has at most 63 characters"
// +kubebuilder:validation:XValidation:rule="!has(self.spec.tls) || self.spec.url.startsWith('https://')",message="spec.tls goes with an https URL; use https in spec.url or leave spec.tls out",fieldPath=".spec.tls"
type Provider struct {
	metav1.TypeMeta `json:",inline"`
	// metadata is the standard object's metadata.
	// +optional
	metav1.ObjectMeta `json:"metadata,omitempty,omitzero"`

	// spec describes the upstream API.
	// +required
	Spec ProviderSpec `json:"spec,omitempty,omitzero"`

	// status says how far the spec has been carried out.
	// +optional
	// +kubebuilder:default={observedGeneration:-1}
	Status ProviderStatus `json:"status,omitempty,omitzero"`
}

// ProviderList is a list of Providers.
//
// +kubebuilder:object:root=true
type ProviderList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Provider `json:"items"`
}
