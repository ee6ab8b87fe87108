package azure

import (
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"

	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/storage"
)

// operation is one call, with the data action and the permission of a shared access signature that it needs.
type operation struct{ what, action, sas string }

var (
	opPut    = operation{"store the blob", "blobs/write or blobs/add/action", "create (c) or write (w)"}
	opBlock  = operation{"stage a block", "blobs/write or blobs/add/action", "create (c) or write (w)"}
	opCommit = operation{"commit the blocks", "blobs/write or blobs/add/action", "create (c) or write (w)"}
	opBlocks = operation{"list the blocks of the upload", "blobs/read", "read (r)"}
	opHead   = operation{"look at the blob", "blobs/read", "read (r)"}
	opGet    = operation{"read the blob", "blobs/read", "read (r)"}
	opDelete = operation{"delete the blob", "blobs/delete", "delete (d)"}
	opList   = operation{"list the container", "blobs/read", "list (l)"}
)

// permission says what is missing, in the terms of the credentials.
func (b *bucket) permission(op operation) string {
	tags := len(b.config.Tags) > 0 && (op == opPut || op == opCommit)
	switch b.config.Credentials.Type {
	case SAS:
		p := "the signature lacks a permission: " + op.sas
		if tags {
			p += ", and tags (t)"
		}
		return p
	case SharedKey:
		return "the account does not allow this with its key; a service principal may be needed"
	}
	p := "the identity lacks a data action on the container: " + op.action
	if tags {
		p += ", and blobs/tags/write"
	}
	return p + " (Storage Blob Data Contributor has them, for tags Storage Blob Data Owner)"
}

// verdict is what a code of the other side means.
type verdict struct {
	category handler.Category
	hint     string
}

// The codes of https://learn.microsoft.com/rest/api/storageservices/blob-service-error-codes and its parent that mean something
// else than their HTTP status, or that a hint helps with.
var codes = map[string]verdict{
	"AuthenticationFailed":                {handler.Authentication, ""},
	"AuthorizationFailure":                {handler.Authentication, "the account's firewall may not let this service in, or the credentials lack a permission"},
	"AuthorizationPermissionMismatch":     {handler.Authentication, ""}, // the hint is the permission
	"AuthorizationSourceIPMismatch":       {handler.Authentication, "the shared access signature is for other addresses than this service's"},
	"AuthorizationProtocolMismatch":       {handler.Authentication, "the shared access signature is for https only"},
	"AuthorizationResourceTypeMismatch":   {handler.Authentication, "the shared access signature is not for objects (srt=o), or not for this container"},
	"AuthorizationServiceMismatch":        {handler.Authentication, "the shared access signature is not for blobs (ss=b)"},
	"InsufficientAccountPermissions":      {handler.Authentication, ""},
	"KeyBasedAuthenticationNotPermitted":  {handler.Authentication, "the account does not take account keys; use a service principal or a managed identity"},
	"NoAuthenticationInformation":         {handler.Authentication, "the other side takes no anonymous requests"},
	"PublicAccessNotPermitted":            {handler.Authentication, "the other side takes no anonymous requests"},
	"AccountIsDisabled":                   {handler.Authentication, "the storage account is disabled"},
	"ContainerNotFound":                   {handler.Configuration, "there is no such container; create it, or correct container or account"},
	"ContainerDisabled":                   {handler.Configuration, "the container is disabled"},
	"ContainerBeingDeleted":               {handler.Configuration, "the container is being deleted; create it again, or correct container"},
	"ResourceNotFound":                    {handler.Configuration, "correct account, container or endpoint"},
	"InvalidResourceName":                 {handler.Configuration, "correct the container's name, or the template of names"},
	"InvalidUri":                          {handler.Configuration, "correct the endpoint"},
	"OutOfRangeInput":                     {handler.Configuration, "correct the container's name, or the template of names"},
	"InvalidHeaderValue":                  {handler.Configuration, "compare tier, metadata, tags and encryption_scope with what the account allows"},
	"InvalidMetadata":                     {handler.Configuration, "correct the metadata"},
	"MetadataTooLarge":                    {handler.Configuration, "shorten the metadata"},
	"EmptyMetadataKey":                    {handler.Configuration, "correct the metadata"},
	"InvalidTags":                         {handler.Configuration, "correct the tags"},
	"InvalidBlobTier":                     {handler.Configuration, "correct tier: not each kind of account has all of them"},
	"EncryptionScopeNotFound":             {handler.Configuration, "there is no such encryption scope; correct encryption_scope"},
	"BlobUsesCustomerSpecifiedEncryption": {handler.Configuration, "the blob that is there has another encryption; remove it, or correct encryption_scope"},
	"FeatureNotSupportedForAccount":       {handler.Configuration, "this kind of account does not know tags or tiers; leave them out"},
	"BlobTypeNotSupported":                {handler.Configuration, "this kind of account takes no block blobs"},
	"BlobArchived":                        {handler.Configuration, "the blob is archived, and cannot be read to be compared"},
	"BlobBeingRehydrated":                 {handler.Configuration, "the blob is archived, and cannot be read to be compared"},
	"BlobImmutableDueToPolicy":            {handler.Conflict, "an immutability policy or a legal hold protects the blob that is there"},
	"InvalidBlobType":                     {handler.Conflict, "there is a blob of another type under this name; remove it"},
	"LeaseIdMissing":                      {handler.Remote, "somebody holds a lease on the blob that is there"},
	"SnapshotsPresent":                    {handler.Conflict, "the blob has snapshots, which are to be deleted first"},
	"RequestBodyTooLarge":                 {handler.Configuration, "the block is larger than the account takes; give a smaller block_size"},
	"BlockCountExceedsLimit":              {handler.Remote, "the blob has too many blocks that were never committed; the service drops them after a week"},
	"InvalidBlockId":                      {handler.Remote, "somebody else has staged blocks under this name; the service drops them after a week"},
	"InvalidBlobOrBlock":                  {handler.Remote, "somebody else has staged blocks under this name; the service drops them after a week"},
	"InvalidBlockList":                    {handler.Remote, "the blocks were committed or dropped by somebody else; the next attempt sends them again, unless the blob is there"},
	"Md5Mismatch":                         {handler.Network, "the content was changed on the way"},
	"Crc64Mismatch":                       {handler.Network, "the content was changed on the way"},
	"OperationTimedOut":                   {handler.Timeout, ""},
	"ServerBusy":                          {handler.RateLimit, "the account gets more requests than it takes"},
	"TooManyRequests":                     {handler.RateLimit, "the account gets more requests than it takes"},
	"InternalError":                       {handler.Remote, ""},
	"SystemInUse":                         {handler.Remote, ""},
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
	var identity *azidentity.AuthenticationFailedError
	if errors.As(err, &identity) {
		return b.noToken(ctx, err)
	}
	where := "azure: cannot " + op.what
	if name != "" {
		where += fmt.Sprintf(" %q", name)
	}
	where += fmt.Sprintf(" in container %q of account %q", b.config.Container, b.config.Account)

	var r *azcore.ResponseError
	if !errors.As(err, &r) || r.StatusCode < 300 {
		return b.unanswered(where, err)
	}
	code := b.redact.Line(r.ErrorCode)
	message := b.redact.Line(explanation(r.RawResponse))
	switch {
	case code == "BlobAlreadyExists", code == "UnauthorizedBlobOverwrite", code == "ConditionNotMet", code == "TargetConditionNotMet",
		r.StatusCode == http.StatusPreconditionFailed && code == "":
		return handler.Fail(handler.Conflict, fmt.Errorf("azure: %q: %w", name, storage.ErrExists))
	case code == "BlobNotFound", r.StatusCode == http.StatusNotFound && code == "" && name != "":
		return &handler.Error{Category: handler.Configuration, StatusCode: r.StatusCode, Code: code, Err: fmt.Errorf("azure: %q: %w", name, storage.ErrNotFound)}
	}
	e := handler.Classify(handler.FromHTTP(r.StatusCode, header(r.RawResponse), err))
	e.Code = code
	hint := ""
	known, listed := codes[code]
	switch {
	case r.StatusCode == http.StatusUnauthorized || code == "InvalidAuthenticationInfo":
		e.Category, e.Verdict = handler.Authentication, handler.ByCategory
		hint = "the token is refused; compare cloud, tenant_id and the identity's roles"
		if staleText.MatchString(message) {
			// Tokens are renewed before they expire, so this is a clock, or a token that was revoked.
			e.Verdict, hint = handler.Retry, "the token has expired under the request; the next attempt has a new one"
			b.handler.Forget(b.id)
		}
	case code == "AuthenticationFailed":
		e.Category, hint = handler.Authentication, b.refused(message)
	case listed:
		e.Category, e.Verdict, hint = known.category, handler.ByCategory, known.hint
	}
	if e.Category == handler.Authentication && hint == "" {
		hint = b.permission(op)
	}
	if r.StatusCode == http.StatusServiceUnavailable && e.RetryAfter > 0 || e.Category == handler.RateLimit {
		hint = strings.TrimPrefix(hint+"; it is tried again later", "; ")
	}
	text := fmt.Sprintf("%s: the other side answered %d %s", where, r.StatusCode, code)
	if message != "" && message != code {
		text += ": " + message
	}
	if hint != "" {
		text += "; " + hint
	}
	e.Err = errors.New(text)
	return e
}

var (
	staleText = regexp.MustCompile(`(?i)expired|lifetime|not yet valid`)
	frameText = regexp.MustCompile(`(?i)time frame|expir`)
)

// refused says what is wrong with a key or a signature.
func (b *bucket) refused(message string) string {
	switch {
	case b.config.Credentials.Type == SAS && frameText.MatchString(message):
		return "the shared access signature has expired, or is not valid yet; put a new one into the destination"
	case b.config.Credentials.Type == SAS:
		return "the shared access signature is refused: its key was renewed, or it is for something else, or was cut"
	case b.config.Credentials.Type == SharedKey:
		return "the account key does not belong to the account: it was renewed, or mistyped; or this machine's clock is wrong"
	}
	return "the token is refused; compare cloud, tenant_id and the identity's roles"
}

// unanswered classifies an error without an answer that could be read.
func (b *bucket) unanswered(where string, err error) error {
	var request *url.Error
	if errors.As(err, &request) {
		err = request.Err // its URL may hold a signature
	}
	e := handler.Classify(err)
	if e.Category == handler.Uncategorized {
		e.Category = handler.Network // an answer that is no HTTP, or no XML
	}
	hint := ""
	if dns := (*net.DNSError)(nil); errors.As(err, &dns) && dns.IsNotFound {
		hint = "; there may be no such account, correct it if so"
	}
	e.Err = fmt.Errorf("%s: %w%s", where, b.redact.Wrap(err), hint)
	return e
}

// noToken classifies why there is none: a secret that has expired, an application that is gone, a service that is away.
func (b *bucket) noToken(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	const where = "azure: no token can be had"
	host := b.config.Credentials.Type == ManagedIdentity || b.config.Credentials.Type == Default
	var identity *azidentity.AuthenticationFailedError
	if !errors.As(err, &identity) || identity.RawResponse == nil {
		e := b.unanswered(where, err)
		if host {
			return &handler.Error{Category: handler.Internal, Err: fmt.Errorf("%w; this is the service's own identity, which its operator has to mend", e)}
		}
		return e
	}
	r := identity.RawResponse
	code, message := tokenError(r)
	code, message = b.redact.Line(code), b.redact.Line(message)
	e := &handler.Error{Category: handler.Authentication, StatusCode: r.StatusCode, Code: code}
	if r.StatusCode == http.StatusTooManyRequests || r.StatusCode >= 500 {
		e = handler.Classify(handler.FromHTTP(r.StatusCode, r.Header, err))
		e.Code = code
	}
	hint := "compare tenant_id, client_id and the secret or certificate with the application's registration"
	switch {
	case e.Category != handler.Authentication:
		hint = "it is tried again later"
	case host:
		e.Category, hint = handler.Internal, "this is the service's own identity, which its operator has to mend"
	case strings.Contains(message, "AADSTS7000222"):
		hint = "the client secret has expired; put a new one into the destination"
	case strings.Contains(message, "AADSTS7000215"):
		hint = "the client secret is wrong: it must be the secret's value, not its id"
	case strings.Contains(message, "AADSTS700016"):
		hint = "there is no such application in this tenant; correct client_id or tenant_id"
	case strings.Contains(message, "AADSTS90002"):
		hint = "there is no such tenant; correct tenant_id or cloud"
	case strings.Contains(message, "AADSTS700027"):
		hint = "the certificate is not registered with the application, or has expired"
	}
	e.Err = fmt.Errorf("%s: the other side answered %d %s: %s; %s", where, r.StatusCode, code, message, hint)
	return e
}

func header(r *http.Response) http.Header {
	if r == nil {
		return nil
	}
	return r.Header
}

// explanation is the message in the body of an answer, which the SDK has read.
func explanation(r *http.Response) string {
	if r == nil || r.Body == nil {
		return ""
	}
	body, err := runtime.Payload(r)
	if err != nil {
		return ""
	}
	var answer struct {
		Message string `xml:"Message"`
		Detail  string `xml:"AuthenticationErrorDetail"`
	}
	if xml.Unmarshal(body, &answer) != nil {
		return ""
	}
	message, _, _ := strings.Cut(answer.Message, "\n") // what follows are the request's id and time
	return strings.TrimSpace(message + " " + answer.Detail)
}

func tokenError(r *http.Response) (code, message string) {
	var answer struct {
		Error       string `json:"error"`
		Description string `json:"error_description"`
	}
	if r.Body != nil {
		body, _ := io.ReadAll(io.LimitReader(r.Body, 64<<10)) // what is there
		_ = json.Unmarshal(body, &answer)
	}
	message, _, _ = strings.Cut(answer.Description, "\r\n")
	return answer.Error, message
}
