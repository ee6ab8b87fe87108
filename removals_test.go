package delivery_test

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/deliverykit/delivery"
	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/storage"
	"github.com/deliverykit/delivery/handler/storage/local"
	"github.com/deliverykit/delivery/payload"
)

// keeper is a handler whose destinations keep what was written for a day, or for ever.
type keeper struct {
	fake
	mu      sync.Mutex
	removed []string
	answers map[string]func() (handler.Removal, error) // by reference
}

func (k *keeper) Retention(config any) time.Duration {
	if c, _ := config.(script); c.Name == "forever" {
		return 0
	}
	return 24 * time.Hour
}

func (k *keeper) Remove(_ context.Context, r *handler.RemoveRequest) (handler.Removal, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.removed = append(k.removed, r.Organization+" "+r.ItemID+" "+r.Reference.ID)
	if f := k.answers[r.Reference.ID]; f != nil {
		return f()
	}
	return handler.Removed, nil
}

// What was written is removed once, when its time is over; what was not written, or is kept for ever, stays. A failure is
// recorded and tried again, and keeps nothing else.
func TestRemovals(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		c := newClock()
		c.t = time.Now()
		k := &keeper{answers: map[string]func() (handler.Removal, error){
			"changed": func() (handler.Removal, error) { return handler.Changed, nil },
			"locked":  func() (handler.Removal, error) { return handler.NotRemoved, errors.New("it is locked\x00") },
			"panic":   func() (handler.Removal, error) { panic("boom") },
			"silent":  func() (handler.Removal, error) { return 0, nil },
		}}
		k.deliver = func(_ context.Context, r *handler.Request) (*handler.Result, error) {
			return &handler.Result{Reference: handler.Reference{ID: r.Topic}, Removable: r.Topic != "not ours"}, nil
		}
		svc := service(t, db, k, c.option(), delivery.WithRetention(delivery.Retention{Deliveries: 40 * 24 * time.Hour}))
		acme, other := svc.Org("acme"), svc.Org("other")
		create(t, acme, destination.Spec{Default: true})
		create(t, other, destination.Spec{Default: true, Config: script{Name: "forever"}})
		ids := map[string]string{}
		for _, topic := range []string{"a", "changed", "locked", "panic", "silent", "not ours"} {
			ids[topic] = send(t, acme, delivery.Request{Topic: topic})
		}
		send(t, other, delivery.Request{Topic: "kept"})
		process(t, svc)
		maintain := func(removals, failed int) {
			t.Helper()
			if chores := must[delivery.Chores](t)(svc.Maintain(t.Context())); chores.Removals != removals || chores.RemovalsFailed != failed {
				t.Errorf("%+v, want %d removed and %d failed", chores, removals, failed)
			}
		}
		c.advance(23 * time.Hour)
		maintain(0, 0)
		c.advance(2 * time.Hour)
		maintain(2, 3)
		if len(k.removed) != 5 || strings.Contains(strings.Join(k.removed, " "), "not ours") {
			t.Errorf("asked to remove %q", k.removed)
		}
		for topic, want := range map[string]handler.Removal{"a": handler.Removed, "changed": handler.Changed, "locked": handler.NotRemoved, "panic": handler.NotRemoved} {
			r := status(t, acme, ids[topic]).Items[0].Removal
			if r == nil || r.Outcome != want || (want == handler.NotRemoved) != (r.Problem != "") || r.RemovedAt.IsZero() != (want == handler.NotRemoved) {
				t.Errorf("%s: %+v", topic, r)
			}
		}
		if r := status(t, acme, ids["not ours"]).Items[0].Removal; r != nil {
			t.Errorf("%+v", r)
		}
		delete(k.answers, "locked")
		c.advance(2 * time.Hour)
		maintain(1, 2)
		if n := count(t, db, "delivery_written"); n != 5 {
			t.Errorf("%d records", n)
		}
		// The delivery goes, and what it wrote and could not be removed is still remembered.
		c.advance(40 * 24 * time.Hour)
		maintain(0, 2)
		if n := count(t, db, "delivery_written"); n != 2 {
			t.Errorf("%d records without their deliveries", n)
		}
		clear(k.answers)
		c.advance(2 * time.Hour)
		maintain(2, 0)
		if n := count(t, db, "delivery_written"); n != 0 {
			t.Errorf("%d records are left", n)
		}
	})
}

// Through a real driver, with more objects than one page has.
func TestRemovalsOfFiles(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		c := newClock()
		dir := t.TempDir()
		svc := service(t, db, &fake{}, c.option(), delivery.WithHandler("local", local.New(dir)))
		acme := svc.Org("acme")
		create(t, acme, destination.Spec{Default: true, Config: local.Config{
			Naming: storage.Naming{Name: "{topic}/{item}"}, Expiry: storage.Expiry{DeleteAfterDays: 7},
		}})
		requests := topics(250)
		for i := range requests {
			requests[i].Payload = payload.Bytes("x", []byte("content"))
		}
		must[[]*delivery.Receipt](t)(acme.DeliverMany(t.Context(), requests))
		process(t, svc)
		if n := len(stored(t, dir)); n != 250 {
			t.Fatalf("%d files:\n%s", n, dump(t, db))
		}
		c.advance(6 * 24 * time.Hour)
		send(t, acme, delivery.Request{Topic: "late", Payload: payload.Bytes("x", []byte("late"))})
		process(t, svc)
		c.advance(25 * time.Hour)
		if chores := must[delivery.Chores](t)(svc.Maintain(t.Context())); chores.Removals != 250 {
			t.Errorf("%+v", chores)
		}
		if left := stored(t, dir); len(left) != 1 || !strings.Contains(left[0], "late") {
			t.Errorf("left: %q", left)
		}
	})
}
