package s3

import (
	"cmp"
	"errors"
	"regexp"
	"strings"
	"time"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler/internal/remote"
	"github.com/deliverykit/delivery/handler/storage"
)

// Config is the configuration of an s3 destination. Bucket, Credentials, and Region or Endpoint are
// required.
type Config struct {
	// Bucket is the bucket's name.
	Bucket string `json:"bucket"`
	// Region is the region of the bucket, for example "eu-central-1". It is required without an
	// Endpoint. Default with an Endpoint: "us-east-1".
	Region string `json:"region,omitempty"`
	// Endpoint is the URL of a service other than Amazon's, without a path: https, or http to a
	// loopback address.
	Endpoint string `json:"endpoint,omitempty"`
	// AllowHTTP permits plain http to other addresses. Everyone on the way can then read the
	// payload.
	AllowHTTP bool `json:"allow_http,omitempty"`
	// PathStyle puts the bucket into the path instead of the host name. Most other services need
	// this.
	PathStyle bool `json:"path_style,omitempty"`
	// BucketOwner is the 12-digit account that must own the bucket. Default: not checked.
	BucketOwner string      `json:"bucket_owner,omitempty"`
	Credentials Credentials `json:"credentials"`
	storage.Naming
	storage.Expiry
	storage.Attributes
	// StorageClass of new objects, for example STANDARD_IA. Default: the bucket's.
	StorageClass string     `json:"storage_class,omitempty"`
	Encryption   Encryption `json:"encryption,omitzero"`
	ObjectLock   ObjectLock `json:"object_lock,omitzero"`
	// Checksum is the algorithm by which the other side verifies parts and objects: crc32c, crc32
	// or sha256, or "none" for services without checksums. Default: crc32c.
	Checksum string `json:"checksum,omitempty"`
	// PartSize is the size of the parts of multipart uploads in bytes, from 5 MiB to 512 MiB.
	// Default: 5 MiB, and 8 MiB for content of unknown size. Parts are larger where content of
	// known size would otherwise have more than 10,000 of them. Each upload holds Parallel+1 parts
	// in memory.
	PartSize int64 `json:"part_size,omitempty"`
	// Parallel is the number of parts of one object that are sent at a time, up to 32. Default: 4.
	Parallel int `json:"parallel,omitempty"`
	// AbandonAfter is the age from which Maintain aborts an unfinished upload, at least 25 h;
	// negative: never. Default: 7 days. It recognises its own uploads by their names, so it does
	// nothing where the name template has neither {item} nor {delivery}.
	AbandonAfter destination.Duration `json:"abandon_after,omitempty"`
}

// Credentials identify the sender of the requests.
type Credentials struct {
	// Type is AccessKey, Default or WebIdentity. Default: AccessKey.
	Type CredentialsType `json:"type,omitempty"`
	// AccessKeyID, SecretAccessKey and, for temporary credentials, SessionToken belong to
	// AccessKey.
	AccessKeyID     string             `json:"access_key_id,omitempty"`
	SecretAccessKey destination.Secret `json:"secret_access_key,omitzero"`
	SessionToken    destination.Secret `json:"session_token,omitzero"`
	// RoleARN is a role to assume with these credentials. WebIdentity requires one.
	RoleARN string `json:"role_arn,omitempty"`
	// ExternalID is the external id that the role's trust policy asks for. A host that serves
	// several organizations assigns one to each and does not let them choose it: see
	// WithExternalID.
	ExternalID string `json:"external_id,omitempty"`
}

// CredentialsType says where credentials come from.
type CredentialsType string

// The sources of credentials. The last two are the host's, and need its consent.
const (
	AccessKey   CredentialsType = "access_key"
	Default     CredentialsType = "default"      // the host's own: WithDefaultCredentials or WithCredentials
	WebIdentity CredentialsType = "web_identity" // the host's token (OpenID Connect): WithWebIdentityToken
)

// Encryption says how the other side encrypts objects.
type Encryption struct {
	// Type is AES256, aws:kms or aws:kms:dsse. Default: the bucket's.
	Type string `json:"type,omitempty"`
	// KMSKeyID is the key for aws:kms. Default: the account's own key for S3.
	KMSKeyID string `json:"kms_key_id,omitempty"`
	// BucketKey reduces the calls to the key service.
	BucketKey bool `json:"bucket_key,omitempty"`
}

// ObjectLock protects objects from being deleted and replaced. The bucket must have it enabled.
type ObjectLock struct {
	// Mode is GOVERNANCE or COMPLIANCE. With COMPLIANCE nobody can delete the object early.
	Mode string `json:"mode,omitempty"`
	// Days is the duration of the protection, counted from when the object is stored: 1 to 36500.
	Days int `json:"days,omitempty"`
	// LegalHold protects the object until the hold is lifted.
	LegalHold bool `json:"legal_hold,omitempty"`
}

// DestinationType returns "s3".
func (Config) DestinationType() string { return "s3" }

const (
	minPart     = 5 << 20
	maxPart     = 512 << 20
	defaultPart = 5 << 20
	unsizedPart = 8 << 20
	maxParts    = 10_000
)

var (
	bucketName    = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]$`)
	regionName    = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,38}[a-z0-9]$`)
	accountNumber = regexp.MustCompile(`^[0-9]{12}$`)
	className     = regexp.MustCompile(`^[A-Z][A-Z0-9_]{1,31}$`)
	keyID         = regexp.MustCompile(`^[A-Za-z0-9_.:@/=+-]{3,128}$`)
	roleName      = regexp.MustCompile(`^arn:aws[a-z-]*:iam::[0-9]{12}:role/[A-Za-z0-9_+=,.@/-]{1,576}$`)
	externalID    = regexp.MustCompile(`^[A-Za-z0-9_+=,.@:/-]{2,1000}$`)
	kmsKey        = regexp.MustCompile(`^[A-Za-z0-9:/_-]{1,1000}$`)
)

// Validate reports every faulty field. The handler checks what the host permits.
func (c Config) Validate() error {
	errs := []error{
		destination.Require("bucket", c.Bucket),
		c.Naming.Validate(),
		c.Expiry.Validate(c.ObjectLock.Days),
		c.Attributes.Validate(),
		destination.Match("region", c.Region, regionName),
		destination.Match("bucket_owner", c.BucketOwner, accountNumber),
		destination.Match("storage_class", c.StorageClass, className),
		destination.Within("credentials", c.Credentials.validate()),
		destination.Within("encryption", c.Encryption.validate()),
		c.validateEndpoint(),
		c.validateLock(),
	}
	invalid := func(path, format string, args ...any) {
		errs = append(errs, destination.Invalid(path, format, args...))
	}
	if c.Bucket != "" && (!bucketName.MatchString(c.Bucket) || strings.Contains(c.Bucket, "..")) {
		invalid("bucket", "is not a bucket name: 3 to 63 letters, digits, hyphens and dots")
	}
	if c.Region == "" && c.Endpoint == "" {
		errs = append(errs, destination.Require("region", ""))
	}
	switch c.Checksum {
	case "", "crc32c", "crc32", "sha256", "none":
	default:
		invalid("checksum", "is not crc32c, crc32, sha256 or none")
	}
	if c.PartSize != 0 && (c.PartSize < minPart || c.PartSize > maxPart) {
		invalid("part_size", "is not between %d and %d bytes", minPart, maxPart)
	}
	if c.Parallel < 0 || c.Parallel > 32 {
		invalid("parallel", "is not between 1 and 32")
	}
	if c.AbandonAfter > 0 && c.AbandonAfter < destination.Hours(25) {
		invalid("abandon_after", "is less than 25h: an attempt may take 24")
	}
	return errors.Join(errs...)
}

// Layout implements storage.Config.
func (c Config) Layout() storage.Layout {
	return storage.Layout{Naming: c.Naming, Expiry: c.Expiry, Attributes: c.Attributes}
}

// abandoned is AbandonAfter, or 0 where uploads cannot be known as ours by their names.
func (c Config) abandoned() time.Duration {
	if template, err := c.Template(); err != nil || !template.Unique() {
		return 0
	}
	return time.Duration(cmp.Or(c.AbandonAfter, destination.Hours(7*24)))
}

func (c Config) validateLock() error {
	l := c.ObjectLock
	var errs []error
	invalid := func(path, format string, args ...any) {
		errs = append(errs, destination.Invalid(path, format, args...))
	}
	switch l.Mode {
	case "", "GOVERNANCE", "COMPLIANCE":
	default:
		invalid("object_lock.mode", "is not GOVERNANCE or COMPLIANCE")
	}
	if l.Mode != "" && (l.Days < 1 || l.Days > 36500) {
		invalid("object_lock.days", "is not between 1 and 36500")
	}
	if l.Mode == "" && l.Days != 0 {
		errs = append(errs, destination.Require("object_lock.mode", ""))
	}
	if (l.Mode != "" || l.LegalHold) && c.Checksum == "none" {
		invalid("checksum", "is none, and object lock needs one")
	}
	return errors.Join(errs...)
}

func (e Encryption) validate() error {
	var errs []error
	switch e.Type {
	case "", "AES256":
		if e.KMSKeyID != "" || e.BucketKey {
			errs = append(errs, destination.Invalid("type", "is not aws:kms, and there is a key of it"))
		}
	case "aws:kms", "aws:kms:dsse":
	default:
		errs = append(errs, destination.Invalid("type", "is not AES256, aws:kms or aws:kms:dsse"))
	}
	return errors.Join(append(errs, destination.Match("kms_key_id", e.KMSKeyID, kmsKey))...)
}

func (c Credentials) validate() error {
	errs := []error{
		destination.Match("role_arn", c.RoleARN, roleName),
		destination.Match("external_id", c.ExternalID, externalID),
	}
	invalid := func(path, format string, args ...any) {
		errs = append(errs, destination.Invalid(path, format, args...))
	}
	switch c.kind() {
	case AccessKey:
		errs = append(errs, destination.Require("access_key_id", c.AccessKeyID))
		if !c.SecretAccessKey.IsSet() {
			errs = append(errs, destination.Require("secret_access_key", ""))
		}
		if c.AccessKeyID != "" && !keyID.MatchString(c.AccessKeyID) {
			invalid("access_key_id", "is not an access key id") // without it: the secret may have been put there
		}
	case Default, WebIdentity:
		if c.AccessKeyID != "" || c.SecretAccessKey.IsSet() || c.SessionToken.IsSet() {
			invalid("type", "is not access_key, and there is an access key")
		}
	default:
		invalid("type", "is not access_key, default or web_identity")
	}
	if c.kind() == WebIdentity {
		errs = append(errs, destination.Require("role_arn", c.RoleARN))
	}
	if c.ExternalID != "" && (c.RoleARN == "" || c.kind() == WebIdentity) {
		invalid("external_id", "is there without a role that is assumed with it")
	}
	return errors.Join(errs...)
}

func (c Config) validateEndpoint() error {
	if c.Endpoint == "" {
		return nil
	}
	return checkEndpoint("endpoint", c.Endpoint, c.AllowHTTP)
}

func (c Credentials) kind() CredentialsType { return cmp.Or(c.Type, AccessKey) }
func (c Config) region() string             { return cmp.Or(c.Region, "us-east-1") }
func (c Config) parallel() int              { return cmp.Or(c.Parallel, 4) }
func (c Config) plain() bool                { return strings.HasPrefix(c.Endpoint, "http://") }

// partSize is of an object of that size, -1 if it is not known.
func (c Config) partSize(size int64) int64 {
	if size < 0 {
		return cmp.Or(c.PartSize, unsizedPart)
	}
	const unit = 1 << 20
	needed := (size + maxParts - 1) / maxParts
	return max(cmp.Or(c.PartSize, defaultPart), (needed+unit-1)/unit*unit)
}

// checkEndpoint checks a URL of the service.
func checkEndpoint(field, endpoint string, allowHTTP bool) error {
	rules := remote.URL{
		Example: "https://storage.example.com", AllowHTTP: allowHTTP, HTTPHint: "set allow_http",
		Login: "credentials",
	}
	return rules.Check(field, endpoint)
}
