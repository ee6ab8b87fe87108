package webhook_test

import (
	"context"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/handlertest"
	"github.com/deliverykit/delivery/handler/webhook"
	"github.com/deliverykit/delivery/payload"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	newSecret = "whsec_/aeQo1udfX7UOf6vtyZ9AJ7q0ukOjIMn"
	oldSecret = "whsec_pDIwVqKyHqZSeS3rmMzPXrPfZm9TRvvJcLhLDIoq2hU="
)

func secrets(values ...string) []destination.Secret {
	s := make([]destination.Secret, len(values))
	for i, v := range values {
		s[i] = destination.NewSecret(v)
	}
	return s
}

// received is a request as it came.
type received struct {
	method, uri, remote string
	header              http.Header
	host                string
	body                []byte
	length              int64
}

// receiver records requests, and answers as told, 200 by default.
type receiver struct {
	*httptest.Server
	mu  sync.Mutex
	all []received
}

func newReceiver(t testing.TB, answer http.HandlerFunc) *receiver {
	t.Helper()
	r := &receiver{}
	r.Server = httptest.NewServer(r.record(answer))
	t.Cleanup(r.Close)
	return r
}

func (r *receiver) record(answer http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, hr *http.Request) {
		body, err := io.ReadAll(hr.Body)
		if err != nil {
			return // broken off: not received
		}
		r.mu.Lock()
		r.all = append(r.all, received{hr.Method, hr.RequestURI, hr.RemoteAddr, hr.Header, hr.Host, body, hr.ContentLength})
		r.mu.Unlock()
		if answer != nil {
			answer(w, hr)
		}
	}
}

func (r *receiver) requests() []received {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]received(nil), r.all...)
}

// one is the request of a test that expects a single one.
func (r *receiver) one(t *testing.T) received {
	t.Helper()
	all := r.requests()
	if len(all) != 1 {
		t.Fatalf("%d requests came, want 1", len(all))
	}
	return all[0]
}

// status answers with a status, headers in pairs, and a body.
func status(code int, body string, headers ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i < len(headers); i += 2 {
			w.Header().Add(headers[i], headers[i+1])
		}
		w.WriteHeader(code)
		_, _ = io.WriteString(w, body)
	}
}

// deliver makes one attempt with a handler of its own, after edit has changed the request.
func deliver(t *testing.T, c webhook.Config, p payload.Payload, edit ...func(*handler.Request)) (*handler.Result, error) {
	t.Helper()
	h := webhook.New()
	req := handlertest.Request(t, h, c, p)
	for _, e := range edit {
		e(req)
	}
	return h.Deliver(t.Context(), req)
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	var config net.ListenConfig
	l, err := config.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// refusedAddress is one where nobody listens.
func refusedAddress(t testing.TB) string {
	t.Helper()
	l := listen(t)
	defer l.Close()
	return l.Addr().String()
}

// rawServer takes connections and leaves each to serve.
func rawServer(t testing.TB, serve func(ctx context.Context, c net.Conn)) string {
	t.Helper()
	l := listen(t)
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	group.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			group.Go(func() {
				defer c.Close()
				stop := context.AfterFunc(ctx, func() { _ = c.Close() })
				defer stop()
				serve(ctx, c)
			})
		}
	})
	t.Cleanup(func() {
		cancel()
		_ = l.Close()
		group.Wait()
	})
	return "http://" + l.Addr().String()
}

// readRequest reads the header of a request and leaves its body.
func readRequest(c net.Conn) {
	tail := make([]byte, 0, 4)
	b := make([]byte, 1)
	for string(tail) != "\r\n\r\n" {
		if _, err := c.Read(b); err != nil {
			return
		}
		if tail = append(tail, b[0]); len(tail) > 4 {
			tail = tail[1:]
		}
	}
}

var quiet = log.New(io.Discard, "", 0) // for servers whose clients fail on purpose
