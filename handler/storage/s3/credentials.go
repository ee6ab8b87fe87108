package s3

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/ratelimit"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/credentials/ec2rolecreds"
	"github.com/aws/aws-sdk-go-v2/credentials/endpointcreds"
	"github.com/aws/aws-sdk-go-v2/credentials/stscreds"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/storage"
	"github.com/deliverykit/delivery/internal/redact"
)

// client is what is kept for a destination.
type client struct {
	s3          *awss3.Client
	credentials aws.CredentialsProvider
}

// maxClients bounds what is kept.
const maxClients = 4096

// roleTime is how long assumed roles last: the longest that a role which is assumed by a role may
// have.
const roleTime = time.Hour

// open returns the destination's bucket, with credentials that hold.
func (h *Handler) open(ctx context.Context, env handler.Env, at storage.Place, c Config) (storage.Bucket, error) {
	kept, release, err := h.clients.Get(ctx, at.Destination, at.Key(), func() (*client, error) {
		return h.newClient(ctx, env, at, c)
	})
	if err != nil {
		return nil, err
	}
	release() // there is nothing to close
	b := &bucket{
		handler: h, env: env, config: c, client: kept.s3, id: at.Destination,
		redact: redact.New(c.Credentials.SecretAccessKey, c.Credentials.SessionToken),
	}
	if _, err := kept.credentials.Retrieve(ctx); err != nil {
		return nil, b.noCredentials(ctx, err)
	}
	return b, nil
}

func (h *Handler) newClient(ctx context.Context, env handler.Env, at storage.Place, c Config) (*client, error) {
	provider, err := h.provider(ctx, env, at, c)
	if err != nil {
		return nil, err
	}
	return &client{credentials: provider, s3: awss3.New(awss3.Options{
		Region: c.region(), Credentials: provider, HTTPClient: env.Client, Retryer: retryer(),
		UsePathStyle: c.PathStyle,
		// Nothing but what this package asks for: other services know fewer checksums than
		// Amazon's.
		RequestChecksumCalculation: aws.RequestChecksumCalculationWhenRequired,
		ResponseChecksumValidation: aws.ResponseChecksumValidationWhenRequired,
	}, func(o *awss3.Options) {
		if c.Endpoint != "" {
			o.BaseEndpoint = aws.String(c.Endpoint)
		}
		if !c.plain() {
			// TLS and the checksum protect the content; to hash it once more for the signature
			// would cost as much as all the rest.
			o.APIOptions = append(o.APIOptions, v4.SwapComputePayloadSHA256ForUnsignedPayloadMiddleware)
		}
	})}, nil
}

// retryer tries what may pass in a moment again within the attempt. Longer waits are the queue's.
func retryer() aws.Retryer {
	return retry.NewStandard(func(o *retry.StandardOptions) {
		o.MaxAttempts = 3
		o.RateLimiter = ratelimit.None
		o.Backoff = retry.BackoffDelayerFunc(func(attempt int, _ error) (time.Duration, error) {
			return time.Duration(attempt)*100*time.Millisecond + rand.N(100*time.Millisecond), nil
		})
		o.Retryables = slices.Insert(
			slices.Clone(o.Retryables), 0, retry.IsErrorRetryable(retry.IsErrorRetryableFunc(forbidden)),
		)
	})
}

// forbidden says that an address which may not be dialled is not tried again.
func forbidden(err error) aws.Ternary {
	var permanent interface{ Permanent() bool }
	if errors.As(err, &permanent) && permanent.Permanent() {
		return aws.FalseTernary
	}
	return aws.UnknownTernary
}

func (h *Handler) provider(
	ctx context.Context, env handler.Env, at storage.Place, c Config,
) (aws.CredentialsProvider, error) {
	var base aws.CredentialsProvider
	switch c.Credentials.kind() {
	case AccessKey:
		base = credentials.NewStaticCredentialsProvider(
			c.Credentials.AccessKeyID, c.Credentials.SecretAccessKey.Reveal(), c.Credentials.SessionToken.Reveal())
	case Default:
		if h.lent == nil {
			return nil, handler.Fail(
				handler.Configuration,
				errors.New(
					"s3: the destination asks for the service's own credentials, which this process does not lend",
				),
			)
		}
		var err error
		if base, err = h.lent(ctx, env); err != nil {
			return nil, handler.Fail(
				handler.Internal, fmt.Errorf("s3: the service's own credentials cannot be loaded: %w", err),
			)
		}
	case WebIdentity:
		if h.token == nil {
			return nil, handler.Fail(handler.Configuration,
				errors.New("s3: the destination asks for the service's own identity, which this process does not lend"))
		}
		return aws.NewCredentialsCache(stscreds.NewWebIdentityRoleProvider(
			h.stsClient(env, c, nil), c.Credentials.RoleARN, token(h.token),
			func(o *stscreds.WebIdentityRoleOptions) { o.RoleSessionName = sessionName(at.Destination) },
		), early), nil
	}
	if c.Credentials.RoleARN == "" {
		return base, nil
	}
	external := c.Credentials.ExternalID
	if h.externalID != nil {
		external = h.externalID(at.Organization)
	}
	return aws.NewCredentialsCache(stscreds.NewAssumeRoleProvider(
		h.stsClient(env, c, base), c.Credentials.RoleARN,
		func(o *stscreds.AssumeRoleOptions) {
			o.RoleSessionName, o.Duration, o.ExternalID = sessionName(at.Destination), roleTime, optional(external)
		},
	), early), nil
}

// early renews credentials before they expire under a request.
func early(o *aws.CredentialsCacheOptions) { o.ExpiryWindow = 5 * time.Minute }

func (h *Handler) stsClient(env handler.Env, c Config, base aws.CredentialsProvider) *sts.Client {
	options := sts.Options{Region: c.region(), Credentials: base, HTTPClient: env.Client, Retryer: retryer()}
	return sts.New(options, func(o *sts.Options) {
		if h.sts != "" {
			o.BaseEndpoint = aws.String(h.sts)
		}
	})
}

// sessionName is what the role's owner sees in the records of their account.
func sessionName(destinationID string) string {
	if destinationID == "" || len(destinationID) > 40 || !externalID.MatchString(destinationID) {
		return "deliverykit"
	}
	return "deliverykit-" + destinationID
}

type token func() ([]byte, error)

func (t token) GetIdentityToken() ([]byte, error) { return t() }

// chain loads the SDK's default credentials when they are first needed.
type chain struct {
	mu     sync.Mutex
	loaded aws.CredentialsProvider
}

func (c *chain) load(ctx context.Context, env handler.Env) (aws.CredentialsProvider, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.loaded == nil {
		// A client of the SDK's own kind, which AWS_CA_BUNDLE needs, on the guarded dialer. For
		// metadata services the SDK would put a dialer of its own in its place, so they have the
		// guarded client, and the mode that asks them where it runs is off.
		guarded := awshttp.NewBuildableClient().WithTransportOptions(func(t *http.Transport) {
			t.DialContext, t.Proxy = env.Dial, nil
		})
		config, err := awsconfig.LoadDefaultConfig(
			ctx,
			awsconfig.WithHTTPClient(guarded),
			awsconfig.WithDefaultsMode(aws.DefaultsModeLegacy),
			awsconfig.WithEC2RoleCredentialOptions(func(o *ec2rolecreds.Options) {
				o.Client = imds.New(imds.Options{HTTPClient: env.Client, Retryer: retryer()})
			}),
			awsconfig.WithEndpointCredentialOptions(
				func(o *endpointcreds.Options) { o.HTTPClient, o.Retryer = env.Client, retryer() },
			),
		)
		if err != nil {
			return nil, err
		}
		c.loaded = config.Credentials
	}
	return c.loaded, nil
}
