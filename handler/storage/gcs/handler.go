package gcs

import (
	_ "embed"
	"encoding/json"
	"errors"
	"strings"
	"sync"

	"cloud.google.com/go/auth"
	"cloud.google.com/go/auth/credentials"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/internal/memory"
	"github.com/deliverykit/delivery/handler/internal/option"
	"github.com/deliverykit/delivery/handler/internal/perdest"
	"github.com/deliverykit/delivery/handler/internal/remote"
	"github.com/deliverykit/delivery/handler/storage"
)

// Handler delivers to gcs destinations. It keeps a client and its tokens per destination, until the
// destination changes, and is safe for concurrent use once it is open.
type Handler struct {
	*storage.Handler[Config]
	lent          func(scope string) (auth.TokenProvider, error) // the host's; nil where they are not lent
	impersonation func(organization, serviceAccount string) bool
	endpoints     []string // that may get the host's tokens
	memory        *memory.Budget
	clients       *perdest.Cache[*client]
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

// WithCredentials lends a host's own credentials to destinations with credentials of type Default.
func WithCredentials(c *auth.Credentials) Option {
	return func(h *Handler) error {
		if c == nil {
			return errors.New("gcs: the credentials are nil")
		}
		return h.lend(func(string) (auth.TokenProvider, error) { return c, nil })
	}
}

// WithDefaultCredentials lends the application default credentials (environment, workload identity
// federation, the metadata service of a machine or of GKE) to destinations whose type of
// credentials is Default. They are the host's: where they come from a metadata service, that is
// asked directly and not through the guarded dialer.
func WithDefaultCredentials() Option {
	return func(h *Handler) error {
		var mu sync.Mutex
		made := map[string]*auth.Credentials{} // by scope
		return h.lend(func(scope string) (auth.TokenProvider, error) {
			mu.Lock()
			defer mu.Unlock()
			if made[scope] == nil {
				found, err := credentials.DetectDefault(
					&credentials.DetectOptions{Scopes: []string{scope}, DisableAsyncRefresh: true},
				)
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

// WithImpersonation says which service accounts an organization's destinations may act as with the
// host's own credentials. Default: none, because an organization could name the account of another
// one that trusts this service.
func WithImpersonation(allowed func(organization, serviceAccount string) bool) Option {
	return func(h *Handler) error {
		if allowed == nil {
			return errors.New("gcs: the function that allows impersonation is nil")
		}
		h.impersonation = allowed
		return nil
	}
}

// WithTrustedEndpoint permits sending the host's own tokens to a service at an address other than
// Google's, such as the host's proxy. Anyone who obtains the token can use it for everything it
// permits.
func WithTrustedEndpoint(endpoint string) Option {
	return func(h *Handler) error {
		if checkEndpoint("endpoint", endpoint, false) != nil {
			return errors.New("gcs: the trusted endpoint is not an https URL")
		}
		h.endpoints = append(h.endpoints, strings.TrimSuffix(endpoint, "/"))
		return nil
	}
}

// WithMemory bounds the memory that all attempts together use for payloads, in bytes, at least 16
// MiB. Default: 128 MiB. Attempts wait for memory that others use. A larger chunk is sent alone.
func WithMemory(bytes int64) Option {
	return func(h *Handler) error {
		if bytes < 16<<20 {
			return errors.New("gcs: the memory is less than 16 MiB")
		}
		h.memory = memory.New(bytes, defaultChunk)
		return nil
	}
}

// New returns a handler for delivery.WithHandler. It does not connect. Open, which delivery.New
// calls, reports what is wrong with opts.
func New(opts ...Option) *Handler {
	h := &Handler{memory: memory.New(128<<20, defaultChunk), clients: perdest.New[*client](maxClients, nil)}
	faults := option.Apply("gcs", h, opts)
	h.Handler = storage.NewHandler(storage.Driver[Config]{
		Type: destination.TypeInfo{
			Type:        Config{}.DestinationType(),
			Title:       "Google Cloud Storage",
			Description: "Stores each payload as an object in a bucket of Google Cloud Storage.",
			Schema:      json.RawMessage(schema),
		},
		Open: h.open, Remote: true, Permit: h.permit, Forget: h.clients.Forget, Faults: faults,
	})
	return h
}

//go:embed schema.json
var schema string

func (h *Handler) permit(env handler.Env, c Config) error {
	errs := []error{remote.CheckHost(env, "endpoint", c.Endpoint)}
	if a, err := c.Credentials.key(); err == nil {
		errs = append(errs, remote.CheckHost(env, "credentials.service_account", a.TokenURI))
	}
	if c.Credentials.kind() != Default {
		return errors.Join(errs...)
	}
	switch {
	case h.lent == nil:
		errs = append(errs,
			destination.Invalid("credentials.type", "is default, and this service does not lend its own credentials"))
	case !h.trusted(c):
		errs = append(errs,
			destination.Invalid("endpoint", "is not Google's, and the service's own credentials are not sent there"))
	}
	if c.Credentials.Impersonate != "" && h.impersonation == nil {
		errs = append(errs,
			destination.Invalid("credentials.impersonate", "is not allowed with this service's own credentials"))
	}
	return errors.Join(errs...)
}
