package s3_test

import (
	"bytes"
	"net/http"
	"testing"
	"time"

	"github.com/deliverykit/delivery/test/internal/uploads"

	"github.com/deliverykit/delivery"
	"github.com/deliverykit/delivery/deliverytest"
	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler/storage/s3"
	"github.com/deliverykit/delivery/payload"
)

// Through the real service, with its database for checkpoints: an upload breaks off and is resumed
// by a retry.
func TestService(t *testing.T) {
	t.Parallel()
	bucket := newBucket(t, false)
	f := newFront(t)
	c := throughFront(f, bucket)
	c.Parallel = 1
	kit := deliverytest.New(t, delivery.WithHandler("s3", s3.New()), delivery.WithNetwork(delivery.Network{Loopback: true}),
		delivery.WithKeys(delivery.LocalKey("k", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=")))
	acme := kit.Org("acme")
	if _, err := acme.Destinations().Create(t.Context(), destination.Spec{Label: "archive", Default: true, Config: c}); err != nil {
		t.Fatal(err)
	}
	failing := true
	f.Reset(func(operation string, n int, w http.ResponseWriter) bool {
		if failing && operation == "UploadPart" && n > 2 {
			failing = n < 5 // three tries within the attempt
			w.WriteHeader(http.StatusInternalServerError)
			return true
		}
		return false
	})
	sent := uploads.Random(16 * mib)
	receipt, err := acme.Deliver(t.Context(), delivery.Request{Payload: payload.Reader("export.bin", bytes.NewReader(sent))})
	if err != nil {
		t.Fatal(err)
	}
	kit.Process()
	kit.Advance(time.Minute)
	status, err := acme.Status(t.Context(), receipt.ID)
	if err != nil || len(status.Items) != 1 {
		t.Fatalf("%+v, %v", status, err)
	}
	item := status.Items[0]
	if !bytes.Equal(object(t, bucket, item.ID), sent) {
		t.Errorf("%+v", item)
	}
	// 2 parts, 3 tries of the third, and the 2 that were missing.
	if n, _ := f.Count("UploadPart"); n != 7 {
		t.Errorf("%d parts were sent, want 7", n)
	}
	if n, _ := f.Count("Create"); n != 1 {
		t.Errorf("%d uploads were begun", n)
	}
	if item.Reference.ID != item.ID || item.Reference.Details["checksum"] == "" {
		t.Errorf("%+v", item.Reference)
	}
}
