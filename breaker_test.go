package delivery_test

import (
	"context"
	"database/sql"
	"errors"
	"strconv"
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

// patient is a policy under which no item dies in these tests, and each retry comes after a second.
func patient() delivery.Option {
	return delivery.WithRetry(retry.Policy{Retries: 1000, First: time.Second, Max: time.Second, Jitter: -1})
}

func health(t *testing.T, org *delivery.Org, id string) *destination.Destination {
	t.Helper()
	return must[*destination.Destination](t)(org.Destinations().Get(t.Context(), id))
}

func TestBreakerOpensProbesAndCloses(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		c := newClock()
		var failing atomic.Bool
		failing.Store(true)
		f := &fake{deliver: func(context.Context, *handler.Request) (*handler.Result, error) {
			if failing.Load() {
				return nil, errors.New("no")
			}
			return nil, nil
		}}
		// One worker, so that attempts are made one after another.
		svc := service(t, db, f, c.option(), patient(), breaker(retry.Breaker{}), delivery.WithWorkers(1))
		acme := svc.Org("acme")
		d := create(t, acme, destination.Spec{Default: true, Breaker: retry.Breaker{Failures: 4, Cooldown: time.Minute, Probes: 2}})
		must[[]*delivery.Receipt](t)(acme.DeliverMany(t.Context(), topics(20)))
		for health(t, acme, d.ID).Health.Breaker == retry.Closed && f.count() < 100 {
			process(t, svc)
			c.advance(time.Second)
		}
		opened := health(t, acme, d.ID).Health
		attempts := f.count()
		if attempts < 4 || attempts > 6 || opened.Breaker != retry.Open || opened.ConsecutiveFailures != attempts {
			t.Fatalf("after %d attempts: %+v", attempts, opened)
		}
		pass := process(t, svc)
		if f.count() != attempts {
			t.Errorf("%d attempts while it is open", f.count()-attempts)
		}
		if pass.Next.After(opened.ProbeAt) || pass.Next.IsZero() {
			t.Errorf("the next attempt is said to be at %s, the probe is at %s", pass.Next, opened.ProbeAt)
		}

		c.advance(opened.ProbeAt.Sub(c.now())) // the probes fail
		process(t, svc)
		again := health(t, acme, d.ID).Health
		if n := f.count() - attempts; n < 1 || n > 2 || again.Breaker != retry.Open || !again.ProbeAt.After(opened.ProbeAt) {
			t.Errorf("after %d failed probes: %+v", n, again)
		}

		failing.Store(false)
		c.advance(again.ProbeAt.Sub(c.now()))
		process(t, svc)
		if h := health(t, acme, d.ID).Health; h.Breaker != retry.Closed || h.ConsecutiveFailures != 0 || !h.FailingSince.IsZero() {
			t.Errorf("after probes that succeeded: %+v", h)
		}
		c.advance(time.Minute)
		process(t, svc)
		if n := count(t, db, "delivery_queue"); n != 0 {
			t.Errorf("%d items are left", n)
		}
	})
}

// While it is half-open, no more probes are under way than it allows, over all processes.
func TestProbesAreBoundedOverProcesses(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		var now, most, total atomic.Int64
		release := make(chan struct{})
		var failing atomic.Bool
		failing.Store(true)
		f := &fake{deliver: func(context.Context, *handler.Request) (*handler.Result, error) {
			if failing.Load() {
				return nil, errors.New("no")
			}
			n := now.Add(1)
			for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
			}
			<-release
			now.Add(-1)
			total.Add(1)
			return nil, nil
		}}
		c := newClock()
		var services []*delivery.DeliveryService
		for range 3 {
			services = append(services, service(t, db, f, c.option(), patient(), breaker(retry.Breaker{Probes: 2, DrainPerSecond: -1})))
		}
		acme := services[0].Org("acme")
		d := create(t, acme, destination.Spec{Default: true})
		must[[]*delivery.Receipt](t)(acme.DeliverMany(t.Context(), topics(40)))
		process(t, services[0])
		h := health(t, acme, d.ID).Health
		if h.Breaker != retry.Open {
			t.Fatalf("%+v", h)
		}
		failing.Store(false)
		c.advance(h.ProbeAt.Sub(c.now()))
		var wg sync.WaitGroup
		for _, s := range services {
			wg.Go(func() {
				if _, err := s.ProcessDue(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		ctx := within(t, time.Minute)
		waitFor(ctx, t, func() bool { return now.Load() == 2 })
		if s := health(t, acme, d.ID).Health.Breaker; s != retry.HalfOpen {
			t.Errorf("while probes are under way it is %s", s)
		}
		if most.Load() != 2 {
			t.Errorf("%d probes at once", most.Load())
		}
		close(release)
		wg.Wait()
		process(t, services[0])
		if total.Load() != 40 || health(t, acme, d.ID).Health.Breaker != retry.Closed {
			t.Errorf("%d were delivered, %+v", total.Load(), health(t, acme, d.ID).Health)
		}
	})
}

// A destination that fails for long is disabled; what waits is held, and goes out at a bounded rate once it is enabled.
func TestDisabledForItsFailuresAndDrained(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		c := newClock()
		var failing atomic.Bool
		failing.Store(true)
		f := &fake{deliver: func(context.Context, *handler.Request) (*handler.Result, error) {
			if failing.Load() {
				return nil, errors.New("no")
			}
			return nil, nil
		}}
		svc := service(t, db, f, c.option(), patient(), breaker(retry.Breaker{}))
		acme := svc.Org("acme")
		d := create(t, acme, destination.Spec{Default: true, Breaker: retry.Breaker{DrainPerSecond: 10}})
		must[[]*delivery.Receipt](t)(acme.DeliverMany(t.Context(), topics(40)))
		began := c.now()
		for !health(t, acme, d.ID).Disabled {
			if c.now().Sub(began) > 3*time.Hour {
				t.Fatalf("not disabled after %d failures: %+v", f.count(), health(t, acme, d.ID).Health)
			}
			pass := process(t, svc)
			c.advance(max(time.Second, pass.Next.Sub(c.now())))
		}
		disabled := health(t, acme, d.ID)
		if since := c.now().Sub(began); since < time.Hour || since > time.Hour+6*time.Minute || disabled.DisabledReason == "" {
			t.Errorf("disabled after %s: %q", since, disabled.DisabledReason)
		}
		failing.Store(false)
		attempts := f.count()
		c.advance(24 * time.Hour)
		process(t, svc)
		if f.count() != attempts || count(t, db, "delivery_queue") != 40 {
			t.Errorf("%d attempts at a disabled destination, %d items wait", f.count()-attempts, count(t, db, "delivery_queue"))
		}
		enabled := must[*destination.Destination](t)(acme.Destinations().Update(t.Context(), d.ID, destination.Patch{Disabled: destination.Set(false)}))
		if h := enabled.Health; enabled.Disabled || enabled.DisabledReason != "" || h.ConsecutiveFailures != 0 || h.Breaker != retry.Closed {
			t.Errorf("enabled: %+v", enabled)
		}
		for i, want := range []int{10, 20, 30, 40} {
			process(t, svc)
			if n := f.count() - attempts; n != want {
				t.Errorf("after %d s: %d of what was held went out, want %d", i, n, want)
			}
			c.advance(time.Second)
		}
		must[[]*delivery.Receipt](t)(acme.DeliverMany(t.Context(), topics(50)))
		process(t, svc)
		if n := f.count() - attempts; n != 90 {
			t.Errorf("once all that was held is out: %d", n)
		}
	})
}

// With Recovery, one item at a time is tried, and enables the destination.
func TestRecovery(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		c := newClock()
		var failing atomic.Bool
		failing.Store(true)
		f := &fake{deliver: func(context.Context, *handler.Request) (*handler.Result, error) {
			if failing.Load() {
				return nil, errors.New("no")
			}
			return nil, nil
		}}
		svc := service(t, db, f, c.option(), patient(), breaker(retry.Breaker{}))
		acme := svc.Org("acme")
		d := create(t, acme, destination.Spec{Default: true, Breaker: retry.Breaker{
			DisableFailures: 3, DisableAfter: -1, Probes: 1, Recovery: time.Hour, DrainPerSecond: -1,
		}})
		must[[]*delivery.Receipt](t)(acme.DeliverMany(t.Context(), topics(10)))
		process(t, svc)
		if !health(t, acme, d.ID).Disabled {
			t.Fatalf("%+v", health(t, acme, d.ID))
		}
		for _, fails := range []bool{true, false} {
			before := f.count()
			c.advance(59 * time.Minute)
			if process(t, svc); f.count() != before {
				t.Errorf("%d attempts before an hour", f.count()-before)
			}
			failing.Store(fails)
			c.advance(time.Minute)
			process(t, svc)
			if got := health(t, acme, d.ID).Disabled; got != fails || fails && f.count() != before+1 {
				t.Errorf("after %d attempts: disabled is %v, failing %v", f.count()-before, got, fails)
			}
		}
		if n := count(t, db, "delivery_queue"); n != 0 {
			t.Errorf("%d items are left", n)
		}
	})
}

// One that is disabled by hand, or whose other side says that it is gone, is not tried.
func TestDisabledByHandIsNotTried(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		c := newClock()
		f := &fake{deliver: func(_ context.Context, r *handler.Request) (*handler.Result, error) {
			if r.Topic == "gone" {
				return nil, handler.Gone(errors.New("410"))
			}
			return nil, errors.New("no")
		}}
		svc := service(t, db, f, c.option(), patient(), breaker(retry.Breaker{Recovery: time.Minute, Failures: 2}), delivery.WithWorkers(1))
		acme := svc.Org("acme")
		for _, how := range []string{"by hand", "gone"} {
			d := create(t, acme, destination.Spec{})
			deliver := func(topic string) {
				must[*delivery.Receipt](t)(acme.Deliver(t.Context(), delivery.Request{Destinations: []string{d.ID}, Topic: topic, Payload: payload.JSON(1)}))
			}
			deliver("x")
			if how == "gone" {
				deliver("gone")
			} else {
				deliver("y")
			}
			process(t, svc)
			if how == "by hand" {
				must[*destination.Destination](t)(acme.Destinations().Update(t.Context(), d.ID, destination.Patch{Disabled: destination.Set(true)}))
			}
			before := f.count()
			c.advance(time.Hour)
			process(t, svc)
			if got := health(t, acme, d.ID); !got.Disabled || f.count() != before {
				t.Errorf("%s: %d attempts, %+v", how, f.count()-before, got)
			}
		}
	})
}

// What is our own fault counts against no destination.
func TestOurFaultsDoNotCount(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		f := &fake{deliver: func(context.Context, *handler.Request) (*handler.Result, error) {
			return nil, handler.Fail(handler.Internal, errors.New("out of ink"))
		}}
		svc := service(t, db, f, newClock().option(), patient(), breaker(retry.Breaker{}))
		acme := svc.Org("acme")
		d := create(t, acme, destination.Spec{Default: true, Limits: destination.Limits{MaxBytes: 3}})
		reqs := topics(40)
		for i := range 20 {
			reqs[i].Payload = payload.JSON("too long")
		}
		must[[]*delivery.Receipt](t)(acme.DeliverMany(t.Context(), reqs))
		process(t, svc)
		if h := health(t, acme, d.ID).Health; f.count() != 20 || h.ConsecutiveFailures != 0 || h.Breaker != retry.Closed {
			t.Errorf("after %d attempts: %+v", f.count(), h)
		}
	})
}

func TestBreakerByHand(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		c := newClock()
		f := &fake{}
		svc := service(t, db, f, c.option())
		acme := svc.Org("acme")
		d := create(t, acme, destination.Spec{Default: true})
		id := must[*delivery.Receipt](t)(acme.Deliver(t.Context(), delivery.Request{Payload: payload.JSON(1)})).ID
		if err := acme.Destinations().OpenBreaker(t.Context(), d.ID); err != nil {
			t.Fatal(err)
		}
		c.advance(24 * time.Hour)
		process(t, svc)
		if h := health(t, acme, d.ID).Health; f.count() != 0 || h.Breaker != retry.Open || !h.ProbeAt.IsZero() {
			t.Errorf("opened by hand: %d attempts, %+v", f.count(), h)
		}
		if s := status(t, acme, id); s.Items[0].Reason != queue.BreakerOpen {
			t.Errorf("%s", show(s))
		}
		if err := acme.Destinations().CloseBreaker(t.Context(), d.ID); err != nil {
			t.Fatal(err)
		}
		process(t, svc)
		if f.count() != 1 || health(t, acme, d.ID).Health.Breaker != retry.Closed {
			t.Errorf("closed by hand: %d attempts, %+v", f.count(), health(t, acme, d.ID).Health)
		}
		for _, err := range []error{
			svc.Org("other").Destinations().OpenBreaker(t.Context(), d.ID), svc.Org("other").Destinations().Pause(t.Context(), d.ID),
		} {
			if !errors.Is(err, delivery.ErrNotFound) {
				t.Errorf("of another organization: %v", err)
			}
		}
	})
}

func TestPause(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		f := &fake{}
		svc := service(t, db, f, newClock().option())
		acme, other := svc.Org("acme"), svc.Org("other")
		first, second := create(t, acme, destination.Spec{Default: true}), create(t, acme, destination.Spec{Default: true})
		create(t, other, destination.Spec{Default: true})
		for _, step := range []struct {
			name          string
			pause, resume func(ctx context.Context) error
			want          int // of three items that go out at once
		}{
			{"a destination", func(ctx context.Context) error { return acme.Destinations().Pause(ctx, first.ID) },
				func(ctx context.Context) error { return acme.Destinations().Resume(ctx, first.ID) }, 2},
			{"an organization", acme.Queue().Pause, acme.Queue().Resume, 1},
			{"all", svc.Queue().Pause, svc.Queue().Resume, 0},
		} {
			before := f.count()
			if err := step.pause(t.Context()); err != nil {
				t.Fatal(err)
			}
			id := must[*delivery.Receipt](t)(acme.Deliver(t.Context(), delivery.Request{Payload: payload.JSON(1)})).ID
			must[*delivery.Receipt](t)(other.Deliver(t.Context(), delivery.Request{Payload: payload.JSON(1)}))
			process(t, svc)
			if n := f.count() - before; n != step.want {
				t.Errorf("%s is paused: %d went out, want %d", step.name, n, step.want)
			}
			if s := status(t, acme, id); s.Items[0].Reason != queue.Paused {
				t.Errorf("%s is paused: %s", step.name, show(s))
			}
			if err := step.resume(t.Context()); err != nil {
				t.Fatal(err)
			}
			process(t, svc)
			if n := f.count() - before; n != 3 {
				t.Errorf("%s is resumed: %d went out", step.name, n)
			}
		}
		_ = second
	})
}

// However many lanes are held, those that are not are found in one pass.
func TestHeldLanesDoNotHideOthers(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		f := &fake{}
		svc := service(t, db, f, newClock().option(), delivery.WithWorkers(2))
		acme, other := svc.Org("acme"), svc.Org("other")
		var ids []string
		for range 50 { // with two workers, a walk is of 4 lanes, and a claim of 8 walks
			ids = append(ids, create(t, acme, destination.Spec{}).ID)
		}
		create(t, other, destination.Spec{Default: true})
		must[*delivery.Receipt](t)(acme.Deliver(t.Context(), delivery.Request{Destinations: ids, Payload: payload.JSON(1)}))
		if err := acme.Queue().Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		must[*delivery.Receipt](t)(other.Deliver(t.Context(), delivery.Request{Payload: payload.JSON(1)}))
		process(t, svc)
		if f.count() != 1 {
			t.Errorf("%d went out", f.count())
		}
	})
}

func TestOrganizationConcurrency(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		var c crowd
		f := &fake{deliver: c.deliver}
		var services []*delivery.DeliveryService
		for range 3 {
			services = append(services, service(t, db, f, delivery.WithOrganizationConcurrency(3), delivery.WithWorkers(16)))
		}
		acme := services[0].Org("acme")
		for range 4 {
			create(t, acme, destination.Spec{Default: true})
		}
		must[[]*delivery.Receipt](t)(acme.DeliverMany(t.Context(), topics(15)))
		for _, s := range services {
			run(t, s)
		}
		waitFor(within(t, time.Minute), t, func() bool { return c.total.Load() == 60 })
		if c.most.Load() != 3 {
			t.Errorf("%d attempts at once", c.most.Load())
		}
	})
}

// The host says which failures are tried again, for the service, a destination or a request.
func TestRetryRules(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		f := &fake{deliver: func(_ context.Context, r *handler.Request) (*handler.Result, error) {
			status, err := strconv.Atoi(r.Topic)
			if err != nil {
				return nil, err
			}
			return nil, handler.FromHTTP(status, nil, nil)
		}}
		svc := service(t, db, f, newClock().option(), delivery.WithRetry(retry.Policy{RetryOn: []string{"404"}}))
		acme := svc.Org("acme")
		for _, c := range []struct {
			topic               string
			destination, of     retry.Policy
			again, stillEnabled bool
		}{
			{topic: "404", again: true, stillEnabled: true},
			{topic: "405", stillEnabled: true},
			{topic: "404", destination: retry.Policy{RetryOn: []string{}}, stillEnabled: true},
			{topic: "503", again: true, stillEnabled: true},
			{topic: "503", destination: retry.Policy{StopOn: []string{"5xx"}}, stillEnabled: true},
			{topic: "503", destination: retry.Policy{StopOn: []string{"5xx"}}, of: retry.Policy{StopOn: []string{"401"}}, again: true, stillEnabled: true},
			{topic: "410", of: retry.Policy{RetryOn: []string{"configuration"}}},
			{topic: "410", of: retry.Policy{RetryOn: []string{"410"}}, again: true, stillEnabled: true},
		} {
			d := create(t, acme, destination.Spec{Retry: c.destination})
			id := send(t, acme, delivery.Request{Destinations: []string{d.ID}, Topic: c.topic, Retry: c.of})
			process(t, svc)
			want := map[bool]queue.State{true: queue.Scheduled, false: queue.Dead}[c.again]
			if s := status(t, acme, id); s.Items[0].State != want || health(t, acme, d.ID).Disabled == c.stillEnabled {
				t.Errorf("%+v: %s", c, show(s))
			}
		}
	})
}

// patient10ms is patient, with a retry after 10 ms.
func patient10ms() delivery.Option {
	return delivery.WithRetry(retry.Policy{Retries: 1000, First: 10 * time.Millisecond, Max: 10 * time.Millisecond, Jitter: -1})
}

// A claim that looked at the breaker before a probe failed makes no other.
func TestNoProbeAfterOneThatFailed(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		c := newClock()
		f := &fake{deliver: func(context.Context, *handler.Request) (*handler.Result, error) { return nil, errors.New("no") }}
		opts := []delivery.Option{c.option(), patient(), breaker(retry.Breaker{Failures: 1, Probes: 1, Cooldown: time.Hour, DisableFailures: -1})}
		svc, other := service(t, db, f, opts...), service(t, db, f, opts...)
		acme := svc.Org("acme")
		create(t, acme, destination.Spec{Default: true})
		must[[]*delivery.Receipt](t)(acme.DeliverMany(t.Context(), topics(1)))
		process(t, svc)
		must[[]*delivery.Receipt](t)(acme.DeliverMany(t.Context(), topics(20)))
		for round := range 20 {
			c.advance(time.Hour)
			before := f.count()
			var wg sync.WaitGroup
			for _, s := range []*delivery.DeliveryService{svc, other} {
				wg.Go(func() {
					if _, err := s.ProcessDue(t.Context()); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			if n := f.count() - before; n != 1 {
				t.Fatalf("round %d: %d probes", round, n)
			}
		}
	})
}
