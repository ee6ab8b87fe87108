package azure

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

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/internal/remote"
	"github.com/deliverykit/delivery/handler/storage"
)

// Handler delivers to azure destinations. It keeps a client and its tokens for each destination until that changes, and is
// safe for concurrent use once it is open.
type Handler struct {
	env       handler.Env
	errs      []error
	lent      map[CredentialsType]func(azcore.ClientOptions) (azcore.TokenCredential, error) // the host's
	endpoints []string                                                                       // that may get the host's tokens
	authority string                                                                         // where service principals get theirs; "" for the cloud's own
	memory    *remote.Memory

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

// WithManagedIdentity lends the identity of the host's machine or container to destinations whose type of credentials is
// ManagedIdentity: the user-assigned one of that client id, or "" for the system-assigned one. Its tokens are asked for
// through the guarded dialer: delivery.Network.Allow has to name the address of the instance's metadata service.
func WithManagedIdentity(clientID string) Option {
	return func(h *Handler) error {
		if clientID != "" && !guid.MatchString(clientID) {
			return errors.New("azure: the managed identity's client id is no GUID")
		}
		return h.lend(ManagedIdentity, once(func(o azcore.ClientOptions) (azcore.TokenCredential, error) {
			options := &azidentity.ManagedIdentityCredentialOptions{ClientOptions: o}
			if clientID != "" {
				options.ID = azidentity.ClientID(clientID)
			}
			return azidentity.NewManagedIdentityCredential(options)
		}))
	}
}

// WithDefaultCredentials lends what azidentity.NewDefaultAzureCredential finds (environment, workload identity, managed
// identity, a developer's log-in) to destinations whose type of credentials is Default.
func WithDefaultCredentials() Option {
	return func(h *Handler) error {
		return h.lend(Default, once(func(o azcore.ClientOptions) (azcore.TokenCredential, error) {
			return azidentity.NewDefaultAzureCredential(&azidentity.DefaultAzureCredentialOptions{ClientOptions: o})
		}))
	}
}

// WithCredential lends a host's own credential to destinations whose type of credentials is Default.
func WithCredential(credential azcore.TokenCredential) Option {
	return func(h *Handler) error {
		if credential == nil {
			return errors.New("azure: the credential is nil")
		}
		return h.lend(Default, func(azcore.ClientOptions) (azcore.TokenCredential, error) { return credential, nil })
	}
}

func (h *Handler) lend(t CredentialsType, credential func(azcore.ClientOptions) (azcore.TokenCredential, error)) error {
	if h.lent[t] != nil {
		return fmt.Errorf("azure: the host's credentials of type %s are given twice", t)
	}
	h.lent[t] = credential
	return nil
}

// once makes a credential when it is first needed, and keeps it: it holds the tokens.
func once(create func(azcore.ClientOptions) (azcore.TokenCredential, error)) func(azcore.ClientOptions) (azcore.TokenCredential, error) {
	var mu sync.Mutex
	var made azcore.TokenCredential
	return func(o azcore.ClientOptions) (azcore.TokenCredential, error) {
		mu.Lock()
		defer mu.Unlock()
		if made != nil {
			return made, nil
		}
		var err error
		made, err = create(o)
		return made, err
	}
}

// WithTrustedEndpoint lets the service's own tokens go to a blob service at another address than Microsoft's, such as a
// proxy of the host's. Who gets such a token can use it for everything that it is good for.
func WithTrustedEndpoint(endpoint string) Option {
	return func(h *Handler) error {
		if checkEndpoint("endpoint", endpoint, false) != nil {
			return errors.New("azure: the trusted endpoint is no https URL")
		}
		h.endpoints = append(h.endpoints, strings.TrimSuffix(endpoint, "/"))
		return nil
	}
}

// WithAuthority is the URL where service principals get their tokens, in place of Microsoft's. It is the host's to say and
// not in a Config, because secrets are sent there.
func WithAuthority(endpoint string) Option {
	return func(h *Handler) error {
		if u, err := url.Parse(endpoint); err != nil || u.Hostname() == "" || u.Scheme != "https" {
			return errors.New("azure: the authority is no https URL")
		}
		h.authority = endpoint
		return nil
	}
}

// WithMemory bounds what all attempts together hold of payloads, in bytes, at least 16 MiB: 128 MiB. Attempts wait for each
// other's memory. A block that is larger is sent alone.
func WithMemory(bytes int64) Option {
	return func(h *Handler) error {
		if bytes < 16<<20 {
			return errors.New("azure: the memory is less than 16 MiB")
		}
		h.memory = remote.NewMemory(bytes, defaultBlock)
		return nil
	}
}

// New returns a handler for delivery.WithHandler. It connects nowhere; what is wrong with opts is reported by Open, which
// delivery.New calls.
func New(opts ...Option) *Handler {
	h := &Handler{
		memory: remote.NewMemory(128<<20, defaultBlock), clients: map[string]*client{},
		lent: map[CredentialsType]func(azcore.ClientOptions) (azcore.TokenCredential, error){},
	}
	for _, o := range opts {
		if o == nil {
			h.errs = append(h.errs, errors.New("azure: an option is nil"))
		} else if err := o(h); err != nil {
			h.errs = append(h.errs, err)
		}
	}
	return h
}

// Open implements handler.Opener.
func (h *Handler) Open(env handler.Env) error {
	errs := h.errs
	if env.Client == nil {
		errs = append(errs, errors.New("azure: the environment has no Client"))
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

// ParseConfig implements handler.ConfigParser; it returns a Config. The endpoint's host is checked against the network
// policy, and the credentials against what the host lends.
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
	if t := c.Credentials.Type; t == ManagedIdentity || t == Default {
		if h.lent[t] == nil {
			errs = append(errs, destination.Invalid("credentials.type", "is %s, and this service does not lend its own identity", t))
		} else if !h.trusted(c) {
			errs = append(errs, destination.Invalid("endpoint", "is not Microsoft's, and the service's own identity is not sent there"))
		}
	}
	if u, _ := url.Parse(c.Endpoint); u != nil && u.Hostname() != "" && h.env.CheckHost != nil {
		if err := h.env.CheckHost(u.Hostname()); err != nil {
			errs = append(errs, destination.Invalid("endpoint", "%v", err))
		}
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
	b, err := h.bucket(ctx, config, id, version)
	if err != nil {
		return nil, err
	}
	return storage.Target{Bucket: b, Naming: config.Naming, Attributes: config.Attributes}.Deliver(ctx, req)
}

// Bucket returns the container of a Config for other uses than a delivery, such as a store of payloads. Its credentials
// hold for as long as those of the Config can be renewed; there is nothing to close.
func (h *Handler) Bucket(ctx context.Context, c Config) (storage.Bucket, error) {
	if err := errors.Join(c.Validate(), h.permitted(c)); err != nil {
		return nil, handler.Fail(handler.Configuration, fmt.Errorf("azure: %w", err))
	}
	return h.bucket(ctx, c, "", 0)
}

// Test implements handler.Tester: it gets the credentials, and writes, reads and deletes a blob.
func (h *Handler) Test(ctx context.Context, req *handler.TestRequest) (*destination.TestReport, error) {
	config, ok := req.Config.(Config)
	if !ok {
		return nil, wrongConfig(req.Config)
	}
	start := time.Now()
	b, err := h.bucket(ctx, config, "", 0)
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
	b, err := h.bucket(ctx, config, req.DestinationID, 0)
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
		Title:       "Azure Blob Storage",
		Description: "Stores each payload as a blob in a container of Azure Blob Storage.",
		Schema:      json.RawMessage(schema),
	}
}

func wrongConfig(config any) error {
	return handler.Fail(handler.Configuration, fmt.Errorf("azure: the config is a %T, not a %T", config, Config{}))
}
