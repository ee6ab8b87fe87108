package delivery_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
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

func countDead(t *testing.T, org *delivery.Org, f delivery.DeadFilter) int {
	t.Helper()
	return must[int](t)(org.DeadLetters().Count(t.Context(), f))
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

func TestManyDeadLetters(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		const items = 2500
		c := newClock()
		f := newSwitchable()
		svc := service(t, db, f, c.option())
		acme, other := svc.Org("acme"), svc.Org("other")
		d, foreign := create(t, acme, destination.Spec{Default: true}), create(t, other, destination.Spec{Default: true})
		f.fail(d, errNever)
		f.fail(foreign, errNever)
		reqs := make([]delivery.Request, items)
		for i := range reqs {
			reqs[i] = delivery.Request{Payload: payload.JSON(i), Topic: []string{"even", "odd"}[i%2]}
		}
		must[[]*delivery.Receipt](t)(acme.DeliverMany(t.Context(), reqs))
		send(t, other, delivery.Request{})
		process(t, svc)
		dead := acme.DeadLetters()
		filter := delivery.DeadFilter{Destination: d.ID, Reasons: []queue.Reason{queue.Permanent, queue.Exhausted}}
		if n := countDead(t, acme, filter); n != items {
			t.Fatalf("%d dead letters", n)
		}
		seen := map[string]bool{}
		last := "~"
		for cursor := ""; ; {
			page := must[delivery.Page[delivery.DeadLetter]](t)(dead.List(t.Context(), filter, cursor))
			for _, l := range page.Items {
				if seen[l.ID] || l.ID >= last || l.Destination != d.ID || l.Label != "fake" || len(l.Attempts) != 1 {
					t.Fatalf("%s after %s: %+v", l.ID, last, l)
				}
				seen[l.ID], last = true, l.ID
			}
			if cursor = page.Next; cursor == "" {
				break
			}
		}
		if len(seen) != items {
			t.Errorf("%d letters listed", len(seen))
		}
		filter.DryRun = true
		if r := must[delivery.Retried](t)(dead.Retry(t.Context(), filter)); r.Items != items || count(t, db, "delivery_queue") != 0 {
			t.Errorf("a dry run retries %+v, and %d items are pending", r, count(t, db, "delivery_queue"))
		}
		filter.DryRun, filter.Topic = false, "odd"
		if r := must[delivery.Retried](t)(dead.Retry(t.Context(), filter)); r.Items != items/2 || count(t, db, "delivery_queue") != items/2 {
			t.Errorf("retried %+v", r)
		}
		filter.Topic = ""
		if r := must[delivery.Retried](t)(dead.Retry(t.Context(), filter)); r.Items != items/2 {
			t.Errorf("retried %+v", r)
		}
		f.heal(d)
		if pass := process(t, svc); pass.Delivered != items {
			t.Errorf("pass is %+v", pass)
		}
		if n := countDead(t, acme, delivery.DeadFilter{}); n != 0 {
			t.Errorf("%d dead letters after all were delivered", n)
		}
		if n := countDead(t, other, delivery.DeadFilter{}); n != 1 {
			t.Errorf("another organization has %d", n)
		}
	})
}

func TestDeadLetterFilters(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		c := newClock()
		f := newSwitchable()
		svc := service(t, db, f, c.option(), delivery.WithRetry(retry.Policy{Retries: retry.None}),
			delivery.WithDetailsURL(func(org, id string) string { return org + "/" + id }))
		acme, other := svc.Org("acme"), svc.Org("other")
		a, b := create(t, acme, destination.Spec{Label: "a"}), create(t, acme, destination.Spec{Label: "b"})
		f.fail(a, errNever)
		f.fail(b, errors.New("not now"))
		start := c.now()
		first := send(t, acme, delivery.Request{Destinations: []string{a.ID, b.ID}, Topic: "first", CorrelationID: "corr"})
		process(t, svc)
		c.advance(time.Hour)
		send(t, acme, delivery.Request{Destinations: []string{b.ID}, Topic: "second", Priority: delivery.High})
		process(t, svc)
		list := func(f delivery.DeadFilter) string {
			t.Helper()
			page := must[delivery.Page[delivery.DeadLetter]](t)(acme.DeadLetters().List(t.Context(), f, ""))
			var got []string
			for _, l := range page.Items {
				got = append(got, l.Topic+" "+l.Label)
			}
			if n := countDead(t, acme, f); n != len(got) {
				t.Errorf("%d are counted, %d listed", n, len(got))
			}
			return strings.Join(got, ", ")
		}
		for _, e := range []struct {
			f    delivery.DeadFilter
			want string
		}{
			{delivery.DeadFilter{}, "second b, first b, first a"},
			{delivery.DeadFilter{All: true}, "second b, first b, first a"},
			{delivery.DeadFilter{Destination: b.ID}, "second b, first b"},
			{delivery.DeadFilter{Reasons: []queue.Reason{queue.Permanent}}, "first a"},
			{delivery.DeadFilter{Reasons: []queue.Reason{queue.Permanent, queue.Exhausted}, Destination: b.ID}, "second b, first b"},
			{delivery.DeadFilter{Topic: "first"}, "first b, first a"},
			{delivery.DeadFilter{After: start.Add(time.Minute)}, "second b"},
			{delivery.DeadFilter{After: start, Before: start.Add(time.Hour)}, "first b, first a"},
			{delivery.DeadFilter{Topic: "First"}, ""},
		} {
			if got := list(e.f); got != e.want {
				t.Errorf("%+v selects %q, want %q", e.f, got, e.want)
			}
		}
		l := must[delivery.Page[delivery.DeadLetter]](t)(acme.DeadLetters().List(t.Context(), delivery.DeadFilter{Destination: a.ID}, "")).Items[0]
		if l.Delivery != first || l.ID != first+"-1" || l.CorrelationID != "corr" || l.State != queue.Dead || l.Reason != queue.Permanent ||
			!l.CreatedAt.Equal(start) || !l.EndedAt.Equal(start) || l.Attempts[0].Error.Message == "" || l.Type != "fake" ||
			l.Payload.Size != 3 || l.DetailsURL != "acme/"+first {
			t.Errorf("dead letter %+v", l)
		}

		dead := acme.DeadLetters()
		var invalid *destination.ValidationError
		for name, f := range map[string]delivery.DeadFilter{
			"all and more":   {All: true, Topic: "x"},
			"no destination": {Destination: "x"},
			"no time":        {After: start, Before: start},
			"bad topic":      {Topic: "\x00"},
		} {
			if _, err := dead.List(t.Context(), f, ""); !errors.As(err, &invalid) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if _, err := dead.List(t.Context(), delivery.DeadFilter{}, "x"); !errors.As(err, &invalid) {
			t.Errorf("bad cursor: %v", err)
		}
		if _, err := dead.Retry(t.Context(), delivery.DeadFilter{}); !errors.As(err, &invalid) {
			t.Errorf("empty filter: %v", err)
		}
		if _, err := dead.Purge(t.Context(), delivery.DeadFilter{DryRun: true}); !errors.As(err, &invalid) {
			t.Errorf("empty filter: %v", err)
		}

		// Another organization reaches none of it, by whatever it names.
		theirs := other.DeadLetters()
		for _, f := range []delivery.DeadFilter{{All: true}, {Destination: b.ID}, {Topic: "second"}} {
			r := must[delivery.Retried](t)(theirs.Retry(t.Context(), f))
			n := must[int](t)(theirs.Purge(t.Context(), f))
			page := must[delivery.Page[delivery.DeadLetter]](t)(theirs.List(t.Context(), f, ""))
			if r != (delivery.Retried{}) || n != 0 || len(page.Items) != 0 || countDead(t, other, f) != 0 {
				t.Errorf("%+v reaches %+v, %d, %+v", f, r, n, page)
			}
		}
	})
}

func TestPurge(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		c := newClock()
		f := newSwitchable()
		svc := service(t, db, f, c.option())
		acme := svc.Org("acme")
		a, b := create(t, acme, destination.Spec{Default: true}), create(t, acme, destination.Spec{Default: true})
		f.fail(a, errNever)
		f.fail(b, errNever)
		large := payload.Bytes("x", make([]byte, 100_000))
		ids := make([]string, 2)
		for i := range ids {
			ids[i] = send(t, acme, delivery.Request{Payload: large})
		}
		process(t, svc)
		if err := acme.Retry(t.Context(), ids[0], b.ID); err != nil { // pending, beside a dead one
			t.Fatal(err)
		}
		before := show(status(t, acme, ids[0]))
		dead := acme.DeadLetters()
		if n := must[int](t)(dead.Purge(t.Context(), delivery.DeadFilter{All: true, DryRun: true})); n != 3 || countDead(t, acme, delivery.DeadFilter{}) != 3 {
			t.Errorf("a dry run purges %d", n)
		}
		if n := must[int](t)(dead.Purge(t.Context(), delivery.DeadFilter{Destination: b.ID})); n != 1 {
			t.Errorf("purged %d", n)
		}
		if n := must[int](t)(dead.Purge(t.Context(), delivery.DeadFilter{All: true})); n != 2 || countDead(t, acme, delivery.DeadFilter{}) != 0 {
			t.Errorf("purged %d", n)
		}
		if s := status(t, acme, ids[0]); show(s) != before || s.State != queue.InProgress {
			t.Errorf("status was %s, is %s", before, show(s))
		}
		f.heal(a)
		f.heal(b)
		c.advance(25 * time.Hour)
		must[delivery.Chores](t)(svc.Maintain(t.Context()))
		if pass := process(t, svc); pass.Delivered != 1 || len(f.contents[len(f.contents)-1]) != 100_000 {
			t.Errorf("what was pending: %+v", pass)
		}
		s := status(t, acme, ids[1])
		if s.State != queue.Failed || len(s.Items[0].Attempts) != 1 {
			t.Errorf("the history is %s", show(s))
		}
		if err := acme.Retry(t.Context(), ids[1], a.ID); !errors.Is(err, delivery.ErrNotRetryable) || !strings.Contains(err.Error(), "purged") {
			t.Errorf("retrying what was purged: %v", err)
		}
		must[*delivery.Receipt](t)(acme.Replay(t.Context(), delivery.Replay{Delivery: ids[1]}))
		if pass := process(t, svc); pass.Delivered != 2 {
			t.Errorf("replaying what was purged: %+v", pass)
		}
	})
}

func TestReplay(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		c := newClock()
		f := &fake{}
		h := parametric{f}
		svc := service(t, db, h, c.option(), delivery.WithSource("mem", memorySource{"acme/1": "one"}), delivery.WithWorkers(1))
		acme := svc.Org("acme")
		a, b, extra := create(t, acme, destination.Spec{}), create(t, acme, destination.Spec{}), create(t, acme, destination.Spec{})
		for name, p := range map[string]payload.Payload{
			"inline": payload.Bytes("a.txt", []byte("one")), "stored": payload.Bytes("a.txt", make([]byte, 200_000)), "source": payload.Ref("mem", "1"),
		} {
			f.requests, f.contents = nil, nil
			old := send(t, acme, delivery.Request{
				Payload: p, Topic: "t", Destinations: []string{a.ID, b.ID}, CorrelationID: "c", Tags: []string{"x"}, Metadata: map[string]string{"k": "v"},
				Priority: delivery.High, Deadline: c.now().Add(time.Hour), IdempotencyKey: name,
				PerDestination: map[string]delivery.Override{b.ID: {Params: "for b"}},
			})
			process(t, svc)
			c.advance(2 * time.Hour)
			chunks := count(t, db, "delivery_payload_chunks")
			receipt := must[*delivery.Receipt](t)(acme.Replay(t.Context(), delivery.Replay{Delivery: old}))
			other := must[*delivery.Receipt](t)(acme.Replay(t.Context(), delivery.Replay{
				Delivery: old, Destinations: []string{extra.ID, b.ID}, IdempotencyKey: "replay " + name, Deadline: c.now().Add(time.Hour),
			}))
			if count(t, db, "delivery_payload_chunks") != chunks {
				t.Errorf("%s: the stored payload was copied", name)
			}
			process(t, svc)
			s := status(t, acme, receipt.ID)
			if s.State != queue.Completed || s.ReplayOf != old || s.ID == old || len(s.Items) != 2 || s.Topic != "t" || s.CorrelationID != "c" ||
				s.Tags[0] != "x" || s.Metadata["k"] != "v" || s.Priority != delivery.High || !s.Deadline.IsZero() || s.IdempotencyKey != "" {
				t.Errorf("%s: %s, %+v", name, show(s), s)
			}
			if was := status(t, acme, old); was.ReplayOf != "" || was.Payload != s.Payload || was.State != queue.Completed {
				t.Errorf("%s: the old one is %+v", name, was)
			}
			if len(f.requests) != 6 {
				t.Fatalf("%s: %d attempts", name, len(f.requests))
			}
			messages := map[string]bool{}
			for i, r := range f.requests {
				messages[r.MessageID] = true
				if f.contents[i] != f.contents[0] {
					t.Errorf("%s: the contents differ", name)
				}
				if want := map[bool]string{true: `"for b"`}[r.Destination.ID == b.ID]; string(r.Params) != want {
					t.Errorf("%s: destination %s gets %s", name, r.Destination.ID, r.Params)
				}
			}
			if len(messages) != 6 {
				t.Errorf("%s: message ids are repeated", name)
			}
			again := must[*delivery.Receipt](t)(acme.Replay(t.Context(), delivery.Replay{
				Delivery: old, Destinations: []string{b.ID, extra.ID}, IdempotencyKey: "replay " + name,
			}))
			if !again.Duplicate || again.ID != other.ID || other.Items[0].Destination != extra.ID {
				t.Errorf("%s: %+v, then %+v", name, other, again)
			}
			var conflict *delivery.ConflictError
			if _, err := acme.Replay(t.Context(), delivery.Replay{Delivery: receipt.ID, Destinations: []string{b.ID, extra.ID}, IdempotencyKey: "replay " + name}); !errors.As(err, &conflict) {
				t.Errorf("%s: another replay under the key: %v", name, err)
			}
			if _, err := svc.Org("other").Replay(t.Context(), delivery.Replay{Delivery: old}); !errors.Is(err, delivery.ErrNotFound) {
				t.Errorf("%s: another organization: %v", name, err)
			}
		}
		var invalid *destination.ValidationError
		one := send(t, acme, delivery.Request{Destinations: []string{a.ID, b.ID}, Payload: payload.Bytes("x", make([]byte, 100_000))})
		if _, err := acme.Replay(t.Context(), delivery.Replay{Delivery: one, Deadline: c.now()}); !errors.As(err, &invalid) {
			t.Errorf("a deadline that has passed: %v", err)
		}
		if err := acme.Destinations().Delete(t.Context(), a.ID, destination.CancelPending); err != nil {
			t.Fatal(err)
		}
		if _, err := acme.Replay(t.Context(), delivery.Replay{Delivery: one}); !errors.Is(err, delivery.ErrNotFound) {
			t.Errorf("to a deleted destination: %v", err)
		}
		execSQL(t, db, `delete from delivery_payloads`)
		if _, err := acme.Replay(t.Context(), delivery.Replay{Delivery: one, Destinations: []string{b.ID}}); !errors.Is(err, delivery.ErrNotFound) ||
			!strings.Contains(err.Error(), "payload") {
			t.Errorf("without its payload: %v", err)
		}
		if _, err := acme.Replay(t.Context(), delivery.Replay{Delivery: "x"}); !errors.Is(err, delivery.ErrNotFound) {
			t.Errorf("bad id: %v", err)
		}
	})
}

// parametric is a fake that takes params.
type parametric struct{ *fake }

func (parametric) ParseParams(json.RawMessage) error { return nil }

// A COMMIT whose outcome is not known is looked for, whether it took effect or not.
func TestRetryWhenTheCommitIsAmbiguous(t *testing.T) {
	t.Parallel()
	for _, name := range databases {
		for _, effective := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, %t", name, effective), func(t *testing.T) {
				t.Parallel()
				f := newSwitchable()
				db, cut := cuttable(t, open(t, name), effective)
				dialect := delivery.Postgres
				if name == "sqlite" {
					dialect = delivery.SQLite
				}
				svc := service(t, db, f, delivery.WithDialect(dialect))
				acme := svc.Org("acme")
				d := create(t, acme, destination.Spec{Default: true})
				f.fail(d, errNever)
				id := send(t, acme, delivery.Request{})
				process(t, svc)
				cut.Store(true)
				if err := acme.Retry(t.Context(), id); err != nil || cut.Load() {
					t.Fatalf("%v, cut %t", err, !cut.Load())
				}
				process(t, svc)
				all := delivery.DeadFilter{All: true}
				cut.Store(true)
				if r, err := acme.DeadLetters().Retry(t.Context(), all); err != nil || r.Items != 1 || cut.Load() {
					t.Fatalf("%+v, %v", r, err)
				}
				process(t, svc)
				if s := status(t, acme, id); len(s.Items[0].Attempts) != 5 || s.State != queue.Failed {
					t.Errorf("status is %s", show(s))
				}
				cut.Store(true)
				receipt := must[*delivery.Receipt](t)(acme.Replay(t.Context(), delivery.Replay{Delivery: id}))
				if n := count(t, db, "delivery_deliveries"); n != 2 || status(t, acme, receipt.ID).ReplayOf != id {
					t.Errorf("%d deliveries", n)
				}
				cut.Store(true)
				if n, err := acme.DeadLetters().Purge(t.Context(), all); err != nil || n != 1 || countDead(t, acme, all) != 0 {
					t.Errorf("purged %d, %v", n, err)
				}
			})
		}
	}
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
		if got := delivery.Items("d", c.pending, c.history, nil); len(got) != 1 || got[0].State != c.want || len(got[0].Attempts) != len(c.history) {
			t.Errorf("%s: %+v, want %s", name, got, c.want)
		}
	}
}
