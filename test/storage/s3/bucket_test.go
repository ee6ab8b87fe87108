package s3_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/deliverykit/delivery/test/internal/uploads"

	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/handlertest"
	"github.com/deliverykit/delivery/handler/storage"
	"github.com/deliverykit/delivery/handler/storage/s3"
	"github.com/deliverykit/delivery/payload"
)

// Over TLS bodies are not hashed for the signature, which is another way through the SDK for each
// operation.
func TestTLS(t *testing.T) {
	t.Parallel()
	plain := newFront(t)
	front := httptest.NewTLSServer(plain.Config.Handler)
	t.Cleanup(front.Close)
	h := s3.New()
	if err := h.Open(handler.Env{Client: front.Client(), Dial: new(net.Dialer).DialContext, Now: time.Now}); err != nil {
		t.Fatal(err)
	}
	bucket := newBucket(t, false)
	c := throughFront(plain, bucket)
	c.Endpoint = front.URL
	unsigned := make(chan string, 100)
	inner := front.Config.Handler
	front.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut {
			unsigned <- r.Header.Get("X-Amz-Content-Sha256")
		}
		inner.ServeHTTP(w, r)
	})
	for _, size := range []int{10, 6 * mib} {
		sent := uploads.Random(size)
		req := handlertest.Request(t, s3.New(), c, payload.Bytes("x", sent))
		for attempt := range 2 {
			req.Attempt = attempt + 1
			if _, err := h.Deliver(t.Context(), req); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(object(t, bucket, req.ItemID), sent) {
			t.Error("the object differs")
		}
	}
	parsed, _ := handlertest.Parse(t, h, c)
	if report, err := h.Test(t.Context(), &handler.TestRequest{Organization: "acme", Config: parsed}); err != nil || !report.OK {
		t.Errorf("%+v, %v", report, err)
	}
	if err := h.Maintain(t.Context(), &handler.MaintainRequest{Organization: "acme", Config: parsed}); err != nil {
		t.Error(err)
	}
	close(unsigned)
	for value := range unsigned {
		if value != "UNSIGNED-PAYLOAD" {
			t.Errorf("the body is hashed for the signature: %s", value)
		}
	}
}

func TestBucket(t *testing.T) {
	t.Parallel()
	h := s3.New()
	handlertest.Open(t, h)
	if _, err := h.Bucket(t.Context(), "acme", s3.Config{}); err == nil {
		t.Error("a faulty config is accepted")
	}
	b, err := h.Bucket(t.Context(), "acme", config(newBucket(t, false)))
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	names := []string{"a/1", "a/2 ä+&?", "b/1"}
	for _, name := range names {
		stored, err := b.Put(ctx, uploads.Upload(name, "content of "+name))
		if err != nil || stored.Name != name || stored.Size != int64(len("content of "+name)) {
			t.Fatalf("%s: %+v, %v", name, stored, err)
		}
	}
	if _, err := b.Put(ctx, uploads.Upload("a/1", "other")); !errors.Is(err, storage.ErrExists) {
		t.Errorf("put over an object: %v", err)
	}
	list := func(prefix string) string {
		var found []string
		if err := b.List(ctx, prefix, func(o storage.Object) error {
			if o.Modified.IsZero() || o.Size == 0 {
				t.Errorf("%+v", o)
			}
			found = append(found, o.Name)
			return nil
		}); err != nil {
			t.Error(err)
		}
		slices.Sort(found)
		return strings.Join(found, ",")
	}
	if all, some, none := list(""), list("a/"), list("c"); all != strings.Join(names, ",") || some != strings.Join(names[:2], ",") || none != "" {
		t.Errorf("listed %q, %q and %q", all, some, none)
	}
	stop := errors.New("stop")
	if err := b.List(ctx, "", func(storage.Object) error { return stop }); !errors.Is(err, stop) {
		t.Error(err)
	}
	r, err := b.Get(ctx, "a/2 ä+&?", 11)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got, err := io.ReadAll(r); err != nil || string(got) != "a/2 ä+&?" {
		t.Errorf("%q, %v", got, err)
	}
	for range 2 {
		if err := b.Delete(ctx, "a/1"); err != nil {
			t.Error(err)
		}
	}
	if _, err := b.Stat(ctx, "a/1"); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("a deleted object: %v", err)
	}
	if _, err := b.Get(ctx, "a/1", 0); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("a deleted object: %v", err)
	}
	if all := list(""); all != strings.Join(names[1:], ",") {
		t.Errorf("listed %q", all)
	}
}
