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
	return Chore{Name: "removals of " + t.Name, Every: time.Hour, Network: true, Do: func(ctx context.Context, r *Run) error {
		return r.EachDestination(ctx, t.Name, func(ctx context.Context, d *sqlstore.Destination) error {
			config, err := c.Open(ctx, t, d)
			if err != nil {
				return err
			}
			keep := t.Remover.Retention(config)
			if keep <= 0 {
				return nil
			}
			return removeOf(ctx, r, t, d, config, keep)
		})
	}}
}

// removeOf removes what is due of one destination. What fails is passed over until the next time.
func removeOf(ctx context.Context, r *Run, t *settings.Type, d *sqlstore.Destination, config any, keep time.Duration) error {
	var after sqlstore.Written
	var failed error
	for {
		var due []sqlstore.Written
		err := r.store.Read(ctx, func(ctx context.Context, tx *sqlstore.Tx) (err error) {
			due, err = tx.WrittenBefore(ctx, d.No, tx.Now.Add(-keep), after, pageSize)
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
func removePage(ctx context.Context, r *Run, t *settings.Type, d *sqlstore.Destination, config any, due []sqlstore.Written) error {
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
			if err := tx.NoteRemoval(ctx, w); err != nil {
				return err
			}
		}
		return nil
	}, Committed: sqlstore.Again})
}
