package queuestore

import (
	"context"
	"database/sql"

	"github.com/deliverykit/delivery/internal/sqlstore"
)

// Checkpoint reads what an earlier attempt of an item saved, nil if there is nothing.
func Checkpoint(ctx context.Context, tx *sqlstore.Tx, k sqlstore.Key) (value []byte, err error) {
	err = tx.Query(ctx, func(rows *sql.Rows) error { return rows.Scan(&value) },
		`select value from delivery_checkpoints where organization_id = $1 and delivery_id = $2 and n = $3`,
		k.Organization, k.Delivery, k.N)
	return value, err
}

// SaveCheckpoint keeps value for the next attempt if the fence still matches, and reports whether
// it did.
func SaveCheckpoint(ctx context.Context, tx *sqlstore.Tx, k sqlstore.Key, value []byte) (bool, error) {
	n, err := tx.Exec(ctx, `insert into delivery_checkpoints (organization_id, delivery_id, n, value)
		select q.organization_id, q.delivery_id, q.n, $5 from delivery_queue q
		where q.organization_id = $1 and q.delivery_id = $2 and q.n = $3 and q.fence = $4 and q.lease <> 0
		on conflict (organization_id, delivery_id, n) do update set value = excluded.value`,
		k.Organization, k.Delivery, k.N, k.Fence, tx.JSON(value))
	return n > 0, err
}
