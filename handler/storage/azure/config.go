package azure

import (
	"cmp"
	"encoding/base64"
	"errors"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler/internal/remote"
	"github.com/deliverykit/delivery/handler/storage"
)

// Config is the configuration of an azure destination. Account, Container and Credentials are
// required.
type Config struct {
	// Account is the storage account's name.
	Account string `json:"account"`
	// Container is the container's name.
	Container string `json:"container"`
	// Endpoint is the URL of the account's blob service: https, or http to a loopback address.
	// Default: https://ACCOUNT.blob.core.windows.net, or its equivalent in Cloud.
	Endpoint string `json:"endpoint,omitempty"`
	// AllowHTTP permits plain http to other addresses. Everyone on the way can then read the
	// payload.
	AllowHTTP bool `json:"allow_http,omitempty"`
	// Cloud is public, government or china. Default: public.
	Cloud       string      `json:"cloud,omitempty"`
	Credentials Credentials `json:"credentials"`
	storage.Naming
	storage.Expiry
	storage.Attributes
	// Tier is Hot, Cool, Cold or Archive. Default: the account's.
	Tier string `json:"tier,omitempty"`
	// EncryptionScope is the scope whose key encrypts the blobs. Default: the container's.
	EncryptionScope string `json:"encryption_scope,omitempty"`
	// BlockSize is the size of a block in bytes, from 1 MiB to 512 MiB. Default: 4 MiB. Blocks are
	// larger where content of known size would otherwise have more than 50,000 of them. Each upload
	// holds Parallel+1 blocks in memory.
	BlockSize int64 `json:"block_size,omitempty"`
	// Parallel is the number of blocks of one blob that are sent at a time, up to 32. Default: 4.
	Parallel int `json:"parallel,omitempty"`
}

// Credentials identify the sender of the requests.
type Credentials struct {
	// Type is SharedKey, SAS, ClientSecret, ClientCertificate, ManagedIdentity or Default. It is
	// required.
	Type CredentialsType `json:"type"`
	// AccountKey is one of the account's two keys, in base64. It permits everything in the account.
	AccountKey destination.Secret `json:"account_key,omitzero"`
	// SAS is a shared access signature of the container, "sv=...&sig=...".
	SAS destination.Secret `json:"sas,omitzero"`
	// TenantID and ClientID name a service principal.
	TenantID string `json:"tenant_id,omitempty"`
	ClientID string `json:"client_id,omitempty"`
	// ClientSecret is the secret of a service principal.
	ClientSecret destination.Secret `json:"client_secret,omitzero"`
	// Certificate is the certificate of a service principal with its private key: PEM, or PKCS#12
	// in base64.
	Certificate destination.Secret `json:"certificate,omitzero"`
	// CertificatePassword is the password of the PKCS#12 file, if it has one.
	CertificatePassword destination.Secret `json:"certificate_password,omitzero"`
}

// CredentialsType says where credentials come from.
type CredentialsType string

// The sources of credentials. The last two are the host's, and need its consent.
const (
	SharedKey         CredentialsType = "shared_key"
	SAS               CredentialsType = "sas"
	ClientSecret      CredentialsType = "client_secret"      // of a service principal
	ClientCertificate CredentialsType = "client_certificate" // of a service principal
	ManagedIdentity   CredentialsType = "managed_identity"   // the host's: WithManagedIdentity
	Default           CredentialsType = "default"            // the host's: WithDefaultCredentials or WithCredential
)

// DestinationType returns "azure".
func (Config) DestinationType() string { return "azure" }

const (
	minBlock     = 1 << 20
	maxBlock     = 512 << 20
	defaultBlock = 4 << 20
	maxBlocks    = 50_000 // https://learn.microsoft.com/azure/storage/blobs/scalability-targets
)

var (
	accountName   = regexp.MustCompile(`^[a-z0-9]{3,24}$`)
	containerName = regexp.MustCompile(`^(\$root|\$web|[a-z0-9](-?[a-z0-9]){2,62})$`)
	scopeName     = regexp.MustCompile(`^[A-Za-z0-9-]{3,63}$`)
	guid          = regexp.MustCompile(`^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$`)
	tenantName    = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9.-]{2,254}$`)
)

// clouds are the suffixes of the blob service's addresses.
var clouds = map[string]string{
	"public": "blob.core.windows.net", "government": "blob.core.usgovcloudapi.net",
	"china": "blob.core.chinacloudapi.cn",
}

// Validate reports every faulty field. The handler checks what the host permits.
func (c Config) Validate() error {
	errs := []error{
		destination.Require("account", c.Account),
		destination.Match("account", c.Account, accountName),
		destination.Require("container", c.Container),
		c.Naming.Validate(),
		c.Expiry.Validate(0),
		c.Attributes.Validate(),
		destination.Match("encryption_scope", c.EncryptionScope, scopeName),
		destination.Within("credentials", c.Credentials.validate()),
	}
	invalid := func(path, format string, args ...any) {
		errs = append(errs, destination.Invalid(path, format, args...))
	}
	if c.Container != "" && (!containerName.MatchString(c.Container) || len(c.Container) > 63) {
		invalid("container", "is not a container name: 3 to 63 lower-case letters, digits and single hyphens")
	}
	if _, known := clouds[c.cloud()]; !known {
		invalid("cloud", "is not public, government or china")
	}
	if c.Endpoint != "" {
		errs = append(errs, checkEndpoint("endpoint", c.Endpoint, c.AllowHTTP))
	}
	for name := range c.Metadata { // names are C# identifiers in Azure
		if name != "" && name[0] >= '0' && name[0] <= '9' {
			invalid("metadata."+name, "the name begins with a digit, which Azure does not take")
		}
	}
	if c.Tier != "" && !slices.Contains(tiers, blob.AccessTier(c.Tier)) {
		invalid("tier", "is not Hot, Cool, Cold or Archive")
	}
	if c.Tier == string(blob.AccessTierArchive) && c.IfExists != storage.Replace && !c.unique() {
		invalid(
			"tier",
			"is Archive, where an object that is there already cannot be read to be compared; use a name with {item}",
		)
	}
	if c.BlockSize != 0 && (c.BlockSize < minBlock || c.BlockSize > maxBlock) {
		invalid("block_size", "is not between %d and %d bytes", minBlock, maxBlock)
	}
	if c.Parallel < 0 || c.Parallel > 32 {
		invalid("parallel", "is not between 1 and 32")
	}
	return errors.Join(errs...)
}

var tiers = []blob.AccessTier{blob.AccessTierHot, blob.AccessTierCool, blob.AccessTierCold, blob.AccessTierArchive}

// Layout implements storage.Config.
func (c Config) Layout() storage.Layout {
	return storage.Layout{Naming: c.Naming, Expiry: c.Expiry, Attributes: c.Attributes}
}

func (c Config) unique() bool {
	t, err := c.Template()
	return err == nil && t.Unique()
}

func (c Credentials) validate() error {
	errs := []error{
		destination.Match("tenant_id", c.TenantID, tenantName),
		destination.Match("client_id", c.ClientID, guid),
	}
	fields := []struct {
		name string
		set  bool
	}{
		{"account_key", c.AccountKey.IsSet()}, {"sas", c.SAS.IsSet()},
		{"tenant_id", c.TenantID != ""}, {"client_id", c.ClientID != ""},
		{"client_secret", c.ClientSecret.IsSet()}, {"certificate", c.Certificate.IsSet()},
	}
	needed, known := map[CredentialsType][]string{
		SharedKey: {"account_key"}, SAS: {"sas"}, ClientSecret: {"tenant_id", "client_id", "client_secret"},
		ClientCertificate: {"tenant_id", "client_id", "certificate"}, ManagedIdentity: {}, Default: {},
	}[c.Type]
	if !known {
		if c.Type == "" {
			return errors.Join(append(errs, destination.Require("type", ""))...)
		}
		return errors.Join(append(errs, destination.Invalid("type",
			"is not shared_key, sas, client_secret, client_certificate, managed_identity or default"))...)
	}
	for _, f := range fields {
		switch wanted := slices.Contains(needed, f.name); {
		case wanted && !f.set:
			errs = append(errs, destination.Require(f.name, ""))
		case !wanted && f.set:
			errs = append(errs, destination.Invalid(f.name, "does not belong to credentials of type %s", c.Type))
		}
	}
	// No message quotes a secret.
	if _, err := base64.StdEncoding.DecodeString(c.AccountKey.Reveal()); err != nil {
		errs = append(errs, destination.Invalid("account_key", "is not base64"))
	}
	if c.SAS.IsSet() {
		if q, err := c.signature(); err != nil || q.Get("sig") == "" {
			errs = append(errs, destination.Invalid(
				"sas", `is not a shared access signature: the part of its URL after the question mark, with "sig="`,
			))
		}
	}
	if c.CertificatePassword.IsSet() && !c.Certificate.IsSet() {
		errs = append(errs, destination.Invalid("certificate_password", "is there without a certificate"))
	}
	if c.Certificate.IsSet() {
		if _, _, err := azidentity.ParseCertificates(c.certificate()); err != nil {
			errs = append(errs, destination.Invalid(
				"certificate",
				"cannot be read: it must be PEM with the certificate and its unencrypted private key, or PKCS#12 "+
					"in base64 with the right password",
			))
		}
	}
	return errors.Join(errs...)
}

func (c Credentials) signature() (url.Values, error) {
	return url.ParseQuery(strings.TrimPrefix(strings.TrimSpace(c.SAS.Reveal()), "?"))
}

// certificate returns the certificate's bytes and its password, as azidentity.ParseCertificates
// takes them.
func (c Credentials) certificate() (data, password []byte) {
	text := strings.TrimSpace(c.Certificate.Reveal())
	data = []byte(text)
	if !strings.Contains(text, "-----BEGIN") {
		if raw, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(text), "")); err == nil {
			data = raw
		}
	}
	if c.CertificatePassword.IsSet() {
		password = []byte(c.CertificatePassword.Reveal())
	}
	return data, password
}

func (c Config) cloud() string { return cmp.Or(c.Cloud, "public") }
func (c Config) parallel() int { return cmp.Or(c.Parallel, 4) }

// service is the URL of the account's blob service.
func (c Config) service() string {
	if c.Endpoint != "" {
		return strings.TrimSuffix(c.Endpoint, "/")
	}
	return "https://" + c.Account + "." + clouds[c.cloud()]
}

// blockSize is of a blob of that size, -1 if it is not known.
func (c Config) blockSize(size int64) int64 {
	chosen := cmp.Or(c.BlockSize, defaultBlock)
	const unit = 1 << 20
	needed := (size + maxBlocks - 1) / maxBlocks
	return max(chosen, (needed+unit-1)/unit*unit)
}

// checkEndpoint checks a URL of the service.
func checkEndpoint(field, endpoint string, allowHTTP bool) error {
	rules := remote.URL{
		Example: "https://storage.example.com", AllowHTTP: allowHTTP, HTTPHint: "set allow_http",
		Login: "credentials", Path: true,
	}
	return rules.Check(field, endpoint)
}
