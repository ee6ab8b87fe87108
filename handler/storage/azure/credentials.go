package azure

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	azcloud "github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/storage"
	"github.com/deliverykit/delivery/internal/redact"
)

// client is what is kept for a destination.
type client struct {
	container *container.Client
	token     azcore.TokenCredential // nil for keys and signatures
}

// maxClients bounds what is kept.
const maxClients = 4096

// scope is what tokens are for:
// https://learn.microsoft.com/azure/storage/blobs/authorize-access-azure-active-directory
const scope = "https://storage.azure.com/.default"

// open returns the destination's container, with credentials that hold.
func (h *Handler) open(ctx context.Context, env handler.Env, at storage.Place, c Config) (storage.Bucket, error) {
	kept, release, err := h.clients.Get(
		ctx, at.Destination, at.Key(), func() (*client, error) { return h.newClient(env, c) },
	)
	if err != nil {
		return nil, err
	}
	release() // there is nothing to close
	b := &bucket{handler: h, config: c, client: kept.container, redact: redactor(c.Credentials), id: at.Destination}
	if kept.token != nil {
		options := policy.TokenRequestOptions{Scopes: []string{scope}, EnableCAE: true}
		if _, err := kept.token.GetToken(ctx, options); err != nil {
			return nil, b.noToken(ctx, err)
		}
	}
	return b, nil
}

func redactor(c Credentials) *redact.Redactor {
	secrets := []destination.Secret{c.AccountKey, c.ClientSecret, c.Certificate, c.CertificatePassword}
	if q, err := c.signature(); err == nil && q.Get("sig") != "" {
		sig := q.Get("sig") // the SDK sorts the signature's fields anew
		secrets = append(secrets, c.SAS, destination.NewSecret(url.QueryEscape(sig)), destination.NewSecret(sig))
	}
	return redact.New(secrets...)
}

func (h *Handler) newClient(env handler.Env, c Config) (made *client, err error) {
	where := c.service() + "/" + c.Container
	options := &container.ClientOptions{ClientOptions: h.options(env, c)}
	made = &client{}
	switch c.Credentials.Type {
	case SharedKey:
		key, err := blob.NewSharedKeyCredential(c.Account, c.Credentials.AccountKey.Reveal())
		if err != nil {
			return nil, handler.Fail(handler.Configuration, errors.New("azure: the account key is not base64"))
		}
		made.container, err = container.NewClientWithSharedKeyCredential(where, key, options)
		return made, bad(err)
	case SAS:
		q, err := c.Credentials.signature()
		if err != nil {
			return nil, handler.Fail(
				handler.Configuration, errors.New("azure: the shared access signature cannot be read"),
			)
		}
		made.container, err = container.NewClientWithNoCredential(where+"?"+q.Encode(), options)
		return made, bad(err)
	}
	if made.token, err = h.token(c, options.ClientOptions); err != nil {
		return nil, err
	}
	if c.plain() {
		options.InsecureAllowCredentialWithHTTP = true // validated: loopback, or allowed
	}
	made.container, err = container.NewClient(where, made.token, options)
	return made, bad(err)
}

func (c Config) plain() bool { return strings.HasPrefix(c.Endpoint, "http://") }

// bad is an error of the SDK about a URL or a key that Validate has passed. It may quote a secret.
func bad(err error) error {
	if err == nil {
		return nil
	}
	return handler.Fail(
		handler.Configuration, errors.New("azure: the SDK refuses the endpoint or the credentials of this config"),
	)
}

func (h *Handler) token(c Config, options azcore.ClientOptions) (token azcore.TokenCredential, err error) {
	credentials := c.Credentials
	switch credentials.Type {
	case ClientSecret:
		token, err = azidentity.NewClientSecretCredential(
			credentials.TenantID, credentials.ClientID, credentials.ClientSecret.Reveal(),
			&azidentity.ClientSecretCredentialOptions{
				ClientOptions: options, DisableInstanceDiscovery: h.authority != "",
			},
		)
		return token, bad(err)
	case ClientCertificate:
		certificates, key, err := azidentity.ParseCertificates(credentials.certificate())
		if err != nil {
			return nil, bad(err)
		}
		token, err = azidentity.NewClientCertificateCredential(
			credentials.TenantID, credentials.ClientID, certificates, key,
			&azidentity.ClientCertificateCredentialOptions{
				ClientOptions: options, DisableInstanceDiscovery: h.authority != "", SendCertificateChain: true,
			},
		)
		return token, bad(err)
	}
	lent := h.lent[credentials.Type]
	if lent == nil {
		return nil, handler.Fail(
			handler.Configuration,
			errors.New("azure: the destination asks for the service's own identity, which this process does not lend"),
		)
	}
	if !h.trusted(c) {
		return nil, handler.Fail(
			handler.Configuration,
			errors.New("azure: the service's own identity is not sent to an endpoint that is not Microsoft's"),
		)
	}
	if token, err = lent(options); err != nil {
		return nil, handler.Fail(
			handler.Internal, fmt.Errorf("azure: the service's own identity cannot be loaded: %w", err),
		)
	}
	return token, nil
}

// domains are those whose tokens for storage are good for, so that none of them learns of another's
// by getting one.
var domains = []string{".core.windows.net", ".core.usgovcloudapi.net", ".core.chinacloudapi.cn", ".storage.azure.net"}

// trusted says whether the service's own tokens may be sent to the config's endpoint.
func (h *Handler) trusted(c Config) bool {
	service := c.service()
	if slices.Contains(h.endpoints, service) {
		return true
	}
	u, err := url.Parse(service)
	return err == nil && u.Scheme == "https" && slices.ContainsFunc(domains, func(d string) bool {
		return strings.HasSuffix(strings.ToLower(u.Hostname()), d)
	})
}

func (h *Handler) options(env handler.Env, c Config) azcore.ClientOptions {
	o := azcore.ClientOptions{
		Transport: env.Client,
		Telemetry: policy.TelemetryOptions{ApplicationID: "deliverykit"},
		// What may pass in a moment is tried again within the attempt. Longer waits are the
		// queue's.
		Retry: policy.RetryOptions{
			MaxRetries: 2, RetryDelay: 100 * time.Millisecond, MaxRetryDelay: time.Second, ShouldRetry: again,
		},
		Cloud: azcloud.AzurePublic,
	}
	switch c.cloud() {
	case "government":
		o.Cloud = azcloud.AzureGovernment
	case "china":
		o.Cloud = azcloud.AzureChina
	}
	if h.authority != "" {
		o.Cloud.ActiveDirectoryAuthorityHost = h.authority
	}
	return o
}

// again says what is tried again at once: not an address that may not be dialled.
func again(r *http.Response, err error) bool {
	if err != nil {
		var permanent interface{ Permanent() bool }
		return !errors.As(err, &permanent) || !permanent.Permanent()
	}
	switch r.StatusCode {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusBadGateway,
		http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}
