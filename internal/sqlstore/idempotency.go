package sqlstore

import (
	"context"
	"database/sql"
)

// TakenKey reads the delivery that holds an idempotency key, and whether it went to a fallback.
func (tx *Tx) TakenKey(
	ctx context.Context, organization, key string,
) (delivery string, fingerprint []byte, fallback bool, err error) {
	err = tx.Query(ctx, func(rows *sql.Rows) error {
		return rows.Scan(&delivery, &fingerprint, &fallback)
	}, `select k.delivery_id, k.fingerprint, coalesce((select d.fallback from delivery_deliveries d
			where d.organization_id = k.organization_id and d.id = k.delivery_id), $3)
		from delivery_idempotency k where k.organization_id = $1 and k.key = $2`, organization, key, false)
	return delivery, fingerprint, fallback, err
}
