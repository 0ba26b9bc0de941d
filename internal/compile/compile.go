package compile

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/latchkey-dev/latchkey/api/v1alpha1"
	"github.com/latchkey-dev/latchkey/internal/money"
	"github.com/latchkey-dev/latchkey/internal/policy"
)

// Problem is why an object is not carried out, or not as it stands.
type Problem struct {
	Reason  string // one of api/v1alpha1's
	Message string // what is wrong, and how to mend it
	Stalled bool   // somebody has to mend it; otherwise it may mend itself
}

// Key compiles an APIKey with its Secret (nil: there is none). A key that is being deleted, has no Secret of its own, or whose Secret
// holds no key that was minted for it, is not published.
func Key(k *v1alpha1.APIKey, secret *corev1.Secret) (*policy.Key, []Problem) {
	if !k.DeletionTimestamp.IsZero() {
		return nil, nil
	}
	credentials, problem := Credentials(k, secret)
	if len(credentials) == 0 {
		return nil, []Problem{*problem}
	}
	budgets, problems := budgets("spec.budgets", k.Spec.Budgets)
	out := &policy.Key{
		UID:          string(k.UID),
		Namespace:    k.Namespace,
		Name:         k.Name,
		DisplayName:  string(k.Spec.DisplayName),
		Credentials:  credentials,
		Application:  k.Spec.ApplicationRef.Name,
		State:        state(k.Spec.State),
		Capabilities: capabilities(k.Spec.Capabilities),
		Models:       scope(&k.Spec.Models),
		Limits:       limits(k.Spec.RateLimits),
		Budgets:      budgets,
	}
	if k.Spec.ExpirationTime != nil {
		out.Expires = k.Spec.ExpirationTime.Time
	}
	if len(problems) > 0 {
		return nil, problems
	}
	return out, nil
}

// Policy compiles what an APIKey's spec alone says, without its Secret: what status.effective is computed from.
func Policy(k *v1alpha1.APIKey) *policy.Key {
	b, _ := budgets("spec.budgets", k.Spec.Budgets)
	return &policy.Key{
		Capabilities: capabilities(k.Spec.Capabilities),
		Models:       scope(&k.Spec.Models),
		Limits:       limits(k.Spec.RateLimits),
		Budgets:      b,
	}
}

// KeyHash reads the key's hash out of its Secret, if that is the key's own and holds the key that was minted.
func KeyHash(k *v1alpha1.APIKey, secret *corev1.Secret) (policy.KeyHash, *Problem) {
	switch {
	case secret == nil && k.Status.SecretName == "":
		return policy.KeyHash{}, &Problem{v1alpha1.ReasonPending, "the key has not been minted yet", false}
	case secret == nil:
		return policy.KeyHash{}, lost("Secret %s is gone, and the key with it: "+mendLost, k.Status.SecretName)
	case secret.Labels[v1alpha1.LabelAPIKey] != k.Name:
		return policy.KeyHash{}, &Problem{v1alpha1.ReasonSecretConflict, fmt.Sprintf(
			"Secret %s exists and is not this key's (it has no label %s=%s): delete that Secret, or create the APIKey anew with another spec.secret.name",
			secret.Name, v1alpha1.LabelAPIKey, k.Name), true}
	}
	hash, valid := hashIn(secret, v1alpha1.SecretDataKeyHash)
	switch {
	case !valid && k.Status.SecretName == "":
		return policy.KeyHash{}, &Problem{v1alpha1.ReasonSecretConflict, fmt.Sprintf(
			"Secret %s exists, claims to be this key's, and holds no key (its %s is not a SHA-256 in hex): delete that Secret, and the key is minted",
			secret.Name, v1alpha1.SecretDataKeyHash), true}
	case !valid:
		return policy.KeyHash{}, lost("Secret %s holds no key any more (its %s is not a SHA-256 in hex): "+mendLost, secret.Name, v1alpha1.SecretDataKeyHash)
	}
	fingerprint := Fingerprint(hash)
	switch rotation := k.Status.Rotation; {
	case k.Status.KeyFingerprint == "" || k.Status.KeyFingerprint == fingerprint:
		return hash, nil
	case rotation != nil && rotation.PendingKeyFingerprint == fingerprint:
		return hash, nil
	case rotation != nil && rotation.PreviousKeyFingerprint == fingerprint:
		return policy.KeyHash{}, lost("Secret %s holds the key from before the last rotation: restore the Secret as it was after it, or "+mendLost, secret.Name)
	}
	return policy.KeyHash{}, lost("Secret %s holds another key than the one that was minted for this APIKey: restore it, or "+mendLost, secret.Name)
}

// mendLost is what helps where the key is lost.
const mendLost = "raise spec.rotation.generation for a new key, or delete this APIKey and create a new one"

// hashIn reads one of the Secret's hashes.
func hashIn(secret *corev1.Secret, field string) (hash policy.KeyHash, valid bool) {
	return ParseHash(secret.Data[field])
}

// ParseHash reads a hash as a Secret holds it: a SHA-256 in hex.
func ParseHash(text []byte) (hash policy.KeyHash, valid bool) {
	raw, err := hex.DecodeString(string(text))
	if err != nil || len(raw) != sha256.Size {
		return policy.KeyHash{}, false
	}
	return policy.KeyHash(raw), true
}

// Credentials are the secrets by which the key can be presented: the present one, and an earlier one with its end. The Secret says what they
// are, and the key's status which of them to believe; the two are read apart and may not fit for a moment, in which what fits is believed.
// Without any, the problem says why.
func Credentials(k *v1alpha1.APIKey, secret *corev1.Secret) ([]policy.Credential, *Problem) {
	var out []policy.Credential
	hash, problem := KeyHash(k, secret)
	if problem == nil {
		out = append(out, policy.Credential{Hash: hash, Prefix: KeyPrefix(secret)})
	}
	if earlier := EarlierKey(k, secret); earlier != nil {
		out = append(out, *earlier)
	}
	return out, problem
}

// EarlierKey is the key from before the last rotation with its end, as far as the Secret holds its hash and the status vouches for it;
// nil: there is none.
func EarlierKey(k *v1alpha1.APIKey, secret *corev1.Secret) *policy.Credential {
	if secret == nil || secret.Labels[v1alpha1.LabelAPIKey] != k.Name || k.Status.KeyFingerprint == "" {
		return nil
	}
	status := k.Status.Rotation
	if status == nil {
		status = &v1alpha1.RotationStatus{}
	}
	for _, field := range [...]struct{ hash, prefix string }{
		{v1alpha1.SecretDataPreviousKeyHash, v1alpha1.SecretDataPreviousKeyPrefix},
		{v1alpha1.SecretDataKeyHash, v1alpha1.SecretDataKeyPrefix}, // the Secret is behind the status
	} {
		hash, valid := hashIn(secret, field.hash)
		if !valid {
			continue
		}
		var rotated time.Time
		switch fingerprint := Fingerprint(hash); {
		case fingerprint == status.PreviousKeyFingerprint && status.RotationTime != nil:
			rotated = status.RotationTime.Time
		case fingerprint == k.Status.KeyFingerprint && field.hash == v1alpha1.SecretDataPreviousKeyHash: // the status is behind the Secret
			at, err := time.Parse(time.RFC3339, secret.Annotations[v1alpha1.AnnotationRotationTime])
			if err != nil {
				continue
			}
			rotated = at
		default:
			continue
		}
		return &policy.Credential{Hash: hash, Prefix: prefixIn(secret, field.prefix), Ends: rotated.Add(k.Overlap())}
	}
	return nil
}

// maxKeyPrefix bounds what is taken for a prefix, in characters: enough for those that are minted, far too little for a key.
const maxKeyPrefix = 16

// KeyPrefix reads the key's prefix out of its Secret; empty: there is none. It is shown in status, logs and metrics, and whoever may
// write the Secret can put anything there: what is not a prefix by its form is left out.
func KeyPrefix(secret *corev1.Secret) string { return prefixIn(secret, v1alpha1.SecretDataKeyPrefix) }

// PreviousKeyPrefix reads the earlier key's prefix out of the Secret; empty: there is none.
func PreviousKeyPrefix(secret *corev1.Secret) string {
	return prefixIn(secret, v1alpha1.SecretDataPreviousKeyPrefix)
}

func prefixIn(secret *corev1.Secret, field string) string {
	prefix := string(secret.Data[field])
	odd := func(r rune) bool {
		return r != '_' && (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z')
	}
	if len(prefix) > maxKeyPrefix || strings.ContainsFunc(prefix, odd) {
		return ""
	}
	return prefix
}

func lost(format string, args ...any) *Problem {
	return &Problem{v1alpha1.ReasonSecretLost, fmt.Sprintf(format, args...), true}
}

// Fingerprint binds a Secret to its APIKey's status: the first 16 hex digits of the hash's own SHA-256.
func Fingerprint(hash policy.KeyHash) string {
	sum := sha256.Sum256(hash[:])
	return hex.EncodeToString(sum[:8])
}

// Application compiles an Application. One that is being deleted still serves, since it stays until its keys are gone.
func Application(a *v1alpha1.Application) (*policy.Application, []Problem) {
	b, problems := budgets("spec.budgets", a.Spec.Budgets)
	if len(problems) > 0 {
		return nil, problems
	}
	out := &policy.Application{
		UID:          string(a.UID),
		Namespace:    a.Namespace,
		Name:         a.Name,
		DisplayName:  string(a.Spec.DisplayName),
		State:        state(a.Spec.State),
		Capabilities: policy.AllCapabilities,
		Models:       policy.ModelScope{All: true},
		Limits:       limits(a.Spec.RateLimits),
		Budgets:      b,
	}
	if len(a.Spec.Capabilities) > 0 {
		out.Capabilities = capabilities(a.Spec.Capabilities)
	}
	if a.Spec.Models != nil {
		out.Models = scope(a.Spec.Models)
	}
	return out, nil
}

// Model compiles a Model with its Provider (nil: there is none).
func Model(m *v1alpha1.Model, provider *v1alpha1.Provider) (*policy.Model, []Problem) {
	if provider == nil {
		return nil, []Problem{{v1alpha1.ReasonProviderNotFound, fmt.Sprintf(
			"Provider %s does not exist: create it, or name another in spec.providerRef.name", m.Spec.ProviderRef.Name), false}}
	}
	if !m.DeletionTimestamp.IsZero() {
		return nil, nil
	}
	out := &policy.Model{
		Name:         m.CallName(),
		Capabilities: capabilities(m.Spec.Capabilities),
		Provider:     provider.Name,
		Format:       format(provider.Spec.Format),
		UpstreamName: m.Spec.UpstreamName,
		Created:      m.CreationTimestamp.Time,
	}
	if out.UpstreamName == "" {
		out.UpstreamName = out.Name
	}
	if m.Spec.MaxInputTokens != nil {
		out.MaxInputTokens = *m.Spec.MaxInputTokens
	}
	if m.Spec.MaxOutputTokens != nil {
		out.MaxOutputTokens = *m.Spec.MaxOutputTokens
	}
	var problems []Problem
	if out.Prices, problems = prices(m.Spec.Prices); len(problems) > 0 {
		return nil, problems
	}
	return out, nil
}

// Winner is the Model that has the name which all of these claim: the oldest, and of two created in the same second the one whose own name
// comes first. Those being deleted yield to the others.
func Winner(claimants []*v1alpha1.Model) *v1alpha1.Model {
	return slices.MinFunc(claimants, func(a, b *v1alpha1.Model) int {
		aGoes, bGoes := !a.DeletionTimestamp.IsZero(), !b.DeletionTimestamp.IsZero()
		switch {
		case aGoes != bGoes && aGoes:
			return 1
		case aGoes != bGoes:
			return -1
		case !a.CreationTimestamp.Equal(&b.CreationTimestamp):
			return a.CreationTimestamp.Compare(b.CreationTimestamp.Time)
		case a.Name < b.Name:
			return -1
		case a.Name > b.Name:
			return 1
		}
		return 0
	})
}

// System compiles the SystemPolicy (nil: there is none, and the defaults apply). With a problem the rest still applies, the default in
// place of what cannot.
func System(s *v1alpha1.SystemPolicy) (*policy.System, []Problem) {
	out := policy.DefaultSystem()
	if s == nil {
		return &out, nil
	}
	var problems []Problem
	if s.Spec.Currency != "" {
		out.Currency = s.Spec.Currency
	}
	if zone := s.Spec.TimeZone; zone != "" {
		if _, err := time.LoadLocation(zone); err != nil || zone == time.Local.String() { // each machine has a "Local" of its own
			problems = append(problems, Problem{v1alpha1.ReasonInvalid, fmt.Sprintf(
				"spec.timeZone: %q is not in the IANA time zone database: write a name such as Europe/Berlin, or UTC, which applies until then", zone), true})
		} else {
			out.TimeZone = zone
		}
	}
	if l := s.Spec.RateLimits; l != nil {
		out.RequestsPerMinute = limitRange(l.RequestsPerMinute, out.RequestsPerMinute)
		out.TokensPerMinute = limitRange(l.TokensPerMinute, out.TokensPerMinute)
	}
	if b := s.Spec.Budgets; b != nil {
		if b.UnpricedModels == v1alpha1.UnpricedCountAsFree {
			out.UnpricedModels = policy.UnpricedFree
		}
		if b.OnLedgerFailure == v1alpha1.LedgerFailureAllow {
			out.LedgerFailure = policy.OnFailureAllow
		}
	}
	return &out, problems
}

// prices compiles a model's prices. One that cannot be read would be free: the model is not published then.
func prices(in *v1alpha1.Prices) (*policy.Prices, []Problem) {
	if in == nil {
		return nil, nil
	}
	var problems []Problem
	amount := func(field string, m *v1alpha1.Money) money.Amount {
		if m == nil {
			return policy.NoPrice
		}
		a, err := money.Parse(string(*m))
		if err != nil {
			problems = append(problems, Problem{v1alpha1.ReasonInvalid, fmt.Sprintf("spec.prices.%s: %v", field, err), true})
		}
		return a
	}
	out := policy.NoPrices()
	if t := in.PerMillionTokens; t != nil {
		out.Input, out.Output = amount("perMillionTokens.input", t.Input), amount("perMillionTokens.output", t.Output)
		out.CachedInput = amount("perMillionTokens.cachedInput", t.CachedInput)
		out.CacheWrite = amount("perMillionTokens.cacheWrite", t.CacheWrite)
		out.CacheWriteOneHour = amount("perMillionTokens.cacheWriteOneHour", t.CacheWriteOneHour)
		out.AudioInput, out.AudioOutput = amount("perMillionTokens.audioInput", t.AudioInput), amount("perMillionTokens.audioOutput", t.AudioOutput)
		out.ImageInput, out.ImageOutput = amount("perMillionTokens.imageInput", t.ImageInput), amount("perMillionTokens.imageOutput", t.ImageOutput)
	}
	for i := range in.PerImage {
		image := &in.PerImage[i]
		out.Images = append(out.Images, policy.ImagePrice{
			Size: image.Size, Quality: image.Quality, Price: amount(fmt.Sprintf("perImage[%d].price", i), &image.Price),
		})
	}
	out.PerMillionCharacters = amount("perMillionCharacters", in.PerMillionCharacters)
	out.PerMinute, out.PerSearch = amount("perMinute", in.PerMinute), amount("perSearch", in.PerSearch)
	return &out, problems
}

func limitRange(r *v1alpha1.LimitRange, otherwise policy.Range) policy.Range {
	if r == nil || r.Default == nil || r.Max == nil {
		return otherwise
	}
	return policy.Range{Default: policy.Limit(*r.Default), Max: policy.Limit(*r.Max)}
}

func state(s v1alpha1.State) policy.State {
	switch s {
	case v1alpha1.StateEnabled, "": // the schema's default
		return policy.StateEnabled
	case v1alpha1.StateDisabled:
	}
	return policy.StateDisabled
}

func capabilities(list []v1alpha1.Capability) policy.Capabilities {
	var set policy.Capabilities
	for _, name := range list {
		if c, known := policy.ParseCapability(string(name)); known {
			set |= policy.CapabilitiesOf(c)
		}
	}
	return set
}

func scope(s *v1alpha1.ModelScope) policy.ModelScope {
	if s.Access == v1alpha1.ModelAccessAll {
		return policy.ModelScope{All: true}
	}
	names := make([]string, 0, len(s.Names))
	for _, n := range s.Names {
		names = append(names, string(n))
	}
	return policy.ScopeOf(names...)
}

func limits(l *v1alpha1.RateLimits) policy.RateLimits {
	out := policy.NoRateLimits()
	if l != nil && l.RequestsPerMinute != nil {
		out.RequestsPerMinute = policy.Limit(*l.RequestsPerMinute)
	}
	if l != nil && l.TokensPerMinute != nil {
		out.TokensPerMinute = policy.Limit(*l.TokensPerMinute)
	}
	if l != nil && l.ConcurrentRequests != nil {
		out.ConcurrentRequests = policy.Limit(*l.ConcurrentRequests)
	}
	return out
}

func budgets(field string, b *v1alpha1.Budgets) (policy.Budgets, []Problem) {
	out := policy.NoBudgets()
	if b == nil {
		return out, nil
	}
	var problems []Problem
	amount := func(name string, m *v1alpha1.Money) money.Amount {
		if m == nil {
			return policy.NoBudget
		}
		a, err := money.Parse(string(*m))
		if err != nil {
			problems = append(problems, Problem{v1alpha1.ReasonInvalid, fmt.Sprintf("%s.%s: %v", field, name, err), true})
		}
		return a
	}
	out.Daily, out.Monthly = amount("daily", b.Daily), amount("monthly", b.Monthly)
	if b.Enforcement == v1alpha1.BudgetEnforcementStrict {
		out.Enforcement = policy.Strict
	}
	return out, problems
}

func format(f v1alpha1.ProviderFormat) policy.Format {
	switch f {
	case v1alpha1.ProviderFormatOpenAI:
		return policy.FormatOpenAI
	case v1alpha1.ProviderFormatAnthropic:
		return policy.FormatAnthropic
	}
	return policy.FormatUnknown
}
