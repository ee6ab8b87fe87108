package local_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/handlertest"
	"github.com/deliverykit/delivery/handler/storage/local"
	"github.com/deliverykit/delivery/payload"
)

// A full disk: no partial file is visible, the item waits, and is delivered when there is room.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=4m")
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EACCES) {
		t.Skip("NOT TESTED: only root can mount a small file system")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	filler := filepath.Join(dir, "filler")
	if err := os.WriteFile(filler, make([]byte, 2<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	h := local.New(dir)
	sent := bytes.Repeat([]byte("x"), 3<<20)
	req := handlertest.Request(t, h, named("{item}"), payload.Bytes("a", sent))
	for range 2 {
		_, err = h.Deliver(t.Context(), req)
		if e := handler.Classify(err); err == nil || e.Category != handler.Capacity || !e.WillRetry() {
			t.Fatalf("on a full disk: %v", err)
		}
		if all := files(t, filepath.Join(dir, "handlertest")); len(all) != 0 {
			t.Fatalf("visible on a full disk: %q", all)
		}
		req.Attempt++
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Deliver(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	if got := content(t, filepath.Join(dir, "handlertest", req.ItemID)); got != string(sent) {
		t.Errorf("%d bytes", len(got))
	}
}

// What is used where there are no hard links.
func TestRenameNoReplace(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for _, name := range []string{"a", "b"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := local.RenameNoReplace(root, "a", "b"); !errors.Is(err, fs.ErrExist) {
		t.Errorf("over another file: %v", err)
	}
	if err := local.RenameNoReplace(root, "a", "c"); err != nil {
		t.Error(err)
	}
	if b, c := content(t, filepath.Join(dir, "b")), content(t, filepath.Join(dir, "c")); b != "b" || c != "a" {
		t.Errorf("%q, %q", b, c)
	}
}

// System errors look like those of a network to errors.As; there is none here.
func TestFailures(t *testing.T) {
	t.Parallel()
	for errno, want := range map[syscall.Errno]handler.Category{
		syscall.EACCES: handler.Authentication, syscall.EPERM: handler.Authentication, syscall.ENOSPC: handler.Capacity, syscall.EDQUOT: handler.Capacity,
		syscall.EROFS: handler.Internal, syscall.EIO: handler.Remote, syscall.ESTALE: handler.Remote, syscall.EMFILE: handler.Remote,
	} {
		err := local.Failed(&fs.PathError{Op: "write", Path: "x", Err: errno})
		if e := handler.Classify(err); e.Category != want || !errors.Is(err, errno) || e.WillRetry() == want.Permanent() {
			t.Errorf("%s: %s, %v", errno, e.Category, err)
		}
	}
}
