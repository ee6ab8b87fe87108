package delivery_test

import (
	"database/sql"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/deliverykit/delivery"
	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/internal/testkit"
	"github.com/deliverykit/delivery/payload"
	"github.com/deliverykit/delivery/queue"
	"github.com/deliverykit/delivery/retry"
)

func TestManyDeadLetters(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		const items = 2500
		c := testkit.NewClock()
		f := testkit.NewSwitchable()
		svc := testkit.Service(t, db, f, c.Option())
		acme, other := svc.Org("acme"), svc.Org("other")
		d, foreign := testkit.Create(t, acme, destination.Spec{Default: true}), testkit.Create(t, other, destination.Spec{Default: true})
		f.Fail(d, testkit.ErrNever)
		f.Fail(foreign, testkit.ErrNever)
		reqs := make([]delivery.Request, items)
		for i := range reqs {
			reqs[i] = delivery.Request{Payload: payload.JSON(i), Topic: []string{"even", "odd"}[i%2]}
		}
		testkit.Try(acme.DeliverMany(t.Context(), reqs)).Must(t)
		testkit.Send(t, other, delivery.Request{})
		testkit.Process(t, svc)
		dead := acme.DeadLetters()
		filter := delivery.DeadFilter{Destination: d.ID, Reasons: []queue.Reason{queue.Permanent, queue.Exhausted}}
		if n := testkit.CountDead(t, acme, filter); n != items {
			t.Fatalf("%d dead letters", n)
		}
		seen := map[string]bool{}
		last := "~"
		for cursor := ""; ; {
			page := testkit.Try(dead.List(t.Context(), filter, cursor)).Must(t)
			for _, l := range page.Items {
				if seen[l.ID] || l.ID >= last || l.Destination != d.ID || l.Label != "fake" || len(l.Attempts) != 1 {
					t.Fatalf("%s after %s: %+v", l.ID, last, l)
				}
				seen[l.ID], last = true, l.ID
			}
			if cursor = page.Next; cursor == "" {
				break
			}
		}
		if len(seen) != items {
			t.Errorf("%d letters listed", len(seen))
		}
		filter.DryRun = true
		if r := testkit.Try(dead.Retry(t.Context(), filter)).Must(t); r.Items != items || testkit.Count(t, db, "delivery_queue") != 0 {
			t.Errorf("a dry run retries %+v, and %d items are pending", r, testkit.Count(t, db, "delivery_queue"))
		}
		filter.DryRun = false
		if r := testkit.Try(dead.Retry(t.Context(), filter)).Must(t); r != (delivery.Retried{Items: items}) || testkit.Count(t, db, "delivery_queue") != items {
			t.Errorf("retried %+v, and %d items are pending", r, testkit.Count(t, db, "delivery_queue"))
		}
		if pass := testkit.Process(t, svc); pass.Dead != items {
			t.Errorf("pass is %+v", pass)
		}
		filter.Topic = "odd"
		if r := testkit.Try(dead.Retry(t.Context(), filter)).Must(t); r.Items != items/2 || testkit.Count(t, db, "delivery_queue") != items/2 {
			t.Errorf("retried %+v", r)
		}
		f.Heal(d)
		if pass := testkit.Process(t, svc); pass.Delivered != items/2 {
			t.Errorf("pass is %+v", pass)
		}
		if n := testkit.Try(dead.Purge(t.Context(), delivery.DeadFilter{All: true})).Must(t); n != items/2 {
			t.Errorf("purged %d", n)
		}
		if n := testkit.CountDead(t, acme, delivery.DeadFilter{}); n != 0 {
			t.Errorf("%d dead letters are left", n)
		}
		if n := testkit.CountDead(t, other, delivery.DeadFilter{}); n != 1 {
			t.Errorf("another organization has %d", n)
		}
	})
}

func TestDeadLetterFilters(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		c := testkit.NewClock()
		f := testkit.NewSwitchable()
		svc := testkit.Service(t, db, f, c.Option(), delivery.WithRetry(retry.Policy{Retries: retry.None}),
			delivery.WithDetailsURL(func(org, id string) string { return org + "/" + id }))
		acme, other := svc.Org("acme"), svc.Org("other")
		a, b := testkit.Create(t, acme, destination.Spec{Label: "a"}), testkit.Create(t, acme, destination.Spec{Label: "b"})
		f.Fail(a, testkit.ErrNever)
		f.Fail(b, errors.New("not now"))
		start := c.Now()
		first := testkit.Send(t, acme, delivery.Request{Destinations: []string{a.ID, b.ID}, Topic: "first", CorrelationID: "corr"})
		testkit.Process(t, svc)
		c.Advance(time.Hour)
		testkit.Send(t, acme, delivery.Request{Destinations: []string{b.ID}, Topic: "second", Priority: delivery.High})
		testkit.Process(t, svc)
		list := func(f delivery.DeadFilter) string {
			t.Helper()
			page := testkit.Try(acme.DeadLetters().List(t.Context(), f, "")).Must(t)
			var got []string
			for _, l := range page.Items {
				got = append(got, l.Topic+" "+l.Label)
			}
			if n := testkit.CountDead(t, acme, f); n != len(got) {
				t.Errorf("%d are counted, %d listed", n, len(got))
			}
			return strings.Join(got, ", ")
		}
		for _, e := range []struct {
			f    delivery.DeadFilter
			want string
		}{
			{delivery.DeadFilter{}, "second b, first b, first a"},
			{delivery.DeadFilter{All: true}, "second b, first b, first a"},
			{delivery.DeadFilter{Destination: b.ID}, "second b, first b"},
			{delivery.DeadFilter{Reasons: []queue.Reason{queue.Permanent}}, "first a"},
			{delivery.DeadFilter{Reasons: []queue.Reason{queue.Permanent, queue.Exhausted}, Destination: b.ID}, "second b, first b"},
			{delivery.DeadFilter{Topic: "first"}, "first b, first a"},
			{delivery.DeadFilter{After: start.Add(time.Minute)}, "second b"},
			{delivery.DeadFilter{After: start, Before: start.Add(time.Hour)}, "first b, first a"},
			{delivery.DeadFilter{Topic: "First"}, ""},
		} {
			if got := list(e.f); got != e.want {
				t.Errorf("%+v selects %q, want %q", e.f, got, e.want)
			}
		}
		l := testkit.Try(acme.DeadLetters().List(t.Context(), delivery.DeadFilter{Destination: a.ID}, "")).Must(t).Items[0]
		if l.Delivery != first || l.ID != first+"-1" || l.CorrelationID != "corr" || l.State != queue.Dead || l.Reason != queue.Permanent ||
			!l.CreatedAt.Equal(start) || !l.EndedAt.Equal(start) || l.Attempts[0].Error.Message == "" || l.Type != "fake" ||
			l.Payload.Size != 3 || l.DetailsURL != "acme/"+first {
			t.Errorf("dead letter %+v", l)
		}

		dead := acme.DeadLetters()
		var invalid *destination.ValidationError
		for name, f := range map[string]delivery.DeadFilter{
			"all and more":   {All: true, Topic: "x"},
			"no destination": {Destination: "x"},
			"no time":        {After: start, Before: start},
			"bad topic":      {Topic: "\x00"},
		} {
			if _, err := dead.List(t.Context(), f, ""); !errors.As(err, &invalid) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if _, err := dead.List(t.Context(), delivery.DeadFilter{}, "x"); !errors.As(err, &invalid) {
			t.Errorf("bad cursor: %v", err)
		}
		if _, err := dead.Retry(t.Context(), delivery.DeadFilter{}); !errors.As(err, &invalid) {
			t.Errorf("empty filter: %v", err)
		}
		if _, err := dead.Purge(t.Context(), delivery.DeadFilter{DryRun: true}); !errors.As(err, &invalid) {
			t.Errorf("empty filter: %v", err)
		}

		// Another organization reaches none of it, by whatever it names.
		theirs := other.DeadLetters()
		for _, f := range []delivery.DeadFilter{{All: true}, {Destination: b.ID}, {Topic: "second"}} {
			r := testkit.Try(theirs.Retry(t.Context(), f)).Must(t)
			n := testkit.Try(theirs.Purge(t.Context(), f)).Must(t)
			page := testkit.Try(theirs.List(t.Context(), f, "")).Must(t)
			if r != (delivery.Retried{}) || n != 0 || len(page.Items) != 0 || testkit.CountDead(t, other, f) != 0 {
				t.Errorf("%+v reaches %+v, %d, %+v", f, r, n, page)
			}
		}
	})
}

func TestPurge(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		c := testkit.NewClock()
		f := testkit.NewSwitchable()
		svc := testkit.Service(t, db, f, c.Option())
		acme := svc.Org("acme")
		a, b := testkit.Create(t, acme, destination.Spec{Default: true}), testkit.Create(t, acme, destination.Spec{Default: true})
		f.Fail(a, testkit.ErrNever)
		f.Fail(b, testkit.ErrNever)
		large := payload.Bytes("x", make([]byte, 100_000))
		ids := make([]string, 2)
		for i := range ids {
			ids[i] = testkit.Send(t, acme, delivery.Request{Payload: large})
		}
		testkit.Process(t, svc)
		if err := acme.Retry(t.Context(), ids[0], b.ID); err != nil { // pending, beside a dead one
			t.Fatal(err)
		}
		before := testkit.Show(testkit.Status(t, acme, ids[0]))
		dead := acme.DeadLetters()
		if n := testkit.Try(dead.Purge(t.Context(), delivery.DeadFilter{All: true, DryRun: true})).Must(t); n != 3 || testkit.CountDead(t, acme, delivery.DeadFilter{}) != 3 {
			t.Errorf("a dry run purges %d", n)
		}
		if n := testkit.Try(dead.Purge(t.Context(), delivery.DeadFilter{Destination: b.ID})).Must(t); n != 1 {
			t.Errorf("purged %d", n)
		}
		if n := testkit.Try(dead.Purge(t.Context(), delivery.DeadFilter{All: true})).Must(t); n != 2 || testkit.CountDead(t, acme, delivery.DeadFilter{}) != 0 {
			t.Errorf("purged %d", n)
		}
		if s := testkit.Status(t, acme, ids[0]); testkit.Show(s) != before || s.State != queue.InProgress {
			t.Errorf("status was %s, is %s", before, testkit.Show(s))
		}
		f.Heal(a)
		f.Heal(b)
		c.Advance(25 * time.Hour)
		testkit.Try(svc.Maintain(t.Context())).Must(t)
		if pass := testkit.Process(t, svc); pass.Delivered != 1 || len(f.Contents[len(f.Contents)-1]) != 100_000 {
			t.Errorf("what was pending: %+v", pass)
		}
		s := testkit.Status(t, acme, ids[1])
		if s.State != queue.Failed || len(s.Items[0].Attempts) != 1 {
			t.Errorf("the history is %s", testkit.Show(s))
		}
		if err := acme.Retry(t.Context(), ids[1], a.ID); !errors.Is(err, delivery.ErrNotRetryable) || !strings.Contains(err.Error(), "purged") {
			t.Errorf("retrying what was purged: %v", err)
		}
		testkit.Try(acme.Replay(t.Context(), delivery.Replay{Delivery: ids[1]})).Must(t)
		if pass := testkit.Process(t, svc); pass.Delivered != 2 {
			t.Errorf("replaying what was purged: %+v", pass)
		}
	})
}
