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
	"github.com/deliverykit/delivery/internal/queuestore"
	"github.com/deliverykit/delivery/internal/sqlstore"
	"github.com/deliverykit/delivery/internal/testkit"
	"github.com/deliverykit/delivery/payload"
	"github.com/deliverykit/delivery/queue"
	"github.com/deliverykit/delivery/retry"
)

func TestRetryOneOfSeveralItems(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		c := testkit.NewClock()
		f := testkit.NewSwitchable()
		svc := testkit.Service(t, db, f, c.Option(), delivery.WithRetry(retry.Policy{Retries: 1, Jitter: -1}), delivery.WithWorkers(1))
		acme := svc.Org("acme")
		good, one, two := testkit.Create(t, acme, destination.Spec{Default: true}), testkit.Create(t, acme, destination.Spec{Default: true}), testkit.Create(t, acme, destination.Spec{Default: true})
		f.Fail(one, testkit.ErrNever)
		f.Fail(two, errors.New("not now"))
		id := testkit.Send(t, acme, delivery.Request{})
		testkit.Process(t, svc)
		c.Advance(time.Minute)
		testkit.Process(t, svc)
		if s := testkit.Status(t, acme, id); s.State != queue.PartiallyFailed || s.Items[1].Reason != queue.Permanent || s.Items[2].Reason != queue.Exhausted {
			t.Fatalf("status is %s", testkit.Show(s))
		}
		before := f.Count()
		f.Heal(one)
		if err := acme.Retry(t.Context(), id, one.ID); err != nil {
			t.Fatal(err)
		}
		s := testkit.Status(t, acme, id)
		if i := s.Items[1]; s.State != queue.InProgress || i.State != queue.Ready || i.Reason != queue.None || !i.EndedAt.IsZero() ||
			len(i.Attempts) != 2 || i.Attempts[1].State != queue.Ready || i.Attempts[1].Reason != queue.Requested {
			t.Errorf("status is %s", testkit.Show(s))
		}
		if s.Items[0].State != queue.Delivered || s.Items[2].State != queue.Dead {
			t.Errorf("other items were touched: %s", testkit.Show(s))
		}
		if n := testkit.CountDead(t, acme, delivery.DeadFilter{}); n != 1 {
			t.Errorf("%d dead letters", n)
		}
		testkit.Process(t, svc)
		s = testkit.Status(t, acme, id)
		if i := s.Items[1]; s.State != queue.PartiallyFailed || i.State != queue.Delivered || i.Reference.ID != "theirs" || i.Attempts[2].Number != 1 {
			t.Errorf("status is %s", testkit.Show(s))
		}
		if last := f.Requests[before]; f.Count() != before+1 || last.MessageID != s.Items[1].ID || last.Attempt != 1 {
			t.Errorf("attempts %+v", f.Requests[before:])
		}

		// The other one has all of its policy's attempts again, and is a dead letter anew.
		c.Advance(time.Hour)
		if err := acme.Retry(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		if pass := testkit.Process(t, svc); pass.Retrying != 1 {
			t.Errorf("pass is %+v", pass)
		}
		if i := testkit.Status(t, acme, id).Items[2]; i.State != queue.Scheduled || i.Reason != queue.Backoff || i.NextAttempt.IsZero() {
			t.Errorf("item is %+v", i)
		}
		c.Advance(time.Minute)
		testkit.Process(t, svc)
		s = testkit.Status(t, acme, id)
		if i := s.Items[2]; i.Reason != queue.Exhausted || !i.EndedAt.Equal(c.Now()) || len(i.Attempts) != 5 || i.Attempts[4].Number != 2 {
			t.Errorf("status is %s", testkit.Show(s))
		}
		if n := testkit.CountDead(t, acme, delivery.DeadFilter{Destination: two.ID}); n != 1 {
			t.Errorf("%d dead letters", n)
		}
		// A duplicate's receipt names each item once.
		if w := testkit.Try(acme.WaitFor(testkit.Within(t, 20*time.Second), id)).Must(t); len(w.Items) != 3 {
			t.Errorf("status is %s", testkit.Show(w))
		}
		for name, c := range map[string]struct {
			id   string
			to   []string
			want error
		}{
			"delivered":           {id, []string{good.ID}, delivery.ErrNotRetryable},
			"one delivered":       {id, []string{two.ID, good.ID}, delivery.ErrNotRetryable},
			"no item":             {id, []string{testkit.Create(t, acme, destination.Spec{}).ID}, delivery.ErrNotFound},
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
		if n := testkit.Count(t, db, "delivery_queue"); n != 0 {
			t.Errorf("what was refused left %d items", n)
		}
	})
}

func TestRetryOfWhatWaits(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		c := testkit.NewClock()
		f := testkit.NewSwitchable()
		svc := testkit.Service(t, db, f, c.Option(), delivery.WithRetry(retry.Policy{Retries: 2, First: time.Hour, Max: time.Hour, Jitter: -1}))
		acme := svc.Org("acme")
		dead, waits, later := testkit.Create(t, acme, destination.Spec{Default: true}), testkit.Create(t, acme, destination.Spec{Default: true}), testkit.Create(t, acme, destination.Spec{})
		f.Fail(dead, testkit.ErrNever)
		f.Fail(waits, errors.New("not now"))
		id := testkit.Send(t, acme, delivery.Request{Destinations: []string{dead.ID, waits.ID, later.ID},
			PerDestination: map[string]delivery.Override{later.ID: {NotBefore: c.Now().Add(24 * time.Hour)}}})
		testkit.Process(t, svc)
		if err := acme.Retry(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		s := testkit.Status(t, acme, id)
		if s.Items[0].State != queue.Ready || s.Items[1].State != queue.Ready || s.Items[2].Reason != queue.NotBefore {
			t.Errorf("status is %s", testkit.Show(s))
		}
		if err := acme.Retry(t.Context(), id); err != nil {
			t.Errorf("of what is ready: %v", err)
		}
		if got := testkit.Status(t, acme, id); testkit.Show(got) != testkit.Show(s) {
			t.Errorf("the second call changes %s to %s", testkit.Show(s), testkit.Show(got))
		}
		testkit.Process(t, svc)
		s = testkit.Status(t, acme, id)
		if i := s.Items[1]; i.State != queue.Scheduled || i.Attempts[len(i.Attempts)-1].Number != 2 {
			t.Errorf("the attempts of what waited are charged on: %s", testkit.Show(s))
		}
		if err := acme.Retry(t.Context(), id, later.ID); err != nil || testkit.Status(t, acme, id).Items[2].Reason != queue.NotBefore {
			t.Errorf("%v, status is %s", err, testkit.Show(s))
		}
	})
}

func TestWhatCannotBeRetried(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		c := testkit.NewClock()
		f := testkit.NewSwitchable()
		svc := testkit.Service(t, db, f, c.Option())
		acme := svc.Org("acme")
		kept, deleted := testkit.Create(t, acme, destination.Spec{}), testkit.Create(t, acme, destination.Spec{})
		f.Fail(kept, testkit.ErrNever)
		f.Fail(deleted, testkit.ErrNever)
		late := testkit.Send(t, acme, delivery.Request{Destinations: []string{kept.ID}, Deadline: c.Now().Add(time.Hour)})
		homeless := testkit.Send(t, acme, delivery.Request{Destinations: []string{kept.ID, deleted.ID}})
		empty := testkit.Send(t, acme, delivery.Request{Destinations: []string{kept.ID}, Payload: payload.Bytes("x", make([]byte, 100_000))})
		cancelled := testkit.Send(t, acme, delivery.Request{Destinations: []string{kept.ID}, NotBefore: c.Now().Add(time.Hour)})
		if err := acme.Cancel(t.Context(), cancelled); err != nil {
			t.Fatal(err)
		}
		testkit.Process(t, svc)
		if err := acme.Destinations().Delete(t.Context(), deleted.ID, destination.RefusePending); err != nil {
			t.Fatal(err)
		}
		testkit.Exec(t, db, `delete from delivery_payloads`)
		c.Advance(2 * time.Hour)
		for _, refused := range []struct{ id, text string }{
			{late, "deadline, 2030-01-02T04:04:05Z, has passed"}, {homeless, "destination was deleted"}, {empty, "payload is gone"},
			{cancelled, "no item"},
		} {
			before := testkit.Show(testkit.Status(t, acme, refused.id))
			if err := acme.Retry(t.Context(), refused.id); !errors.Is(err, delivery.ErrNotRetryable) || !strings.Contains(err.Error(), refused.text) {
				t.Errorf("%q: %v", refused.text, err)
			}
			if after := testkit.Show(testkit.Status(t, acme, refused.id)); after != before {
				t.Errorf("%q: status was %s, is %s", refused.text, before, after)
			}
		}
		if err := acme.Retry(t.Context(), homeless, kept.ID); err != nil {
			t.Errorf("the other item: %v", err)
		}
		all := delivery.DeadFilter{All: true}
		if r := testkit.Try(acme.DeadLetters().Retry(t.Context(), all)).Must(t); r != (delivery.Retried{Refused: 3}) {
			t.Errorf("retried %+v", r)
		}
		if n := testkit.CountDead(t, acme, all); n != 3 {
			t.Errorf("%d dead letters", n)
		}
	})
}

// However many calls there are, a dead letter comes back once.
func TestRetryTwiceAtOnce(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		f := testkit.NewSwitchable()
		svc := testkit.Service(t, db, f)
		acme := svc.Org("acme")
		d := testkit.Create(t, acme, destination.Spec{Default: true})
		f.Fail(d, testkit.ErrNever)
		var ids []string
		for range 5 {
			ids = append(ids, testkit.Send(t, acme, delivery.Request{}))
		}
		testkit.Process(t, svc)
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
		if n := testkit.Count(t, db, "delivery_queue"); n != len(ids) || revived.Load() > int64(n) {
			t.Errorf("%d items, %d by filter", n, revived.Load())
		}
		f.Heal(d)
		if pass := testkit.Process(t, svc); pass.Delivered != len(ids) {
			t.Errorf("pass is %+v", pass)
		}
		for _, id := range ids {
			if s := testkit.Status(t, acme, id); s.State != queue.Completed || len(s.Items[0].Attempts) != 3 {
				t.Errorf("status is %s", testkit.Show(s))
			}
		}
	})
}

// Retrying while workers end the same items loses none, and gives none two places.
func TestRetryRacesWithWorkers(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		var left atomic.Int64
		left.Store(60)
		f := &testkit.Fake{Do: func(context.Context, *handler.Request) (*handler.Result, error) {
			if left.Add(-1) >= 0 {
				return nil, testkit.ErrNever
			}
			return nil, nil
		}}
		svc := testkit.Service(t, db, f, delivery.WithWorkers(4), delivery.WithPollInterval(10*time.Millisecond))
		acme := svc.Org("acme")
		testkit.Create(t, acme, destination.Spec{Default: true})
		testkit.Create(t, acme, destination.Spec{Default: true})
		ids := []string{testkit.Send(t, acme, delivery.Request{}), testkit.Send(t, acme, delivery.Request{})}
		testkit.Run(t, svc)
		ctx := testkit.Within(t, time.Minute)
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
			s := testkit.Status(t, acme, id)
			if s.State != queue.Completed {
				t.Errorf("status is %s", testkit.Show(s))
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
		if f.Count() != 64 || ends != 64 || returns != 60 || attempts != 124 {
			t.Errorf("%d attempts made, %d ends, %d returns and %d rows recorded", f.Count(), ends, returns, attempts)
		}
		if n := testkit.Count(t, db, "delivery_dead_letters") + testkit.Count(t, db, "delivery_queue"); n != 0 {
			t.Errorf("%d rows are left", n)
		}
	})
}

// An attempt that is under way goes on: retrying its item is no second one.
func TestRetryOfWhatIsUnderWay(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		var acme *delivery.Org
		f := &testkit.Fake{}
		f.Do = func(ctx context.Context, r *handler.Request) (*handler.Result, error) {
			if f.Count() > 1 {
				return nil, nil
			}
			if err := acme.Retry(ctx, r.DeliveryID, r.Destination.ID); err != nil {
				t.Error(err)
			}
			return nil, testkit.ErrNever
		}
		svc := testkit.Service(t, db, f)
		acme = svc.Org("acme")
		testkit.Create(t, acme, destination.Spec{Default: true})
		id := testkit.Send(t, acme, delivery.Request{})
		testkit.Process(t, svc)
		if s := testkit.Status(t, acme, id); s.State != queue.Failed || len(s.Items[0].Attempts) != 1 {
			t.Errorf("status is %s", testkit.Show(s))
		}
		if err := acme.Retry(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		testkit.Process(t, svc)
		if s := testkit.Status(t, acme, id); s.State != queue.Completed {
			t.Errorf("status is %s", testkit.Show(s))
		}
	})
}

// A stale worker of before the retry is refused after it.
func TestStaleWorkerAfterARetry(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		c := testkit.NewClock()
		began, wake := make(chan struct{}), make(chan struct{})
		stale := &testkit.Fake{Do: func(context.Context, *handler.Request) (*handler.Result, error) {
			close(began)
			<-wake
			return &handler.Result{Reference: handler.Reference{ID: "stale"}}, nil
		}}
		old := testkit.Service(t, db, stale, c.Option(), testkit.Lease(time.Hour))
		acme := old.Org("acme")
		testkit.Create(t, acme, destination.Spec{Default: true})
		id := testkit.Send(t, acme, delivery.Request{})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() {
			_, err := old.ProcessDue(ctx)
			done <- err
		}()
		<-began
		cancel() // it claims no more
		c.Advance(2 * time.Hour)
		testkit.SweepOnly(t, db, c) // its lease is lost
		svc := testkit.Service(t, db, &testkit.Fake{Do: func(context.Context, *handler.Request) (*handler.Result, error) { return nil, testkit.ErrNever }}, c.Option())
		testkit.Process(t, svc)
		if err := acme.Retry(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		before := testkit.Show(testkit.Status(t, acme, id))
		close(wake)
		<-done
		if s := testkit.Status(t, acme, id); testkit.Show(s) != before || s.Items[0].State != queue.Ready {
			t.Errorf("status was %s, is %s", before, testkit.Show(s))
		}
	})
}

// A retried item keeps the priority that the request gave it.
func TestRetryKeepsThePriority(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		f := testkit.NewSwitchable()
		svc := testkit.Service(t, db, f, delivery.WithWorkers(1))
		acme := svc.Org("acme")
		a, b := testkit.Create(t, acme, destination.Spec{}), testkit.Create(t, acme, destination.Spec{})
		f.Fail(a, testkit.ErrNever)
		f.Fail(b, testkit.ErrNever)
		id := testkit.Send(t, acme, delivery.Request{Destinations: []string{a.ID, b.ID},
			PerDestination: map[string]delivery.Override{b.ID: {Priority: destination.Set(delivery.Highest)}}})
		testkit.Process(t, svc)
		if err := acme.Retry(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		testkit.Process(t, svc)
		if got := f.Requests[2].Destination.ID; got != b.ID {
			t.Errorf("the item of low priority is first")
		}
	})
}

// What a delivery's history says of an item that is pending again is not what it is now.
func TestItemsThatHaveEndedBefore(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		f := testkit.NewSwitchable()
		svc := testkit.Service(t, db, f)
		acme := svc.Org("acme")
		d := testkit.Create(t, acme, destination.Spec{Default: true})
		f.Fail(d, testkit.ErrNever)
		req := delivery.Request{Payload: payload.JSON(1), IdempotencyKey: "k"}
		id := testkit.Send(t, acme, req)
		for range 3 {
			testkit.Process(t, svc)
			if err := acme.Retry(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		}
		if s := testkit.Status(t, acme, id); s.State != queue.InProgress || len(s.Items) != 1 {
			t.Errorf("status is %s", testkit.Show(s))
		}
		if r := testkit.Try(acme.Deliver(t.Context(), req)).Must(t); !r.Duplicate || len(r.Items) != 1 {
			t.Errorf("the receipt of a duplicate is %+v", r)
		}
		if err := acme.Cancel(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		if s := testkit.Status(t, acme, id); s.State != queue.AllCancelled {
			t.Errorf("status is %s", testkit.Show(s))
		}
		if err := acme.Retry(t.Context(), id, d.ID); !errors.Is(err, delivery.ErrNotRetryable) || !strings.Contains(err.Error(), "cancelled") {
			t.Errorf("retrying what was cancelled: %v", err)
		}
	})
}

// The queue is read before the history: what happens to an item in between shows.
func TestItemsReadWhileTheyChange(t *testing.T) {
	t.Parallel()
	at := func(fence int, state queue.State) sqlstore.AttemptRow {
		return sqlstore.AttemptRow{Key: sqlstore.Key{N: 1, Fence: fence}, State: state, Took: sqlstore.NotBegun}
	}
	pending := func(fence int) []queuestore.ItemRow {
		return []queuestore.ItemRow{{
			Claimed: queuestore.Claimed{Key: sqlstore.Key{N: 1, Fence: fence}, State: queue.Processing},
		}}
	}
	for name, c := range map[string]struct {
		pending []queuestore.ItemRow
		history []sqlstore.AttemptRow
		want    queue.State
	}{
		"pending":                    {pending(0), nil, queue.Processing},
		"ended since":                {pending(3), []sqlstore.AttemptRow{at(3, queue.Delivered)}, queue.Delivered},
		"cancelled since":            {pending(3), []sqlstore.AttemptRow{at(3, queue.Scheduled), at(4, queue.Cancelled)}, queue.Cancelled},
		"retried":                    {pending(2), []sqlstore.AttemptRow{at(0, queue.Dead), at(1, queue.Ready)}, queue.Processing},
		"retried and ended since":    {pending(2), []sqlstore.AttemptRow{at(0, queue.Dead), at(1, queue.Ready), at(2, queue.Delivered)}, queue.Delivered},
		"retried since":              {nil, []sqlstore.AttemptRow{at(0, queue.Dead), at(1, queue.Ready)}, queue.Ready},
		"ended twice":                {nil, []sqlstore.AttemptRow{at(0, queue.Dead), at(1, queue.Ready), at(2, queue.Delivered)}, queue.Delivered},
		"retried, and to be retried": {nil, []sqlstore.AttemptRow{at(0, queue.Dead), at(1, queue.Ready), at(2, queue.Scheduled)}, queue.Scheduled},
	} {
		if got := delivery.Items("d", time.Time{}, c.pending, c.history, nil); len(got) != 1 || got[0].State != c.want || len(got[0].Attempts) != len(c.history) {
			t.Errorf("%s: %+v, want %s", name, got, c.want)
		}
	}
}
