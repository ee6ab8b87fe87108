package remote

import (
	"bytes"
	"errors"
	"io"
	"sync"
)

// Body is the body of a request. The transport may still read it after the request has ended, when
// the other side answers early or ctx ends. By then the memory may hold another payload, even
// another organization's. So the body is sealed before the memory is given back.
type Body struct {
	mu sync.Mutex
	r  *bytes.Reader // nil once it is sealed
}

var errSealed = errors.New("remote: the request has ended")

// NewBody returns a body of b, which is not copied.
func NewBody(b []byte) *Body { return &Body{r: bytes.NewReader(b)} }

// Seal makes all further reading fail.
func (b *Body) Seal() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.r = nil
}

func (b *Body) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.r == nil {
		return 0, errSealed
	}
	return b.r.Read(p)
}

// Seek implements io.Seeker.
func (b *Body) Seek(offset int64, whence int) (int64, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.r == nil {
		return 0, errSealed
	}
	return b.r.Seek(offset, whence)
}

// Close does nothing: the owner of the memory seals the body.
func (b *Body) Close() error { return nil }

var _ io.ReadSeekCloser = (*Body)(nil)
