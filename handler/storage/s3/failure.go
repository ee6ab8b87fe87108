package s3

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"regexp"
	"strings"

	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/smithy-go"

	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/internal/remote"
	"github.com/deliverykit/delivery/handler/storage"
)

// operation is one call, with the permission that it needs.
type operation struct{ what, permission string }

var (
	opPut      = operation{"store the object", "s3:PutObject"}
	opCreate   = operation{"begin the upload", "s3:PutObject"}
	opPart     = operation{"upload a part", "s3:PutObject"}
	opComplete = operation{"complete the upload", "s3:PutObject"}
	opParts    = operation{"list the parts of the upload", "s3:ListMultipartUploadParts"}
	opAbort    = operation{"abort the upload", "s3:AbortMultipartUpload"}
	opUploads  = operation{"list the unfinished uploads", "s3:ListBucketMultipartUploads"}
	opHead     = operation{
		"look at the object", "s3:GetObject, and s3:ListBucket to tell a missing object from a hidden one",
	}
	opGet           = operation{"read the object", "s3:GetObject"}
	opDeleteVersion = operation{"delete the version of the object", "s3:DeleteObjectVersion"}
	opDelete        = operation{"delete the object", "s3:DeleteObject"}
	opList          = operation{"list the bucket", "s3:ListBucket"}
)

// permissions adds what the config asks for beyond the operation itself.
func (b *bucket) permissions(op operation) string {
	p := op.permission
	if op == opPut || op == opCreate {
		if len(b.config.Tags) > 0 {
			p += ", s3:PutObjectTagging"
		}
		if b.config.ObjectLock.Mode != "" {
			p += ", s3:PutObjectRetention"
		}
		if b.config.ObjectLock.LegalHold {
			p += ", s3:PutObjectLegalHold"
		}
	}
	if strings.HasPrefix(b.config.Encryption.Type, "aws:kms") {
		p += ", and of the key kms:GenerateDataKey and kms:Decrypt"
	}
	return p
}

// The codes of https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html and of STS that
// mean something else than their HTTP status, or that a hint helps with.
var codes = map[string]remote.Verdict{
	"AccessDenied": remote.Means(handler.Authentication, ""), // the hint is the permission
	"Forbidden":    remote.Means(handler.Authentication, ""), // of a HEAD, which has no code of its own
	"AllAccessDisabled": remote.Means(handler.Authentication,
		"the account has access to this bucket switched off"),
	"AccountProblem": remote.Means(handler.Authentication,
		"the account has a problem, often with its payments; its owner has to resolve it"),
	"InvalidAccessKeyId": remote.Means(handler.Authentication,
		"the access key is unknown: deleted, or mistyped"),
	"XAdminUserNotFound": remote.Means(handler.Authentication, // of versitygw
		"the access key is unknown: deleted, or mistyped"),
	"InvalidClientTokenId": remote.Means(handler.Authentication,
		"the access key is unknown: deleted, or mistyped"),
	"SignatureDoesNotMatch": remote.Means(handler.Authentication,
		"the secret access key does not belong to the access key id"),
	"InvalidToken": remote.Means(handler.Authentication, "the session token is refused"),
	"InvalidIdentityToken": remote.Means(handler.Authentication,
		"the web identity's token is refused; compare the role's trust policy"),
	"UnauthorizedAccess": remote.Means(handler.Authentication,
		"the credentials are not valid in this partition"),
	"RequestTimeTooSkewed": remote.Means(handler.Internal, "this machine's clock is wrong; synchronise it"),
	"NoSuchBucket": remote.Means(handler.Configuration,
		"there is no such bucket; create it, or correct bucket, region or endpoint"),
	"InvalidBucketName":   remote.Means(handler.Configuration, "correct the bucket's name"),
	"InvalidStorageClass": remote.Means(handler.Configuration, "correct storage_class"),
	"InvalidObjectState": remote.Means(handler.Configuration,
		"the object is archived, and cannot be read to be compared"),
	"InvalidRequest": remote.Means(handler.Configuration,
		"compare checksum, encryption and object_lock with what the bucket allows"),
	"InvalidArgument": remote.Means(handler.Configuration,
		"compare checksum, encryption and object_lock with what the bucket allows"),
	"InvalidTag":       remote.Means(handler.Configuration, "correct the tags"),
	"MalformedXML":     remote.Means(handler.Configuration, ""),
	"MethodNotAllowed": remote.Means(handler.Configuration, "the other side does not allow this"),
	"NotImplemented": remote.Means(
		handler.Configuration,
		"the other side does not know a part of the request: try checksum none, or if_exists replace where it "+
			"knows no If-None-Match",
	),
	"KMS.NotFoundException": remote.Means(handler.Configuration,
		"there is no such key; correct encryption.kms_key_id"),
	"KMS.DisabledException": remote.Means(handler.Configuration,
		"the key is disabled; enable it, or name another"),
	"KMS.KMSInvalidStateException": remote.Means(handler.Configuration, "the key cannot be used in its state"),
	"KeyTooLongError":              remote.Means(handler.Validation, "shorten the name's template"),
	"EntityTooLarge":               remote.Means(handler.Validation, "the object is larger than the other side takes"),
	"BadDigest":                    remote.Means(handler.Network, "the content was changed on the way"),
	"InvalidDigest":                remote.Means(handler.Network, "the content was changed on the way"),
	"XAmzContentSHA256Mismatch":    remote.Means(handler.Network, "the content was changed on the way"),
	"XAmzContentChecksumMismatch":  remote.Means(handler.Network, "the content was changed on the way"),
	"IncompleteBody":               remote.Means(handler.Network, "the connection broke"),
	"RequestTimeout":               remote.Means(handler.Timeout, "the other side waited for the content in vain"),
	"SlowDown":                     remote.Means(handler.RateLimit, "the bucket gets more requests than it takes"),
	"Throttling":                   remote.Means(handler.RateLimit, ""),
	"ThrottlingException":          remote.Means(handler.RateLimit, ""),
	"ThrottledException":           remote.Means(handler.RateLimit, ""),
	"RequestThrottled":             remote.Means(handler.RateLimit, ""),
	"RequestLimitExceeded":         remote.Means(handler.RateLimit, ""),
	"TooManyRequests":              remote.Means(handler.RateLimit, ""),
	"TooManyRequestsException":     remote.Means(handler.RateLimit, ""),
	"BandwidthLimitExceeded":       remote.Means(handler.RateLimit, ""),
	"KMS.ThrottlingException": remote.Means(handler.RateLimit,
		"the key service gets more requests than it takes; encryption.bucket_key saves many"),
	"OperationAborted":           remote.Means(handler.Remote, "another request for this object is under way"),
	"ConditionalRequestConflict": remote.Means(handler.Remote, "another request for this object is under way"),
	"Conflict": remote.Means(handler.Remote, // of a HEAD
		"another request for this object is under way"),
	"InternalError":      remote.Means(handler.Remote, ""),
	"InternalFailure":    remote.Means(handler.Remote, ""),
	"ServiceUnavailable": remote.Means(handler.Remote, ""),
	"QuotaExceeded": remote.Means(handler.Capacity,
		"the bucket's quota is used up; make room, the item waits"),
	"InsufficientCapacity": remote.Means(handler.Capacity, "the other side is full; the item waits"),
	"XMinioStorageFull":    remote.Means(handler.Capacity, "the other side is full; the item waits"),
	"XMinioAdminBucketQuotaExceeded": remote.Means(handler.Capacity,
		"the bucket's quota is used up; make room, the item waits"),
}

var expired = map[string]bool{
	"ExpiredToken": true, "ExpiredTokenException": true, "TokenRefreshRequired": true, "RequestExpired": true,
}

var wrongRegion = map[string]bool{
	"PermanentRedirect": true, "TemporaryRedirect": true, "Redirect": true, "AuthorizationHeaderMalformed": true,
	"IllegalLocationConstraintException": true, "IncorrectEndpoint": true,
	"MovedPermanently": true, "InvalidRegionName": true,
}

var expecting = regexp.MustCompile(`expecting ['"]([a-z0-9-]{1,40})['"]`)

// failed classifies an error of the SDK. What the other side answered is quoted in short, and never
// wrapped: it may repeat what it was sent.
func (b *bucket) failed(ctx context.Context, op operation, name string, err error) error {
	if err := remote.Known(ctx, err); err != nil {
		return err
	}
	where := "s3: cannot " + op.what
	if name != "" {
		where += fmt.Sprintf(" %q", name)
	}
	where += fmt.Sprintf(" in bucket %q", b.config.Bucket)
	a, answered := b.answer(err)
	switch {
	case !answered:
		return remote.Unanswered(where, err, b.redact, "")
	case a.Code == "PreconditionFailed" || a.Status == http.StatusPreconditionFailed:
		return handler.Fail(handler.Conflict, fmt.Errorf("s3: %q: %w", name, storage.ErrExists))
	case a.Code == "NoSuchKey" || a.Code == "NoSuchVersion" || a.Code == "NotFound":
		return &handler.Error{
			Category: handler.Configuration, StatusCode: a.Status, Code: a.Code,
			Err: fmt.Errorf("s3: %q: %w", name, storage.ErrNotFound),
		}
	}
	return b.classify(op, a).In(where)
}

func (b *bucket) classify(op operation, a remote.Answer) *remote.Failure {
	f := a.Failure()
	moved := a.Status == http.StatusMovedPermanently || a.Status == http.StatusTemporaryRedirect
	switch {
	case expired[a.Code] && b.config.Credentials.kind() == AccessKey && b.config.Credentials.RoleARN == "":
		f.Is(
			handler.Authentication,
			"the session token has expired; put a new one into the destination, or use a role, whose credentials "+
				"renew themselves",
		)
	case expired[a.Code]:
		b.handler.Forget(b.id)
		f.Is(handler.Authentication, "the credentials expired during the request; the next attempt has new ones")
		f.Verdict = handler.Retry
	case wrongRegion[a.Code] || a.Code == "" && moved:
		f.Is(handler.Configuration, b.elsewhere(a))
	default:
		f.LookUp(codes)
	}
	if f.Category == handler.Authentication && f.Hint == "" {
		f.Hint = "the credentials lack a permission, or the bucket's policy denies it: " + b.permissions(op)
	}
	return f
}

// elsewhere says in which region the bucket is, as far as the other side does.
func (b *bucket) elsewhere(a remote.Answer) string {
	region := a.Header.Get("X-Amz-Bucket-Region")
	if m := expecting.FindStringSubmatch(a.Message); region == "" && m != nil {
		region = m[1]
	}
	if regionName.MatchString(region) {
		return fmt.Sprintf(
			"the bucket is in region %q, not in %q; correct the destination's region", region, b.config.region(),
		)
	}
	return fmt.Sprintf("the bucket is not in region %q; correct the region or the endpoint", b.config.region())
}

// answer takes apart what the other side said. It reports false where there is nothing that can be
// read.
func (b *bucket) answer(err error) (a remote.Answer, answered bool) {
	var api smithy.APIError
	if errors.As(err, &api) {
		a.Code, a.Message = b.redact.Line(api.ErrorCode()), b.redact.Line(api.ErrorMessage())
	}
	var r *awshttp.ResponseError
	if errors.As(err, &r) && r.Response != nil && r.Response.Response != nil {
		if a.Code == "" && r.Response.StatusCode < 300 {
			return remote.Answer{}, false
		}
		a.Status, a.Header = r.Response.StatusCode, r.Response.Header
	}
	return a, a.Code != "" || a.Status != 0
}

// noCredentials classifies why there are none: a role that may not be assumed, a chain that found
// nothing.
func (b *bucket) noCredentials(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	where := "s3: there are no credentials"
	if b.config.Credentials.RoleARN != "" {
		where = fmt.Sprintf("s3: the role %s cannot be assumed", b.config.Credentials.RoleARN)
	}
	a, answered := b.answer(err)
	if !answered {
		e := remote.Unanswered(where, err, b.redact, "")
		var file *fs.PathError
		if handler.Classify(err).Category == handler.Uncategorized || errors.As(err, &file) {
			e.Category = handler.Internal // the host's chain, or its token
		}
		return e
	}
	f := a.Refusal("compare the role's trust policy and the external id with the destination's")
	if a.Code != "AccessDenied" {
		f.LookUp(codes)
	}
	if expired[a.Code] {
		f.Hint = "the credentials that the role is assumed with have expired"
		if b.config.Credentials.kind() != AccessKey {
			f.Verdict = handler.Retry
		}
	}
	return f.In(where)
}
