package deliverytest_test

import (
	"testing"

	"github.com/deliverykit/delivery"
	"github.com/deliverykit/delivery/deliverytest"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/payload"
)

// A host's test plays how an operator mends a destination and retries what died.
func TestRetryByHand(t *testing.T) {
	t.Parallel()
	kit := deliverytest.New(t)
	siem := kit.Destination("acme", deliverytest.Fail(handler.Permanent(errLuck)), deliverytest.Always(deliverytest.OK()))
	acme := kit.Org("acme")
	receipt, err := acme.Deliver(t.Context(), delivery.Request{Payload: payload.JSON("report")})
	if err != nil {
		t.Fatal(err)
	}
	kit.Process()
	siem.RequireDelivered(0)
	if err := acme.Retry(t.Context(), receipt.ID); err != nil {
		t.Fatal(err)
	}
	kit.Process()
	siem.RequireDelivered(1)
	attempts := siem.RequireAttempts(2)
	if attempts[0].MessageID != attempts[1].MessageID || attempts[1].Number != 1 {
		t.Errorf("attempts %+v", attempts)
	}
	if _, err := acme.Replay(t.Context(), delivery.Replay{Delivery: receipt.ID}); err != nil {
		t.Fatal(err)
	}
	kit.Process()
	if again := siem.RequireAttempts(3)[2]; again.MessageID == attempts[0].MessageID || string(again.Content) != `"report"` {
		t.Errorf("the replay is %+v", again)
	}
}
