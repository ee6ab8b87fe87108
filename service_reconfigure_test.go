package delivery_test

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"sync"
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

// New settings apply to what begins afterwards, and a zero field is the default again.
func TestReconfigure(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		c := testkit.NewClock()
		f := &testkit.Fake{Do: func(context.Context, *handler.Request) (*handler.Result, error) { return nil, errors.New("down") }}
		svc := testkit.Service(t, db, f, c.Option(), delivery.WithRetry(retry.Policy{Retries: retry.None}))
		acme := svc.Org("acme")
		testkit.Create(t, acme, destination.Spec{Default: true})
		first := testkit.Send(t, acme, delivery.Request{})
		testkit.Process(t, svc)
		if s := testkit.Status(t, acme, first); s.State != queue.Failed {
			t.Fatalf("without retries: %s", testkit.Show(s))
		}
		if err := svc.Reconfigure(delivery.WithRetry(retry.Policy{Retries: 1, First: time.Hour, Jitter: -1})); err != nil {
			t.Fatal(err)
		}
		second := testkit.Send(t, acme, delivery.Request{})
		testkit.Process(t, svc)
		s := testkit.Status(t, acme, second)
		if at := s.Items[0].NextAttempt; s.State != queue.InProgress || !at.Equal(c.Now().Add(time.Hour)) {
			t.Errorf("with a retry after an hour: next at %v, %s", at, testkit.Show(s))
		}
		if err := svc.Reconfigure(delivery.WithRetry(retry.Policy{Jitter: -1})); err != nil {
			t.Fatal(err)
		}
		third := testkit.Send(t, acme, delivery.Request{})
		testkit.Process(t, svc)
		if at := testkit.Status(t, acme, third).Items[0].NextAttempt; !at.Equal(c.Now().Add(retry.Default().First)) {
			t.Errorf("a zero field is %v, not the default", at.Sub(c.Now()))
		}
		if err := svc.Reconfigure(delivery.WithQuotas(delivery.Quotas{InMemory: 1})); err != nil {
			t.Fatal(err)
		}
		if _, err := acme.Deliver(t.Context(), delivery.Request{Payload: payload.JSON("hello")}); err == nil || !strings.Contains(err.Error(), "at most 1 are") {
			t.Errorf("above the new quota: %v", err)
		}
	})
}

// An option that is fixed, bad, nil or given twice changes nothing, and the error names each of
// them.
func TestReconfigureAllOrNone(t *testing.T) {
	t.Parallel()
	svc := testkit.Service(t, testkit.Open(t, "sqlite"), &testkit.Fake{})
	err := svc.Reconfigure(
		delivery.WithQuotas(delivery.Quotas{InMemory: 1}),
		delivery.WithWorkers(3), delivery.WithHandler("other", &testkit.Fake{}), delivery.WithActorRequired(),
		delivery.WithShutdownTimeout(-time.Second), nil,
		delivery.WithPollInterval(time.Second), delivery.WithPollInterval(time.Second),
	)
	if err == nil {
		t.Fatal("all of them were accepted")
	}
	for _, want := range []string{
		"WithWorkers: it is fixed", `WithHandler("other"): it is fixed`, "WithActorRequired: it is fixed",
		"WithShutdownTimeout: timeout -1s is not", "option 6 is nil", "WithPollInterval is given twice",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not say %q: %v", want, err)
		}
	}
	acme := svc.Org("acme")
	testkit.Create(t, acme, destination.Spec{Default: true})
	if _, err := acme.Deliver(t.Context(), delivery.Request{Payload: payload.JSON("hello")}); err != nil {
		t.Errorf("one of the settings was taken: %v", err)
	}
	if err := svc.Close(); err != nil {
		t.Fatal(err)
	}
	if err := svc.Reconfigure(); !errors.Is(err, delivery.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// Settings may change while everything runs: each claim, attempt and call goes by one policy.
func TestReconfigureUnderLoad(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		f := &testkit.Fake{}
		svc := testkit.Service(t, db, f)
		acme := svc.Org("acme")
		for range 3 {
			testkit.Create(t, acme, destination.Spec{Default: true})
		}
		testkit.Run(t, svc)
		const deliveries = 100
		stop := make(chan struct{})
		var changing sync.WaitGroup
		for i := range 2 {
			changing.Go(func() {
				for n := i; ; n++ {
					select {
					case <-stop:
						return
					default:
					}
					err := svc.Reconfigure(
						delivery.WithLimits(destination.Limits{Concurrency: 1 + n%5, Timeout: destination.Duration(time.Minute)}),
						delivery.WithOrganizationConcurrency(5+n%7), delivery.WithPollInterval(10*time.Millisecond),
						delivery.WithRetry(retry.Policy{Retries: 1 + n%3}), delivery.WithShutdownTimeout(time.Duration(n%9)*time.Second),
						delivery.WithQuotas(delivery.Quotas{Batch: 100 + n%9}), delivery.WithRetention(delivery.Retention{Statistics: time.Hour}),
						delivery.WithHealthChecks(delivery.HealthChecks{Every: time.Hour}),
					)
					if err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		for range deliveries {
			testkit.Try(acme.Deliver(t.Context(), delivery.Request{Payload: payload.JSON("hello")})).Must(t)
			testkit.Try(svc.Maintain(t.Context())).Must(t)
		}
		receipt := testkit.Try(acme.Deliver(t.Context(), delivery.Request{Payload: payload.JSON("hello")})).Must(t)
		testkit.Try(acme.WaitFor(testkit.Within(t, time.Minute), receipt.ID)).Must(t)
		close(stop)
		changing.Wait()
		for limit := testkit.Within(t, time.Minute); ; {
			stats := testkit.Try(svc.Queue().Stats(t.Context())).Must(t)
			if stats.Ready+stats.Processing+stats.Scheduled == 0 {
				break
			}
			select {
			case <-limit.Done():
				t.Fatalf("something is still queued: %+v", stats)
			case <-time.After(10 * time.Millisecond):
			}
		}
		if n := f.Count(); n != 3*(deliveries+1) {
			t.Errorf("%d attempts were made, want %d", n, 3*(deliveries+1))
		}
	})
}
