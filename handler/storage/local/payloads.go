package local

import (
	"errors"

	"github.com/deliverykit/delivery/handler/storage"
	"github.com/deliverykit/delivery/payload"
)

// PayloadStore makes a store for delivery.WithPayloadStore of a directory, which must be there: its folder "payloads" is the
// store's. All processes on one database must see the same directory.
func PayloadStore(dir string) (payload.Store, error) {
	h := New(dir)
	b, err := h.bucket("payloads", Config{})
	if err := errors.Join(errors.Join(h.errs...), err); err != nil {
		return nil, err
	}
	return storage.PayloadStore(b, ""), nil
}
