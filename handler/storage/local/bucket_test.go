package local_test

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/deliverykit/delivery/handler/storage"
	"github.com/deliverykit/delivery/handler/storage/local"
)

func TestBucket(t *testing.T) {
	t.Parallel()
	h := local.New(t.TempDir())
	if _, err := h.Bucket("acme", local.Config{Folder: ".."}); err == nil {
		t.Error("a faulty config is accepted")
	}
	b, err := h.Bucket("acme", local.Config{Folder: "in"})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"", "../x", "a/../../x", "/etc/passwd"} {
		if _, err := b.Put(t.Context(), upload(name, "x")); err == nil {
			t.Errorf("%q is accepted", name)
		}
	}
	ctx := t.Context()
	names := []string{"a/1", "a/2 ä+&?", "b/1"}
	for _, name := range names {
		stored, err := b.Put(ctx, upload(name, "content of "+name))
		if err != nil || stored.Name != name || stored.Size != int64(len("content of "+name)) {
			t.Fatalf("%s: %+v, %v", name, stored, err)
		}
	}
	if _, err := b.Put(ctx, upload("a/1", "other")); !errors.Is(err, storage.ErrExists) {
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

func upload(name, content string) *storage.Upload {
	return &storage.Upload{
		Name: name, Size: int64(len(content)), ContentType: "text/plain", Progress: func(int64) {},
		Open: func(_ context.Context, offset int64) (io.ReadCloser, error) {
			return io.NopCloser(strings.NewReader(content[offset:])), nil
		},
	}
}
