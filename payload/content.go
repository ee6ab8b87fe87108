package payload

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
)

// Info describes content.
type Info struct {
	Name        string `json:"name,omitempty"`
	ContentType string `json:"content_type"`
	Size        int64  `json:"size"`   // in bytes; -1 if unknown before the content is read
	SHA256      string `json:"sha256"` // in hex; "" if unknown
}

// OpenFunc opens content at an offset in bytes.
type OpenFunc func(ctx context.Context, offset int64) (io.ReadCloser, error)

// Source opens the content that a [Ref] names. It is called once per attempt, by several goroutines
// at once. An error that wraps [io/fs.ErrNotExist] is permanent.
type Source interface {
	Open(ctx context.Context, organization, ref string) (*Content, error)
}

// Content is the content of a payload. A handler reads it as a stream, as often as it needs to. It
// may be used by several goroutines.
type Content struct {
	info Info
	open OpenFunc
}

// NewContent returns content that info describes and open reads. Readers check the content against
// the size and the hash in info.
func NewContent(info Info, open OpenFunc) *Content { return &Content{info, open} }

// Info describes the content.
func (c *Content) Info() Info { return c.info }

// Open opens the content at the beginning. If the size or the SHA-256 is wrong, the reader returns
// an error that wraps [ErrCorrupt] in place of io.EOF.
func (c *Content) Open(ctx context.Context) (io.ReadCloser, error) { return c.OpenAt(ctx, 0) }

// OpenAt opens the content at an offset in bytes. Above 0, only the size is checked.
func (c *Content) OpenAt(ctx context.Context, offset int64) (io.ReadCloser, error) {
	if offset < 0 || c.info.Size >= 0 && offset > c.info.Size {
		return nil, fmt.Errorf("payload: offset %d is outside the content of %d bytes", offset, c.info.Size)
	}
	r, err := c.open(ctx, offset)
	if err != nil {
		return nil, err
	}
	v := &verifier{ReadCloser: r, info: c.info, n: offset}
	if offset == 0 && c.info.SHA256 != "" {
		v.hash = sha256.New()
	}
	return v, nil
}

// ReadAll returns the whole content. If it has more than limit bytes, the error wraps
// [ErrTooLarge].
func (c *Content) ReadAll(ctx context.Context, limit int64) ([]byte, error) {
	if c.info.Size > limit {
		return nil, fmt.Errorf("%w: %d bytes, the limit is %d", ErrTooLarge, c.info.Size, limit)
	}
	r, err := c.Open(ctx)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b := make([]byte, 0, max(0, c.info.Size)+1)
	for {
		if len(b) == cap(b) {
			b = append(b, 0)[:len(b)]
		}
		n, err := r.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		switch {
		case int64(len(b)) > limit:
			return nil, fmt.Errorf("%w: the limit is %d bytes", ErrTooLarge, limit)
		case errors.Is(err, io.EOF):
			return b, nil
		case err != nil:
			return nil, err
		}
	}
}

// ErrCorrupt is returned by a reader in place of io.EOF if the content differs from the accepted
// content.
var ErrCorrupt = errors.New("payload: the stored content differs from the accepted content")

type verifier struct {
	io.ReadCloser
	info Info
	hash hash.Hash
	n    int64
}

func (v *verifier) Read(b []byte) (int, error) {
	n, err := v.ReadCloser.Read(b)
	v.n += int64(n)
	if v.hash != nil {
		v.hash.Write(b[:n])
	}
	if v.info.Size >= 0 && v.n > v.info.Size {
		return n, fmt.Errorf("%w: more than %d bytes", ErrCorrupt, v.info.Size)
	}
	if errors.Is(err, io.EOF) {
		if v.info.Size >= 0 && v.n != v.info.Size {
			return n, fmt.Errorf("%w: %d of %d bytes", ErrCorrupt, v.n, v.info.Size)
		}
		if v.hash != nil && hex.EncodeToString(v.hash.Sum(nil)) != v.info.SHA256 {
			return n, fmt.Errorf("%w: its SHA-256 differs", ErrCorrupt)
		}
	}
	return n, err
}
