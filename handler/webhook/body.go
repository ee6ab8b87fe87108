package webhook

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/payload"
)

// inMemory is the size up to which a body is held in memory and read once only.
const inMemory = 1 << 20

// body is the payload as the transport reads it: possibly more than once, and still after it has
// returned a response.
type body struct {
	req  *handler.Request
	data []byte // where it is in memory
	size int64  // -1 if not known

	mu   sync.Mutex
	open []*reader
	err  error // the first that reading the payload met
}

// newBody makes the body of a request, and computes its signature where s is not nil. Content above
// inMemory is read for that from its beginning to its end.
func newBody(ctx context.Context, req *handler.Request, s *signer) (*body, error) {
	info := req.Payload.Info()
	b := &body{req: req, size: info.Size}
	if info.Size >= 0 && info.Size <= inMemory {
		data, err := req.Payload.ReadAll(ctx, inMemory)
		if err != nil {
			return nil, handler.Unreadable(err)
		}
		b.data = data
		if s != nil {
			_, _ = s.Write(data) // inMemory is below what a signer takes
		}
		return b, nil
	}
	if s == nil {
		return b, nil
	}
	if s.whole != nil && info.Size > maxWhole {
		return nil, tooLarge()
	}
	r, err := req.Payload.Open(ctx)
	if err != nil {
		return nil, handler.Unreadable(err)
	}
	defer r.Close()
	digest := sha256.New()
	n, err := io.Copy(io.MultiWriter(s, digest), r)
	if err != nil {
		return nil, handler.Unreadable(err)
	}
	// What is sent must be what was signed, also where the payload came without a hash.
	info.Size, info.SHA256 = n, hex.EncodeToString(digest.Sum(nil))
	signed := *req
	signed.Payload = payload.NewContent(info, req.Payload.OpenAt)
	b.req, b.size = &signed, n
	return b, nil
}

// get opens the body from its beginning; it is http.Request.GetBody.
func (b *body) get(ctx context.Context) (io.ReadCloser, error) {
	if b.size == 0 {
		return http.NoBody, nil
	}
	if b.data != nil {
		// As it is: net/http sends what it knows to be in memory in one write with the header.
		return io.NopCloser(bytes.NewReader(b.data)), nil
	}
	content, err := b.req.Open(ctx, 0)
	if err != nil {
		b.failed(err)
		return nil, err
	}
	r := &reader{ReadCloser: content, body: b, closed: make(chan struct{})}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.open = append(b.open, r)
	return r, nil
}

func (b *body) failed(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err == nil {
		b.err = err
	}
}

// closeTime bounds the wait for a content whose Read does not end with its context.
const closeTime = 5 * time.Second

// failure is the first error that reading the payload has met.
func (b *body) failure() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err
}

// wait returns once the transport has closed what it opened, which it promises to do but not when.
// The context of the request must have ended.
func (b *body) wait() {
	b.mu.Lock()
	open := b.open
	b.mu.Unlock()
	timer := time.NewTimer(closeTime)
	defer timer.Stop()
	for _, r := range open {
		select {
		case <-r.closed:
		case <-timer.C:
			return
		}
	}
}

type reader struct {
	io.ReadCloser
	body   *body
	once   sync.Once
	closed chan struct{}
}

func (r *reader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		r.body.failed(err)
	}
	return n, err
}

func (r *reader) Close() error {
	var err error
	r.once.Do(func() {
		err = r.ReadCloser.Close()
		close(r.closed)
	})
	return err
}
