package delivery_test

import (
	"context"
	"database/sql"
	"sync/atomic"
	"testing"
	"time"

	"github.com/deliverykit/delivery"
	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/internal/settings"
	"github.com/deliverykit/delivery/payload"
)

// slow has the service take every look for slow, so that it goes by what it knows of lanes, with a whole look now and then.
func slow(s *settings.Builder) error {
	s.SlowLook = 1
	return nil
}

// What was numbered early and committed late is found, though the service has gone on to later numbers.
func TestLateCommitsAreFound(t *testing.T) {
	t.Parallel()
	for _, name := range databases[1:] { // SQLite has one writer
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := open(t, name)
			var delivered atomic.Int64
			f := &fake{deliver: func(context.Context, *handler.Request) (*handler.Result, error) {
				delivered.Add(1)
				return nil, nil
			}}
			svc := service(t, db, f, slow, delivery.WithPollInterval(10*time.Millisecond))
			acme := svc.Org("acme")
			for range 3 {
				create(t, acme, destination.Spec{Default: true})
			}
			run(t, svc)
			ctx := within(t, time.Minute)
			want := int64(0)
			for range 5 {
				tx, err := db.BeginTx(t.Context(), nil)
				if err != nil {
					t.Fatal(err)
				}
				must[*delivery.Receipt](t)(acme.DeliverTx(t.Context(), tx, delivery.Request{Payload: payload.JSON("late")}))
				for range 5 {
					must[[]*delivery.Receipt](t)(acme.DeliverMany(t.Context(), topics(40)))
				}
				want += 3 * 200
				waitFor(ctx, t, func() bool { return delivered.Load() == want })
				if err := tx.Commit(); err != nil {
					t.Fatal(err)
				}
				want += 3
				waitFor(ctx, t, func() bool { return delivered.Load() == want })
			}
		})
	}
}

// Priorities, retries and leases hold by partial looks as they do by whole ones.
func TestPartialLooks(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		var delivered atomic.Int64
		f := &fake{deliver: func(_ context.Context, r *handler.Request) (*handler.Result, error) {
			if r.Attempt < 3 {
				return nil, handler.RateLimited(0, context.DeadlineExceeded)
			}
			delivered.Add(1)
			return nil, nil
		}}
		svc := service(t, db, f, slow, patient10ms())
		acme := svc.Org("acme")
		for _, l := range []destination.Limits{{}, {Ordered: true}, {Concurrency: 2}} {
			create(t, acme, destination.Spec{Default: true, Limits: l})
		}
		run(t, svc)
		reqs := topics(11)
		for i := range reqs {
			reqs[i].Priority = delivery.Priority(i%11 - 5)
		}
		must[[]*delivery.Receipt](t)(acme.DeliverMany(t.Context(), reqs))
		waitFor(within(t, time.Minute), t, func() bool { return delivered.Load() == 33 })
	})
}
