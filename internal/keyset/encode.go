package keyset

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	keysetv1 "github.com/latchkey-dev/latchkey/api/keyset/v1"
	"github.com/latchkey-dev/latchkey/internal/money"
	"github.com/latchkey-dev/latchkey/internal/policy"
)

// TypeURL is the type of the key set's resources.
const TypeURL = "type.googleapis.com/latchkey.keyset.v1.Entry"

// SyncName is the resource that ends a synchronisation.
const SyncName = "sync"

const (
	systemName        = "system"
	applicationPrefix = "app/"
	keyPrefix         = "key/"
	modelPrefix       = "model/"
)

// Resource is one entry of the key set as it is sent.
type Resource struct {
	Name    string
	Version string // hash of Body
	Body    []byte // keysetv1.Entry
	// Revokes says that the entry lets nobody through: it goes to clients before others.
	Revokes bool
}

// NameOf is the resource name of an entry.
func NameOf(ref policy.Ref) string {
	switch ref.Kind {
	case policy.KindApplication:
		return applicationPrefix + ref.Name
	case policy.KindKey:
		return keyPrefix + ref.Name
	case policy.KindModel:
		return modelPrefix + ref.Name
	case policy.KindSystem:
	}
	return systemName
}

// EncodeSystem makes the resource of the system policy.
func EncodeSystem(s *policy.System) Resource {
	return encode(policy.Ref{Kind: policy.KindSystem}, &keysetv1.Entry{Entry: &keysetv1.Entry_System{System: &keysetv1.System{
		Currency:          valid(s.Currency),
		TimeZone:          valid(s.TimeZone),
		RequestsPerMinute: encodeRange(s.RequestsPerMinute),
		TokensPerMinute:   encodeRange(s.TokensPerMinute),
		UnpricedModels:    encodeUnpriced(s.UnpricedModels),
		LedgerFailure:     encodeFailure(s.LedgerFailure),
	}}})
}

// EncodeApplication makes the resource of an application.
func EncodeApplication(a *policy.Application) Resource {
	r := encode(policy.Ref{Kind: policy.KindApplication, Name: a.ID()}, &keysetv1.Entry{Entry: &keysetv1.Entry_Application{Application: &keysetv1.Application{
		Uid:          valid(a.UID),
		Namespace:    valid(a.Namespace),
		Name:         valid(a.Name),
		DisplayName:  valid(a.DisplayName),
		State:        encodeState(a.State),
		Capabilities: encodeCapabilities(a.Capabilities),
		Models:       encodeScope(a.Models),
		Limits:       encodeLimits(a.Limits),
		Budgets:      encodeBudgets(a.Budgets),
	}}})
	r.Revokes = a.State != policy.StateEnabled
	return r
}

// EncodeKey makes the resource of a key.
func EncodeKey(k *policy.Key) Resource {
	credentials := make([]*keysetv1.Credential, 0, len(k.Credentials))
	for _, c := range k.Credentials {
		credentials = append(credentials, &keysetv1.Credential{Sha256: c.Hash[:], Prefix: valid(c.Prefix), EndTime: encodeTime(c.Ends)})
	}
	r := encode(policy.Ref{Kind: policy.KindKey, Name: k.UID}, &keysetv1.Entry{Entry: &keysetv1.Entry_Key{Key: &keysetv1.Key{
		Uid:            valid(k.UID),
		Namespace:      valid(k.Namespace),
		Name:           valid(k.Name),
		DisplayName:    valid(k.DisplayName),
		Credentials:    credentials,
		Application:    valid(k.Application),
		State:          encodeState(k.State),
		ExpirationTime: encodeTime(k.Expires),
		Capabilities:   encodeCapabilities(k.Capabilities),
		Models:         encodeScope(k.Models),
		Limits:         encodeLimits(k.Limits),
		Budgets:        encodeBudgets(k.Budgets),
	}}})
	r.Revokes = k.State != policy.StateEnabled
	return r
}

// EncodeModel makes the resource of a model.
func EncodeModel(m *policy.Model) Resource {
	return encode(policy.Ref{Kind: policy.KindModel, Name: m.Name}, &keysetv1.Entry{Entry: &keysetv1.Entry_Model{Model: &keysetv1.Model{
		Name:            valid(m.Name),
		Capabilities:    encodeCapabilities(m.Capabilities),
		Provider:        valid(m.Provider),
		Format:          encodeFormat(m.Format),
		UpstreamName:    valid(m.UpstreamName),
		MaxInputTokens:  m.MaxInputTokens,
		MaxOutputTokens: m.MaxOutputTokens,
		Prices:          encodePrices(m.Prices),
		CreationTime:    encodeTime(m.Created),
	}}})
}

func encodeSync(position uint64) Resource {
	body := marshal(&keysetv1.Entry{Entry: &keysetv1.Entry_Sync{Sync: &keysetv1.Sync{Position: position}}})
	return Resource{Name: SyncName, Version: versionOf(body), Body: body}
}

func encode(ref policy.Ref, entry *keysetv1.Entry) Resource {
	body := marshal(entry)
	return Resource{Name: valid(NameOf(ref)), Version: versionOf(body), Body: body}
}

// valid replaces what protobuf does not take as text: one odd name must not keep the rest from being sent.
func valid(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

func marshal(entry *keysetv1.Entry) []byte {
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(entry)
	if err != nil {
		panic(fmt.Sprintf("marshal key-set entry: %v", err)) // only text that is not UTF-8 can do that, and valid lets none in
	}
	return body
}

// versionOf is a hash of the content, so that two replicas give the same version to the same entry. 96 bits leave no room for chance.
func versionOf(body []byte) string {
	sum := sha256.Sum256(body)
	return hex.EncodeToString(sum[:12])
}

func encodeState(s policy.State) keysetv1.State {
	if s == policy.StateEnabled {
		return keysetv1.State_STATE_ENABLED
	}
	return keysetv1.State_STATE_DISABLED
}

var capabilityCodes = map[policy.Capability]keysetv1.Capability{
	policy.TextGeneration:  keysetv1.Capability_CAPABILITY_TEXT_GENERATION,
	policy.ImageGeneration: keysetv1.Capability_CAPABILITY_IMAGE_GENERATION,
	policy.Embeddings:      keysetv1.Capability_CAPABILITY_EMBEDDINGS,
	policy.TextToSpeech:    keysetv1.Capability_CAPABILITY_TEXT_TO_SPEECH,
	policy.SpeechToText:    keysetv1.Capability_CAPABILITY_SPEECH_TO_TEXT,
	policy.WebSearch:       keysetv1.Capability_CAPABILITY_WEB_SEARCH,
}

func encodeCapabilities(set policy.Capabilities) []keysetv1.Capability {
	list := set.List()
	codes := make([]keysetv1.Capability, 0, len(list))
	for _, c := range list {
		codes = append(codes, capabilityCodes[c])
	}
	return codes
}

func encodeScope(s policy.ModelScope) *keysetv1.ModelScope {
	if s.All {
		return &keysetv1.ModelScope{All: true}
	}
	names := make([]string, 0, len(s.Names))
	for _, name := range s.Names {
		names = append(names, valid(name))
	}
	return &keysetv1.ModelScope{Names: names}
}

func encodeLimits(l policy.RateLimits) *keysetv1.Limits {
	var out keysetv1.Limits
	if l.RequestsPerMinute.IsSet() {
		out.RequestsPerMinute = new(int64(l.RequestsPerMinute))
	}
	if l.TokensPerMinute.IsSet() {
		out.TokensPerMinute = new(int64(l.TokensPerMinute))
	}
	if l.ConcurrentRequests.IsSet() {
		out.ConcurrentRequests = new(int64(l.ConcurrentRequests))
	}
	return &out
}

func encodeUnpriced(u policy.Unpriced) keysetv1.Unpriced {
	if u == policy.UnpricedFree {
		return keysetv1.Unpriced_UNPRICED_FREE
	}
	return keysetv1.Unpriced_UNPRICED_REFUSE
}

func encodeFailure(f policy.OnFailure) keysetv1.LedgerFailure {
	if f == policy.OnFailureAllow {
		return keysetv1.LedgerFailure_LEDGER_FAILURE_ALLOW
	}
	return keysetv1.LedgerFailure_LEDGER_FAILURE_REFUSE
}

func encodePrices(p *policy.Prices) *keysetv1.Prices {
	if p == nil {
		return nil
	}
	out := &keysetv1.Prices{
		Input:                encodeAmount(p.Input),
		CachedInput:          encodeAmount(p.CachedInput),
		CacheWrite:           encodeAmount(p.CacheWrite),
		CacheWriteOneHour:    encodeAmount(p.CacheWriteOneHour),
		Output:               encodeAmount(p.Output),
		AudioInput:           encodeAmount(p.AudioInput),
		AudioOutput:          encodeAmount(p.AudioOutput),
		ImageInput:           encodeAmount(p.ImageInput),
		ImageOutput:          encodeAmount(p.ImageOutput),
		PerMillionCharacters: encodeAmount(p.PerMillionCharacters),
		PerMinute:            encodeAmount(p.PerMinute),
		PerSearch:            encodeAmount(p.PerSearch),
	}
	for _, i := range p.Images {
		out.Images = append(out.Images, &keysetv1.ImagePrice{Size: valid(i.Size), Quality: valid(i.Quality), Price: int64(i.Price)})
	}
	return out
}

func encodeBudgets(b policy.Budgets) *keysetv1.Budgets {
	out := keysetv1.Budgets{Enforcement: keysetv1.Enforcement_ENFORCEMENT_UNTIL_REACHED}
	if b.Enforcement == policy.Strict {
		out.Enforcement = keysetv1.Enforcement_ENFORCEMENT_STRICT
	}
	out.DailyNanos, out.MonthlyNanos = encodeAmount(b.Daily), encodeAmount(b.Monthly)
	return &out
}

func encodeAmount(a money.Amount) *int64 {
	if a < 0 {
		return nil
	}
	return new(int64(a))
}

func encodeRange(r policy.Range) *keysetv1.Range {
	return &keysetv1.Range{Default: int64(r.Default), Max: int64(r.Max)}
}

func encodeFormat(f policy.Format) keysetv1.Format {
	switch f {
	case policy.FormatOpenAI:
		return keysetv1.Format_FORMAT_OPENAI
	case policy.FormatAnthropic:
		return keysetv1.Format_FORMAT_ANTHROPIC
	case policy.FormatUnknown:
	}
	return keysetv1.Format_FORMAT_UNSPECIFIED
}

func encodeTime(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}
