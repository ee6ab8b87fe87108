package delivery_test

import (
	"context"
	"database/sql"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/deliverykit/delivery"
	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
)

// tidy is a handler that cleans up after its destinations.
type tidy struct {
	fake
	mu   sync.Mutex
	done []string
}

func (h *tidy) Maintain(_ context.Context, r *handler.MaintainRequest) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	c, _ := r.Config.(script)
	switch c.Name {
	case "panic":
		panic("boom")
	case "fail":
		return errors.New("not now")
	}
	h.done = append(h.done, r.Organization+" "+r.DestinationID+" "+c.Token.Reveal())
	return nil
}

// Handlers are called for each of their destinations, once an hour, by one process; one that fails stops no other.
func TestHandlersMaintainTheirDestinations(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		c := newClock()
		h := &tidy{}
		svc, other := service(t, db, h, c.option()), service(t, db, h, c.option())
		for _, name := range []string{"panic", "fail"} {
			create(t, svc.Org("acme"), destination.Spec{Config: script{Name: name}})
		}
		gone := create(t, svc.Org("acme"), destination.Spec{})
		if err := svc.Org("acme").Destinations().Delete(t.Context(), gone.ID, destination.RefusePending); err != nil {
			t.Fatal(err)
		}
		a, b := create(t, svc.Org("acme"), destination.Spec{}), create(t, svc.Org("other"), destination.Spec{})
		for round := range 2 {
			if chores := must[delivery.Chores](t)(svc.Maintain(t.Context())); chores.DestinationsMaintained != 2 {
				t.Errorf("round %d: maintenance did %+v", round, chores)
			}
			if chores := must[delivery.Chores](t)(other.Maintain(t.Context())); chores.DestinationsMaintained != 0 {
				t.Errorf("round %d: another process did it again: %+v", round, chores)
			}
			c.advance(time.Hour)
		}
		if want := "acme " + a.ID + " s3cret"; len(h.done) != 4 || h.done[0] != want || h.done[1] != "other "+b.ID+" s3cret" {
			t.Errorf("maintained %q", h.done)
		}
	})
}
