package delivery_test

import (
	"context"
	"database/sql"
	"errors"
	"strings"
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

func TestExplain(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		c := testkit.NewClock()
		f := &testkit.Fake{Do: func(_ context.Context, r *handler.Request) (*handler.Result, error) {
			switch r.Topic {
			case "no":
				return nil, errors.New("out of luck")
			case "never":
				return nil, handler.Permanent(errors.New("out of bounds"))
			}
			return nil, nil
		}}
		svc := testkit.Service(t, db, f, c.Option(), delivery.WithRetry(retry.Policy{First: time.Minute, Jitter: -1}))
		acme := svc.Org("acme")
		on := func(d *destination.Destination, topic string, change func(r *delivery.Request)) string {
			r := delivery.Request{Destinations: []string{d.ID}, Topic: topic, Payload: payload.JSON(1)}
			if change != nil {
				change(&r)
			}
			return testkit.Send(t, acme, r)
		}
		expect := func(id string, state queue.State, reason queue.Reason, next time.Duration, words ...string) {
			t.Helper()
			got := testkit.Try(acme.Explain(t.Context(), id)).Must(t)
			if len(got) != 1 || got[0].State != state || got[0].Reason != reason {
				t.Errorf("%+v, want %s, %s", got, state, reason)
				return
			}
			if next < 0 && !got[0].Next.IsZero() || next >= 0 && got[0].Next.Sub(c.Now()).Round(time.Millisecond) != next {
				t.Errorf("%s: next is %s, want in %s", reason, got[0].Next, next)
			}
			for _, w := range words {
				if !strings.Contains(got[0].Text, w) {
					t.Errorf("%s: %q does not say %q", reason, got[0].Text, w)
				}
			}
		}
		plain := testkit.Create(t, acme, destination.Spec{})
		expect(on(plain, "x", nil), queue.Ready, queue.Turn, -1, "worker is free")
		later := c.Now().Add(time.Hour)
		expect(on(plain, "x", func(r *delivery.Request) { r.NotBefore = later }), queue.Scheduled, queue.NotBefore, time.Hour)
		failed, dead, done := on(plain, "no", nil), on(plain, "never", nil), on(plain, "x", nil)
		testkit.Process(t, svc)
		expect(failed, queue.Scheduled, queue.Backoff, time.Minute, "attempt 2", "out of luck")
		expect(dead, queue.Dead, queue.Permanent, -1, "out of bounds", "Retry")
		expect(done, queue.Delivered, queue.None, -1)

		disabled := testkit.Create(t, acme, destination.Spec{Disabled: true})
		expect(on(disabled, "x", nil), queue.Ready, queue.Disabled, -1, "disabled")
		if err := acme.Destinations().Pause(t.Context(), disabled.ID); err != nil {
			t.Fatal(err)
		}
		if err := svc.Queue().Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		expect(on(disabled, "x", nil), queue.Ready, queue.Paused, -1, "the destination since", "the whole queue since")
		if err := svc.Queue().Resume(t.Context()); err != nil {
			t.Fatal(err)
		}

		broken := testkit.Create(t, acme, destination.Spec{Breaker: retry.Breaker{Failures: 1, Cooldown: time.Hour, Probes: 1}})
		on(broken, "no", nil)
		testkit.Process(t, svc)
		waiting := on(broken, "x", nil)
		expect(waiting, queue.Ready, queue.BreakerOpen, time.Hour, "after 1 failure")

		rated := testkit.Create(t, acme, destination.Spec{Limits: destination.Limits{PerSecond: 1, Burst: 1}})
		for range 3 {
			on(rated, "x", nil)
		}
		last := on(rated, "x", nil)
		testkit.Process(t, svc)
		expect(last, queue.Ready, queue.RateLimit, 3*time.Second, "1 attempts a second", "2 items are before it")

		ordered := testkit.Create(t, acme, destination.Spec{Limits: destination.Limits{Ordered: true}})
		on(ordered, "no", nil)
		second := on(ordered, "x", nil)
		testkit.Process(t, svc)
		expect(second, queue.Ready, queue.InOrder, -1, "strict order")

		held := testkit.Create(t, acme, destination.Spec{Disabled: true, Breaker: retry.Breaker{CatchUpPerSecond: 1}})
		for range 2 {
			on(held, "x", nil)
		}
		behind := on(held, "x", nil)
		testkit.Try(acme.Destinations().Update(t.Context(), held.ID, destination.Patch{Disabled: destination.Set(false)})).Must(t)
		testkit.Process(t, svc)
		expect(behind, queue.Ready, queue.CatchingUp, 2*time.Second, "was held", "one item is before it")

		if _, err := svc.Org("other").Explain(t.Context(), done); !errors.Is(err, delivery.ErrNotFound) {
			t.Errorf("of another organization: %v", err)
		}
	})
}

// A process without handlers tells that nobody attempts a type, until somebody does.
func TestExplainNoHandler(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		c := testkit.NewClock()
		worker := testkit.Service(t, db, &testkit.Fake{}, c.Option())
		acme := worker.Org("acme")
		testkit.Create(t, acme, destination.Spec{Default: true, Disabled: true})
		id := testkit.Send(t, acme, delivery.Request{})
		sender, err := delivery.New(db, c.Option())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = sender.Close() })
		d := testkit.Try(acme.Destinations().List(t.Context(), delivery.DestinationFilter{}, "")).Must(t).Items[0]
		testkit.Try(acme.Destinations().Update(t.Context(), d.ID, destination.Patch{Disabled: destination.Set(false)})).Must(t)
		reason := func() queue.Reason {
			return testkit.Try(sender.Org("acme").Explain(t.Context(), id)).Must(t)[0].Reason
		}
		if got := reason(); got != queue.NoHandler {
			t.Errorf("with no worker: %s", got)
		}
		if err := acme.Queue().Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		testkit.Process(t, worker)
		if err := acme.Queue().Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := reason(); got != queue.Turn {
			t.Errorf("with a worker: %s", got)
		}
		c.Advance(time.Hour)
		if got := reason(); got != queue.NoHandler {
			t.Errorf("an hour after the worker was seen: %s", got)
		}
	})
}

func TestStats(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		c := testkit.NewClock()
		f := &testkit.Fake{Do: func(_ context.Context, r *handler.Request) (*handler.Result, error) {
			if r.Topic == "b" {
				return nil, errors.New("no")
			}
			return nil, nil
		}}
		svc := testkit.Service(t, db, f, c.Option(), delivery.WithRetry(retry.Policy{First: time.Hour, Max: time.Hour}))
		acme, other := svc.Org("acme"), svc.Org("other")
		for _, org := range []*delivery.Org{acme, other} {
			testkit.Create(t, org, destination.Spec{Default: true})
		}
		testkit.Create(t, other, destination.Spec{Default: true, Disabled: true})
		testkit.Try(acme.DeliverMany(t.Context(), testkit.Topics(26))).Must(t)
		c.Advance(time.Minute)
		testkit.Try(other.DeliverMany(t.Context(), testkit.Topics(10))).Must(t)
		stats := func(q *delivery.Queue) queue.Stats { return *testkit.Try(q.Stats(t.Context())).Must(t) }
		if s := stats(svc.Queue()); s.Ready != 36 || s.Held != 10 || s.Processing+s.Scheduled != 0 || s.PerSecond != 0 ||
			s.TimeToEmpty != -1 || !s.Oldest.Equal(c.Now().Add(-time.Minute)) {
			t.Errorf("before: %+v", s)
		}
		testkit.Process(t, svc)
		if s := stats(svc.Queue()); s.Ready != 0 || s.Held != 10 || s.Scheduled != 2 || s.TimeToEmpty != 0 || !s.Oldest.IsZero() || s.PerSecond < 34.0/360 || s.PerSecond > 34.0/300 {
			t.Errorf("after: %+v", s)
		}
		if s := stats(acme.Queue()); s.Held != 0 || s.Scheduled != 1 || s.PerSecond < 25.0/360 || s.PerSecond > 25.0/300 {
			t.Errorf("of one organization: %+v", s)
		}
		testkit.Try(acme.DeliverMany(t.Context(), testkit.Topics(1))).Must(t)
		if s := stats(acme.Queue()); s.Ready != 1 || s.TimeToEmpty <= 0 || s.TimeToEmpty > 20*time.Second {
			t.Errorf("with one that waits: %+v", s)
		}
	})
}
