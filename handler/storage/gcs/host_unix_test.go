//go:build unix

package gcs_test

import (
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler/handlertest"
	"github.com/deliverykit/delivery/handler/storage/gcs"
	"github.com/deliverykit/delivery/payload"
)

// The SDK has the credentials of the destination and looks for no others. It would read the host's
// file and, without one, ask the metadata service of the host past the guarded client. The file is
// a pipe here, which shows who opens it.
func TestTheHostsCredentialsAreNotLookedFor(t *testing.T) {
	file := filepath.Join(t.TempDir(), "credentials.json")
	if err := syscall.Mkfifo(file, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", file)
	var readers atomic.Int64
	var ended atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		for !ended.Load() {
			if f, err := os.OpenFile(file, os.O_WRONLY, 0); err == nil { // once somebody reads
				readers.Add(1)
				_ = f.Close()
			}
		}
	}()
	h := gcs.New()
	c := gcs.Config{
		Bucket: "exports", Credentials: gcs.Credentials{ServiceAccount: destination.NewSecret(keyFile(t, nil))},
	}
	if _, err := h.Deliver(t.Context(), handlertest.Request(t, h, c, payload.JSON("x"))); err == nil {
		t.Error("it delivered to nowhere")
	}
	if n := readers.Load(); n > 0 {
		t.Errorf("the host's credentials were read %d times", n)
	}
	ended.Store(true)
	f, err := os.OpenFile(file, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	<-done
	_ = f.Close()
}
