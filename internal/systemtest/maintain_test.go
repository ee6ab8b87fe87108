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
	"github.com/deliverykit/delivery/internal/testkit"
	"github.com/deliverykit/delivery/payload"
	"github.com/deliverykit/delivery/queue"
)

// tidy is a handler that cleans up after its destinations.
type tidy struct {
	testkit.Fake
	mu   sync.Mutex
	done []string
}

func (h *tidy) Maintain(_ context.Context, r *handler.MaintainRequest) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	c, _ := r.Config.(testkit.Script)
	switch c.Name {
	case "panic":
		panic("boom")
	case "fail":
		return errors.New("not now")
	}
	h.done = append(h.done, r.Organization+" "+r.DestinationID+" "+c.Token.Reveal())
	return nil
}

// Handlers are called for each of their destinations, once an hour, by one process; one that fails
// stops no other.
func TestHandlersMaintainTheirDestinations(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		c := testkit.NewClock()
		h := &tidy{}
		svc, other := testkit.Service(t, db, h, c.Option()), testkit.Service(t, db, h, c.Option())
		for _, name := range []string{"panic", "fail"} {
			testkit.Create(t, svc.Org("acme"), destination.Spec{Config: testkit.Script{Name: name}})
		}
		gone := testkit.Create(t, svc.Org("acme"), destination.Spec{})
		if err := svc.Org("acme").Destinations().Delete(t.Context(), gone.ID, destination.RefusePending); err != nil {
			t.Fatal(err)
		}
		a, b := testkit.Create(t, svc.Org("acme"), destination.Spec{}), testkit.Create(t, svc.Org("other"), destination.Spec{})
		for round := range 2 {
			if chores := testkit.Try(svc.Maintain(t.Context())).Must(t); chores.DestinationsMaintained != 2 {
				t.Errorf("round %d: maintenance did %+v", round, chores)
			}
			if chores := testkit.Try(other.Maintain(t.Context())).Must(t); chores.DestinationsMaintained != 0 {
				t.Errorf("round %d: another process did it again: %+v", round, chores)
			}
			c.Advance(time.Hour)
		}
		if want := "acme " + a.ID + " s3cret"; len(h.done) != 4 || h.done[0] != want || h.done[1] != "other "+b.ID+" s3cret" {
			t.Errorf("maintained %q", h.done)
		}
	})
}

// Retention removes what has ended long ago and nothing else, in batches, whoever owns it.
func TestRetention(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		c := testkit.NewClock()
		f := &testkit.Fake{Do: func(_ context.Context, r *handler.Request) (*handler.Result, error) {
			if r.Topic == "dead" {
				return nil, handler.Permanent(errors.New("no"))
			}
			return nil, nil
		}}
		const day = 24 * time.Hour
		keep := delivery.WithRetention(delivery.Retention{Deliveries: 10 * day, DeadLetters: 20 * day})
		svc, other := testkit.Service(t, db, f, c.Option(), keep), testkit.Service(t, db, f, c.Option())
		c.Set(time.Now()) // ids carry the system's time
		acme, zulu := svc.Org("acme"), svc.Org("zulu")
		d := testkit.Create(t, acme, destination.Spec{Default: true})
		testkit.Create(t, zulu, destination.Spec{Default: true})
		many := testkit.Try(acme.DeliverMany(t.Context(), testkit.Topics(1100))).Must(t)
		foreign := testkit.Send(t, zulu, delivery.Request{})
		dead := testkit.Send(t, acme, delivery.Request{Topic: "dead"})
		large := testkit.Send(t, acme, delivery.Request{Payload: payload.Reader("large", strings.NewReader(strings.Repeat("x", 100_000)))})
		testkit.Process(t, svc)
		waiting := testkit.Send(t, acme, delivery.Request{NotBefore: c.Now().Add(100 * day)})

		c.Advance(9 * day)
		if n := testkit.Try(svc.Maintain(t.Context())).Must(t).DeliveriesExpired; n != 0 {
			t.Errorf("after 9 days: %d", n)
		}
		c.Advance(2 * day)
		if n := testkit.Try(other.Maintain(t.Context())).Must(t).DeliveriesExpired; n != 0 {
			t.Errorf("without retention: %d", n)
		}
		if n := testkit.Try(svc.Maintain(t.Context())).Must(t).DeliveriesExpired; n != 1102 {
			t.Errorf("after 11 days: %d", n)
		}
		for _, id := range []string{many[0].ID, many[1099].ID, large} {
			if _, err := acme.Status(t.Context(), id); !errors.Is(err, delivery.ErrNotFound) {
				t.Errorf("%s: %v", id, err)
			}
		}
		if _, err := zulu.Status(t.Context(), foreign); !errors.Is(err, delivery.ErrNotFound) {
			t.Errorf("of another organization: %v", err)
		}
		c.Advance(2 * day)
		testkit.Try(svc.Maintain(t.Context())).Must(t)
		for table, want := range map[string]int{
			"delivery_deliveries": 2, "delivery_attempts": 1, "delivery_dead_letters": 1, "delivery_queue": 1,
			"delivery_payloads": 0, "delivery_payload_chunks": 0,
		} {
			if n := testkit.Count(t, db, table); n != want {
				t.Errorf("%s has %d rows, want %d", table, n, want)
			}
		}
		if s := testkit.Status(t, acme, dead); s.State != queue.Failed {
			t.Errorf("%s", testkit.Show(s))
		}

		c.Advance(8 * day)
		if n := testkit.Try(svc.Maintain(t.Context())).Must(t).DeliveriesExpired; n != 1 {
			t.Errorf("after 21 days: %d", n)
		}
		c.Advance(80 * day)
		testkit.Process(t, svc)
		if s := testkit.Status(t, acme, waiting); s.State != queue.Completed || s.Items[0].Destination != d.ID {
			t.Errorf("%s", testkit.Show(s))
		}
	})
}

// Of two calls at once, one to retry a dead letter and one to remove it, no item comes out without
// its delivery.
func TestRetentionAndRetryAtOnce(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		c := testkit.NewClock()
		c.Set(time.Now())
		f := &testkit.Fake{Do: func(context.Context, *handler.Request) (*handler.Result, error) {
			return nil, handler.Permanent(errors.New("no"))
		}}
		svc := testkit.Service(t, db, f, c.Option(), delivery.WithRetention(delivery.Retention{Deliveries: time.Hour}))
		acme := svc.Org("acme")
		testkit.Create(t, acme, destination.Spec{Default: true})
		receipts := testkit.Try(acme.DeliverMany(t.Context(), testkit.Topics(200))).Must(t)
		testkit.Process(t, svc)
		c.Advance(2 * time.Hour)
		var wg sync.WaitGroup
		wg.Go(func() {
			for _, r := range receipts {
				if err := acme.Retry(t.Context(), r.ID); err != nil && !errors.Is(err, delivery.ErrNotFound) && !errors.Is(err, delivery.ErrEnded) {
					t.Error(err)
				}
			}
		})
		wg.Go(func() {
			if _, err := svc.Maintain(t.Context()); err != nil {
				t.Error(err)
			}
		})
		wg.Wait()
		var orphans int
		if err := db.QueryRowContext(t.Context(), `select count(*) from delivery_queue q where not exists (
			select 1 from delivery_deliveries d where d.organization_id = q.organization_id and d.id = q.delivery_id)`).Scan(&orphans); err != nil {
			t.Fatal(err)
		}
		if orphans != 0 {
			t.Errorf("%d items have no delivery", orphans)
		}
	})
}
