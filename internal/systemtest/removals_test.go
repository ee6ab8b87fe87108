package systemtest_test

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
	"github.com/deliverykit/delivery/internal/testkit"
	"github.com/deliverykit/delivery/payload"
	"github.com/deliverykit/delivery/queue"
)

// keeper is a handler whose destinations keep what was written for a day, or for ever.
type keeper struct {
	testkit.Fake
	mu      sync.Mutex
	removed []string
	answers map[string]func() (handler.Removal, error) // by reference
}

func (k *keeper) Retention(config any) time.Duration {
	switch c, _ := config.(testkit.Script); c.Name {
	case "forever":
		return 0
	case "broken":
		panic("boom")
	}
	return 24 * time.Hour
}

// A handler that panics when it is asked for the retention costs its own destination a removal, and
// nobody an attempt or a process.
func TestRetentionThatPanics(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		c := testkit.NewClock()
		c.Set(time.Now())
		k := &keeper{}
		k.Do = func(_ context.Context, r *handler.Request) (*handler.Result, error) {
			return &handler.Result{Reference: handler.Reference{ID: r.Topic}, Removable: true}, nil
		}
		svc := testkit.Service(t, db, k, c.Option())
		acme := svc.Org("acme")
		broken := testkit.Create(t, acme, destination.Spec{Default: true, Config: testkit.Script{Name: "broken"}})
		testkit.Create(t, acme, destination.Spec{Default: true})
		id := testkit.Send(t, acme, delivery.Request{Topic: "a"})
		testkit.Process(t, svc)
		if s := testkit.Status(t, acme, id); s.State != queue.Completed {
			t.Fatalf("%s", testkit.Show(s))
		}
		c.Advance(25 * time.Hour)
		if n := testkit.Try(svc.Maintain(t.Context())).Must(t).Removals; n != 1 {
			t.Errorf("%d objects of the other destination were removed", n)
		}
		repaired := destination.Patch{Config: testkit.Script{Name: "n"}}
		testkit.Try(acme.Destinations().Update(t.Context(), broken.ID, repaired)).Must(t)
		c.Advance(2 * time.Hour)
		if n := testkit.Try(svc.Maintain(t.Context())).Must(t).Removals; n != 1 {
			t.Errorf("%d objects were removed once the handler answered", n)
		}
	})
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

// What was written is removed once, when its time is over; what was not written, or is kept for
// ever, stays. A failure is recorded and tried again, and keeps nothing else.
func TestRemovals(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		c := testkit.NewClock()
		c.Set(time.Now())
		k := &keeper{answers: map[string]func() (handler.Removal, error){
			"changed": func() (handler.Removal, error) { return handler.Changed, nil },
			"locked":  func() (handler.Removal, error) { return handler.NotRemoved, errors.New("it is locked\x00") },
			"panic":   func() (handler.Removal, error) { panic("boom") },
			"silent":  func() (handler.Removal, error) { return 0, nil },
		}}
		k.Do = func(_ context.Context, r *handler.Request) (*handler.Result, error) {
			return &handler.Result{Reference: handler.Reference{ID: r.Topic}, Removable: r.Topic != "not ours"}, nil
		}
		svc := testkit.Service(t, db, k, c.Option(), delivery.WithRetention(delivery.Retention{Deliveries: 40 * 24 * time.Hour}))
		acme, other := svc.Org("acme"), svc.Org("other")
		testkit.Create(t, acme, destination.Spec{Default: true})
		testkit.Create(t, other, destination.Spec{Default: true, Config: testkit.Script{Name: "forever"}})
		ids := map[string]string{}
		for _, topic := range []string{"a", "changed", "locked", "panic", "silent", "not ours"} {
			ids[topic] = testkit.Send(t, acme, delivery.Request{Topic: topic})
		}
		testkit.Send(t, other, delivery.Request{Topic: "kept"})
		testkit.Process(t, svc)
		maintain := func(removals, failed int) {
			t.Helper()
			if chores := testkit.Try(svc.Maintain(t.Context())).Must(t); chores.Removals != removals || chores.RemovalsFailed != failed {
				t.Errorf("%+v, want %d removed and %d failed", chores, removals, failed)
			}
		}
		c.Advance(23 * time.Hour)
		maintain(0, 0)
		c.Advance(2 * time.Hour)
		maintain(2, 3)
		if len(k.removed) != 5 || strings.Contains(strings.Join(k.removed, " "), "not ours") {
			t.Errorf("asked to remove %q", k.removed)
		}
		for topic, want := range map[string]handler.Removal{"a": handler.Removed, "changed": handler.Changed, "locked": handler.NotRemoved, "panic": handler.NotRemoved} {
			r := testkit.Status(t, acme, ids[topic]).Items[0].Removal
			if r == nil || r.Outcome != want || (want == handler.NotRemoved) != (r.Problem != "") || r.RemovedAt.IsZero() != (want == handler.NotRemoved) {
				t.Errorf("%s: %+v", topic, r)
			}
		}
		if r := testkit.Status(t, acme, ids["not ours"]).Items[0].Removal; r != nil {
			t.Errorf("%+v", r)
		}
		delete(k.answers, "locked")
		c.Advance(2 * time.Hour)
		maintain(1, 2)
		if n := testkit.Count(t, db, "delivery_written"); n != 5 {
			t.Errorf("%d records", n)
		}
		// The delivery goes, and what it wrote and could not be removed is still remembered.
		c.Advance(40 * 24 * time.Hour)
		maintain(0, 2)
		if n := testkit.Count(t, db, "delivery_written"); n != 2 {
			t.Errorf("%d records without their deliveries", n)
		}
		clear(k.answers)
		c.Advance(2 * time.Hour)
		maintain(2, 0)
		if n := testkit.Count(t, db, "delivery_written"); n != 0 {
			t.Errorf("%d records are left", n)
		}
	})
}

// Through a real driver, with more objects than one page has.
func TestRemovalsOfFiles(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		c := testkit.NewClock()
		dir := t.TempDir()
		svc := testkit.Service(t, db, &testkit.Fake{}, c.Option(), delivery.WithHandler("local", local.New(dir)))
		acme := svc.Org("acme")
		testkit.Create(t, acme, destination.Spec{Default: true, Config: local.Config{
			Naming: storage.Naming{Name: "{topic}/{item}"}, Expiry: storage.Expiry{DeleteAfterDays: 7},
		}})
		requests := testkit.Topics(250)
		for i := range requests {
			requests[i].Payload = payload.Bytes("x", []byte("content"))
		}
		testkit.Try(acme.DeliverMany(t.Context(), requests)).Must(t)
		testkit.Process(t, svc)
		if n := len(stored(t, dir)); n != 250 {
			t.Fatalf("%d files:\n%s", n, testkit.Dump(t, db))
		}
		c.Advance(6 * 24 * time.Hour)
		testkit.Send(t, acme, delivery.Request{Topic: "late", Payload: payload.Bytes("x", []byte("late"))})
		testkit.Process(t, svc)
		c.Advance(25 * time.Hour)
		if chores := testkit.Try(svc.Maintain(t.Context())).Must(t); chores.Removals != 250 {
			t.Errorf("%+v", chores)
		}
		if left := stored(t, dir); len(left) != 1 || !strings.Contains(left[0], "late") {
			t.Errorf("left: %q", left)
		}
	})
}
