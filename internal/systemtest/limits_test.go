package systemtest_test

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
	"github.com/deliverykit/delivery/internal/testkit"
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

func TestConcurrencyHoldsOverProcesses(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		for name, limited := range map[string]struct {
			own, service destination.Limits
		}{
			"of the destination": {own: destination.Limits{Concurrency: 3}},
			"of the service":     {service: destination.Limits{Concurrency: 3}},
		} {
			t.Run(name, func(t *testing.T) {
				var c crowd
				f := &testkit.Fake{Do: c.deliver}
				var services []*delivery.DeliveryService
				for range 3 {
					services = append(services, testkit.Service(t, db, f, delivery.WithLimits(limited.service), delivery.WithWorkers(16)))
				}
				acme := services[0].Org("acme " + name)
				testkit.Create(t, acme, destination.Spec{Default: true, Limits: limited.own})
				testkit.Try(acme.DeliverMany(t.Context(), testkit.Topics(60))).Must(t)
				for _, s := range services {
					testkit.Run(t, s)
				}
				testkit.WaitFor(testkit.Within(t, time.Minute), t, func() bool { return c.total.Load() == 60 })
				if c.most.Load() != 3 {
					t.Errorf("%d attempts at once", c.most.Load())
				}
			})
		}
	})
}

// More destinations that are full than a claim looks at do not hide one that has room.
func TestFullDestinationsHideNoOther(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		const full = 5
		begun, end := make(chan struct{}, 2*full), make(chan struct{})
		other := testkit.Service(t, db, &testkit.Fake{Do: func(context.Context, *handler.Request) (*handler.Result, error) {
			begun <- struct{}{}
			<-end
			return nil, nil
		}})
		acme := other.Org("acme")
		for range full {
			testkit.Create(t, acme, destination.Spec{Default: true, Limits: destination.Limits{Ordered: true}})
		}
		testkit.Send(t, acme, delivery.Request{})
		testkit.Send(t, acme, delivery.Request{})
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
		svc := testkit.Service(t, db, &testkit.Fake{}, delivery.WithWorkers(1), delivery.WithHandler("own", &testkit.Fake{})) // which the other has not
		acme = svc.Org("acme")
		free := testkit.Create(t, acme, destination.Spec{Config: destination.As("own", testkit.Script{Name: "n"})})
		id := testkit.Send(t, acme, delivery.Request{Destinations: []string{free.ID}})
		testkit.Try(svc.ProcessDue(t.Context())).Must(t)
		if s := testkit.Status(t, acme, id); s.State != queue.Completed {
			t.Errorf("it is %s", testkit.Show(s))
		}
	})
}

func TestRate(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		c := testkit.NewClock()
		f := &testkit.Fake{}
		svc := testkit.Service(t, db, f, c.Option())
		acme := svc.Org("acme")
		d := testkit.Create(t, acme, destination.Spec{Default: true, Limits: destination.Limits{PerSecond: 10, Burst: 4}})
		testkit.Try(acme.DeliverMany(t.Context(), testkit.Topics(20))).Must(t)
		for i, step := range []struct {
			wait time.Duration
			want int // attempts in all
		}{
			{0, 4}, {0, 4}, {99 * time.Millisecond, 4}, {time.Millisecond, 5}, {200 * time.Millisecond, 7}, {time.Hour, 11}, {400 * time.Millisecond, 15},
		} {
			c.Advance(step.wait)
			pass := testkit.Try(svc.ProcessDue(t.Context())).Must(t)
			if f.Count() != step.want {
				t.Errorf("step %d: %d attempts, want %d", i+1, f.Count(), step.want)
			}
			if left := pass.Next.Sub(c.Now()); left <= 0 || left > 100*time.Millisecond+time.Microsecond {
				t.Errorf("step %d: the next attempt is in %s", i+1, left)
			}
		}
		// Next is the very moment when there is a token again.
		pass := testkit.Try(svc.ProcessDue(t.Context())).Must(t)
		c.Advance(pass.Next.Sub(c.Now()))
		testkit.Try(svc.ProcessDue(t.Context())).Must(t)
		if f.Count() != 16 {
			t.Errorf("%d attempts", f.Count())
		}
		testkit.Try(acme.Destinations().Update(t.Context(), d.ID, destination.Patch{Limits: &destination.Limits{}})).Must(t)
		if pass := testkit.Try(svc.ProcessDue(t.Context())).Must(t); f.Count() != 20 || !pass.Next.IsZero() {
			t.Errorf("without a limit: %d attempts, %+v", f.Count(), pass)
		}
	})
}

// A rate is kept by all processes together, and used up.
func TestRateOverProcesses(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		c := testkit.NewClock()
		f := &testkit.Fake{}
		var services []*delivery.DeliveryService
		for range 3 {
			services = append(services, testkit.Service(t, db, f, c.Option()))
		}
		acme := services[0].Org("acme")
		testkit.Create(t, acme, destination.Spec{Default: true, Limits: destination.Limits{PerSecond: 100}})
		testkit.Try(acme.DeliverMany(t.Context(), testkit.Topics(300))).Must(t)
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
			if f.Count() != want {
				t.Errorf("%d attempts, want %d", f.Count(), want)
			}
			c.Advance(time.Second)
		}
	})
}

// In strict order a failed item keeps its place, and all behind it wait; other destinations do not.
func TestStrictOrder(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		c := testkit.NewClock()
		var ordered string
		var mu sync.Mutex
		var got []string
		f := &testkit.Fake{Do: func(_ context.Context, r *handler.Request) (*handler.Result, error) {
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
		svc, other := testkit.Service(t, db, f, c.Option(), delivery.WithRetry(retry.Policy{Jitter: -1})), testkit.Service(t, db, f, c.Option())
		acme := svc.Org("acme")
		ordered = testkit.Create(t, acme, destination.Spec{Default: true, Limits: destination.Limits{Ordered: true}}).ID
		testkit.Create(t, acme, destination.Spec{Default: true})
		receipts := testkit.Try(acme.DeliverMany(t.Context(), testkit.Topics(5))).Must(t)
		pass := func() {
			t.Helper()
			for _, s := range []*delivery.DeliveryService{svc, other} {
				testkit.Try(s.ProcessDue(t.Context())).Must(t)
			}
		}
		pass()
		if strings.Join(got, "") != "ab" || f.Count() != 2+5 {
			t.Errorf("at first: %q of %d attempts", got, f.Count())
		}
		c.Advance(time.Second)
		pass()
		c.Advance(2 * time.Second)
		pass()
		if strings.Join(got, "") != "abbbcde" {
			t.Errorf("the order is %q", got)
		}
		for i, r := range receipts {
			s := testkit.Try(acme.Status(t.Context(), r.ID)).Must(t)
			if want := map[bool]queue.Summary{true: queue.PartiallyFailed, false: queue.Completed}[i == 3]; s.State != want {
				t.Errorf("%s", testkit.Show(s))
			}
		}
	})
}

// A lost lease does not cost an item its place.
func TestStrictOrderAfterALostLease(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		c := testkit.NewClock()
		f := &testkit.Fake{}
		svc := testkit.Service(t, db, f, c.Option())
		acme := svc.Org("acme")
		testkit.Create(t, acme, destination.Spec{Default: true, Limits: destination.Limits{Ordered: true}})
		first := testkit.Try(acme.Deliver(t.Context(), delivery.Request{Topic: "a", Payload: payload.JSON(1)})).Must(t)
		testkit.Try(acme.Deliver(t.Context(), delivery.Request{Topic: "b", Payload: payload.JSON(2)})).Must(t)
		testkit.LeaseItems(t, db, c.Now().Add(30*time.Second), 2, `delivery_id = '`+first.ID+`'`)
		testkit.Try(svc.ProcessDue(t.Context())).Must(t)
		if f.Count() != 0 {
			t.Errorf("%q went ahead of one in flight", f.Topics())
		}
		c.Advance(time.Minute)
		testkit.Try(svc.ProcessDue(t.Context())).Must(t)
		if got := strings.Join(f.Topics(), ""); got != "ab" {
			t.Errorf("the order is %q", got)
		}
	})
}

// Destinations that never answer do not take the workers from those that do.
func TestSlowDestinationsLeaveWorkersForOthers(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		slow := map[string]bool{}
		var hanging, good atomic.Int64
		end := make(chan struct{})
		f := &testkit.Fake{Do: func(_ context.Context, r *handler.Request) (*handler.Result, error) {
			if slow[r.Destination.ID] {
				hanging.Add(1)
				<-end
				return nil, nil
			}
			good.Add(1)
			return nil, nil
		}}
		svc := testkit.Service(t, db, f, delivery.WithWorkers(32))
		acme := svc.Org("acme")
		for range 3 {
			slow[testkit.Create(t, acme, destination.Spec{Default: true}).ID] = true
		}
		testkit.Try(acme.DeliverMany(t.Context(), testkit.Topics(100))).Must(t)
		testkit.Run(t, svc)
		t.Cleanup(func() { close(end) }) // before run waits for them
		ctx := testkit.Within(t, time.Minute)
		testkit.WaitFor(ctx, t, func() bool { return hanging.Load() >= 24 })
		var ids []string
		for range 2 {
			ids = append(ids, testkit.Create(t, acme, destination.Spec{}).ID)
		}
		reqs := testkit.Topics(100)
		for i := range reqs {
			reqs[i].Destinations = ids
		}
		testkit.Try(acme.DeliverMany(t.Context(), reqs)).Must(t)
		testkit.WaitFor(ctx, t, func() bool { return good.Load() == 200 })
		if n := hanging.Load(); n >= 32 {
			t.Errorf("%d of 32 workers hang", n)
		}
	})
}
