package systemtest_test

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
	"github.com/deliverykit/delivery/internal/testkit"
)

// Idle destinations are tested now and then, failing ones more often, each by one process.
func TestScheduledChecks(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		c := testkit.NewClock()
		v := &testkit.Vault{}
		checks := delivery.WithHealthChecks(delivery.HealthChecks{Every: time.Hour, Failing: 10 * time.Minute})
		svc, d := testkit.OpenVault(t, db, v, c.Option(), checks)
		second := testkit.Service(t, db, &testkit.Fake{}, delivery.WithHandler("vault", v), c.Option(), checks)
		ds := svc.Org("acme").Destinations()
		events := svc.Subscribe(t.Context(), event.Filter{Destination: d.ID})
		step := func(after time.Duration, tested int, want ...event.Kind) {
			t.Helper()
			c.Advance(after)
			before := v.Tested()
			for range 2 {
				testkit.Try(svc.Maintain(t.Context())).Must(t)
				testkit.Try(second.Maintain(t.Context())).Must(t)
			}
			if n := v.Tested() - before; n != tested {
				t.Errorf("after %s it was tested %d times, want %d", after, n, tested)
			}
			if got := testkit.Kinds(testkit.Heard(events)); !slices.Equal(got, want) {
				t.Errorf("after %s the events are %v, want %v", after, got, want)
			}
		}
		report := destination.TestReport{OK: true}
		v.Set(func() {
			v.OnTest = func(context.Context, *handler.TestRequest) (*destination.TestReport, error) {
				r := report
				return &r, nil
			}
		})
		step(time.Minute, 0)
		step(2*time.Hour, 1)
		step(time.Minute, 0)
		v.Set(func() {
			report = destination.TestReport{Steps: []destination.TestStep{{Name: "connect", Finding: "nobody listens"}}}
		})
		// Only the first service hears of what it finds itself, and either may be the one that
		// tests.
		c.Advance(2 * time.Hour)
		before := v.Tested()
		testkit.Try(svc.Maintain(t.Context())).Must(t)
		if v.Tested() != before+1 || !slices.Equal(testkit.Kinds(testkit.Heard(events)), []event.Kind{event.CheckFailed}) {
			t.Errorf("tested %d times", v.Tested()-before)
		}
		if h := testkit.Try(ds.Health(t.Context(), d.ID, 0)).Must(t); h.Check == nil || h.Check.Report.OK || h.NextCheck.After(c.Now().Add(10*time.Minute)) {
			t.Errorf("got %+v", h)
		}
		v.Set(func() {
			report = destination.TestReport{OK: true, Warnings: []destination.Warning{{Code: "certificate_expires", Message: "soon", Until: c.Now()}}}
		})
		step(11*time.Minute, 1, event.CheckRecovered, event.DestinationDrift)
		step(2*time.Hour, 1) // the same warning is no news
	})
}

// What is in use is tested once a day, for what is about to expire; its deliveries say that it is
// well, not its answers to tests.
func TestDestinationsInUseAreTestedDaily(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		c := testkit.NewClock()
		v := &testkit.Vault{}
		report := destination.TestReport{OK: true, Warnings: []destination.Warning{{Code: "certificate_expires", Message: "soon", Until: c.Now()}}}
		v.OnTest = func(context.Context, *handler.TestRequest) (*destination.TestReport, error) {
			r := report
			return &r, nil
		}
		svc, d := testkit.OpenVault(t, db, v, c.Option())
		acme := svc.Org("acme")
		events := svc.Subscribe(t.Context(), event.Filter{Destination: d.ID})
		day := func(tests int, want ...event.Kind) {
			t.Helper()
			before := v.Tested()
			for range 24 {
				testkit.Send(t, acme, delivery.Request{Destinations: []string{d.ID}})
				testkit.Process(t, svc)
				testkit.Try(svc.Maintain(t.Context())).Must(t)
				c.Advance(time.Hour)
			}
			if got := testkit.Kinds(testkit.Heard(events)); v.Tested()-before != tests || !slices.Equal(got, want) {
				t.Errorf("it was tested %d times, want %d; events are %v, want %v", v.Tested()-before, tests, got, want)
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

// What was disabled by hand is left alone, whatever the reason; what the service disabled is
// tested, to see it recover.
func TestDisabledByHandIsNotTested(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		c := testkit.NewClock()
		v := &testkit.Vault{}
		v.Do = func(context.Context, *handler.Request) (*handler.Result, error) {
			return nil, handler.Gone(errors.New("moved"))
		}
		svc, d := testkit.OpenVault(t, db, v, c.Option())
		acme := svc.Org("acme")
		testkit.Try(svc.Maintain(t.Context())).Must(t)
		after := func(disabled, byService bool, tests int) {
			t.Helper()
			before := v.Tested()
			c.Advance(24 * time.Hour)
			testkit.Try(svc.Maintain(t.Context())).Must(t)
			got := testkit.Try(acme.Destinations().Get(t.Context(), d.ID)).Must(t)
			if v.Tested()-before != tests || got.Disabled != disabled || got.DisabledByService != byService || (got.DisabledReason != "") != disabled {
				t.Errorf("it was tested %d times, want %d, and is %+v", v.Tested()-before, tests, got)
			}
		}
		testkit.Try(acme.Destinations().Disable(t.Context(), d.ID, "they are moving")).Must(t)
		after(true, false, 0)
		testkit.Try(acme.Destinations().Enable(t.Context(), d.ID)).Must(t)
		after(false, false, 1)
		testkit.Send(t, acme, delivery.Request{Destinations: []string{d.ID}})
		testkit.Process(t, svc)
		after(true, true, 1)
		testkit.Try(acme.Destinations().Disable(t.Context(), d.ID, "known")).Must(t)
		after(true, false, 0)
	})
}

func TestHealthReport(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		f := &testkit.Fake{}
		f.Do = func(_ context.Context, r *handler.Request) (*handler.Result, error) {
			if r.Topic == "bad" {
				return nil, handler.Permanent(errors.New("no"))
			}
			return nil, nil
		}
		svc := testkit.Service(t, db, f)
		acme := svc.Org("acme")
		d := testkit.Create(t, acme, destination.Spec{Default: true})
		for i := range 10 {
			testkit.Send(t, acme, delivery.Request{Topic: map[bool]string{true: "bad", false: "good"}[i < 4]})
		}
		testkit.Process(t, svc)
		h := testkit.Try(acme.Destinations().Health(t.Context(), d.ID, time.Hour)).Must(t)
		if h.Attempts != 10 || h.Failed != 4 || h.Delivered != 6 || h.Dead != 4 || h.SuccessRate != 0.6 || h.Pending || h.LastUsed.IsZero() ||
			h.Latency.P50 <= 0 || h.Latency.P50 > h.Latency.P95 || h.Latency.P95 > h.Latency.P99 {
			t.Errorf("got %+v", h)
		}
	})
}

// What a destination was used for is told when the statistics by the minute are no longer there.
func TestUsageOutlivesStatistics(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		c := testkit.NewClock()
		f := &testkit.Fake{Do: func(_ context.Context, r *handler.Request) (*handler.Result, error) {
			if r.Topic == "bad" {
				return nil, handler.Permanent(errors.New("no"))
			}
			return nil, nil
		}}
		svc := testkit.Service(t, db, f, c.Option())
		acme := svc.Org("acme")
		d, unused := testkit.Create(t, acme, destination.Spec{Default: true}), testkit.Create(t, acme, destination.Spec{})
		use := func(topics ...string) time.Time {
			for _, topic := range topics {
				testkit.Send(t, acme, delivery.Request{Topic: topic})
				testkit.Process(t, svc)
			}
			return c.Now().Truncate(time.Minute)
		}
		expect := func(id string, attempts int64, last time.Time, want destination.Usage) {
			t.Helper()
			h := testkit.Try(acme.Destinations().Health(t.Context(), id, time.Hour)).Must(t)
			if h.Total != want || !h.LastUsed.Equal(last) || h.Attempts != attempts {
				t.Errorf("total %+v, last used %s, %d attempts within the hour; want %+v, %s, %d", h.Total, h.LastUsed, h.Attempts, want, last, attempts)
			}
		}
		use("good", "bad")
		c.Advance(2 * time.Minute)
		last := use("good")
		expect(d.ID, 3, last, destination.Usage{Delivered: 2, Dead: 1, Attempts: 3, Failed: 1})
		for range 2 {
			c.Advance(40 * 24 * time.Hour)
			testkit.Try(svc.Maintain(t.Context())).Must(t)
			expect(d.ID, 0, last, destination.Usage{Delivered: 2, Dead: 1, Attempts: 3, Failed: 1})
		}
		if n := testkit.Count(t, db, "delivery_minutes"); n != 0 {
			t.Errorf("%d minutes are left", n)
		}
		last = use("bad")
		expect(d.ID, 1, last, destination.Usage{Delivered: 2, Dead: 2, Attempts: 4, Failed: 2})
		c.Advance(40 * 24 * time.Hour)
		testkit.Try(svc.Maintain(t.Context())).Must(t)
		expect(d.ID, 0, last, destination.Usage{Delivered: 2, Dead: 2, Attempts: 4, Failed: 2})
		expect(unused.ID, 0, time.Time{}, destination.Usage{})
	})
}

// A destination that never answers, with a timeout of a day, costs a scheduled test 30 s at most.
func TestScheduledTestsAreBoundedByTheService(t *testing.T) {
	t.Parallel()
	c := testkit.NewClock()
	v := &testkit.Vault{}
	svc, d := testkit.OpenVault(t, testkit.Open(t, "sqlite"), v, c.Option(),
		delivery.WithHealthChecks(delivery.HealthChecks{Every: time.Hour}))
	testkit.Try(svc.Org("acme").Destinations().Update(t.Context(), d.ID, destination.Patch{
		Limits: &destination.Limits{Timeout: destination.Hours(24)},
	})).Must(t)
	limit := time.Duration(0)
	v.Set(func() {
		v.OnTest = func(ctx context.Context, _ *handler.TestRequest) (*destination.TestReport, error) {
			deadline, _ := ctx.Deadline()
			limit = time.Until(deadline)
			return &destination.TestReport{OK: true}, nil
		}
	})
	testkit.Try(svc.Maintain(t.Context())).Must(t)
	c.Advance(2 * time.Hour)
	if n := testkit.Try(svc.Maintain(t.Context())).Must(t).DestinationsChecked; n != 1 || limit <= 0 || limit > 30*time.Second {
		t.Errorf("%d were tested, with %v to go", n, limit)
	}
	testkit.Try(svc.Org("acme").Destinations().Test(t.Context(), d.ID)).Must(t)
	if limit < 23*time.Hour {
		t.Errorf("a test by hand had %v", limit)
	}
}
