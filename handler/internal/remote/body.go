package remote

import (
	"bytes"
	"errors"
	"io"
	"sync"
)

// Body is what a request sends. The transport may go on reading it after the request has ended,
// when the other side answers early or ctx ends; by then the memory holds another payload, maybe
// another organization's. So it is sealed before the memory is given back.
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

// Close does nothing: a body is sealed by who has the memory.
func (b *Body) Close() error { return nil }

var _ io.ReadSeekCloser = (*Body)(nil)
