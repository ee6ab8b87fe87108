package azure

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/storage"
	"github.com/deliverykit/delivery/internal/redact"
)

type bucket struct {
	handler *Handler
	config  Config
	client  *container.Client
	redact  *redact.Redactor
	id      string // of the destination
}

var (
	_ storage.Bucket  = (*bucket)(nil)
	_ storage.Resumer = (*bucket)(nil)
	_ storage.Remover = (*bucket)(nil)
)

// Stat implements storage.Bucket.
func (b *bucket) Stat(ctx context.Context, name string) (storage.Object, error) {
	out, err := b.client.NewBlobClient(name).GetProperties(ctx, nil)
	if err != nil {
		return storage.Object{}, b.failed(ctx, opHead, name, b.spoken(ctx, name, err))
	}
	o := storage.Object{
		Name: name, Size: value(out.ContentLength), URL: b.url(name), ETag: etag(out.ETag),
		Version: value(out.VersionID), Modified: value(out.LastModified), Checksum: checksum("md5", out.ContentMD5),
	}
	for key, v := range out.Metadata {
		switch strings.ToLower(key) {
		case metadataName(storage.MetadataItem):
			o.Item = value(v)
		case metadataName(storage.MetadataSHA256):
			o.SHA256 = value(v)
		}
	}
	return o, nil
}

// spoken finds out what is behind the refusal of a HEAD, which has no body: some services give no
// code either.
func (b *bucket) spoken(ctx context.Context, name string, err error) error {
	var r *azcore.ResponseError
	if !errors.As(err, &r) || r.ErrorCode != "" || r.StatusCode < 400 || r.StatusCode >= 500 {
		return err
	}
	out, getErr := b.client.NewBlobClient(name).
		DownloadStream(ctx, &blob.DownloadStreamOptions{Range: blob.HTTPRange{Count: 1}})
	if getErr == nil {
		_ = out.Body.Close()
		return err
	}
	return getErr
}

// Get implements storage.Bucket. A connection that breaks is opened again where it broke, up to
// three times.
func (b *bucket) Get(ctx context.Context, name string, offset int64) (io.ReadCloser, error) {
	out, err := b.client.NewBlobClient(name).
		DownloadStream(ctx, &blob.DownloadStreamOptions{Range: blob.HTTPRange{Offset: offset}})
	if err != nil {
		return nil, b.failed(ctx, opGet, name, err)
	}
	return out.NewRetryReader(ctx, &blob.RetryReaderOptions{MaxRetries: 3}), nil
}

// Delete implements storage.Bucket. Where soft delete or versions are on, the service keeps what
// was there.
func (b *bucket) Delete(ctx context.Context, name string) error {
	_, err := b.client.NewBlobClient(name).Delete(ctx, nil)
	if err != nil {
		if err = b.failed(ctx, opDelete, name, err); errors.Is(err, storage.ErrNotFound) {
			return nil
		}
		return err
	}
	return nil
}

// Remove implements storage.Remover: the service compares the ETag.
func (b *bucket) Remove(ctx context.Context, o storage.Object) (handler.Removal, error) {
	if o.ETag == "" {
		return handler.NotRemoved, fmt.Errorf("azure: the record of %q has no ETag", o.Name)
	}
	tag := azcore.ETag(`"` + o.ETag + `"`)
	_, err := b.client.NewBlobClient(o.Name).Delete(ctx, &blob.DeleteOptions{
		AccessConditions: &blob.AccessConditions{
			ModifiedAccessConditions: &blob.ModifiedAccessConditions{IfMatch: &tag},
		},
	})
	if err == nil {
		return handler.Removed, nil
	}
	switch err = b.failed(ctx, opDelete, o.Name, err); {
	case errors.Is(err, storage.ErrNotFound):
		return handler.Missing, nil
	case errors.Is(err, storage.ErrExists): // another one, or none
		if _, err := b.Stat(ctx, o.Name); errors.Is(err, storage.ErrNotFound) {
			return handler.Missing, nil
		}
		return handler.Changed, nil
	}
	return handler.NotRemoved, err
}

// List implements storage.Bucket.
func (b *bucket) List(ctx context.Context, prefix string, yield func(storage.Object) error) error {
	options := &container.ListBlobsFlatOptions{}
	if prefix != "" {
		options.Prefix = &prefix
	}
	for pages := b.client.NewListBlobsFlatPager(options); pages.More(); {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return b.failed(ctx, opList, prefix, err)
		}
		if page.Segment == nil {
			return nil
		}
		for _, item := range page.Segment.BlobItems {
			name := value(item.Name)
			o := storage.Object{Name: name, URL: b.url(name)}
			if p := item.Properties; p != nil {
				o.Size, o.ETag, o.Modified = value(p.ContentLength), etag(p.ETag), value(p.LastModified)
			}
			if err := yield(o); err != nil {
				return err
			}
		}
	}
	return nil
}

// url is where the blob is, for people; it is not signed.
func (b *bucket) url(name string) string {
	u, err := url.Parse(b.config.service())
	if err != nil {
		return ""
	}
	return u.JoinPath(b.config.Container, name).String()
}

// value is what p points to, or nothing.
func value[T any](p *T) T {
	var zero T
	if p == nil {
		return zero
	}
	return *p
}

func etag(e *azcore.ETag) string { return strings.Trim(string(value(e)), `"`) }

// metadataName is a shared name as Azure takes it, which is an identifier: hyphens become
// underscores.
func metadataName(name string) string { return strings.ReplaceAll(name, "-", "_") }

func corrupt(name, what string) error {
	return handler.Fail(
		handler.Remote,
		fmt.Errorf("azure: %q: what was stored is not what was sent: %s; the next attempt stores it again", name, what),
	)
}
