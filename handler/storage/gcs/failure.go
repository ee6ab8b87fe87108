package gcs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"cloud.google.com/go/auth"
	gcstorage "cloud.google.com/go/storage"
	"google.golang.org/api/googleapi"

	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/internal/remote"
	"github.com/deliverykit/delivery/handler/storage"
)

// operation is one call, with the permission that it needs.
type operation struct{ what, permission string }

var (
	opPut    = operation{"store the object", "storage.objects.create"}
	opStart  = operation{"begin the upload of", "storage.objects.create"}
	opChunk  = operation{"upload", "storage.objects.create"}
	opResume = operation{"go on with the upload of", "storage.objects.create"}
	opStat   = operation{"look at the object", "storage.objects.get"}
	opGet    = operation{"read the object", "storage.objects.get"}
	opDelete = operation{"delete the object", "storage.objects.delete"}
	opList   = operation{"list the bucket", "storage.objects.list"}
)

// permissions adds what the config asks for beyond the operation itself.
func (b *bucket) permissions(op operation) string {
	p := op.permission
	if op.permission == opPut.permission {
		if b.config.IfExists == storage.Replace {
			p += ", and to replace storage.objects.delete"
		}
		if b.config.Retention.Mode != "" {
			p += ", storage.objects.setRetention"
		}
	}
	return p
}

// The reasons of https://docs.cloud.google.com/storage/docs/json_api/v1/status-codes that mean
// something else than their HTTP status, or that a hint helps with.
var reasons = map[string]remote.Verdict{
	"authError": remote.Means(handler.Authentication, hintRefused),
	"required":  remote.Means(handler.Authentication, "the other side takes no anonymous requests"),
	"accountDisabled": remote.Means(handler.Authentication,
		"the project's account is disabled, often for its payments; its owner has to resolve it"),
	"forbidden":               remote.Means(handler.Authentication, ""), // the hint is the permission
	"insufficientPermissions": remote.Means(handler.Authentication, ""),
	"vpcServiceControls": remote.Means(handler.Authentication,
		"a perimeter of VPC Service Controls keeps this service out"),
	"userProjectMissing": remote.Means(handler.Configuration,
		"the bucket wants the requester to pay, which is not supported"),
	"userProjectAccessDenied": remote.Means(handler.Configuration,
		"the bucket wants the requester to pay, which is not supported"),
	"retentionPolicyNotMet": remote.Means(handler.Conflict,
		"a retention policy protects the object that is there"),
	"retentionNotMet":       remote.Means(handler.Conflict, "its retention protects the object that is there"),
	"objectUnderActiveHold": remote.Means(handler.Conflict, "a hold protects the object that is there"),
	"invalidArgument": remote.Means(handler.Configuration,
		"compare storage_class, kms_key and retention with what the bucket allows"),
	"invalid": remote.Means(handler.Configuration,
		"compare storage_class, kms_key and retention with what the bucket allows"),
	"invalidParameter": remote.Means(handler.Configuration,
		"compare storage_class, kms_key and retention with what the bucket allows"),
	"kmsKeyNotFound":              remote.Means(handler.Configuration, "there is no such key; correct kms_key"),
	"customerEncryptionKeyFormat": remote.Means(handler.Configuration, "correct kms_key"),
	"uploadTooLarge":              remote.Means(handler.Validation, "the object is larger than the other side takes"),
	"rateLimitExceeded":           remote.Means(handler.RateLimit, "the bucket gets more requests than it takes"),
	"userRateLimitExceeded":       remote.Means(handler.RateLimit, "the project gets more requests than it takes"),
	"quotaExceeded":               remote.Means(handler.RateLimit, "the project's quota of requests is used up"),
	"backendError":                remote.Means(handler.Remote, ""),
	"internalError":               remote.Means(handler.Remote, ""),
}

// again says what is tried again at once: not an address that may not be dialled, and not for want
// of a token.
func again(err error) bool {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) ||
		errors.Is(err, errEnded) {
		return false
	}
	var permanent interface{ Permanent() bool }
	if errors.As(err, &permanent) && permanent.Permanent() {
		return false
	}
	var token *tokenError
	if errors.As(err, &token) {
		return false
	}
	var answered *googleapi.Error
	if errors.As(err, &answered) {
		return answered.Code == http.StatusRequestTimeout || answered.Code == http.StatusTooManyRequests ||
			answered.Code >= 500 && answered.Code != http.StatusNotImplemented
	}
	var request *url.Error
	return errors.As(err, &request) || errors.Is(err, io.ErrUnexpectedEOF) || gcstorage.ShouldRetry(err)
}

// failed classifies an error of the SDK. What the other side answered is quoted in short, and never
// wrapped: it may repeat what it was sent.
func (b *bucket) failed(ctx context.Context, op operation, name string, err error) error {
	if err := remote.Known(ctx, err); err != nil {
		return err
	}
	var token *tokenError
	if errors.As(err, &token) {
		return b.noToken(ctx, token.err)
	}
	where := "gcs: cannot " + op.what
	if name != "" {
		where += fmt.Sprintf(" %q", name)
	}
	where += fmt.Sprintf(" in bucket %q", b.config.Bucket)

	var answered *googleapi.Error
	if !errors.As(err, &answered) || answered.Code < 300 {
		if errors.Is(err, gcstorage.ErrObjectNotExist) {
			return handler.Fail(handler.Configuration, fmt.Errorf("gcs: %q: %w", name, storage.ErrNotFound))
		}
		return remote.Unanswered(where, err, b.redact, "")
	}
	a := remote.Answer{Status: answered.Code, Header: answered.Header, Message: b.redact.Line(answered.Message)}
	if len(answered.Errors) > 0 {
		a.Code = b.redact.Line(answered.Errors[0].Reason)
	}
	noBucket := a.Status == http.StatusNotFound && (strings.Contains(a.Message, "bucket does not exist") ||
		errors.Is(err, gcstorage.ErrBucketNotExist) || op.permission == opPut.permission || op == opList)
	switch {
	case a.Status == http.StatusPreconditionFailed:
		return handler.Fail(handler.Conflict, fmt.Errorf("gcs: %q: %w", name, storage.ErrExists))
	case noBucket:
		f := a.Failure()
		f.Hint = "there is no such bucket; create it, or correct bucket"
		return f.In(where)
	case a.Status == http.StatusNotFound:
		return &handler.Error{
			Category: handler.Configuration, StatusCode: a.Status, Code: a.Code,
			Err: fmt.Errorf("gcs: %q: %w", name, storage.ErrNotFound),
		}
	}
	return b.classify(op, a).In(where)
}

const hintRefused = "the token is refused; compare the service account with the destination's"

func (b *bucket) classify(op operation, a remote.Answer) *remote.Failure {
	f := a.Failure()
	switch {
	case a.Status == http.StatusUnauthorized:
		// Tokens are renewed before they expire: this one was revoked, or the clock is wrong. The
		// next attempt has a new one.
		b.handler.Forget(b.id)
		f.Is(handler.Authentication, hintRefused)
	case damaged(a):
		f.Is(handler.Network, "the content was changed on the way")
		f.Cause = errMismatch
	case strings.Contains(strings.ToLower(a.Message), "kms") &&
		(a.Status == http.StatusForbidden || a.Status == http.StatusBadRequest):
		f.Is(
			handler.Configuration,
			"the bucket's service agent needs cloudkms.cryptoKeyEncrypterDecrypter on kms_key, "+
				"which must be enabled and in the bucket's location",
		)
	default:
		f.LookUp(reasons)
	}
	if f.Category == handler.Authentication && f.Hint == "" {
		f.Hint = "the credentials lack a permission: " + b.permissions(op)
	}
	return f
}

// damaged reports whether a checksum differs, which only the message says.
func damaged(a remote.Answer) bool {
	return strings.Contains(a.Message, "hash") && strings.Contains(a.Message, "match") ||
		strings.Contains(a.Message, "crc32c") && a.Status == http.StatusBadRequest
}

// noToken classifies why there is none: a key that was deleted, an account that may not be
// impersonated, a service that is away.
func (b *bucket) noToken(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	const own = "these are the service's own credentials, which its operator has to correct"
	host := b.config.Credentials.kind() == Default
	where := "gcs: there is no token"
	if as := b.config.Credentials.Impersonate; as != "" {
		where += " of " + as
	}
	var refused *auth.Error
	if !errors.As(err, &refused) || refused.Response == nil {
		e := remote.Unanswered(where, err, b.redact, "")
		if host {
			return handler.Fail(handler.Internal, fmt.Errorf("%w; %s", e, own))
		}
		return e
	}
	code, message := refusal(refused.Body)
	a := remote.Answer{
		Status: refused.Response.StatusCode, Header: refused.Response.Header,
		Code: b.redact.Line(code), Message: b.redact.Line(message),
	}
	f := a.Refusal("the key was deleted, its service account is disabled, or this machine's clock is wrong")
	switch {
	case f.Category != handler.Authentication:
	case b.config.Credentials.Impersonate != "" && code != "invalid_grant":
		f.Hint = "the account that asks needs iam.serviceAccounts.getAccessToken on it (Service Account Token Creator)"
	case host:
		f.Is(handler.Internal, own)
	}
	return f.In(where)
}
