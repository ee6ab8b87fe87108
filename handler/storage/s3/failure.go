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
	"github.com/deliverykit/delivery/handler/storage"
)

// operation is one call, with the permission that it needs.
type operation struct{ what, permission string }

var (
	opPut           = operation{"store the object", "s3:PutObject"}
	opCreate        = operation{"begin the upload", "s3:PutObject"}
	opPart          = operation{"upload a part", "s3:PutObject"}
	opComplete      = operation{"complete the upload", "s3:PutObject"}
	opParts         = operation{"list the parts of the upload", "s3:ListMultipartUploadParts"}
	opAbort         = operation{"abort the upload", "s3:AbortMultipartUpload"}
	opUploads       = operation{"list the unfinished uploads", "s3:ListBucketMultipartUploads"}
	opHead          = operation{"look at the object", "s3:GetObject, and s3:ListBucket to tell a missing object from a hidden one"}
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

// verdict is what a code of the other side means.
type verdict struct {
	category handler.Category
	hint     string
}

// The codes of https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html and of STS that mean something else than
// their HTTP status, or that a hint helps with.
var codes = map[string]verdict{
	"AccessDenied":                 {handler.Authentication, ""}, // the hint is the permission
	"Forbidden":                    {handler.Authentication, ""}, // of a HEAD, which has no code of its own
	"AllAccessDisabled":            {handler.Authentication, "the account has access to this bucket switched off"},
	"AccountProblem":               {handler.Authentication, "the account has a problem, often with its payments; its owner has to mend it"},
	"InvalidAccessKeyId":           {handler.Authentication, "the access key is unknown: deleted, or mistyped"},
	"XAdminUserNotFound":           {handler.Authentication, "the access key is unknown: deleted, or mistyped"}, // of versitygw
	"InvalidClientTokenId":         {handler.Authentication, "the access key is unknown: deleted, or mistyped"},
	"SignatureDoesNotMatch":        {handler.Authentication, "the secret access key does not belong to the access key id"},
	"InvalidToken":                 {handler.Authentication, "the session token is refused"},
	"InvalidIdentityToken":         {handler.Authentication, "the web identity's token is refused; compare the role's trust policy"},
	"UnauthorizedAccess":           {handler.Authentication, "the credentials are not valid in this partition"},
	"RequestTimeTooSkewed":         {handler.Internal, "this machine's clock is wrong; synchronise it"},
	"NoSuchBucket":                 {handler.Configuration, "there is no such bucket; create it, or correct bucket, region or endpoint"},
	"InvalidBucketName":            {handler.Configuration, "correct the bucket's name"},
	"InvalidStorageClass":          {handler.Configuration, "correct storage_class"},
	"InvalidObjectState":           {handler.Configuration, "the object is archived, and cannot be read to be compared"},
	"InvalidRequest":               {handler.Configuration, "compare checksum, encryption and object_lock with what the bucket allows"},
	"InvalidArgument":              {handler.Configuration, "compare checksum, encryption and object_lock with what the bucket allows"},
	"InvalidTag":                   {handler.Configuration, "correct the tags"},
	"MalformedXML":                 {handler.Configuration, ""},
	"MethodNotAllowed":             {handler.Configuration, "the other side does not allow this"},
	"NotImplemented":               {handler.Configuration, "the other side does not know a part of the request: try checksum none, or if_exists replace where it knows no If-None-Match"},
	"KMS.NotFoundException":        {handler.Configuration, "there is no such key; correct encryption.kms_key_id"},
	"KMS.DisabledException":        {handler.Configuration, "the key is disabled; enable it, or name another"},
	"KMS.KMSInvalidStateException": {handler.Configuration, "the key cannot be used in its state"},
	"KeyTooLongError":              {handler.Validation, "shorten the name's template"},
	"EntityTooLarge":               {handler.Validation, "the object is larger than the other side takes"},
	"BadDigest":                    {handler.Network, "the content was changed on the way"},
	"InvalidDigest":                {handler.Network, "the content was changed on the way"},
	"XAmzContentSHA256Mismatch":    {handler.Network, "the content was changed on the way"},
	"XAmzContentChecksumMismatch":  {handler.Network, "the content was changed on the way"},
	"IncompleteBody":               {handler.Network, "the connection broke"},
	"RequestTimeout":               {handler.Timeout, "the other side waited for the content in vain"},
	"SlowDown":                     {handler.RateLimit, "the bucket gets more requests than it takes"},
	"Throttling":                   {handler.RateLimit, ""},
	"ThrottlingException":          {handler.RateLimit, ""},
	"ThrottledException":           {handler.RateLimit, ""},
	"RequestThrottled":             {handler.RateLimit, ""},
	"RequestLimitExceeded":         {handler.RateLimit, ""},
	"TooManyRequests":              {handler.RateLimit, ""},
	"TooManyRequestsException":     {handler.RateLimit, ""},
	"BandwidthLimitExceeded":       {handler.RateLimit, ""},
	"KMS.ThrottlingException":      {handler.RateLimit, "the key service gets more requests than it takes; encryption.bucket_key saves many"},
	"OperationAborted":             {handler.Remote, "another request for this object is under way"},
	"ConditionalRequestConflict":   {handler.Remote, "another request for this object is under way"},
	"Conflict":                     {handler.Remote, "another request for this object is under way"}, // of a HEAD
	"InternalError":                {handler.Remote, ""},
	"InternalFailure":              {handler.Remote, ""},
	"ServiceUnavailable":           {handler.Remote, ""},
	"QuotaExceeded":                {handler.Capacity, "the bucket's quota is used up; make room, the item waits"},
	"InsufficientCapacity":         {handler.Capacity, "the other side is full; the item waits"},
	"XMinioStorageFull":            {handler.Capacity, "the other side is full; the item waits"},
	"XMinioAdminBucketQuotaExceeded": {handler.Capacity,
		"the bucket's quota is used up; make room, the item waits"},
}

var expired = map[string]bool{
	"ExpiredToken": true, "ExpiredTokenException": true, "TokenRefreshRequired": true, "RequestExpired": true,
}

var wrongRegion = map[string]bool{
	"PermanentRedirect": true, "TemporaryRedirect": true, "Redirect": true, "AuthorizationHeaderMalformed": true,
	"IllegalLocationConstraintException": true, "IncorrectEndpoint": true, "MovedPermanently": true, "InvalidRegionName": true,
}

var expecting = regexp.MustCompile(`expecting ['"]([a-z0-9-]{1,40})['"]`)

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
	where := "s3: cannot " + op.what
	if name != "" {
		where += fmt.Sprintf(" %q", name)
	}
	where += fmt.Sprintf(" in bucket %q", b.config.Bucket)

	code, message, status, header := b.answer(err)
	if code == "" && status == 0 {
		e := handler.Classify(err)
		if e.Category == handler.Uncategorized {
			e.Category = handler.Network // an answer that is no HTTP, or no XML
		}
		e.Err = fmt.Errorf("%s: %w", where, b.redact.Wrap(err))
		return e
	}
	text := fmt.Sprintf("%s: the other side answered %d %s", where, status, code)
	if message != "" && message != code {
		text += ": " + message
	}
	e := &handler.Error{StatusCode: status, Code: code}
	if status >= 300 {
		e = handler.Classify(handler.FromHTTP(status, header, err))
		e.Code = code
	}
	hint := ""
	known, listed := codes[code]
	switch {
	case code == "PreconditionFailed" || status == http.StatusPreconditionFailed:
		return handler.Fail(handler.Conflict, fmt.Errorf("s3: %q: %w", name, storage.ErrExists))
	case code == "NoSuchKey" || code == "NoSuchVersion" || code == "NotFound":
		return &handler.Error{Category: handler.Configuration, StatusCode: status, Code: code, Err: fmt.Errorf("s3: %q: %w", name, storage.ErrNotFound)}
	case expired[code]:
		e.Category = handler.Authentication
		if b.config.Credentials.kind() == AccessKey && b.config.Credentials.RoleARN == "" {
			hint = "the session token has expired; put a new one into the destination, or use a role, whose credentials renew themselves"
		} else {
			e.Verdict = handler.Retry
			b.handler.Forget(b.id)
			hint = "the credentials expired under the request; the next attempt has new ones"
		}
	case wrongRegion[code] || code == "" && (status == http.StatusMovedPermanently || status == http.StatusTemporaryRedirect):
		e.Category, e.Verdict = handler.Configuration, handler.ByCategory
		hint = fmt.Sprintf("the bucket is not in region %q; correct the region or the endpoint", b.config.region())
		region := header.Get("X-Amz-Bucket-Region")
		if m := expecting.FindStringSubmatch(message); region == "" && m != nil {
			region = m[1]
		}
		if regionName.MatchString(region) {
			hint = fmt.Sprintf("the bucket is in region %q, not in %q; correct the destination's region", region, b.config.region())
		}
	case listed:
		e.Category, e.Verdict, hint = known.category, handler.ByCategory, known.hint
	}
	if e.Category == handler.Authentication && hint == "" {
		hint = "the credentials lack a permission, or the bucket's policy denies it: " + b.permissions(op)
	}
	if status == http.StatusServiceUnavailable && e.RetryAfter > 0 || e.Category == handler.RateLimit {
		hint = strings.TrimPrefix(hint+"; it is tried again later", "; ")
	}
	if hint != "" {
		text += "; " + hint
	}
	e.Err = errors.New(text)
	return e
}

// answer takes apart what the other side said; the status is 0 where it said nothing that can be read.
func (b *bucket) answer(err error) (code, message string, status int, header http.Header) {
	var api smithy.APIError
	if errors.As(err, &api) {
		code, message = b.redact.Line(api.ErrorCode()), b.redact.Line(api.ErrorMessage())
	}
	var r *awshttp.ResponseError
	if errors.As(err, &r) && r.Response != nil && r.Response.Response != nil {
		if code == "" && r.Response.StatusCode < 300 {
			return "", "", 0, nil
		}
		return code, message, r.Response.StatusCode, r.Response.Header
	}
	return code, message, 0, nil
}

// noCredentials classifies why there are none: a role that may not be assumed, a chain that found nothing.
func (b *bucket) noCredentials(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	what := "the credentials cannot be had"
	if b.config.Credentials.RoleARN != "" {
		what = fmt.Sprintf("the role %s cannot be assumed", b.config.Credentials.RoleARN)
	}
	code, message, status, header := b.answer(err)
	if code == "" && status == 0 {
		e := handler.Classify(err)
		var file *fs.PathError
		if e.Category == handler.Uncategorized || errors.As(err, &file) {
			e.Category = handler.Internal // the host's chain, or its token
		}
		e.Err = fmt.Errorf("s3: %s: %w", what, b.redact.Wrap(err))
		return e
	}
	e := &handler.Error{Category: handler.Authentication, Code: code}
	hint := "compare the role's trust policy and the external id with the destination's"
	e.StatusCode = status
	if status == http.StatusTooManyRequests || status >= 500 {
		e = handler.Classify(handler.FromHTTP(status, header, err))
		e.Code, hint = code, "it is tried again later"
	}
	if known, ok := codes[code]; ok && code != "AccessDenied" {
		e.Category, hint = known.category, known.hint
	}
	if expired[code] {
		hint = "the credentials that the role is assumed with have expired"
		if b.config.Credentials.kind() != AccessKey {
			e.Verdict = handler.Retry
		}
	}
	e.Err = fmt.Errorf("s3: %s: %s: %s; %s", what, code, message, hint)
	return e
}
