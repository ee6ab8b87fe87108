package delivery_test

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/deliverykit/delivery"
	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/internal/sqlstore"
	"github.com/deliverykit/delivery/payload"
	"github.com/deliverykit/delivery/queue"
	"github.com/deliverykit/delivery/retry"
)

// switchable is a handler whose destinations fail as long as they are said to.
type switchable struct {
	fake
	failing sync.Map // error by destination
}

func newSwitchable() *switchable {
	s := &switchable{}
	s.deliver = func(_ context.Context, r *handler.Request) (*handler.Result, error) {
		if err, ok := s.failing.Load(r.Destination.ID); ok {
			return nil, err.(error)
		}
		return &handler.Result{Reference: handler.Reference{ID: "theirs"}}, nil
	}
	return s
}

func (s *switchable) fail(d *destination.Destination, err error) { s.failing.Store(d.ID, err) }

func (s *switchable) heal(d *destination.Destination) { s.failing.Delete(d.ID) }

var errNever = handler.Permanent(errors.New("never"))

func send(t *testing.T, org *delivery.Org, req delivery.Request) string {
	t.Helper()
	if req.Payload.IsZero() {
		req.Payload = payload.JSON("x")
	}
	return must[*delivery.Receipt](t)(org.Deliver(t.Context(), req)).ID
}

func process(t *testing.T, svc *delivery.DeliveryService) delivery.Pass {
	t.Helper()
	return must[delivery.Pass](t)(svc.ProcessDue(t.Context()))
}

func status(t *testing.T, org *delivery.Org, id string) *delivery.Status {
	t.Helper()
	return must[*delivery.Status](t)(org.Status(t.Context(), id))
}

func TestRetryOneOfSeveralItems(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		c := newClock()
		f := newSwitchable()
		svc := service(t, db, f, c.option(), delivery.WithRetry(retry.Policy{Retries: 1, Jitter: -1}), delivery.WithWorkers(1))
		acme := svc.Org("acme")
		good, one, two := create(t, acme, destination.Spec{Default: true}), create(t, acme, destination.Spec{Default: true}), create(t, acme, destination.Spec{Default: true})
		f.fail(one, errNever)
		f.fail(two, errors.New("not now"))
		id := send(t, acme, delivery.Request{})
		process(t, svc)
		c.advance(time.Minute)
		process(t, svc)
		if s := status(t, acme, id); s.State != queue.PartiallyFailed || s.Items[1].Reason != queue.Permanent || s.Items[2].Reason != queue.Exhausted {
			t.Fatalf("status is %s", show(s))
		}
		before := f.count()
		f.heal(one)
		if err := acme.Retry(t.Context(), id, one.ID); err != nil {
			t.Fatal(err)
		}
		s := status(t, acme, id)
		if i := s.Items[1]; s.State != queue.InProgress || i.State != queue.Ready || i.Reason != queue.None || !i.EndedAt.IsZero() ||
			len(i.Attempts) != 2 || i.Attempts[1].State != queue.Ready || i.Attempts[1].Reason != queue.Requested {
			t.Errorf("status is %s", show(s))
		}
		if s.Items[0].State != queue.Delivered || s.Items[2].State != queue.Dead {
			t.Errorf("other items were touched: %s", show(s))
		}
		if n := countDead(t, acme, delivery.DeadFilter{}); n != 1 {
			t.Errorf("%d dead letters", n)
		}
		process(t, svc)
		s = status(t, acme, id)
		if i := s.Items[1]; s.State != queue.PartiallyFailed || i.State != queue.Delivered || i.Reference.ID != "theirs" || i.Attempts[2].Number != 1 {
			t.Errorf("status is %s", show(s))
		}
		if last := f.requests[before]; f.count() != before+1 || last.MessageID != s.Items[1].ID || last.Attempt != 1 {
			t.Errorf("attempts %+v", f.requests[before:])
		}

		// The other one has all of its policy's attempts again, and is a dead letter anew.
		c.advance(time.Hour)
		if err := acme.Retry(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		if pass := process(t, svc); pass.Retrying != 1 {
			t.Errorf("pass is %+v", pass)
		}
		if i := status(t, acme, id).Items[2]; i.State != queue.Scheduled || i.Reason != queue.Backoff || i.NextAttempt.IsZero() {
			t.Errorf("item is %+v", i)
		}
		c.advance(time.Minute)
		process(t, svc)
		s = status(t, acme, id)
		if i := s.Items[2]; i.Reason != queue.Exhausted || !i.EndedAt.Equal(c.now()) || len(i.Attempts) != 5 || i.Attempts[4].Number != 2 {
			t.Errorf("status is %s", show(s))
		}
		if n := countDead(t, acme, delivery.DeadFilter{Destination: two.ID}); n != 1 {
			t.Errorf("%d dead letters", n)
		}
		// A duplicate's receipt names each item once.
		if w := must[*delivery.Status](t)(acme.WaitFor(within(t, 20*time.Second), id)); len(w.Items) != 3 {
			t.Errorf("status is %s", show(w))
		}
		for name, c := range map[string]struct {
			id   string
			to   []string
			want error
		}{
			"delivered":           {id, []string{good.ID}, delivery.ErrNotRetryable},
			"one delivered":       {id, []string{two.ID, good.ID}, delivery.ErrNotRetryable},
			"no item":             {id, []string{create(t, acme, destination.Spec{}).ID}, delivery.ErrNotFound},
			"no id":               {id, []string{"x"}, delivery.ErrNotFound},
			"no delivery":         {good.ID, nil, delivery.ErrNotFound},
			"no id of a delivery": {"x", nil, delivery.ErrNotFound},
		} {
			if err := acme.Retry(t.Context(), c.id, c.to...); !errors.Is(err, c.want) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if err := svc.Org("other").Retry(t.Context(), id); !errors.Is(err, delivery.ErrNotFound) {
			t.Errorf("another organization: %v", err)
		}
		if n := count(t, db, "delivery_queue"); n != 0 {
			t.Errorf("what was refused left %d items", n)
		}
	})
}

func TestRetryOfWhatWaits(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		c := newClock()
		f := newSwitchable()
		svc := service(t, db, f, c.option(), delivery.WithRetry(retry.Policy{Retries: 2, First: time.Hour, Max: time.Hour, Jitter: -1}))
		acme := svc.Org("acme")
		dead, waits, later := create(t, acme, destination.Spec{Default: true}), create(t, acme, destination.Spec{Default: true}), create(t, acme, destination.Spec{})
		f.fail(dead, errNever)
		f.fail(waits, errors.New("not now"))
		id := send(t, acme, delivery.Request{Destinations: []string{dead.ID, waits.ID, later.ID},
			PerDestination: map[string]delivery.Override{later.ID: {NotBefore: c.now().Add(24 * time.Hour)}}})
		process(t, svc)
		if err := acme.Retry(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		s := status(t, acme, id)
		if s.Items[0].State != queue.Ready || s.Items[1].State != queue.Ready || s.Items[2].Reason != queue.NotBefore {
			t.Errorf("status is %s", show(s))
		}
		if err := acme.Retry(t.Context(), id); err != nil {
			t.Errorf("of what is ready: %v", err)
		}
		if got := status(t, acme, id); show(got) != show(s) {
			t.Errorf("the second call changes %s to %s", show(s), show(got))
		}
		process(t, svc)
		s = status(t, acme, id)
		if i := s.Items[1]; i.State != queue.Scheduled || i.Attempts[len(i.Attempts)-1].Number != 2 {
			t.Errorf("the attempts of what waited are charged on: %s", show(s))
		}
		if err := acme.Retry(t.Context(), id, later.ID); err != nil || status(t, acme, id).Items[2].Reason != queue.NotBefore {
			t.Errorf("%v, status is %s", err, show(s))
		}
	})
}

func TestWhatCannotBeRetried(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		c := newClock()
		f := newSwitchable()
		svc := service(t, db, f, c.option())
		acme := svc.Org("acme")
		kept, deleted := create(t, acme, destination.Spec{}), create(t, acme, destination.Spec{})
		f.fail(kept, errNever)
		f.fail(deleted, errNever)
		late := send(t, acme, delivery.Request{Destinations: []string{kept.ID}, Deadline: c.now().Add(time.Hour)})
		homeless := send(t, acme, delivery.Request{Destinations: []string{kept.ID, deleted.ID}})
		empty := send(t, acme, delivery.Request{Destinations: []string{kept.ID}, Payload: payload.Bytes("x", make([]byte, 100_000))})
		cancelled := send(t, acme, delivery.Request{Destinations: []string{kept.ID}, NotBefore: c.now().Add(time.Hour)})
		if err := acme.Cancel(t.Context(), cancelled); err != nil {
			t.Fatal(err)
		}
		process(t, svc)
		if err := acme.Destinations().Delete(t.Context(), deleted.ID, destination.RefusePending); err != nil {
			t.Fatal(err)
		}
		execSQL(t, db, `delete from delivery_payloads`)
		c.advance(2 * time.Hour)
		for _, refused := range []struct{ id, text string }{
			{late, "deadline, 2030-01-02T04:04:05Z, has passed"}, {homeless, "destination was deleted"}, {empty, "payload is gone"},
			{cancelled, "no item"},
		} {
			before := show(status(t, acme, refused.id))
			if err := acme.Retry(t.Context(), refused.id); !errors.Is(err, delivery.ErrNotRetryable) || !strings.Contains(err.Error(), refused.text) {
				t.Errorf("%q: %v", refused.text, err)
			}
			if after := show(status(t, acme, refused.id)); after != before {
				t.Errorf("%q: status was %s, is %s", refused.text, before, after)
			}
		}
		if err := acme.Retry(t.Context(), homeless, kept.ID); err != nil {
			t.Errorf("the other item: %v", err)
		}
		all := delivery.DeadFilter{All: true}
		if r := must[delivery.Retried](t)(acme.DeadLetters().Retry(t.Context(), all)); r != (delivery.Retried{Refused: 3}) {
			t.Errorf("retried %+v", r)
		}
		if n := countDead(t, acme, all); n != 3 {
			t.Errorf("%d dead letters", n)
		}
	})
}

// However many calls there are, a dead letter comes back once.
func TestRetryTwiceAtOnce(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		f := newSwitchable()
		svc := service(t, db, f)
		acme := svc.Org("acme")
		d := create(t, acme, destination.Spec{Default: true})
		f.fail(d, errNever)
		var ids []string
		for range 5 {
			ids = append(ids, send(t, acme, delivery.Request{}))
		}
		process(t, svc)
		var wg sync.WaitGroup
		var revived atomic.Int64
		for i := range 6 {
			wg.Go(func() {
				if i%3 == 0 {
					r, err := acme.DeadLetters().Retry(t.Context(), delivery.DeadFilter{Destination: d.ID})
					if err != nil {
						t.Error(err)
					}
					revived.Add(int64(r.Items))
					return
				}
				for _, id := range ids {
					if err := acme.Retry(t.Context(), id); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		if n := count(t, db, "delivery_queue"); n != len(ids) || revived.Load() > int64(n) {
			t.Errorf("%d items, %d by filter", n, revived.Load())
		}
		f.heal(d)
		if pass := process(t, svc); pass.Delivered != len(ids) {
			t.Errorf("pass is %+v", pass)
		}
		for _, id := range ids {
			if s := status(t, acme, id); s.State != queue.Completed || len(s.Items[0].Attempts) != 3 {
				t.Errorf("status is %s", show(s))
			}
		}
	})
}

// Retrying while workers end the same items loses none, and gives none two places.
func TestRetryRacesWithWorkers(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		var left atomic.Int64
		left.Store(60)
		f := &fake{deliver: func(context.Context, *handler.Request) (*handler.Result, error) {
			if left.Add(-1) >= 0 {
				return nil, errNever
			}
			return nil, nil
		}}
		svc := service(t, db, f, delivery.WithWorkers(4), delivery.WithPollInterval(10*time.Millisecond))
		acme := svc.Org("acme")
		create(t, acme, destination.Spec{Default: true})
		create(t, acme, destination.Spec{Default: true})
		ids := []string{send(t, acme, delivery.Request{}), send(t, acme, delivery.Request{})}
		run(t, svc)
		ctx := within(t, time.Minute)
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Go(func() {
				for ctx.Err() == nil {
					id := ids[i%2]
					if err := acme.Retry(ctx, id); err != nil && !errors.Is(err, delivery.ErrNotRetryable) {
						t.Error(err)
						return
					}
					s, err := acme.Status(ctx, id)
					if err != nil {
						t.Error(err)
						return
					}
					if s.State == queue.Completed {
						return
					}
				}
			})
		}
		wg.Wait()
		attempts, ends, returns := 0, 0, 0
		for _, id := range ids {
			s := status(t, acme, id)
			if s.State != queue.Completed {
				t.Errorf("status is %s", show(s))
			}
			for _, i := range s.Items {
				for _, a := range i.Attempts {
					switch {
					case a.Reason == queue.Requested:
						returns++
					case a.State.Ended():
						ends++
					}
					attempts++
				}
			}
		}
		if f.count() != 64 || ends != 64 || returns != 60 || attempts != 124 {
			t.Errorf("%d attempts made, %d ends, %d returns and %d rows recorded", f.count(), ends, returns, attempts)
		}
		if n := count(t, db, "delivery_dead_letters") + count(t, db, "delivery_queue"); n != 0 {
			t.Errorf("%d rows are left", n)
		}
	})
}

// An attempt that is under way goes on: retrying its item is no second one.
func TestRetryOfWhatIsUnderWay(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		var acme *delivery.Org
		f := &fake{}
		f.deliver = func(ctx context.Context, r *handler.Request) (*handler.Result, error) {
			if f.count() > 1 {
				return nil, nil
			}
			if err := acme.Retry(ctx, r.DeliveryID, r.Destination.ID); err != nil {
				t.Error(err)
			}
			return nil, errNever
		}
		svc := service(t, db, f)
		acme = svc.Org("acme")
		create(t, acme, destination.Spec{Default: true})
		id := send(t, acme, delivery.Request{})
		process(t, svc)
		if s := status(t, acme, id); s.State != queue.Failed || len(s.Items[0].Attempts) != 1 {
			t.Errorf("status is %s", show(s))
		}
		if err := acme.Retry(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		process(t, svc)
		if s := status(t, acme, id); s.State != queue.Completed {
			t.Errorf("status is %s", show(s))
		}
	})
}

// A stale worker of before the retry is refused after it.
func TestStaleWorkerAfterARetry(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		c := newClock()
		began, wake := make(chan struct{}), make(chan struct{})
		stale := &fake{deliver: func(context.Context, *handler.Request) (*handler.Result, error) {
			close(began)
			<-wake
			return &handler.Result{Reference: handler.Reference{ID: "stale"}}, nil
		}}
		old := service(t, db, stale, c.option(), lease(time.Hour))
		acme := old.Org("acme")
		create(t, acme, destination.Spec{Default: true})
		id := send(t, acme, delivery.Request{})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() {
			_, err := old.ProcessDue(ctx)
			done <- err
		}()
		<-began
		cancel() // it claims no more
		c.advance(2 * time.Hour)
		sweepOnly(t, db, c) // its lease is lost
		svc := service(t, db, &fake{deliver: func(context.Context, *handler.Request) (*handler.Result, error) { return nil, errNever }}, c.option())
		process(t, svc)
		if err := acme.Retry(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		before := show(status(t, acme, id))
		close(wake)
		<-done
		if s := status(t, acme, id); show(s) != before || s.Items[0].State != queue.Ready {
			t.Errorf("status was %s, is %s", before, show(s))
		}
	})
}

// A retried item keeps the priority that the request gave it.
func TestRetryKeepsThePriority(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		f := newSwitchable()
		svc := service(t, db, f, delivery.WithWorkers(1))
		acme := svc.Org("acme")
		a, b := create(t, acme, destination.Spec{}), create(t, acme, destination.Spec{})
		f.fail(a, errNever)
		f.fail(b, errNever)
		id := send(t, acme, delivery.Request{Destinations: []string{a.ID, b.ID},
			PerDestination: map[string]delivery.Override{b.ID: {Priority: destination.Set(delivery.Highest)}}})
		process(t, svc)
		if err := acme.Retry(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		process(t, svc)
		if got := f.requests[2].Destination.ID; got != b.ID {
			t.Errorf("the item of low priority is first")
		}
	})
}

// What a delivery's history says of an item that is pending again is not what it is now.
func TestItemsThatHaveEndedBefore(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		f := newSwitchable()
		svc := service(t, db, f)
		acme := svc.Org("acme")
		d := create(t, acme, destination.Spec{Default: true})
		f.fail(d, errNever)
		req := delivery.Request{Payload: payload.JSON(1), IdempotencyKey: "k"}
		id := send(t, acme, req)
		for range 3 {
			process(t, svc)
			if err := acme.Retry(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		}
		if s := status(t, acme, id); s.State != queue.InProgress || len(s.Items) != 1 {
			t.Errorf("status is %s", show(s))
		}
		if r := must[*delivery.Receipt](t)(acme.Deliver(t.Context(), req)); !r.Duplicate || len(r.Items) != 1 {
			t.Errorf("the receipt of a duplicate is %+v", r)
		}
		if err := acme.Cancel(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		if s := status(t, acme, id); s.State != queue.AllCancelled {
			t.Errorf("status is %s", show(s))
		}
		if err := acme.Retry(t.Context(), id, d.ID); !errors.Is(err, delivery.ErrNotRetryable) || !strings.Contains(err.Error(), "cancelled") {
			t.Errorf("retrying what was cancelled: %v", err)
		}
	})
}

// The queue is read before the history: what happens to an item in between shows.
func TestItemsReadWhileTheyChange(t *testing.T) {
	t.Parallel()
	at := func(fence int, state queue.State) sqlstore.Attempt {
		return sqlstore.Attempt{Key: sqlstore.Key{N: 1, Fence: fence}, State: state, Took: sqlstore.NotBegun}
	}
	pending := func(fence int) []sqlstore.Item {
		return []sqlstore.Item{{Claimed: sqlstore.Claimed{Key: sqlstore.Key{N: 1, Fence: fence}, State: queue.Processing}}}
	}
	for name, c := range map[string]struct {
		pending []sqlstore.Item
		history []sqlstore.Attempt
		want    queue.State
	}{
		"pending":                    {pending(0), nil, queue.Processing},
		"ended since":                {pending(3), []sqlstore.Attempt{at(3, queue.Delivered)}, queue.Delivered},
		"cancelled since":            {pending(3), []sqlstore.Attempt{at(3, queue.Scheduled), at(4, queue.Cancelled)}, queue.Cancelled},
		"retried":                    {pending(2), []sqlstore.Attempt{at(0, queue.Dead), at(1, queue.Ready)}, queue.Processing},
		"retried and ended since":    {pending(2), []sqlstore.Attempt{at(0, queue.Dead), at(1, queue.Ready), at(2, queue.Delivered)}, queue.Delivered},
		"retried since":              {nil, []sqlstore.Attempt{at(0, queue.Dead), at(1, queue.Ready)}, queue.Ready},
		"ended twice":                {nil, []sqlstore.Attempt{at(0, queue.Dead), at(1, queue.Ready), at(2, queue.Delivered)}, queue.Delivered},
		"retried, and to be retried": {nil, []sqlstore.Attempt{at(0, queue.Dead), at(1, queue.Ready), at(2, queue.Scheduled)}, queue.Scheduled},
	} {
		if got := delivery.Items("d", time.Time{}, c.pending, c.history, nil); len(got) != 1 || got[0].State != c.want || len(got[0].Attempts) != len(c.history) {
			t.Errorf("%s: %+v, want %s", name, got, c.want)
		}
	}
}
