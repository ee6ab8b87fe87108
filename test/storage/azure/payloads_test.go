package azure_test

import (
	"testing"

	"github.com/deliverykit/delivery/handler/handlertest"
	"github.com/deliverykit/delivery/handler/storage"
	"github.com/deliverykit/delivery/handler/storage/azure"
	"github.com/deliverykit/delivery/payload/storetest"
	"github.com/deliverykit/delivery/test/internal/uploads"
)

func TestPayloadStore(t *testing.T) {
	t.Parallel()
	h := azure.New()
	handlertest.Open(t, h)
	b, err := h.Bucket(t.Context(), config(newContainer(t)))
	if err != nil {
		t.Fatal(err)
	}
	storetest.Run(t, storage.PayloadStore(b, "payloads/"))
}

func TestRemove(t *testing.T) {
	t.Parallel()
	h := azure.New()
	handlertest.Open(t, h)
	b, err := h.Bucket(t.Context(), config(newContainer(t)))
	if err != nil {
		t.Fatal(err)
	}
	uploads.CheckRemove(t, b, false)
}
