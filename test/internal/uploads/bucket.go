package uploads

import (
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/deliverykit/delivery/handler/storage"
)

// CheckBucket checks what every driver's bucket promises. The bucket must be empty.
func CheckBucket(t *testing.T, b storage.Bucket) {
	t.Helper()
	ctx := t.Context()
	names := []string{"a/1", "a/2 ä+&?#%20", "b/1"}
	for _, name := range names {
		stored, err := b.Put(ctx, Upload(name, "content of "+name))
		if err != nil || stored.Name != name || stored.Size != int64(len("content of "+name)) {
			t.Fatalf("%s: %+v, %v", name, stored, err)
		}
		found, err := b.Stat(ctx, name)
		if err != nil || found.Size != stored.Size || found.ETag != stored.ETag || found.Version != stored.Version {
			t.Errorf("%s: stored %+v, found %+v, %v", name, stored, found, err)
		}
	}
	if _, err := b.Put(ctx, Upload("a/1", "other")); !errors.Is(err, storage.ErrExists) {
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
	r, err := b.Get(ctx, names[1], 11)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got, err := io.ReadAll(r); err != nil || string(got) != names[1] {
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
