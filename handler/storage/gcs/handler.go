package gcs

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"time"

	"cloud.google.com/go/auth"
	"cloud.google.com/go/auth/credentials"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/internal/remote"
	"github.com/deliverykit/delivery/handler/storage"
)

// Handler delivers to gcs destinations. It keeps a client and its tokens for each destination until that changes, and is
// safe for concurrent use once it is open.
type Handler struct {
	env           handler.Env
	errs          []error
	lent          func(scope string) (auth.TokenProvider, error) // the host's; nil where they are not lent
	impersonation func(organization, serviceAccount string) bool
	endpoints     []string // that may get the host's tokens
	memory        *remote.Memory

	mu      sync.Mutex
	clients map[string]*client // by destination
}

var (
	_ handler.Handler      = (*Handler)(nil)
	_ handler.ConfigParser = (*Handler)(nil)
	_ handler.Opener       = (*Handler)(nil)
	_ handler.Tester       = (*Handler)(nil)
	_ handler.Describer    = (*Handler)(nil)
	_ handler.Remover      = (*Handler)(nil)
	_ handler.Forgetter    = (*Handler)(nil)
)

// Option adjusts a Handler.
type Option func(*Handler) error

// WithCredentials lends a host's own credentials to destinations whose type of credentials is Default.
func WithCredentials(c *auth.Credentials) Option {
	return func(h *Handler) error {
		if c == nil {
			return errors.New("gcs: the credentials are nil")
		}
		return h.lend(func(string) (auth.TokenProvider, error) { return c, nil })
	}
}

// WithDefaultCredentials lends the application default credentials (environment, workload identity federation, the metadata
// service of a machine or of GKE) to destinations whose type of credentials is Default. They are the host's: where they come
// from a metadata service, that is asked directly and not through the guarded dialer.
func WithDefaultCredentials() Option {
	return func(h *Handler) error {
		var mu sync.Mutex
		made := map[string]*auth.Credentials{} // by scope
		return h.lend(func(scope string) (auth.TokenProvider, error) {
			mu.Lock()
			defer mu.Unlock()
			if made[scope] == nil {
				found, err := credentials.DetectDefault(&credentials.DetectOptions{Scopes: []string{scope}, DisableAsyncRefresh: true})
				if err != nil {
					return nil, err
				}
				made[scope] = found
			}
			return made[scope], nil
		})
	}
}

func (h *Handler) lend(tokens func(scope string) (auth.TokenProvider, error)) error {
	if h.lent != nil {
		return errors.New("gcs: the host's credentials are given twice")
	}
	h.lent = tokens
	return nil
}

// WithImpersonation says which service accounts an organization's destinations may act as with the host's own credentials.
// Without it they may act as none: an organization could name the account of another one that trusts this service.
func WithImpersonation(allowed func(organization, serviceAccount string) bool) Option {
	return func(h *Handler) error {
		if allowed == nil {
			return errors.New("gcs: the function that allows impersonation is nil")
		}
		h.impersonation = allowed
		return nil
	}
}

// WithTrustedEndpoint lets the host's own tokens go to a service at another address than Google's, such as a proxy of the
// host's. Who gets such a token can use it for everything that it is good for.
func WithTrustedEndpoint(endpoint string) Option {
	return func(h *Handler) error {
		if checkEndpoint("endpoint", endpoint, false) != nil {
			return errors.New("gcs: the trusted endpoint is no https URL")
		}
		h.endpoints = append(h.endpoints, strings.TrimSuffix(endpoint, "/"))
		return nil
	}
}

// WithMemory bounds what all attempts together hold of payloads, in bytes, at least 16 MiB: 128 MiB. Attempts wait for each
// other's memory. A chunk that is larger is sent alone.
func WithMemory(bytes int64) Option {
	return func(h *Handler) error {
		if bytes < 16<<20 {
			return errors.New("gcs: the memory is less than 16 MiB")
		}
		h.memory = remote.NewMemory(bytes, defaultChunk)
		return nil
	}
}

// New returns a handler for delivery.WithHandler. It connects nowhere; what is wrong with opts is reported by Open, which
// delivery.New calls.
func New(opts ...Option) *Handler {
	h := &Handler{memory: remote.NewMemory(128<<20, defaultChunk), clients: map[string]*client{}}
	for _, o := range opts {
		if o == nil {
			h.errs = append(h.errs, errors.New("gcs: an option is nil"))
		} else if err := o(h); err != nil {
			h.errs = append(h.errs, err)
		}
	}
	return h
}

// Open implements handler.Opener.
func (h *Handler) Open(env handler.Env) error {
	errs := h.errs
	if env.Client == nil || env.Client.Transport == nil {
		errs = append(errs, errors.New("gcs: the environment has no Client with a Transport"))
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	if env.Now == nil {
		env.Now = time.Now
	}
	h.env = env
	return nil
}

// ParseConfig implements handler.ConfigParser; it returns a Config. The endpoint's host and that of the key file's token_uri
// are checked against the network policy, and the credentials against what the host lends.
func (h *Handler) ParseConfig(raw json.RawMessage) (any, error) {
	var c Config
	if err := handler.Decode(raw, &c); err != nil {
		return nil, err
	}
	if err := errors.Join(c.Validate(), h.permitted(c)); err != nil {
		return nil, err
	}
	return c, nil
}

func (h *Handler) permitted(c Config) error {
	var errs []error
	if c.Credentials.kind() == Default {
		if h.lent == nil {
			errs = append(errs, destination.Invalid("credentials.type", "is default, and this service does not lend its own credentials"))
		} else if !h.trusted(c) {
			errs = append(errs, destination.Invalid("endpoint", "is not Google's, and the service's own credentials are not sent there"))
		}
		if c.Credentials.Impersonate != "" && h.impersonation == nil {
			errs = append(errs, destination.Invalid("credentials.impersonate", "is not allowed with this service's own credentials"))
		}
	}
	check := func(path, address string) {
		if u, _ := url.Parse(address); u != nil && u.Hostname() != "" && h.env.CheckHost != nil {
			if err := h.env.CheckHost(u.Hostname()); err != nil {
				errs = append(errs, destination.Invalid(path, "%v", err))
			}
		}
	}
	check("endpoint", c.Endpoint)
	if a, err := c.Credentials.key(); err == nil {
		check("credentials.service_account", a.TokenURI)
	}
	return errors.Join(errs...)
}

// Deliver implements handler.Handler.
func (h *Handler) Deliver(ctx context.Context, req *handler.Request) (*handler.Result, error) {
	config, ok := req.Config.(Config)
	if !ok {
		return nil, wrongConfig(req.Config)
	}
	var id string
	var version int64
	if req.Destination != nil {
		id, version = req.Destination.ID, req.Destination.Version
	}
	b, err := h.bucket(ctx, config, req.Organization, id, version)
	if err != nil {
		return nil, err
	}
	return storage.Target{Bucket: b, Naming: config.Naming, Attributes: config.Attributes}.Deliver(ctx, req)
}

// Bucket returns the bucket of a Config for other uses than a delivery, such as a store of payloads. Its credentials hold
// for as long as those of the Config can be renewed; there is nothing to close.
func (h *Handler) Bucket(ctx context.Context, organization string, c Config) (storage.Bucket, error) {
	if err := errors.Join(c.Validate(), h.permitted(c)); err != nil {
		return nil, handler.Fail(handler.Configuration, fmt.Errorf("gcs: %w", err))
	}
	return h.bucket(ctx, c, organization, "", 0)
}

// Test implements handler.Tester: it gets the credentials, and writes, reads and deletes an object.
func (h *Handler) Test(ctx context.Context, req *handler.TestRequest) (*destination.TestReport, error) {
	config, ok := req.Config.(Config)
	if !ok {
		return nil, wrongConfig(req.Config)
	}
	start := time.Now()
	b, err := h.bucket(ctx, config, req.Organization, "", 0)
	step := destination.TestStep{Name: "credentials", OK: err == nil, Latency: destination.Duration(time.Since(start))}
	if err != nil {
		step.Finding = err.Error()
	}
	return storage.Target{Bucket: b, Naming: config.Naming, Attributes: config.Attributes}.Test(ctx, req, h.env.Now(), step), nil
}

// Forget implements handler.Forgetter.
func (h *Handler) Forget(destinationID string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.clients, destinationID)
}

// Retention implements handler.Remover.
func (h *Handler) Retention(config any) time.Duration {
	c, _ := config.(Config)
	return c.Expiry.Retention()
}

// Remove implements handler.Remover.
func (h *Handler) Remove(ctx context.Context, req *handler.RemoveRequest) (handler.Removal, error) {
	config, ok := req.Config.(Config)
	if !ok {
		return handler.NotRemoved, wrongConfig(req.Config)
	}
	b, err := h.bucket(ctx, config, req.Organization, req.DestinationID, 0)
	if err != nil {
		return handler.NotRemoved, err
	}
	return storage.Remove(ctx, b, req)
}

//go:embed schema.json
var schema string

// Describe implements handler.Describer.
func (h *Handler) Describe() destination.TypeInfo {
	return destination.TypeInfo{
		Type:        Config{}.DestinationType(),
		Family:      "storage",
		Title:       "Google Cloud Storage",
		Description: "Stores each payload as an object in a bucket of Google Cloud Storage.",
		Schema:      json.RawMessage(schema),
	}
}

func wrongConfig(config any) error {
	return handler.Fail(handler.Configuration, fmt.Errorf("gcs: the config is a %T, not a %T", config, Config{}))
}
