package webhook

import (
	"cmp"
	"encoding/base64"
	"errors"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/deliverykit/delivery/destination"
)

// AuthType is a way to authenticate.
type AuthType string

// The ways to authenticate.
const (
	AuthNone   AuthType = ""
	AuthAPIKey AuthType = "api_key" // a header with a key
	AuthBearer AuthType = "bearer"  // RFC 6750, section 2.1
	AuthBasic  AuthType = "basic"   // RFC 7617, in UTF-8
	AuthOAuth2 AuthType = "oauth2"  // client credentials: RFC 6749, section 4.4
)

// Auth is how requests prove who they come from. Make one with APIKey, Bearer, Basic or
// ClientCredentials; the zero Auth is none.
type Auth struct {
	Type     AuthType           `json:"type,omitempty"`
	Header   string             `json:"header,omitempty"` // of an API key: X-Api-Key
	Key      destination.Secret `json:"key,omitzero"`     // the API key
	Token    destination.Secret `json:"token,omitzero"`   // the bearer token
	User     string             `json:"user,omitempty"`
	Password destination.Secret `json:"password,omitzero"`
	OAuth2   OAuth2             `json:"oauth2,omitzero"`
}

// APIKey sends key in a header of that name, X-Api-Key if it is "".
func APIKey(header, key string) Auth {
	return Auth{Type: AuthAPIKey, Header: header, Key: destination.NewSecret(key)}
}

// Bearer sends "Authorization: Bearer token".
func Bearer(token string) Auth {
	return Auth{Type: AuthBearer, Token: destination.NewSecret(token)}
}

// Basic sends a user and a password as RFC 7617 describes.
func Basic(user, password string) Auth {
	return Auth{Type: AuthBasic, User: user, Password: destination.NewSecret(password)}
}

func (a Auth) validate() error {
	var errs []error
	field := func(path string, needed, set bool) {
		switch {
		case needed && !set:
			errs = append(errs, destination.Require(path, ""))
		case !needed && set && a.Type == AuthNone:
			errs = append(errs, destination.Invalid(path, "is set, but auth.type is not"))
		case !needed && set:
			errs = append(errs, destination.Invalid(path, "does not belong to auth of type %s", a.Type))
		}
	}
	switch a.Type {
	case AuthNone, AuthAPIKey, AuthBearer, AuthBasic, AuthOAuth2:
	default:
		return destination.Invalid("type", "is not api_key, bearer, basic or oauth2")
	}
	field("key", a.Type == AuthAPIKey, a.Key.IsSet())
	field("token", a.Type == AuthBearer, a.Token.IsSet())
	field("user", a.Type == AuthBasic, a.User != "")
	field("password", a.Type == AuthBasic, a.Password.IsSet())
	if a.Type == AuthOAuth2 {
		errs = append(errs, destination.Within("oauth2", a.OAuth2.validate()))
	} else {
		field("oauth2", false, !a.OAuth2.isZero())
	}
	if a.Type != AuthAPIKey {
		field("header", false, a.Header != "")
	}
	if strings.Contains(a.User, ":") || !validValue(a.User) {
		errs = append(errs, destination.Invalid("user", "has a colon or a control character"))
	}
	for path, s := range map[string]destination.Secret{"key": a.Key, "token": a.Token, "password": a.Password} {
		errs = append(errs, validateSecretValue(path, s))
	}
	return errors.Join(errs...)
}

func validateSecretValue(path string, s destination.Secret) error {
	switch {
	case s.IsRedacted():
		return destination.Invalid(path, "is the placeholder %q; give the value", destination.Redacted)
	case len(s.Reveal()) > maxHeaderValue || !validValue(s.Reveal()):
		return destination.Invalid(
			path, "has a control character or white space at an end, or is longer than %d bytes", maxHeaderValue,
		)
	}
	return nil
}

// set adds the header of a to h.
func (a Auth) set(h http.Header) {
	switch a.Type {
	case AuthAPIKey:
		h.Set(cmp.Or(a.Header, DefaultAPIKeyHeader), a.Key.Reveal())
	case AuthBearer:
		h.Set("Authorization", "Bearer "+a.Token.Reveal())
	case AuthBasic:
		h.Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(a.User+":"+a.Password.Reveal())))
	}
}

const (
	maxHeaders     = 50
	maxHeaderName  = 256
	maxHeaderValue = 8 << 10
)

// reserved are the headers that cannot be configured, with the reason.
func reserved(name string) string {
	switch name {
	case "Host", "Content-Length", "Transfer-Encoding", "Connection", "Keep-Alive", "Proxy-Connection", "Te", "Trailer",
		"Upgrade", "Expect":
		return "is set by HTTP itself"
	case "Content-Type":
		return "is set by content_type"
	case "Authorization", "Proxy-Authorization", "Cookie":
		return "carries credentials; use auth or secret_headers with a header of its own"
	case "Traceparent", "Tracestate":
		return "is set from the caller's trace"
	}
	if strings.HasPrefix(name, "Webhook-") || strings.HasPrefix(name, "X-Delivery-") {
		return "is set by the delivery"
	}
	return ""
}

// validateHeaders checks every header name and value, and that no header is set twice.
func (c Config) validateHeaders() error {
	var errs []error
	taken := map[string]string{} // by canonical name: the field that sets it
	take := func(path, name string, own bool) {
		switch {
		case !validName(name):
			errs = append(errs, destination.Invalid(
				path, "is not a header name: up to %d letters, digits and - . _ and the like", maxHeaderName,
			))
			return
		case reserved(http.CanonicalHeaderKey(name)) != "" && !own:
			errs = append(errs, destination.Invalid(
				path, "%s %s", http.CanonicalHeaderKey(name), reserved(http.CanonicalHeaderKey(name)),
			))
		}
		name = http.CanonicalHeaderKey(name)
		if by, ok := taken[name]; ok {
			errs = append(errs,
				&destination.FieldError{Path: path, Code: "conflict", Message: name + " is set by " + by + " already"})
			return
		}
		taken[name] = path
	}
	take("idempotency_header", c.idempotencyHeader(), c.IdempotencyHeader == "")
	take(
		"timestamp_header", c.timestampHeader(),
		c.TimestampHeader == "" || strings.EqualFold(c.TimestampHeader, DefaultTimestampHeader),
	)
	if c.Auth.Type == AuthAPIKey {
		// Some take a bare key in Authorization.
		take(
			"auth.header", cmp.Or(c.Auth.Header, DefaultAPIKeyHeader),
			strings.EqualFold(c.Auth.Header, "Authorization"),
		)
	}
	if len(c.Headers)+len(c.SecretHeaders) > maxHeaders {
		errs = append(errs, destination.Invalid("headers", "and secret_headers are more than %d", maxHeaders))
		return errors.Join(errs...)
	}
	for _, name := range slices.Sorted(maps.Keys(c.Headers)) {
		take("headers."+name, name, false)
		if v := c.Headers[name]; len(v) > maxHeaderValue || !validValue(v) {
			errs = append(errs, destination.Invalid(
				"headers."+name, "has a control character or white space at an end, or is longer than %d bytes",
				maxHeaderValue,
			))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.SecretHeaders)) {
		path := "secret_headers." + name
		take(path, name, false)
		if !c.SecretHeaders[name].IsSet() {
			errs = append(errs, destination.Require(path, ""))
		}
		errs = append(errs, validateSecretValue(path, c.SecretHeaders[name]))
	}
	return errors.Join(errs...)
}

// validName is the token of RFC 9110, section 5.6.2.
func validName(name string) bool {
	return name != "" && len(name) <= maxHeaderName && !strings.ContainsFunc(name, func(r rune) bool {
		letter := 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9'
		return !letter && !strings.ContainsRune("!#$%&'*+-.^_`|~", r)
	})
}

// validValue is the field-value of RFC 9110, section 5.5, without tabs.
func validValue(v string) bool {
	return strings.TrimSpace(v) == v && !strings.ContainsFunc(v, func(r rune) bool { return r < ' ' || r == 0x7f })
}
