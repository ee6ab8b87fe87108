package sqlstore

import (
	"context"
	"database/sql"
)

// CountSealed counts the sealed configs that begin with a prefix, which names a key: a system
// statement. With a nil prefix it counts all.
func (tx *Tx) CountSealed(ctx context.Context, prefix []byte) (n int, err error) {
	query, args := `select count(*) from delivery_destinations where sealed is not null`, []any(nil)
	if prefix != nil {
		query += ` and substr(sealed, 1, $1) = $2`
		args = []any{len(prefix), prefix}
	}
	err = tx.Query(ctx, func(rows *sql.Rows) error { return rows.Scan(&n) }, query, args...)
	return n, err
}

// SealedByOthers lists destinations whose sealed config does not begin with a prefix, by number
// after the given one: a system statement.
func (tx *Tx) SealedByOthers(ctx context.Context, after int64, prefix []byte, limit int) ([]*Destination, error) {
	return tx.SelectDestinations(ctx, `where d.no > $1 and d.sealed is not null and substr(d.sealed, 1, $2) <> $3
		and d.deleted_at is null order by d.no limit $4`, after, len(prefix), prefix, limit)
}

// Reseal replaces the sealed config of d if it is still the stored one, and reports whether it did.
// It changes no version.
func (tx *Tx) Reseal(ctx context.Context, d *Destination, sealed []byte) (bool, error) {
	n, err := tx.Exec(ctx, `update delivery_destinations set sealed = $4
		where organization_id = $1 and id = $2 and sealed = $3`, d.Organization, d.ID, d.Sealed, sealed)
	return n > 0, err
}
