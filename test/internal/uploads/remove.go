package uploads

import (
	"testing"

	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/storage"
)

// CheckRemove checks that a bucket removes what a delivery stored, and nothing else. older says
// that it keeps versions, and so removes that very one though another is there by now.
func CheckRemove(t *testing.T, b storage.Bucket, older bool) {
	t.Helper()
	ctx := t.Context()
	put := func(name, content string, replace bool) *handler.RemoveRequest {
		t.Helper()
		up := Upload(name, content)
		up.Replace = replace
		o, err := b.Put(ctx, up)
		if err != nil {
			t.Fatal(err)
		}
		return &handler.RemoveRequest{Reference: handler.Reference{ID: name, Details: map[string]string{"etag": o.ETag, "version": o.Version}}}
	}
	remove := func(r *handler.RemoveRequest, want handler.Removal) {
		t.Helper()
		if got, err := storage.Remove(ctx, b, r); err != nil || got != want {
			t.Errorf("%s: %s, %v, want %s", r.Reference.ID, got, err, want)
		}
	}
	remove(put("a", "content", false), handler.Removed)
	if _, err := b.Stat(ctx, "a"); err == nil {
		t.Error("is there still")
	}
	changed := put("b", "content", false)
	put("b", "another", true)
	if older {
		remove(changed, handler.Removed)
	} else {
		remove(changed, handler.Changed)
	}
	if o, err := b.Stat(ctx, "b"); err != nil || o.Size != int64(len("another")) {
		t.Errorf("what replaced it is gone: %v", err)
	}
	gone := put("c", "content", false)
	if err := b.Delete(ctx, "c"); err != nil {
		t.Fatal(err)
	}
	if !older {
		remove(gone, handler.Missing)
	}
	if _, err := storage.Remove(ctx, b, &handler.RemoveRequest{}); err == nil {
		t.Error("removes what has no name")
	}
}
