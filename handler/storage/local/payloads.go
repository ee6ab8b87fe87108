package local

import (
	"github.com/deliverykit/delivery/handler/storage"
	"github.com/deliverykit/delivery/payload"
)

// PayloadStore returns a store for delivery.WithPayloadStore in a directory, which must exist. It
// keeps everything in the folder "payloads" of that directory. All processes on one database must
// see the same directory.
func PayloadStore(dir string) (payload.Store, error) {
	b, err := New(dir).Bucket("payloads", Config{})
	if err != nil {
		return nil, err
	}
	return storage.PayloadStore(b, ""), nil
}
