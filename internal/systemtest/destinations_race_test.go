package systemtest_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/deliverykit/delivery"
	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler/webhook"
	"github.com/deliverykit/delivery/internal/testkit"
	"github.com/deliverykit/delivery/payload"
	"github.com/deliverykit/delivery/queue"
)

// What is accepted while its destination is deleted ends, delivered or cancelled, and afterwards
// nothing is accepted.
func TestDeletionWhileItIsDeliveredTo(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		svc := testkit.Service(t, db, &testkit.Fake{})
		acme := svc.Org("acme")
		ds := acme.Destinations()
		testkit.Run(t, svc)
		for name, pending := range map[string]destination.Pending{
			"refuse": destination.RefusePending, "cancel": destination.CancelPending, "drain": destination.DrainPending,
		} {
			d := testkit.Create(t, acme, destination.Spec{Label: name, Tags: []string{name}})
			var mu sync.Mutex
			var accepted []string
			var senders sync.WaitGroup
			begun := make(chan struct{}, 3)
			for _, r := range []delivery.Request{
				{Destinations: []string{d.ID}}, {DestinationTags: []string{name}}, {Destinations: []string{d.ID}, NotBefore: time.Now().Add(time.Millisecond)},
			} {
				r.Payload = payload.JSON(1)
				senders.Go(func() {
					for i := range 60 { // not for ever: refuse needs a moment in which nothing waits
						receipt, err := acme.Deliver(t.Context(), r)
						if err != nil {
							if !errors.Is(err, delivery.ErrNotFound) && !errors.Is(err, delivery.ErrNoDestinations) {
								t.Errorf("%s: %v", name, err)
							}
							return
						}
						mu.Lock()
						accepted = append(accepted, receipt.ID)
						mu.Unlock()
						if i == 0 {
							begun <- struct{}{}
						}
					}
				})
			}
			for range 3 {
				<-begun
			}
			ctx := testkit.Within(t, time.Minute)
			err := ds.Delete(ctx, d.ID, pending)
			for errors.Is(err, delivery.ErrInUse) && pending == destination.RefusePending {
				err = ds.Delete(ctx, d.ID, pending)
			}
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			senders.Wait()
			for _, id := range accepted {
				s := testkit.Try(acme.WaitFor(ctx, id)).Must(t)
				if s.State != queue.Completed && (s.State != queue.AllCancelled || pending == destination.DrainPending) {
					t.Errorf("%s: it ended as %s", name, testkit.Show(s))
				}
			}
		}
	})
}

// Who pages sees all that was there before and still is, once each and in order, whatever is
// created and deleted meanwhile.
func TestPagesWhileOthersChange(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		svc := testkit.Service(t, db, &testkit.Fake{})
		acme := svc.Org("acme")
		ds := acme.Destinations()
		var want, passing []string
		for i := range 220 {
			d := testkit.Create(t, acme, destination.Spec{Tags: []string{"old"}, Label: fmt.Sprint(i)})
			if i%5 == 0 {
				passing = append(passing, d.ID)
			} else {
				want = append(want, d.ID)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		var others sync.WaitGroup
		defer others.Wait()
		defer cancel()
		others.Go(func() {
			for ctx.Err() == nil {
				if _, err := ds.Create(ctx, destination.Spec{Label: "new", Config: testkit.Script{Name: "n"}}); err != nil && ctx.Err() == nil {
					t.Error(err)
				}
			}
		})
		others.Go(func() {
			for _, id := range passing {
				if err := ds.Delete(ctx, id, destination.RefusePending); err != nil && ctx.Err() == nil {
					t.Error(err)
				}
			}
		})
		for range 3 {
			var got []string
			for cursor := ""; ; {
				page := testkit.Try(ds.List(t.Context(), delivery.DestinationFilter{}, cursor)).Must(t)
				for _, d := range page.Items {
					if len(d.Tags) > 0 && !slices.Contains(passing, d.ID) {
						got = append(got, d.ID)
					}
				}
				if cursor = page.Next; cursor == "" || len(got) == len(want) {
					break
				}
			}
			if !slices.Equal(got, want) {
				t.Errorf("%d of %d were seen, or in another order", len(got), len(want))
			}
		}
	})
}

// A receiver that changes over at any time within the overlap verifies all that it gets, while
// secrets are rotated.
func TestRotationWhileItIsDeliveredTo(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		var known atomic.Pointer[[]string] // what the receiver verifies with
		var refused atomic.Int64
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if _, err := webhook.VerifyRequest(r, *known.Load()); err != nil {
				refused.Add(1)
				w.WriteHeader(http.StatusUnauthorized)
			}
		}))
		t.Cleanup(server.Close)
		svc := testkit.Service(t, db, &testkit.Fake{}, delivery.WithHandler("webhook", webhook.New()), delivery.WithNetwork(delivery.Network{Loopback: true}))
		acme := svc.Org("acme")
		ds := acme.Destinations()
		d := testkit.Create(t, acme, destination.Spec{Config: webhook.Config{URL: server.URL}})
		known.Store(&[]string{testkit.Try(ds.SigningSecrets(t.Context(), d.ID)).Must(t)[0].Reveal()})
		testkit.Run(t, svc)
		for i := range 6 { // with one more, 8 would be in force
			var ids []string
			for range 10 {
				ids = append(ids, testkit.Send(t, acme, delivery.Request{Destinations: []string{d.ID}}))
			}
			next := testkit.Try(ds.RotateSecret(t.Context(), d.ID, destination.Rotation{})).Must(t)
			for range 10 {
				ids = append(ids, testkit.Send(t, acme, delivery.Request{Destinations: []string{d.ID}}))
			}
			for _, id := range ids {
				if s := testkit.Try(acme.WaitFor(testkit.Within(t, time.Minute), id)).Must(t); s.State != queue.Completed {
					t.Fatalf("after rotation %d it is %s", i, testkit.Show(s))
				}
			}
			known.Store(&[]string{next.Reveal()})
		}
		if n := refused.Load(); n != 0 {
			t.Errorf("%d requests could not be verified", n)
		}
	})
}
