package delivery_test

import (
	"context"
	"database/sql"
	"errors"
	"testing"

	"github.com/deliverykit/delivery"
	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/payload"
	"github.com/deliverykit/delivery/queue"
	"github.com/deliverykit/delivery/retry"
)

func TestDeliverToDefaults(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		f := &fake{}
		svc := service(t, db, f)
		acme := svc.Org("acme")
		d := create(t, acme, destination.Spec{Label: "SIEM", Default: true})
		receipt := must[*delivery.Receipt](t)(acme.Deliver(t.Context(), delivery.Request{
			Topic: "audit.login", Payload: payload.JSON(map[string]int{"a": 1}), Metadata: map[string]string{"k": "v"},
		}))
		pass := must[delivery.Pass](t)(svc.ProcessDue(t.Context()))
		if pass.Attempts != 1 || pass.Delivered != 1 || !pass.Next.IsZero() {
			t.Errorf("pass is %+v", pass)
		}
		s := must[*delivery.Status](t)(acme.Status(t.Context(), receipt.ID))
		if s.State != queue.Completed || len(s.Items) != 1 || s.Items[0].Destination != d.ID || s.Items[0].Label != "SIEM" {
			t.Errorf("status is %s", show(s))
		}
		if len(f.requests) != 1 {
			t.Fatalf("%d requests", len(f.requests))
		}
		r := f.requests[0]
		if r.Organization != "acme" || r.Topic != "audit.login" || r.Metadata["k"] != "v" || r.Attempt != 1 ||
			r.Config.(script).Token.Reveal() != "s3cret" || f.contents[0] != `{"a":1}` || r.ItemID != receipt.Items[0].ID {
			t.Errorf("request is %+v, content %q", r, f.contents[0])
		}
	})
}

func TestRetryThenDead(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		f := &fake{deliver: func(context.Context, *handler.Request) (*handler.Result, error) {
			return nil, errors.New("no luck")
		}}
		svc := service(t, db, f, delivery.WithRetry(retry.Policy{Retries: 2, First: 1, Max: 1, Jitter: -1}))
		acme := svc.Org("acme")
		create(t, acme, destination.Spec{Default: true})
		receipt := must[*delivery.Receipt](t)(acme.Deliver(t.Context(), delivery.Request{Payload: payload.Bytes("x", nil)}))
		for f.count() < 3 {
			must[delivery.Pass](t)(svc.ProcessDue(within(t, 1e10)))
		}
		s := must[*delivery.Status](t)(acme.Status(t.Context(), receipt.ID))
		i := s.Items[0]
		if s.State != queue.Failed || i.State != queue.Dead || i.Reason != queue.Exhausted || len(i.Attempts) != 3 ||
			i.Attempts[2].Error.Message != "no luck" || i.Attempts[1].Number != 2 {
			t.Errorf("status is %s", show(s))
		}
	})
}
