package s3

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"net/url"
	"os"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/internal/memory"
	"github.com/deliverykit/delivery/handler/internal/option"
	"github.com/deliverykit/delivery/handler/internal/perdest"
	"github.com/deliverykit/delivery/handler/internal/remote"
	"github.com/deliverykit/delivery/handler/storage"
)

// Handler delivers to s3 destinations. It keeps a client and its temporary credentials per
// destination, until the destination changes, and is safe for concurrent use once it is open.
type Handler struct {
	storage.Sweeping[Config]
	lent       lent                   // the host's own credentials; nil where they are not lent
	token      func() ([]byte, error) // of the host's web identity
	externalID func(organization string) string
	sts        string // endpoint
	memory     *memory.Budget
	clients    *perdest.Cache[*client]
}

// lent returns the credentials that a host lends.
type lent func(ctx context.Context, env handler.Env) (aws.CredentialsProvider, error)

var (
	_ handler.Handler      = (*Handler)(nil)
	_ handler.ConfigParser = (*Handler)(nil)
	_ handler.Opener       = (*Handler)(nil)
	_ handler.Tester       = (*Handler)(nil)
	_ handler.Describer    = (*Handler)(nil)
	_ handler.Remover      = (*Handler)(nil)
	_ handler.Forgetter    = (*Handler)(nil)
	_ handler.Maintainer   = (*Handler)(nil)
)

// Option adjusts a Handler.
type Option func(*Handler) error

// WithCredentials lends a host's own credentials to destinations with credentials of type Default.
func WithCredentials(p aws.CredentialsProvider) Option {
	return func(h *Handler) error {
		if p == nil {
			return errors.New("s3: the credentials' provider is nil")
		}
		if h.lent != nil {
			return errors.New("s3: the host's credentials are given twice")
		}
		cached := aws.NewCredentialsCache(p)
		h.lent = func(context.Context, handler.Env) (aws.CredentialsProvider, error) { return cached, nil }
		return nil
	}
}

// WithDefaultCredentials lends the credentials of the SDK's default chain (environment, shared
// files, container, instance) to destinations whose type of credentials is Default. What the chain
// asks for over the network goes through the guarded dialer: where it is to reach an instance's
// metadata service, delivery.Network.Allow has to name that address.
func WithDefaultCredentials() Option {
	return func(h *Handler) error {
		if h.lent != nil {
			return errors.New("s3: the host's credentials are given twice")
		}
		h.lent = (&chain{}).load
		return nil
	}
}

// WithWebIdentityToken lends a host's token to destinations with credentials of type WebIdentity.
// It is read again whenever a role is assumed.
func WithWebIdentityToken(token func() ([]byte, error)) Option {
	return func(h *Handler) error {
		if token == nil {
			return errors.New("s3: the function that gives the web identity's token is nil")
		}
		h.token = token
		return nil
	}
}

// WithWebIdentityTokenFile is WithWebIdentityToken of a file, as Kubernetes mounts it.
func WithWebIdentityTokenFile(path string) Option {
	return WithWebIdentityToken(func() ([]byte, error) { return os.ReadFile(path) })
}

// WithExternalID sets the external id with which roles are assumed for an organization; it
// overrides the Config. Without it, an organization could name the role of another one that trusts
// this service.
func WithExternalID(id func(organization string) string) Option {
	return func(h *Handler) error {
		if id == nil {
			return errors.New("s3: the function that gives external ids is nil")
		}
		h.externalID = id
		return nil
	}
}

// WithSTSEndpoint sets the URL where roles are assumed. Default: Amazon's in the destination's
// region. The host sets it, not a Config, because a web identity's token is sent there.
func WithSTSEndpoint(endpoint string) Option {
	return func(h *Handler) error {
		u, err := url.Parse(endpoint)
		if err != nil || u.Hostname() == "" ||
			u.Scheme != "https" && (u.Scheme != "http" || !remote.Loopback(u.Hostname())) {
			return errors.New("s3: the STS endpoint is not an https URL")
		}
		h.sts = endpoint
		return nil
	}
}

// WithMemory bounds the memory that all attempts together use for payloads, in bytes, at least 16
// MiB. Default: 128 MiB. Attempts wait for memory that others use. A larger part is sent alone.
func WithMemory(bytes int64) Option {
	return func(h *Handler) error {
		if bytes < 16<<20 {
			return errors.New("s3: the memory is less than 16 MiB")
		}
		h.memory = memory.New(bytes, defaultPart)
		return nil
	}
}

// New returns a handler for delivery.WithHandler. It does not connect. Open, which delivery.New
// calls, reports what is wrong with opts.
func New(opts ...Option) *Handler {
	h := &Handler{memory: memory.New(128<<20, defaultPart), clients: perdest.New[*client](maxClients, nil)}
	faults := option.Apply("s3", h, opts)
	h.Sweeping = storage.Sweeping[Config]{Handler: storage.NewHandler(storage.Driver[Config]{
		Type: destination.TypeInfo{
			Type:  Config{}.DestinationType(),
			Title: "Amazon S3",
			Description: "Stores each payload as an object in a bucket of Amazon S3, or of a service that speaks " +
				"its protocol.",
			Schema: json.RawMessage(schema),
		},
		Open: h.open, Remote: true, Permit: h.permit, Forget: h.clients.Forget, Abandoned: Config.abandoned,
		Faults: faults,
	})}
	return h
}

//go:embed schema.json
var schema string

func (h *Handler) permit(env handler.Env, c Config) error {
	var errs []error
	if c.Credentials.kind() == Default && h.lent == nil {
		errs = append(errs,
			destination.Invalid("credentials.type", "is default, and this service does not lend its own credentials"))
	}
	if c.Credentials.kind() == WebIdentity && h.token == nil {
		errs = append(errs,
			destination.Invalid("credentials.type", "is web_identity, and this service does not lend its own identity"))
	}
	return errors.Join(append(errs, remote.CheckHost(env, "endpoint", c.Endpoint))...)
}
