package delivery_test

import (
	"context"
	"database/sql"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/deliverykit/delivery"
	"github.com/deliverykit/delivery/access"
	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/payload"
	"github.com/deliverykit/delivery/queue"
)

// An attempt that ignores its timeout loses its lease, and what was claimed with it keeps theirs.
func TestStuckAttemptsLoseTheirLease(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		var stuck, good atomic.Int64
		again, end := make(chan struct{}), make(chan struct{})
		f := &fake{deliver: func(ctx context.Context, r *handler.Request) (*handler.Result, error) {
			if r.Topic == "stuck" {
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
		svc := service(t, db, f, lease(time.Second))
		acme := svc.Org("acme")
		for _, timeout := range []destination.Duration{destination.Duration(50 * time.Millisecond), destination.Hours(1)} {
			topic := map[bool]string{true: "stuck", false: "good"}[timeout < destination.Hours(1)]
			create(t, acme, destination.Spec{Default: true, DefaultTopics: []string{topic}, Limits: destination.Limits{Timeout: timeout}})
		}
		receipts := must[[]*delivery.Receipt](t)(acme.DeliverMany(t.Context(), []delivery.Request{
			{Topic: "stuck", Payload: payload.JSON(1)}, {Topic: "good", Payload: payload.JSON(2)},
		}))
		run(t, svc)
		t.Cleanup(func() { close(end) }) // before run waits for it
		ctx := within(t, time.Minute)
		for i, want := range []int{2, 1} {
			s := must[*delivery.Status](t)(acme.WaitFor(ctx, receipts[i].ID))
			attempts := s.Items[0].Attempts
			if s.State != queue.Completed || len(attempts) != want || attempts[0].Reason == queue.LeaseLost != (want == 2) {
				t.Errorf("%s is %s", s.Topic, show(s))
			}
		}
		if stuck.Load() != 2 || good.Load() != 1 {
			t.Errorf("%d and %d attempts", stuck.Load(), good.Load())
		}
		waitFor(ctx, t, func() bool { return count(t, db, "delivery_leases") == 0 })
	})
}

// How far a long attempt has come is told here, and seen everywhere, by those who may see it.
func TestProgressOfLongAttempts(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		seen := make(chan struct{})
		f := &fake{deliver: func(ctx context.Context, r *handler.Request) (*handler.Result, error) {
			tick := time.NewTicker(10 * time.Millisecond)
			defer tick.Stop()
			for done := int64(1); ; done++ {
				r.Progress(done)
				select {
				case <-tick.C:
				case <-seen:
					return nil, nil
				case <-ctx.Done():
					return nil, ctx.Err()
				}
			}
		}}
		svc := service(t, db, f, lease(time.Second), delivery.WithAuthorizer(blind{}))
		acme := svc.Org("acme")
		d := create(t, acme, destination.Spec{Default: true})
		ctx := within(t, time.Minute)
		events := acme.Subscribe(ctx, delivery.EventFilter{Kinds: []delivery.EventKind{delivery.ItemProgress}})
		others := svc.Org("other").Subscribe(ctx, delivery.EventFilter{})
		denied := acme.Subscribe(access.WithActor(ctx, access.Actor{ID: "a"}), delivery.EventFilter{})
		receipt := must[*delivery.Receipt](t)(acme.Deliver(ctx, delivery.Request{Payload: payload.JSON(1)}))
		run(t, svc)
		item := receipt.ID + "-1"
		select {
		case e := <-events:
			if e.Item != item || e.Destination != d.ID || e.Organization != "acme" || e.Progress < 1 {
				t.Errorf("heard %+v", e)
			}
		case <-ctx.Done():
			t.Fatal("no progress was heard")
		}
		elsewhere := service(t, db, f).Org("acme")
		progress := func() int64 {
			return must[*delivery.Status](t)(elsewhere.Status(ctx, receipt.ID)).Items[0].Progress
		}
		waitFor(ctx, t, func() bool { return progress() > 0 })
		close(seen)
		must[*delivery.Status](t)(acme.WaitFor(ctx, receipt.ID))
		if n := progress(); n != 0 {
			t.Errorf("an item that has ended shows %d bytes of progress", n)
		}
		if got := slices.Concat(heard(others), heard(denied)); len(got) > 0 {
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
