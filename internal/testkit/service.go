package testkit

import (
	"context"
	"database/sql"
	"fmt"
	"io"
	"log/slog"
	"math"
	"testing"
	"time"

	"github.com/deliverykit/delivery"
	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/event"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/internal/settings"
	"github.com/deliverykit/delivery/payload"
	"github.com/deliverykit/delivery/retry"
)

// Patient is a policy under which no item dies in these tests, and each retry comes after a second.
func Patient() delivery.Option {
	return delivery.WithRetry(retry.Policy{Retries: 1000, First: time.Second, Max: time.Second, Jitter: -1})
}

// Health returns the state of a destination.
func Health(t *testing.T, org *delivery.Org, id string) *destination.Destination {
	t.Helper()
	return Try(org.Destinations().Get(t.Context(), id)).Must(t)
}

// CountDead counts dead letters.
func CountDead(t *testing.T, org *delivery.Org, f delivery.DeadFilter) int {
	t.Helper()
	return Try(org.DeadLetters().Count(t.Context(), f)).Must(t)
}

// SweepOnly lets a process that has no handlers find what has expired.
func SweepOnly(t *testing.T, db *sql.DB, c *Clock) {
	t.Helper()
	svc, err := delivery.New(db, c.Option())
	if err != nil {
		t.Fatal(err)
	}
	Try(svc.ProcessDue(t.Context())).Must(t)
}

// Heard takes what a subscriber has got so far.
func Heard(ch <-chan event.Event) (all []event.Event) {
	for {
		select {
		case e, ok := <-ch:
			if !ok {
				return all
			}
			all = append(all, e)
		default:
			return all
		}
	}
}

// Kinds lists the kinds of events.
func Kinds(events []event.Event) (all []event.Kind) {
	for _, e := range events {
		all = append(all, e.Kind)
	}
	return all
}

// Topics are requests about "a", "b", and so on.
func Topics(n int) []delivery.Request {
	all := make([]delivery.Request, n)
	for i := range all {
		all[i] = delivery.Request{Topic: string(rune('a' + i%26)), Payload: payload.JSON(i)}
	}
	return all
}

// Key is a key for LocalKey.
const Key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="

// Service returns a service without breakers: most tests have items fail without meaning to.
func Service(t *testing.T, db delivery.DB, h handler.Handler, opts ...delivery.Option) *delivery.DeliveryService {
	t.Helper()
	opts = append([]delivery.Option{
		delivery.WithHandler("fake", h), delivery.WithKeys(delivery.LocalKey("k1", Key)),
		delivery.WithLogger(slog.New(slog.NewTextHandler(t.Output(), nil))),
		Breaker(retry.Breaker{Failures: math.MaxInt32, DisableFailures: -1}),
	}, opts...)
	svc, err := delivery.New(db, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := svc.Close(); err != nil {
			t.Error(err)
		}
	})
	return svc
}

// Create makes a destination of the type "fake", unless spec has another config.
func Create(t *testing.T, org *delivery.Org, spec destination.Spec) *destination.Destination {
	t.Helper()
	if spec.Label == "" {
		spec.Label = "fake"
	}
	if spec.Config == nil {
		spec.Config = Script{Name: "n", Token: destination.NewSecret("s3cret")}
	}
	d, err := org.Destinations().Create(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// Show writes a status on a line.
func Show(s *delivery.Status) string {
	text := string(s.State)
	for _, i := range s.Items {
		text += fmt.Sprintf(" [%s %s", i.State, i.Reason)
		for _, a := range i.Attempts {
			text += fmt.Sprintf(" (%d %s %s %v)", a.Number, a.State, a.Reason, a.Error)
		}
		text += "]"
	}
	return text
}

// Lease makes leases short, and with them the heartbeat.
func Lease(d time.Duration) delivery.Option {
	return func(s *settings.Builder) error {
		s.Lease = d
		return nil
	}
}

// Breaker is WithBreaker over the default, and can be given twice.
func Breaker(b retry.Breaker) delivery.Option {
	return func(s *settings.Builder) error {
		s.Breaker = b.Or(retry.DefaultBreaker())
		return b.Validate()
	}
}

// LogTo has a service log to w.
func LogTo(w io.Writer) delivery.Option {
	return func(s *settings.Builder) error {
		s.Logger = slog.New(slog.NewTextHandler(w, nil))
		return nil
	}
}

// Run has svc run until the test ends.
func Run(t *testing.T, svc *delivery.DeliveryService) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := svc.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
}

// Send delivers a request, which needs no payload, and returns its id.
func Send(t *testing.T, org *delivery.Org, req delivery.Request) string {
	t.Helper()
	if req.Payload.IsZero() {
		req.Payload = payload.JSON("x")
	}
	return Try(org.Deliver(t.Context(), req)).Must(t).ID
}

// Process makes a pass.
func Process(t *testing.T, svc *delivery.DeliveryService) delivery.Pass {
	t.Helper()
	return Try(svc.ProcessDue(t.Context())).Must(t)
}

// Status returns the status of a delivery.
func Status(t *testing.T, org *delivery.Org, id string) *delivery.Status {
	t.Helper()
	return Try(org.Status(t.Context(), id)).Must(t)
}
