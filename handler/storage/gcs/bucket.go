package gcs

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	gcstorage "cloud.google.com/go/storage"
	"google.golang.org/api/iterator"

	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/storage"
	"github.com/deliverykit/delivery/internal/redact"
)

type bucket struct {
	handler *Handler
	env     handler.Env
	config  Config
	client  *gcstorage.BucketHandle
	http    *http.Client // for what the SDK does not do
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
	attrs, err := b.client.Object(name).Attrs(ctx)
	if err != nil {
		return storage.Object{}, b.failed(ctx, opStat, name, err)
	}
	return b.object(attrs), nil
}

func (b *bucket) object(a *gcstorage.ObjectAttrs) storage.Object {
	o := storage.Object{
		Name: a.Name, Size: a.Size, URL: b.url(a.Name), ETag: a.Etag, Version: strconv.FormatInt(a.Generation, 10),
		Modified: a.Updated, Checksum: "crc32c:" + encode(a.CRC32C),
	}
	for key, v := range a.Metadata {
		switch strings.ToLower(key) {
		case storage.MetadataItem:
			o.Item = v
		case storage.MetadataSHA256:
			o.SHA256 = v
		}
	}
	return o
}

// Get implements storage.Bucket. A connection that breaks is opened again where it broke.
func (b *bucket) Get(ctx context.Context, name string, offset int64) (io.ReadCloser, error) {
	r, err := b.client.Object(name).NewRangeReader(ctx, offset, -1)
	if err != nil {
		return nil, b.failed(ctx, opGet, name, err)
	}
	return r, nil
}

// Delete implements storage.Bucket. Where soft delete or versions are on, the service keeps what
// was there.
func (b *bucket) Delete(ctx context.Context, name string) error {
	if err := b.client.Object(name).Delete(ctx); err != nil {
		if err = b.failed(ctx, opDelete, name, err); errors.Is(err, storage.ErrNotFound) {
			return nil
		}
		return err
	}
	return nil
}

// Remove implements storage.Remover: that very generation, also where it is an older one by now.
func (b *bucket) Remove(ctx context.Context, o storage.Object) (handler.Removal, error) {
	generation, err := strconv.ParseInt(o.Version, 10, 64)
	if err != nil || generation <= 0 {
		return handler.NotRemoved, fmt.Errorf("gcs: the record of %q has no generation", o.Name)
	}
	if err = b.client.Object(o.Name).Generation(generation).Delete(ctx); err == nil {
		return handler.Removed, nil
	}
	if err = b.failed(ctx, opDelete, o.Name, err); !errors.Is(err, storage.ErrNotFound) {
		return handler.NotRemoved, err
	}
	if _, err := b.Stat(ctx, o.Name); err == nil {
		return handler.Changed, nil
	}
	return handler.Missing, nil
}

// List implements storage.Bucket.
func (b *bucket) List(ctx context.Context, prefix string, yield func(storage.Object) error) error {
	for all := b.client.Objects(ctx, &gcstorage.Query{Prefix: prefix}); ; {
		attrs, err := all.Next()
		if errors.Is(err, iterator.Done) {
			return nil
		}
		if err != nil {
			return b.failed(ctx, opList, prefix, err)
		}
		if err := yield(b.object(attrs)); err != nil {
			return err
		}
	}
}

// url is where the object is, for people; it is not signed.
func (b *bucket) url(name string) string {
	u, err := url.Parse(b.config.service())
	if err != nil {
		return ""
	}
	return u.JoinPath(b.config.Bucket, name).String()
}

// encode is a CRC-32C as Google writes it.
func encode(sum uint32) string {
	return base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, sum))
}

func corrupt(name, what string) error {
	return handler.Fail(
		handler.Remote,
		fmt.Errorf("gcs: %q: what was stored is not what was sent: %s; the next attempt stores it again", name, what),
	)
}
