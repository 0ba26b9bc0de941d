package keyset

import (
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	keysetv1 "github.com/latchkey-dev/latchkey/api/keyset/v1"
	"github.com/latchkey-dev/latchkey/internal/money"
	"github.com/latchkey-dev/latchkey/internal/policy"
)

// random makes policy objects. Everything that can be said is said sooner or later.
type random struct{ *rand.Rand }

func (r random) text() string {
	letters := []rune("abcxyz-09ÄŽ漢🔑 ")
	var b strings.Builder
	for range 1 + r.IntN(12) {
		b.WriteRune(letters[r.IntN(len(letters))])
	}
	return b.String()
}

func (r random) limit() policy.Limit {
	return []policy.Limit{policy.Unset, 0, 1, policy.Limit(r.Int64()), math.MaxInt64}[r.IntN(5)]
}

func (r random) amount() money.Amount {
	return []money.Amount{policy.NoBudget, 0, 1, money.Amount(r.Int64()), math.MaxInt64}[r.IntN(5)]
}

func (r random) limits() policy.RateLimits {
	return policy.RateLimits{RequestsPerMinute: r.limit(), TokensPerMinute: r.limit(), ConcurrentRequests: r.limit()}
}

func (r random) budgets() policy.Budgets {
	return policy.Budgets{Daily: r.amount(), Monthly: r.amount(), Enforcement: policy.Enforcement(r.IntN(2))}
}

func (r random) capabilities() policy.Capabilities {
	return policy.Capabilities(r.IntN(int(policy.AllCapabilities) + 1))
}

func (r random) scope() policy.ModelScope {
	if r.IntN(3) == 0 {
		return policy.ModelScope{All: true}
	}
	names := make([]string, r.IntN(4))
	for i := range names {
		names[i] = r.text()
	}
	return policy.ScopeOf(names...)
}

func (r random) state() policy.State {
	return []policy.State{policy.StateEnabled, policy.StateDisabled}[r.IntN(2)]
}

func (r random) time() time.Time {
	if r.IntN(3) == 0 {
		return time.Time{}
	}
	return time.Unix(r.Int64N(1<<33), r.Int64N(1_000_000_000)).UTC()
}

func (r random) system() *policy.System {
	return &policy.System{
		Currency: r.text(), TimeZone: r.text(),
		RequestsPerMinute: policy.Range{Default: max(0, r.limit()), Max: max(0, r.limit())},
		TokensPerMinute:   policy.Range{Default: max(0, r.limit()), Max: max(0, r.limit())},
		UnpricedModels:    policy.Unpriced(r.IntN(2)),
		LedgerFailure:     policy.OnFailure(r.IntN(2)),
	}
}

func (r random) application() *policy.Application {
	return &policy.Application{
		UID: r.text(), Namespace: r.text(), Name: r.text(), DisplayName: r.text(), State: r.state(),
		Capabilities: r.capabilities(), Models: r.scope(), Limits: r.limits(), Budgets: r.budgets(),
	}
}

func (r random) key() *policy.Key {
	k := &policy.Key{
		UID: r.text(), Namespace: r.text(), Name: r.text(), DisplayName: r.text(), Application: r.text(), State: r.state(),
		Expires: r.time(), Capabilities: r.capabilities(), Models: r.scope(), Limits: r.limits(), Budgets: r.budgets(),
	}
	for range 1 + r.IntN(3) {
		c := policy.Credential{Prefix: r.text(), Ends: r.time()}
		for i := range c.Hash {
			c.Hash[i] = byte(r.Uint32())
		}
		k.Credentials = append(k.Credentials, c)
	}
	return k
}

func (r random) model() *policy.Model {
	return &policy.Model{
		Name: r.text(), Capabilities: r.capabilities(), Provider: r.text(), Format: policy.Format(r.IntN(3)), UpstreamName: r.text(),
		MaxInputTokens: r.Int64(), MaxOutputTokens: r.Int64(), Prices: r.prices(), Created: r.time(),
	}
}

func (r random) prices() *policy.Prices {
	if r.IntN(3) == 0 {
		return nil
	}
	p := &policy.Prices{
		Input: r.amount(), CachedInput: r.amount(), CacheWrite: r.amount(), CacheWriteOneHour: r.amount(), Output: r.amount(),
		AudioInput: r.amount(), AudioOutput: r.amount(), ImageInput: r.amount(), ImageOutput: r.amount(),
		PerMillionCharacters: r.amount(), PerMinute: r.amount(), PerSearch: r.amount(),
	}
	for range r.IntN(3) {
		p.Images = append(p.Images, policy.ImagePrice{Size: r.text(), Quality: r.text(), Price: max(0, r.amount())})
	}
	return p
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	r := random{rand.New(rand.NewPCG(1, 2))}
	for range 300 {
		want := policy.Delta{
			System: r.system(), Applications: []*policy.Application{r.application()}, Keys: []*policy.Key{r.key()},
			Models: []*policy.Model{r.model()},
		}
		var got policy.Delta
		var again []Resource
		for range 2 {
			got, again = policy.Delta{}, append(again, EncodeSystem(want.System), EncodeApplication(want.Applications[0]),
				EncodeKey(want.Keys[0]), EncodeModel(want.Models[0]))
		}
		for i, resource := range again[:4] {
			if diff := cmp.Diff(resource, again[4+i]); diff != "" {
				t.Fatalf("the same object was encoded in two ways:\n%s", diff)
			}
			ref, err := RefOf(resource.Name)
			if err != nil || NameOf(ref) != resource.Name {
				t.Fatalf("RefOf(%q) = %v, %v", resource.Name, ref, err)
			}
			if err := Decode(resource.Name, resource.Body, &got); err != nil {
				t.Fatal(err)
			}
		}
		if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("what was encoded does not come back (-want +got):\n%s", diff)
		}
		if again[1].Revokes != (want.Applications[0].State != policy.StateEnabled) || again[2].Revokes != (want.Keys[0].State != policy.StateEnabled) {
			t.Fatal("Revokes does not go by the state")
		}
	}
}

func TestVersionGoesByContent(t *testing.T) {
	t.Parallel()
	r := random{rand.New(rand.NewPCG(3, 4))}
	k := r.key()
	before := EncodeKey(k)
	k.State = policy.StateEnabled + policy.StateDisabled - k.State
	if after := EncodeKey(k); after.Version == before.Version || after.Name != before.Name {
		t.Fatalf("%s %s became %s %s when the state changed", before.Name, before.Version, after.Name, after.Version)
	}
}

func TestTextThatIsNotUTF8DoesNotStopTheRest(t *testing.T) {
	t.Parallel()
	k := random{rand.New(rand.NewPCG(5, 6))}.key()
	k.UID, k.DisplayName = "u\xff", "\xc3"
	r := EncodeKey(k)
	var got policy.Delta
	if err := Decode(r.Name, r.Body, &got); err != nil {
		t.Fatal(err)
	}
	if got.Keys[0].UID != "u\uFFFD" || got.Keys[0].DisplayName != "\uFFFD" {
		t.Fatalf("got %q, %q", got.Keys[0].UID, got.Keys[0].DisplayName)
	}
}

func entryKey(change func(*keysetv1.Key)) *keysetv1.Entry {
	k := &keysetv1.Key{
		Uid: "u1", Namespace: "shop", Name: "k", Application: "web", State: keysetv1.State_STATE_ENABLED,
		Credentials: []*keysetv1.Credential{{Sha256: make([]byte, 32)}},
	}
	if change != nil {
		change(k)
	}
	return &keysetv1.Entry{Entry: &keysetv1.Entry_Key{Key: k}}
}

func TestDecodeRefuses(t *testing.T) {
	t.Parallel()
	app := func(ns, name string) *keysetv1.Entry {
		return &keysetv1.Entry{Entry: &keysetv1.Entry_Application{Application: &keysetv1.Application{Namespace: ns, Name: name}}}
	}
	model := func(m *keysetv1.Model) *keysetv1.Entry {
		return &keysetv1.Entry{Entry: &keysetv1.Entry_Model{Model: m}}
	}
	system := &keysetv1.Entry{Entry: &keysetv1.Entry_System{}}
	for name, tc := range map[string]struct {
		resource string
		entry    *keysetv1.Entry
		want     string
	}{
		"a name of no kind":                      {"thing/x", entryKey(nil), "not an entry of the key set"},
		"an empty name":                          {"", entryKey(nil), "not an entry of the key set"},
		"a key's name without a UID":             {"key/", entryKey(func(k *keysetv1.Key) { k.Uid = "" }), "not an entry of the key set"},
		"a model's name without a name":          {"model/", model(&keysetv1.Model{}), "not an entry of the key set"},
		"an application without a namespace":     {"app//x", app("", "x"), "not an entry of the key set"},
		"an application without a name":          {"app/x/", app("x", ""), "not an entry of the key set"},
		"an application's name with two slashes": {"app/a/b/c", app("a", "b/c"), "not an entry of the key set"},
		"the marker, which is no entry":          {"sync", &keysetv1.Entry{Entry: &keysetv1.Entry_Sync{}}, "not an entry of the key set"},
		"the marker under another name":          {"key/u1", &keysetv1.Entry{Entry: &keysetv1.Entry_Sync{}}, "no entry that this version knows"},
		"an empty body":                          {"key/u1", &keysetv1.Entry{}, "no entry that this version knows"},
		"a key under another's name":             {"key/u2", entryKey(nil), `content is that of "key/u1"`},
		"an application under another's name":    {"app/a/b", app("a", "c"), `content is that of "app/a/c"`},
		"an application under a model's name":    {"model/a/b", app("a", "b"), `content is that of "app/a/b"`},
		"the system under a key's name":          {"key/u1", system, `content is that of "system"`},
		"a key under the system's name":          {"system", entryKey(nil), `content is that of "key/u1"`},
		"a key without a credential":             {"key/u1", entryKey(func(k *keysetv1.Key) { k.Credentials = nil }), "no credential"},
		"a hash that is too short":               {"key/u1", entryKey(func(k *keysetv1.Key) { k.Credentials[0].Sha256 = make([]byte, 31) }), "31 bytes"},
		"a hash that is too long": {"key/u1", entryKey(func(k *keysetv1.Key) {
			k.Credentials = append(k.Credentials, &keysetv1.Credential{Sha256: make([]byte, 33)})
		}), "33 bytes"},
		"an end of a secret that would read as never": {"key/u1", entryKey(func(k *keysetv1.Key) {
			k.Credentials[0].EndTime = &timestamppb.Timestamp{Seconds: time.Time{}.Unix()}
		}), "end time"},
		"an expiration that would read as never": {"key/u1", entryKey(func(k *keysetv1.Key) {
			k.ExpirationTime = &timestamppb.Timestamp{Seconds: time.Time{}.Unix()}
		}), "expiration time"},
		"an expiration beyond all calendars": {"key/u1", entryKey(func(k *keysetv1.Key) {
			k.ExpirationTime = &timestamppb.Timestamp{Seconds: math.MaxInt64}
		}), "expiration time"},
		"a creation time beyond all calendars": {"model/m", model(&keysetv1.Model{
			Name: "m", CreationTime: &timestamppb.Timestamp{Nanos: -1},
		}), "creation time"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			body, err := proto.Marshal(tc.entry)
			if err != nil {
				t.Fatal(err)
			}
			var into policy.Delta
			if err := Decode(tc.resource, body, &into); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
			if !into.Empty() {
				t.Errorf("it left %+v", into)
			}
		})
	}
	var into policy.Delta
	if err := Decode("key/u1", []byte{0xff}, &into); err == nil || !into.Empty() {
		t.Errorf("a body that is no message: %v", err)
	}
}

func TestDecodeTakesTheStricterChoice(t *testing.T) {
	t.Parallel()
	decode := func(t *testing.T, change func(*keysetv1.Key)) *policy.Key {
		t.Helper()
		body, err := proto.Marshal(entryKey(change))
		if err != nil {
			t.Fatal(err)
		}
		var into policy.Delta
		if err := Decode("key/u1", body, &into); err != nil {
			t.Fatal(err)
		}
		return into.Keys[0]
	}
	for name, tc := range map[string]struct {
		change func(*keysetv1.Key)
		ok     func(*policy.Key) bool
	}{
		"a state that is not said is disabled": {
			func(k *keysetv1.Key) { k.State = 0 }, func(k *policy.Key) bool { return k.State == policy.StateDisabled },
		},
		"an unknown state is disabled": {
			func(k *keysetv1.Key) { k.State = 77 }, func(k *policy.Key) bool { return k.State == policy.StateDisabled },
		},
		"an unknown capability is left out": {
			func(k *keysetv1.Key) {
				k.Capabilities = []keysetv1.Capability{99, keysetv1.Capability_CAPABILITY_EMBEDDINGS, 0, -1}
			},
			func(k *policy.Key) bool { return k.Capabilities == policy.CapabilitiesOf(policy.Embeddings) },
		},
		"no scope allows no model": {
			nil, func(k *policy.Key) bool { return !k.Models.All && !k.Models.Allows("m") },
		},
		"a scope's names are found whatever their order": {
			func(k *keysetv1.Key) { k.Models = &keysetv1.ModelScope{Names: []string{"z", "a", "z"}} },
			func(k *policy.Key) bool { return k.Models.Allows("a") && k.Models.Allows("z") && !k.Models.Allows("m") },
		},
		"a negative limit refuses": {
			func(k *keysetv1.Key) {
				k.Limits = &keysetv1.Limits{RequestsPerMinute: new(int64(-1)), TokensPerMinute: new(int64(-9))}
			},
			func(k *policy.Key) bool { return k.Limits == policy.RateLimits{ConcurrentRequests: policy.Unset} },
		},
		"a negative budget refuses": {
			func(k *keysetv1.Key) {
				k.Budgets = &keysetv1.Budgets{DailyNanos: new(int64(-1)), MonthlyNanos: new(int64(-1))}
			},
			func(k *policy.Key) bool { return k.Budgets.Daily == 0 && k.Budgets.Monthly == 0 },
		},
		"limits and budgets that are not there are not set": {
			nil, func(k *policy.Key) bool { return k.Limits == policy.NoRateLimits() && k.Budgets == policy.NoBudgets() },
		},
		"an expiration in 1970 has passed": {
			func(k *keysetv1.Key) { k.ExpirationTime = &timestamppb.Timestamp{} },
			func(k *policy.Key) bool { return k.ExpiredAt(time.Unix(1, 0)) },
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if k := decode(t, tc.change); !tc.ok(k) {
				t.Fatalf("got %+v", k)
			}
		})
	}
}

func FuzzDecode(f *testing.F) {
	r := random{rand.New(rand.NewPCG(7, 8))}
	for range 8 {
		for _, one := range []Resource{EncodeSystem(r.system()), EncodeApplication(r.application()), EncodeKey(r.key()), EncodeModel(r.model()), encodeSync(7)} {
			f.Add(one.Name, one.Body)
		}
	}
	f.Fuzz(func(t *testing.T, name string, body []byte) {
		var into policy.Delta
		if err := Decode(name, body, &into); err != nil {
			if !into.Empty() {
				t.Fatalf("%v, and yet it left something", err)
			}
			return
		}
		// What is read is what its name says, and comes back the same.
		var again Resource
		switch {
		case into.System != nil:
			again = EncodeSystem(into.System)
		case len(into.Applications) == 1:
			again = EncodeApplication(into.Applications[0])
		case len(into.Keys) == 1:
			k := into.Keys[0]
			if k.State != policy.StateEnabled && k.State != policy.StateDisabled || len(k.Credentials) == 0 {
				t.Fatalf("read %+v", k)
			}
			again = EncodeKey(k)
		case len(into.Models) == 1:
			again = EncodeModel(into.Models[0])
		default:
			t.Fatal("it said yes and read nothing")
		}
		if again.Name != name {
			t.Fatalf("%q became %q", name, again.Name)
		}
		var second policy.Delta
		if err := Decode(again.Name, again.Body, &second); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(into, second, cmpopts.EquateEmpty()); diff != "" {
			t.Fatal(diff)
		}
	})
}

func TestRefusalDetails(t *testing.T) {
	t.Parallel()
	want := []string{"key/a", "app/x/y"}
	details, err := RefusalDetails(want)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, RefusedNames(details)); diff != "" {
		t.Fatal(diff)
	}
	details[0].TypeUrl = "type.googleapis.com/latchkey.keyset.v1.Entry"
	if got := RefusedNames(details); got != nil {
		t.Fatalf("read %v from a detail of another kind", got)
	}
}
