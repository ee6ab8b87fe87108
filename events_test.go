package delivery_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/deliverykit/delivery"
	"github.com/deliverykit/delivery/access"
	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/event"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/internal/testkit"
	"github.com/deliverykit/delivery/retry"
)

func TestEveryChangeIsAnEvent(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		v := &testkit.Vault{}
		svc, d := testkit.OpenVault(t, db, v)
		acme := svc.Org("acme")
		ds := acme.Destinations()
		ctx := t.Context()
		all, mine := svc.Subscribe(ctx, event.Filter{}), acme.Subscribe(ctx, event.Filter{Destination: d.ID})
		others := svc.Org("other").Subscribe(ctx, event.Filter{})
		only := acme.Subscribe(ctx, event.Filter{Kinds: []event.Kind{event.SecretRotated}})
		for _, step := range []struct {
			do   func() error
			want []event.Kind
		}{
			{func() error {
				_, err := ds.Update(ctx, d.ID, destination.Patch{Label: destination.Set("x")})
				return err
			}, []event.Kind{event.DestinationUpdated}},
			{func() error { _, err := ds.Disable(ctx, d.ID, "broken"); return err }, []event.Kind{event.DestinationUpdated, event.DestinationDisabled}},
			{func() error { _, err := ds.Enable(ctx, d.ID); return err }, []event.Kind{event.DestinationUpdated, event.DestinationEnabled}},
			{func() error { return ds.Pause(ctx, d.ID) }, []event.Kind{event.DestinationPaused}},
			{func() error { return ds.Resume(ctx, d.ID) }, []event.Kind{event.DestinationResumed}},
			{func() error { return ds.OpenBreaker(ctx, d.ID) }, []event.Kind{event.BreakerOpened}},
			{func() error { return ds.CloseBreaker(ctx, d.ID) }, []event.Kind{event.BreakerClosed}},
			{func() error { _, err := ds.RotateSecret(ctx, d.ID, destination.Rotation{}); return err }, []event.Kind{event.DestinationUpdated, event.SecretRotated}},
			{func() error { return ds.Delete(ctx, d.ID, destination.RefusePending) }, []event.Kind{event.DestinationDeleted}},
		} {
			if err := step.do(); err != nil {
				t.Fatal(err)
			}
			got := testkit.Heard(all)
			if !slices.Equal(testkit.Kinds(got), step.want) {
				t.Errorf("got %v, want %v", testkit.Kinds(got), step.want)
			}
			if got := testkit.Heard(mine); !slices.Equal(testkit.Kinds(got), step.want) {
				t.Errorf("the organization got %v, want %v", testkit.Kinds(got), step.want)
			}
			for _, e := range got {
				if e.Organization != "acme" || e.Destination != d.ID || e.At.IsZero() || e.Missed != 0 {
					t.Errorf("got %+v", e)
				}
			}
		}
		if got := testkit.Heard(only); len(got) != 1 || got[0].Version == 0 || got[0].Reason == "" {
			t.Errorf("rotations are %+v", got)
		}
		if _, err := svc.Org("other").Destinations().Get(ctx, d.ID); !errors.Is(err, delivery.ErrNotFound) {
			t.Error(err)
		}
		if got := testkit.Heard(all); len(got) != 1 || got[0].Kind != event.SecurityNoted || got[0].Organization != "acme" {
			t.Errorf("a security event gave %+v", got)
		}
		testkit.Create(t, acme, destination.Spec{})
		if got := testkit.Heard(all); !slices.Equal(testkit.Kinds(got), []event.Kind{event.DestinationCreated}) {
			t.Errorf("got %+v", got)
		}
		if got := testkit.Heard(others); len(got) != 0 {
			t.Errorf("another organization heard %+v", got)
		}
	})
}

// Who may see destinations and no security events does not hear of those either.
func TestSecurityEventsAreHeardByThoseWhoMayReadThem(t *testing.T) {
	t.Parallel()
	acme := testkit.Service(t, testkit.Open(t, "sqlite"), &testkit.Fake{}, delivery.WithAuthorizer(access.ByRole())).Org("acme")
	hears := func(role access.Role) <-chan event.Event {
		return acme.Subscribe(access.WithActor(t.Context(), access.Actor{ID: "a", Roles: map[string]access.Role{"acme": role}}), event.Filter{})
	}
	admin, viewer := hears(access.Admin), hears(access.Viewer)
	if _, err := acme.Destinations().Get(access.WithActor(t.Context(), access.Actor{ID: "eve"}), "x"); !errors.Is(err, delivery.ErrNotFound) {
		t.Fatal(err)
	}
	testkit.Create(t, acme, destination.Spec{})
	if got := testkit.Kinds(testkit.Heard(admin)); !slices.Equal(got, []event.Kind{event.SecurityNoted, event.DestinationCreated}) {
		t.Errorf("an admin heard %v", got)
	}
	if got := testkit.Kinds(testkit.Heard(viewer)); !slices.Equal(got, []event.Kind{event.DestinationCreated}) {
		t.Errorf("a viewer heard %v", got)
	}
}

func TestHealthChangesAreEvents(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		c := testkit.NewClock()
		f, failing := testkit.Outage()
		svc := testkit.Service(t, db, f, c.Option(), testkit.Patient(), testkit.Breaker(retry.Breaker{}), delivery.WithWorkers(1))
		acme := svc.Org("acme")
		d := testkit.Create(t, acme, destination.Spec{Default: true, Breaker: retry.Breaker{
			Failures: 2, Cooldown: time.Minute, Probes: 1, DisableFailures: 4, DisableAfter: -1, Recovery: time.Hour,
		}})
		ch := acme.Subscribe(t.Context(), event.Filter{})
		testkit.Try(acme.DeliverMany(t.Context(), testkit.Topics(3))).Must(t)
		for range 200 {
			testkit.Process(t, svc)
			if testkit.Health(t, acme, d.ID).Disabled {
				break
			}
			c.Advance(20 * time.Second)
		}
		failing.Store(false)
		for range 200 {
			c.Advance(time.Minute)
			testkit.Process(t, svc)
			if testkit.Count(t, db, "delivery_queue") == 0 {
				break
			}
		}
		got := testkit.Heard(ch)
		for _, e := range got {
			if e.Organization != "acme" || e.Destination != d.ID || e.At.IsZero() {
				t.Errorf("got %+v", e)
			}
		}
		var reduced []event.Kind
		for _, k := range testkit.Kinds(got) {
			if len(reduced) == 0 || reduced[len(reduced)-1] != k {
				reduced = append(reduced, k)
			}
		}
		want := []event.Kind{event.BreakerOpened, event.DestinationDisabled, event.BreakerClosed, event.DestinationEnabled}
		if !slices.Equal(reduced, want) {
			t.Errorf("got %v, want %v", testkit.Kinds(got), want)
		}
		for _, e := range got {
			if e.Kind == event.DestinationDisabled && e.Reason == "" {
				t.Error("it was disabled without a reason")
			}
		}
	})
}

func TestSlowSubscribersMissEvents(t *testing.T) {
	t.Parallel()
	svc := testkit.Service(t, testkit.Open(t, "sqlite"), &testkit.Fake{})
	ch := svc.Subscribe(t.Context(), event.Filter{})
	const buffer, more = 256, 44
	for range buffer + more {
		svc.Publish(event.Event{Kind: event.DestinationUpdated, Organization: "acme"})
	}
	if got := testkit.Heard(ch); len(got) != buffer {
		t.Errorf("got %d events, want %d", len(got), buffer)
	}
	svc.Publish(event.Event{Kind: event.DestinationUpdated, Organization: "acme"})
	if got := testkit.Heard(ch); len(got) != 1 || got[0].Missed != more {
		t.Errorf("got %+v, want one that %d were missed before", got, more)
	}
}

func TestSubscriptionsEnd(t *testing.T) {
	t.Parallel()
	svc := testkit.Service(t, testkit.Open(t, "sqlite"), &testkit.Fake{})
	ctx, cancel := context.WithCancel(t.Context())
	ended, open := svc.Subscribe(ctx, event.Filter{}), svc.Subscribe(t.Context(), event.Filter{})
	cancel()
	if _, ok := <-ended; ok {
		t.Error("an event, although nothing happened")
	}
	if err := svc.Close(); err != nil {
		t.Fatal(err)
	}
	if _, ok := <-open; ok {
		t.Error("an event of a closed service")
	}
	if _, ok := <-svc.Subscribe(t.Context(), event.Filter{}); ok {
		t.Error("a closed service can be subscribed to")
	}
}

// A host tells people when a destination was disabled.
func ExampleDeliveryService_Subscribe() {
	index := handler.Func(func(context.Context, *handler.Request, siem) (*handler.Result, error) { return nil, nil })
	example(index, func(ctx context.Context, _ *sql.DB, svc *delivery.DeliveryService) error {
		events := svc.Subscribe(ctx, event.Filter{Kinds: []event.Kind{event.DestinationDisabled}})
		ds := svc.Org("acme").Destinations()
		d, err := ds.Create(ctx, destination.Spec{Label: "SIEM", Config: siem{Index: "audit"}})
		if err != nil {
			return err
		}
		if _, err := ds.Disable(ctx, d.ID, "moves to another index"); err != nil {
			return err
		}
		e := <-events
		fmt.Println(e.Organization, e.Kind, e.Destination == d.ID, e.Reason)
		return nil
	})
	// Output: acme destination.disabled true moves to another index
}
