package s3

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/storage"
	"github.com/deliverykit/delivery/internal/redact"
)

type bucket struct {
	handler *Handler
	env     handler.Env
	config  Config
	client  *awss3.Client
	redact  *redact.Redactor
	id      string // of the destination
}

var (
	_ storage.Bucket  = (*bucket)(nil)
	_ storage.Resumer = (*bucket)(nil)
	_ storage.Sweeper = (*bucket)(nil)
	_ storage.Remover = (*bucket)(nil)
)

func (b *bucket) owner() *string { return optional(b.config.BucketOwner) }

func optional(s string) *string {
	if s == "" {
		return nil
	}
	return aws.String(s)
}

// Stat implements storage.Bucket.
func (b *bucket) Stat(ctx context.Context, name string) (storage.Object, error) {
	in := &awss3.HeadObjectInput{Bucket: &b.config.Bucket, Key: &name, ExpectedBucketOwner: b.owner()}
	if b.config.Checksum != "none" {
		in.ChecksumMode = types.ChecksumModeEnabled
	}
	out, err := b.client.HeadObject(ctx, in)
	if err != nil {
		return storage.Object{}, b.failed(ctx, opHead, name, b.spoken(ctx, name, err))
	}
	o := storage.Object{
		Name: name, Size: aws.ToInt64(out.ContentLength), URL: b.url(name),
		ETag:    strings.Trim(aws.ToString(out.ETag), `"`),
		Version: aws.ToString(out.VersionId), Modified: aws.ToTime(out.LastModified),
		Checksum: sums{out.ChecksumCRC32C, out.ChecksumCRC32, out.ChecksumSHA256}.text(),
	}
	for key, value := range out.Metadata {
		switch strings.ToLower(key) {
		case storage.MetadataItem:
			o.Item = value
		case storage.MetadataSHA256:
			o.SHA256 = value
		}
	}
	if raw, err := base64.StdEncoding.DecodeString(aws.ToString(out.ChecksumSHA256)); err == nil && len(raw) == 32 {
		o.SHA256 = hex.EncodeToString(raw) // of the whole; that of a multipart upload has a hyphen
	}
	return o, nil
}

// spoken finds out what is behind the refusal of a HEAD, which has no body and so no code.
func (b *bucket) spoken(ctx context.Context, name string, err error) error {
	var r *awshttp.ResponseError
	if !errors.As(err, &r) || r.Response == nil || r.Response.Response == nil {
		return err
	}
	switch r.Response.StatusCode {
	case http.StatusBadRequest, http.StatusForbidden, http.StatusMovedPermanently, http.StatusTemporaryRedirect:
	default:
		return err
	}
	out, getErr := b.client.GetObject(ctx, &awss3.GetObjectInput{
		Bucket: &b.config.Bucket, Key: &name, ExpectedBucketOwner: b.owner(), Range: aws.String("bytes=0-0"),
	})
	if getErr == nil {
		_ = out.Body.Close()
		return err
	}
	return getErr
}

// Get implements storage.Bucket.
func (b *bucket) Get(ctx context.Context, name string, offset int64) (io.ReadCloser, error) {
	in := &awss3.GetObjectInput{Bucket: &b.config.Bucket, Key: &name, ExpectedBucketOwner: b.owner()}
	if offset > 0 {
		in.Range = aws.String(fmt.Sprintf("bytes=%d-", offset))
	}
	out, err := b.client.GetObject(ctx, in)
	if err != nil {
		return nil, b.failed(ctx, opGet, name, err)
	}
	return out.Body, nil
}

// Delete implements storage.Bucket. In a bucket with versions it leaves a marker over them.
func (b *bucket) Delete(ctx context.Context, name string) error {
	_, err := b.client.DeleteObject(
		ctx, &awss3.DeleteObjectInput{Bucket: &b.config.Bucket, Key: &name, ExpectedBucketOwner: b.owner()},
	)
	if err != nil {
		if err = b.failed(ctx, opDelete, name, err); errors.Is(err, storage.ErrNotFound) {
			return nil
		}
		return err
	}
	return nil
}

// Remove implements storage.Remover: that very version where the bucket has versions, else the
// object if it has the same ETag.
func (b *bucket) Remove(ctx context.Context, o storage.Object) (handler.Removal, error) {
	in := &awss3.DeleteObjectInput{Bucket: &b.config.Bucket, Key: &o.Name, ExpectedBucketOwner: b.owner()}
	op := opDelete
	if o.Version != "" && o.Version != "null" {
		in.VersionId, op = &o.Version, opDeleteVersion
	} else {
		found, err := b.Stat(ctx, o.Name)
		switch {
		case errors.Is(err, storage.ErrNotFound):
			return handler.Missing, nil
		case err != nil:
			return handler.NotRemoved, err
		case found.ETag != o.ETag:
			return handler.Changed, nil
		}
	}
	if _, err := b.client.DeleteObject(ctx, in); err != nil {
		if err = b.failed(ctx, op, o.Name, err); errors.Is(err, storage.ErrNotFound) {
			return handler.Missing, nil
		}
		return handler.NotRemoved, err
	}
	return handler.Removed, nil
}

// List implements storage.Bucket.
func (b *bucket) List(ctx context.Context, prefix string, yield func(storage.Object) error) error {
	pages := awss3.NewListObjectsV2Paginator(b.client, &awss3.ListObjectsV2Input{
		Bucket: &b.config.Bucket, Prefix: optional(prefix), ExpectedBucketOwner: b.owner(),
	})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return b.failed(ctx, opList, prefix, err)
		}
		for _, o := range page.Contents {
			name := aws.ToString(o.Key)
			if err := yield(storage.Object{
				Name: name, Size: aws.ToInt64(o.Size), ETag: strings.Trim(aws.ToString(o.ETag), `"`),
				Modified: aws.ToTime(o.LastModified), URL: b.url(name),
			}); err != nil {
				return err
			}
		}
	}
	return nil
}

// Sweep implements storage.Sweeper: it aborts unfinished uploads.
func (b *bucket) Sweep(ctx context.Context, age time.Duration, names *storage.Template) (removed int, err error) {
	before, ours := b.env.Now().Add(-age), names.Matcher()
	pages := awss3.NewListMultipartUploadsPaginator(b.client, &awss3.ListMultipartUploadsInput{
		Bucket: &b.config.Bucket, Prefix: optional(names.Prefix()), ExpectedBucketOwner: b.owner(),
	})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return removed, b.failed(ctx, opUploads, "", err)
		}
		for _, u := range page.Uploads {
			name := aws.ToString(u.Key)
			if u.Initiated == nil || !u.Initiated.Before(before) || !ours(name) {
				continue
			}
			if err := b.abort(ctx, name, aws.ToString(u.UploadId)); err != nil {
				return removed, err
			}
			removed++
		}
	}
	return removed, nil
}

func (b *bucket) abort(ctx context.Context, name, upload string) error {
	_, err := b.client.AbortMultipartUpload(ctx, &awss3.AbortMultipartUploadInput{
		Bucket: &b.config.Bucket, Key: &name, UploadId: &upload, ExpectedBucketOwner: b.owner(),
	})
	if err != nil && !noSuchUpload(err) {
		return b.failed(ctx, opAbort, name, err)
	}
	return nil
}

// url is where the object is, for people; it is not signed.
func (b *bucket) url(name string) string {
	base := "https://s3." + b.config.region() + ".amazonaws.com"
	if strings.HasPrefix(b.config.Region, "cn-") {
		base += ".cn"
	}
	if b.config.Endpoint != "" {
		base = b.config.Endpoint
	}
	u, err := url.Parse(base)
	if err != nil {
		return ""
	}
	u.Path = "/" + name
	if b.config.PathStyle {
		u.Path = "/" + b.config.Bucket + u.Path
	} else {
		u.Host = b.config.Bucket + "." + u.Host
	}
	return u.String()
}

func corrupt(name, what string) error {
	return &handler.Error{
		Category: handler.Remote,
		Err: fmt.Errorf(
			"s3: %q: what was stored is not what was sent: %s; the next attempt stores it again", name, what,
		),
	}
}
