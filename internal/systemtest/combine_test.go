package systemtest_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/deliverykit/delivery"
	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/internal/testkit"
	"github.com/deliverykit/delivery/payload"
)

// Calls that share transactions have each the outcome that they would have alone.
func TestDeliverTogether(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		svc := testkit.Service(t, db, &testkit.Fake{})
		const organizations, calls = 3, 25
		var wg sync.WaitGroup
		var accepted, duplicates sync.Map
		for i := range organizations {
			org := svc.Org(fmt.Sprint("org", i))
			d := testkit.Create(t, org, destination.Spec{})
			stranger := testkit.Create(t, svc.Org(fmt.Sprint("other", i)), destination.Spec{})
			for k := range calls {
				wg.Go(func() {
					req := delivery.Request{Payload: payload.JSON(k), Destinations: []string{d.ID}}
					switch k % 5 {
					case 1:
						req.Destinations = append(req.Destinations, stranger.ID)
					case 2:
						req.IdempotencyKey = "same"
						req.Payload = payload.JSON("same")
					case 3:
						req.IdempotencyKey = "taken"
					}
					r, err := org.Deliver(t.Context(), req)
					var conflict *delivery.ConflictError
					switch {
					case k%5 == 1:
						if !errors.Is(err, delivery.ErrNotFound) {
							t.Errorf("a destination of another organization: %v", err)
						}
					case k%5 == 3 && errors.As(err, &conflict):
						duplicates.Store([2]int{i, k}, true)
					case err != nil:
						t.Error(err)
					case r.Duplicate:
						duplicates.Store([2]int{i, k}, true)
					default:
						accepted.Store(r.ID, true)
					}
				})
			}
		}
		wg.Wait()
		size := func(m *sync.Map) (n int) {
			m.Range(func(any, any) bool { n++; return true })
			return n
		}
		// Of five calls each, two of the five kinds are accepted whole, and one call of each key.
		if a, d := size(&accepted), size(&duplicates); a != organizations*12 || d != organizations*8 {
			t.Errorf("%d were accepted and %d were not the first with their key", a, d)
		}
		if n := testkit.Count(t, db, "delivery_deliveries"); n != organizations*12 {
			t.Errorf("%d deliveries are stored", n)
		}
		if n := testkit.Count(t, db, "delivery_queue"); n != organizations*12 {
			t.Errorf("%d items are stored", n)
		}
	})
}

// A call that waits for a lock keeps no other waiting, and one that is cancelled meanwhile is not
// accepted.
func TestDeliverBesideOneThatWaits(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"lib/pq", "pgx"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := testkit.Open(t, name)
			svc := testkit.Service(t, db, &testkit.Fake{})
			acme, other := svc.Org("acme"), svc.Org("other")
			testkit.Create(t, acme, destination.Spec{Default: true})
			testkit.Create(t, other, destination.Spec{Default: true})
			tx := testkit.Try(db.BeginTx(t.Context(), nil)).Must(t)
			first := testkit.Try(acme.DeliverTx(t.Context(), tx, delivery.Request{Payload: payload.JSON(1), IdempotencyKey: "k"})).Must(t)

			var waiting sync.WaitGroup
			for range 4 {
				waiting.Go(func() {
					r, err := acme.Deliver(t.Context(), delivery.Request{Payload: payload.JSON(1), IdempotencyKey: "k"})
					if err != nil || !r.Duplicate || r.ID != first.ID {
						t.Errorf("%+v, %v", r, err)
					}
				})
			}
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			var others sync.WaitGroup
			others.Go(func() {
				_, err := acme.Deliver(ctx, delivery.Request{Payload: payload.JSON(1), IdempotencyKey: "k"})
				if err == nil || ctx.Err() == nil {
					t.Errorf("a call that could not be accepted in its time: %v", err)
				}
			})
			for i := range 40 {
				others.Go(func() {
					if _, err := other.Deliver(t.Context(), delivery.Request{Payload: payload.JSON(i)}); err != nil {
						t.Error(err)
					}
				})
			}
			others.Wait()
			if err := tx.Commit(); err != nil {
				t.Fatal(err)
			}
			waiting.Wait()
			if n := testkit.Count(t, db, "delivery_deliveries"); n != 41 {
				t.Errorf("%d deliveries are stored", n)
			}
		})
	}
}
