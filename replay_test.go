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
	"github.com/deliverykit/delivery/payload"
	"github.com/deliverykit/delivery/queue"
)

func TestReplay(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		c := newClock()
		f := &fake{}
		h := parametric{f}
		svc := service(t, db, h, c.option(), delivery.WithSource("mem", memorySource{"acme/1": "one"}), delivery.WithWorkers(1))
		acme := svc.Org("acme")
		a, b, extra := create(t, acme, destination.Spec{}), create(t, acme, destination.Spec{}), create(t, acme, destination.Spec{})
		for name, p := range map[string]payload.Payload{
			"inline": payload.Bytes("a.txt", []byte("one")), "stored": payload.Bytes("a.txt", make([]byte, 200_000)), "source": payload.Ref("mem", "1"),
		} {
			f.requests, f.contents = nil, nil
			old := send(t, acme, delivery.Request{
				Payload: p, Topic: "t", Destinations: []string{a.ID, b.ID}, CorrelationID: "c", Tags: []string{"x"}, Metadata: map[string]string{"k": "v"},
				Priority: delivery.High, Deadline: c.now().Add(time.Hour), IdempotencyKey: name,
				PerDestination: map[string]delivery.Override{b.ID: {Params: "for b"}},
			})
			process(t, svc)
			c.advance(2 * time.Hour)
			chunks := count(t, db, "delivery_payload_chunks")
			receipt := must[*delivery.Receipt](t)(acme.Replay(t.Context(), delivery.Replay{Delivery: old}))
			other := must[*delivery.Receipt](t)(acme.Replay(t.Context(), delivery.Replay{
				Delivery: old, Destinations: []string{extra.ID, b.ID}, IdempotencyKey: "replay " + name, Deadline: c.now().Add(time.Hour),
			}))
			if count(t, db, "delivery_payload_chunks") != chunks {
				t.Errorf("%s: the stored payload was copied", name)
			}
			process(t, svc)
			s := status(t, acme, receipt.ID)
			if s.State != queue.Completed || s.ReplayOf != old || s.ID == old || len(s.Items) != 2 || s.Topic != "t" || s.CorrelationID != "c" ||
				s.Tags[0] != "x" || s.Metadata["k"] != "v" || s.Priority != delivery.High || !s.Deadline.IsZero() || s.IdempotencyKey != "" {
				t.Errorf("%s: %s, %+v", name, show(s), s)
			}
			if was := status(t, acme, old); was.ReplayOf != "" || was.Payload != s.Payload || was.State != queue.Completed {
				t.Errorf("%s: the old one is %+v", name, was)
			}
			if len(f.requests) != 6 {
				t.Fatalf("%s: %d attempts", name, len(f.requests))
			}
			messages := map[string]bool{}
			for i, r := range f.requests {
				messages[r.MessageID] = true
				if f.contents[i] != f.contents[0] {
					t.Errorf("%s: the contents differ", name)
				}
				if want := map[bool]string{true: `"for b"`}[r.Destination.ID == b.ID]; string(r.Params) != want {
					t.Errorf("%s: destination %s gets %s", name, r.Destination.ID, r.Params)
				}
			}
			if len(messages) != 6 {
				t.Errorf("%s: message ids are repeated", name)
			}
			again := must[*delivery.Receipt](t)(acme.Replay(t.Context(), delivery.Replay{
				Delivery: old, Destinations: []string{b.ID, extra.ID}, IdempotencyKey: "replay " + name,
			}))
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
		one := send(t, acme, delivery.Request{Destinations: []string{a.ID, b.ID}, Payload: payload.Bytes("x", make([]byte, 100_000))})
		if _, err := acme.Replay(t.Context(), delivery.Replay{Delivery: one, Deadline: c.now()}); !errors.As(err, &invalid) {
			t.Errorf("a deadline that has passed: %v", err)
		}
		if err := acme.Destinations().Delete(t.Context(), a.ID, destination.CancelPending); err != nil {
			t.Fatal(err)
		}
		if _, err := acme.Replay(t.Context(), delivery.Replay{Delivery: one}); !errors.Is(err, delivery.ErrNotFound) {
			t.Errorf("to a deleted destination: %v", err)
		}
		execSQL(t, db, `delete from delivery_payloads`)
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
type parametric struct{ *fake }

func (parametric) ParseParams(json.RawMessage) error { return nil }
