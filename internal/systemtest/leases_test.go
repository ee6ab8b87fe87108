package systemtest_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/deliverykit/delivery"
	"github.com/deliverykit/delivery/access"
	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/event"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/internal/testkit"
	"github.com/deliverykit/delivery/payload"
	"github.com/deliverykit/delivery/queue"
)

// An attempt that ignores its timeout loses its lease, and what was claimed with it keeps theirs.
func TestStuckAttemptsLoseTheirLease(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		var stuck, good atomic.Int64
		again, end := make(chan struct{}), make(chan struct{})
		f := &testkit.Fake{Do: func(ctx context.Context, r *handler.Request) (*handler.Result, error) {
			switch r.Topic {
			case "quick":
				return nil, nil
			case "stuck":
				switch stuck.Add(1) {
				case 1:
					<-end
				case 2:
					close(again)
				}
				return nil, nil
			}
			good.Add(1)
			select {
			case <-again:
				return nil, nil
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			}
		}}
		svc := testkit.Service(t, db, f, testkit.Lease(time.Second))
		acme := svc.Org("acme")
		var reqs []delivery.Request
		for _, topic := range []string{"stuck", "good", "quick"} { // one claim takes them all
			timeout := destination.Hours(1)
			if topic == "stuck" {
				timeout = destination.Duration(50 * time.Millisecond)
			}
			testkit.Create(t, acme, destination.Spec{Default: true, DefaultTopics: []string{topic}, Limits: destination.Limits{Timeout: timeout}})
			reqs = append(reqs, delivery.Request{Topic: topic, Payload: payload.JSON(1)})
		}
		receipts := testkit.Try(acme.DeliverMany(t.Context(), reqs)).Must(t)
		testkit.Run(t, svc)
		t.Cleanup(func() { close(end) }) // before run waits for it
		ctx := testkit.Within(t, time.Minute)
		for i, want := range []int{2, 1, 1} {
			s := testkit.Try(acme.WaitFor(ctx, receipts[i].ID)).Must(t)
			attempts := s.Items[0].Attempts
			if s.State != queue.Completed || len(attempts) != want || attempts[0].Reason == queue.LeaseLost != (want == 2) {
				t.Errorf("%s is %s", s.Topic, testkit.Show(s))
			}
		}
		if stuck.Load() != 2 || good.Load() != 1 {
			t.Errorf("%d and %d attempts", stuck.Load(), good.Load())
		}
		testkit.WaitFor(ctx, t, func() bool { return testkit.Count(t, db, "delivery_leases") == 0 })
	})
}

// However many leases end at once, and whether anything is left of them, one pass takes up all that
// was under them.
func TestManyLostLeases(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		const leases, empty = 60, 200
		c := testkit.NewClock()
		svc := testkit.Service(t, db, &testkit.Fake{}, c.Option())
		acme := svc.Org("acme")
		testkit.Create(t, acme, destination.Spec{Default: true})
		for _, r := range testkit.Try(acme.DeliverMany(t.Context(), testkit.Topics(leases))).Must(t) {
			testkit.LeaseItems(t, db, c.Now().Add(30*time.Second), 0, `delivery_id = '`+r.ID+`'`)
		}
		for range empty { // which end first
			testkit.LeaseItems(t, db, c.Now().Add(20*time.Second), 0, `1 = 0`)
		}
		if pass := testkit.Try(svc.ProcessDue(t.Context())).Must(t); pass.Attempts != 0 {
			t.Errorf("leased items were attempted: %+v", pass)
		}
		c.Advance(time.Minute)
		if pass := testkit.Try(svc.ProcessDue(t.Context())).Must(t); pass.Delivered != leases {
			t.Errorf("pass is %+v", pass)
		}
		if n := testkit.Count(t, db, "delivery_leases"); n != 0 {
			t.Errorf("%d leases are left", n)
		}
	})
}

// flakyDB is a database that can be away.
type flakyDB struct {
	*sql.DB
	away atomic.Bool
}

func (f *flakyDB) BeginTx(ctx context.Context, opts *sql.TxOptions) (*sql.Tx, error) {
	if f.away.Load() {
		return nil, errors.New("the database is away")
	}
	return f.DB.BeginTx(ctx, opts)
}

// writerFunc is a writer that is a function.
type writerFunc func(b []byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

// An outcome that cannot be recorded for as long as its lease leaves the item to be attempted
// again, also while others that were claimed with it go on.
func TestOutcomesThatCannotBeRecorded(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		flaky := &flakyDB{DB: db}
		given := make(chan struct{}) // up the outcome was
		told := sync.OnceFunc(func() { close(given) })
		var first, second atomic.Int64
		began := make(chan struct{})
		recorded := make(chan struct{})
		f := &testkit.Fake{Do: func(ctx context.Context, r *handler.Request) (*handler.Result, error) {
			switch {
			case r.Topic == "first" && first.Add(1) == 1:
				<-began
				flaky.away.Store(true)
			case r.Topic == "second":
				if second.Add(1) == 1 {
					close(began)
				}
				select {
				case <-recorded:
				case <-ctx.Done():
					return nil, context.Cause(ctx)
				}
			}
			return nil, nil
		}}
		svc := testkit.Service(t, flaky, f, testkit.Lease(time.Second), testkit.LogTo(writerFunc(func(b []byte) (int, error) {
			if bytes.Contains(b, []byte("outcomes could not be recorded")) {
				told()
			}
			return len(b), nil
		})))
		acme := svc.Org("acme")
		var reqs []delivery.Request
		for _, topic := range []string{"first", "second"} { // one claim takes both
			testkit.Create(t, acme, destination.Spec{Default: true, DefaultTopics: []string{topic}})
			reqs = append(reqs, delivery.Request{Topic: topic, Payload: payload.JSON(1)})
		}
		receipts := testkit.Try(acme.DeliverMany(t.Context(), reqs)).Must(t)
		testkit.Run(t, svc)
		ctx := testkit.Within(t, time.Minute)
		select {
		case <-given:
		case <-ctx.Done():
			t.Fatal("the outcome was recorded")
		}
		flaky.away.Store(false)
		s := testkit.Try(acme.WaitFor(ctx, receipts[0].ID)).Must(t)
		if attempts := s.Items[0].Attempts; s.State != queue.Completed || len(attempts) != 2 || attempts[0].Reason != queue.LeaseLost || first.Load() != 2 {
			t.Errorf("status is %s", testkit.Show(s))
		}
		close(recorded)
		if s := testkit.Try(acme.WaitFor(ctx, receipts[1].ID)).Must(t); s.State != queue.Completed {
			t.Errorf("status is %s", testkit.Show(s))
		}
	})
}

// How far a long attempt has come is told here, and seen everywhere, by those who may see it.
func TestProgressOfLongAttempts(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		seen := make(chan struct{})
		f := &testkit.Fake{Do: func(ctx context.Context, r *handler.Request) (*handler.Result, error) {
			tick := time.NewTicker(10 * time.Millisecond)
			defer tick.Stop()
			for done := int64(1); ; done++ {
				r.Progress(done)
				select {
				case <-tick.C:
				case <-seen:
					return nil, errors.New("cut off")
				case <-ctx.Done():
					return nil, ctx.Err()
				}
			}
		}}
		svc := testkit.Service(t, db, f, testkit.Lease(time.Second), delivery.WithAuthorizer(blind{}))
		acme := svc.Org("acme")
		d := testkit.Create(t, acme, destination.Spec{Default: true})
		ctx := testkit.Within(t, time.Minute)
		events := acme.Subscribe(ctx, event.Filter{Kinds: []event.Kind{event.ItemProgress}})
		others := svc.Org("other").Subscribe(ctx, event.Filter{})
		denied := acme.Subscribe(access.WithActor(ctx, access.Actor{ID: "a"}), event.Filter{})
		receipt := testkit.Try(acme.Deliver(ctx, delivery.Request{Payload: payload.JSON(1)})).Must(t)
		testkit.Run(t, svc)
		item := receipt.ID + "-1"
		select {
		case e := <-events:
			if e.Item != item || e.Destination != d.ID || e.Organization != "acme" || e.Progress < 1 {
				t.Errorf("heard %+v", e)
			}
		case <-ctx.Done():
			t.Fatal("no progress was heard")
		}
		elsewhere := testkit.Service(t, db, f).Org("acme")
		look := func() delivery.Item {
			return testkit.Try(elsewhere.Status(ctx, receipt.ID)).Must(t).Items[0]
		}
		testkit.WaitFor(ctx, t, func() bool { return look().Progress > 0 })
		close(seen)
		testkit.WaitFor(ctx, t, func() bool { return len(look().Attempts) > 0 })
		if i := look(); i.Progress != 0 {
			t.Errorf("an item whose attempt has ended shows %d bytes of progress", i.Progress)
		}
		if got := slices.Concat(testkit.Heard(others), testkit.Heard(denied)); len(got) > 0 {
			t.Errorf("others heard %+v", got)
		}
	})
}

// blind may do everything but read deliveries.
type blind struct{}

func (blind) Authorize(_ context.Context, _ access.Actor, _ string, action access.Action) error {
	if action == access.ReadDeliveries {
		return access.ErrDenied
	}
	return nil
}
