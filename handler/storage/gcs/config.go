package gcs

import (
	"cmp"
	"encoding/json"
	"encoding/pem"
	"errors"
	"regexp"
	"slices"
	"strings"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler/internal/remote"
	"github.com/deliverykit/delivery/handler/storage"
)

// Config is the configuration of a gcs destination. Bucket and Credentials are required.
type Config struct {
	// Bucket is the bucket's name.
	Bucket string `json:"bucket"`
	// Endpoint is the URL of the service, for example a private connection: https, or http to a
	// loopback address. Default: https://storage.googleapis.com.
	Endpoint string `json:"endpoint,omitempty"`
	// AllowHTTP permits plain http to other addresses. Everyone on the way can then read the
	// payload.
	AllowHTTP   bool        `json:"allow_http,omitempty"`
	Credentials Credentials `json:"credentials"`
	storage.Naming
	storage.Expiry
	// Attributes are kept with each object. Tags must be empty: Google has no tags on objects.
	storage.Attributes
	// StorageClass of new objects, for example NEARLINE. Default: the bucket's.
	StorageClass string `json:"storage_class,omitempty"`
	// KMSKey is the customer-managed key that encrypts objects,
	// "projects/P/locations/L/keyRings/R/cryptoKeys/K". Default: the bucket's.
	KMSKey    string    `json:"kms_key,omitempty"`
	Retention Retention `json:"retention,omitzero"`
	// ChunkSize is the size of the chunks of resumable uploads in bytes: a multiple of 256 KiB, up
	// to 512 MiB. Default: 16 MiB. Each upload holds one chunk in memory.
	ChunkSize int64 `json:"chunk_size,omitempty"`
}

// Credentials identify the sender of the requests.
type Credentials struct {
	// Type is ServiceAccount or Default. Default: ServiceAccount.
	Type CredentialsType `json:"type,omitempty"`
	// ServiceAccount is the key file of a service account, in JSON.
	ServiceAccount destination.Secret `json:"service_account,omitzero"`
	// Impersonate is the e-mail address of a service account to act as, using these credentials.
	Impersonate string `json:"impersonate,omitempty"`
	// Delegates are the service accounts in between, each of which may create tokens for the next.
	Delegates []string `json:"delegates,omitempty"`
}

// CredentialsType says where credentials come from.
type CredentialsType string

// The sources of credentials. The second is the host's, and needs its consent.
const (
	ServiceAccount CredentialsType = "service_account"
	Default        CredentialsType = "default" // the host's own: WithDefaultCredentials or WithCredentials
)

// Retention protects objects from being deleted and replaced. The bucket must have it enabled for
// objects.
type Retention struct {
	// Mode is Unlocked or Locked. With Locked nobody can delete the object early or shorten the
	// retention.
	Mode string `json:"mode,omitempty"`
	// Days is the duration of the retention, counted from when the object is stored: 1 to 36500.
	Days int `json:"days,omitempty"`
	// Hold is temporary or event_based: the object stays until the hold is lifted.
	Hold string `json:"hold,omitempty"`
}

// DestinationType returns "gcs".
func (Config) DestinationType() string { return "gcs" }

const (
	unit         = 256 << 10 // of chunks
	maxChunk     = 512 << 20
	defaultChunk = 16 << 20
)

var (
	bucketName  = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]$`)
	className   = regexp.MustCompile(`^[A-Z][A-Z_]{1,31}$`)
	keyName     = regexp.MustCompile(`^projects/[^/\s]+/locations/[^/\s]+/keyRings/[^/\s]+/cryptoKeys/[^/\s]+$`)
	accountName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*@[A-Za-z0-9][A-Za-z0-9.-]*\.gserviceaccount\.com$`)
)

// Validate reports every faulty field. The handler checks what the host permits.
func (c Config) Validate() error {
	errs := []error{
		destination.Require("bucket", c.Bucket),
		c.Naming.Validate(),
		c.Expiry.Validate(c.Retention.Days),
		c.Attributes.Validate(),
		destination.Match("storage_class", c.StorageClass, className),
		destination.Match("kms_key", c.KMSKey, keyName),
		destination.Within("credentials", c.Credentials.validate()),
		destination.Within("retention", c.Retention.validate()),
	}
	invalid := func(path, format string, args ...any) {
		errs = append(errs, destination.Invalid(path, format, args...))
	}
	if c.Bucket != "" && (!bucketName.MatchString(c.Bucket) || strings.Contains(c.Bucket, "..")) {
		invalid("bucket", "is not a bucket name: 3 to 222 lower-case letters, digits, hyphens, underscores and dots")
	}
	if c.Endpoint != "" {
		errs = append(errs, checkEndpoint("endpoint", c.Endpoint, c.AllowHTTP))
	}
	if len(c.Tags) > 0 {
		invalid("tags", "is not empty, and Google Cloud Storage knows no tags of objects; use metadata")
	}
	if c.ChunkSize != 0 && (c.ChunkSize < unit || c.ChunkSize > maxChunk || c.ChunkSize%unit != 0) {
		invalid("chunk_size", "is not a multiple of %d between that and %d bytes", unit, maxChunk)
	}
	return errors.Join(errs...)
}

// Layout implements storage.Config.
func (c Config) Layout() storage.Layout {
	return storage.Layout{Naming: c.Naming, Expiry: c.Expiry, Attributes: c.Attributes}
}

func (r Retention) validate() error {
	var errs []error
	if r.Mode != "" && r.Mode != "Locked" && r.Mode != "Unlocked" {
		errs = append(errs, destination.Invalid("mode", "is not Locked or Unlocked"))
	}
	if r.Mode == "" && r.Days != 0 {
		errs = append(errs, destination.Require("mode", ""))
	}
	if r.Mode != "" && (r.Days < 1 || r.Days > 36500) {
		errs = append(errs, destination.Invalid("days", "is not between 1 and 36500"))
	}
	if r.Hold != "" && r.Hold != "temporary" && r.Hold != "event_based" {
		errs = append(errs, destination.Invalid("hold", "is not temporary or event_based"))
	}
	return errors.Join(errs...)
}

func (c Credentials) validate() error {
	errs := []error{destination.Match("impersonate", c.Impersonate, accountName)}
	for _, d := range c.Delegates {
		errs = append(errs, destination.Match("delegates", d, accountName))
	}
	if len(c.Delegates) > 0 && c.Impersonate == "" {
		errs = append(errs, destination.Require("impersonate", ""))
	}
	switch c.kind() {
	case ServiceAccount:
		if !c.ServiceAccount.IsSet() {
			errs = append(errs, destination.Require("service_account", ""))
			break
		}
		_, err := c.key()
		errs = append(errs, err)
	case Default:
		if c.ServiceAccount.IsSet() {
			errs = append(
				errs, destination.Invalid("service_account", "does not belong to credentials of type default"),
			)
		}
	default:
		errs = append(errs, destination.Invalid("type", "is not service_account or default"))
	}
	return errors.Join(errs...)
}

// account is what this package reads of a key file.
type account struct {
	Type       string `json:"type"`
	Email      string `json:"client_email"`
	PrivateKey string `json:"private_key"`
	TokenURI   string `json:"token_uri"`
	Universe   string `json:"universe_domain"`
}

// key checks the key file. Other kinds of credentials name files, programs and addresses of whoever
// reads them, so a tenant may not bring any. No message quotes it.
func (c Credentials) key() (account, error) {
	var a account
	invalid := func(format string, args ...any) (account, error) {
		return a, destination.Invalid("service_account", format, args...)
	}
	if json.Unmarshal([]byte(c.ServiceAccount.Reveal()), &a) != nil {
		return invalid("is not the JSON of a key file")
	}
	if a.Type != "service_account" {
		return invalid(`is not a key file of a service account: its type is not "service_account"`)
	}
	if block, _ := pem.Decode([]byte(a.PrivateKey)); block == nil || a.Email == "" {
		return invalid("has no client_email or no private_key in PEM; use the file as Google gave it")
	}
	if a.Universe != "" && a.Universe != "googleapis.com" {
		return invalid("is of another universe than googleapis.com")
	}
	if a.TokenURI != "" && (remote.URL{Path: true}).Check("service_account", a.TokenURI) != nil {
		return invalid("has a token_uri that is not an https URL")
	}
	return a, nil
}

func (c Credentials) kind() CredentialsType { return cmp.Or(c.Type, ServiceAccount) }
func (c Config) chunkSize() int64           { return cmp.Or(c.ChunkSize, defaultChunk) }

const google = "https://storage.googleapis.com"

// service is the URL of the service.
func (c Config) service() string { return strings.TrimSuffix(cmp.Or(c.Endpoint, google), "/") }

// secrets are what must not show.
func (c Config) secrets() []destination.Secret {
	all := []destination.Secret{c.Credentials.ServiceAccount}
	if a, err := c.Credentials.key(); err == nil {
		all = append(all, destination.NewSecret(a.PrivateKey))
	}
	return slices.DeleteFunc(all, func(s destination.Secret) bool { return !s.IsSet() })
}

// checkEndpoint checks a URL of the service.
func checkEndpoint(field, endpoint string, allowHTTP bool) error {
	rules := remote.URL{
		Example: "https://storage.example.com", AllowHTTP: allowHTTP, HTTPHint: "set allow_http",
		Login: "credentials",
	}
	return rules.Check(field, endpoint)
}
