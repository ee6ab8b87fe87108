package configs

import (
	"context"
	"database/sql"

	"github.com/deliverykit/delivery/internal/sqlstore"
)

// CountSealed counts the sealed configs that begin with a prefix, which names a key: a system
// statement. With a nil prefix it counts all.
func CountSealed(ctx context.Context, tx *sqlstore.Tx, prefix []byte) (n int, err error) {
	query, args := `select count(*) from delivery_destinations where sealed is not null`, []any(nil)
	if prefix != nil {
		query += ` and substr(sealed, 1, $1) = $2`
		args = []any{len(prefix), prefix}
	}
	err = tx.Query(ctx, func(rows *sql.Rows) error { return rows.Scan(&n) }, query, args...)
	return n, err
}
