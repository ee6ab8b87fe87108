package maintenance

import (
	"context"
	"time"

	"github.com/deliverykit/delivery/internal/configs"
	"github.com/deliverykit/delivery/internal/seal"
	"github.com/deliverykit/delivery/internal/sqlstore"
)

// reseal seals configs that an older key has sealed again, with the primary key. It changes no
// version, so it overtakes nobody; a config that is changed meanwhile is sealed with the primary
// key by that change.
func reseal(c *configs.Configs, keys *seal.Keyring) Chore {
	return Chore{Name: "keys", Every: 10 * time.Minute, Network: true, Do: func(ctx context.Context, r *Run) error {
		primary := seal.Prefix(keys.IDs()[0])
		return r.Pages(
			ctx,
			func(ctx context.Context, tx *sqlstore.Tx, after int64) ([]*sqlstore.DestinationRow, error) {
				return sealedByOthers(ctx, tx, after, primary, pageSize)
			},
			func(ctx context.Context, d *sqlstore.DestinationRow) {
				if err := resealOne(ctx, r, c, d); err != nil {
					r.logger.WarnContext(
						ctx,
						"delivery: a config could not be sealed with the primary key; it is tried again later",
						"organization", d.Organization, "destination", d.ID, "error", err,
					)
				}
			},
		)
	}}
}

func resealOne(ctx context.Context, r *Run, c *configs.Configs, d *sqlstore.DestinationRow) error {
	sealed, changed, err := c.Rewrap(ctx, d)
	if err != nil || !changed {
		return err
	}
	done := false
	err = r.store.Commit(ctx, sqlstore.Commit{Do: func(ctx context.Context, tx *sqlstore.Tx) (err error) {
		done, err = replaceSealed(ctx, tx, d, sealed)
		return err
	}, Committed: sqlstore.Again})
	if done {
		r.Count(&r.Report.ConfigsResealed, 1)
	}
	return err
}

// sealedByOthers lists destinations whose sealed config does not begin with a prefix, by number
// after the given one: a system statement.
func sealedByOthers(
	ctx context.Context, tx *sqlstore.Tx, after int64, prefix []byte, limit int,
) ([]*sqlstore.DestinationRow, error) {
	return tx.SelectDestinations(ctx, `where d.no > $1 and d.sealed is not null and substr(d.sealed, 1, $2) <> $3
		and d.deleted_at is null order by d.no limit $4`, after, len(prefix), prefix, limit)
}

// replaceSealed replaces the sealed config of d if it is still the stored one, and reports whether
// it did. It changes no version.
func replaceSealed(ctx context.Context, tx *sqlstore.Tx, d *sqlstore.DestinationRow, sealed []byte) (bool, error) {
	n, err := tx.Exec(ctx, `update delivery_destinations set sealed = $4
		where organization_id = $1 and id = $2 and sealed = $3`, d.Organization, d.ID, d.Sealed, sealed)
	return n > 0, err
}
