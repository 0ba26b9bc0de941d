package enforce

import (
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/latchkey-dev/latchkey/internal/key"
	"github.com/latchkey-dev/latchkey/internal/policy"
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
		return &refusal{status: http.StatusUnauthorized, kind: kindAuthentication, code: "invalid_api_key", reason: "key_malformed", message: message}
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
	deny := func(code, message string) *refusal {
		return &refusal{status: http.StatusUnauthorized, kind: kindAuthentication, code: code, reason: code, message: message}
	}
	switch {
	case k == nil:
		return &refusal{status: http.StatusUnauthorized, kind: kindAuthentication, code: "invalid_api_key", reason: "key_unknown",
			message: "the API key is not valid: it is unknown here, or has been deleted"}
	case k.State != policy.StateEnabled:
		return deny("api_key_disabled", "the API key "+x.prefix()+"… is disabled: whoever manages it can enable it again")
	case k.ExpiredAt(now):
		return deny("api_key_expired", "the API key "+x.prefix()+"… expired at "+k.Expires.UTC().Format(time.RFC3339))
	case app == nil || app.State != policy.StateEnabled:
		return deny("application_disabled", "the application of the API key "+x.prefix()+"… is disabled: whoever manages it can enable it again")
	}
	return nil
}

// presented is the one key that the request carries. Two that differ are refused: to guess would be to bill somebody else.
func (x *Exchange) presented() (string, *refusal) {
	found, scheme := "", ""
	for _, h := range x.head.Headers {
		value := strings.TrimSpace(h.Value)
		switch h.Name {
		case "authorization":
			name, credential, _ := strings.Cut(value, " ")
			if !strings.EqualFold(name, "bearer") {
				scheme = name
				continue
			}
			value = strings.TrimSpace(credential)
		case "x-api-key", "api-key":
		default:
			continue
		}
		if value == "" {
			continue
		}
		if strings.ContainsAny(value, ", \t") || (found != "" && found != value) {
			return "", &refusal{status: http.StatusBadRequest, reason: "ambiguous_key",
				message: "the request carries more than one API key: " + sendIt + ", once"}
		}
		found = value
	}
	if found != "" && scheme == "" {
		return found, nil
	}
	message := "no API key was sent: " + sendIt
	if scheme != "" {
		message = "the authorization header has the scheme " + shown(scheme) + ": send \"Authorization: Bearer KEY\""
	}
	return "", &refusal{status: http.StatusUnauthorized, kind: kindAuthentication, reason: "no_key", message: message}
}
