package delivery_test

import (
	"database/sql"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/deliverykit/delivery"
	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/internal/testkit"
	"github.com/deliverykit/delivery/payload"
	"github.com/deliverykit/delivery/queue"
)

func TestReplay(t *testing.T) {
	testkit.Each(t, func(t *testing.T, db *sql.DB) {
		c := testkit.NewClock()
		f := &testkit.Fake{}
		h := parametric{f}
		svc := testkit.Service(t, db, h, c.Option(), delivery.WithSource("mem", testkit.MemorySource{"acme/1": "one"}), delivery.WithWorkers(1))
		acme := svc.Org("acme")
		a, b, extra := testkit.Create(t, acme, destination.Spec{}), testkit.Create(t, acme, destination.Spec{}), testkit.Create(t, acme, destination.Spec{})
		for name, p := range map[string]payload.Payload{
			"inline": payload.Bytes("a.txt", []byte("one")), "stored": payload.Bytes("a.txt", make([]byte, 200_000)), "source": payload.Ref("mem", "1"),
		} {
			f.Requests, f.Contents = nil, nil
			old := testkit.Send(t, acme, delivery.Request{
				Payload: p, Topic: "t", Destinations: []string{a.ID, b.ID}, CorrelationID: "c", Tags: []string{"x"}, Metadata: map[string]string{"k": "v"},
				Priority: delivery.High, Deadline: c.Now().Add(time.Hour), IdempotencyKey: name,
				PerDestination: map[string]delivery.Override{b.ID: {Params: "for b"}},
			})
			testkit.Process(t, svc)
			c.Advance(2 * time.Hour)
			chunks := testkit.Count(t, db, "delivery_payload_chunks")
			receipt := testkit.Try(acme.Replay(t.Context(), delivery.Replay{Delivery: old})).Must(t)
			other := testkit.Try(acme.Replay(t.Context(), delivery.Replay{
				Delivery: old, Destinations: []string{extra.ID, b.ID}, IdempotencyKey: "replay " + name, Deadline: c.Now().Add(time.Hour),
			})).Must(t)
			if testkit.Count(t, db, "delivery_payload_chunks") != chunks {
				t.Errorf("%s: the stored payload was copied", name)
			}
			testkit.Process(t, svc)
			s := testkit.Status(t, acme, receipt.ID)
			if s.State != queue.Completed || s.ReplayOf != old || s.ID == old || len(s.Items) != 2 || s.Topic != "t" || s.CorrelationID != "c" ||
				s.Tags[0] != "x" || s.Metadata["k"] != "v" || s.Priority != delivery.High || !s.Deadline.IsZero() || s.IdempotencyKey != "" {
				t.Errorf("%s: %s, %+v", name, testkit.Show(s), s)
			}
			if was := testkit.Status(t, acme, old); was.ReplayOf != "" || was.Payload != s.Payload || was.State != queue.Completed {
				t.Errorf("%s: the old one is %+v", name, was)
			}
			if len(f.Requests) != 6 {
				t.Fatalf("%s: %d attempts", name, len(f.Requests))
			}
			messages := map[string]bool{}
			for i, r := range f.Requests {
				messages[r.MessageID] = true
				if f.Contents[i] != f.Contents[0] {
					t.Errorf("%s: the contents differ", name)
				}
				if want := map[bool]string{true: `"for b"`}[r.Destination.ID == b.ID]; string(r.Params) != want {
					t.Errorf("%s: destination %s gets %s", name, r.Destination.ID, r.Params)
				}
			}
			if len(messages) != 6 {
				t.Errorf("%s: message ids are repeated", name)
			}
			again := testkit.Try(acme.Replay(t.Context(), delivery.Replay{
				Delivery: old, Destinations: []string{b.ID, extra.ID}, IdempotencyKey: "replay " + name,
			})).Must(t)
			if !again.Duplicate || again.ID != other.ID || other.Items[0].Destination != extra.ID {
				t.Errorf("%s: %+v, then %+v", name, other, again)
			}
			var conflict *delivery.ConflictError
			if _, err := acme.Replay(t.Context(), delivery.Replay{Delivery: receipt.ID, Destinations: []string{b.ID, extra.ID}, IdempotencyKey: "replay " + name}); !errors.As(err, &conflict) {
				t.Errorf("%s: another replay under the key: %v", name, err)
			}
			if _, err := svc.Org("other").Replay(t.Context(), delivery.Replay{Delivery: old}); !errors.Is(err, delivery.ErrNotFound) {
				t.Errorf("%s: another organization: %v", name, err)
			}
		}
		var invalid *destination.ValidationError
		one := testkit.Send(t, acme, delivery.Request{Destinations: []string{a.ID, b.ID}, Payload: payload.Bytes("x", make([]byte, 100_000))})
		if _, err := acme.Replay(t.Context(), delivery.Replay{Delivery: one, Deadline: c.Now()}); !errors.As(err, &invalid) {
			t.Errorf("a deadline that has passed: %v", err)
		}
		if err := acme.Destinations().Delete(t.Context(), a.ID, destination.CancelPending); err != nil {
			t.Fatal(err)
		}
		if _, err := acme.Replay(t.Context(), delivery.Replay{Delivery: one}); !errors.Is(err, delivery.ErrNotFound) {
			t.Errorf("to a deleted destination: %v", err)
		}
		testkit.Exec(t, db, `delete from delivery_payloads`)
		if _, err := acme.Replay(t.Context(), delivery.Replay{Delivery: one, Destinations: []string{b.ID}}); !errors.Is(err, delivery.ErrNotFound) ||
			!strings.Contains(err.Error(), "payload") {
			t.Errorf("without its payload: %v", err)
		}
		if _, err := acme.Replay(t.Context(), delivery.Replay{Delivery: "x"}); !errors.Is(err, delivery.ErrNotFound) {
			t.Errorf("bad id: %v", err)
		}
	})
}

// parametric is a fake that takes params.
type parametric struct{ *testkit.Fake }

func (parametric) ParseParams(json.RawMessage) error { return nil }
