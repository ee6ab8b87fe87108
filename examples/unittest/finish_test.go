package unittest

import (
	"errors"
	"testing"
	"time"

	"github.com/deliverykit/delivery"
	"github.com/deliverykit/delivery/deliverytest"
	"github.com/deliverykit/delivery/retry"
)

func TestReportSurvivesAnOutage(t *testing.T) {
	t.Parallel()
	kit := deliverytest.New(t, delivery.WithRetry(retry.Policy{First: time.Hour, Max: time.Hour}))
	siem := kit.Destination("acme", deliverytest.Fail(errors.New("no route")), deliverytest.OK())

	for range 2 { // the report generator may be run twice
		if err := finish(t.Context(), kit.DeliveryService, "acme", report{ID: "2026-Q3", Rows: 42}); err != nil {
			t.Fatal(err)
		}
	}

	kit.Process() // what is due now: the first attempt, which fails
	siem.RequireDelivered(0)
	kit.Advance(2 * time.Hour) // the retry, at its own moment; nothing sleeps
	siem.RequireAttempts(2)
	siem.RequireDelivered(1)
}
