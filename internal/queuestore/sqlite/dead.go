package sqlite

import (
	"context"
	"time"

	"github.com/deliverykit/delivery/internal/queuestore"
	"github.com/deliverykit/delivery/internal/sqlstore"
	"github.com/deliverykit/delivery/internal/sqlstore/sqlite"
)

// Revive implements [queuestore.Native].
func (d Native) Revive(
	ctx context.Context, tx sqlstore.Execer, now time.Time, letters []queuestore.DeadLetterRow,
) error {
	seq, err := sqlite.Next(ctx, tx, len(letters))
	if err != nil {
		return err
	}
	for i, l := range letters {
		_, err := tx.ExecContext(ctx, `delete from delivery_dead_letters`+matching,
			l.Organization, l.Delivery, l.N, l.Fence)
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `insert into delivery_queue
			(organization_id, delivery_id, n, fence, lane, seq, run_at, deadline)
			values (?1, ?2, ?3, ?4 + 2, ?5, ?6, ?7, ?8)
			on conflict do nothing`,
			l.Organization, l.Delivery, l.N, l.Fence, l.Lane, seq+int64(i), d.Time(now),
			d.Time(l.Deadline)); err != nil {
			return err
		}
	}
	return nil
}
