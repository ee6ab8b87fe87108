package s3

import (
	"bytes"
	"errors"
	"io"
	"sync"
)

// body is what a request sends. The transport may go on reading it after the request has ended, when the other side answers
// early or ctx ends; by then the memory holds another payload, maybe another organization's. So it is sealed before the
// memory is given back.
type body struct {
	mu sync.Mutex
	r  *bytes.Reader // nil once it is sealed
}

var errSealed = errors.New("s3: the request has ended")

func newBody(b []byte) *body { return &body{r: bytes.NewReader(b)} }

func (b *body) seal() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.r = nil
}

func (b *body) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.r == nil {
		return 0, errSealed
	}
	return b.r.Read(p)
}

func (b *body) Seek(offset int64, whence int) (int64, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.r == nil {
		return 0, errSealed
	}
	return b.r.Seek(offset, whence)
}

var _ io.ReadSeeker = (*body)(nil)
