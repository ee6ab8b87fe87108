package payload

import (
	"context"
	"io"
	"time"
)

// Store keeps payloads outside of the database: see delivery.WithPayloadStore. A key has letters,
// digits, hyphens and slashes, is up to 200 bytes long, and is used once. A Store is used by
// several goroutines and processes at once. Whoever writes one runs package storetest on it.
type Store interface {
	// Put stores what r gives until io.EOF, all of it or nothing: an error of r is returned, and
	// nothing stays. r is read by the caller's goroutine, and not after Put has returned.
	Put(ctx context.Context, key string, r io.Reader) error
	// Open reads from an offset in bytes, up to the size. Where there is nothing under key, the
	// error of Open or of the first Read wraps fs.ErrNotExist.
	Open(ctx context.Context, key string, offset int64) (io.ReadCloser, error)
	// Delete removes what is there of keys. That there is nothing is no error.
	Delete(ctx context.Context, keys ...string) error
	// List yields the keys of what was stored longer ago than age, in any order, until yield
	// returns an error, which it returns. It may yield what is being removed.
	List(ctx context.Context, age time.Duration, yield func(key string) error) error
}
