package enforce

import (
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/latchkey-dev/latchkey/internal/key"
	"github.com/latchkey-dev/latchkey/internal/policy"
)

// The headers that a key can be sent in.
const (
	headerAuthorization = "authorization"
	headerXAPIKey       = "x-api-key"
	headerAPIKey        = "api-key"
)

const sendIt = "send it as \"Authorization: Bearer KEY\" (or as x-api-key or api-key)"

// authenticate finds the caller's key and checks that it is in force.
func (x *Exchange) authenticate(now time.Time) *refusal {
	presented, refused := x.presented()
	if refused != nil {
		return refused
	}
	plaintext, err := key.Parse(presented)
	if err != nil {
		message := "the API key is malformed: it begins with lk_ and has 52 letters and digits in all"
		if errors.Is(err, key.ErrChecksum) {
			message = "the API key is malformed: its checksum does not match, so it was cut off or mistyped"
		}
		return unauthenticated("invalid_api_key", "key_malformed", message)
	}
	x.plaintext, x.hash = plaintext, plaintext.Hash()
	return x.look(now)
}

// look looks the key up and checks that it is in force now.
func (x *Exchange) look(now time.Time) *refusal {
	k, app, filled := x.engine.table.find(x.hash)
	if !filled {
		return &refusal{status: http.StatusServiceUnavailable, kind: kindServer, reason: "no_policy",
			message: "the gateway has no policy yet and cannot decide; try again shortly"}
	}
	x.key, x.app = k, app
	const disabled = " is disabled: whoever manages it can enable it again"
	switch {
	case k == nil:
		return unauthenticated("invalid_api_key", "key_unknown", "the API key is not valid: it is unknown here, or has been deleted")
	case x.superseded(now):
		return unauthenticated("api_key_expired", "key_rotated",
			"the API key "+x.prefix()+"… was replaced by another and ended at "+k.Credential(x.hash).Ends.UTC().Format(time.RFC3339)+": use the new one")
	case k.State != policy.StateEnabled:
		return unauthenticated("api_key_disabled", "api_key_disabled", "the API key "+x.prefix()+"…"+disabled)
	case k.ExpiredAt(now):
		return unauthenticated("api_key_expired", "api_key_expired",
			"the API key "+x.prefix()+"… expired at "+k.Expires.UTC().Format(time.RFC3339)+": use another, or have its expiration moved")
	case app == nil:
		return unauthenticated("application_disabled", "application_disabled",
			"the application "+shown(k.Application)+" of the API key "+x.prefix()+"… is not there: whoever manages the key has to create it")
	case app.State != policy.StateEnabled:
		return unauthenticated("application_disabled", "application_disabled",
			"the application "+shown(k.Application)+" of the API key "+x.prefix()+"…"+disabled)
	}
	return nil
}

// superseded reports whether the secret that was presented is one from before a rotation, and its time has passed.
func (x *Exchange) superseded(now time.Time) bool {
	c := x.key.Credential(x.hash)
	return c != nil && c.EndedAt(now)
}

// presented is the one key that the request carries. Several headers may carry it, each once; two that differ are refused: to guess would
// be to bill somebody else.
func (x *Exchange) presented() (string, *refusal) {
	var values [3]string // by header
	var sent [3]bool
	for i := range x.head.Headers {
		h := &x.head.Headers[i]
		at := 0
		switch h.Name {
		case headerAuthorization:
		case headerXAPIKey:
			at = 1
		case headerAPIKey:
			at = 2
		default:
			continue
		}
		if sent[at] {
			return "", ambiguous()
		}
		values[at], sent[at] = strings.TrimSpace(h.Value), true
	}
	// What is sent with another scheme may be a credential, and is not quoted.
	if authorization := values[0]; authorization != "" {
		scheme, credential, _ := strings.Cut(authorization, " ")
		if !strings.EqualFold(scheme, "bearer") {
			message := "the authorization header has another scheme than Bearer: send \"Authorization: Bearer KEY\""
			if _, err := key.Parse(authorization); err == nil {
				message = "the authorization header holds the API key without its scheme: send \"Authorization: Bearer KEY\""
			}
			return "", unauthenticated("", "no_key", message)
		}
		values[0] = strings.TrimSpace(credential)
	}
	found := ""
	for _, value := range values {
		if strings.ContainsAny(value, ", \t") || (found != "" && value != "" && found != value) {
			return "", ambiguous()
		}
		if value != "" {
			found = value
		}
	}
	if found == "" {
		return "", unauthenticated("", "no_key", "no API key was sent: "+sendIt)
	}
	return found, nil
}

func ambiguous() *refusal {
	return &refusal{status: http.StatusBadRequest, reason: "ambiguous_key", message: "the request carries more than one API key: " + sendIt + ", once"}
}

func unauthenticated(code, reason, message string) *refusal {
	return &refusal{status: http.StatusUnauthorized, kind: kindAuthentication, code: code, reason: reason, message: message}
}
