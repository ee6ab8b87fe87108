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
	// URL is the target of requests: https, or http to a loopback address. It must have no user and
	// no fragment. Records and errors show its path, but not the values of its query.
	URL string `json:"url"`
	// AllowHTTP permits plain http to other addresses: the payload and every credential can then be
	// read and changed on the way. A signature still proves the origin of an unchanged request.
	AllowHTTP bool `json:"allow_http,omitempty"`
	// Method is POST, PUT or PATCH. Default: POST.
	Method string `json:"method,omitempty"`
	// ContentType overrides the payload's content type.
	ContentType string `json:"content_type,omitempty"`
	// Headers are sent unchanged, up to 50 together with SecretHeaders. Headers of HTTP itself, of
	// signing, and those that Auth and ContentType set are rejected.
	Headers map[string]string `json:"headers,omitempty"`
	// SecretHeaders are Headers whose values are stored encrypted.
	SecretHeaders map[string]destination.Secret `json:"secret_headers,omitempty"`
	// Auth is the authentication of requests, in addition to their signature. Default: none.
	Auth Auth `json:"auth,omitzero"`
	// TLS configures https connections. Default: the certificate authorities of the system and no
	// client certificate.
	TLS TLS `json:"tls,omitzero"`
	// SigningSecrets all sign each request, newest first. A secret is "whsec_" and 24 to 64 bytes
	// in standard base64, for v1; "raw:" and the 24 to 64 bytes themselves, for v1; or "whsk_" and
	// an Ed25519 private key in standard base64, for v1a. Secrets that are easy to guess and
	// samples from public documentation are rejected. Default: one is generated.
	SigningSecrets []destination.Secret `json:"signing_secrets,omitempty"`
	// PreviousSecrets also sign until their end; together with SigningSecrets there are at most 8.
	// Handler.Rotate sets them.
	PreviousSecrets []PreviousSecret `json:"previous_secrets,omitempty"`
	// Signature is the scheme that secrets are generated for. Default: v1. The form of a secret
	// alone decides how it signs, so a rotation can change the scheme.
	Signature Signature `json:"signature,omitempty"`
	// Unsigned sends no signature. The headers webhook-id and webhook-timestamp are still sent.
	Unsigned bool `json:"unsigned,omitempty"`
	// IdempotencyHeader is the name of the header with the message id. Default: Idempotency-Key.
	IdempotencyHeader string `json:"idempotency_header,omitempty"`
	// TimestampHeader is the name of the header with the time of the attempt, in ISO 8601 and UTC.
	// Default: X-Delivery-Timestamp.
	TimestampHeader string `json:"timestamp_header,omitempty"`
	// MaxResponse is the number of bytes of a response that are kept, up to 65536; negative: none.
	// Default: 4096.
	MaxResponse int `json:"max_response,omitempty"`
}

// DestinationType returns "webhook".
func (Config) DestinationType() string { return "webhook" }

// Validate reports every faulty field. The handler checks whether the host may be reached: it knows
// the network policy.
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
			errs = append(errs,
				destination.Invalid("content_type", `is not a media type; expected for example "application/json"`))
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
