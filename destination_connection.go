package delivery

import (
	"context"
	"fmt"
	"time"

	"github.com/deliverykit/delivery/access"
	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/internal/sqlstore"
	"github.com/deliverykit/delivery/payload"
	"github.com/deliverykit/delivery/retry"
)

// Test makes a real connection to a destination, within the time limit of an attempt, and reports
// each step. For types without a test the error is errors.ErrUnsupported.
func (d *Destinations) Test(ctx context.Context, id string) (*destination.TestReport, error) {
	row, err := d.get(ctx, id, access.OperateDestination)
	if err != nil {
		return nil, err
	}
	t, err := d.o.s.configs.Type(row.Type)
	if err != nil {
		return nil, destination.NewValidationError("destination", err)
	}
	config, err := d.o.s.configs.Open(ctx, t, row)
	if err != nil {
		return nil, fmt.Errorf("delivery: destination %q: %w", row.ID, err)
	}
	return d.test(ctx, row, config, row.ID)
}

// TestSpec is Test for a destination before it is created. An invalid spec is a
// [*destination.ValidationError], and then no connection is made.
func (d *Destinations) TestSpec(ctx context.Context, spec destination.Spec) (*destination.TestReport, error) {
	if err := d.o.authorize(ctx, access.WriteDestinations); err != nil {
		return nil, err
	}
	row, config, err := d.specify(spec)
	if err != nil {
		return nil, err
	}
	return d.test(ctx, row, config, "")
}

// TestPatch is Test for a destination as Update would make it: before new credentials are saved.
func (d *Destinations) TestPatch(ctx context.Context, id string, p destination.Patch) (*destination.TestReport, error) {
	row, config, err := d.patched(ctx, id, p)
	if err != nil {
		return nil, err
	}
	return d.test(ctx, row, config, "")
}

// test has the handler of row's type test a connection. id is "" for a destination that is not
// saved.
func (d *Destinations) test(
	ctx context.Context, row *sqlstore.DestinationRow, config any, id string,
) (*destination.TestReport, error) {
	t, err := d.o.s.configs.Type(row.Type)
	if err != nil {
		return nil, destination.NewValidationError("destination", err)
	}
	return t.Test(ctx, d.o.s.settings.Policy().Timeout(row.Limits),
		&handler.TestRequest{Organization: row.Organization, DestinationID: id, Config: config})
}

const sampleLifetime = time.Hour

// Sample sends a made-up event of a topic to a destination, as any delivery is sent, so that a
// person can see what arrives. It is marked as a test: its content says so, Status.Test is set, and
// handlers that can pass that on do. It is attempted once, and not after an hour.
func (d *Destinations) Sample(ctx context.Context, id, topic string) (*Receipt, error) {
	row, err := d.get(ctx, id, access.OperateDestination)
	if err != nil {
		return nil, err
	}
	now := d.o.s.settings.Now().UTC()
	drafts, err := d.o.drafts([]Request{{
		Topic: topic, Destinations: []string{row.ID}, Tags: []string{"test"},
		Deadline: now.Add(sampleLifetime), Retry: retry.Policy{Retries: retry.None},
		Payload: payload.JSON(map[string]any{
			"test": true, "topic": topic, "message": "This is a test. Nothing has happened.", "sent_at": stamp(now),
		}),
	}}, "")
	if err != nil {
		return nil, err
	}
	drafts[0].row.Options.Test = true
	receipts, err := d.o.acceptAll(ctx, drafts)
	if err != nil {
		return nil, err
	}
	return receipts[0], nil
}
