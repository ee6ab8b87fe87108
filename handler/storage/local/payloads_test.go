package local_test

import (
	"testing"

	"github.com/deliverykit/delivery/handler/storage/local"
	"github.com/deliverykit/delivery/payload/storetest"
)

func TestPayloadStore(t *testing.T) {
	t.Parallel()
	if _, err := local.PayloadStore("relative"); err == nil {
		t.Error("a relative path is accepted")
	}
	dir := t.TempDir()
	s, err := local.PayloadStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	storetest.Run(t, s)
	t.Cleanup(func() {
		if all := files(t, dir); len(all) != 0 {
			t.Errorf("left: %q", all)
		}
	})
}
