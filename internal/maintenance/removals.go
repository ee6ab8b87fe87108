package maintenance

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/internal/configs"
	"github.com/deliverykit/delivery/internal/settings"
	"github.com/deliverykit/delivery/internal/sqlstore"
)

const (
	removalsAtOnce = 8
	maxProblem     = 500 // bytes
)

// removals has a handler remove what it wrote at destinations whose retention of it is over, as far
// as its time goes.
func removals(c *configs.Configs, t *settings.Type) Chore {
	return Chore{
		Name:    "removals of " + t.Name,
		Every:   time.Hour,
		Network: true,
		Do: func(ctx context.Context, r *Run) error {
			return r.EachDestination(ctx, t.Name, func(ctx context.Context, d *sqlstore.DestinationRow) error {
				config, err := c.Open(ctx, t, d)
				if err != nil {
					return err
				}
				keep, err := t.Retention(config)
				if err != nil || keep <= 0 {
					return err
				}
				return removeOf(ctx, r, t, d, config, keep)
			})
		},
	}
}

// removeOf removes what is due of one destination. What fails is passed over until the next time.
func removeOf(
	ctx context.Context, r *Run, t *settings.Type, d *sqlstore.DestinationRow, config any, keep time.Duration,
) error {
	var after sqlstore.Written
	var failed error
	for {
		var due []sqlstore.Written
		err := r.store.Read(ctx, func(ctx context.Context, tx *sqlstore.Tx) (err error) {
			due, err = writtenBefore(ctx, tx, d.No, tx.Now.Add(-keep), after, pageSize)
			return err
		})
		if err != nil || len(due) == 0 {
			return errors.Join(failed, err)
		}
		after = due[len(due)-1]
		if err := removePage(ctx, r, t, d, config, due); err != nil {
			return errors.Join(failed, err)
		}
		for _, w := range due {
			if w.Removal == handler.NotRemoved {
				r.Count(&r.Report.RemovalsFailed, 1)
				failed = errors.New(w.Problem)
			} else {
				r.Count(&r.Report.Removals, 1)
			}
		}
	}
}

// removePage removes what is due, several at once, and records what became of each.
func removePage(
	ctx context.Context, r *Run, t *settings.Type, d *sqlstore.DestinationRow, config any,
	due []sqlstore.Written,
) error {
	var group errgroup.Group
	group.SetLimit(removalsAtOnce)
	for i := range due {
		group.Go(func() error {
			w := &due[i]
			removal, err := t.Remove(ctx, &handler.RemoveRequest{
				Organization: w.Organization, DestinationID: d.ID,
				DeliveryID: w.Delivery, ItemID: sqlstore.ItemID(w.Delivery, w.N),
				Config: config, Reference: w.Reference, WrittenAt: w.WrittenAt,
			})
			if w.Removal = removal; err != nil {
				w.Problem = sqlstore.Excerpt(err.Error(), maxProblem)
			}
			return nil
		})
	}
	_ = group.Wait() // each keeps its own error
	if ctx.Err() != nil {
		return ctx.Err() // what was removed is found missing the next time
	}
	return r.store.Commit(ctx, sqlstore.Commit{Do: func(ctx context.Context, tx *sqlstore.Tx) error {
		for _, w := range due {
			if err := noteRemoval(ctx, tx, w); err != nil {
				return err
			}
		}
		return nil
	}, Committed: sqlstore.Again})
}

// writtenBefore lists what was written at a destination before a time and is still to be removed,
// oldest first: a system statement. It begins after the given one; a zero one is the start.
func writtenBefore(
	ctx context.Context, tx *sqlstore.Tx, no int64, before time.Time, after sqlstore.Written, limit int,
) ([]sqlstore.Written, error) {
	if after.Delivery == "" {
		return tx.SelectWritten(ctx, `where destination_no = $1 and removed_at is null and written_at < $2
			order by written_at, delivery_id, n limit $3`, no, tx.Time(before), limit)
	}
	return tx.SelectWritten(ctx, `where destination_no = $1 and removed_at is null and written_at < $2
		and (written_at, delivery_id, n) > ($3, $4, $5) order by written_at, delivery_id, n limit $6`,
		no, tx.Time(before), tx.Time(after.WrittenAt), after.Delivery, after.N, limit)
}

// noteRemoval records that something was removed, or why that failed and is tried again. The record
// of a removal goes with its delivery. If the delivery is gone already, the record goes at once.
func noteRemoval(ctx context.Context, tx *sqlstore.Tx, w sqlstore.Written) error {
	if w.Removal == handler.NotRemoved {
		_, err := tx.Exec(ctx, `update delivery_written set tried_at = $4, problem = $5
			where organization_id = $1 and delivery_id = $2 and n = $3 and removed_at is null`,
			w.Organization, w.Delivery, w.N, tx.Time(tx.Now), w.Problem)
		return err
	}
	_, err := tx.Exec(ctx, `update delivery_written set removed_at = $4, removal = $5, problem = null
		where organization_id = $1 and delivery_id = $2 and n = $3 and removed_at is null`,
		w.Organization, w.Delivery, w.N, tx.Time(tx.Now), int16(w.Removal))
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `delete from delivery_written
		where organization_id = $1 and delivery_id = $2 and n = $3 and removed_at is not null
		and not exists (select 1 from delivery_deliveries d where d.organization_id = $1 and d.id = $2)`,
		w.Organization, w.Delivery, w.N)
	return err
}
