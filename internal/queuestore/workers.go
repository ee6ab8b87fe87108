package queuestore

import (
	"context"
	"database/sql"
	"time"

	"github.com/deliverykit/delivery/internal/sqlstore"
)

// Present notes that a process attempts items of the given types: a system statement.
func Present(ctx context.Context, tx *sqlstore.Tx, id string, types []string) error {
	_, err := tx.Exec(ctx, `insert into delivery_workers (id, seen_at, types) values ($1, $2, $3)
		on conflict (id) do update set seen_at = excluded.seen_at`,
		id, tx.Time(tx.Now), tx.JSON(sqlstore.Encode(types)))
	return err
}

// Workers lists the types that some process attempts, of processes seen since a time: a system
// statement.
func Workers(ctx context.Context, tx *sqlstore.Tx, since time.Time) (types map[string]bool, err error) {
	types = map[string]bool{}
	err = tx.Query(ctx, func(rows *sql.Rows) error {
		var raw []byte
		var of []string
		if err := rows.Scan(&raw); err != nil {
			return err
		}
		err := sqlstore.Decode("types", raw, &of)
		for _, t := range of {
			types[t] = true
		}
		return err
	}, `select types from delivery_workers where seen_at >= $1`, tx.Time(since))
	return types, err
}

// ForgetWorkers removes processes last seen before a time: a system statement.
func ForgetWorkers(ctx context.Context, tx *sqlstore.Tx, before time.Time) error {
	_, err := tx.Exec(ctx, `delete from delivery_workers where seen_at < $1`, tx.Time(before))
	return err
}
