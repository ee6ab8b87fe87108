package local_test

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/deliverykit/delivery/handler/handlertest"
	"github.com/deliverykit/delivery/handler/storage/local"
	"github.com/deliverykit/delivery/payload"
)

// While files are written, somebody keeps replacing their folder by a link that leads out, and by
// one to a sibling. Not one file may get out. With DELIVERY_SOAK=1 this is tried 100,000 times.
func TestLinkRace(t *testing.T) {
	t.Parallel()
	tries := 2_000
	if os.Getenv("DELIVERY_SOAK") == "1" {
		tries = 100_000
	}
	dir, outside := t.TempDir(), t.TempDir()
	organization := filepath.Join(dir, "handlertest")
	in, aside, sibling := filepath.Join(organization, "in"), filepath.Join(organization, "aside"), filepath.Join(organization, "sibling")
	for _, d := range []string{in, sibling} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}

	done := make(chan struct{})
	var attacker sync.WaitGroup
	attacker.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-done:
				return
			default:
			}
			target := outside
			if i%2 == 1 {
				target = "sibling"
			}
			if os.Rename(in, aside) != nil { // a delivery has made the folder anew, while it was aside
				_ = os.RemoveAll(aside)
				continue
			}
			_ = os.Symlink(target, in)
			_ = os.Remove(in)
			_ = os.Rename(aside, in)
		}
	})

	h := local.New(dir)
	base := handlertest.Request(t, h, named("in/{item}"), payload.JSON(1))
	var workers sync.WaitGroup
	var mu sync.Mutex
	delivered, refused := 0, 0
	happened := func() bool {
		mu.Lock()
		defer mu.Unlock()
		return delivered > 0 && refused > 0
	}
	for w := range 2 {
		workers.Go(func() {
			for i := 0; i < tries/2 || i < 100*tries && !happened(); i++ { // a busy machine may hold the attacker up
				req := *base
				req.ItemID = fmt.Sprintf("%d-%d", w, i)
				_, err := h.Deliver(t.Context(), &req)
				mu.Lock()
				if err == nil {
					delivered++
				} else {
					refused++
				}
				mu.Unlock()
				if err == nil && i%100 != 0 { // the folder stays small
					for _, d := range []string{in, aside} {
						_ = os.Remove(filepath.Join(d, req.ItemID))
					}
				}
			}
		})
	}
	workers.Wait()
	close(done)
	attacker.Wait()
	for _, d := range []string{outside, sibling} {
		if all := files(t, d); len(all) > 0 {
			t.Errorf("%d of %d files got out, to %s", len(all), delivered+refused, d)
		}
	}
	t.Logf("%d tries: %d delivered, %d refused", delivered+refused, delivered, refused)
	if delivered == 0 || refused == 0 {
		t.Errorf("the race did not happen: %d delivered, %d refused", delivered, refused)
	}
}
