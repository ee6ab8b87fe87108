package webhook

import (
	"cmp"
	"errors"
	"mime"
	"net/http"
	"net/url"
	"strings"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler/internal/remote"
)

// The names of the headers that a Config can rename.
const (
	DefaultIdempotencyHeader = "Idempotency-Key"
	DefaultTimestampHeader   = "X-Delivery-Timestamp"
	DefaultAPIKeyHeader      = "X-Api-Key" //nolint:gosec // the name of a header
)

const (
	maxURL          = 2048
	maxResponse     = 64 << 10
	defaultResponse = 4 << 10
)

// Config is the configuration of a webhook destination. Only URL is required.
type Config struct {
	// URL is where requests go: https, or http to a loopback address. It holds no user and no
	// fragment. Values of its query are not shown in records and errors; its path is.
	URL string `json:"url"`
	// AllowHTTP permits plain http to other addresses: the payload and every credential can then be
	// read and changed on the way. A signature still proves where an unchanged request came from.
	AllowHTTP bool `json:"allow_http,omitempty"`
	// Method is POST, PUT or PATCH: POST.
	Method string `json:"method,omitempty"`
	// ContentType replaces the payload's own.
	ContentType string `json:"content_type,omitempty"`
	// Headers are sent as they are, up to 50 with SecretHeaders. The headers of HTTP itself, those
	// of signing and those which Auth and ContentType set are refused.
	Headers map[string]string `json:"headers,omitempty"`
	// SecretHeaders are Headers whose values are sealed.
	SecretHeaders map[string]destination.Secret `json:"secret_headers,omitempty"`
	// Auth is how requests prove who they come from, beside their signature: not at all.
	Auth Auth `json:"auth,omitzero"`
	// TLS is how connections are made to https: with the system's certificate authorities, and no
	// client certificate.
	TLS TLS `json:"tls,omitzero"`
	// SigningSecrets sign each request, all of them, the newest first: "whsec_" and 24 to 64 bytes
	// in standard base64, for v1; "raw:" and 24 to 64 bytes as they are, for v1; "whsk_" and an
	// Ed25519 private key in standard base64, for v1a. Secrets that are easy to guess, and the
	// samples of documentations, are refused. One is generated where none is given.
	SigningSecrets []destination.Secret `json:"signing_secrets,omitempty"`
	// PreviousSecrets sign beside them until their end, 8 at most with SigningSecrets.
	// Handler.Rotate sets them.
	PreviousSecrets []PreviousSecret `json:"previous_secrets,omitempty"`
	// Signature is the scheme that secrets are generated for: v1. What a secret signs with is told
	// by its form alone, so that a rotation can change the scheme.
	Signature Signature `json:"signature,omitempty"`
	// Unsigned sends no signature; webhook-id and webhook-timestamp stay.
	Unsigned bool `json:"unsigned,omitempty"`
	// IdempotencyHeader carries the message id: Idempotency-Key.
	IdempotencyHeader string `json:"idempotency_header,omitempty"`
	// TimestampHeader carries the time of the attempt in ISO 8601, in UTC: X-Delivery-Timestamp.
	TimestampHeader string `json:"timestamp_header,omitempty"`
	// MaxResponse is how many bytes of a response are kept, up to 65536: 4096; negative for none.
	MaxResponse int `json:"max_response,omitempty"`
}

// DestinationType returns "webhook".
func (Config) DestinationType() string { return "webhook" }

// Validate reports every faulty field. Whether the host may be reached is checked by the handler,
// which knows the service's network policy.
func (c Config) Validate() error {
	errs := []error{
		validateURL("url", c.URL, c.AllowHTTP, "set allow_http"),
		destination.Within("auth", c.Auth.validate()),
		destination.Within("tls", c.TLS.validate()),
		c.validateSecrets(),
		c.validateHeaders(),
	}
	switch c.Method {
	case "", http.MethodPost, http.MethodPut, http.MethodPatch:
	default:
		errs = append(errs, destination.Invalid("method", "is not POST, PUT or PATCH"))
	}
	if c.ContentType != "" {
		media, _, err := mime.ParseMediaType(c.ContentType)
		if err != nil || !strings.Contains(media, "/") || !validValue(c.ContentType) {
			errs = append(errs, destination.Invalid("content_type", `is no media type such as "application/json"`))
		}
	}
	if u, err := url.Parse(c.URL); err == nil && u.Scheme == "http" && c.TLS != (TLS{}) {
		errs = append(errs, &destination.FieldError{
			Path: "tls", Code: "conflict", Message: "is set, but the URL is plain http; use https",
		})
	}
	if c.MaxResponse > maxResponse {
		errs = append(errs, destination.Invalid("max_response", "%d is above %d bytes", c.MaxResponse, maxResponse))
	}
	return errors.Join(errs...)
}

// validateURL checks a URL that requests go to. httpHint is as in remote.URL.
func validateURL(path, raw string, allowHTTP bool, httpHint string) error {
	if raw == "" {
		return destination.Require(path, raw)
	}
	return remote.URL{
		Example: "https://example.com/hook", AllowHTTP: allowHTTP, HTTPHint: httpHint, Login: "auth",
		Path: true, Query: true, MaxLength: maxURL,
	}.Check(path, raw)
}

func (c Config) method() string { return cmp.Or(c.Method, http.MethodPost) }
func (c Config) idempotencyHeader() string {
	return cmp.Or(c.IdempotencyHeader, DefaultIdempotencyHeader)
}
func (c Config) timestampHeader() string { return cmp.Or(c.TimestampHeader, DefaultTimestampHeader) }

func (c Config) maxResponse() int {
	return max(0, cmp.Or(c.MaxResponse, defaultResponse))
}
