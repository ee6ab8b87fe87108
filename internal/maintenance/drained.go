package maintenance

import (
	"context"

	"github.com/deliverykit/delivery/event"
	"github.com/deliverykit/delivery/internal/events"
	"github.com/deliverykit/delivery/internal/queuestore"
	"github.com/deliverykit/delivery/internal/sqlstore"
)

// deleteDrained deletes destinations that were to be deleted once nothing waits for them.
func deleteDrained(bus *events.Bus) Chore {
	return Chore{Name: "draining", Every: every / 2, Do: func(ctx context.Context, r *Run) error {
		after := int64(0)
		return r.Batches(ctx, func(ctx context.Context, tx *sqlstore.Tx) (Batch, error) {
			rows, err := drainingDestinations(ctx, tx, after, pageSize)
			var gone []*sqlstore.DestinationRow
			for i := 0; i < len(rows) && err == nil; i++ {
				var deleted bool
				if deleted, err = deleteIfDrained(ctx, tx, rows[i]); deleted {
					gone = append(gone, rows[i])
				}
			}
			return Batch{len(rows) < pageSize, func() {
				if len(rows) > 0 {
					after = rows[len(rows)-1].No
				}
				r.Count(&r.Report.DestinationsDrained, len(gone))
				for _, d := range gone {
					bus.Publish(event.Event{
						Kind: event.DestinationDeleted, Organization: d.Organization, Destination: d.ID,
						Reason: "nothing waits for it any more",
					})
				}
			}}, err
		})
	}}
}

func deleteIfDrained(ctx context.Context, tx *sqlstore.Tx, d *sqlstore.DestinationRow) (bool, error) {
	waits, err := queuestore.Waits(ctx, tx, d.Organization, d.No)
	if err != nil || waits {
		return false, err
	}
	return true, tx.DeleteDestination(ctx, d.Organization, d.ID)
}

// drainingDestinations lists destinations of all organizations that are deleted once nothing waits
// for them, by number after the given one: a system statement.
func drainingDestinations(
	ctx context.Context, tx *sqlstore.Tx, after int64, limit int,
) ([]*sqlstore.DestinationRow, error) {
	return tx.SelectDestinations(ctx, `where d.no > $1 and d.draining_at is not null and d.deleted_at is null
		order by d.no limit $2`, after, limit)
}
