package webhook

import (
	_ "embed"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/internal/option"
	"github.com/deliverykit/delivery/handler/internal/perdest"
	"github.com/deliverykit/delivery/handler/internal/remote"
)

// Handler delivers to webhook destinations. For a bounded number of destinations it keeps OAuth2
// access tokens and, with TLS settings of their own, connections. It is safe for concurrent use
// once it is open.
type Handler struct {
	env       handler.Env
	userAgent string
	httpsOnly bool
	errs      []error
	tokens    *perdest.Cache[*tokens]
	links     *perdest.Cache[*http.Transport]
}

var (
	_ handler.Handler      = (*Handler)(nil)
	_ handler.ConfigParser = (*Handler)(nil)
	_ handler.Signer       = (*Handler)(nil)
	_ handler.Warner       = (*Handler)(nil)
	_ handler.Forgetter    = (*Handler)(nil)
	_ handler.Opener       = (*Handler)(nil)
	_ handler.Tester       = (*Handler)(nil)
	_ handler.Describer    = (*Handler)(nil)
	_ io.Closer            = (*Handler)(nil)
)

// Option adjusts a Handler.
type Option func(*Handler) error

// WithUserAgent sets the User-Agent of requests. Default: "deliverykit".
func WithUserAgent(agent string) Option {
	return func(h *Handler) error {
		if agent == "" || !validValue(agent) {
			return errors.New("webhook: the user agent is empty or has a control character")
		}
		h.userAgent = agent
		return nil
	}
}

// WithHTTPSOnly rejects plain http whatever a Config allows, except to loopback addresses.
func WithHTTPSOnly() Option {
	return func(h *Handler) error {
		h.httpsOnly = true
		return nil
	}
}

// New returns a handler for delivery.WithHandler. It does not connect. Open, which delivery.New
// calls, reports what is wrong with opts.
func New(opts ...Option) *Handler {
	h := &Handler{
		userAgent: "deliverykit",
		tokens:    perdest.New[*tokens](maxTokens, nil),
		links:     perdest.New(maxTransports, (*http.Transport).CloseIdleConnections),
	}
	h.errs = option.Apply("webhook", h, opts)
	return h
}

// Open implements handler.Opener.
func (h *Handler) Open(env handler.Env) error {
	errs := h.errs
	if env.Client == nil || env.Client.Transport == nil || env.Dial == nil {
		errs = append(errs, errors.New("webhook: the environment has no Dial, or no Client with a Transport"))
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	h.env = env
	return nil
}

// ParseConfig implements handler.ConfigParser; it returns a Config. The host of the URL is checked
// against the network policy, when the config is saved and again before it is used.
func (h *Handler) ParseConfig(raw json.RawMessage) (any, error) {
	var c Config
	if err := handler.Decode(raw, &c); err != nil {
		return nil, err
	}
	if err := errors.Join(c.Validate(), h.checkHost(c)); err != nil {
		return nil, err
	}
	return c, nil
}

func (h *Handler) checkHost(c Config) error {
	u, _ := url.Parse(c.URL)
	if u == nil {
		return nil // Validate reports it
	}
	if h.httpsOnly && u.Scheme == "http" && c.AllowHTTP && !remote.Loopback(u.Hostname()) {
		return destination.Invalid("url", "is plain http, which this service does not permit")
	}
	errs := []error{remote.CheckHost(h.env, "url", c.URL)}
	if c.Auth.Type == AuthOAuth2 {
		errs = append(errs, remote.CheckHost(h.env, "auth.oauth2.token_url", c.Auth.OAuth2.TokenURL))
	}
	return errors.Join(errs...)
}

// now is the service's clock.
func (h *Handler) now() time.Time {
	if h.env.Now != nil {
		return h.env.Now()
	}
	return time.Now()
}

// Forget implements handler.Forgetter: it drops the access token and the connections of the
// destination.
func (h *Handler) Forget(destinationID string) {
	h.tokens.Forget(destinationID)
	h.links.Forget(destinationID)
}

// Close drops all access tokens and connections of single destinations.
func (h *Handler) Close() error {
	h.tokens.Close()
	h.links.Close()
	return nil
}

//go:embed schema.json
var schema string

// Describe implements handler.Describer.
func (h *Handler) Describe() destination.TypeInfo {
	return destination.TypeInfo{
		Type:        Config{}.DestinationType(),
		Family:      "http",
		Title:       "Webhook",
		Description: "Sends each payload as an HTTP request, signed as Standard Webhooks describes.",
		Schema:      json.RawMessage(schema),
	}
}
