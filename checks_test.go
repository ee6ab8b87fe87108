package delivery_test

import (
	"context"
	"database/sql"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/deliverykit/delivery"
	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/event"
	"github.com/deliverykit/delivery/handler"
)

// Idle destinations are tested now and then, failing ones more often, each by one process.
func TestScheduledChecks(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		c := newClock()
		v := &vault{}
		checks := delivery.WithHealthChecks(delivery.HealthChecks{Every: time.Hour, Failing: 10 * time.Minute})
		svc, d := openVault(t, db, v, c.option(), checks)
		second := service(t, db, &fake{}, delivery.WithHandler("vault", v), c.option(), checks)
		ds := svc.Org("acme").Destinations()
		events := svc.Subscribe(t.Context(), event.Filter{Destination: d.ID})
		step := func(after time.Duration, tested int, want ...event.Kind) {
			t.Helper()
			c.advance(after)
			before := v.tested()
			for range 2 {
				must[delivery.Chores](t)(svc.Maintain(t.Context()))
				must[delivery.Chores](t)(second.Maintain(t.Context()))
			}
			if n := v.tested() - before; n != tested {
				t.Errorf("after %s it was tested %d times, want %d", after, n, tested)
			}
			if got := kinds(heard(events)); !slices.Equal(got, want) {
				t.Errorf("after %s the events are %v, want %v", after, got, want)
			}
		}
		report := destination.TestReport{OK: true}
		v.set(func() {
			v.test = func(context.Context, *handler.TestRequest) (*destination.TestReport, error) {
				r := report
				return &r, nil
			}
		})
		step(time.Minute, 0)
		step(2*time.Hour, 1)
		step(time.Minute, 0)
		v.set(func() {
			report = destination.TestReport{Steps: []destination.TestStep{{Name: "connect", Finding: "nobody listens"}}}
		})
		// Only the first service hears of what it finds itself, and either may be the one that tests.
		c.advance(2 * time.Hour)
		before := v.tested()
		must[delivery.Chores](t)(svc.Maintain(t.Context()))
		if v.tested() != before+1 || !slices.Equal(kinds(heard(events)), []event.Kind{event.CheckFailed}) {
			t.Errorf("tested %d times", v.tested()-before)
		}
		if h := must[*destination.HealthReport](t)(ds.Health(t.Context(), d.ID, 0)); h.Check == nil || h.Check.Report.OK || h.NextCheck.After(c.now().Add(10*time.Minute)) {
			t.Errorf("got %+v", h)
		}
		v.set(func() {
			report = destination.TestReport{OK: true, Warnings: []destination.Warning{{Code: "certificate_expires", Message: "soon", Until: c.now()}}}
		})
		step(11*time.Minute, 1, event.CheckRecovered, event.DestinationDrift)
		step(2*time.Hour, 1) // the same warning is no news
	})
}

// What is in use is tested once a day, for what is about to expire; its deliveries say that it is well, not its answers to tests.
func TestDestinationsInUseAreTestedDaily(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		c := newClock()
		v := &vault{}
		report := destination.TestReport{OK: true, Warnings: []destination.Warning{{Code: "certificate_expires", Message: "soon", Until: c.now()}}}
		v.test = func(context.Context, *handler.TestRequest) (*destination.TestReport, error) {
			r := report
			return &r, nil
		}
		svc, d := openVault(t, db, v, c.option())
		acme := svc.Org("acme")
		events := svc.Subscribe(t.Context(), event.Filter{Destination: d.ID})
		day := func(tests int, want ...event.Kind) {
			t.Helper()
			before := v.tested()
			for range 24 {
				send(t, acme, delivery.Request{Destinations: []string{d.ID}})
				process(t, svc)
				must[delivery.Chores](t)(svc.Maintain(t.Context()))
				c.advance(time.Hour)
			}
			if got := kinds(heard(events)); v.tested()-before != tests || !slices.Equal(got, want) {
				t.Errorf("it was tested %d times, want %d; events are %v, want %v", v.tested()-before, tests, got, want)
			}
		}
		day(0)
		day(1, event.DestinationDrift)
		report = destination.TestReport{Steps: []destination.TestStep{{Name: "request", Finding: "takes no tests"}}}
		day(4, event.CheckFailed) // every six hours, not every five minutes
		report.OK = true
		day(1, event.CheckRecovered)
	})
}

// What was disabled by hand is left alone, whatever the reason; what the service disabled is tested, to see it recover.
func TestDisabledByHandIsNotTested(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		c := newClock()
		v := &vault{}
		v.deliver = func(context.Context, *handler.Request) (*handler.Result, error) {
			return nil, handler.Gone(errors.New("moved"))
		}
		svc, d := openVault(t, db, v, c.option())
		acme := svc.Org("acme")
		must[delivery.Chores](t)(svc.Maintain(t.Context()))
		after := func(disabled, byService bool, tests int) {
			t.Helper()
			before := v.tested()
			c.advance(24 * time.Hour)
			must[delivery.Chores](t)(svc.Maintain(t.Context()))
			got := must[*destination.Destination](t)(acme.Destinations().Get(t.Context(), d.ID))
			if v.tested()-before != tests || got.Disabled != disabled || got.DisabledByService != byService || (got.DisabledReason != "") != disabled {
				t.Errorf("it was tested %d times, want %d, and is %+v", v.tested()-before, tests, got)
			}
		}
		must[*destination.Destination](t)(acme.Destinations().Disable(t.Context(), d.ID, "they are moving"))
		after(true, false, 0)
		must[*destination.Destination](t)(acme.Destinations().Enable(t.Context(), d.ID))
		after(false, false, 1)
		send(t, acme, delivery.Request{Destinations: []string{d.ID}})
		process(t, svc)
		after(true, true, 1)
		must[*destination.Destination](t)(acme.Destinations().Disable(t.Context(), d.ID, "known"))
		after(true, false, 0)
	})
}

func TestHealthReport(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		f := &fake{}
		f.deliver = func(_ context.Context, r *handler.Request) (*handler.Result, error) {
			if r.Topic == "bad" {
				return nil, handler.Permanent(errors.New("no"))
			}
			return nil, nil
		}
		svc := service(t, db, f)
		acme := svc.Org("acme")
		d := create(t, acme, destination.Spec{Default: true})
		for i := range 10 {
			send(t, acme, delivery.Request{Topic: map[bool]string{true: "bad", false: "good"}[i < 4]})
		}
		process(t, svc)
		h := must[*destination.HealthReport](t)(acme.Destinations().Health(t.Context(), d.ID, time.Hour))
		if h.Attempts != 10 || h.Failed != 4 || h.Delivered != 6 || h.Dead != 4 || h.SuccessRate != 0.6 || h.Pending || h.LastUsed.IsZero() ||
			h.Latency.P50 <= 0 || h.Latency.P50 > h.Latency.P95 || h.Latency.P95 > h.Latency.P99 {
			t.Errorf("got %+v", h)
		}
	})
}

// What a destination was used for is told when the statistics by the minute are no longer there.
func TestUsageOutlivesStatistics(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		c := newClock()
		f := &fake{deliver: func(_ context.Context, r *handler.Request) (*handler.Result, error) {
			if r.Topic == "bad" {
				return nil, handler.Permanent(errors.New("no"))
			}
			return nil, nil
		}}
		svc := service(t, db, f, c.option())
		acme := svc.Org("acme")
		d, unused := create(t, acme, destination.Spec{Default: true}), create(t, acme, destination.Spec{})
		use := func(topics ...string) time.Time {
			for _, topic := range topics {
				send(t, acme, delivery.Request{Topic: topic})
				process(t, svc)
			}
			return c.now().Truncate(time.Minute)
		}
		expect := func(id string, attempts int64, last time.Time, want destination.Usage) {
			t.Helper()
			h := must[*destination.HealthReport](t)(acme.Destinations().Health(t.Context(), id, time.Hour))
			if h.Total != want || !h.LastUsed.Equal(last) || h.Attempts != attempts {
				t.Errorf("total %+v, last used %s, %d attempts within the hour; want %+v, %s, %d", h.Total, h.LastUsed, h.Attempts, want, last, attempts)
			}
		}
		use("good", "bad")
		c.advance(2 * time.Minute)
		last := use("good")
		expect(d.ID, 3, last, destination.Usage{Delivered: 2, Dead: 1, Attempts: 3, Failed: 1})
		for range 2 {
			c.advance(40 * 24 * time.Hour)
			must[delivery.Chores](t)(svc.Maintain(t.Context()))
			expect(d.ID, 0, last, destination.Usage{Delivered: 2, Dead: 1, Attempts: 3, Failed: 1})
		}
		if n := count(t, db, "delivery_minutes"); n != 0 {
			t.Errorf("%d minutes are left", n)
		}
		last = use("bad")
		expect(d.ID, 1, last, destination.Usage{Delivered: 2, Dead: 2, Attempts: 4, Failed: 2})
		c.advance(40 * 24 * time.Hour)
		must[delivery.Chores](t)(svc.Maintain(t.Context()))
		expect(d.ID, 0, last, destination.Usage{Delivered: 2, Dead: 2, Attempts: 4, Failed: 2})
		expect(unused.ID, 0, time.Time{}, destination.Usage{})
	})
}

// A destination that never answers, with a timeout of a day, costs a scheduled test 30 s at most.
func TestScheduledTestsAreBoundedByTheService(t *testing.T) {
	t.Parallel()
	c := newClock()
	v := &vault{}
	svc, d := openVault(t, open(t, "sqlite"), v, c.option(),
		delivery.WithHealthChecks(delivery.HealthChecks{Every: time.Hour}))
	must[*destination.Destination](t)(svc.Org("acme").Destinations().Update(t.Context(), d.ID, destination.Patch{
		Limits: &destination.Limits{Timeout: destination.Hours(24)},
	}))
	limit := time.Duration(0)
	v.set(func() {
		v.test = func(ctx context.Context, _ *handler.TestRequest) (*destination.TestReport, error) {
			deadline, _ := ctx.Deadline()
			limit = time.Until(deadline)
			return &destination.TestReport{OK: true}, nil
		}
	})
	must[delivery.Chores](t)(svc.Maintain(t.Context()))
	c.advance(2 * time.Hour)
	if n := must[delivery.Chores](t)(svc.Maintain(t.Context())).DestinationsChecked; n != 1 || limit <= 0 || limit > 30*time.Second {
		t.Errorf("%d were tested, with %v to go", n, limit)
	}
	must[*destination.TestReport](t)(svc.Org("acme").Destinations().Test(t.Context(), d.ID))
	if limit < 23*time.Hour {
		t.Errorf("a test by hand had %v", limit)
	}
}
