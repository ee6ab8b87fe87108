package s3

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/internal/remote"
	"github.com/deliverykit/delivery/handler/storage"
)

// Handler delivers to s3 destinations. It keeps a client and its temporary credentials for each destination until that
// changes, and is safe for concurrent use once it is open.
type Handler struct {
	env         handler.Env
	errs        []error
	credentials func(ctx context.Context) (aws.CredentialsProvider, error) // the host's; nil where they are not lent
	token       func() ([]byte, error)
	externalID  func(organization string) string
	sts         string // endpoint
	memory      *remote.Memory

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
	_ handler.Maintainer   = (*Handler)(nil)
)

// Option adjusts a Handler.
type Option func(*Handler) error

// WithCredentials lends a host's own credentials to destinations whose type of credentials is Default.
func WithCredentials(p aws.CredentialsProvider) Option {
	return func(h *Handler) error {
		if p == nil {
			return errors.New("s3: the credentials' provider is nil")
		}
		if h.credentials != nil {
			return errors.New("s3: the host's credentials are given twice")
		}
		cached := aws.NewCredentialsCache(p)
		h.credentials = func(context.Context) (aws.CredentialsProvider, error) { return cached, nil }
		return nil
	}
}

// WithDefaultCredentials lends the credentials of the SDK's default chain (environment, shared files, container, instance)
// to destinations whose type of credentials is Default. What the chain asks for over the network goes through the guarded
// dialer: where it is to reach an instance's metadata service, delivery.Network.Allow has to name that address.
func WithDefaultCredentials() Option {
	return func(h *Handler) error {
		if h.credentials != nil {
			return errors.New("s3: the host's credentials are given twice")
		}
		h.credentials = (&chain{handler: h}).load
		return nil
	}
}

// WithWebIdentityToken lends a host's token, read anew whenever a role is assumed, to destinations whose type of
// credentials is WebIdentity.
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

// WithExternalID gives the external id with which roles are assumed for an organization, whatever a Config says: without
// it, one organization could name the role of another that trusts this service.
func WithExternalID(id func(organization string) string) Option {
	return func(h *Handler) error {
		if id == nil {
			return errors.New("s3: the function that gives external ids is nil")
		}
		h.externalID = id
		return nil
	}
}

// WithSTSEndpoint is the URL where roles are assumed, in place of Amazon's in the destination's region. It is the host's to
// say and not in a Config: a web identity's token is sent there.
func WithSTSEndpoint(endpoint string) Option {
	return func(h *Handler) error {
		u, err := url.Parse(endpoint)
		if err != nil || u.Hostname() == "" || u.Scheme != "https" && (u.Scheme != "http" || !remote.Loopback(u.Hostname())) {
			return errors.New("s3: the STS endpoint is no https URL")
		}
		h.sts = endpoint
		return nil
	}
}

// WithMemory bounds what all attempts together hold of payloads, in bytes, at least 16 MiB: 128 MiB. Attempts wait for each
// other's memory. A part that is larger is sent alone.
func WithMemory(bytes int64) Option {
	return func(h *Handler) error {
		if bytes < 16<<20 {
			return errors.New("s3: the memory is less than 16 MiB")
		}
		h.memory = remote.NewMemory(bytes, defaultPart)
		return nil
	}
}

// New returns a handler for delivery.WithHandler. It connects nowhere; what is wrong with opts is reported by Open, which
// delivery.New calls.
func New(opts ...Option) *Handler {
	h := &Handler{memory: remote.NewMemory(128<<20, defaultPart), clients: map[string]*client{}}
	for _, o := range opts {
		if o == nil {
			h.errs = append(h.errs, errors.New("s3: an option is nil"))
		} else if err := o(h); err != nil {
			h.errs = append(h.errs, err)
		}
	}
	return h
}

// Open implements handler.Opener.
func (h *Handler) Open(env handler.Env) error {
	errs := h.errs
	if env.Client == nil || env.Dial == nil {
		errs = append(errs, errors.New("s3: the environment has no Client or no Dial"))
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
	if c.Credentials.kind() == Default && h.credentials == nil {
		errs = append(errs, destination.Invalid("credentials.type", "is default, and this service does not lend its own credentials"))
	}
	if c.Credentials.kind() == WebIdentity && h.token == nil {
		errs = append(errs, destination.Invalid("credentials.type", "is web_identity, and this service does not lend its own identity"))
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
		return nil, handler.Fail(handler.Configuration, fmt.Errorf("s3: %w", err))
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

// Maintain implements handler.Maintainer: it aborts the unfinished uploads of dead items.
func (h *Handler) Maintain(ctx context.Context, req *handler.MaintainRequest) error {
	config, ok := req.Config.(Config)
	if !ok {
		return wrongConfig(req.Config)
	}
	template, err := config.Template()
	if err != nil || config.AbandonAfter < 0 || !template.Unique() {
		return nil //nolint:nilerr // a config that was not saved so
	}
	after := time.Duration(config.AbandonAfter)
	if after == 0 {
		after = 7 * 24 * time.Hour
	}
	b, err := h.bucket(ctx, config, req.Organization, req.DestinationID, 0)
	if err != nil {
		return err
	}
	b.prefix = template.Prefix()
	_, err = b.Sweep(ctx, h.env.Now().Add(-after), template.Matcher())
	return err
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
		Title:       "Amazon S3",
		Description: "Stores each payload as an object in a bucket of Amazon S3, or of a service that speaks its protocol.",
		Schema:      json.RawMessage(schema),
	}
}

func wrongConfig(config any) error {
	return handler.Fail(handler.Configuration, fmt.Errorf("s3: the config is a %T, not a %T", config, Config{}))
}
