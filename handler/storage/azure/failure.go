package azure

import (
	"cmp"
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"

	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/internal/remote"
	"github.com/deliverykit/delivery/handler/storage"
)

// operation is one call, with the data action and the permission of a shared access signature that
// it needs.
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

// The codes of https://learn.microsoft.com/rest/api/storageservices/blob-service-error-codes and
// its parent that mean something else than their HTTP status, or that a hint helps with.
var codes = map[string]remote.Verdict{
	"AuthenticationFailed": remote.Means(handler.Authentication, ""),
	"AuthorizationFailure": remote.Means(handler.Authentication,
		"the account's firewall may not let this service in, or the credentials lack a permission"),
	"AuthorizationPermissionMismatch": remote.Means(handler.Authentication, ""), // the hint is the permission
	"AuthorizationSourceIPMismatch": remote.Means(handler.Authentication,
		"the shared access signature is for other addresses than this service's"),
	"AuthorizationProtocolMismatch": remote.Means(handler.Authentication,
		"the shared access signature is for https only"),
	"AuthorizationResourceTypeMismatch": remote.Means(handler.Authentication,
		"the shared access signature is not for objects (srt=o), or not for this container"),
	"AuthorizationServiceMismatch": remote.Means(handler.Authentication,
		"the shared access signature is not for blobs (ss=b)"),
	"InsufficientAccountPermissions": remote.Means(handler.Authentication, ""),
	"KeyBasedAuthenticationNotPermitted": remote.Means(handler.Authentication,
		"the account does not take account keys; use a service principal or a managed identity"),
	"NoAuthenticationInformation": remote.Means(handler.Authentication,
		"the other side takes no anonymous requests"),
	"PublicAccessNotPermitted": remote.Means(handler.Authentication,
		"the other side takes no anonymous requests"),
	"AccountIsDisabled": remote.Means(handler.Authentication, "the storage account is disabled"),
	"ContainerNotFound": remote.Means(handler.Configuration,
		"there is no such container; create it, or correct container or account"),
	"ContainerDisabled": remote.Means(handler.Configuration, "the container is disabled"),
	"ContainerBeingDeleted": remote.Means(handler.Configuration,
		"the container is being deleted; create it again, or correct container"),
	"ResourceNotFound": remote.Means(handler.Configuration,
		"correct account, container or endpoint"),
	"InvalidResourceName": remote.Means(handler.Configuration,
		"correct the container's name, or the template of names"),
	"InvalidUri": remote.Means(handler.Configuration, "correct the endpoint"),
	"OutOfRangeInput": remote.Means(handler.Configuration,
		"correct the container's name, or the template of names"),
	"InvalidHeaderValue": remote.Means(handler.Configuration,
		"compare tier, metadata, tags and encryption_scope with what the account allows"),
	"InvalidMetadata":  remote.Means(handler.Configuration, "correct the metadata"),
	"MetadataTooLarge": remote.Means(handler.Configuration, "shorten the metadata"),
	"EmptyMetadataKey": remote.Means(handler.Configuration, "correct the metadata"),
	"InvalidTags":      remote.Means(handler.Configuration, "correct the tags"),
	"InvalidBlobTier": remote.Means(handler.Configuration,
		"correct tier: not each kind of account has all of them"),
	"EncryptionScopeNotFound": remote.Means(handler.Configuration,
		"there is no such encryption scope; correct encryption_scope"),
	"BlobUsesCustomerSpecifiedEncryption": remote.Means(handler.Configuration,
		"the blob that is there has another encryption; remove it, or correct encryption_scope"),
	"FeatureNotSupportedForAccount": remote.Means(handler.Configuration,
		"this kind of account does not know tags or tiers; leave them out"),
	"BlobTypeNotSupported": remote.Means(handler.Configuration,
		"this kind of account takes no block blobs"),
	"BlobArchived": remote.Means(handler.Configuration,
		"the blob is archived, and cannot be read to be compared"),
	"BlobBeingRehydrated": remote.Means(handler.Configuration,
		"the blob is archived, and cannot be read to be compared"),
	"BlobImmutableDueToPolicy": remote.Means(handler.Conflict,
		"an immutability policy or a legal hold protects the blob that is there"),
	"InvalidBlobType": remote.Means(handler.Conflict,
		"there is a blob of another type under this name; remove it"),
	"LeaseIdMissing": remote.Means(handler.Remote,
		"somebody holds a lease on the blob that is there"),
	"SnapshotsPresent": remote.Means(handler.Conflict,
		"the blob has snapshots, which are to be deleted first"),
	"RequestBodyTooLarge": remote.Means(handler.Configuration,
		"the block is larger than the account takes; give a smaller block_size"),
	"BlockCountExceedsLimit": remote.Means(handler.Remote,
		"the blob has too many blocks that were never committed; the service drops them after a week"),
	"InvalidBlockId": remote.Means(handler.Remote,
		"somebody else has staged blocks under this name; the service drops them after a week"),
	"InvalidBlobOrBlock": remote.Means(handler.Remote,
		"somebody else has staged blocks under this name; the service drops them after a week"),
	"InvalidBlockList": remote.Means(
		handler.Remote,
		"the blocks were committed or dropped by somebody else; the next attempt sends them again, unless the "+
			"blob is there",
	),
	"Md5Mismatch":       remote.Means(handler.Network, "the content was changed on the way"),
	"Crc64Mismatch":     remote.Means(handler.Network, "the content was changed on the way"),
	"OperationTimedOut": remote.Means(handler.Timeout, ""),
	"ServerBusy": remote.Means(handler.RateLimit,
		"the account gets more requests than it takes"),
	"TooManyRequests": remote.Means(handler.RateLimit,
		"the account gets more requests than it takes"),
	"InternalError": remote.Means(handler.Remote, ""),
	"SystemInUse":   remote.Means(handler.Remote, ""),
}

// failed classifies an error of the SDK. What the other side answered is quoted in short, and never
// wrapped: it may repeat what it was sent.
func (b *bucket) failed(ctx context.Context, op operation, name string, err error) error {
	if err := remote.Known(ctx, err); err != nil {
		return err
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
	a := remote.Answer{
		Status: r.StatusCode, Header: header(r.RawResponse),
		Code: b.redact.Line(r.ErrorCode), Message: b.redact.Line(explanation(r.RawResponse)),
	}
	switch {
	case exists[a.Code], a.Status == http.StatusPreconditionFailed && a.Code == "":
		return handler.Fail(handler.Conflict, fmt.Errorf("azure: %q: %w", name, storage.ErrExists))
	case a.Code == "BlobNotFound", a.Status == http.StatusNotFound && a.Code == "" && name != "":
		return &handler.Error{
			Category: handler.Configuration, StatusCode: a.Status, Code: a.Code,
			Err: fmt.Errorf("azure: %q: %w", name, storage.ErrNotFound),
		}
	}
	return b.classify(op, a).In(where)
}

var exists = map[string]bool{
	"BlobAlreadyExists": true, "UnauthorizedBlobOverwrite": true, "ConditionNotMet": true,
	"TargetConditionNotMet": true,
}

func (b *bucket) classify(op operation, a remote.Answer) *remote.Failure {
	f := a.Failure()
	unauthorized := a.Status == http.StatusUnauthorized || a.Code == "InvalidAuthenticationInfo"
	switch {
	case unauthorized && staleText.MatchString(a.Message):
		// Tokens are renewed before they expire, so this is a clock, or a token that was revoked.
		b.handler.Forget(b.id)
		f.Is(handler.Authentication, "the token expired during the request; the next attempt has a new one")
		f.Verdict = handler.Retry
	case unauthorized:
		f.Is(handler.Authentication, hintRefused)
	case a.Code == "AuthenticationFailed":
		f.Is(handler.Authentication, b.refused(a.Message))
	default:
		f.LookUp(codes)
	}
	if f.Category == handler.Authentication && f.Hint == "" {
		f.Hint = b.permission(op)
	}
	return f
}

const hintRefused = "the token is refused; compare cloud, tenant_id and the identity's roles"

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
		return "the account key does not belong to the account: it was renewed, or mistyped; or this machine's " +
			"clock is wrong"
	}
	return hintRefused
}

// unanswered classifies an error without an answer that could be read.
func (b *bucket) unanswered(where string, err error) *handler.Error {
	hint := ""
	if dns := (*net.DNSError)(nil); errors.As(err, &dns) && dns.IsNotFound {
		hint = "there may be no such account, correct it if so"
	}
	return remote.Unanswered(where, err, b.redact, hint)
}

// The hints for what Microsoft Entra says:
// https://learn.microsoft.com/entra/identity-platform/reference-error-codes
var entraHints = map[string]string{
	"AADSTS7000222": "the client secret has expired; put a new one into the destination",
	"AADSTS7000215": "the client secret is wrong: it must be the secret's value, not its id",
	"AADSTS700016":  "there is no such application in this tenant; correct client_id or tenant_id",
	"AADSTS90002":   "there is no such tenant; correct tenant_id or cloud",
	"AADSTS700027":  "the certificate is not registered with the application, or has expired",
}

var entraCode = regexp.MustCompile(`AADSTS[0-9]+`)

// noToken classifies why there is none: a secret that has expired, an application that is gone, a
// service that is away.
func (b *bucket) noToken(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	const where = "azure: there is no token"
	const own = "this is the service's own identity, which its operator has to correct"
	host := b.config.Credentials.Type == ManagedIdentity || b.config.Credentials.Type == Default
	var identity *azidentity.AuthenticationFailedError
	if !errors.As(err, &identity) || identity.RawResponse == nil {
		e := b.unanswered(where, err)
		if host {
			return handler.Fail(handler.Internal, fmt.Errorf("%w; %s", e, own))
		}
		return e
	}
	r := identity.RawResponse
	code, message := tokenError(r)
	a := remote.Answer{
		Status: r.StatusCode, Header: r.Header, Code: b.redact.Line(code), Message: b.redact.Line(message),
	}
	f := a.Refusal(cmp.Or(entraHints[entraCode.FindString(message)],
		"compare tenant_id, client_id and the secret or certificate with the application's registration"))
	if f.Category == handler.Authentication && host {
		f.Is(handler.Internal, own)
	}
	return f.In(where)
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
