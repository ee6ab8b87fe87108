package payload

import (
	"context"
	"io"
	"time"
)

// Store keeps payloads outside of the database: see delivery.WithPayloadStore. A key consists of
// letters, digits, hyphens and slashes, is up to 200 bytes long, and is used once. Several
// goroutines and processes use a Store at once. Check an implementation with package storetest.
type Store interface {
	// Put stores everything read from r until io.EOF, or nothing: if r fails, Put returns that
	// error and leaves nothing. It reads r in the caller's goroutine, and not after it has
	// returned.
	Put(ctx context.Context, key string, r io.Reader) error
	// Open reads from an offset in bytes, which is at most the size. If nothing has that key, the
	// error of Open or of the first Read wraps fs.ErrNotExist.
	Open(ctx context.Context, key string, offset int64) (io.ReadCloser, error)
	// Delete removes the payloads with these keys. A missing payload is not an error.
	Delete(ctx context.Context, keys ...string) error
	// List yields the keys of the payloads that were stored longer ago than age, in any order. If
	// yield returns an error, List stops and returns it. It may yield a payload that is being
	// removed.
	List(ctx context.Context, age time.Duration, yield func(key string) error) error
}
