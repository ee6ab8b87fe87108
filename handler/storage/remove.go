package storage

import (
	"cmp"
	"context"
	"errors"
	"io"
	"strconv"

	"github.com/deliverykit/delivery/handler"
)

// Remove deletes the object that a delivery stored, if it is still that one.
func Remove(ctx context.Context, b Bucket, req *handler.RemoveRequest) (handler.Removal, error) {
	d := req.Reference.Details
	size, err := strconv.ParseInt(cmp.Or(d["size"], "-1"), 10, 64)
	if err != nil {
		size = -1
	}
	o := Object{Name: req.Reference.ID, Size: size, SHA256: d["sha256"], ETag: d["etag"], Version: d["version"]}
	if err := CheckName(o.Name); err != nil {
		return handler.NotRemoved, errors.New("storage: the record of the delivery has no object's name")
	}
	if r, ok := b.(Remover); ok {
		return r.Remove(ctx, o)
	}
	found, err := b.Stat(ctx, o.Name)
	switch {
	case errors.Is(err, ErrNotFound):
		return handler.Missing, nil
	case err != nil:
		return handler.NotRemoved, err
	case size >= 0 && found.Size != size:
		return handler.Changed, nil
	case o.SHA256 == "":
		return handler.NotRemoved, errors.New(
			"storage: nothing is known of the object by which it could be told from another",
		)
	}
	sum := found.SHA256
	if sum == "" {
		sum, _, err = digest(ctx, func(ctx context.Context, offset int64) (io.ReadCloser, error) {
			return b.Get(ctx, o.Name, offset)
		})
		if err != nil {
			return handler.NotRemoved, err
		}
	}
	if sum != o.SHA256 {
		return handler.Changed, nil
	}
	if err := b.Delete(ctx, o.Name); err != nil {
		return handler.NotRemoved, err
	}
	return handler.Removed, nil
}
