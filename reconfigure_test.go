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
	"github.com/deliverykit/delivery/payload"
	"github.com/deliverykit/delivery/queue"
	"github.com/deliverykit/delivery/retry"
)

// New settings apply to what begins afterwards, and a zero field is the default again.
func TestReconfigure(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		c := newClock()
		f := &fake{deliver: func(context.Context, *handler.Request) (*handler.Result, error) { return nil, errors.New("down") }}
		svc := service(t, db, f, c.option(), delivery.WithRetry(retry.Policy{Retries: retry.None}))
		acme := svc.Org("acme")
		create(t, acme, destination.Spec{Default: true})
		first := send(t, acme, delivery.Request{})
		process(t, svc)
		if s := status(t, acme, first); s.State != queue.Failed {
			t.Fatalf("without retries: %s", show(s))
		}
		if err := svc.Reconfigure(delivery.WithRetry(retry.Policy{Retries: 1, First: time.Hour, Jitter: -1})); err != nil {
			t.Fatal(err)
		}
		second := send(t, acme, delivery.Request{})
		process(t, svc)
		s := status(t, acme, second)
		if at := s.Items[0].NextAttempt; s.State != queue.InProgress || !at.Equal(c.now().Add(time.Hour)) {
			t.Errorf("with a retry after an hour: next at %v, %s", at, show(s))
		}
		if err := svc.Reconfigure(delivery.WithRetry(retry.Policy{Jitter: -1})); err != nil {
			t.Fatal(err)
		}
		third := send(t, acme, delivery.Request{})
		process(t, svc)
		if at := status(t, acme, third).Items[0].NextAttempt; !at.Equal(c.now().Add(retry.Default().First)) {
			t.Errorf("a zero field is %v, not the default", at.Sub(c.now()))
		}
		if err := svc.Reconfigure(delivery.WithQuotas(delivery.Quotas{InMemory: 1})); err != nil {
			t.Fatal(err)
		}
		if _, err := acme.Deliver(t.Context(), delivery.Request{Payload: payload.JSON("hello")}); err == nil || !strings.Contains(err.Error(), "at most 1 are") {
			t.Errorf("above the new quota: %v", err)
		}
	})
}

// An option that is fixed, bad, nil or given twice changes nothing, and the error names each of them.
func TestReconfigureAllOrNone(t *testing.T) {
	t.Parallel()
	svc := service(t, open(t, "sqlite"), &fake{})
	err := svc.Reconfigure(
		delivery.WithQuotas(delivery.Quotas{InMemory: 1}),
		delivery.WithWorkers(3), delivery.WithHandler("other", &fake{}), delivery.WithActorRequired(),
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
	create(t, acme, destination.Spec{Default: true})
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
	each(t, func(t *testing.T, db *sql.DB) {
		f := &fake{}
		svc := service(t, db, f)
		acme := svc.Org("acme")
		for range 3 {
			create(t, acme, destination.Spec{Default: true})
		}
		run(t, svc)
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
			must[*delivery.Receipt](t)(acme.Deliver(t.Context(), delivery.Request{Payload: payload.JSON("hello")}))
			must[delivery.Chores](t)(svc.Maintain(t.Context()))
		}
		receipt := must[*delivery.Receipt](t)(acme.Deliver(t.Context(), delivery.Request{Payload: payload.JSON("hello")}))
		must[*delivery.Status](t)(acme.WaitFor(within(t, time.Minute), receipt.ID))
		close(stop)
		changing.Wait()
		for limit := within(t, time.Minute); ; {
			stats := must[*queue.Stats](t)(svc.Queue().Stats(t.Context()))
			if stats.Ready+stats.Processing+stats.Scheduled == 0 {
				break
			}
			select {
			case <-limit.Done():
				t.Fatalf("something is still queued: %+v", stats)
			case <-time.After(10 * time.Millisecond):
			}
		}
		if n := f.count(); n != 3*(deliveries+1) {
			t.Errorf("%d attempts were made, want %d", n, 3*(deliveries+1))
		}
	})
}
