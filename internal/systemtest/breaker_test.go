package systemtest_test

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
	"github.com/deliverykit/delivery/internal/testkit"
	"github.com/deliverykit/delivery/payload"
	"github.com/deliverykit/delivery/queue"
	"github.com/deliverykit/delivery/retry"
)

func TestBreakerOpensProbesAndCloses(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		c := testkit.NewClock()
		f, failing := testkit.Outage()
		// One worker, so that attempts are made one after another.
		svc := testkit.Service(t, db, f, c.Option(), testkit.Patient(), testkit.Breaker(retry.Breaker{}), delivery.WithWorkers(1))
		acme := svc.Org("acme")
		d := testkit.Create(t, acme, destination.Spec{Default: true, Breaker: retry.Breaker{Failures: 4, Cooldown: time.Minute, Probes: 2}})
		testkit.Try(acme.DeliverMany(t.Context(), testkit.Topics(20))).Must(t)
		for testkit.Health(t, acme, d.ID).Health.Breaker == retry.Closed && f.Count() < 100 {
			testkit.Process(t, svc)
			c.Advance(time.Second)
		}
		opened := testkit.Health(t, acme, d.ID).Health
		attempts := f.Count()
		if attempts < 4 || attempts > 6 || opened.Breaker != retry.Open || opened.ConsecutiveFailures != attempts {
			t.Fatalf("after %d attempts: %+v", attempts, opened)
		}
		pass := testkit.Process(t, svc)
		if f.Count() != attempts {
			t.Errorf("%d attempts while it is open", f.Count()-attempts)
		}
		if pass.Next.After(opened.ProbeAt) || pass.Next.IsZero() {
			t.Errorf("the next attempt is said to be at %s, the probe is at %s", pass.Next, opened.ProbeAt)
		}

		c.Advance(opened.ProbeAt.Sub(c.Now())) // the probes fail
		testkit.Process(t, svc)
		again := testkit.Health(t, acme, d.ID).Health
		if n := f.Count() - attempts; n < 1 || n > 2 || again.Breaker != retry.Open || !again.ProbeAt.After(opened.ProbeAt) {
			t.Errorf("after %d failed probes: %+v", n, again)
		}

		failing.Store(false)
		c.Advance(again.ProbeAt.Sub(c.Now()))
		testkit.Process(t, svc)
		if h := testkit.Health(t, acme, d.ID).Health; h.Breaker != retry.Closed || h.ConsecutiveFailures != 0 || !h.FailingSince.IsZero() {
			t.Errorf("after probes that succeeded: %+v", h)
		}
		c.Advance(time.Minute)
		testkit.Process(t, svc)
		if n := testkit.Count(t, db, "delivery_queue"); n != 0 {
			t.Errorf("%d items are left", n)
		}
	})
}

// While it is half-open, no more probes are under way than it allows, over all processes.
func TestProbesAreBoundedOverProcesses(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		var now, most, total atomic.Int64
		release := make(chan struct{})
		var failing atomic.Bool
		failing.Store(true)
		f := &testkit.Fake{Do: func(context.Context, *handler.Request) (*handler.Result, error) {
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
		c := testkit.NewClock()
		var services []*delivery.DeliveryService
		for range 3 {
			services = append(services, testkit.Service(t, db, f, c.Option(), testkit.Patient(), testkit.Breaker(retry.Breaker{Probes: 2, CatchUpPerSecond: -1})))
		}
		acme := services[0].Org("acme")
		d := testkit.Create(t, acme, destination.Spec{Default: true})
		testkit.Try(acme.DeliverMany(t.Context(), testkit.Topics(40))).Must(t)
		testkit.Process(t, services[0])
		h := testkit.Health(t, acme, d.ID).Health
		if h.Breaker != retry.Open {
			t.Fatalf("%+v", h)
		}
		failing.Store(false)
		c.Advance(h.ProbeAt.Sub(c.Now()))
		var wg sync.WaitGroup
		for _, s := range services {
			wg.Go(func() {
				if _, err := s.ProcessDue(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		ctx := testkit.Within(t, time.Minute)
		testkit.WaitFor(ctx, t, func() bool { return now.Load() == 2 })
		if s := testkit.Health(t, acme, d.ID).Health.Breaker; s != retry.HalfOpen {
			t.Errorf("while probes are under way it is %s", s)
		}
		if most.Load() != 2 {
			t.Errorf("%d probes at once", most.Load())
		}
		close(release)
		wg.Wait()
		testkit.Process(t, services[0])
		if total.Load() != 40 || testkit.Health(t, acme, d.ID).Health.Breaker != retry.Closed {
			t.Errorf("%d were delivered, %+v", total.Load(), testkit.Health(t, acme, d.ID).Health)
		}
	})
}

// A destination that fails for long is disabled; what waits is held, and goes out at a bounded rate
// once it is enabled.
func TestDisabledForItsFailuresAndCatchesUp(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		c := testkit.NewClock()
		f, failing := testkit.Outage()
		svc := testkit.Service(t, db, f, c.Option(), testkit.Patient(), testkit.Breaker(retry.Breaker{}))
		acme := svc.Org("acme")
		d := testkit.Create(t, acme, destination.Spec{Default: true, Breaker: retry.Breaker{CatchUpPerSecond: 10}})
		testkit.Try(acme.DeliverMany(t.Context(), testkit.Topics(40))).Must(t)
		began := c.Now()
		for !testkit.Health(t, acme, d.ID).Disabled {
			if c.Now().Sub(began) > 3*time.Hour {
				t.Fatalf("not disabled after %d failures: %+v", f.Count(), testkit.Health(t, acme, d.ID).Health)
			}
			pass := testkit.Process(t, svc)
			c.Advance(max(time.Second, pass.Next.Sub(c.Now())))
		}
		disabled := testkit.Health(t, acme, d.ID)
		if since := c.Now().Sub(began); since < time.Hour || since > time.Hour+6*time.Minute || disabled.DisabledReason == "" {
			t.Errorf("disabled after %s: %q", since, disabled.DisabledReason)
		}
		failing.Store(false)
		attempts := f.Count()
		c.Advance(24 * time.Hour)
		testkit.Process(t, svc)
		if f.Count() != attempts || testkit.Count(t, db, "delivery_queue") != 40 {
			t.Errorf("%d attempts at a disabled destination, %d items wait", f.Count()-attempts, testkit.Count(t, db, "delivery_queue"))
		}
		enabled := testkit.Try(acme.Destinations().Update(t.Context(), d.ID, destination.Patch{Disabled: destination.Set(false)})).Must(t)
		if h := enabled.Health; enabled.Disabled || enabled.DisabledReason != "" || h.ConsecutiveFailures != 0 || h.Breaker != retry.Closed {
			t.Errorf("enabled: %+v", enabled)
		}
		for i, want := range []int{10, 20, 30, 40} {
			testkit.Process(t, svc)
			if n := f.Count() - attempts; n != want {
				t.Errorf("after %d s: %d of what was held went out, want %d", i, n, want)
			}
			c.Advance(time.Second)
		}
		testkit.Try(acme.DeliverMany(t.Context(), testkit.Topics(50))).Must(t)
		testkit.Process(t, svc)
		if n := f.Count() - attempts; n != 90 {
			t.Errorf("once all that was held is out: %d", n)
		}
	})
}

// With Recovery, one item at a time is tried, and enables the destination.
func TestRecovery(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		c := testkit.NewClock()
		f, failing := testkit.Outage()
		svc := testkit.Service(t, db, f, c.Option(), testkit.Patient(), testkit.Breaker(retry.Breaker{}))
		acme := svc.Org("acme")
		d := testkit.Create(t, acme, destination.Spec{Default: true, Breaker: retry.Breaker{
			DisableFailures: 3, DisableAfter: -1, Probes: 1, Recovery: time.Hour, CatchUpPerSecond: -1,
		}})
		testkit.Try(acme.DeliverMany(t.Context(), testkit.Topics(10))).Must(t)
		testkit.Process(t, svc)
		if !testkit.Health(t, acme, d.ID).Disabled {
			t.Fatalf("%+v", testkit.Health(t, acme, d.ID))
		}
		for _, fails := range []bool{true, false} {
			before := f.Count()
			c.Advance(59 * time.Minute)
			if testkit.Process(t, svc); f.Count() != before {
				t.Errorf("%d attempts before an hour", f.Count()-before)
			}
			failing.Store(fails)
			c.Advance(time.Minute)
			testkit.Process(t, svc)
			if got := testkit.Health(t, acme, d.ID).Disabled; got != fails || fails && f.Count() != before+1 {
				t.Errorf("after %d attempts: disabled is %v, failing %v", f.Count()-before, got, fails)
			}
		}
		if n := testkit.Count(t, db, "delivery_queue"); n != 0 {
			t.Errorf("%d items are left", n)
		}
	})
}

// One that is disabled by hand, or whose other side says that it is gone, is not tried.
func TestDisabledByHandIsNotTried(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		c := testkit.NewClock()
		f := &testkit.Fake{Do: func(_ context.Context, r *handler.Request) (*handler.Result, error) {
			if r.Topic == "gone" {
				return nil, handler.Gone(errors.New("410"))
			}
			return nil, errors.New("no")
		}}
		svc := testkit.Service(t, db, f, c.Option(), testkit.Patient(), testkit.Breaker(retry.Breaker{Recovery: time.Minute, Failures: 2}), delivery.WithWorkers(1))
		acme := svc.Org("acme")
		for _, how := range []string{"by hand", "gone"} {
			d := testkit.Create(t, acme, destination.Spec{})
			deliver := func(topic string) {
				testkit.Try(acme.Deliver(t.Context(), delivery.Request{Destinations: []string{d.ID}, Topic: topic, Payload: payload.JSON(1)})).Must(t)
			}
			deliver("x")
			if how == "gone" {
				deliver("gone")
			} else {
				deliver("y")
			}
			testkit.Process(t, svc)
			if how == "by hand" {
				testkit.Try(acme.Destinations().Update(t.Context(), d.ID, destination.Patch{Disabled: destination.Set(true)})).Must(t)
			}
			before := f.Count()
			c.Advance(time.Hour)
			testkit.Process(t, svc)
			if got := testkit.Health(t, acme, d.ID); !got.Disabled || f.Count() != before {
				t.Errorf("%s: %d attempts, %+v", how, f.Count()-before, got)
			}
		}
	})
}

// What is our own fault counts against no destination.
func TestOurFaultsDoNotCount(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		f := &testkit.Fake{Do: func(context.Context, *handler.Request) (*handler.Result, error) {
			return nil, handler.Fail(handler.Internal, errors.New("out of ink"))
		}}
		svc := testkit.Service(t, db, f, testkit.NewClock().Option(), testkit.Patient(), testkit.Breaker(retry.Breaker{}))
		acme := svc.Org("acme")
		d := testkit.Create(t, acme, destination.Spec{Default: true, Limits: destination.Limits{MaxBytes: 3}})
		reqs := testkit.Topics(40)
		for i := range 20 {
			reqs[i].Payload = payload.JSON("too long")
		}
		testkit.Try(acme.DeliverMany(t.Context(), reqs)).Must(t)
		testkit.Process(t, svc)
		if h := testkit.Health(t, acme, d.ID).Health; f.Count() != 20 || h.ConsecutiveFailures != 0 || h.Breaker != retry.Closed {
			t.Errorf("after %d attempts: %+v", f.Count(), h)
		}
	})
}

func TestBreakerByHand(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		c := testkit.NewClock()
		f := &testkit.Fake{}
		svc := testkit.Service(t, db, f, c.Option())
		acme := svc.Org("acme")
		d := testkit.Create(t, acme, destination.Spec{Default: true})
		id := testkit.Try(acme.Deliver(t.Context(), delivery.Request{Payload: payload.JSON(1)})).Must(t).ID
		if err := acme.Destinations().OpenBreaker(t.Context(), d.ID); err != nil {
			t.Fatal(err)
		}
		c.Advance(24 * time.Hour)
		testkit.Process(t, svc)
		if h := testkit.Health(t, acme, d.ID).Health; f.Count() != 0 || h.Breaker != retry.Open || !h.ProbeAt.IsZero() {
			t.Errorf("opened by hand: %d attempts, %+v", f.Count(), h)
		}
		if s := testkit.Status(t, acme, id); s.Items[0].Reason != queue.BreakerOpen {
			t.Errorf("%s", testkit.Show(s))
		}
		if err := acme.Destinations().CloseBreaker(t.Context(), d.ID); err != nil {
			t.Fatal(err)
		}
		testkit.Process(t, svc)
		if f.Count() != 1 || testkit.Health(t, acme, d.ID).Health.Breaker != retry.Closed {
			t.Errorf("closed by hand: %d attempts, %+v", f.Count(), testkit.Health(t, acme, d.ID).Health)
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
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		f := &testkit.Fake{}
		svc := testkit.Service(t, db, f, testkit.NewClock().Option())
		acme, other := svc.Org("acme"), svc.Org("other")
		first, second := testkit.Create(t, acme, destination.Spec{Default: true}), testkit.Create(t, acme, destination.Spec{Default: true})
		testkit.Create(t, other, destination.Spec{Default: true})
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
			before := f.Count()
			if err := step.pause(t.Context()); err != nil {
				t.Fatal(err)
			}
			id := testkit.Try(acme.Deliver(t.Context(), delivery.Request{Payload: payload.JSON(1)})).Must(t).ID
			testkit.Try(other.Deliver(t.Context(), delivery.Request{Payload: payload.JSON(1)})).Must(t)
			testkit.Process(t, svc)
			if n := f.Count() - before; n != step.want {
				t.Errorf("%s is paused: %d went out, want %d", step.name, n, step.want)
			}
			if s := testkit.Status(t, acme, id); s.Items[0].Reason != queue.Paused {
				t.Errorf("%s is paused: %s", step.name, testkit.Show(s))
			}
			if err := step.resume(t.Context()); err != nil {
				t.Fatal(err)
			}
			testkit.Process(t, svc)
			if n := f.Count() - before; n != 3 {
				t.Errorf("%s is resumed: %d went out", step.name, n)
			}
		}
		_ = second
	})
}

// However many lanes are held, those that are not are found in one pass.
func TestHeldLanesDoNotHideOthers(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		f := &testkit.Fake{}
		svc := testkit.Service(t, db, f, testkit.NewClock().Option(), delivery.WithWorkers(2))
		acme, other := svc.Org("acme"), svc.Org("other")
		var ids []string
		for range 50 { // with two workers, a walk is of 4 lanes, and a claim of 8 walks
			ids = append(ids, testkit.Create(t, acme, destination.Spec{}).ID)
		}
		testkit.Create(t, other, destination.Spec{Default: true})
		testkit.Try(acme.Deliver(t.Context(), delivery.Request{Destinations: ids, Payload: payload.JSON(1)})).Must(t)
		if err := acme.Queue().Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		testkit.Try(other.Deliver(t.Context(), delivery.Request{Payload: payload.JSON(1)})).Must(t)
		testkit.Process(t, svc)
		if f.Count() != 1 {
			t.Errorf("%d went out", f.Count())
		}
	})
}

func TestOrganizationConcurrency(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		var c crowd
		f := &testkit.Fake{Do: c.deliver}
		var services []*delivery.DeliveryService
		for range 3 {
			services = append(services, testkit.Service(t, db, f, delivery.WithOrganizationConcurrency(3), delivery.WithWorkers(16)))
		}
		acme := services[0].Org("acme")
		for range 4 {
			testkit.Create(t, acme, destination.Spec{Default: true})
		}
		testkit.Try(acme.DeliverMany(t.Context(), testkit.Topics(15))).Must(t)
		for _, s := range services {
			testkit.Run(t, s)
		}
		testkit.WaitFor(testkit.Within(t, time.Minute), t, func() bool { return c.total.Load() == 60 })
		if c.most.Load() != 3 {
			t.Errorf("%d attempts at once", c.most.Load())
		}
	})
}

// The host says which failures are tried again, for the service, a destination or a request.
func TestRetryRules(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		f := &testkit.Fake{Do: func(_ context.Context, r *handler.Request) (*handler.Result, error) {
			status, err := strconv.Atoi(r.Topic)
			if err != nil {
				return nil, err
			}
			return nil, handler.FromHTTP(status, nil, nil)
		}}
		svc := testkit.Service(t, db, f, testkit.NewClock().Option(), delivery.WithRetry(retry.Policy{RetryOn: []string{"404"}}))
		acme := svc.Org("acme")
		for _, c := range []struct {
			topic               string
			destination, of     retry.Policy
			again, stillEnabled bool
		}{
			{topic: "404", again: true, stillEnabled: true}, {topic: "405", stillEnabled: true},
			{topic: "404", destination: retry.Policy{RetryOn: []string{}}, stillEnabled: true},
			{topic: "503", again: true, stillEnabled: true},
			{topic: "503", destination: retry.Policy{StopOn: []string{"5xx"}}, stillEnabled: true},
			{topic: "503", destination: retry.Policy{StopOn: []string{"5xx"}}, of: retry.Policy{StopOn: []string{"401"}}, again: true, stillEnabled: true},
			{topic: "410", of: retry.Policy{RetryOn: []string{"configuration"}}},
			{topic: "410", of: retry.Policy{RetryOn: []string{"410"}}, again: true, stillEnabled: true},
		} {
			d := testkit.Create(t, acme, destination.Spec{Retry: c.destination})
			id := testkit.Send(t, acme, delivery.Request{Destinations: []string{d.ID}, Topic: c.topic, Retry: c.of})
			testkit.Process(t, svc)
			want := map[bool]queue.State{true: queue.Scheduled, false: queue.Dead}[c.again]
			if s := testkit.Status(t, acme, id); s.Items[0].State != want || testkit.Health(t, acme, d.ID).Disabled == c.stillEnabled {
				t.Errorf("%+v: %s", c, testkit.Show(s))
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
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		c := testkit.NewClock()
		f := &testkit.Fake{Do: func(context.Context, *handler.Request) (*handler.Result, error) { return nil, errors.New("no") }}
		opts := []delivery.Option{c.Option(), testkit.Patient(), testkit.Breaker(retry.Breaker{Failures: 1, Probes: 1, Cooldown: time.Hour, DisableFailures: -1})}
		svc, other := testkit.Service(t, db, f, opts...), testkit.Service(t, db, f, opts...)
		acme := svc.Org("acme")
		testkit.Create(t, acme, destination.Spec{Default: true})
		testkit.Try(acme.DeliverMany(t.Context(), testkit.Topics(1))).Must(t)
		testkit.Process(t, svc)
		testkit.Try(acme.DeliverMany(t.Context(), testkit.Topics(20))).Must(t)
		for round := range 20 {
			c.Advance(time.Hour)
			before := f.Count()
			var wg sync.WaitGroup
			for _, s := range []*delivery.DeliveryService{svc, other} {
				wg.Go(func() {
					if _, err := s.ProcessDue(t.Context()); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			if n := f.Count() - before; n != 1 {
				t.Fatalf("round %d: %d probes", round, n)
			}
		}
	})
}
