package gcs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"cloud.google.com/go/auth"
	"cloud.google.com/go/auth/credentials"
	"cloud.google.com/go/auth/credentials/impersonate"
	gcstorage "cloud.google.com/go/storage"
	gax "github.com/googleapis/gax-go/v2"
	"google.golang.org/api/option"

	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/storage"
	"github.com/deliverykit/delivery/internal/redact"
)

// client is what is kept for a destination.
type client struct {
	sdk    *gcstorage.Client
	http   *http.Client // with the destination's tokens
	tokens auth.TokenProvider
}

// maxClients bounds what is kept.
const maxClients = 4096

// scopes are what the tokens are for. Impersonating needs the second, of the credentials that do
// it.
const (
	readWrite     = "https://www.googleapis.com/auth/devstorage.read_write"
	cloudPlatform = "https://www.googleapis.com/auth/cloud-platform"
)

// open returns the destination's bucket, with credentials that hold.
func (h *Handler) open(ctx context.Context, env handler.Env, at storage.Place, c Config) (storage.Bucket, error) {
	kept, release, err := h.clients.Get(ctx, at.Destination, at.Key(), func() (*client, error) {
		return h.newClient(ctx, env, at.Organization, c)
	})
	if err != nil {
		return nil, err
	}
	release() // there is nothing to close
	b := &bucket{
		handler: h, env: env, config: c, client: kept.sdk.Bucket(c.Bucket), http: kept.http,
		redact: redact.New(c.secrets()...), id: at.Destination,
	}
	if _, err := kept.tokens.Token(ctx); err != nil {
		return nil, b.noToken(ctx, err)
	}
	return b, nil
}

func (h *Handler) newClient(ctx context.Context, env handler.Env, organization string, c Config) (*client, error) {
	if env.Client.Transport == nil {
		return nil, handler.Fail(handler.Internal, errors.New("gcs: the environment's Client has no Transport"))
	}
	tokens, err := h.tokens(env, organization, c)
	if err != nil {
		return nil, err
	}
	made := &client{tokens: tokens, http: authorized(env, tokens)}
	// Without credentials of its own, the SDK would look for the host's: in its files, and at the
	// metadata service, past the guarded client.
	own := option.WithAuthCredentials(auth.NewCredentials(&auth.CredentialsOptions{TokenProvider: tokens}))
	made.sdk, err = gcstorage.NewClient(context.WithoutCancel(ctx), option.WithHTTPClient(made.http), own,
		option.WithEndpoint(c.service()+"/storage/v1/"), gcstorage.WithJSONReads())
	if err != nil {
		return nil, handler.Fail(handler.Configuration, errors.New("gcs: the SDK refuses the endpoint of this config"))
	}
	// What may pass in a moment is tried again within the attempt. Longer waits are the queue's.
	made.sdk.SetRetry(
		gcstorage.WithPolicy(gcstorage.RetryAlways), gcstorage.WithMaxAttempts(tries), gcstorage.WithErrorFunc(again),
		gcstorage.WithBackoff(gax.Backoff{Initial: pause, Max: 10 * pause, Multiplier: 2}),
	)
	return made, nil
}

const (
	tries = 3
	pause = 100 * time.Millisecond
)

// authorized is the guarded client, with tokens.
func authorized(env handler.Env, tokens auth.TokenProvider) *http.Client {
	guarded := *env.Client
	guarded.Transport = bearer{base: env.Client.Transport, tokens: tokens}
	return &guarded
}

// bearer adds tokens to requests.
type bearer struct {
	base   http.RoundTripper
	tokens auth.TokenProvider
}

// RoundTrip implements http.RoundTripper.
func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	token, err := b.tokens.Token(r.Context())
	if err != nil {
		if r.Body != nil {
			_ = r.Body.Close()
		}
		return nil, &tokenError{err}
	}
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+token.Value)
	return b.base.RoundTrip(r)
}

// tokenError is that of a request for which no token could be had.
type tokenError struct{ err error }

func (e *tokenError) Error() string { return e.err.Error() }
func (e *tokenError) Unwrap() error { return e.err }

func (h *Handler) tokens(env handler.Env, organization string, c Config) (auth.TokenProvider, error) {
	scope := readWrite
	if c.Credentials.Impersonate != "" {
		scope = cloudPlatform
	}
	var base auth.TokenProvider
	switch c.Credentials.kind() {
	case ServiceAccount:
		made, err := credentials.NewCredentialsFromJSON(
			credentials.ServiceAccount, []byte(c.Credentials.ServiceAccount.Reveal()),
			&credentials.DetectOptions{Scopes: []string{scope}, Client: env.Client, DisableAsyncRefresh: true},
		)
		if err != nil { // it may quote the key
			return nil, handler.Fail(
				handler.Configuration,
				errors.New("gcs: the key file of the service account cannot be used: its private key is damaged"),
			)
		}
		base = made
	default:
		if h.lent == nil {
			return nil, handler.Fail(
				handler.Configuration,
				errors.New(
					"gcs: the destination asks for the service's own credentials, which this process does not lend",
				),
			)
		}
		if !h.trusted(c) {
			return nil, handler.Fail(
				handler.Configuration,
				errors.New("gcs: the service's own credentials are not sent to an endpoint that is not Google's"),
			)
		}
		if as := c.Credentials.Impersonate; as != "" && (h.impersonation == nil || !h.impersonation(organization, as)) {
			return nil, handler.Fail(handler.Configuration, fmt.Errorf(
				"gcs: this service does not let organization %q act as %s with the service's own credentials",
				organization, as,
			))
		}
		var err error
		if base, err = h.lent(scope); err != nil {
			return nil, handler.Fail(
				handler.Internal, fmt.Errorf("gcs: the service's own credentials cannot be loaded: %w", err),
			)
		}
	}
	if c.Credentials.Impersonate == "" {
		return base, nil
	}
	asking := authorized(env, base)
	asking.Transport = answering{asking.Transport}
	made, err := impersonate.NewCredentials(&impersonate.CredentialsOptions{
		TargetPrincipal: c.Credentials.Impersonate, Delegates: c.Credentials.Delegates, Scopes: []string{readWrite},
		Client: asking,
	})
	if err != nil {
		return nil, handler.Fail(
			handler.Configuration, fmt.Errorf("gcs: cannot act as %s: %w", c.Credentials.Impersonate, err),
		)
	}
	return made, nil
}

// answering makes errors of refusals, which the SDK would give as text only.
type answering struct{ base http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (a answering) RoundTrip(r *http.Request) (*http.Response, error) {
	out, err := a.base.RoundTrip(r)
	if err != nil || out.StatusCode < 300 {
		return out, err
	}
	defer out.Body.Close()
	body, err := io.ReadAll(io.LimitReader(out.Body, 64<<10))
	if err != nil {
		return nil, err
	}
	out.Body = io.NopCloser(bytes.NewReader(body))
	return nil, &auth.Error{Response: out, Body: body}
}

// trusted says whether the service's own tokens may be sent to the config's endpoint.
func (h *Handler) trusted(c Config) bool {
	service := c.service()
	if slices.Contains(h.endpoints, service) {
		return true
	}
	u, err := url.Parse(service)
	return err == nil && u.Scheme == "https" && strings.HasSuffix(strings.ToLower(u.Hostname()), ".googleapis.com")
}

// refusal is what a token service says: OAuth 2.0 (RFC 6749, section 5.2), or Google's own form.
func refusal(body []byte) (code, message string) {
	var oauth struct {
		Error       string `json:"error"`
		Description string `json:"error_description"`
	}
	if json.Unmarshal(body, &oauth) == nil && oauth.Error != "" {
		return oauth.Error, oauth.Description
	}
	var own struct {
		Error struct{ Status, Message string } `json:"error"`
	}
	if json.Unmarshal(body, &own) == nil {
		return own.Error.Status, own.Error.Message
	}
	return "", ""
}
