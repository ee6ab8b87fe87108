// Package uploads is what the tests of storage drivers share: a proxy before a server that counts
// and fails, content of any size, checkpoints, and other sides that never answer.
package uploads

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"sync"
	"testing"
)

// Front stands before a server, counts what comes by operation, and can refuse.
type Front struct {
	*httptest.Server
	operation func(r *http.Request) string
	mu        sync.Mutex
	counts    map[string]int
	bytes     map[string]int64
	refuse    Refuse
}

// Refuse answers the n-th request of an operation, and says that it did.
type Refuse func(operation string, n int, w http.ResponseWriter) bool

// NewFront starts a proxy before target. operation names what a request is for.
func NewFront(t testing.TB, target string, operation func(r *http.Request) string) *Front {
	t.Helper()
	f := &Front{operation: operation, counts: map[string]int{}, bytes: map[string]int64{}}
	to, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(to)
		r.Out.Host = r.In.Host // it is signed
	}, ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) }}
	f.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		operation := f.operation(r)
		f.mu.Lock()
		f.counts[operation]++
		n, refuse := f.counts[operation], f.refuse
		if r.ContentLength > 0 {
			f.bytes[operation] += r.ContentLength
		}
		f.mu.Unlock()
		if refuse != nil {
			body, err := io.ReadAll(r.Body) // an answer before it is read would cut the connection
			if err != nil {
				return
			}
			if refuse(operation, n, w) {
				return
			}
			r.Body = io.NopCloser(bytes.NewReader(body))
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(f.Close)
	return f
}

// Count says how many requests of an operation came since the last Reset, and with how many bytes.
func (f *Front) Count(operation string) (n int, bytes int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.counts[operation], f.bytes[operation]
}

// Reset counts from zero, and refuses from now on what refuse says; nil for nothing.
func (f *Front) Reset(refuse Refuse) {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.counts)
	clear(f.bytes)
	f.refuse = refuse
}

// Cut ends the connection without an answer.
func Cut(w http.ResponseWriter) {
	c, _, err := http.NewResponseController(w).Hijack()
	if err == nil {
		_ = c.Close()
	}
}
