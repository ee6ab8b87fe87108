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

// ExpireKeys removes expired idempotency keys, up to a limit: a system statement.
func (tx *Tx) ExpireKeys(ctx context.Context, limit int) (int64, error) {
	return tx.Exec(ctx, `delete from delivery_idempotency where (organization_id, key) in (
		select organization_id, key from delivery_idempotency where expires_at <= $1 order by expires_at limit $2)`,
		tx.Time(tx.Now), limit)
}
