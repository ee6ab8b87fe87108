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
	"github.com/deliverykit/delivery/payload"
	"github.com/deliverykit/delivery/queue"
	"github.com/deliverykit/delivery/retry"
)

// crowd counts how many attempts are under way at once.
type crowd struct{ now, most, total atomic.Int64 }

func (c *crowd) deliver(context.Context, *handler.Request) (*handler.Result, error) {
	n := c.now.Add(1)
	for most := c.most.Load(); n > most && !c.most.CompareAndSwap(most, n); most = c.most.Load() {
	}
	timer := time.NewTimer(2 * time.Millisecond)
	<-timer.C
	c.total.Add(1)
	c.now.Add(-1)
	return nil, nil
}

// topics are requests about "a", "b", and so on.
func topics(n int) []delivery.Request {
	all := make([]delivery.Request, n)
	for i := range all {
		all[i] = delivery.Request{Topic: string(rune('a' + i%26)), Payload: payload.JSON(i)}
	}
	return all
}

func TestConcurrencyHoldsOverProcesses(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		for name, limited := range map[string]struct {
			own, service destination.Limits
		}{
			"of the destination": {own: destination.Limits{Concurrency: 3}},
			"of the service":     {service: destination.Limits{Concurrency: 3}},
		} {
			t.Run(name, func(t *testing.T) {
				var c crowd
				f := &fake{deliver: c.deliver}
				var services []*delivery.DeliveryService
				for range 3 {
					services = append(services, service(t, db, f, delivery.WithLimits(limited.service), delivery.WithWorkers(16)))
				}
				acme := services[0].Org("acme " + name)
				create(t, acme, destination.Spec{Default: true, Limits: limited.own})
				must[[]*delivery.Receipt](t)(acme.DeliverMany(t.Context(), topics(60)))
				for _, s := range services {
					run(t, s)
				}
				waitFor(within(t, time.Minute), t, func() bool { return c.total.Load() == 60 })
				if c.most.Load() != 3 {
					t.Errorf("%d attempts at once", c.most.Load())
				}
			})
		}
	})
}

// More destinations that are full than a claim looks at do not hide one that has room.
func TestFullDestinationsHideNoOther(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		const full = 5
		begun, end := make(chan struct{}, 2*full), make(chan struct{})
		other := service(t, db, &fake{deliver: func(context.Context, *handler.Request) (*handler.Result, error) {
			begun <- struct{}{}
			<-end
			return nil, nil
		}})
		acme := other.Org("acme")
		for range full {
			create(t, acme, destination.Spec{Default: true, Limits: destination.Limits{Ordered: true}})
		}
		send(t, acme, delivery.Request{})
		send(t, acme, delivery.Request{})
		var passes sync.WaitGroup
		passes.Go(func() {
			if _, err := other.ProcessDue(context.WithoutCancel(t.Context())); err != nil {
				t.Error(err)
			}
		})
		defer passes.Wait()
		defer close(end)
		for range full {
			<-begun
		}
		svc := service(t, db, &fake{}, delivery.WithWorkers(1), delivery.WithHandler("own", &fake{})) // which the other has not
		acme = svc.Org("acme")
		free := create(t, acme, destination.Spec{Config: destination.As("own", script{Name: "n"})})
		id := send(t, acme, delivery.Request{Destinations: []string{free.ID}})
		must[delivery.Pass](t)(svc.ProcessDue(t.Context()))
		if s := status(t, acme, id); s.State != queue.Completed {
			t.Errorf("it is %s", show(s))
		}
	})
}

func TestRate(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		c := newClock()
		f := &fake{}
		svc := service(t, db, f, c.option())
		acme := svc.Org("acme")
		d := create(t, acme, destination.Spec{Default: true, Limits: destination.Limits{PerSecond: 10, Burst: 4}})
		must[[]*delivery.Receipt](t)(acme.DeliverMany(t.Context(), topics(20)))
		for i, step := range []struct {
			wait time.Duration
			want int // attempts in all
		}{
			{0, 4}, {0, 4}, {99 * time.Millisecond, 4}, {time.Millisecond, 5}, {200 * time.Millisecond, 7}, {time.Hour, 11}, {400 * time.Millisecond, 15},
		} {
			c.advance(step.wait)
			pass := must[delivery.Pass](t)(svc.ProcessDue(t.Context()))
			if f.count() != step.want {
				t.Errorf("step %d: %d attempts, want %d", i+1, f.count(), step.want)
			}
			if left := pass.Next.Sub(c.now()); left <= 0 || left > 100*time.Millisecond+time.Microsecond {
				t.Errorf("step %d: the next attempt is in %s", i+1, left)
			}
		}
		// Next is the very moment when there is a token again.
		pass := must[delivery.Pass](t)(svc.ProcessDue(t.Context()))
		c.advance(pass.Next.Sub(c.now()))
		must[delivery.Pass](t)(svc.ProcessDue(t.Context()))
		if f.count() != 16 {
			t.Errorf("%d attempts", f.count())
		}
		must[*destination.Destination](t)(acme.Destinations().Update(t.Context(), d.ID, destination.Patch{Limits: &destination.Limits{}}))
		if pass := must[delivery.Pass](t)(svc.ProcessDue(t.Context())); f.count() != 20 || !pass.Next.IsZero() {
			t.Errorf("without a limit: %d attempts, %+v", f.count(), pass)
		}
	})
}

// A rate is kept by all processes together, and used up.
func TestRateOverProcesses(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		c := newClock()
		f := &fake{}
		var services []*delivery.DeliveryService
		for range 3 {
			services = append(services, service(t, db, f, c.option()))
		}
		acme := services[0].Org("acme")
		create(t, acme, destination.Spec{Default: true, Limits: destination.Limits{PerSecond: 100}})
		must[[]*delivery.Receipt](t)(acme.DeliverMany(t.Context(), topics(300)))
		for want := 100; want <= 300; want += 100 {
			for range 2 { // the first may find the gate locked by another
				var wg sync.WaitGroup
				for _, s := range services {
					wg.Go(func() {
						if _, err := s.ProcessDue(t.Context()); err != nil {
							t.Error(err)
						}
					})
				}
				wg.Wait()
			}
			if f.count() != want {
				t.Errorf("%d attempts, want %d", f.count(), want)
			}
			c.advance(time.Second)
		}
	})
}

// In strict order a failed item keeps its place, and all behind it wait; other destinations do not.
func TestStrictOrder(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		c := newClock()
		var ordered string
		var mu sync.Mutex
		var got []string
		f := &fake{deliver: func(_ context.Context, r *handler.Request) (*handler.Result, error) {
			if r.Destination.ID != ordered {
				return nil, nil
			}
			mu.Lock()
			defer mu.Unlock()
			got = append(got, r.Topic)
			switch {
			case r.Topic == "b" && r.Attempt < 3:
				return nil, errors.New("not yet")
			case r.Topic == "d":
				return nil, handler.Permanent(errors.New("never"))
			}
			return nil, nil
		}}
		svc, other := service(t, db, f, c.option(), delivery.WithRetry(retry.Policy{Jitter: -1})), service(t, db, f, c.option())
		acme := svc.Org("acme")
		ordered = create(t, acme, destination.Spec{Default: true, Limits: destination.Limits{Ordered: true}}).ID
		create(t, acme, destination.Spec{Default: true})
		receipts := must[[]*delivery.Receipt](t)(acme.DeliverMany(t.Context(), topics(5)))
		pass := func() {
			t.Helper()
			for _, s := range []*delivery.DeliveryService{svc, other} {
				must[delivery.Pass](t)(s.ProcessDue(t.Context()))
			}
		}
		pass()
		if strings.Join(got, "") != "ab" || f.count() != 2+5 {
			t.Errorf("at first: %q of %d attempts", got, f.count())
		}
		c.advance(time.Second)
		pass()
		c.advance(2 * time.Second)
		pass()
		if strings.Join(got, "") != "abbbcde" {
			t.Errorf("the order is %q", got)
		}
		for i, r := range receipts {
			s := must[*delivery.Status](t)(acme.Status(t.Context(), r.ID))
			if want := map[bool]queue.Summary{true: queue.PartiallyFailed, false: queue.Completed}[i == 3]; s.State != want {
				t.Errorf("%s", show(s))
			}
		}
	})
}

// A lost lease does not cost an item its place.
func TestStrictOrderAfterALostLease(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		c := newClock()
		f := &fake{}
		svc := service(t, db, f, c.option())
		acme := svc.Org("acme")
		create(t, acme, destination.Spec{Default: true, Limits: destination.Limits{Ordered: true}})
		first := must[*delivery.Receipt](t)(acme.Deliver(t.Context(), delivery.Request{Topic: "a", Payload: payload.JSON(1)}))
		must[*delivery.Receipt](t)(acme.Deliver(t.Context(), delivery.Request{Topic: "b", Payload: payload.JSON(2)}))
		leaseItems(t, db, c.now().Add(30*time.Second), 2, `delivery_id = '`+first.ID+`'`)
		must[delivery.Pass](t)(svc.ProcessDue(t.Context()))
		if f.count() != 0 {
			t.Errorf("%q went ahead of one in flight", f.topics())
		}
		c.advance(time.Minute)
		must[delivery.Pass](t)(svc.ProcessDue(t.Context()))
		if got := strings.Join(f.topics(), ""); got != "ab" {
			t.Errorf("the order is %q", got)
		}
	})
}

// Destinations that never answer do not take the workers from those that do.
func TestSlowDestinationsLeaveWorkersForOthers(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		slow := map[string]bool{}
		var hanging, good atomic.Int64
		end := make(chan struct{})
		f := &fake{deliver: func(_ context.Context, r *handler.Request) (*handler.Result, error) {
			if slow[r.Destination.ID] {
				hanging.Add(1)
				<-end
				return nil, nil
			}
			good.Add(1)
			return nil, nil
		}}
		svc := service(t, db, f, delivery.WithWorkers(32))
		acme := svc.Org("acme")
		for range 3 {
			slow[create(t, acme, destination.Spec{Default: true}).ID] = true
		}
		must[[]*delivery.Receipt](t)(acme.DeliverMany(t.Context(), topics(100)))
		run(t, svc)
		t.Cleanup(func() { close(end) }) // before run waits for them
		ctx := within(t, time.Minute)
		waitFor(ctx, t, func() bool { return hanging.Load() >= 24 })
		var ids []string
		for range 2 {
			ids = append(ids, create(t, acme, destination.Spec{}).ID)
		}
		reqs := topics(100)
		for i := range reqs {
			reqs[i].Destinations = ids
		}
		must[[]*delivery.Receipt](t)(acme.DeliverMany(t.Context(), reqs))
		waitFor(ctx, t, func() bool { return good.Load() == 200 })
		if n := hanging.Load(); n >= 32 {
			t.Errorf("%d of 32 workers hang", n)
		}
	})
}
