package storage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"time"

	"github.com/deliverykit/delivery/payload"
)

// PayloadStore makes a store for delivery.WithPayloadStore of a bucket, below a prefix such as
// "payloads/". The bucket must delete nothing by itself before its time, and what gives it must
// hold for as long as the service runs. Its objects carry neither metadata nor retention of a
// destination's config.
//
// Objects are removed by Maintain. Every database's payloads have a prefix of their own below this
// one; a copy of a database has the same, so its processes must not be given the original's store.
func PayloadStore(b Bucket, prefix string) payload.Store { return &payloadStore{b, prefix} }

type payloadStore struct {
	bucket Bucket
	prefix string
}

// inMemory is up to what size content is stored as one object at once rather than in parts.
const inMemory = 1 << 20

// Put implements payload.Store.
func (s *payloadStore) Put(ctx context.Context, key string, r io.Reader) error {
	name := s.prefix + key
	if err := CheckName(name); err != nil {
		return fmt.Errorf("storage: the key %w", err)
	}
	head := make([]byte, inMemory)
	n, end, err := Fill(r, head)
	if err != nil {
		return err
	}
	head = head[:n]
	up := &Upload{
		Name: name, Size: -1, Once: true, Transient: true, ContentType: "application/octet-stream",
		Progress: func(int64) {},
	}
	opened := false
	up.Open = func(_ context.Context, offset int64) (io.ReadCloser, error) {
		if offset != 0 || opened {
			return nil, errors.New("storage: content that can be read once is read again")
		}
		opened = true
		return io.NopCloser(io.MultiReader(bytes.NewReader(head), r)), nil
	}
	if end {
		up.Size, up.Once = int64(n), false
		up.Open = func(_ context.Context, offset int64) (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(head[offset:])), nil
		}
	}
	_, err = s.bucket.Put(ctx, up)
	return err
}

// Open implements payload.Store.
func (s *payloadStore) Open(ctx context.Context, key string, offset int64) (io.ReadCloser, error) {
	r, err := s.bucket.Get(ctx, s.prefix+key, offset)
	if errors.Is(err, ErrNotFound) {
		return nil, fmt.Errorf("storage: the payload %q is gone from its store: %w", key, fs.ErrNotExist)
	}
	if err != nil {
		//nolint:errorlint // its category would be taken for the destination's
		return nil, fmt.Errorf("storage: the payload store: %v", err)
	}
	return r, nil
}

// Delete implements payload.Store.
func (s *payloadStore) Delete(ctx context.Context, keys ...string) error {
	var errs []error
	for _, key := range keys {
		errs = append(errs, s.bucket.Delete(ctx, s.prefix+key))
	}
	return errors.Join(errs...)
}

// List implements payload.Store.
func (s *payloadStore) List(ctx context.Context, age time.Duration, yield func(key string) error) error {
	return s.bucket.List(ctx, s.prefix, func(o Object) error {
		if time.Since(o.Modified) <= age {
			return nil
		}
		return yield(strings.TrimPrefix(o.Name, s.prefix))
	})
}
