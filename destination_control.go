package delivery

import (
	"context"
	"fmt"

	"github.com/deliverykit/delivery/access"
	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/event"
	"github.com/deliverykit/delivery/internal/sqlstore"
	"github.com/deliverykit/delivery/retry"
)

// Enable ends a Disable, by hand or by the service. The destination's failures count from zero, and
// its held items are released at a bounded rate.
func (d *Destinations) Enable(ctx context.Context, id string) (*destination.Destination, error) {
	return d.update(ctx, id, access.OperateDestination, destination.Patch{Disabled: destination.Set(false)}, d.apply)
}

// Disable holds the items of a destination, also those that are accepted from now on, until Enable.
// reason is for people and has at most 200 bytes.
func (d *Destinations) Disable(ctx context.Context, id, reason string) (*destination.Destination, error) {
	problem := badText(reason)
	if len(reason) > maxReason {
		problem = fmt.Sprintf("has %d bytes, at most %d are allowed", len(reason), maxReason)
	}
	if problem != "" {
		return nil, destination.NewValidationError("disabling", destination.Invalid("reason", "%s", problem))
	}
	return d.update(ctx, id, access.OperateDestination, destination.Patch{Disabled: destination.Set(true)},
		func(ctx context.Context, row *sqlstore.DestinationRow, p destination.Patch) error {
			err := d.apply(ctx, row, p)
			row.DisabledReason = reason
			return err
		})
}

const maxReason = 200

// Pause holds the items of a destination until Resume. Attempts under way go on.
func (d *Destinations) Pause(ctx context.Context, id string) error {
	return d.pause(ctx, id, true, event.DestinationPaused)
}

// Resume ends a Pause.
func (d *Destinations) Resume(ctx context.Context, id string) error {
	return d.pause(ctx, id, false, event.DestinationResumed)
}

func (d *Destinations) pause(ctx context.Context, id string, paused bool, kind event.Kind) error {
	row, err := d.get(ctx, id, access.OperateDestination)
	if err != nil {
		return err
	}
	found := false
	err = d.o.s.store.Commit(ctx, sqlstore.Commit{Do: func(ctx context.Context, tx *sqlstore.Tx) (err error) {
		found, err = tx.PauseDestination(ctx, d.o.name, row.ID, paused)
		return err
	}, Committed: sqlstore.Again})
	if err == nil && !found {
		err = notFound("destination", id)
	}
	if err == nil {
		d.o.s.engine.Wake()
		d.changed(row, kind, "")
	}
	return err
}

// OpenBreaker opens a destination's breaker until CloseBreaker: its items are held, and no probe is
// let through.
func (d *Destinations) OpenBreaker(ctx context.Context, id string) error {
	return d.setBreaker(ctx, id, retry.Open, event.BreakerOpened)
}

// CloseBreaker closes a destination's breaker and counts its failures from zero. New failures open
// it again unless retry.Breaker.Off is set. For a disabled destination it is an error.
func (d *Destinations) CloseBreaker(ctx context.Context, id string) error {
	return d.setBreaker(ctx, id, retry.Closed, event.BreakerClosed)
}

func (d *Destinations) setBreaker(ctx context.Context, id string, state retry.BreakerState, kind event.Kind) error {
	row, err := d.get(ctx, id, access.OperateDestination)
	if err != nil {
		return err
	}
	if row.Disabled {
		return fmt.Errorf("delivery: destination %q is disabled; enable it instead, which also resets its breaker", id)
	}
	err = d.o.s.store.Commit(ctx, sqlstore.Commit{Do: func(ctx context.Context, tx *sqlstore.Tx) error {
		return d.o.s.store.SetBreaker(ctx, tx, row, state, d.breaker(row))
	}, Committed: sqlstore.Again})
	if err == nil {
		d.o.s.engine.Wake()
		d.changed(row, kind, "by hand")
	}
	return err
}
