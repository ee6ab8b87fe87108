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
	Size        int64  `json:"size"`   // in bytes; -1 if not known before it is read
	SHA256      string `json:"sha256"` // in hex; "" if not known
}

// OpenFunc opens content at an offset in bytes.
type OpenFunc func(ctx context.Context, offset int64) (io.ReadCloser, error)

// Source opens what a Ref names. It is called once per attempt, by several goroutines at once. An
// error that wraps fs.ErrNotExist is permanent.
type Source interface {
	Open(ctx context.Context, organization, ref string) (*Content, error)
}

// Content is what a handler reads: as a stream, as often as it needs to. It may be used by several
// goroutines.
type Content struct {
	info Info
	open OpenFunc
}

// NewContent returns content of that description. What open gives is checked against the size and
// the hash in info.
func NewContent(info Info, open OpenFunc) *Content { return &Content{info, open} }

// Info describes the content.
func (c *Content) Info() Info { return c.info }

// Open starts at the beginning. A reader that reaches the end has seen the right size and SHA-256,
// or gets an error in place of io.EOF.
func (c *Content) Open(ctx context.Context) (io.ReadCloser, error) { return c.OpenAt(ctx, 0) }

// OpenAt starts at an offset; then only the size is checked.
func (c *Content) OpenAt(ctx context.Context, offset int64) (io.ReadCloser, error) {
	if offset < 0 || c.info.Size >= 0 && offset > c.info.Size {
		return nil, fmt.Errorf("payload: offset %d is outside of the content's %d bytes", offset, c.info.Size)
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

// ReadAll returns the whole content, or ErrTooLarge if it has more than limit bytes.
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

// ErrCorrupt is what a reader gets in place of io.EOF when the content is not what was accepted.
var ErrCorrupt = errors.New("payload: the stored content is not what was accepted")

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
