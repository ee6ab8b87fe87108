package s3_test

import (
	"testing"

	"github.com/deliverykit/delivery/handler/handlertest"
	"github.com/deliverykit/delivery/handler/storage"
	"github.com/deliverykit/delivery/handler/storage/s3"
	"github.com/deliverykit/delivery/payload/storetest"
	"github.com/deliverykit/delivery/test/internal/uploads"
)

func TestPayloadStore(t *testing.T) {
	t.Parallel()
	h := s3.New()
	handlertest.Open(t, h)
	b, err := h.Bucket(t.Context(), "acme", config(newBucket(t, false)))
	if err != nil {
		t.Fatal(err)
	}
	storetest.Run(t, storage.PayloadStore(b, "payloads/"))
}

func TestRemove(t *testing.T) {
	t.Parallel()
	h := s3.New()
	handlertest.Open(t, h)
	b, err := h.Bucket(t.Context(), "acme", config(newBucket(t, false)))
	if err != nil {
		t.Fatal(err)
	}
	uploads.CheckRemove(t, b, false)
	versioned, err := h.Bucket(t.Context(), "acme", config(newBucket(t, true)))
	if err != nil {
		t.Fatal(err)
	}
	uploads.CheckRemove(t, versioned, true)

}
