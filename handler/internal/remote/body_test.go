package remote_test

import (
	"errors"
	"io"
	"testing"

	"github.com/deliverykit/delivery/handler/internal/remote"
)

// After a request has ended, nothing reads the memory that it was sent from.
func TestSealedBody(t *testing.T) {
	t.Parallel()
	memory := []byte("ours")
	r := remote.NewBody(memory)
	b := make([]byte, 2)
	if n, err := r.Read(b); n != 2 || err != nil {
		t.Error(n, err)
	}
	r.Seal()
	copy(memory, "theirs")
	if n, err := r.Read(b); n != 0 || err == nil || errors.Is(err, io.EOF) {
		t.Errorf("%d bytes of another's payload, %v", n, err)
	}
	if _, err := r.Seek(0, io.SeekStart); err == nil {
		t.Error("can be read again")
	}
}
