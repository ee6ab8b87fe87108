package systemtest_test

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
	"github.com/deliverykit/delivery/internal/testkit"
	"github.com/deliverykit/delivery/payload"
)

// slow has the service take every look for slow, so that it goes by what it knows of lanes, with a
// whole look now and then.
func slow(s *settings.Builder) error {
	s.SlowLook = 1
	return nil
}

// What was numbered early and committed late is found, though the service has gone on to later
// numbers.
func TestLateCommitsAreFound(t *testing.T) {
	t.Parallel()
	for _, name := range testkit.Databases[1:] { // SQLite has one writer
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := testkit.Open(t, name)
			var delivered atomic.Int64
			f := &testkit.Fake{Do: func(context.Context, *handler.Request) (*handler.Result, error) {
				delivered.Add(1)
				return nil, nil
			}}
			svc := testkit.Service(t, db, f, slow, delivery.WithPollInterval(10*time.Millisecond))
			acme := svc.Org("acme")
			for range 3 {
				testkit.Create(t, acme, destination.Spec{Default: true})
			}
			testkit.Run(t, svc)
			ctx := testkit.Within(t, time.Minute)
			want := int64(0)
			for range 5 {
				tx, err := db.BeginTx(t.Context(), nil)
				if err != nil {
					t.Fatal(err)
				}
				testkit.Try(acme.DeliverTx(t.Context(), tx, delivery.Request{Payload: payload.JSON("late")})).Must(t)
				for range 5 {
					testkit.Try(acme.DeliverMany(t.Context(), testkit.Topics(40))).Must(t)
				}
				want += 3 * 200
				testkit.WaitFor(ctx, t, func() bool { return delivered.Load() == want })
				if err := tx.Commit(); err != nil {
					t.Fatal(err)
				}
				want += 3
				testkit.WaitFor(ctx, t, func() bool { return delivered.Load() == want })
			}
		})
	}
}

// Priorities, retries and leases hold by partial looks as they do by whole ones.
func TestPartialLooks(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		var delivered atomic.Int64
		f := &testkit.Fake{Do: func(_ context.Context, r *handler.Request) (*handler.Result, error) {
			if r.Attempt < 3 {
				return nil, handler.RateLimited(0, context.DeadlineExceeded)
			}
			delivered.Add(1)
			return nil, nil
		}}
		svc := testkit.Service(t, db, f, slow, patient10ms())
		acme := svc.Org("acme")
		for _, l := range []destination.Limits{{}, {Ordered: true}, {Concurrency: 2}} {
			testkit.Create(t, acme, destination.Spec{Default: true, Limits: l})
		}
		testkit.Run(t, svc)
		reqs := testkit.Topics(11)
		for i := range reqs {
			reqs[i].Priority = delivery.Priority(i%11 - 5)
		}
		testkit.Try(acme.DeliverMany(t.Context(), reqs)).Must(t)
		testkit.WaitFor(testkit.Within(t, time.Minute), t, func() bool { return delivered.Load() == 33 })
	})
}
