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

// verdict is what a reason of the other side means.
type verdict struct {
	category handler.Category
	hint     string
}

// The reasons of https://docs.cloud.google.com/storage/docs/json_api/v1/status-codes that mean something else than their HTTP
// status, or that a hint helps with.
var reasons = map[string]verdict{
	"authError":                   {handler.Authentication, "the token is refused; compare the service account with the destination's"},
	"required":                    {handler.Authentication, "the other side takes no anonymous requests"},
	"accountDisabled":             {handler.Authentication, "the project's account is disabled, often for its payments; its owner has to mend it"},
	"forbidden":                   {handler.Authentication, ""}, // the hint is the permission
	"insufficientPermissions":     {handler.Authentication, ""},
	"vpcServiceControls":          {handler.Authentication, "a perimeter of VPC Service Controls keeps this service out"},
	"userProjectMissing":          {handler.Configuration, "the bucket wants the requester to pay, which is not supported"},
	"userProjectAccessDenied":     {handler.Configuration, "the bucket wants the requester to pay, which is not supported"},
	"retentionPolicyNotMet":       {handler.Conflict, "a retention policy protects the object that is there"},
	"retentionNotMet":             {handler.Conflict, "its retention protects the object that is there"},
	"objectUnderActiveHold":       {handler.Conflict, "a hold protects the object that is there"},
	"invalidArgument":             {handler.Configuration, "compare storage_class, kms_key and retention with what the bucket allows"},
	"invalid":                     {handler.Configuration, "compare storage_class, kms_key and retention with what the bucket allows"},
	"invalidParameter":            {handler.Configuration, "compare storage_class, kms_key and retention with what the bucket allows"},
	"kmsKeyNotFound":              {handler.Configuration, "there is no such key; correct kms_key"},
	"customerEncryptionKeyFormat": {handler.Configuration, "correct kms_key"},
	"uploadTooLarge":              {handler.Validation, "the object is larger than the other side takes"},
	"rateLimitExceeded":           {handler.RateLimit, "the bucket gets more requests than it takes"},
	"userRateLimitExceeded":       {handler.RateLimit, "the project gets more requests than it takes"},
	"quotaExceeded":               {handler.RateLimit, "the project's quota of requests is used up"},
	"backendError":                {handler.Remote, ""},
	"internalError":               {handler.Remote, ""},
}

// again says what is tried again at once: not an address that may not be dialled, and not for want of a token.
func again(err error) bool {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, errEnded) {
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
		return answered.Code == http.StatusRequestTimeout || answered.Code == http.StatusTooManyRequests || answered.Code >= 500 && answered.Code != http.StatusNotImplemented
	}
	var request *url.Error
	return errors.As(err, &request) || errors.Is(err, io.ErrUnexpectedEOF) || gcstorage.ShouldRetry(err)
}

// failed classifies an error of the SDK. What the other side answered is quoted in short, and never kept as an error of its
// own: it may repeat what it was sent.
func (b *bucket) failed(ctx context.Context, op operation, name string, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var mine *handler.Error
	if errors.As(err, &mine) {
		return err // of the payload, or of this package
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
		return b.unanswered(where, err)
	}
	reason := ""
	if len(answered.Errors) > 0 {
		reason = b.redact.Line(answered.Errors[0].Reason)
	}
	message := b.redact.Line(answered.Message)
	noBucket := answered.Code == http.StatusNotFound && (strings.Contains(message, "bucket does not exist") || errors.Is(err, gcstorage.ErrBucketNotExist) ||
		op.permission == opPut.permission || op == opList)
	switch {
	case answered.Code == http.StatusPreconditionFailed:
		return handler.Fail(handler.Conflict, fmt.Errorf("gcs: %q: %w", name, storage.ErrExists))
	case answered.Code == http.StatusNotFound && !noBucket:
		return &handler.Error{Category: handler.Configuration, StatusCode: answered.Code, Code: reason, Err: fmt.Errorf("gcs: %q: %w", name, storage.ErrNotFound)}
	}
	e := handler.Classify(handler.FromHTTP(answered.Code, answered.Header, err))
	e.Code = reason
	hint := ""
	known, listed := reasons[reason]
	switch {
	case noBucket:
		hint = "there is no such bucket; create it, or correct bucket"
	case answered.Code == http.StatusUnauthorized:
		// Tokens are renewed before they expire: this one was revoked, or the clock is wrong. The next attempt has a new one.
		e.Category, hint = handler.Authentication, "the token is refused; compare the service account with the destination's"
		b.handler.Forget(b.id)
	case strings.Contains(message, "hash") && strings.Contains(message, "match") || strings.Contains(message, "crc32c") && answered.Code == http.StatusBadRequest:
		return &handler.Error{
			Category: handler.Network, StatusCode: answered.Code, Code: reason,
			Err: fmt.Errorf("%s: the other side answered %d %s: %s; the content was changed on the way: %w", where, answered.Code, reason, message, errMismatch),
		}
	case strings.Contains(strings.ToLower(message), "kms") && (answered.Code == http.StatusForbidden || answered.Code == http.StatusBadRequest):
		e.Category, e.Verdict, hint = handler.Configuration, handler.ByCategory, "the bucket's service agent needs cloudkms.cryptoKeyEncrypterDecrypter on kms_key, which must be enabled and in the bucket's location"
	case listed:
		e.Category, e.Verdict, hint = known.category, handler.ByCategory, known.hint
	}
	if e.Category == handler.Authentication && hint == "" {
		hint = "the credentials lack a permission: " + b.permissions(op)
	}
	if answered.Code == http.StatusServiceUnavailable && e.RetryAfter > 0 || e.Category == handler.RateLimit {
		hint = strings.TrimPrefix(hint+"; it is tried again later", "; ")
	}
	text := fmt.Sprintf("%s: the other side answered %d %s", where, answered.Code, reason)
	if message != "" && message != reason {
		text += ": " + message
	}
	if hint != "" {
		text += "; " + hint
	}
	e.Err = errors.New(text)
	return e
}

// unanswered classifies an error without an answer that could be read.
func (b *bucket) unanswered(where string, err error) error {
	var request *url.Error
	if errors.As(err, &request) {
		err = request.Err // its URL may be that of a session
	}
	e := handler.Classify(err)
	if e.Category == handler.Uncategorized {
		e.Category = handler.Network // an answer that is no HTTP, or no JSON
	}
	e.Err = fmt.Errorf("%s: %w", where, b.redact.Wrap(err))
	return e
}

// noToken classifies why there is none: a key that was deleted, an account that may not be impersonated, a service that is
// away.
func (b *bucket) noToken(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	host := b.config.Credentials.kind() == Default
	where := "gcs: no token can be had"
	if as := b.config.Credentials.Impersonate; as != "" {
		where = fmt.Sprintf("gcs: no token of %s can be had", as)
	}
	var refused *auth.Error
	if !errors.As(err, &refused) || refused.Response == nil {
		e := b.unanswered(where, err)
		if host {
			return &handler.Error{Category: handler.Internal, Err: fmt.Errorf("%w; these are the service's own credentials, which its operator has to mend", e)}
		}
		return e
	}
	status := refused.Response.StatusCode
	code, message := refusal(refused.Body)
	code, message = b.redact.Line(code), b.redact.Line(message)
	e := &handler.Error{Category: handler.Authentication, StatusCode: status, Code: code}
	if status == http.StatusTooManyRequests || status >= 500 {
		e = handler.Classify(handler.FromHTTP(status, refused.Response.Header, err))
		e.Code = code
	}
	hint := "the key was deleted, its service account is disabled, or this machine's clock is wrong"
	switch {
	case e.Category != handler.Authentication:
		hint = "it is tried again later"
	case b.config.Credentials.Impersonate != "" && code != "invalid_grant":
		hint = "the account that asks needs iam.serviceAccounts.getAccessToken on it (Service Account Token Creator)"
	case host:
		e.Category, hint = handler.Internal, "these are the service's own credentials, which its operator has to mend"
	}
	e.Err = fmt.Errorf("%s: the other side answered %d %s: %s; %s", where, status, code, message, hint)
	return e
}
