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

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/internal/memory"
	"github.com/deliverykit/delivery/handler/internal/option"
	"github.com/deliverykit/delivery/handler/internal/perdest"
	"github.com/deliverykit/delivery/handler/internal/remote"
	"github.com/deliverykit/delivery/handler/storage"
)

// Handler delivers to azure destinations. It keeps a client and its tokens per destination, until
// the destination changes, and is safe for concurrent use once it is open.
type Handler struct {
	*storage.Handler[Config]
	lent      map[CredentialsType]lent // the host's
	endpoints []string                 // that may get the host's tokens
	authority string                   // of service principals' tokens; "" for the cloud's own
	memory    *memory.Budget
	clients   *perdest.Cache[*client]
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

// lent returns a credential that the host lends.
type lent func(azcore.ClientOptions) (azcore.TokenCredential, error)

// Option adjusts a Handler.
type Option func(*Handler) error

// WithManagedIdentity lends the identity of the host's machine or container to destinations whose
// type of credentials is ManagedIdentity: the user-assigned one of that client id, or "" for the
// system-assigned one. Its tokens are asked for through the guarded dialer: delivery.Network.Allow
// has to name the address of the instance's metadata service.
func WithManagedIdentity(clientID string) Option {
	return func(h *Handler) error {
		if clientID != "" && !guid.MatchString(clientID) {
			return errors.New("azure: the managed identity's client id is not a GUID")
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

// WithDefaultCredentials lends what azidentity.NewDefaultAzureCredential finds (environment,
// workload identity, managed identity, a developer's log-in) to destinations whose type of
// credentials is Default.
func WithDefaultCredentials() Option {
	return func(h *Handler) error {
		return h.lend(Default, once(func(o azcore.ClientOptions) (azcore.TokenCredential, error) {
			return azidentity.NewDefaultAzureCredential(&azidentity.DefaultAzureCredentialOptions{ClientOptions: o})
		}))
	}
}

// WithCredential lends a host's own credential to destinations with credentials of type Default.
func WithCredential(credential azcore.TokenCredential) Option {
	return func(h *Handler) error {
		if credential == nil {
			return errors.New("azure: the credential is nil")
		}
		return h.lend(Default, func(azcore.ClientOptions) (azcore.TokenCredential, error) { return credential, nil })
	}
}

func (h *Handler) lend(t CredentialsType, credential lent) error {
	if h.lent[t] != nil {
		return fmt.Errorf("azure: the host's credentials of type %s are given twice", t)
	}
	h.lent[t] = credential
	return nil
}

// once makes a credential when it is first needed, and keeps it: it holds the tokens.
func once(create lent) lent {
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

// WithTrustedEndpoint permits sending the service's own tokens to a blob service at an address
// other than Microsoft's, such as the host's proxy. Anyone who obtains the token can use it for
// everything it permits.
func WithTrustedEndpoint(endpoint string) Option {
	return func(h *Handler) error {
		if checkEndpoint("endpoint", endpoint, false) != nil {
			return errors.New("azure: the trusted endpoint is not an https URL")
		}
		h.endpoints = append(h.endpoints, strings.TrimSuffix(endpoint, "/"))
		return nil
	}
}

// WithAuthority sets the URL where service principals get their tokens. Default: Microsoft's. The
// host sets it, not a Config, because secrets are sent there.
func WithAuthority(endpoint string) Option {
	return func(h *Handler) error {
		if u, err := url.Parse(endpoint); err != nil || u.Hostname() == "" || u.Scheme != "https" {
			return errors.New("azure: the authority is not an https URL")
		}
		h.authority = endpoint
		return nil
	}
}

// WithMemory bounds the memory that all attempts together use for payloads, in bytes, at least 16
// MiB. Default: 128 MiB. Attempts wait for memory that others use. A larger block is sent alone.
func WithMemory(bytes int64) Option {
	return func(h *Handler) error {
		if bytes < 16<<20 {
			return errors.New("azure: the memory is less than 16 MiB")
		}
		h.memory = memory.New(bytes, defaultBlock)
		return nil
	}
}

// New returns a handler for delivery.WithHandler. It does not connect. Open, which delivery.New
// calls, reports what is wrong with opts.
func New(opts ...Option) *Handler {
	h := &Handler{
		memory: memory.New(128<<20, defaultBlock), clients: perdest.New[*client](maxClients, nil),
		lent: map[CredentialsType]lent{},
	}
	faults := option.Apply("azure", h, opts)
	h.Handler = storage.NewHandler(storage.Driver[Config]{
		Type: destination.TypeInfo{
			Type:        Config{}.DestinationType(),
			Title:       "Azure Blob Storage",
			Description: "Stores each payload as a blob in a container of Azure Blob Storage.",
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
	switch t := c.Credentials.Type; {
	case t != ManagedIdentity && t != Default:
	case h.lent[t] == nil:
		errs = append(errs,
			destination.Invalid("credentials.type", "is %s, and this service does not lend its own identity", t))
	case !h.trusted(c):
		errs = append(errs,
			destination.Invalid("endpoint", "is not Microsoft's, and the service's own identity is not sent there"))
	}
	return errors.Join(errs...)
}

// Bucket returns the container of a Config for other uses than a delivery, such as a store of
// payloads. Its credentials hold for as long as those of the Config can be renewed; there is
// nothing to close.
func (h *Handler) Bucket(ctx context.Context, c Config) (storage.Bucket, error) {
	return h.Handler.Bucket(ctx, "", c)
}
