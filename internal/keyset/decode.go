package keyset

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	keysetv1 "github.com/latchkey-dev/latchkey/api/keyset/v1"
	"github.com/latchkey-dev/latchkey/internal/money"
	"github.com/latchkey-dev/latchkey/internal/policy"
)

// RefOf is the inverse of NameOf. It refuses names that no entry can have, the marker's among them.
func RefOf(name string) (policy.Ref, error) {
	if name == systemName {
		return policy.Ref{Kind: policy.KindSystem}, nil
	}
	if id, ok := strings.CutPrefix(name, applicationPrefix); ok {
		namespace, app, _ := strings.Cut(id, "/")
		if namespace != "" && app != "" && !strings.Contains(app, "/") {
			return policy.Ref{Kind: policy.KindApplication, Name: id}, nil
		}
	}
	if uid, ok := strings.CutPrefix(name, keyPrefix); ok && uid != "" {
		return policy.Ref{Kind: policy.KindKey, Name: uid}, nil
	}
	if model, ok := strings.CutPrefix(name, modelPrefix); ok && model != "" {
		return policy.Ref{Kind: policy.KindModel, Name: model}, nil
	}
	return policy.Ref{}, fmt.Errorf("resource name %q: not an entry of the key set", name)
}

// Decode reads a resource and adds it to the delta. It refuses what does not fit its name, and leaves the delta alone then. What it
// does not know it treats as the stricter choice: an unknown state is disabled, an unknown capability is left out.
func Decode(name string, body []byte, into *policy.Delta) error {
	ref, err := RefOf(name)
	if err != nil {
		return err
	}
	var entry keysetv1.Entry
	if err := proto.Unmarshal(body, &entry); err != nil {
		return fmt.Errorf("read resource %q: %w", name, err)
	}
	var content policy.Ref
	var add func()
	switch e := entry.Entry.(type) {
	case *keysetv1.Entry_System:
		add = func() { into.System = decodeSystem(e.System) }
	case *keysetv1.Entry_Application:
		a := decodeApplication(e.Application)
		content = policy.Ref{Kind: policy.KindApplication, Name: a.ID()}
		add = func() { into.Applications = append(into.Applications, a) }
	case *keysetv1.Entry_Key:
		k, err := decodeKey(e.Key)
		if err != nil {
			return fmt.Errorf("read resource %q: %w", name, err)
		}
		content = policy.Ref{Kind: policy.KindKey, Name: k.UID}
		add = func() { into.Keys = append(into.Keys, k) }
	case *keysetv1.Entry_Model:
		m, err := decodeModel(e.Model)
		if err != nil {
			return fmt.Errorf("read resource %q: %w", name, err)
		}
		content = policy.Ref{Kind: policy.KindModel, Name: m.Name}
		add = func() { into.Models = append(into.Models, m) }
	default:
		return fmt.Errorf("read resource %q: it holds no entry that this version knows", name)
	}
	if content != ref {
		return fmt.Errorf("read resource %q: its content is that of %q", name, NameOf(content))
	}
	add()
	return nil
}

func decodeSystem(s *keysetv1.System) *policy.System {
	return &policy.System{
		Currency:          s.GetCurrency(),
		TimeZone:          s.GetTimeZone(),
		RequestsPerMinute: decodeRange(s.GetRequestsPerMinute()),
		TokensPerMinute:   decodeRange(s.GetTokensPerMinute()),
		UnpricedModels:    decodeUnpriced(s.GetUnpricedModels()),
		LedgerFailure:     decodeFailure(s.GetLedgerFailure()),
	}
}

func decodeApplication(a *keysetv1.Application) *policy.Application {
	return &policy.Application{
		UID:          a.GetUid(),
		Namespace:    a.GetNamespace(),
		Name:         a.GetName(),
		DisplayName:  a.GetDisplayName(),
		State:        decodeState(a.GetState()),
		Capabilities: decodeCapabilities(a.GetCapabilities()),
		Models:       decodeScope(a.GetModels()),
		Limits:       decodeLimits(a.GetLimits()),
		Budgets:      decodeBudgets(a.GetBudgets()),
	}
}

func decodeKey(k *keysetv1.Key) (*policy.Key, error) {
	if len(k.GetCredentials()) == 0 {
		return nil, errors.New("the key has no credential")
	}
	credentials := make([]policy.Credential, 0, len(k.GetCredentials()))
	for _, c := range k.GetCredentials() {
		if len(c.GetSha256()) != sha256.Size {
			return nil, fmt.Errorf("a credential's hash has %d bytes, not %d", len(c.GetSha256()), sha256.Size)
		}
		ends, err := decodeTime(c.GetEndTime())
		if err != nil {
			return nil, fmt.Errorf("end time of a credential: %w", err)
		}
		credentials = append(credentials, policy.Credential{Hash: policy.KeyHash(c.GetSha256()), Prefix: c.GetPrefix(), Ends: ends})
	}
	expires, err := decodeTime(k.GetExpirationTime())
	if err != nil {
		return nil, fmt.Errorf("expiration time: %w", err)
	}
	return &policy.Key{
		UID:          k.GetUid(),
		Namespace:    k.GetNamespace(),
		Name:         k.GetName(),
		DisplayName:  k.GetDisplayName(),
		Credentials:  credentials,
		Application:  k.GetApplication(),
		State:        decodeState(k.GetState()),
		Expires:      expires,
		Capabilities: decodeCapabilities(k.GetCapabilities()),
		Models:       decodeScope(k.GetModels()),
		Limits:       decodeLimits(k.GetLimits()),
		Budgets:      decodeBudgets(k.GetBudgets()),
	}, nil
}

func decodeModel(m *keysetv1.Model) (*policy.Model, error) {
	format := policy.FormatUnknown
	switch m.GetFormat() {
	case keysetv1.Format_FORMAT_OPENAI:
		format = policy.FormatOpenAI
	case keysetv1.Format_FORMAT_ANTHROPIC:
		format = policy.FormatAnthropic
	case keysetv1.Format_FORMAT_UNSPECIFIED:
	}
	created, err := decodeTime(m.GetCreationTime())
	if err != nil {
		return nil, fmt.Errorf("creation time: %w", err)
	}
	return &policy.Model{
		Name:            m.GetName(),
		Capabilities:    decodeCapabilities(m.GetCapabilities()),
		Provider:        m.GetProvider(),
		Format:          format,
		UpstreamName:    m.GetUpstreamName(),
		MaxInputTokens:  m.GetMaxInputTokens(),
		MaxOutputTokens: m.GetMaxOutputTokens(),
		Prices:          decodePrices(m.GetPrices()),
		Created:         created,
	}, nil
}

func decodeState(s keysetv1.State) policy.State {
	if s == keysetv1.State_STATE_ENABLED {
		return policy.StateEnabled
	}
	return policy.StateDisabled
}

func decodeCapabilities(codes []keysetv1.Capability) policy.Capabilities {
	var set policy.Capabilities
	for _, code := range codes {
		for c, known := range capabilityCodes {
			if code == known {
				set |= policy.CapabilitiesOf(c)
			}
		}
	}
	return set
}

func decodeScope(s *keysetv1.ModelScope) policy.ModelScope {
	if s.GetAll() {
		return policy.ModelScope{All: true}
	}
	return policy.ScopeOf(s.GetNames()...)
}

func decodeLimits(l *keysetv1.Limits) policy.RateLimits {
	out := policy.NoRateLimits()
	if l != nil && l.RequestsPerMinute != nil {
		out.RequestsPerMinute = max(0, policy.Limit(*l.RequestsPerMinute))
	}
	if l != nil && l.TokensPerMinute != nil {
		out.TokensPerMinute = max(0, policy.Limit(*l.TokensPerMinute))
	}
	if l != nil && l.ConcurrentRequests != nil {
		out.ConcurrentRequests = max(0, policy.Limit(*l.ConcurrentRequests))
	}
	return out
}

func decodeUnpriced(u keysetv1.Unpriced) policy.Unpriced {
	if u == keysetv1.Unpriced_UNPRICED_FREE {
		return policy.UnpricedFree
	}
	return policy.UnpricedRefuse
}

func decodeFailure(f keysetv1.LedgerFailure) policy.OnFailure {
	if f == keysetv1.LedgerFailure_LEDGER_FAILURE_ALLOW {
		return policy.OnFailureAllow
	}
	return policy.OnFailureRefuse
}

func decodePrices(p *keysetv1.Prices) *policy.Prices {
	if p == nil {
		return nil
	}
	out := &policy.Prices{
		Input:                decodePrice(p.Input),
		CachedInput:          decodePrice(p.CachedInput),
		CacheWrite:           decodePrice(p.CacheWrite),
		CacheWriteOneHour:    decodePrice(p.CacheWriteOneHour),
		Output:               decodePrice(p.Output),
		AudioInput:           decodePrice(p.AudioInput),
		AudioOutput:          decodePrice(p.AudioOutput),
		ImageInput:           decodePrice(p.ImageInput),
		ImageOutput:          decodePrice(p.ImageOutput),
		PerMillionCharacters: decodePrice(p.PerMillionCharacters),
		PerMinute:            decodePrice(p.PerMinute),
		PerSearch:            decodePrice(p.PerSearch),
	}
	for _, i := range p.GetImages() {
		out.Images = append(out.Images, policy.ImagePrice{Size: i.GetSize(), Quality: i.GetQuality(), Price: max(0, money.Amount(i.GetPrice()))})
	}
	return out
}

func decodePrice(nanos *int64) money.Amount {
	if nanos == nil {
		return policy.NoPrice
	}
	return max(0, money.Amount(*nanos))
}

func decodeBudgets(b *keysetv1.Budgets) policy.Budgets {
	out := policy.NoBudgets()
	if b == nil {
		return out
	}
	out.Daily, out.Monthly = decodeAmount(b.DailyNanos), decodeAmount(b.MonthlyNanos)
	if b.GetEnforcement() == keysetv1.Enforcement_ENFORCEMENT_STRICT {
		out.Enforcement = policy.Strict
	}
	return out
}

func decodeAmount(nanos *int64) money.Amount {
	if nanos == nil {
		return policy.NoBudget
	}
	return max(0, money.Amount(*nanos))
}

func decodeRange(r *keysetv1.Range) policy.Range {
	return policy.Range{Default: max(0, policy.Limit(r.GetDefault())), Max: max(0, policy.Limit(r.GetMax()))}
}

// decodeTime refuses a time that would read as none, since a key without an expiration time never expires.
func decodeTime(t *timestamppb.Timestamp) (time.Time, error) {
	if t == nil {
		return time.Time{}, nil
	}
	if err := t.CheckValid(); err != nil {
		return time.Time{}, err
	}
	at := t.AsTime()
	if at.IsZero() {
		return time.Time{}, errors.New("the first moment of year 1 is not a time")
	}
	return at, nil
}
