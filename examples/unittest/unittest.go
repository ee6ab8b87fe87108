// Package unittest shows how a host tests its own code: finish is the host's, and finish_test.go
// tests it on the real service, in memory, with a clock that the test moves.
package unittest

import (
	"context"

	"github.com/deliverykit/delivery"
	"github.com/deliverykit/delivery/payload"
)

type report struct {
	ID   string `json:"id"`
	Rows int    `json:"rows"`
}

// finish hands over a report. A second call for the same report changes nothing.
func finish(ctx context.Context, svc *delivery.DeliveryService, org string, r report) error {
	_, err := svc.Org(org).Deliver(ctx, delivery.Request{
		Topic: "report.finished", Payload: payload.JSON(r), IdempotencyKey: "report/" + r.ID,
	})
	return err
}
