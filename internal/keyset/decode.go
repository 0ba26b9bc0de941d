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

// RefOf is the inverse of NameOf.
func RefOf(name string) (policy.Ref, error) {
	if name == systemName {
		return policy.Ref{Kind: policy.KindSystem}, nil
	}
	for prefix, kind := range map[string]policy.Kind{
		applicationPrefix: policy.KindApplication, keyPrefix: policy.KindKey, modelPrefix: policy.KindModel,
	} {
		if rest, ok := strings.CutPrefix(name, prefix); ok && rest != "" {
			return policy.Ref{Kind: kind, Name: rest}, nil
		}
	}
	return policy.Ref{}, fmt.Errorf("resource name %q: not an entry of the key set", name)
}

// Decode reads a resource and adds it to the delta. It refuses what does not fit its name, and treats what it does not know as the stricter
// choice: an unknown state is disabled, an unknown capability is left out.
func Decode(name string, body []byte, into *policy.Delta) error {
	var entry keysetv1.Entry
	if err := proto.Unmarshal(body, &entry); err != nil {
		return fmt.Errorf("read resource %q: %w", name, err)
	}
	var ref policy.Ref
	switch e := entry.Entry.(type) {
	case *keysetv1.Entry_System:
		into.System = decodeSystem(e.System)
		ref = policy.Ref{Kind: policy.KindSystem}
	case *keysetv1.Entry_Application:
		a := decodeApplication(e.Application)
		into.Applications = append(into.Applications, a)
		ref = policy.Ref{Kind: policy.KindApplication, Name: a.ID()}
	case *keysetv1.Entry_Key:
		k, err := decodeKey(e.Key)
		if err != nil {
			return fmt.Errorf("read resource %q: %w", name, err)
		}
		into.Keys = append(into.Keys, k)
		ref = policy.Ref{Kind: policy.KindKey, Name: k.UID}
	case *keysetv1.Entry_Model:
		m := decodeModel(e.Model)
		into.Models = append(into.Models, m)
		ref = policy.Ref{Kind: policy.KindModel, Name: m.Name}
	default:
		return fmt.Errorf("read resource %q: it holds no entry that this version knows", name)
	}
	if want := NameOf(ref); name != want {
		return fmt.Errorf("read resource %q: its content is that of %q", name, want)
	}
	return nil
}

func decodeSystem(s *keysetv1.System) *policy.System {
	return &policy.System{
		Currency:          s.GetCurrency(),
		TimeZone:          s.GetTimeZone(),
		RequestsPerMinute: decodeRange(s.GetRequestsPerMinute()),
		TokensPerMinute:   decodeRange(s.GetTokensPerMinute()),
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
		credentials = append(credentials, policy.Credential{Hash: policy.KeyHash(c.GetSha256()), Prefix: c.GetPrefix()})
	}
	return &policy.Key{
		UID:          k.GetUid(),
		Namespace:    k.GetNamespace(),
		Name:         k.GetName(),
		DisplayName:  k.GetDisplayName(),
		Credentials:  credentials,
		Application:  k.GetApplication(),
		State:        decodeState(k.GetState()),
		Expires:      decodeTime(k.GetExpirationTime()),
		Capabilities: decodeCapabilities(k.GetCapabilities()),
		Models:       decodeScope(k.GetModels()),
		Limits:       decodeLimits(k.GetLimits()),
		Budgets:      decodeBudgets(k.GetBudgets()),
	}, nil
}

func decodeModel(m *keysetv1.Model) *policy.Model {
	format := policy.FormatUnknown
	switch m.GetFormat() {
	case keysetv1.Format_FORMAT_OPENAI:
		format = policy.FormatOpenAI
	case keysetv1.Format_FORMAT_ANTHROPIC:
		format = policy.FormatAnthropic
	case keysetv1.Format_FORMAT_UNSPECIFIED:
	}
	return &policy.Model{
		Name:            m.GetName(),
		Capabilities:    decodeCapabilities(m.GetCapabilities()),
		Provider:        m.GetProvider(),
		Format:          format,
		UpstreamName:    m.GetUpstreamName(),
		MaxOutputTokens: m.GetMaxOutputTokens(),
		Created:         decodeTime(m.GetCreationTime()),
	}
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
	return out
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

func decodeTime(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}
